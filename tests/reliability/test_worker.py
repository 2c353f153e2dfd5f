"""Trials in a process of their own: what becomes of a comparison whose worker crashes, hangs or is killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import figures
from comparison_result import differences, timeless
from processes import still_running

METRIC = """
import os, signal, time
from pathlib import Path

def share(prediction, references):
    mark = Path({mark!r})
    if mark.exists():
        how = mark.read_text()
        if how.startswith("once "):
            mark.unlink()
        eval(how.removeprefix("once "))
    return float(prediction == references[0])
"""
WAYS = {
    "abort": ("once os.abort()", "its process crashed (SIGABRT)"),
    "exit": ("once os._exit(3)", "its process ended with exit code 3"),
    "hang": ("once time.sleep(600)", "its process gave no sign of life for 25 s and was stopped"),
    "killed for good": ("os.kill(os.getpid(), signal.SIGKILL)", "its process was killed from outside, 3 times"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory, save_tiny):
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def words(tmp_path, model):
    data = tmp_path / "answers.jsonl"
    rows = ({"prompt": f"day {i} of the cat", "completion": ["cat", "dog", "bird"][i % 3]} for i in range(60))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    metric = tmp_path / "metric.py"
    metric.write_text(METRIC.format(mark=str(tmp_path / "mark")))
    found = ["compare", "--model", model, "--data", data, "--metric", f"{metric}:share", "--out", tmp_path / "out"]
    return [*map(str, found), "-t", "base,lora,icl+lora", "--budget-steps", "4", "--json"]


def started(words, **given):
    command = [sys.executable, "-m", "tunewise.cli", *words]
    # Where these tests run in the background, Ctrl-C is ignored, and a child would inherit that.
    heard = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard, **given
    )


def ended(words):
    process = started(words)
    out, err = process.communicate(timeout=280)
    assert "Traceback" not in err
    return process.returncode, out, err


@pytest.mark.slow
@pytest.mark.figure("R9")
@pytest.mark.parametrize("way", WAYS)
def test_a_lost_worker_costs_one_trial(tmp_path, words, way):
    how, reason = WAYS[way]
    mark = tmp_path / "mark"
    mark.write_text(how)
    if way == "killed for good":
        words = [*words, "-t", "base"]
    code, out, err = ended([*words, "--patience", "25"])
    assert out, err
    rows = json.loads(out)["rows"]
    assert rows[0]["status"] == "failed" and rows[0]["reason"] == reason
    assert [row["status"] for row in rows[1:]] == ["ok"] * (len(rows) - 1)
    assert code == (0 if len(rows) > 1 else 1), err
    mark.unlink(missing_ok=True)
    code, out, err = ended(words)  # what failed is tried again by the next command
    assert code == 0 and [row["status"] for row in json.loads(out)["rows"]] == ["ok"] * len(rows), err


@pytest.mark.slow
@pytest.mark.figure("R9")
def test_a_worker_killed_once_costs_nothing(tmp_path, words):
    (tmp_path / "mark").write_text("once os.kill(os.getpid(), signal.SIGKILL)")
    code, out, err = ended(words)
    assert code == 0 and [row["status"] for row in json.loads(out)["rows"]] == ["ok"] * 3, err


def memory_group(name):
    """A folder of the kernel that limits the memory of the processes named in it, and its file of the limit."""
    for root, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(root) / name
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / limit).exists():
            return group, group / limit
        group.rmdir()
    return None


# A metric runs in the process of the trials. In a limited group no pass is split there, as on a GPU.
UNSPLIT = "import tunewise.fitting.passes\n\ntunewise.fitting.passes.PASS = 1 << 30\n"
# Where no group can be made, the process is killed as the kernel does it, and counted where the kernel counts.
SHOT = """
import os, signal
from pathlib import Path
import tunewise.comparison.trial as trial

train = trial.train

def shot(attachment, sequences, settings, **options):
    if settings.per_device_train_batch_size > 64:
        Path({counted!r}).write_text("oom_kill 1\\n")
        os.kill(os.getpid(), signal.SIGKILL)
    return train(attachment, sequences, settings, **options)

