"""Hostile folders and files are refused at once, in a sentence, before anything in them takes effect."""

from __future__ import annotations

import hashlib
import json
import os
import pickle  # noqa: TID251 (the attack)
import socket
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tunewise.core import artifact_writer
from tunewise.core.errors import ArtifactError


@contextmanager
def refused(match: str | None = None) -> Iterator[None]:
    start = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError, match=match) as caught:
            yield
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 2
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.canary,)


def forge(folder: Path, files: dict[str, bytes], listed: dict[str, Any] | None = None) -> Path:
    """A folder whose manifest agrees with its files: the forger can hash too."""
    folder.mkdir(parents=True)
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    entries = {name: {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()} for name, raw in files.items()}
    manifest = json.dumps({"files": entries | (listed or {})}, indent=2, ensure_ascii=False) + "\n"
    (folder / "manifest.json").write_text(manifest, "utf-8")
    return folder


def safetensors(header: bytes, data: bytes = b"", declared: int | None = None) -> bytes:
    return (len(header) if declared is None else declared).to_bytes(8, "little") + header + data


def test_a_forged_folder_without_an_attack_is_read(tmp_path: Path) -> None:
    assert artifact_writer.read(forge(tmp_path / "a", {"a.json": b"{}"})).json("a.json") == {}


@pytest.mark.figure("S1")
def test_an_archive_that_torch_would_unpickle_is_never_opened(tmp_path: Path) -> None:
    file = tmp_path / "w"
    torch.save({"w": torch.ones(3)}, file)
    folder = forge(tmp_path / "a", {"rows.jsonl": file.read_bytes()})
    with refused("rows.jsonl"):
        artifact_writer.read(folder)


@pytest.mark.figure("S1")
@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["w.safetensors", "rows.jsonl", "w.bin", "w.pt", "w.pkl", "W.CKPT", "w.npy"])
def test_a_pickle_is_never_loaded(tmp_path: Path, name: str, protocol: int) -> None:
    canary = tmp_path / "canary"
    folder = forge(tmp_path / "a", {name: pickle.dumps(Payload(canary), protocol)})
    if name == "rows.jsonl" and protocol < 2:
        artifact_writer.read(folder).text(name)  # those are text, and only ever text here
    else:
        with refused(name):
            artifact_writer.read(folder)
    with refused():
        artifact_writer.read_tensors(folder / name)
    with refused():
        artifact_writer.read_json(folder / name)
    assert not canary.exists()


@pytest.mark.figure("S1")
def test_torch_archives_under_other_names_are_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "saved")
    for name in ("weights.safetensors", "rows.jsonl"):
        with refused(name):
            artifact_writer.read(forge(tmp_path / f"a-{name}", {name: (tmp_path / "saved").read_bytes()}))


OUTSIDE = [
    "../secret",
    "/etc/passwd",
    "a/../../secret",
    "~/.ssh/id",
    "..",
    ".",
    "",
    "a\0b",
    "..\\secret",
    "C:\\x",
    "\ud800",
]


