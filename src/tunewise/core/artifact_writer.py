"""Writes artifacts; no other module does.

`commit` writes in this order, and each step is durable before the next one relies on it:

1. every file into a hidden sibling folder, where no reader looks, each flushed to the disk;
2. `manifest.json` (bytes and SHA-256 of each file), then the sibling folder itself: from now on it is complete;
3. an atomic rename to the final name and a flush of the parent: from now on readers find it.

A folder already under that name is renamed to `.<name>.old` just before step 3 and removed after it. A
process killed between the two renames leaves only `.<name>.old`; `read` and `latest` look there when the
name itself is missing, so at every moment one complete version is found. An incomplete folder is never deleted:
`commit` moves it to `.<name>.<token>.damaged`. One writer per output folder is assumed: hold `tunewise.core.lock`.

safetensors files are laid out here rather than by the library, so that one loop writes, hashes and flushes every byte
with one tensor in memory at a time. `artifact_reader` checks everything that is read back. This works on POSIX only: it
relies on flushing folders and on renames that replace.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tunewise.core.artifact_reader import (
    HEADER_BYTES,
    MANIFEST,
    TENSOR_COUNT,
    Stored,
    dump,
    manifest_bytes,
    name_problem,
    read_json,
    read_tensors,
    refusal,
    verified,
)
from tunewise.core.errors import ArtifactError, RequestError, TunewiseError, unwritable
from tunewise.core.json_record import JsonObject
from tunewise.core.lock import LOCK_FILES, lock, remove_unused_folders
from tunewise.core.operating_system import sync_folder

if TYPE_CHECKING:
    import torch

__all__ = [
    "Stored",
    "append_line",
    "check_space",
    "checkpoint_folders",
    "commit",
    "latest",
    "output_folder",
    "prune",
    "read",
    "read_json",
    "read_tensors",
    "remove",
    "remove_leftovers",
    "remove_runs",
    "set_aside",
    "staged_folder",
    "write_json",
    "write_text",
]

Tensors: TypeAlias = Mapping[str, "torch.Tensor"]

SPARE_BYTES = 64 << 20
RUN_FILES = ("metrics.jsonl", "cost.json")  # what a preparation keeps beside its checkpoints

_FLUSHED = 256_000_000  # bytes that are written at most before they are flushed
_DTYPES = {f"{kind}{bits}": f"{kind[0].upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}
_DTYPES |= {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL"}
_DTYPES |= {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
_log = logging.getLogger("tunewise")


def commit(folder: Path, *, texts: Mapping[str, str] = {}, tensors: Mapping[str, Tensors] = {}) -> None:
    """Write a folder all at once: after any crash either the old or the new one is there, complete.

    Args:
        folder: the final path; a folder already there is replaced, or moved aside if it is not complete.
        texts: file name to content, written unchanged in UTF-8.
        tensors: file name ending in `.safetensors` to tensors.

    Raises:
        TunewiseError: the folder could not be written; what was there is untouched.
        ValueError: a file name is not plain or has the wrong suffix, or a tensor type cannot be stored.
    """
    for name in (*texts, *tensors):
        if (problem := name_problem(name)) or (name in tensors) != name.endswith(".safetensors"):
            raise ValueError(f"{name!r} cannot be stored: it {problem or 'has a suffix for other content'}")
    raw = {name: text.encode() for name, text in texts.items()}
    needed = sum(map(len, raw.values())) + sum(t.nbytes for group in tensors.values() for t in group.values())
    stage = _hidden_sibling(folder, "tmp")
    with _explain_os_errors(folder, f"be written, which takes {needed} bytes"):
        _make_folder(folder.parent)
        try:
            stage.mkdir()
            entries = {name: _write_file(stage / name, [content]) for name, content in raw.items()}
            entries |= {name: _write_file(stage / name, _file_parts(group)) for name, group in tensors.items()}
            _write_file(stage / MANIFEST, [manifest_bytes(entries)])
            _sync_folder(stage)
            _move_into_place(stage, folder)
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            raise


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Yield a hidden folder for a library to write to; it becomes `folder`, all or nothing, if no error is raised.

    This is for other programs' formats: no manifest is written. One process at a time writes to `folder`; what a killed
    one left in the hidden folder, `.<name>.tmp/content`, is removed.

    Raises:
        RequestError: `folder` exists and is not empty, or a live process is writing it.
        TunewiseError: the folder could not be written.
    """
    hidden = folder.with_name(f".{folder.name}.tmp")
    if not hidden.exists():
        _require_empty(folder)  # nothing is made for a request that is wrong
    if hidden.exists() and not (hidden / LOCK_FILES[0]).exists() and any(hidden.iterdir()):
        raise RequestError(f"{hidden} is in the way; move it, or choose another folder than {folder}")
    created = [path for path in folder.absolute().parents if not path.exists()]
    try:
        with lock(hidden, shown=folder):
            try:
                yield _new_stage(hidden, folder)
                _finish_stage(hidden, folder)
            finally:
                shutil.rmtree(hidden, ignore_errors=True)
    except BaseException:
        remove_unused_folders(created)
        raise


