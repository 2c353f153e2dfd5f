"""When the processes of one training are taken to hang, and when not."""

import time

import pytest

from tunewise.cli import signs_of_life
from tunewise.cli.signs_of_life import PULSE, SILENCE, STALLED, Doings, Unchanged, Watch


class Ended(Exception):
    pass


class Store:
    """What the ranks have written, as torch's store gives it back."""

    def __init__(self):
        self.lines, self.broken = {}, False

    def _reached(self):
        if self.broken:
            raise RuntimeError("Connection reset by peer")

    def set(self, key, value):
        self._reached()
        self.lines[key] = value.encode()

    def get(self, key):
        return self.lines[key]

    def check(self, keys):
        self._reached()
        return all(key in self.lines for key in keys)


@pytest.fixture
def run(monkeypatch):
    """Ranks that write and look as time goes on."""
    now, ended = [1000.0], []

    def end(sentence):
        ended.append(sentence)
        raise Ended

    monkeypatch.setattr(signs_of_life.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(signs_of_life, "_end", end)

    class Run:
        def __init__(self, size):
            self.store, self.ended = Store(), ended
            self.watches = [Watch(lambda: self.store, rank, size) for rank in range(size)]
            self.busy = set(range(size))
            for rank, watch in enumerate(self.watches):
                watch._done.anything = lambda rank=rank: rank in self.busy

        def go_on(self, seconds, but=()):
            """Let time pass, in which all but these give signs of life."""
            until = now[0] + seconds
            while now[0] < until:
                now[0] += PULSE
                for rank, watch in enumerate(self.watches):
                    if rank not in but:
                        watch.beat()

        def stand_still(self, seconds):
            now[0] += seconds

    return Run


@pytest.mark.parametrize("hanging", [0, 1, 3])
def test_a_rank_that_is_silent_is_named_by_one_other(run, hanging):
    four = run(4)
    four.go_on(100)
    four.go_on(SILENCE, but={hanging})
    assert not four.ended
    with pytest.raises(Ended):
        four.go_on(2 * PULSE, but={hanging})
    assert len(four.ended) == 1 and f"device {hanging} gave no sign of life for 40 seconds" in four.ended[0]


def test_ranks_in_which_nothing_goes_on_are_named_together(run):
    three = run(3)
    three.go_on(100)
    three.busy = {2}
    three.go_on(10 * STALLED)  # the others wait for it
    three.busy = set()
    with pytest.raises(Ended):
        three.go_on(STALLED + 3 * PULSE)
    assert "nothing went on in any of the 3 devices for 50 seconds" in three.ended[0]


def test_a_run_that_stood_still_as_a_whole_goes_on(run):
    two = run(2)
    two.go_on(20)
    two.stand_still(3600)
    two.go_on(SILENCE - PULSE, but={1})  # it wakes later
    two.go_on(100)
    assert not two.ended


def test_a_rank_that_has_finished_is_not_missed(run):
    two = run(2)
    two.go_on(20)
    two.watches[1].leave()
    two.go_on(10 * SILENCE, but={1})
    assert not two.ended


def test_a_broken_connection_is_made_anew(run):
    two = run(2)
    two.go_on(20)
    two.store.broken = True
    for watch in two.watches:
        with pytest.raises(RuntimeError):
            watch.beat()
    two.store.broken = False
    two.go_on(10 * SILENCE)
    assert not two.ended and b" " in two.store.lines["tunewise/alive/1"]


def test_a_sign_that_fails_is_followed_by_others():
    calls = []

    def fails():
        calls.append(len(calls))
        if len(calls) < 3:
            raise PermissionError("the system hides it")

    with signs_of_life._every(0.01, fails):
        deadline = time.monotonic() + 10
        while len(calls) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(calls) >= 4


def test_values_are_timed_by_name(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(signs_of_life.time, "monotonic", lambda: now[0])
    unchanged = Unchanged()
    for second in range(10):
        now[0] = float(second)
        found = unchanged.seconds({"changes": second, "stays": "same"})
    assert found == {"changes": 0.0, "stays": 9.0}
    now[0] += 3 * PULSE + 1
    assert unchanged.seconds({"stays": "same"}) == {"stays": 0.0}


def test_what_a_process_does_is_seen(tmp_path):
    doings = Doings()
    doings.anything()
    deadline = time.process_time() + 0.3
    while time.process_time() < deadline:
        pass
    assert doings.anything()
    doings._used = lambda: (_ for _ in ()).throw(PermissionError("hidden"))
    assert doings.anything()


def test_a_process_that_waits_does_nothing(monkeypatch):
    doings = Doings()
    found = []
    for _ in range(2):
        found.append(doings.anything())  # from one place of the program
    assert found[1] is False
