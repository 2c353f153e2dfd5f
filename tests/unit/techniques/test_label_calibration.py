"""Repair of label bias."""

import pytest
import torch

from tunewise.adaptation.fit import fit
from tunewise.comparison.budget import Budget
from tunewise.comparison.compare import compare
from tunewise.data.task import Example, Message, Task
from tunewise.techniques.building import label_calibration
from tunewise.techniques.nonparametric import icl
from tunewise.techniques.registry import make
from tunewise.testing import tiny_base, tiny_task

TRAIN = tuple(Example((Message("user", f"text {n}"),), "ab"[n % 2]) for n in range(8))
TASK = Task("t", "classification", "classification", TRAIN, TRAIN, TRAIN, ("a", "b"), "accuracy")


def biased(examples):
    """A model that knows the label and is 3 nats too fond of "a"."""
    rows = []
    for example in examples:
        known = example.prompt.startswith("text")
        rows.append([0.0 if known and example.answer == "a" else 2.0 if known else 1.0, 0.0])
        rows[-1][1] = (2.0 if known and example.answer == "a" else 0.0 if known else 1.0) + 3.0
    return torch.tensor(rows, dtype=torch.float64)


def test_what_is_said_anyway_is_taken_off():
    nll = biased(TRAIN)
    assert (nll.argmin(1) == 0).all()
    for method in ("contextual", "batch"):
        shift = label_calibration.bias(method, TASK, biased, 0)
        assert torch.allclose(shift[1] - shift[0], torch.tensor(3.0, dtype=torch.float64), atol=0.1)
        assert (nll - shift).argmin(1).tolist() == [0, 1] * 4


def test_domain_texts_have_the_tasks_words_and_follow_the_seed():
    seen = []

    def score(examples):
        seen.append([example.prompt for example in examples])
        return torch.zeros(len(examples), 2)

    for seed in (0, 0, 1):
        label_calibration.bias("domain_context", TASK, score, seed)
    assert seen[0] == seen[1] != seen[2]
    assert {word for text in seen[0] for word in text.split()} <= {"text", *map(str, range(8))}


def test_no_batch_is_scored_twice():
    asked = []

    def score(examples):
        asked.append(len(examples))
        return biased(examples)

    label_calibration.choose(TASK, score, 0)
    assert asked.count(len(TRAIN)) == 1


@pytest.mark.parametrize("way", ["compare", "fit"])
def test_choices_are_made_on_the_sample_of_validation_alone(tmp_path, monkeypatch, way):
    """No technique may choose on more than the others do."""
    table, seen = icl.label_table, set()

    def heard(attachment, task, rendered, **more):
        seen.update(example.prompt for example in rendered)
        return table(attachment, task, rendered, **more)

    monkeypatch.setattr(icl, "label_table", heard)
    task = tiny_task()
    if way == "compare":
        compare(tiny_base(), task, [make("icl")], tmp_path, budget=Budget(validation_examples=2))
    else:
        fit(tiny_base(), task, make("icl"), tmp_path, validation_examples=2)
    asked = [e.prompt for e in task.validation if any(e.prompt in text for text in seen)]
    assert len(asked) == 2 < len(task.validation)


def test_the_choice_lowers_the_loss_or_is_none():
    chosen = label_calibration.choose(TASK, biased, 0)
    assert chosen.method in ("contextual", "batch") and chosen.bias is not None and not chosen.untried
    fair = lambda examples: torch.tensor([[0.0, 5.0] if e.answer == "a" else [5.0, 0.0] for e in examples])  # noqa: E731
    assert label_calibration.choose(TASK, fair, 0).method in ("none", "batch")