def _new_stage(hidden: Path, folder: Path) -> Path:
    stage = hidden / "content"
    _require_empty(folder)  # a killed process or another one may have finished it
    with _explain_os_errors(folder, "be written"):
        _make_folder(folder.parent)
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir()
    return stage


def _finish_stage(hidden: Path, folder: Path) -> None:
    stage = hidden / "content"
    with _explain_os_errors(folder, "be written"):
        for path in [*stage.rglob("*"), stage]:
            _sync_folder(path)
        stage.replace(folder)
        _sync_folder(folder.parent)


def _require_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(f"{folder} is not empty; choose another --out")


def read(folder: Path) -> Stored:
    """Check a folder's names, sizes and hashes against its manifest.

    Raises:
        ArtifactError: the folder is missing, damaged, altered, or holds a file that the manifest does not list.
    """
    interrupted = not os.path.lexists(folder) and _moved_aside(folder).is_dir()
    return verified(_moved_aside(folder) if interrupted else folder)


def latest(root: Path, prefix: str = "checkpoint-") -> tuple[int, Stored] | None:
    """Return the newest complete checkpoint and its step; damaged ones are skipped with a warning, never deleted."""
    for step, folder in _checkpoints(root, prefix):
        try:
            return step, read(folder)
        except ArtifactError as error:
            _log.warning("skipped a damaged checkpoint: %s", error)
    return None


def checkpoint_folders(root: Path, prefix: str = "checkpoint-") -> list[Path]:
    """List the folders of checkpoints, newest first, unread: any of them may be damaged."""
    folders = [folder for _, folder in _checkpoints(root, prefix)]
    return [folder if folder.is_dir() else _moved_aside(folder) for folder in folders]


def prune(root: Path, keep: int = 2, prefix: str = "checkpoint-") -> None:
    """Remove all but the `keep` newest complete checkpoints, and what killed writers left behind.

    Damaged checkpoints stay. Raises `TunewiseError` if a folder cannot be removed.
    """
    complete = 0
    for _, folder in _checkpoints(root, prefix):
        with suppress(ArtifactError):
            _discard(folder, read(folder).folder, all_of_it=complete >= keep)
            complete += 1
    _remove_leftovers(root, re.escape(prefix) + "[0-9]+")


def remove(folder: Path) -> None:
    """Remove a folder that `commit` wrote; one that is missing or not complete is left as it is."""
    with suppress(ArtifactError):
        _discard(folder, read(folder).folder, all_of_it=True)


def set_aside(path: Path) -> Path:
    """Move something damaged out of the way, where no reader looks, and return its new path."""
    aside = _hidden_sibling(path, "damaged")
    with _explain_os_errors(path, "be moved aside"):
        path.rename(aside)
    return aside