@pytest.mark.figure("S5")
@pytest.mark.parametrize("name", [*OUTSIDE, "a/b", "./a.json", "a.json\n", "\x1b[2J", "x" * 5000, "manifest.json"])
def test_names_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    entry = {"bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}
    folder = tmp_path / "a"
    if name == "\ud800":
        forge(folder, {"a.json": b"{}"})
        (folder / "manifest.json").write_text(json.dumps({"files": {name: entry}}))
    else:
        forge(folder, {"a.json": b"{}"}, {name: entry})
    with refused():
        artifact_writer.read(folder)
    with refused("no file"):
        artifact_writer.read(forge(tmp_path / "b", {"a.json": b"{}"})).text(name)


@pytest.mark.figure("S5")
def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"{}")
    folder = forge(tmp_path / "a", {"a.json": b"{}"})
    (folder / "a.json").unlink()
    (folder / "a.json").symlink_to(tmp_path / "secret")
    with refused("a.json"):
        artifact_writer.read(folder)
    (folder / "a.json").unlink()
    (folder / "a.json").symlink_to("a.json")
    with refused("a.json"):
        artifact_writer.read(folder)
    whole = forge(tmp_path / "b", {"a.json": b"{}"})
    (whole / "manifest.json").rename(tmp_path / "manifest")
    (whole / "manifest.json").symlink_to(tmp_path / "manifest")
    with refused("manifest.json"):
        artifact_writer.read(whole)
    for place in (folder / "a.json", whole / "manifest.json"):
        with refused(place.name):
            artifact_writer.read_json(place)
        with refused(place.name):
            artifact_writer.read_tensors(place)
    (tmp_path / "checkpoint-9").symlink_to(forge(tmp_path / "c", {"a.json": b"{}"}))
    with refused("not a folder"):
        artifact_writer.read(tmp_path / "checkpoint-9")
    assert artifact_writer.latest(tmp_path) is None


@pytest.mark.figure("S5")
def test_a_link_exchanged_after_the_check_is_not_followed(tmp_path: Path) -> None:
    stored = artifact_writer.read(forge(tmp_path / "a", {"a.json": b"{}"}))
    (tmp_path / "a" / "a.json").rename(tmp_path / "moved")
    (tmp_path / "a" / "a.json").symlink_to(tmp_path / "moved")
    with refused("a.json"):
        stored.json("a.json")


