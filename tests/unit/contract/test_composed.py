"""A composition answers for its parts: nothing that one technique may be asked is forgotten where there are several."""

from dataclasses import dataclass

import pytest
import torch

from tunewise.contract.attachment import Attachment
from tunewise.contract.composed import Composed
from tunewise.contract.settings import learning_rate
from tunewise.contract.technique import Technique
from tunewise.core.errors import TechniqueError
from tunewise.core.seeds import generator
from tunewise.engine.optimizers import Combined
from tunewise.fitting.loop import train
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import all_techniques, make
from tunewise.testing import attach, check_resume, encoder_for, fit, tiny_base, tiny_task

# What a composition leaves as it is in `Attachment`, with the reason.
LEFT = {
    "add": "parts build, a composition does not",
    "adopt": "parts build, a composition does not",
    "train_existing": "parts build, a composition does not",
    "keep": "parts build, a composition does not",
    "divert": "parts build, a composition does not",
    "hook": "parts build, a composition does not",
    "replace": "parts build, a composition does not",
    "merge": "it folds, which the parts do",
    "peft": "an adapter of PEFT's is of one kind",
    "load_peft": "an adapter of PEFT's is of one kind",
}
SET = {"virtual_tokens", "virtual_suffix", "phases"}  # summed up when the parts are attached
# The same for `Technique`.
LEFT_OF_TECHNIQUE = {
    "citation": "each part has its own",
    "reference_rate": "asked for by `resolved`, which asks the parts",
    "width_exponent": "asked for by `resolved`, which asks the parts",
    "default_rate": "asked for by `resolved`, which asks the parts",
    "differs": "each part's label says it",
    "example_settings": "settings are given by part, so each part is asked for its own",
    "late_settings": "settings are given by part, so each part is asked for its own",
    "place_settings": "settings are given by part, so each part is asked for its own",
    "places_to_answer": "settings are given by part, so each part is asked for its own",
    "unread_settings": "asked for by `preparation`, which asks the parts",
    "adapts": "two parts are never the base itself",
    "only_prompts": "it asks `sides` and `trains`, which ask the parts",
    "from_peft": "an adapter of PEFT's is of one kind",
    "require_shards": "it asks `needs_whole_weights`, which asks the parts",
    "require_context": "it asks `needs_whole_rows`, which asks the parts",
}


def public(cls):
    """Names of what a class and what it is made of offer, object's own left out."""
    return {name for kind in cls.__mro__ if kind is not object for name in vars(kind) if not name.startswith("_")}


def test_every_method_of_an_attachment_is_forwarded_or_left_with_a_reason():
    together = type(make("icl+lora").resolved(base := tiny_base()).attach(base, generator(0)))
    kept = {name for name in public(Attachment) if name not in vars(together)}
    assert kept - SET == set(LEFT)


def test_every_member_of_a_technique_is_answered_or_left_with_a_reason():
    kept = {name for name in public(Technique) if name not in vars(Composed)}
    assert kept == set(LEFT_OF_TECHNIQUE)


@pytest.mark.parametrize("optimizer", ["adafactor", "lomo", "galore"])
def test_a_part_keeps_its_optimizer_beside_examples_in_the_prompt(optimizer):
    """Beside a part that trains nothing, the optimiser is the part's own, and so are the steps it takes."""
    settings = {"full": {"optimizer": optimizer, "learning_rate": 1e-3, "galore_rank": 4}}
    base = tiny_base()
    together = attach(make("icl+full", settings), base)
    mover = together.optimizer(together.param_groups(), (0.9, 0.999))
    assert type(mover).__name__.lower() == optimizer
    assert together.accumulates == (optimizer != "lomo")
    together.detach()
    bare, alone = attach(make("base+full", settings), base), attach(make("full", settings), tiny_base())
    fit(bare)
    fit(alone)
    for name, expected in alone.state().items():
        assert torch.equal(bare.state()[f"full.{name}"], expected), name


def test_parts_with_optimizers_of_their_own_each_move_their_own():
    settings = {"prompt_tuning": {"optimizer": "adafactor"}, "lora": {"loraplus_lr_ratio": 4.0}}
    attachment = attach(make("lora+prompt_tuning", settings), tiny_base())
    mover = attachment.optimizer(attachment.param_groups(), (0.9, 0.999))
    assert isinstance(mover, Combined)
    assert [type(member).__name__ for member in mover.members] == ["AdamW", "Adafactor"]
    moved = [parameter for group in mover.param_groups for parameter in group["params"]]
    assert sorted(map(id, moved)) == sorted(map(id, attachment.params().values()))
    schedule = torch.optim.lr_scheduler.LambdaLR(mover, lambda step: 0.5**step)
    before = [group["lr"] for group in mover.param_groups]
    for parameter in moved:
        parameter.grad = torch.ones_like(parameter)
    mover.step()
    schedule.step()
    assert [group["lr"] for group in mover.param_groups] == [rate / 2 for rate in before]
    assert set(mover.state) == set(moved)
    mover.zero_grad()
    assert all(parameter.grad is None for parameter in moved)


