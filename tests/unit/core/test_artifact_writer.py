"""Artifacts come back as they were written; single files are replaced whole; one process holds a folder."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tunewise.core import artifact_writer
from tunewise.core.errors import ArtifactError, RequestError, TunewiseError
from tunewise.core.lock import lock

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.float8_e4m3fn),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint64),
]
SHAPES = st.lists(st.integers(0, 3), max_size=3)
TENSORS = st.dictionaries(st.text(max_size=8), st.tuples(st.sampled_from(DTYPES), SHAPES), max_size=5)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, list[int], bytes]:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return tensor.dtype, list(tensor.shape), raw


def random_tensor(dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
    width = torch.empty((), dtype=dtype).element_size()
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (math.prod(shape) * width,), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


def checkpoint(root: Path, step: int) -> Path:
    folder = root / f"checkpoint-{step}"
    artifact_writer.commit(
        folder,
        texts={"s.json": f'{{"step": {step}}}'},
        tensors={"w.safetensors": {"w": torch.ones(3) * step}},
    )
    return folder


def names(root: Path) -> set[str]:
    return {entry.name for entry in root.iterdir()}


@QUICK
@given(TENSORS)
def test_tensors_round_trip(kinds: dict[str, tuple[torch.dtype, list[int]]]) -> None:
    kinds.pop("__metadata__", None)
    tensors = {name: random_tensor(*kind) for name, kind in kinds.items()}
    with TemporaryDirectory() as root:
        folder = Path(root) / "made" / "adapter"
        artifact_writer.commit(folder, tensors={"w.safetensors": tensors})
        stored = artifact_writer.read(folder)
        expected = {name: bits(tensor) for name, tensor in tensors.items()}
        assert {name: bits(tensor) for name, tensor in stored.tensors("w.safetensors").items()} == expected
        # Any reader of safetensors reads them, with PyTorch's mark in the header.
        assert {name: bits(tensor) for name, tensor in load_file(folder / "w.safetensors").items()} == expected
        assert b'"format":"pt"' in (folder / "w.safetensors").read_bytes().replace(b" ", b"")


def test_views_aliases_and_gradients_are_stored_by_value(tmp_path: Path) -> None:
    whole = torch.arange(12.0, requires_grad=True).reshape(3, 4)
    tensors = {
        "whole": whole,
        "alias": whole,
        "transposed": whole.T,
        "part": whole[:, 1],
        "bytes": torch.ones(3).bool(),
    }
    artifact_writer.commit(tmp_path / "a", tensors={"w.safetensors": tensors})
    loaded = artifact_writer.read(tmp_path / "a").tensors("w.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert not any(tensor.requires_grad for tensor in loaded.values())
    loaded["whole"][0, 0] = -1
    assert loaded["alias"][0, 0] == 0


@QUICK
@given(st.dictionaries(st.text(), JSON), st.text(st.characters(exclude_categories=["Cs"])))
@example({}, "PK")  # how an archive begins, and many a word
def test_texts_round_trip(value: dict[str, Any], text: str) -> None:
    with TemporaryDirectory() as root:
        folder = Path(root) / "adapter"
        artifact_writer.write_json(folder.with_name("value.json"), value)
        content = folder.with_name("value.json").read_text("utf-8")
        assert artifact_writer.read_json(folder.with_name("value.json")) == json.loads(content)
        artifact_writer.commit(folder, texts={"README.md": text, "value.json": content})
        stored = artifact_writer.read(folder)
        assert stored.names == ("README.md", "value.json")
        assert stored.text("README.md") == text
        assert repr(stored.json("value.json")) == repr(json.loads(content))


def test_a_lone_surrogate_and_other_strings_survive_json(tmp_path: Path) -> None:
    value = {"text": "a\ud800b \u2028 \x00 \\ud800 é 漢 😀", "int": 2**63, "float": 5e-324}
    artifact_writer.write_json(tmp_path / "v.json", value)
    assert artifact_writer.read_json(tmp_path / "v.json") == value
    assert "漢" in (tmp_path / "v.json").read_text("utf-8")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_json_lacks_are_refused_and_the_old_file_stays(tmp_path: Path, number: float) -> None:
    path = tmp_path / "v.json"
    artifact_writer.write_json(path, {"a": 1})
    for write in (artifact_writer.write_json, artifact_writer.append_line):
        with pytest.raises(ValueError):
            write(path, {"a": number})
    assert artifact_writer.read_json(path) == {"a": 1}
    assert names(tmp_path) == {"v.json"}


def test_a_failed_write_keeps_the_old_file_and_names_path_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "v.txt"
    artifact_writer.write_text(path, "old")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    for write in (artifact_writer.write_text, artifact_writer.append_line):
        with pytest.raises(TunewiseError, match=rf"{path} .* \d+ bytes .*No space"):
            write(path, "newer")
    assert path.read_text() == "old"
    assert names(tmp_path) == {"v.txt"}


def test_a_killed_write_is_cleaned_up_by_the_next(tmp_path: Path) -> None:
    left, other = tmp_path / ".v.txt.0123456789abcdef.tmp", tmp_path / ".v.txt.bak.0123456789abcdef.tmp"
    left.touch()
    other.touch()
    artifact_writer.write_text(tmp_path / "v.txt", "x")
    assert names(tmp_path) == {"v.txt", other.name}


def test_lines_are_appended_also_after_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "made" / "metrics.jsonl"
    artifact_writer.append_line(path, {"step": 1, "text": "a\nb"})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    artifact_writer.append_line(path, {"step": 2})
    lines = path.read_text().split("\n")
    assert [json.loads(lines[0]), lines[1], json.loads(lines[2]), lines[3]] == [
        *({"step": 1, "text": "a\nb"}, '{"step": 2, "lo', {"step": 2}, "")
    ]


def test_commit_replaces_a_whole_folder_and_leaves_nothing_behind(tmp_path: Path) -> None:
    checkpoint(tmp_path, 1)
    artifact_writer.commit(tmp_path / "checkpoint-1", texts={"other.json": "{}"})
    assert artifact_writer.read(tmp_path / "checkpoint-1").names == ("other.json",)
    assert names(tmp_path) == {"checkpoint-1"}


def test_writes_that_are_cut_short_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    assert artifact_writer.read(checkpoint(tmp_path, 1)).json("s.json") == {"step": 1}


def test_everything_is_flushed_before_the_rename_and_the_parent_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    rename, replace = Path.rename, Path.replace

    def moved(real: Any) -> Any:
        def call(source: Path, target: Path) -> Path:
            calls.append(f"-> {target.name}")
            return Path(real(source, target))

        return call

    def flush(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        calls.append("staged" if name.startswith(".") else name)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "rename", moved(rename))
    monkeypatch.setattr(Path, "replace", moved(replace))
    for _ in range(2):
        checkpoint(tmp_path / "made", 1)
    artifact_writer.write_text(tmp_path / "v.txt", "x")
    files = ["s.json", "w.safetensors", "manifest.json", "staged"]
    assert calls == [
        *(tmp_path.name, *files, "-> checkpoint-1", "made"),
        *(*files, "-> .checkpoint-1.old", "-> checkpoint-1", "made"),
        *("staged", "-> v.txt", tmp_path.name),
    ]


def test_commit_moves_what_is_not_whole_aside_instead_of_deleting_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    artifact_writer.commit(tmp_path / "mine", texts={"a.json": "{}"})
    assert artifact_writer.read(tmp_path / "mine").names == ("a.json",)
    [damaged] = tmp_path.glob(".mine.*.damaged")
    assert (damaged / "thesis.txt").read_text() == "years of work"
    assert str(damaged) in caplog.text


@pytest.mark.parametrize(
    ("texts", "tensors"),
    [
        *[
            ({name: ""}, {})
            for name in ("../a", "/a", "a/b", "", ".", "..", ".hidden", "a\0b", "C:\\a", "manifest.json")
        ],
        *[({name: ""}, {}) for name in ("a.pkl", "a.BIN", "a.pt", "a.safetensors", "a\n")],
        ({}, {"w.json": {}}),
        ({}, {"w.safetensors": {"c": torch.zeros(1, dtype=torch.complex64)}}),
        ({}, {"w.safetensors": {"__metadata__": torch.zeros(1)}}),
        ({"a.txt": "\ud800"}, {}),
    ],
)
def test_commit_refuses_what_read_would(tmp_path: Path, texts: dict[str, str], tensors: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        artifact_writer.commit(tmp_path / "a", texts=texts, tensors=tensors)
    assert names(tmp_path) == set()


def test_a_file_changed_after_the_check_is_refused(tmp_path: Path) -> None:
    stored = artifact_writer.read(checkpoint(tmp_path, 1))
    for name, get in (("s.json", stored.json), ("s.json", stored.text), ("w.safetensors", stored.tensors)):
        path = stored.folder / name
        path.write_bytes(path.read_bytes())
        with pytest.raises(ArtifactError, match="changed after"):
            get(name)
        with pytest.raises(ArtifactError, match="no file"):
            get("../s.json")


def test_latest_goes_by_number(tmp_path: Path) -> None:
    assert artifact_writer.latest(tmp_path) is None
    assert artifact_writer.latest(tmp_path / "absent") is None
    for step in (9, 10, 2):
        checkpoint(tmp_path, step)
    for other in (
        "checkpoint-",
        "checkpoint-x",
        "checkpoint-99x",
        ".checkpoint-99",
        "xcheckpoint-99",
        "checkpoint-٣",
    ):
        (tmp_path / other).mkdir()
    newest = artifact_writer.latest(tmp_path)
    assert newest is not None
    assert (newest[0], newest[1].json("s.json")) == (10, {"step": 10})


def test_latest_says_what_it_skips(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2, 3):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-3" / "s.json").write_text("{}")
    (tmp_path / "checkpoint-2" / "manifest.json").unlink()
    with caplog.at_level(logging.WARNING, "tunewise"):
        newest = artifact_writer.latest(tmp_path)
    assert newest is not None and newest[0] == 1
    assert len(caplog.messages) == 2 and not any("\n" in message for message in caplog.messages)
    assert names(tmp_path) == {"checkpoint-1", "checkpoint-2", "checkpoint-3"}


def test_prune_keeps_the_newest_whole_ones_and_every_damaged_one(tmp_path: Path) -> None:
    for step in range(1, 7):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-6" / "s.json").unlink()
    (tmp_path / "checkpoint-2" / "s.json").unlink()
    (tmp_path / "checkpoint-3").rename(tmp_path / ".checkpoint-3.old")  # an interrupted replacement
    (tmp_path / ".checkpoint-7.0123456789abcdef.tmp").mkdir()
    (tmp_path / "adaptation").mkdir()
    artifact_writer.prune(tmp_path)
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-4", "checkpoint-5", "checkpoint-6", "adaptation"}
    artifact_writer.prune(tmp_path, keep=0)
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-6", "adaptation"}
    artifact_writer.prune(tmp_path / "absent")


def test_remove_takes_only_what_commit_wrote(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 1)
    artifact_writer.remove(folder)
    artifact_writer.remove(folder)
    assert names(tmp_path) == set()
    (tmp_path / "mine").mkdir()
    artifact_writer.remove(tmp_path / "mine")
    assert names(tmp_path) == {"mine"}


@pytest.mark.figure("R6")
def test_space_is_checked_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr("shutil.disk_usage", lambda place: Usage(2 * 1000 + (64 << 20)))
    artifact_writer.check_space(tmp_path / "not" / "yet", 1000)
    with pytest.raises(TunewiseError, match=rf"{tmp_path}.*1001 bytes"):
        artifact_writer.check_space(tmp_path, 1001)


HOLD = """
import sys, time
from pathlib import Path
from tunewise.core import lock as store
assert "torch" not in sys.modules
with store.lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_told_the_holder_and_takes_over_after_a_kill(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        with pytest.raises(RequestError, match=rf"{folder} .*\b{process.pid}\b"), lock(folder):
            raise AssertionError
        process.send_signal(signal.SIGKILL)
    for _ in range(2):
        with lock(folder):
            with pytest.raises(RequestError, match=str(os.getpid())), lock(folder):
                raise AssertionError
            checkpoint(folder, 1)
            assert artifact_writer.latest(folder) is not None
    assert names(folder) == {".lock", "checkpoint-1"}
