"""Reads files that may be hostile: nothing is trusted before it is checked.

A file is read only if it is a plain file that the manifest lists, with the size and SHA-256 that the manifest gives.
Links and formats that can hold code are refused, and JSON files and safetensors headers must stay within limits.
`artifact_writer` writes what this module reads.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from tunewise.core.errors import ArtifactError
from tunewise.core.json_record import JsonObject
from tunewise.core.operating_system import read_only_flags

if TYPE_CHECKING:
    import torch

MANIFEST = "manifest.json"
_HUB_FILES = ("README.md", ".gitattributes")  # the Hub adds these to an adaptation; they are never read
JSON_BYTES, JSON_DEPTH, INTEGER_DIGITS = 1 << 20, 32, 300
HEADER_BYTES, TENSOR_COUNT = 10_000_000, 100_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")
_CODE_SUFFIXES = (
    ".bin",
    ".pt",
    ".pth",
    ".pkl",
    ".pickle",
    ".ckpt",
    ".joblib",
    ".dill",
    ".npy",
    ".npz",
    ".py",
)
_CODE_STARTS = (*(bytes((0x80, protocol)) for protocol in range(2, 6)), b"PK\x03\x04")  # pickle, torch.save's zip
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)  # possessive: linear on any text


@dataclass(frozen=True)
class Stored:
    """Gives access to the checked files of a folder; a file that changes after the check is refused, not read."""

    folder: Path
    names: tuple[str, ...]
    _identities: Mapping[str, tuple[int, int, int]] = field(repr=False, compare=False)  # inode, size, change time

    def text(self, name: str) -> str:
        """Return the text of a file; raises `ArtifactError` if it is absent, changed or not UTF-8."""
        with self._open(name) as file:
            return _decode(file.read(), self.folder / name)

    def json(self, name: str) -> JsonObject:
        """Return the JSON object in a file; raises `ArtifactError` as `read_json` does."""
        with self._open(name) as file:
            return _parse(file, self.folder / name, JSON_BYTES)

    def rows(self, name: str) -> list[JsonObject]:
        """Return the JSON objects in a file, one from each line; raises `ArtifactError` as `read_json` does."""
        lines = self.text(name).removesuffix("\n").split("\n")
        return [_object(line, self.folder / name, f"line {number} ") for number, line in enumerate(lines, 1)]

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Return the tensors of a file, on the CPU; raises `ArtifactError` if they cannot be read."""
        with self._open(name) as file:
            return _load(file, self.folder / name)

    def _open(self, name: str) -> BufferedReader:
        if name not in self._identities:
            raise refusal(self.folder, f"has no file {name[:80]!r}")
        file = _open(self.folder / name)
        if _identity(file) != self._identities[name]:
            file.close()
            raise refusal(self.folder / name, "changed after it was checked")
        return file


def read_json(path: Path, *, limit_bytes: int = JSON_BYTES) -> JsonObject:
    """Read one JSON object from an untrusted file.

    Raises:
        ArtifactError: the file is unreadable, a link, not a plain file, above the limit, nested deeper than 32, not
            an object, or has a duplicate key or a number that is not finite.
    """
    with _open(path) as file:
        return _parse(file, path, limit_bytes)


def read_plain_file(path: Path, limit_bytes: int) -> bytes:
    """Read the bytes of an untrusted file.

    Raises:
        ArtifactError: the file is unreadable, a link, not a plain file, or above the limit.
    """
    with _open(path) as file:
        return _read_up_to(file, path, limit_bytes)


