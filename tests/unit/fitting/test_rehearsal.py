"""Remedies for forgetting: nothing where they are off, their formulas where they are on, and less forgotten."""

from functools import cache

import pytest
import torch

from tiers import in_full
from tunewise.adaptation.interpolate import curve
from tunewise.comparison.budget import Budget
from tunewise.comparison.compare import compare
from tunewise.core.errors import SettingError, TechniqueError
from tunewise.fitting.forgetting import Retention
from tunewise.fitting.loop import train
from tunewise.fitting.rehearsal import Rehearsal, divergence
from tunewise.fitting.scoring import loss
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.registry import make
from tunewise.testing import attach, encoder_for, fingerprint, fit, logits, tiny_base, tiny_task


def technique(name, **settings):
    return make(name, {name: settings})


def trained(name="full", steps=12, rehearsal=True, **settings):
    """The rise of the loss on other text and the task's loss, after a fit with these remedies."""
    base, task = tiny_base(), tiny_task()
    retention, remembered = Retention.measure(base, None), Rehearsal.of(base, None) if rehearsal else None
    attachment = attach(technique(name, learning_rate=3e-3), base, task)
    rows = encoder_for(attachment, task).encode([attachment.render(e) for e in task.train])
    train(attachment, rows, TrainSettings(max_steps=steps, **settings), rehearsal=remembered)
    return retention.compare(attachment), loss(attachment, task, task.train), attachment


def test_a_known_partition_gives_the_divergence():
    torch.manual_seed(0)
    p, q = torch.randn(5, 9).log_softmax(1), torch.randn(5, 9).log_softmax(1)
    whole = (p.exp() * (p - q)).sum(1).mean()
    assert torch.isclose(divergence(p[:, :8], q[:, :8]), whole, atol=1e-5)  # eight listed, the ninth is the rest
    assert divergence(p[:, :3], q[:, :3]) <= whole and divergence(p[:, :3], p[:, :3]).abs() < 1e-6


@pytest.mark.parametrize("name", ["full", "lora", "prompt_tuning"])
def test_a_fresh_attachment_is_where_the_base_was(name):
    base = tiny_base()
    rehearsal = Rehearsal.of(base, None)
    attachment = attach(technique(name), base)
    with rehearsal.losses(attachment, [0, 1, 2]) as (nll, kl):
        if attachment.recipe.identity_at_start:
            assert abs(float(kl)) < 1e-5
        (nll + kl).backward()
    assert any(p.grad is not None and p.grad.any() for p in attachment.params().values())


def test_memory_is_not_the_text_that_forgetting_is_measured_on():
    base = tiny_base()
    seen = {tuple(sequence.ids) for sequence in Retention.measure(base, None).sequences}
    assert not seen & {tuple(sequence.ids) for sequence in Rehearsal.of(base, None).sequences}


@pytest.fixture(scope="module")
def forgotten():
    """What each technique forgets without a remedy."""
    return cache(lambda name: trained(name)[0])


@pytest.mark.parametrize("remedy", [{"replay": 0.5}, {"kl_to_base": 2.0}, {"l2_sp": 1.0}])
@pytest.mark.parametrize("name", ["full", *in_full("lora")])
def test_each_remedy_forgets_less(forgotten, name, remedy):
    without, (with_remedy, task, _) = forgotten(name), trained(name, **remedy)
    assert with_remedy["kl"] < 0.9 * without["kl"]
    assert task < loss(attach(make("base"), tiny_base()), tiny_task(), tiny_task().train)


def test_remedies_of_no_weight_change_nothing():
    one, other = trained(steps=4)[2], trained(steps=4, replay=0.0, kl_to_base=0.0, l2_sp=0.0, rehearsal=False)[2]
    assert all(torch.equal(tensor, other.state()[name]) for name, tensor in one.state().items())


@pytest.mark.parametrize("name", ["full", "lora", "fish_mask", "bitfit"])
def test_drift_is_the_squared_distance_of_merged_weights(name):
    base = tiny_base("gpt2")
    before = {key: p.detach().clone() for key, p in base.model.named_parameters()}
    attachment = attach(technique(name), base)
    assert not attachment.drift().any()
    fit(attachment, steps=6)
    drift = float(attachment.drift().detach())
    attachment.merge()
    moved = sum(float((p - before[key]).square().sum()) for key, p in base.model.named_parameters())
    assert drift == pytest.approx(moved, rel=1e-3) and drift > 0


def test_what_moves_no_weight_refuses_l2_sp():
    with pytest.raises(TechniqueError, match="moves no weight"):
        trained("prompt_tuning", l2_sp=0.1)


@pytest.mark.parametrize("wrong", [{"replay": 1.0}, {"kl_to_base": -1.0}, {"l2_sp": float("nan")}])
def test_wrong_weights_are_refused(wrong):
    with pytest.raises(SettingError, match=next(iter(wrong))):
        TrainSettings(**wrong)


@pytest.mark.parametrize("name", ["full", "lora", *in_full("bitfit", "lt_sft")])
def test_interpolation_runs_from_the_base_to_the_tuned_model(name):
    base = tiny_base("gpt2")
    before, bare = fingerprint(base), logits(attach(make("base"), base))
    base.release()
    attachment = attach(technique(name), base)
    fit(attachment, steps=8)
    tuned = logits(attachment)
    points = dict(curve(attachment, logits, (0.0, 0.5, 1.0)))
    assert torch.equal(points[0.0], bare) and torch.allclose(points[1.0], tuned, atol=1e-4)
    assert not torch.allclose(points[0.5], bare) and not torch.allclose(points[0.5], tuned)
    assert fingerprint(base) == before


def test_lora_interpolated_is_lora_scaled():
    base = tiny_base()
    attachment = attach(technique("lora"), base)
    fit(attachment, steps=8)
    for path in attachment.layers:
        attachment.scales[path] /= 2
    half = logits(attachment)
    for path in attachment.layers:
        attachment.scales[path] *= 2
    assert torch.allclose(curve(attachment, logits, (0.5,))[0][1], half, atol=1e-4)


def test_a_comparison_takes_remedies(tmp_path):
    base, task = tiny_base(), tiny_task()
    budget = Budget(steps=4, test_examples=4, validation_examples=4)
    results = [
        compare(base, task, [make("full")], tmp_path, budget=budget, settings=TrainSettings(replay=share))
        for share in (0.0, 0.5)
    ]
    assert all(result["rows"][0]["status"] == "ok" for result in results)
    assert results[0]["rows"][0]["nll"] != results[1]["rows"][0]["nll"]
