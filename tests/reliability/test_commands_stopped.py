"""Every command that writes is stopped at its file-system events: killed, interrupted, or by a full disk.

Whatever was stopped, nothing half-written is taken for whole, and the next run ends as one that was never stopped: with
the same bytes, and nothing left beside them. Of an index the same documents and passages are asked for, as its engine
names its files at random.
"""

import shutil
import signal
import sys
import time
from dataclasses import dataclass

import psutil
import pytest

import figures
from stopped_commands import COMMANDS, contents, names
from tunewise.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(figures.of(900, 28_800))]
MOST = 60  # events of a command at which it is interrupted, or the disk is full, at night; it is killed at all of them


@dataclass(frozen=True)
class Whole:
    """What a run that is not stopped does: its outcome, the names that it leaves, and its events."""

    outcome: object
    names: set[str]
    events: int
    space: int


@pytest.fixture(scope="module")
def wholes(tmp_path_factory, lives, given):
    """A function from a command's name to what a run that is not stopped does; it runs each once."""
    known = {}

    def whole(name):
        if name not in known:
            work, again = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("again")
            life = lives.live(COMMANDS[name].words(given, work), work)
            assert life.code == 0, life
            space = lives.live(COMMANDS[name].words(given, again), again, "full").events
            known[name] = Whole(COMMANDS[name].outcome(work), names(work), life.events, space)
            assert known[name].outcome is not None
        return known[name]

    return whole


def chosen(events, sample, night=None):
    """So many events, evenly spaced, the first and the last among them; at night all, or `night` of them."""
    count = figures.of(sample, night or events)
    if events <= count:
        return range(1, events + 1)
    return sorted({1 + round(place * (events - 1) / (count - 1)) for place in range(count)})


def went_on(lives, command, given, work, whole):
    command.goes_on(lives, given, work, whole.outcome)
    assert names(work) == whole.names, "nothing is left beside it"


@pytest.mark.figure("R2")
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_every_event_of_a_command(lives, given, wholes, tmp_path, cases, name):
    command, whole = COMMANDS[name], wholes(name)
    assert whole.events > 4
    for event in chosen(whole.events, 4):
        work = tmp_path / str(event)
        work.mkdir()
        life = lives.live(command.words(given, work), work, "SIGKILL", event)
        assert life.signal == signal.SIGKILL, life
        assert command.outcome(work) in (None, whole.outcome), f"half-written at event {event}"
        went_on(lives, command, given, work, whole)
        shutil.rmtree(work)
        cases.passed()


def test_what_belongs_beside_an_adaptation_is_there_before_it_is(lives, given, wholes, tmp_path):
    """The last events of a fit one by one: once its adaptation is complete, nothing goes on where it was killed."""
    command, whole = COMMANDS["fit"], wholes("fit")
    complete = 0
    for event in range(whole.events, 0, -1):
        work = tmp_path / str(event)
        work.mkdir()
        lives.live(command.words(given, work), work, "SIGKILL", event)
        if not (work / "out" / "adaptation").exists():
            break
        complete += 1
        assert {"out/README.md", "out/config.yaml"} <= names(work), f"at event {event} of {whole.events}"
    assert complete, "the adaptation is complete before the process ends"


@pytest.mark.figure("R10")
@pytest.mark.parametrize("stop", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("name", COMMANDS)
def test_stopped_by_a_signal_at_every_event_of_a_command(lives, given, wholes, tmp_path, cases, name, stop):
    command, whole = COMMANDS[name], wholes(name)
    for event in chosen(whole.events, 2, MOST):
        work = tmp_path / str(event)
        work.mkdir()
        life = lives.live(command.words(given, work), work, stop, event)
        assert (life.signal, life.code) == (0, 128 + getattr(signal, stop)), life
        last = life.lines()[-1]
        assert "; to continue: tunewise " in last and last.endswith(" ".join(command.further)), life.err
        assert "Traceback" not in life.err + life.out
        assert command.outcome(work) in (None, whole.outcome), f"half-written at event {event}"
        went_on(lives, command, given, work, whole)
        shutil.rmtree(work)
        cases.passed()


@pytest.mark.figure("R5")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_that_is_full_from_an_event_on(lives, given, wholes, tmp_path, cases, name):
    command, whole = COMMANDS[name], wholes(name)
    for event in chosen(whole.space, 3, MOST):
        work = tmp_path / str(event)
        work.mkdir()
        life = lives.live(command.words(given, work), work, "full", event)
        assert "Traceback" not in life.err + life.out, life.err
        if life.code == 0:
            assert command.outcome(work) == whole.outcome, "what succeeds is whole"
        else:
            assert life.code == 1, life
            [said] = [line for line in life.lines() if "No space left on device" in line]
            assert said.startswith("failed: "), life.err
        assert command.outcome(work) in (None, whole.outcome), f"half-written at event {event}"
        went_on(lives, command, given, work, whole)
        shutil.rmtree(work)
        cases.passed()


@pytest.mark.figure("R2")
def test_a_push_changes_nothing_here(lives, given, tmp_path):
    """What it sends is one commit of the Hub, all or nothing; there is no event to be killed at."""
    adaptation = shutil.copytree(given / "fitted", tmp_path / "fitted")
    before = contents(tmp_path)
    life = lives.live(["push", adaptation, "me/mine"], tmp_path)
    assert life.code == 0 and life.events == 0, life
    assert contents(tmp_path) == before


@pytest.fixture
def run_here(monkeypatch, capfd):
    """A function that runs a command in this process: its exit code and what it says on stderr."""

    def run(words):
        monkeypatch.setattr(sys, "argv", ["tunewise", *map(str, words)])
        capfd.readouterr()
        try:
            main.main()
        except SystemExit as end:
            return end.code or 0, capfd.readouterr().err
        return 0, capfd.readouterr().err

    return run


@pytest.mark.figure("R13")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_run_is_refused_and_a_dead_ones_lock_is_taken_over(lives, given, wholes, tmp_path, run_here, name):
    """The first is stopped half-way, where it holds what it writes to, and killed later."""
    command, whole = COMMANDS[name], wholes(name)
    first = psutil.Process(lives.begin(command.words(given, tmp_path), tmp_path, "SIGSTOP", whole.events // 2))
    while first.status() != psutil.STATUS_STOPPED:
        time.sleep(0.05)
    before = contents(tmp_path)
    code, said = run_here(command.words(given, tmp_path))
    assert code == 2 and f"is in use by process {first.pid};" in said, said
    assert contents(tmp_path) == before
    first.kill()
    assert lives.end().signal == signal.SIGKILL
    went_on(lives, command, given, tmp_path, whole)