def test_default_optimizers_are_one():
    attachment = attach(make("lt_sft+adapter"), tiny_base())
    attachment.start_phase(0)
    assert type(attachment.optimizer(attachment.param_groups(), (0.9, 0.999))) is torch.optim.AdamW


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("icl+full", {"full": {"optimizer": "adafactor", "learning_rate": 1e-3}}),
        ("lora+prompt_tuning", {"prompt_tuning": {"optimizer": "adafactor"}}),
        ("full+prompt_tuning", {"full": {"optimizer": "lomo", "learning_rate": 1e-2}}),
        ("full+prompt_tuning", {"full": {"optimizer": "galore", "galore_rank": 4}}),
        ("full+lst", {"full": {"optimizer": "adalomo", "learning_rate": 1e-3}}),
    ],
)
def test_a_combined_optimizer_resumes_to_the_same_bits(name, settings):
    check_resume(make(name, settings), tiny_base())


def test_weights_that_move_in_the_backward_pass_do_not_accumulate_in_a_composition_either():
    attachment = attach(make("icl+full", {"full": {"optimizer": "lomo"}}), tiny_base())
    with pytest.raises(Exception, match="cannot accumulate"):
        fit(attachment, gradient_accumulation_steps=2)


@dataclass(frozen=True, kw_only=True)
class _Greedy(Technique):
    """Trains the final norm, and says that it changes something else."""

    name = "_greedy"
    family = "partial"
    summary = "a test's technique"
    equation = "-"
    sides = frozenset({"elsewhere"})
    reference_rate = 1e-2
    learning_rate: float | None = learning_rate()

    def attach(self, base, generator):
        attachment = Attachment(base, self)
        attachment.train_existing("norm", base.anatomy.final_norm.weight)
        return attachment


def test_two_parts_that_move_one_tensor_are_refused_in_a_sentence():
    try:
        recipe = Composed(parts=(make("full", {"full": {"optimizer": "adafactor"}}), _Greedy()))
        attachment = recipe.resolved(base := tiny_base()).attach(base, generator(0))
        with pytest.raises(TechniqueError, match="full and _greedy cannot be trained together: both would move norm"):
            fit(attachment)
    finally:
        all_techniques.cache_clear()


def test_facts_follow_from_the_parts():
    recipe = make("rag+lora")
    assert recipe.sides == {"prompt", "weights"} and "documents" in recipe.needs and recipe.trains
    assert recipe.seeded and not make("base+rag").seeded
    assert recipe.summary.startswith(make("rag").summary) and recipe.equation.endswith(make("lora").equation)
    assert recipe.search_grid == make("lora").search_grid
    assert Composed.name == "composed" and make("krona").mergeable and type(make("krona")).mergeable
    assert not make("krona", {"krona": {"form": "block"}}).mergeable


def test_a_rate_is_given_to_the_part_that_trains():
    assert make("icl+lora").with_rate(0.1234).parts[1].learning_rate == 0.123
    for name in ("lora+prompt_tuning", "base+icl"):
        with pytest.raises(TechniqueError, match="not one learning rate but"):
            make(name).with_rate(0.1)


def test_labels_of_parts_are_the_compositions():
    assert attach(make("icl+qlora"), tiny_base()).label == ""
    assert attach(make("icl+lora"), tiny_base()).label == "icl + lora (all linears)"
    assert attach(make("icl+bitfit"), tiny_base()).label == "icl + bitfit-add (adaptation: zero biases added)"


def test_originals_and_drift_are_found_in_the_part_that_has_them():
    base, task = tiny_base(), tiny_task()
    attachment = attach(make("full+prompt_tuning"), base, task)
    weight = base.anatomy.final_norm.weight
    before = weight.detach().clone()
    rows = encoder_for(attachment, task).encode(task.train)
    train(attachment, rows, TrainSettings(max_steps=3, l2_sp=0.1))
    assert torch.equal(attachment.original(weight), before) and not torch.equal(weight, before)
    assert float(attachment.drift().detach()) > 0
    with pytest.raises(KeyError):
        attachment.original(attachment.params()["prompt_tuning.prompt"])