@pytest.mark.figure("S5")
def test_what_is_no_plain_file_does_not_block(tmp_path: Path) -> None:
    folder = forge(tmp_path / "a", {"a.json": b"{}"})
    for name in ("a.json", "manifest.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
    with refused("manifest.json"):
        artifact_writer.read(folder)
    with refused("a.json"):
        artifact_writer.read_json(folder / "a.json")
    with refused():
        artifact_writer.read_tensors(folder / "a.json")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with refused():
            artifact_writer.read_json(tmp_path / "s")
    for place in (Path("/dev/zero"), tmp_path, tmp_path / "absent"):
        with refused():
            artifact_writer.read_json(place)


HOSTILE_JSON = {
    "deep lists": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "unclosed": b"[" * 100_000,
    "33 levels": b'{"a": ' + b"[" * 32 + b"]" * 32 + b"}",
    "duplicate key": b'{"a": 1, "a": 2}',
    "inner duplicate key": b'{"b": [{"a": 1, "\\u0061": 2}]}',
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": -Infinity}',
    "overflow": b'{"a": 1e999}',
    "long integer": b'{"a": ' + b"9" * 10_000 + b"}",
    "list": b"[1]",
    "string": b'"a"',
    "empty": b"",
    "cut": b'{"a": "',
    "not UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "byte-order mark": b"\xef\xbb\xbf{}",
    "NUL": b'{"a": "\0"}',
    "escape sequence": b'{"a": 1} \x1b[2J',
    "quotes without end": b'{"a": "' + b'\\"' * 400_000,
    "quotes": b'{"a": ' + b'"' * 800_000,
    "too long": b'{"a": "' + b"x" * (1 << 20) + b'"}',
}


@pytest.mark.figure("S6")
@pytest.mark.parametrize("kind", HOSTILE_JSON)
def test_hostile_json(tmp_path: Path, kind: str) -> None:
    folder = forge(tmp_path / "a", {"a.json": HOSTILE_JSON[kind]})
    with refused("a.json"):
        artifact_writer.read_json(folder / "a.json")
    stored = artifact_writer.read(folder)
    with refused("a.json"):
        stored.json("a.json")
    (folder / "manifest.json").write_bytes(HOSTILE_JSON[kind])
    with refused("manifest.json"):
        artifact_writer.read(folder)


def test_json_at_the_limits_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a": ' + b"[" * 31 + b'"[[[{{{\\"[["' + b"]" * 31 + b"}")
    assert "a" in artifact_writer.read_json(path)
    path.write_bytes(b'{"a": "' + b"x" * 100 + b'"}')
    artifact_writer.read_json(path, limit_bytes=109)
    with refused("more than 108 bytes"):
        artifact_writer.read_json(path, limit_bytes=108)


MANIFESTS: list[Any] = [
    {},
    {"files": []},
    {"files": {"a.json": None}},
    {"files": {"a.json": 2}},
    {"files": {"a.json": {}}},
    {"files": {"a.json": {"bytes": "2", "sha256": hashlib.sha256(b"{}").hexdigest()}}},
    {"files": {"a.json": {"bytes": 2, "sha256": None}}},
    {"files": {"a.json": {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest(), "path": "/etc/passwd"}}},
    {"files": {"a.json": {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest().upper()}}},
    {"files": {"a.json": {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}}, "run": "x"},
]


@pytest.mark.figure("S6")
@pytest.mark.parametrize("number", range(len(MANIFESTS)))
def test_hostile_manifests(tmp_path: Path, number: int) -> None:
    folder = forge(tmp_path / "a", {"a.json": b"{}"})
    (folder / "manifest.json").write_text(json.dumps(MANIFESTS[number], indent=2) + "\n")
    with refused():
        artifact_writer.read(folder)


def many_tensors(count: int) -> bytes:
    entries = (f'"{n:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for n in range(count))
    return b"{" + ",".join(entries).encode() + b"}"


ENTRY = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
HOSTILE_TENSORS = {
    "empty": b"",
    "short": b"\x08\0\0",
    "huge header": safetensors(b"{}", declared=(1 << 64) - 1),
    "header beyond the end": safetensors(b"{}", declared=1000),
    "header of 11 MB": safetensors(b"{" + b" " * 11_000_000 + b"}"),
    "150 000 tensors": safetensors(many_tensors(150_000)),
    "no JSON": safetensors(b"\x1b[2J\n\n"),
    "deep": safetensors(b"[" * 100_000),
    "data cut": safetensors(ENTRY, bytes(7)),
    "data added": safetensors(ENTRY, bytes(9)),
    "overlap": safetensors(ENTRY[:-1] + b',"v":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
    "shape overflow": safetensors(
        b'{"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}', bytes(8)
    ),
    "negative": safetensors(b'{"w":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', bytes(8)),
    "unknown type": safetensors(b'{"w":{"dtype":"EVIL","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
    "duplicate": safetensors(ENTRY[:-1] + b',"w":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}', bytes(16)),
}


@pytest.mark.figure("S6")
@pytest.mark.parametrize("kind", HOSTILE_TENSORS)
def test_hostile_tensor_files(tmp_path: Path, kind: str) -> None:
    folder = forge(tmp_path / "a", {"w.safetensors": HOSTILE_TENSORS[kind]})
    with refused("w.safetensors"):
        artifact_writer.read(folder)
    with refused("w.safetensors"):
        artifact_writer.read_tensors(folder / "w.safetensors")


@pytest.mark.figure("S6")
def test_a_declared_header_of_100_megabytes(tmp_path: Path) -> None:
    folder = forge(tmp_path / "a", {}, {"w.safetensors": {"bytes": 200 << 20, "sha256": "0" * 64}})
    with (folder / "w.safetensors").open("wb") as file:
        file.write((100 << 20).to_bytes(8, "little"))
        file.truncate(200 << 20)
    with refused("header"):
        artifact_writer.read(folder)
    with refused("header"):
        artifact_writer.read_tensors(folder / "w.safetensors")


@pytest.mark.figure("S6")
def test_random_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    whole = safetensors(ENTRY, bytes(8))
    generator = torch.Generator().manual_seed(0)
    for number in range(1000):
        raw = bytearray(whole)
        place, value = (int(torch.randint(0, top, (1,), generator=generator)) for top in (len(raw), 256))
        raw[place] = value
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(raw)
        try:
            artifact_writer.read_tensors(path)
        except ArtifactError as error:
            assert str(error).isprintable()
