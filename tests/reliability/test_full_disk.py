"""A file system that is really full, native writers included: a sentence, and the next run ends as any other.

It is a small one in memory, which only root can mount. `test_commands_stopped.py` tries every call of Python without.
"""

import subprocess
from contextlib import contextmanager

import pytest

import figures
from stopped_commands import COMMANDS, names

pytestmark = [pytest.mark.slow, pytest.mark.figure("R5"), pytest.mark.timeout(figures.of(600, 7200))]

# KiB that the file system has: too few for anything, then for this or that of the files, and enough.
SIZES = {
    "fit": ([64], range(4, 400, 12)),
    "compare": ([64], range(4, 400, 40)),
    "export": ([64], range(4, 180, 4)),
    "generate": ([4], range(4, 12, 4)),
    "index": ([3200], range(100, 90_000, 3000)),
    "atlas add": ([4], range(4, 12, 4)),
}
ENOUGH = "300m"


@contextmanager
def mounted(place, kib):
    """A file system of so many KiB, and a function that gives it enough."""

    def mount(*words):
        subprocess.run(["mount", *words, str(place)], check=True, capture_output=True)

    try:
        mount("-t", "tmpfs", "-o", f"size={kib}k", "tmpfs")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    try:
        yield lambda: mount("-o", f"remount,size={ENOUGH}")
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_a_sentence_and_costs_nothing(lives, given, tmp_path, cases, name):
    command, whole = COMMANDS[name], tmp_path / "whole"
    whole.mkdir()
    assert lives.live(command.words(given, whole), whole).code == 0
    expected = command.outcome(whole)
    for kib in figures.of(*SIZES[name]):
        work = tmp_path / str(kib)
        work.mkdir()
        with mounted(work, kib) as give_enough:
            life = lives.live(command.words(given, work), work)
            assert life.signal == 0 and "Traceback" not in life.err + life.out, life
            if life.code:
                assert life.code in (1, 2), life
                assert "No space left on device" in life.err or "of free space" in life.err + life.out, life
            assert command.outcome(work) in (None, expected), kib
            give_enough()
            command.goes_on(lives, given, work, expected)
            assert names(work) == names(whole)
        cases.passed()
