"""Several workers at once: the same comparison as one gives, whatever becomes of them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from comparison_result import differences, timeless
from processes import still_running
from watched_trials import KILL, steps, write_metric


@pytest.fixture(scope="module")
def model(tmp_path_factory, save_tiny):
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "answers.jsonl"
    rows = ({"prompt": f"day {i} of the cat", "completion": ["cat", "dog", "bird"][i % 3]} for i in range(60))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def words(tmp_path, model, data):
    metric = write_metric(tmp_path)
    found = ["compare", "--model", model, "--data", data, "--metric", f"{metric}:share", "--out", tmp_path / "out"]
    found += ["--budget-steps", "8", "--save-steps", "1", "--validation-examples", "8", "--test-examples", "12"]
    return [*map(str, found), "--yes", "--json"]


def started(words):
    command = [sys.executable, "-m", "tunewise.cli", *words]
    heard = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard, env=environment
    )


def ended(words):
    process = started(words)
    out, err = process.communicate(timeout=280)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def result(words):
    code, out, err = ended(words)
    assert code == 0, err
    return timeless(json.loads(out))


def trial_workers(process):
    """The processes that run trials."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "tunewise.comparison.trial_worker" in child.cmdline():
                found.append(child)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
@pytest.mark.figure("R1")
@pytest.mark.timeout(600)
def test_two_workers_give_what_one_gives_but_for_seconds(words, tmp_path):
    """A search in rungs, seeds, and techniques that read before training, which candidates share."""
    words = [*words, "-t", "base,lora,fish_mask,icl+lora", "--search", "3", "--seeds", "2"]
    one = result([*words, "--out", str(tmp_path / "one")])
    two = result([*words, "--out", str(tmp_path / "two"), "--workers", "2"])
    assert not differences(two, one)
    assert len({pid for pid, _ in steps(tmp_path, "lora")}) > 1, "several processes took part"
    folders = [{path.name for path in (tmp_path / out / "trials").iterdir()} for out in ("one", "two")]
    assert folders[0] == folders[1] and not (tmp_path / "two" / "preparing").exists()


@pytest.mark.slow
@pytest.mark.figure("R9")
def test_a_killed_workers_trial_goes_on_from_its_checkpoint(words, tmp_path):
    words = [*words, "-t", "base,lora,bitfit"]
    whole = result([*words, "--out", str(tmp_path / "whole")])
    (tmp_path / "steps").unlink()
    (tmp_path / "lora").write_text(f"once {KILL}")
    assert not differences(result([*words, "--workers", "2"]), whole)
    taken = steps(tmp_path, "lora")
    first = [step for pid, step in taken if pid == taken[0][0]]
    second = [step for pid, step in taken if pid != taken[0][0]]
    assert first == [1, 2, 3, 4] and second[0] in (4, 5) and second[-1] == 8


@pytest.mark.slow
@pytest.mark.figure("R9")
def test_three_deaths_are_a_failed_row_and_the_others_stay(words, tmp_path):
    (tmp_path / "lora").write_text(KILL)
    code, out, err = ended([*words, "-t", "base,lora,bitfit", "--workers", "2"])
    assert code == 0, err
    rows = {row["technique"]: row for row in json.loads(out)["rows"]}
    assert rows["lora"]["status"] == "failed"
    assert rows["lora"]["reason"] == "its process was killed from outside, 3 times"
    assert rows["base"]["status"] == rows["bitfit"]["status"] == "ok"
    assert len({pid for pid, _ in steps(tmp_path, "lora")}) == 3


@pytest.mark.slow
@pytest.mark.figure("R9")
def test_a_worker_that_hangs_is_a_failed_row(words, tmp_path):
    (tmp_path / "lora").write_text("time.sleep(600)")
    code, out, err = ended([*words, "-t", "base,lora,bitfit", "--workers", "2", "--patience", "25"])
    rows = {row["technique"]: row for row in json.loads(out)["rows"]}
    assert code == 0 and rows["lora"]["reason"] == "its process gave no sign of life for 25 s and was stopped", err
    assert rows["bitfit"]["status"] == "ok"


