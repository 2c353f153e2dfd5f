"""One training on two processes of this machine, against the same training on one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

import ranks_worker
from processes import still_running
from rank_processes import environment, free_port, losses, made_once, outcomes, run, without_ranks
from tunewise.engine.encoding import TokenSequence
from tunewise.engine.packing import in_groups
from tunewise.engine.ranks import Ranks
from tunewise.techniques.registry import all_techniques

WORKER = Path(ranks_worker.__file__)
NAMES = [*all_techniques(), *ranks_worker.FORMS]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
CHOOSING = {"lt_sft", "diff_pruning"}  # which entries are kept hangs on the last bits of near ties


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What one process and each of two came to, by technique."""

    def make(folder):
        alone, both, port = folder / "alone", folder / "both", free_port()
        alone.mkdir()
        both.mkdir()
        runs = [(alone, environment())] + [(both, environment(rank, 2, port)) for rank in range(2)]
        processes = [subprocess.Popen([sys.executable, str(WORKER), str(out)], env=env) for out, env in runs]
        assert [process.wait() for process in processes] == [0, 0, 0]

    folder = made_once(tmp_path_factory, "ranks", make)
    return outcomes(folder / "alone/0.jsonl"), [outcomes(folder / f"both/{rank}.jsonl") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_learn_what_one_process_learns(trained, name):
    alone, ranks = trained[0][name], [rank[name] for rank in trained[1]]
    assert ranks[0] == ranks[1]  # to the last bit, and all answers
    if name == "full-lomo":
        assert "one device" in ranks[0]["refused"] and "losses" in alone
        return
    assert ranks[0]["losses"] == pytest.approx(alone["losses"], rel=2e-5, abs=1e-5)
    for figure in ("validation", "nll"):
        assert ranks[0][figure] == pytest.approx(alone[figure], rel=2e-3 if name in CHOOSING else 1e-4, abs=1e-5)
    assert ranks[0]["predictions"] == alone["predictions"]
    assert ranks[0]["answers"] == alone["answers"] or name in CHOOSING


def test_rows_are_shared_out_by_their_tokens():
    rows = [TokenSequence([1] * size, [True] * size, 0) for size in (9, 1, 5, 4, 1)]
    shares = in_groups(rows, 3)
    assert sorted(index for share in shares for index in share) == list(range(5))
    assert max(sum(len(rows[index].ids) for index in share) for share in shares) == 9
    assert in_groups(rows[:1], 3) == [[0], [], []]


def test_alone_nothing_is_sent():
    ranks = Ranks()
    assert ranks.writes and ranks.total(1.5, 2) == [1.5, 2.0] and ranks.first("a") == "a"
    assert ranks.mine([1, 2, 3]) == ranks.gathered([1, 2, 3]) == [1, 2, 3] and ranks.agree([])


def fit_command(out, *further, steps=6):
    words = ["fit", "lora", "--model", "world", "--data", "world:town", "--out", str(out)]
    return [sys.executable, "-m", "tunewise.cli", *words, "--max-steps", str(steps), "--save-steps", "2", *further]


_IMPATIENT = """
import os, time

import tunewise.cli.signs_of_life as signs_of_life

signs_of_life.SILENCE = signs_of_life.STALLED = 15.0
if os.environ.get("RANK") == os.environ.get("HANGS"):
    import tunewise.engine.ranks as ranks

    summed, calls = ranks.Ranks.sum, []

    def hangs(self, tensors):
        calls.append(tensors)
        time.sleep(1000 if len(calls) == 30 else 0)
        return summed(self, tensors)

    ranks.Ranks.sum = hangs
"""


def impatient(folder, **further):
    """Return the variables of processes that wait for others for 15 seconds only; the rank in HANGS stops in a step."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_IMPATIENT)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**without_ranks(), "PYTHONPATH": path, "HANGS": "none", **further}


def started(out, *further, steps=2000):
    """Start a fit on two devices, and return its launcher and the processes of its ranks once steps are taken."""
    command = fit_command(out, "--devices", "2", *further, steps=steps)
    launcher = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=impatient(out.parent / "site"),
        # Where these tests run in the background, Ctrl-C is ignored, and a child would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("checkpoint-*")):
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    ranks = sorted(psutil.Process(launcher.pid).children(), key=lambda child: int(child.environ()["RANK"]))
    return launcher, ranks


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(tmp_path):
    straight, moved = tmp_path / "straight", tmp_path / "moved"
    for out, until, size in ((straight, 6, 1), (moved, 2, 2), (moved, 4, 1), (moved, 6, 2)):
        port = free_port()
        processes = [
            subprocess.Popen([sys.executable, str(WORKER), str(out), str(until)], env=environment(rank, size, port))
            for rank in range(size)
        ]
        assert [process.wait() for process in processes] == [0] * size
    assert losses(moved) == pytest.approx(losses(straight), rel=1e-4) and len(losses(moved)) == 6
    weights = [load_file(out / "checkpoint-6" / "weights.safetensors") for out in (straight, moved)]
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=1e-4), name


@pytest.mark.slow
def test_the_same_number_of_devices_gives_the_same_bits_stopped_or_not(tmp_path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    for out, until in ((straight, 6), (stopped, 3), (stopped, 6)):
        port = free_port()
        processes = [
            subprocess.Popen([sys.executable, str(WORKER), str(out), str(until)], env=environment(rank, 2, port))
            for rank in range(2)
        ]
        assert [process.wait() for process in processes] == [0] * 2
    first, second = (load_file(out / "checkpoint-6" / "weights.safetensors") for out in (straight, stopped))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_the_run_with_a_sentence(tmp_path, rank):
    launcher, ranks = started(tmp_path)
    ranks[rank].kill()
    stderr = launcher.communicate(timeout=60)[1]
    assert launcher.returncode == 1 and "Traceback" not in stderr
    assert f"device {rank} was killed by SIGKILL" in stderr and "--resume" in stderr
    assert not still_running(ranks)


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_run_with_a_sentence(tmp_path):
    launcher, ranks = started(tmp_path)
    ranks[1].suspend()
    stderr = launcher.communicate(timeout=120)[1]
    assert launcher.returncode == 1 and "device 1 gave no sign of life" in stderr and "--resume" in stderr
    assert not still_running(ranks)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["--devices", "torchrun"])
def test_a_rank_that_hangs_outside_of_python_ends_the_run_too(tmp_path, launcher):
    """It still gives signs of life; nothing goes on in it, nor in the other, which waits for it."""
    out = tmp_path / "out"
    if launcher == "torchrun":
        command = [*TORCHRUN, "--nproc-per-node", "2", *fit_command(out, steps=2000)[1:]]
    else:
        command = fit_command(out, "--devices", "2", steps=2000)
    done = subprocess.run(
        command,
        env=impatient(tmp_path / "site", HANGS="1"),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("failed: nothing went on in any of the 2 devices") == 1 and "--resume" in done.stderr


@pytest.mark.slow
def test_torchrun_on_two_nodes_learns_the_same_and_ends_when_a_rank_hangs(tmp_path):
    """Each launcher stands for a machine; they share the output folder."""
    alone = run(*fit_command(tmp_path / "alone", steps=4))
    assert alone.returncode == 0, alone.stderr
    processes = on_two_nodes(tmp_path / "both", 4)
    said = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "alone"), rel=2e-5)

    processes = on_two_nodes(tmp_path / "hangs", 2000)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "hangs").glob("checkpoint-*")):
        assert all(process.poll() is None for process in processes) and time.monotonic() < deadline
        time.sleep(0.1)
    (stopped,) = psutil.Process(processes[1].pid).children()
    rank = stopped.environ()["RANK"]
    stopped.suspend()
    try:
        said = processes[0].communicate(timeout=120)[1]
    finally:
        stopped.resume()
        processes[1].communicate(timeout=60)
    assert f"failed: device {rank} gave no sign of life for 15 seconds, and all 2 are stopped" in said
    assert "--resume" in said and processes[0].returncode == processes[1].returncode == 1


def on_two_nodes(out, steps):
    """Start a launcher of one process for each of two machines."""
    env, started = impatient(out.parent / "site"), []
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", "7"]
    for _ in range(2):
        place = ["--nnodes", "2", *meeting, "--local-addr", "127.0.0.1"]
        command = [*TORCHRUN, "--nproc-per-node", "1", *place, *fit_command(out, steps=steps)[1:]]
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env))
    return started


@pytest.mark.slow
def test_ctrl_c_ends_all_and_says_how_to_go_on(tmp_path):
    launcher, ranks = started(tmp_path)
    launcher.send_signal(signal.SIGINT)
    stderr = launcher.communicate(timeout=60)[1]
    assert launcher.returncode == 130 and "interrupted; to continue" in stderr and "Traceback" not in stderr
    assert "failed:" not in stderr
    assert not still_running(ranks)


def test_what_cannot_work_is_refused_once(tmp_path):
    none = run(*fit_command(tmp_path, "--devices", "0"))
    assert none.returncode == 2 and "devices is 0" in none.stderr
    lomo = fit_command(tmp_path, "--devices", "2", "--set", "full.optimizer=lomo")
    lomo[lomo.index("lora")] = "full"
    refused = run(*lomo)
    assert refused.returncode == 2 and refused.stderr.count("one device") == 1 and "Traceback" not in refused.stderr
