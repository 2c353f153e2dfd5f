"""Recipes, the registry, composition, and the parts of the contract that the built-in seven do not use."""

import math
from dataclasses import dataclass

import pytest
import torch

from tunewise.contract.attachment import Attachment, Building, Storing, Training
from tunewise.contract.settings import learning_rate, setting
from tunewise.contract.technique import Technique
from tunewise.core.errors import ArtifactError, SettingError, TechniqueError
from tunewise.core.seeds import generator
from tunewise.fitting.loop import train
from tunewise.fitting.scoring import study
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import all_techniques, make
from tunewise.testing import attach, encoder_for, example_settings, fingerprint, fit, logits, tiny_base, tiny_task

SEVEN = ["base", "icl", "full", "bitfit", "last_layers", "prompt_tuning", "lora"]


def test_the_registry_finds_every_file_in_taxonomy_order():
    assert [name for name in all_techniques() if name in SEVEN] == SEVEN


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("lorra", {}, 'did you mean "lora"'),
        ("lora", {"rank": 4}, 'no setting "rank"'),
        ("lora", {"r": 0}, "lora.r is 0 but must be between 1 and 4096"),
        ("lora", {"r": 2.5}, "must be a whole number"),
        ("lora", {"r": True}, "must be a whole number"),
        ("lora", {"r": "many"}, "must be a whole number"),
        ("lora", {"lora_alpha": float("nan")}, "must be a number"),
        ("lora", {"target_modules": "q"}, "must be a list of names"),
        ("icl", {"selection": "magic"}, "must be one of bm25, embedding"),
        ("prompt_tuning", {"init": "text"}, "go together"),
        ("last_layers", {"head": "loose"}, "must be one of auto"),
    ],
)
def test_wrong_settings_name_setting_value_and_range(name, settings, said):
    with pytest.raises(SettingError, match=said):
        make(name, {name: settings})


@pytest.mark.parametrize("name", ["lora+full", "full+last_layers", "bitfit+full", "lora+lora"])
def test_colliding_techniques_are_refused(name):
    with pytest.raises(TechniqueError, match="cannot compose"):
        make(name)


def test_search_starts_at_the_default_and_stays_in_step():
    recipe = make("icl+lora").resolved(tiny_base())
    rates = [found.parts[1].learning_rate for found in recipe.search(3)]
    default = make("lora").resolved(tiny_base()).learning_rate
    assert rates == pytest.approx([default, 3 * default, default / 3], rel=1e-2)
    assert make("base").search(3) == [make("base")]


def test_default_rates_follow_the_width():
    assert make("bitfit").resolved(tiny_base()).learning_rate == pytest.approx(5e-4 * (4096 / 32) ** 0.5, rel=1e-2)
    given = make("full", {"full": {"learning_rate": 0.5}})
    assert given.resolved(tiny_base()).learning_rate == 0.5


@dataclass(frozen=True, kw_only=True)
class _Phased(Technique):
    """Two phases, a mask on gradients, a penalty and a schedule: everything that later techniques need."""

    name = "_phased"  # private names are not in the registry
    family = "partial"
    summary = "a test's technique"
    equation = "-"
    reference_rate = 1e-2
    strength: float = setting(0.1, "Weight of the penalty.", low=0.0, high=1.0)
    learning_rate: float | None = learning_rate()

    def attach(self, base, generator):
        return _PhasedAttachment(base, self)