@pytest.mark.slow
@pytest.mark.figure("R10")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=lambda stop: stop.name)
def test_a_signal_ends_all_within_seconds_and_one_worker_goes_on(words, tmp_path, stop):
    words = [*words, "-t", "base,lora,bitfit"]
    whole = result([*words, "--out", str(tmp_path / "whole")])
    (tmp_path / "steps").unlink()
    for name in ("lora", "bitfit"):
        (tmp_path / name).write_text("time.sleep(600)")
    process = started([*words, "--workers", "2"])
    while not (tmp_path / "steps").exists() or not {"lora", "bitfit"} <= {*(tmp_path / "steps").read_text().split()}:
        time.sleep(0.1)
    time.sleep(1)
    found = psutil.Process(process.pid).children(recursive=True)
    assert len(trial_workers(process)) == 2
    process.send_signal(stop)
    began = time.monotonic()
    _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + stop and "to continue: tunewise compare" in err, err
    assert not still_running(found) and time.monotonic() - began < 10
    for name in ("lora", "bitfit"):
        (tmp_path / name).unlink()
    before = len(steps(tmp_path, "lora"))
    assert not differences(result(words), whole), "one worker goes on where two were"
    assert steps(tmp_path, "lora")[before][1] in (4, 5)


@pytest.mark.slow
@pytest.mark.figure("R13")
def test_a_dead_parent_takes_all_workers_along(words, tmp_path):
    for name in ("lora", "bitfit"):
        (tmp_path / name).write_text("time.sleep(600)")
    process = started([*words, "-t", "base,lora,bitfit", "--workers", "2"])
    while len(trial_workers(process)) < 2 or not (tmp_path / "steps").exists():
        time.sleep(0.1)
    found = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    assert not still_running(found)


@pytest.mark.slow
@pytest.mark.figure("R1")
@pytest.mark.timeout(600)
def test_advice_is_followed_by_two_workers_as_by_one(words, tmp_path):
    words = [*words, "-t", "base,lora,bitfit,full,icl,prompt_tuning", "--advised"]
    one = result([*words, "--out", str(tmp_path / "one")])
    two = result([*words, "--out", str(tmp_path / "two"), "--workers", "2"])
    assert one["advice"]["order"] and not differences(two, one)


@pytest.mark.slow
@pytest.mark.figure("R1")
@pytest.mark.timeout(600)
def test_what_one_worker_began_two_continue(words, tmp_path):
    whole = result([*words, "-t", "base,lora,bitfit", "--out", str(tmp_path / "whole")])
    result([*words, "-t", "base,lora"])
    before = len(steps(tmp_path, "lora"))
    assert not differences(result([*words, "-t", "base,lora,bitfit", "--workers", "2"]), whole)
    assert len(steps(tmp_path, "lora")) == before, "what is finished is not run again"


@pytest.mark.slow
@pytest.mark.figure("R9")
def test_what_ran_beside_others_is_timed_alone(words, tmp_path):
    code, out, err = ended([*words, "-t", "base,lora", "--workers", "2"])
    assert code == 0, err
    for row in json.loads(out)["rows"]:
        assert row["cost"]["timed_alone"] is True
        timing = json.loads((tmp_path / "out" / row["adaptation"]).with_name("timing.json").read_text())
        assert timing["neighbours"] == 1 and timing["seconds_per_example"] > 0
        assert row["cost"]["seconds_per_example"] <= timing["seconds_per_example"]
    assert "timed alone" in Path(tmp_path / "out" / "report.md").read_text()


@pytest.mark.slow
@pytest.mark.figure("R9")
def test_minutes_are_those_of_all_workers_together(words, tmp_path):
    place = words.index("--budget-steps")
    words = [*words[:place], *words[place + 2 :]]
    code, out, err = ended([*words, "-t", "base,lora,bitfit,full", "--budget-minutes", "1", "--workers", "2"])
    assert code == 0, err
    found = json.loads(out)
    assert [row["status"] for row in found["rows"]] == ["ok"] * 4
    paces = json.loads((tmp_path / "out" / "paces.json").read_text())
    assert len([name for name in paces if "minutes" in name]) == 3


def test_more_workers_than_cores_are_refused(words, tmp_path):
    code, out, err = ended([*words, "-t", "base", "--workers", "1000", "--device", "cpu"])
    assert code == 2 and not out and "wrong request: --workers is 1000, but there are " in err, err
    assert not (tmp_path / "out").exists()