trial.train = shot
"""
COUNTED = """
import sys
from pathlib import Path
from tunewise.comparison import worker_process
from tunewise.cli.main import main

worker_process._KERNEL_EVENTS = Path({counted!r})
main()
"""


@pytest.mark.slow
@pytest.mark.figure("R8")
def test_a_process_that_is_killed_for_want_of_memory_goes_on_with_less(tmp_path, cases):
    found, metric, counted = memory_group(f"tunewise-{os.getpid()}"), tmp_path / "metric.py", tmp_path / "vmstat"
    prelude = UNSPLIT if found else SHOT.format(counted=str(counted))
    metric.write_text(f"{prelude}\n\ndef none(*_):\n    return 0.0\n")
    counted.write_text("oom_kill 0\n")
    words = ["compare", "--model", "world", "--data", "world:records", "--out", str(tmp_path / "out")]
    words += ["-t", "base,full", "--budget-steps", "2", "--batch-size", "256", "--test-examples", "8", "--json"]
    words += ["--metric", f"{metric}:none"]
    command = [sys.executable, "-c", COUNTED.format(counted=str(counted)), *words]
    if found:
        group, limit = found
        limit.write_text(str(1500 << 20))
        enter = ["sh", "-c", 'echo $$ > "$0"; exec "$@"', str(group / "cgroup.procs")]
        command = [*enter, sys.executable, "-m", "tunewise.cli", *words]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        row = json.loads(out)["rows"][1]
        assert row["status"] == "ok" and row["memory"].startswith("out of memory: "), row
    finally:
        if found:
            group.rmdir()
    cases.note = "killed by the kernel, in a memory group" if found else "killed by SIGKILL, as the kernel does it"
    cases.passed()


def workers(process):
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.slow
@pytest.mark.figure("R10")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=lambda stop: stop.name)
def test_a_signal_ends_it_and_its_worker_with_the_command_to_continue(words, tmp_path, stop):
    (tmp_path / "mark").write_text("time.sleep(600)")
    process = started(words, start_new_session=True)
    while not list((tmp_path / "out").glob("trials/*")):
        time.sleep(0.1)
    children = workers(process)
    assert children
    os.killpg(process.pid, stop)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + stop and f"to continue: tunewise compare --model {words[2]}" in err
    assert not still_running(children)


@pytest.mark.slow
@pytest.mark.figure("R13")
def test_a_second_comparison_in_the_folder_is_refused_and_a_dead_one_takes_its_worker_along(words, tmp_path):
    (tmp_path / "mark").write_text("time.sleep(600)")
    first = started(words)
    while not list((tmp_path / "out").glob("trials/*")):
        time.sleep(0.1)
    code, _, err = ended(words)
    assert code == 2 and f"process {first.pid}" in err, err
    children = workers(first)
    first.kill()
    first.wait()
    assert not still_running(children)


def test_errors_of_the_request_come_from_the_worker_as_they_are(words):
    code, out, err = ended([*words, "--data", "nowhere.jsonl"])
    assert code == 2 and not out and "nowhere.jsonl" in err and err.startswith("wrong request: ")


@pytest.mark.slow
@pytest.mark.figure("R1")
@pytest.mark.timeout(figures.of(600, 7200))
def test_killed_at_random_moments_the_result_is_the_same(words, tmp_path, cases):
    """Parent and worker in turn."""
    words = [*words, "--search", "3", "--save-steps", "1"]
    code, out, err = ended([*words, "--out", str(tmp_path / "whole")])
    assert code == 0, err
    whole = timeless(json.loads(out))
    chance, deaths = random.Random(0), 0
    for _ in range(figures.of(5, 50)):
        process = started(words)
        time.sleep(chance.uniform(3, 12))
        # On a slow machine all of these may be deaths of one trial, of which the third one is a failed row.
        if chance.random() < 0.5 and deaths < figures.of(2, 50):
            deaths += 1
            for child in workers(process) if process.poll() is None else []:
                child.kill()
            time.sleep(chance.uniform(0, 6))
        process.kill()
        process.communicate()
        cases.passed()
    code, out, err = ended(words)
    assert code == 0, err
    assert not differences(timeless(json.loads(out)), whole)
