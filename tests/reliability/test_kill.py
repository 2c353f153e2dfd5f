"""A run that is killed at any moment, checkpoint writes included, ends with the bits of one that was not.

One process imports torch and forks a life a time (import is most of the cost of a life); each life but the last is
killed by SIGKILL at a random moment, and the next continues with `resume`.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SERVER = """
import hashlib, json, os, sys
import torch
torch.set_num_threads(1)
from tunewise.fitting import fit
from tunewise.model import Base
from tunewise.technique import make
from tunewise.testing import tiny_base, tiny_task
from tunewise.train import TrainSettings

def live(folder, technique):
    base = tiny_base("gpt2")
    settings = TrainSettings(max_steps=40, save_steps=1)
    recipe = make(technique, {"lora": {"lora_dropout": 0.1}} if technique == "lora" else None)
    fit(base, tiny_task(), recipe, folder, settings=settings, resume=True)
    digest = hashlib.sha256((__import__("pathlib").Path(folder) / "adaptation" / "weights.safetensors").read_bytes())
    (__import__("pathlib").Path(folder) / "done").write_text(digest.hexdigest())

for line in sys.stdin:
    folder, technique = json.loads(line)
    child = os.fork()
    if not child:
        try:
            live(folder, technique)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(7)
        os._exit(0)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print(json.dumps({"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
                      "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1}), flush=True)
"""


class Lives:
    def __init__(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def live(self, folder, technique, die_after=None):
        self.server.stdin.write(json.dumps([str(folder), technique]) + "\n")
        self.server.stdin.flush()
        child = int(self.server.stdout.readline())
        if die_after is not None:
            time.sleep(die_after)
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return json.loads(self.server.stdout.readline())


@pytest.mark.parametrize("technique", ["lora", "full"])
def test_ten_random_kills_leave_the_same_bits(tmp_path, technique):
    lives, rng = Lives(), random.Random(0)
    started = time.perf_counter()
    assert lives.live(tmp_path / "whole", technique)["code"] == 0
    whole = time.perf_counter() - started
    expected = (tmp_path / "whole" / "done").read_text()
    killed = 0
    folder = tmp_path / "killed"
    # Each life gets a random share of a whole run; when one happens to finish, a fresh run begins.
    while killed < 10:
        found = lives.live(folder, technique, die_after=rng.uniform(0.02, 0.5) * whole)
        if found["signal"] == signal.SIGKILL:
            killed += 1
        else:
            assert found["code"] == 0
            assert (folder / "done").read_text() == expected
            folder = tmp_path / f"killed-{killed}"
    if not (folder / "done").exists():
        assert lives.live(folder, technique)["code"] == 0
    assert (folder / "done").read_text() == expected
    lives.server.stdin.close()
    lives.server.wait()


def test_metrics_hold_every_step_once_after_a_kill(tmp_path):
    lives = Lives()
    lives.live(tmp_path, "lora", die_after=0.4)
    if not (tmp_path / "done").exists():
        assert lives.live(tmp_path, "lora")["code"] == 0
    steps = [json.loads(line)["step"] for line in Path(tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 41))
    lives.server.stdin.close()
    lives.server.wait()
