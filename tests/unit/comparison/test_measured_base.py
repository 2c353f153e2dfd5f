"""A comparison that is continued measures nothing again, and measuring takes little memory."""

import logging
import os
import subprocess
import sys

import pytest

from tunewise.comparison.budget import Budget
from tunewise.comparison.compare import compare
from tunewise.fitting.forgetting import OnTask, Retention
from tunewise.techniques.registry import make
from tunewise.testing import tiny_base, tiny_task

FIGURES = ("score", "nll", "validation_loss", "forgetting", "training", "adaptation")


def compared(folder, *names, base=None):
    """Compare these techniques; return the rows' figures, the facts of retention, and the number of forward passes."""
    base, passes = base or tiny_base(), []
    base.anatomy.inner.register_forward_pre_hook(lambda *given: passes.append(1))
    recipes = [make(name, {}) for name in names]
    result = compare(base, tiny_task(), recipes, folder, budget=Budget(steps=2, validation_examples=4, test_examples=4))
    rows = {row["technique"]: {name: row[name] for name in FIGURES} for row in result["rows"]}
    return rows, result["retention"], len(passes)


def test_continuing_a_finished_comparison_runs_the_model_not_once(tmp_path):
    rows, retention, passes = compared(tmp_path, "base", "lora")
    assert passes > 0
    assert compared(tmp_path, "base", "lora") == (rows, retention, 0)


@pytest.mark.parametrize("architecture", ["llama", "gpt_neo"])
def test_one_technique_more_is_measured_as_if_all_had_run_at_once(tmp_path, architecture):
    compared(tmp_path / "parts", "base", base=tiny_base(architecture))
    before = (tmp_path / "parts" / "trials").iterdir()
    kept = {path.name: (path / "trial.json").stat().st_mtime_ns for path in before}
    parts = compared(tmp_path / "parts", "base", "lora", base=tiny_base(architecture))
    whole = compared(tmp_path / "whole", "base", "lora", base=tiny_base(architecture))
    assert parts[:2] == whole[:2]
    for name, written in kept.items():
        assert (tmp_path / "parts" / "trials" / name / "trial.json").stat().st_mtime_ns == written


def test_the_bases_row_is_not_compared_with_the_base(tmp_path, monkeypatch):
    for place, name in ((Retention, "compare"), (OnTask, "measure"), (OnTask, "divergence")):
        monkeypatch.setattr(place, name, lambda *given: pytest.fail("measured again"))
    rows, _, _ = compared(tmp_path, "base")
    forgetting = rows["base"]["forgetting"]
    assert set(forgetting) == {"nll_rise", "nll_rise_low", "nll_rise_high", "kl", "kl_task"}
    assert not any(forgetting.values())


def test_what_is_damaged_is_measured_again_with_a_warning(tmp_path, caplog):
    rows, retention, _ = compared(tmp_path, "base", "lora")
    (file,) = tmp_path.glob("measured/*/base.safetensors")
    file.write_bytes(b"odd")
    with caplog.at_level(logging.WARNING, "tunewise"):
        assert compared(tmp_path, "base", "lora")[:2] == (rows, retention)
    assert "the base is measured again" in caplog.text
    assert compared(tmp_path, "base", "lora") == (rows, retention, 0)


def test_other_text_is_other_retention(tmp_path):
    rows, retention, _ = compared(tmp_path, "base")
    recipes, budget = [make("base", {})], Budget(steps=2, validation_examples=4, test_examples=4)
    texts = ["the cat sat on a mat and the dog ran to town"] * 9
    given = compare(tiny_base(), tiny_task(), recipes, tmp_path, budget=budget, retention=texts)["retention"]
    assert given["source"] == "given text" and given["base_nll"] != retention["base_nll"]
    assert compared(tmp_path, "base") == (rows, retention, 0)


BIG = """
import copy, sys, threading, time
import psutil
from transformers import AutoModelForCausalLM
from tunewise.comparison.budget import Budget
from tunewise.comparison.compare import compare
from tunewise.engine.model import Base
from tunewise.techniques.registry import make
from tunewise.testing import tiny_base, tiny_task

config, peak = copy.deepcopy(tiny_base().model.config), [0]
config.vocab_size = 1 << 16
base = Base(AutoModelForCausalLM.from_config(config), tiny_base().tokenizer, "big")
recipes = [make("base", {}), make("lora", {})]
before = psutil.Process().memory_info().rss

def sample():
    while True:
        peak[0] = max(peak[0], psutil.Process().memory_info().rss)
        time.sleep(0.002)

threading.Thread(target=sample, daemon=True).start()
budget, texts = Budget(steps=2, validation_examples=4, test_examples=4), ["the cat sat on a mat"] * 150
compare(base, tiny_task(), recipes, sys.argv[1], budget=budget, retention=texts)
print(peak[0] - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is Linux's")
def test_measuring_takes_little_memory_with_a_large_vocabulary(tmp_path):
    """The base's log-probabilities alone are 256 MB here, and were kept, read and subtracted as a whole."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BIG, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 600 << 20
