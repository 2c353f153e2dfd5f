"""A run that is killed at any moment, checkpoint writes included, ends with the bits of one that was not.

One process imports torch and forks a life a time (import is most of the cost of a life); each life but the last is
killed by SIGKILL at a random moment, and the next continues with `resume`.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import figures
from adaptation_files import weight_bytes

SERVER = """
import json, os, sys
import torch
torch.set_num_threads(1)

from tunewise.adaptation.fit import fit
from tunewise.engine.model import Base
from tunewise.techniques.registry import make
from tunewise.testing import tiny_base, tiny_task
from tunewise.fitting.loop import TrainSettings

def live(folder, technique, settings, training):
    base = tiny_base("gpt2")
    recipe = make(technique, {technique: settings})
    fit(base, tiny_task(), recipe, folder, settings=TrainSettings(max_steps=20, save_steps=1, **training), resume=True)

for line in sys.stdin:
    folder, technique, settings, training = json.loads(line)
    child = os.fork()
    if not child:
        try:
            live(folder, technique, settings, training)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(7)
        os._exit(0)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(json.dumps({"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
                      "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1}), flush=True)
"""


def weights(folder):
    return weight_bytes(folder / "adaptation")


class Lives:
    def __init__(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def end(self):
        self.server.stdin.close()
        self.server.stdout.close()
        self.server.wait()

    def live(self, folder, recipe, die_after=None):
        self.server.stdin.write(json.dumps([str(folder), *recipe]) + "\n")
        self.server.stdin.flush()
        child = int(self.server.stdout.readline())
        if die_after is not None:
            time.sleep(die_after)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        return json.loads(self.server.stdout.readline())


KILLS = figures.of(10, 170)  # of each recipe
DROPPED = ("lora", {"lora_dropout": 0.1}, {})  # draws random numbers in every step
STOPPED = {"eval_steps": 2, "early_stopping_patience": 4}


def stopped_early(lives, folder):
    """A training whose best state is an earlier one: at such rates the validation loss is noise, of this machine's."""
    for rate in (0.1, 0.3, 1.0, 0.2, 0.5, 0.4):
        recipe, out = ("lora", {"learning_rate": rate}, STOPPED), folder / f"rate-{rate}"
        assert lives.live(out, recipe)["code"] == 0
        training = json.loads((out / "adaptation" / "adaptation.json").read_text())["record"]["training"]
        if training["best_step"] < training["steps"]:
            return recipe
    raise AssertionError("at every rate the last state was the best")


@pytest.mark.slow
@pytest.mark.figure("R1")
@pytest.mark.timeout(figures.of(300, 7200))
@pytest.mark.parametrize("recipe", [DROPPED, ("full", {}, {}), None], ids=["lora", "full", "stopped"])
def test_random_kills_leave_the_same_bits(tmp_path, recipe, cases):
    lives, rng = Lives(), random.Random(0)
    recipe = recipe or stopped_early(lives, tmp_path)
    assert lives.live(tmp_path / "first", recipe)["code"] == 0  # the first life is slower than the others
    started = time.perf_counter()
    assert lives.live(tmp_path / "whole", recipe)["code"] == 0
    whole = time.perf_counter() - started
    expected = weights(tmp_path / "whole")
    killed = runs = 0
    folder = tmp_path / "killed"
    # Each life gets a random share of a whole run; when one happens to finish, a fresh run begins.
    for _ in range(6 * KILLS):
        found = lives.live(folder, recipe, die_after=rng.uniform(0.05, 0.9) * whole)
        assert found["signal"] == signal.SIGKILL or found["code"] == 0
        killed += found["signal"] == signal.SIGKILL
        if (folder / "adaptation").exists():
            assert weights(folder) == expected
            runs += 1
            folder = tmp_path / f"killed-{runs}"
        if killed == KILLS:
            break
    assert killed == KILLS, "too few lives could be killed in time"
    if not (folder / "adaptation").exists():
        assert lives.live(folder, recipe)["code"] == 0
    assert weights(folder) == expected
    cases.passed(killed)
    lives.end()


@pytest.mark.slow
@pytest.mark.figure("R1")
def test_metrics_hold_every_step_once_after_a_kill(tmp_path):
    lives, recipe = Lives(), ("lora", {"lora_dropout": 0.1}, {"eval_steps": 5})
    lives.live(tmp_path, recipe, die_after=0.3)
    if not (tmp_path / "adaptation").exists():
        assert lives.live(tmp_path, recipe)["code"] == 0
    lines = [json.loads(line) for line in Path(tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 21))
    assert [line["step"] for line in lines if "validation_loss" in line] == [5, 10, 15, 20]
    lives.end()
