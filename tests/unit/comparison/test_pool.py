"""The pool of workers: who runs what, what a lost worker costs, and what happens when none can work."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tunewise.comparison.pool import DroppedError, Job, Pool
from tunewise.comparison.trial_records import read_record, read_rung
from tunewise.comparison.worker_process import WorkerEnd
from tunewise.core.errors import RequestError, TunewiseError
from tunewise.results.schema import TrialIdentity

IDENTITY = TrialIdentity(
    technique="lora", settings={}, family="reparametrized", seed=0, learning_rate=1e-3, trains=True
)


class Seat:
    """A worker that notes what it runs, and does with each job what a test says: return an end, or raise."""

    def __init__(self, behaviour=lambda job: None):
        self.alive, self.ran, self.stopped, self.behaviour = False, [], 0, behaviour

    def carry_out(self, job):
        self.alive = True
        self.ran.append(job.row)
        return self.behaviour(job)

    def stop(self):
        self.alive, self.stopped = False, self.stopped + 1


@pytest.fixture
def job(tmp_path):
    reports = []

    def make(row, place=0):
        folder = tmp_path / row
        folder.mkdir(exist_ok=True)
        return Job(row, place, folder, IDENTITY, {}, lambda *report: reports.append(report))

    make.reports = reports
    return make


@pytest.fixture
def pool():
    pools = []

    def make(*seats):
        pools.append(Pool(seats, "now"))
        return pools[-1]

    yield make
    for each in pools:
        each.close()


def test_jobs_are_run_by_their_rows_place(job, pool):
    go = threading.Event()
    seat = Seat(lambda job: None if job.row == "first" else (go.wait(), None)[1])
    alone = pool(seat)
    with ThreadPoolExecutor() as threads:
        waiting = [threads.submit(alone.run, [job("held")])]
        while seat.ran != ["held"]:
            pass
        waiting += [threads.submit(alone.run, [job(name, place)]) for name, place in (("c", 2), ("a", 0), ("b", 1))]
        while len(alone._queue) < 3:
            pass
        go.set()
        for each in waiting:
            each.result(timeout=10)
    assert seat.ran == ["held", "a", "b", "c"]


def test_jobs_for_one_seat_are_run_by_no_other(job, pool):
    seats = [Seat(lambda job: None) for _ in range(3)]
    mixed = pool(*seats)
    mixed.run([job("warm")])
    for _ in range(3):
        mixed.run([job("timed")], seat=2)
    assert seats[2].ran[-3:] == ["timed"] * 3
    assert "timed" not in seats[0].ran + seats[1].ran


def test_a_job_for_a_busy_seat_holds_no_other_seat_up(job, pool):
    go = threading.Event()
    seats = [Seat(lambda job: (go.wait(10), None)[1] if job.row == "held" else None) for _ in range(2)]
    mixed = pool(*seats)
    with ThreadPoolExecutor() as threads:
        waiting = [threads.submit(mixed.run, [job("held")], seat=0)]
        while seats[0].ran != ["held"]:
            pass
        waiting.append(threads.submit(mixed.run, [job("pinned")], seat=0))
        while not mixed._queue:
            pass
        mixed.run([job("other", 1)])  # ends although the one before it waits
        assert seats[1].ran == ["other"] and not waiting[1].done()
        go.set()
        for each in waiting:
            each.result(timeout=10)
    assert seats[0].ran == ["held", "pinned"]


def test_a_pinned_job_goes_on_in_a_new_worker_of_its_seat(job, pool):
    ends = iter([WorkerEnd.killed(in_trial=True), None])
    seats = [Seat(lambda job: None), Seat(lambda job: next(ends))]
    pool(*seats).run([job("timed")], seat=1)
    assert seats[1].ran == ["timed", "timed"] and not seats[0].ran


def test_two_seats_work_at_once_and_one_job_starts_one_worker(job, pool):
    together = threading.Barrier(2, timeout=10)
    seats = [Seat(lambda job: (together.wait(), None)[1]) for _ in range(2)]
    pool(*seats).run([job("a"), job("b")])
    assert sorted(seats[0].ran + seats[1].ran) == ["a", "b"]
    lone = [Seat(), Seat()]
    few = pool(*lone)
    for name in "abc":  # whoever has a worker takes it
        few.run([job(name)])
    assert sorted(len(seat.ran) for seat in lone) == [0, 3]


def test_a_killed_workers_trial_goes_on_twice_and_is_a_failed_row_the_third_time(job, pool):
    ends = [WorkerEnd.killed(), WorkerEnd.killed(), None]
    seat = Seat(lambda job: ends.pop(0))
    one = pool(seat)
    one.run([job("a")])
    assert seat.ran == ["a"] * 3 and read_record(job("a").folder) is None
    assert ("a", "its worker was killed: going on from the checkpoint", 0, 0) in job.reports
    ends += [WorkerEnd.killed()] * 3
    one.run([job("b")])
    record = read_record(job("b").folder)
    assert (record.status, record.reason, record.life) == (
        "failed",
        "its process was killed from outside, 3 times",
        "now",
    )


@pytest.mark.parametrize("end", [WorkerEnd("crashed (SIGABRT)"), WorkerEnd.silent(25)])
def test_a_crash_or_a_silence_is_a_failed_row_at_once(job, pool, end):
    seat = Seat(lambda job: end)
    pool(seat).run([job("a")])
    assert seat.ran == ["a"] and seat.stopped == 1
    assert read_record(job("a").folder).reason == f"its process {end.why}"


def test_a_lack_of_memory_makes_the_next_try_smaller(job, pool):
    ends = [WorkerEnd.of_memory(), WorkerEnd.of_memory(), None]
    pool(Seat(lambda job: ends.pop(0))).run([job("a")])
    assert read_rung(job("a").folder) == 2 and read_record(job("a").folder) is None


def test_workers_that_cannot_start_end_the_comparison(job, pool):
    end = WorkerEnd("was killed from outside, 3 times", again=True, in_trial=False)
    seat = Seat(lambda job: end)
    with pytest.raises(TunewiseError, match="outside of any trial"):
        pool(seat).run([job("a")])
    assert len(seat.ran) == 3


def test_an_error_of_the_request_reaches_all_that_wait(job, pool):
    def refuse(job):
        raise RequestError("there is no such file")

    one = pool(Seat(refuse))
    with pytest.raises(RequestError, match="no such file"):
        one.run([job("a"), job("b")])
    with pytest.raises(RequestError, match="no such file"):
        one.run([job("c")])


def test_what_is_dropped_is_stopped_and_the_pool_works_on(job, pool):
    stopped = threading.Event()

    class Slow(Seat):
        def stop(self):
            super().stop()
            stopped.set()

    seat = Slow(lambda job: stopped.wait(10) and WorkerEnd.killed() if job.row == "slow" else None)
    one = pool(seat)
    with ThreadPoolExecutor() as threads:
        slow = threads.submit(one.run, [job("slow"), job("next")])
        while not seat.ran:
            pass
        one.drop()
        with pytest.raises(DroppedError):
            slow.result(timeout=10)
    assert read_record(job("slow").folder) is None, "it is no failure"
    one.run([job("wanted")])
    assert seat.ran == ["slow", "wanted"]