class _PhasedAttachment(Attachment):
    phases = 2

    def __init__(self, base, recipe):
        super().__init__(base, recipe)
        self.calls = []
        weight = base.anatomy.final_norm.weight
        self.train_existing("norm", weight)
        self.start = weight.detach().clone()
        self.mask = torch.ones_like(weight)

    def start_phase(self, phase):
        self.calls.append(f"phase {phase}")
        weight = self.params()["norm"]
        if phase == 1:
            moved = (weight.detach() - self.start).abs()
            self.mask = (moved >= moved.median()).float()
            with torch.no_grad():
                weight.copy_(self.start)

    def before_step(self, step, total):
        self.calls.append(f"before {step} of {total}")

    def after_backward(self, step, total):
        self.params()["norm"].grad.mul_(self.mask)

    def penalty(self):
        return self.recipe.strength * (self.params()["norm"] - self.start).square().sum()

    def training_state(self):
        return {"mask": self.mask}

    def load_training_state(self, state):
        self.mask = state["mask"].clone()


@pytest.fixture
def phased():
    yield _Phased()
    all_techniques.cache_clear()


def test_phases_masks_penalties_and_their_exact_resume(phased, tmp_path):
    base, task, settings = tiny_base(), tiny_task(), TrainSettings(max_steps=7, save_steps=1)
    whole = attach(phased, base, task)
    sequences = encoder_for(whole, task).encode(task.train)
    train(whole, sequences, settings)
    assert [c for c in whole.calls if c.startswith("phase")] == ["phase 0", "phase 1"]
    assert whole.calls.index("phase 1") == whole.calls.index("before 4 of 7") - 1
    expected, mask = whole.state()["norm"].clone(), whole.mask
    moved = expected != whole.start
    assert not bool((moved & (mask == 0)).any()) and bool(moved.any())
    whole.detach()
    for stop_after in range(1, 7):
        folder = tmp_path / str(stop_after)
        first = attach(phased, base, task)

        def stop(step, loss, last=stop_after):
            if step == last + 1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(first, sequences, settings, folder=folder, on_step=stop)
        first.detach()
        again = attach(phased, base, task)
        train(again, sequences, settings, folder=folder, resume=True)
        assert torch.equal(again.state()["norm"], expected)
        again.detach()


def test_divergence_is_refused_with_the_remedy():
    from tunewise.core.errors import DivergedError

    base = tiny_base()
    attachment = attach(make("full"), base)
    with torch.no_grad():  # as a step that was too large leaves it
        base.anatomy.head.weight.fill_(math.inf)
    with pytest.raises(DivergedError, match="lower the learning rate"):
        fit(attachment, steps=2)


def test_resuming_another_request_is_refused(tmp_path):
    base, task = tiny_base(), tiny_task()
    attachment = attach(make("lora"), base, task)
    sequences = encoder_for(attachment, task).encode(task.train)

    def stop(step, loss):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(attachment, sequences, TrainSettings(max_steps=5, save_steps=2), folder=tmp_path, on_step=stop)
    for settings, seed in (
        (TrainSettings(max_steps=6, save_steps=2), 0),
        (TrainSettings(max_steps=5, save_steps=2), 1),
    ):
        with pytest.raises(ArtifactError, match="was begun with"):
            train(attachment, sequences, settings, seed=seed, folder=tmp_path, resume=True)


@pytest.mark.parametrize("name", ["full", "lora", "bitfit", "adalora"])
def test_adams_epsilon_reaches_every_optimiser(name):
    moved = {}
    for epsilon in (1e-8, 1.0):
        base = tiny_base()
        attachment = attach(make(name), base)
        before = {key: p.detach().clone() for key, p in attachment.params().items()}
        fit(attachment, steps=2, adam_epsilon=epsilon)
        moved[epsilon] = sum(float((p - before[key]).norm()) for key, p in attachment.params().items() if key in before)
    assert moved[1.0] < 0.1 * moved[1e-8]


def test_adafactor_has_epsilons_of_its_own():
    moved = []
    for epsilon in (1e-8, 1.0):
        attachment = attach(make("full", {"full": {"optimizer": "adafactor"}}), tiny_base())
        fit(attachment, steps=2, adam_epsilon=epsilon)
        moved.append([p.detach().clone() for p in attachment.params().values()])
    assert all(map(torch.equal, *moved))