def read_beginning(path: Path, most_bytes: int) -> bytes:
    """Read the first bytes of an untrusted file.

    Raises:
        ArtifactError: the file is unreadable, a link, or not a plain file.
    """
    with _open(path) as file:
        return file.read(most_bytes)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read an untrusted safetensors file that no manifest covers (another tool's adapter).

    Raises:
        ArtifactError: the file is unreadable, a link, not a plain file, or not a safetensors file within the limits.
    """
    with _open(path) as file:
        return _load(file, path)


def refusal(path: Path, problem: str) -> ArtifactError:
    """Make the error for a file that must not be used."""
    return ArtifactError(f"{path} {problem}; use an undamaged copy or create it again")


def verified(folder: Path) -> Stored:
    """Check a folder's files against its manifest and return them; raises `ArtifactError`."""
    identities = {}
    try:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise refusal(folder, "is not a folder")
        present = {entry.name for entry in folder.iterdir()} - {MANIFEST}
    except OSError as error:
        raise refusal(folder, f"cannot be read ({error.strerror})") from error
    entries = _read_manifest(folder / MANIFEST)
    present -= {*_HUB_FILES} - entries.keys()
    for name in sorted({*present, *entries}):
        if problem := name_problem(name):
            raise refusal(folder, f"has {name[:80]!r}, which {problem}")
        if name not in entries or name not in present:
            raise refusal(folder, f"{'holds' if name in present else 'lacks'} {name!r}, unlike its manifest")
        with _open(folder / name) as file:
            _check_file(file, folder / name, entries[name])
            identities[name] = _identity(file)
    return Stored(folder, tuple(identities), identities)


def _read_manifest(path: Path) -> JsonObject:
    with _open(path) as file:
        entries = _parse(file, path, JSON_BYTES).get("files")
        file.seek(0)
        # It must be byte for byte what `commit` writes, so that every change to it is noticed.
        if not isinstance(entries, dict) or file.read() != manifest_bytes(entries):
            raise refusal(path, "was altered")
    return entries


def _check_file(file: BufferedReader, path: Path, entries: object) -> None:
    # Cheap checks come first: a huge file must not be hashed, nor a header parsed before its length is checked.
    size = os.fstat(file.fileno()).st_size
    if not isinstance(entries, dict) or entries.get("bytes") != size:
        raise refusal(path, f"has {size} bytes, which is not the size in its manifest")
    if path.suffix == ".safetensors":
        with _parsed(file, path, "numpy"):
            pass
    elif file.read(4).startswith(_CODE_STARTS):
        raise refusal(path, "is a pickle or an archive under another name")
    file.seek(0)
    if entries != {"bytes": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}:
        raise refusal(path, "was altered: its SHA-256 is not the one in its manifest")


def name_problem(name: str) -> str | None:
    """Say why a file of this name is not stored or read, or return None."""
    if name.lower().endswith(_CODE_SUFFIXES):
        return "is of a format that can hold code"
    return None if _NAME.fullmatch(name) and name != MANIFEST else "is not a plain file name"


def _open(path: Path) -> BufferedReader:
    try:
        descriptor = os.open(path, read_only_flags())  # a FIFO must not block
    except OSError as error:
        raise refusal(path, f"cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise refusal(path, "is not a plain file")
    return os.fdopen(descriptor, "rb")


def _identity(file: BufferedReader) -> tuple[int, int, int]:
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_ctime_ns


def _decode(raw: bytes, path: Path) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise refusal(path, f"is not UTF-8 at byte {error.start}") from error


def _read_up_to(file: BufferedReader, path: Path, limit: int) -> bytes:
    raw = file.read(limit + 1)
    if len(raw) > limit:
        raise refusal(path, f"has more than {limit} bytes")
    return raw


def _parse(file: BufferedReader, path: Path, limit: int) -> JsonObject:
    return _object(_decode(_read_up_to(file, path, limit), path), path)


def _object(text: str, path: Path, where: str = "") -> JsonObject:
    """Read one JSON object; `where` says for errors where in the file it stands."""
    depth = 0
    for bracket in re.finditer(r"[\[\]{}]", _STRING.sub("", text)):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > JSON_DEPTH:  # checked before the parser recurses
            raise refusal(path, f"{where}is nested deeper than {JSON_DEPTH}")
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite, parse_int=_whole
        )
    except ValueError as error:
        raise refusal(path, f"{where}is not JSON ({_quoted(error)})") from error
    if not isinstance(value, dict):
        raise refusal(path, f"{where}is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> JsonObject:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key occurs twice")
    return value


def _whole(literal: str) -> int:
    if len(literal.removeprefix("-")) > INTEGER_DIGITS:  # as a float it would not be finite
        raise ValueError(f"{literal[:20]}... has more than {INTEGER_DIGITS} digits")
    return int(literal)


def _finite(literal: str) -> float:
    if not math.isfinite(number := float(literal)):
        raise ValueError(f"{literal[:20]} is not a finite number")
    return number


def _quoted(error: Exception) -> str:
    """Turn a parser's message, which can quote the hostile file, into one printable line."""
    return ascii(str(error))[1:-1][:200]


@contextmanager
def _parsed(file: BufferedReader, path: Path, framework: str) -> Iterator[Any]:
    if int.from_bytes(file.read(8), "little") > HEADER_BYTES:
        raise refusal(path, f"has a safetensors header of more than {HEADER_BYTES} bytes")
    try:
        with safe_open(path, framework=framework) as tensors:
            if len(tensors.keys()) > TENSOR_COUNT:
                raise ValueError(f"more than {TENSOR_COUNT} tensors")
            yield tensors
    except Exception as error:  # the parser's own type, and torch's for odd types and shapes
        raise refusal(path, f"is not a safetensors file ({_quoted(error)})") from error


def _load(file: BufferedReader, path: Path) -> dict[str, torch.Tensor]:
    with _parsed(file, path, "pt") as tensors:
        return {name: tensors.get_tensor(name).clone() for name in list(tensors.keys())}  # a copy: the file may change


def dump(value: object, indent: int | None = None) -> str:
    """Return a value as JSON text; raises `ValueError` for NaN and infinities."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, indent=indent)
    return text.encode("utf-8", "backslashreplace").decode()  # a lone surrogate becomes its JSON escape


def manifest_bytes(entries: Mapping[str, object]) -> bytes:
    """Return the exact bytes of a `manifest.json` with these entries."""
    return (dump({"files": entries}, indent=2) + "\n").encode()
