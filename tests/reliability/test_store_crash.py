"""A commit killed anywhere, a power cut, a full disk, a tampered file: one whole version is always found.

R2: a child process is killed at every file-system event of a save. R3: states that a power cut can leave.
R4: random tampering. R5: the disk fills at every write.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import figures
from figures import Cases
from tunewise.core import artifact_writer
from tunewise.core.errors import ArtifactError, TunewiseError

Snapshot = dict[str, bytes]
EVENTS = {
    "open",
    "os.rename",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.listdir",
    "os.scandir",
    "shutil.rmtree",
}


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A SIGKILL leaves the kernel's buffers alone, so flushing changes nothing here but the time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def save(root: Path, step: int, mark: int) -> None:
    """A checkpoint whose every file tells `mark`."""
    generator = torch.Generator().manual_seed(mark)
    weights = {
        "a": torch.randn(4, 5, generator=generator),
        "b": torch.randn(3, generator=generator).bfloat16(),
    }
    moments = {name: tensor.float() * 2 for name, tensor in weights.items()}
    artifact_writer.commit(
        root / f"checkpoint-{step}",
        texts={"state.json": f'{{"step": {step}, "mark": {mark}}}'},
        tensors={"weights.safetensors": weights, "optimizer.safetensors": moments},
    )


def snapshot(stored: artifact_writer.Stored) -> Snapshot:
    return {name: (stored.folder / name).read_bytes() for name in stored.names}


def newest(root: Path) -> Snapshot:
    newest_checkpoint = artifact_writer.latest(root)
    assert newest_checkpoint is not None
    return snapshot(newest_checkpoint[1])


def names(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir())


def ends_by_itself(act: Callable[[], None], deadly: int) -> bool:
    """Run `act` in a child that kills itself at the `deadly`-th event; False if it came to that."""
    child = os.fork()
    if child == 0:
        count = 0

        def event() -> None:
            nonlocal count
            count += 1
            if count == deadly:
                os.kill(os.getpid(), signal.SIGKILL)

        write, fsync = os.write, os.fsync

        def halved(descriptor: int, data: memoryview) -> int:
            """A write in two halves, so that a file can be left half written."""
            event()
            done = write(descriptor, data[: len(data) // 2])
            event()
            return done + write(descriptor, data[len(data) // 2 :])

        def flushed(descriptor: int) -> None:
            event()
            fsync(descriptor)

        os.write, os.fsync = halved, flushed  # type: ignore[assignment]
        sys.addaudithook(lambda name, _: event() if name in EVENTS else None)
        try:
            act()
        except BaseException:
            os._exit(3)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.waitstatus_to_exitcode(status) == 0
    return True


@pytest.mark.figure("R2")
@pytest.mark.parametrize("new_step", [6, 4], ids=["another", "the-same"])
def test_killed_at_every_event_of_a_save(
    tmp_path: Path, new_step: int, caplog: pytest.LogCaptureFixture, cases: Cases
) -> None:
    before = tmp_path / "before"
    save(before, 2, mark=1)
    save(before, 4, mark=2)
    old = newest(before)
    shutil.copytree(before, tmp_path / "after")
    save(tmp_path / "after", new_step, mark=3)
    new = newest(tmp_path / "after")
    seen: list[Snapshot] = []
    while True:
        root = tmp_path / f"root-{len(seen)}"
        shutil.copytree(before, root)

        def act(root: Path = root) -> None:
            save(root, new_step, mark=3)
            artifact_writer.prune(root)

        finished = ends_by_itself(act, len(seen) + 1)
        snapshot_now = newest(root)
        assert snapshot_now in (old, new)
        seen.append(snapshot_now)
        save(root, new_step, mark=3)  # the run goes on
        artifact_writer.prune(root)
        assert newest(root) == new
        assert names(root) == sorted({"checkpoint-4", f"checkpoint-{max(new_step, 2) if new_step > 4 else 2}"})
        shutil.rmtree(root)
        cases.passed()
        if finished:
            break
    # The new one appears once and stays: no event after it brings the old one back.
    assert seen[0] == old and seen[-1] == new and len(seen) > 30
    assert seen == [old] * seen.count(old) + [new] * seen.count(new)
    assert not caplog.messages  # a kill leaves nothing damaged


WRITE_ORDER = ["state.json", "weights.safetensors", "optimizer.safetensors", "manifest.json"]
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "half": lambda raw: raw[: len(raw) // 2],
    "zeros": lambda raw: bytes(len(raw)),
}


@pytest.mark.figure("R3")
@pytest.mark.parametrize("damage", ["absent", *DAMAGES])
@pytest.mark.parametrize("reached", range(len(WRITE_ORDER)))
@pytest.mark.parametrize("rest", ["absent", "whole"])
def test_power_cut(tmp_path: Path, reached: int, damage: str, rest: str, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 4, mark=1)
    old = newest(tmp_path)
    save(tmp_path, 6, mark=2)
    folder = tmp_path / "checkpoint-6"
    if rest == "absent":
        for name in WRITE_ORDER[reached + 1 :]:
            (folder / name).unlink()
    path = folder / WRITE_ORDER[reached]
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    # As the renaming is the last step, such a state is found under the hidden name, where nobody looks.
    hidden = tmp_path / ".checkpoint-6.0123456789abcdef.tmp"
    shutil.copytree(folder, hidden)
    assert newest(tmp_path) == old
    assert len(caplog.messages) == 1
    # The run continues from the old one and comes by step 6 again: the damaged folder gives way but is kept.
    save(tmp_path, 6, mark=2)
    assert newest(tmp_path)["state.json"] == b'{"step": 6, "mark": 2}'
    assert not hidden.exists() and len(list(tmp_path.glob(".checkpoint-6.*.damaged"))) == 1


def flip(folder: Path, path: Path, rng: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)


def overwrite(folder: Path, path: Path, rng: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    place = rng.randrange(len(raw))
    raw[place] = rng.choice([value for value in range(256) if value != raw[place]])
    path.write_bytes(raw)


def truncate(folder: Path, path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def extend(folder: Path, path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() + rng.choice([b"\0", b"\n", b" ", rng.randbytes(9)]))


def zero(folder: Path, path: Path, rng: random.Random) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def delete(folder: Path, path: Path, rng: random.Random) -> None:
    path.unlink()


def swap(folder: Path, path: Path, rng: random.Random) -> None:
    other = rng.choice([entry for entry in sorted(folder.iterdir()) if entry != path])
    path.rename(folder / "between")
    other.rename(path)
    (folder / "between").rename(other)


def older(folder: Path, path: Path, rng: random.Random) -> None:
    shutil.copy(folder.with_name("checkpoint-4") / path.name, path)


def extra(folder: Path, path: Path, rng: random.Random) -> None:
    (folder / rng.choice(["x", "x.json", ".x", "x.pkl", "x\n\x1b[2J", "README"])).write_text("x")


def extra_folder(folder: Path, path: Path, rng: random.Random) -> None:
    (folder / "sub").mkdir()


def link(folder: Path, path: Path, rng: random.Random) -> None:
    path.rename(folder.with_name("elsewhere"))
    path.symlink_to(folder.with_name("elsewhere"))


def rename(folder: Path, path: Path, rng: random.Random) -> None:
    path.rename(folder / rng.choice([path.name + "~", path.name.upper(), "x" + path.name]))


TAMPERINGS = (flip, overwrite, truncate, extend, zero, delete, swap, older, extra, extra_folder, link, rename)


@pytest.mark.figure("R4")
def test_every_tampering_is_detected(tmp_path: Path, caplog: pytest.LogCaptureFixture, cases: Cases) -> None:
    pristine = tmp_path / "pristine"
    save(pristine, 4, mark=1)
    old = newest(pristine)
    save(pristine, 6, mark=2)
    for seed in range(figures.of(204, 1008)):
        rng = random.Random(seed)
        root = tmp_path / str(seed)
        shutil.copytree(pristine, root)
        folder = root / "checkpoint-6"
        tampering = TAMPERINGS[seed % len(TAMPERINGS)]
        tampering(folder, folder / rng.choice(WRITE_ORDER), rng)
        with pytest.raises(ArtifactError) as caught:
            artifact_writer.read(folder)
        assert str(caught.value).isprintable(), tampering
        caplog.clear()
        assert newest(root) == old, tampering
        assert len(caplog.messages) == 1
        assert folder.is_dir()
        shutil.rmtree(root)
        cases.passed()


@pytest.mark.figure("R5")
@pytest.mark.parametrize("kind", ["write", "fsync", "open", "rename"])
@pytest.mark.parametrize("new_step", [6, 4], ids=["another", "the-same"])
def test_full_disk_at_every_call(
    tmp_path: Path, kind: str, new_step: int, monkeypatch: pytest.MonkeyPatch, cases: Cases
) -> None:
    where: object = Path if kind == "rename" else os
    real = getattr(where, kind)
    for failing in range(1, 100):
        root, count = tmp_path / str(failing), 0
        save(root, 4, mark=1)
        old = newest(root)

        def full(*args: object, failing: int = failing, **named: object) -> object:
            nonlocal count
            # Reading takes no space; only an `open` that may create a file does.
            count += kind != "open" or bool(int(str(args[1])) & os.O_CREAT)
            if count == failing:
                count += 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **named)

        with monkeypatch.context() as patch:
            patch.setattr(where, kind, full)
            try:
                save(root, new_step, mark=2)
            except TunewiseError as error:
                message = str(error)
            else:
                break
        assert f"checkpoint-{new_step} could not be written" in message and " bytes " in message
        # Only the last call, the flush of the parent, comes when the new one is there already.
        new_is_there = kind == "fsync" and newest(root) != old
        assert new_is_there or newest(root) == old
        if not new_is_there:
            assert names(root) == ["checkpoint-4"]
        save(root, new_step, mark=2)  # space was freed
        assert newest(root)["state.json"] == f'{{"step": {new_step}, "mark": 2}}'.encode()
        artifact_writer.prune(root)
        assert names(root) == sorted({"checkpoint-4", f"checkpoint-{new_step}"})
        cases.passed()
    assert failing > {"write": 6, "fsync": 5, "open": 4, "rename": 1}[kind]
