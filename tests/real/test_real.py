"""Real pretrained models on real tasks."""

import json
from dataclasses import fields

import pytest

from tunewise.adaptation.artifact import load
from tunewise.comparison.budget import Budget
from tunewise.comparison.compare import compare
from tunewise.data.task import Task, sample
from tunewise.engine.model import load_base
from tunewise.fitting.loop import train
from tunewise.fitting.scoring import loss, score
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import all_techniques, make
from tunewise.testing import attach, encoder_for

pytestmark = pytest.mark.real
MODELS = ("babyllama-char-1m", "stories-260k", "stories-3m", "tinystories-656k")
TASKS = ("sst2", "trec6", "emotion", "e2e_nlg", "gsm8k", "xquad")


# Techniques whose time before training is cut short, or that need other tasks.
_QUICK = {"fish_mask": {"num_samples": 128}, "mpt": {"source_steps": 50}}


TRAINED = [name for name, made in all_techniques().items() if made.trains]
# In turn, so that every pair is seen by several techniques: two labels, six labels, generation.
_TWO_LABELS, _SIX_LABELS = ("stories-260k", "sst2"), ("tinystories-656k", "trec6")
_GENERATION = ("tinystories-656k", "e2e_nlg")
PAIRS = (_TWO_LABELS, _SIX_LABELS, _GENERATION, _TWO_LABELS)
# Every model and every task, half of all pairs.
GRID = [(model, task) for i, model in enumerate(MODELS) for j, task in enumerate(TASKS) if (i + j) % 2 == 0]


@pytest.mark.parametrize(
    ("technique", "model", "name"),
    [(technique, *PAIRS[turn % len(PAIRS)]) for turn, technique in enumerate(TRAINED)],
)
def test_every_technique_learns(real, technique, model, name):
    """Within the default budget of 100 steps the loss on held-out answers falls clearly below the base's."""
    base = load_base(real / "models" / model, device="cpu")
    task = Task.read(f"{real / 'tasks' / name}#1000")
    held_out = sample(task.validation, 64)
    before = loss(attach(make("base"), base, task), task, held_out)
    base.release()
    settings = dict(_QUICK.get(technique, {}))
    if "sources" in {field.name for field in fields(all_techniques()[technique])}:
        settings["sources"] = [f"{real / 'tasks' / other}#300" for other in ("trec6", "emotion")]
    attachment = attach(make(technique, {technique: settings}), base, task)
    rows = encoder_for(attachment, task).encode([attachment.render(example) for example in task.train])
    train(attachment, rows, TrainSettings(max_steps=100))
    after = loss(attachment, task, held_out)
    assert after < 0.95 * before, f"{technique} on {name}: {before:.3f} before, {after:.3f} after"


@pytest.mark.parametrize(("model", "name"), GRID)
def test_every_model_and_every_task_compare(real, model, name, tmp_path):
    """Every row ends ok, but for worked examples that do not fit a window of 256 characters.

    Choosing those takes longest: each model and each task sees them, but not each pair.
    """
    base = load_base(real / "models" / model, device="cpu")
    task = Task.read(f"{real / 'tasks' / name}#200")
    budget = Budget(steps=2, test_examples=4, validation_examples=4)
    shows = (MODELS.index(model) + TASKS.index(name)) % 4 == 0
    techniques = [make(each) for each in ("base", "prompt_tuning", "lora", *["icl"] * shows)]
    result = compare(base, task, techniques, tmp_path, budget=budget)
    rows = {row["technique"]: row for row in result["rows"]}
    for technique, row in rows.items():
        shows_examples = make(technique).sides == {"prompt"}
        too_long = shows_examples and "no worked example fits" in (row["reason"] or "")
        assert row["status"] == "ok" or too_long, row
    assert not any(rows["base"]["forgetting"].values())
    assert json.loads((tmp_path / "compare.json").read_text())["rows"] == result["rows"]


def test_an_adaptation_scores_again_to_the_digit(real, tmp_path):
    base = load_base(real / "models" / "stories-260k", device="cpu")
    for name in ("sst2", "e2e_nlg"):
        task = Task.read(f"{real / 'tasks' / name}#300")
        out = tmp_path / name
        result = compare(
            base,
            task,
            [make("icl"), make("lora"), make("icl+lora")],
            out,
            budget=Budget(steps=5, test_examples=12, validation_examples=8),
        )
        for row in result["rows"]:
            assert row["status"] == "ok", row
            loaded = load(out / row["adaptation"], base=base)
            again = score(loaded.attachment, task, sample(task.test, 12))
            assert again.mean == row["score"]["mean"] and again.nll == row["nll"]
            loaded.attachment.detach()


def test_files_as_found_in_the_wild(real):
    base = load_base(real / "models" / "stories-3m", device="cpu")
    for name, form in (("alpaca_en_demo", "alpaca"), ("glaive_toolcall_en_demo", "sharegpt")):
        task = Task.read(real / "formats" / f"{name}.json")
        assert task.format == form
        attachment = attach(make("lora"), base, task)
        sequences = encoder_for(attachment, task).encode(task.train)
        assert all(any(sequence.labelled) and len(sequence.ids) <= 512 for sequence in sequences)
        attachment.detach()