def remove_leftovers(root: Path, *names: str, checkpoints: bool = False) -> None:
    """Remove what killed writers of these names, and of checkpoints if told to, left in a folder; hold its lock.

    That is `.<name>.<token>.tmp` of each name, and `.<name>.old` beside a complete folder of the name.
    """
    if checkpoints:
        _remove_leftovers(root, "checkpoint-[0-9]+")
    for name in names:
        _remove_leftovers(root, re.escape(name))
        if _moved_aside(root / name).is_dir():
            with suppress(ArtifactError):
                verified(root / name)
                shutil.rmtree(_moved_aside(root / name), ignore_errors=True)


def remove_runs(root: Path) -> None:
    """Remove the checkpoints, metrics and records of the runs in a folder, and folders that are then empty.

    What else is there stays, and so do damaged checkpoints.
    """
    if root.is_symlink() or not root.is_dir():
        return
    prune(root, keep=0)
    for path in root.iterdir():
        if path.name in RUN_FILES and not path.is_dir():
            path.unlink()
        elif not path.name.startswith("checkpoint-"):
            remove_runs(path)
    with suppress(OSError):  # something else is in it
        root.rmdir()


def write_text(path: Path, text: str) -> None:
    """Write one file atomically: after a crash it holds the old or the new text; raises `TunewiseError`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write one file atomically: after a crash it holds the old or the new bytes; raises `TunewiseError`."""
    stage = _hidden_sibling(path, "tmp")
    with _explain_os_errors(path, f"be written, which takes {len(content)} bytes"):
        _make_folder(path.parent)
        try:
            _write_file(stage, [content])
            stage.replace(path)
        except BaseException:
            stage.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
        _remove_leftovers(path.parent, re.escape(path.name))


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically; raises `ValueError` for NaN and infinities, `TunewiseError` if it cannot."""
    write_text(path, dump(value, indent=2) + "\n")


def append_line(path: Path, value: object) -> None:
    """Append one line of JSON; raises `ValueError` for NaN and infinities, `TunewiseError` if it cannot."""
    line = (dump(value) + "\n").encode()
    with _explain_os_errors(path, f"be written, which takes {len(line)} bytes"):
        _make_folder(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            if size:
                os.lseek(descriptor, size - 1, os.SEEK_SET)
                if os.read(descriptor, 1) != b"\n":
                    line = b"\n" + line  # a crash cut the last line short: keep this one apart from it
            _write(descriptor, line)
        finally:
            os.close(descriptor)


def output_folder(path: str | Path) -> Path:
    """Return the folder for results and create it if it is missing.

    Raises:
        RequestError: something else has that name, or the folder cannot be created.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(f"{folder} cannot be used as a folder for results", error, "choose another one") from error
    return folder


