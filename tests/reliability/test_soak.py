"""A comparison that is stopped and damaged again and again, at random, still ends as one that nothing happened to.

A sample takes half a minute; at night it takes `TUNEWISE_SOAK_MINUTES`, which can be a day.
"""

import os
import random
import shutil
import signal
import time

import pytest

import figures
from stopped_commands import COMMANDS

SECONDS = figures.of(20, 60 * float(os.environ.get("TUNEWISE_SOAK_MINUTES", "15")))
pytestmark = [pytest.mark.slow, pytest.mark.figure("R16"), pytest.mark.timeout(SECONDS + 900)]

STOPS = ("SIGKILL", "SIGKILL", "SIGINT", "SIGTERM", "full")


def damage(work, rng):
    """Damage a file of some checkpoint, or the record of some trial; return whether there was one."""
    files = [path for path in work.glob("out/trials/*/checkpoint-*/*") if path.is_file()]
    files = sorted([*files, *work.glob("out/trials/*/trial.json")])
    if not files:
        return False
    path = rng.choice(files)
    content = bytearray(path.read_bytes())
    kind = rng.choice(("flip", "cut", "zero", "remove"))
    if kind == "remove":
        path.unlink()
        return True
    if kind == "flip" and content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del content[len(content) // 2 :]
    else:
        content[:] = bytes(len(content))
    path.write_bytes(content)
    return True


def test_stopped_and_damaged_at_random_for_long(lives, given, tmp_path, cases):
    command, rng = COMMANDS["compare"], random.Random(time.time_ns() if figures.NIGHTLY else 0)
    (tmp_path / "whole").mkdir()
    life = lives.live(command.words(given, tmp_path / "whole"), tmp_path / "whole")
    assert life.code == 0, life
    expected, events = command.outcome(tmp_path / "whole"), life.events
    stopped = damaged = runs = 0
    until = time.monotonic() + SECONDS
    while time.monotonic() < until or not (stopped and damaged):
        work = tmp_path / str(runs)
        work.mkdir()
        for _ in range(rng.randint(1, 6)):
            life = lives.live(command.words(given, work), work, rng.choice(STOPS), rng.randint(1, events))
            assert life.signal == signal.SIGKILL or life.code in (0, 1, 130, 143), life
            assert "Traceback" not in life.err + life.out, life.err
            stopped += life.signal == signal.SIGKILL or life.code != 0
            damaged += rng.random() < 0.5 and damage(work, rng)
        command.goes_on(lives, given, work, expected)
        shutil.rmtree(work)
        runs += 1
    cases.passed(stopped + damaged)
    cases.note = f"{runs} comparisons in {SECONDS / 60:.1f} minutes: {stopped} stops, {damaged} files damaged"