@pytest.mark.parametrize("name", ["full", "lora", "last_layers", "adapter", "lt_sft"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_trained_on_half_precision_weights_is_float32(name, dtype):
    base = tiny_base("llama", dtype)
    attachment = attach(make(name), base)
    fit(attachment)
    assert all(p.dtype == torch.float32 for p in attachment.params().values())
    assert all(p.dtype == dtype for p in base.model.parameters())


@pytest.mark.parametrize("name", ["full", "lora", "bitfit", "prompt_tuning", "last_layers"])
def test_bf16_arithmetic_trains_float32_weights(name):
    base = tiny_base()
    attachment = attach(make(name), base)
    before = logits(attachment)
    fit(attachment, steps=3, bf16=True)
    assert all(p.dtype == torch.float32 for p in attachment.params().values())
    assert not torch.equal(before, logits(attachment))


def test_a_technique_refused_half_way_leaves_the_base_bare():
    class Refusing(_PhasedAttachment):
        def __init__(self, base, recipe):
            super().__init__(base, recipe)
            self.hook(base.anatomy.head.register_forward_hook(lambda module, args, output: output))
            raise TechniqueError("half-way")

    class Half(_Phased):
        def attach(self, base, generator):
            return Refusing(base, self)

    base = tiny_base()
    before = fingerprint(base)
    with pytest.raises(TechniqueError, match="half-way"):
        attach(Half(), base)
    base.release()
    assert fingerprint(base) == before and not base.anatomy.head._forward_hooks
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("fish_mask", {}, {"taking the Fisher information": 12}),
        ("lst", {"init": "fisher", "num_samples": 5}, {"taking the Fisher information": 5}),
        (
            "mpt",
            {"sources": ["world:letters/name", "world:letters/age"], "source_steps": 2},
            {"teaching source 1 of 2": 2, "teaching source 2 of 2": 2, "distilling the sources": 2},
        ),
    ],
)
def test_long_work_before_training_reports_progress(name, settings, said):
    base, task, heard = tiny_base(), tiny_task(), {}
    attachment = make(name, {name: settings}).resolved(base).attach(base, generator(0, "attach"))
    looked = study(attachment, task, (), 0, lambda what, done, total: heard.update({what: (done, total)}))
    attachment.prepare(looked)
    assert heard == {what: (total, total) for what, total in said.items()}
    assert looked.allowance.spent > 0


def test_an_attachment_has_three_rooms():
    """What its author calls, what the loop asks, what the store asks: every member lies in one, under one name."""
    rooms = [{name for name in vars(room) if not name.startswith("_")} for room in (Building, Training, Storing)]
    assert not [name for name in vars(Attachment) if not name.startswith("_")]
    assert {"add", "adopt", "train_existing", "keep", "hook", "replace", "divert"} <= rooms[0]
    assert {"params", "param_groups", "optimizer", "phases", "prepare", "prepare_shapes", "citations"} <= rooms[1]
    assert {"state", "load", "stored_rows", "load_rows", "peft", "merge", "detach", "changed_entries"} <= rooms[2]
    assert sum(map(len, rooms)) == len(set.union(*rooms))
    former = {"learn", "rehearse", "memory", "recall", "ground", "sources", "touched"}
    assert not former & set(dir(Attachment)) and not hasattr(Technique, "stamp")


@pytest.mark.parametrize("name", all_techniques())
def test_saying_what_changes_takes_no_more_memory_than_what_is_trained(name):
    """All entries of a tensor are named without listing them: lists of a 7B model's entries have 56 GB."""
    base = tiny_base()
    attachment = attach(make(name, example_settings()), base)
    listed = sum(places.numel() for places in attachment.changed_entries().values() if places is not None)
    assert listed <= sum(p.numel() for p in attachment.params().values())
    assert {id(p) for p in attachment.changed()} <= {id(p) for p in base.model.parameters()}
    base.release()