def check_space(folder: Path, needed_bytes: int) -> None:
    """Raise `TunewiseError` unless the disk has room for twice the needed bytes and 64 MiB."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free, required = shutil.disk_usage(existing).free, 2 * needed_bytes + SPARE_BYTES
    if free < required:
        raise TunewiseError(
            f"{folder}: saving {needed_bytes} bytes needs {required} bytes of free space, but only {free} are free; "
            "free some space or choose another folder"
        )


def _header(group: Tensors) -> tuple[bytes, list[tuple[str, torch.Tensor]]]:
    """Return the header of a safetensors file, and its tensors in order: widest types first, to keep alignment."""
    header: JsonObject = {"__metadata__": {"format": "pt"}}
    ordered, end = sorted(group.items(), key=lambda item: (-item[1].element_size(), item[0])), 0
    for name, tensor in ordered:
        dtype = _DTYPES.get(str(tensor.dtype).removeprefix("torch."))
        if dtype is None or name in header:
            raise ValueError(f"a tensor {name!r} of type {tensor.dtype} cannot be stored")
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    raw = dump(header).encode()
    raw += b" " * (-len(raw) % 8)
    if len(raw) > HEADER_BYTES or len(group) > TENSOR_COUNT:
        raise ValueError(f"{len(group)} tensors are too many for one file")
    return len(raw).to_bytes(8, "little") + raw, ordered


def file_bytes(group: Tensors) -> int:
    """Return the size of the safetensors file of these tensors; their values are not read."""
    return len(_header(group)[0]) + sum(tensor.nbytes for tensor in group.values())


def _file_parts(group: Tensors) -> Iterator[Any]:
    """Yield the parts of a safetensors file: the header, then each tensor as bytes."""
    import torch

    header, ordered = _header(group)
    yield header
    for _, tensor in ordered:
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _write_file(path: Path, parts: Iterable[Any]) -> dict[str, int | str]:
    """Write and flush a new file, and return its entry in the manifest.

    It is flushed piece by piece: a process that waits for minutes for its disk looks as if it hung.
    """
    size, digest = 0, hashlib.sha256()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        flushed = 0
        for part in parts:
            digest.update(part)
            view = memoryview(part)
            for start in range(0, len(view), _FLUSHED):
                size += _write(descriptor, view[start : start + _FLUSHED])
                if size - flushed >= _FLUSHED:
                    os.fsync(descriptor)
                    flushed = size
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _write(descriptor: int, part: Any) -> int:
    view, written = memoryview(part), 0
    while written < len(view):  # one call may write only a part
        written += os.write(descriptor, view[written:])
    return written


@contextmanager
def _explain_os_errors(path: Path, action: str) -> Iterator[None]:
    """Turn an `OSError` into the sentence "PATH could not ACTION"."""
    try:
        yield
    except OSError as error:
        remedy = "free some space there or choose another place"
        raise TunewiseError(f"{path} could not {action} ({error.strerror}); {remedy}") from error


def _make_folder(folder: Path) -> None:
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    try:
        sync_folder(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot flush a folder
            raise


def _move_into_place(stage: Path, folder: Path) -> None:
    old = None
    if os.path.lexists(folder):
        old = _moved_aside(folder)
        try:
            verified(folder)
            shutil.rmtree(old, ignore_errors=True)  # older than the complete one at `folder`
        except ArtifactError as error:
            old = _hidden_sibling(folder, "damaged")
            _log.warning("moved a damaged folder to %s: %s", old, error)
        folder.rename(old)
    try:
        stage.rename(folder)
    except OSError:
        if old:
            old.rename(folder)
        raise
    _sync_folder(folder.parent)
    shutil.rmtree(_moved_aside(folder), ignore_errors=True)
    _remove_leftovers(folder.parent, re.escape(folder.name))


def _discard(folder: Path, location: Path, *, all_of_it: bool) -> None:
    """Remove an outdated moved-aside version and, if `all_of_it`, the complete one that is at `location`."""
    if location == folder:
        shutil.rmtree(_moved_aside(folder), ignore_errors=True)
    if all_of_it:
        trash = _hidden_sibling(folder, "tmp")
        with _explain_os_errors(folder, "be removed"):
            location.rename(trash)  # first: a half-removed folder must not be taken for a damaged one
            _sync_folder(folder.parent)
            shutil.rmtree(trash)


def _moved_aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _hidden_sibling(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.{kind}")


def _remove_leftovers(root: Path, names: str) -> None:
    """Remove what killed writers left behind; `names` is a regular expression of the final names."""
    for entry in root.iterdir() if root.is_dir() else ():
        if re.fullmatch(rf"\.{names}\.[0-9a-f]{{16}}\.tmp", entry.name):
            shutil.rmtree(entry, ignore_errors=True)
            with suppress(OSError):
                entry.unlink(missing_ok=True)


def _checkpoints(root: Path, prefix: str) -> list[tuple[int, Path]]:
    """List every checkpoint, newest first, also one of which only the moved-aside version is there."""
    pattern = re.compile(rf"(\.?)({re.escape(prefix)}([0-9]{{1,18}}))((?:\.old)?)")
    try:
        matches = [pattern.fullmatch(entry.name) for entry in root.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise refusal(root, f"cannot be read ({error.strerror})") from error
    return sorted({(int(m[3]), root / m[2]) for m in matches if m and bool(m[1]) == bool(m[4])}, reverse=True)
