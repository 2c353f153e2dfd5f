"""What the sparse and mask techniques choose in short budgets, and where remedies pull them."""

import math

import pytest
import torch

from tunewise.advice.plan.planner import Planner
from tunewise.advice.plan.weightless import sketch
from tunewise.comparison.budget import Budget
from tunewise.comparison.compare import compare
from tunewise.core.errors import SettingError
from tunewise.fitting.loop import train
from tunewise.fitting.settings import TrainSettings
from tunewise.techniques.building.sparse_entries import largest
from tunewise.techniques.full import Full
from tunewise.techniques.partial.diff_pruning import gate
from tunewise.techniques.registry import make
from tunewise.testing import _sequences, attach, fit, tiny_base, tiny_task

TWO_PHASES = ("lt_sft", "diff_pruning")


# Masks.


def _off(attachment):
    switched_off = sum(int((score <= attachment.tau).sum()) for score in attachment.params().values())
    return switched_off / sum(score.numel() for score in attachment.params().values())


@pytest.mark.parametrize("steps", [6, 40, 60, 300])
def test_a_small_bounded_share_of_weights_goes_off_in_any_budget(steps):
    attachment = attach(make("threshold_mask"), tiny_base("llama"))
    fit(attachment, steps=steps)
    assert 0.05 * attachment.recipe.reach < _off(attachment) <= attachment.recipe.reach


def test_equal_scores_all_reach_the_threshold_together():
    """Which is why they are not the default."""
    attachment = attach(make("threshold_mask", {"threshold_mask": {"init": "ones"}}), tiny_base("llama"))
    fit(attachment, steps=40)
    assert _off(attachment) > 0.2


def test_scores_are_spread_by_the_seed():
    base, starts = tiny_base("llama"), []
    for seed in (0, 0, 1):
        attachment = attach(make("threshold_mask"), base, seed=seed)
        starts.append(torch.cat([score.detach().flatten() for score in attachment.params().values()]))
        attachment.detach()
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])
    assert float(starts[0].min()) > 0 and abs(float(starts[0].mean()) - 0.5) < 0.01


def test_a_higher_rate_switches_more_weights_off():
    base, shares = tiny_base("llama"), []
    for rate in (1e-3, 3e-3):
        attachment = attach(make("threshold_mask", {"threshold_mask": {"learning_rate": rate}}), base)
        fit(attachment, steps=20)
        shares.append(_off(attachment))
        attachment.detach()
    assert shares[1] > 2 * shares[0]


# Phases.


def _chosen(name, seed, steps, **settings):
    base = tiny_base("llama")
    attachment = attach(make(name, {name: settings}), base, seed=seed)
    fit(attachment, steps=steps, seed=seed)
    ends = dict(zip(attachment.eligible, _ends(attachment), strict=True))
    return {ends[name] + int(place) for name, places in attachment.changed_entries().items() for place in places}


def _ends(attachment):
    """Return where each tensor begins if all are laid end to end."""
    sizes = [parameter.numel() for parameter in attachment.eligible.values()]
    return [sum(sizes[:place]) for place in range(len(sizes))]


def test_where_gates_are_closed_the_larger_differences_come_first():
    base = tiny_base("llama")
    attachment = attach(make("diff_pruning"), base)
    attachment.start_phase(0)
    with torch.no_grad():
        for name in attachment.eligible:
            w, alpha, _ = attachment._parts(name)
            w.copy_(torch.linspace(0, 1, w.numel()).view_as(w))
            alpha.fill_(-9.0)
    attachment.start_phase(1)
    for name, places in attachment.changed_entries().items():
        size = attachment.eligible[name].numel()
        assert places.tolist() == list(range(size - len(places), size))


# Between them lie the shares of entries that two seeds choose alike, as multiples of chance: 27.5 and 10.1 for lt_sft,
# 35.2 and 24.3 for diff_pruning, whose gates are drawn at random besides, so that it takes more steps to tell.
@pytest.mark.parametrize(
    ("name", "steps", "times"), [("lt_sft", 40, 18), pytest.param("diff_pruning", 120, 30, marks=pytest.mark.slow)]
)
def test_two_seeds_choose_alike_at_the_rate_of_full_training_and_less_at_the_sparse_phases(name, steps, times):
    density, alike = 0.02, []
    for settings in ({}, {"dense_learning_rate": make(name).resolved(tiny_base("llama")).learning_rate}):
        one, other = (_chosen(name, seed, steps, density=density, **settings) for seed in (0, 1))
        alike.append(len(one & other) / len(one))
    assert alike[0] > times * density > alike[1]


@pytest.mark.parametrize("name", TWO_PHASES)
def test_the_dense_phase_runs_at_the_rate_of_full_training(name):
    base = tiny_base("llama")
    attachment = attach(make(name, {name: {"learning_rate": 7e-3}}), base)
    attachment.start_phase(0)
    rate = Full().resolved(base).learning_rate
    assert attachment.recipe.dense_learning_rate == rate and attachment.param_groups()[0]["lr"] == rate
    attachment.start_phase(1)
    factor = getattr(attachment.recipe, "fixed_mask_factor", 1.0)
    assert [group["lr"] for group in attachment.param_groups()] == [7e-3 * factor]


@pytest.mark.parametrize("name", TWO_PHASES)
def test_l2_sp_pulls_to_the_base_in_both_phases(name):
    """The squared distance from the base is 0 before the first step, and what the weights in use say after it."""
    base = tiny_base("llama")
    before = {key: parameter.detach().clone() for key, parameter in base.model.named_parameters()}
    attachment = attach(make(name), base)
    seen = {}
    draw = attachment.before_step

    def begin(step, total):
        draw(step, total)
        seen[step, "drift"] = float(attachment.drift().detach())
        seen[step, "moved"] = sum(
            float((p.detach() - before[key]).square().sum()) for key, p in base.model.named_parameters()
        )

    attachment.before_step = begin
    fit(attachment, steps=6)
    assert seen[0, "drift"] == 0
    for step in range(1, 6):
        assert seen[step, "drift"] == pytest.approx(seen[step, "moved"], rel=1e-2, abs=1e-9), step
    assert seen[2, "drift"] > 0 and seen[5, "drift"] > 0


def test_the_drift_of_gated_differences_has_the_gradients_of_autograd():
    attachment = attach(make("diff_pruning", {"diff_pruning": {"target_modules": ["q"]}}), tiny_base("llama"))
    attachment.start_phase(0)
    with torch.no_grad():
        for name, parameter in attachment.params().items():
            parameter.copy_(torch.randn(parameter.shape) if name.endswith(".w") else torch.zeros_like(parameter))
    torch.manual_seed(3)
    attachment.before_step(0, 2)
    torch.manual_seed(3)
    total = torch.zeros(())
    for name in attachment.eligible:
        w, alpha, group = attachment._parts(name)
        gates = []
        for logit in (alpha, group):
            u = torch.rand_like(logit).clamp(1e-6, 1 - 1e-6)
            gates.append((3 * torch.sigmoid(u.log() - (1 - u).log() + logit) - 1.5).clamp(0, 1))
        total = total + (w * gates[0] * gates[1]).square().sum()
    parameters = list(attachment.params().values())
    drift = attachment.drift()
    assert float(drift.detach()) == pytest.approx(float(total.detach()), rel=1e-5)
    pairs = zip(torch.autograd.grad(drift, parameters), torch.autograd.grad(total, parameters), strict=True)
    assert all(torch.allclose(actual, expected, rtol=1e-4, atol=1e-6) for actual, expected in pairs)


@pytest.mark.parametrize("steps", [6, 40, 100])
def test_gates_choose_in_short_budgets(steps):
    """After the first phase, some gates are more closed than open, and the choice is not that by |w| alone.

    Three steps are too few for that; there the gates must not close all at once either.
    """
    attachment = attach(make("diff_pruning", {"diff_pruning": {"density": 0.1}}), tiny_base("llama"))
    start, seen = attachment.start_phase, {}

    def watch(phase):
        if phase == 1:
            gates = torch.cat([gate(attachment._parts(name)[1])[0].detach().flatten() for name in attachment.eligible])
            seen["closed"] = float((gates < 0.5).double().mean())
            count = attachment.budget(attachment.recipe.density)
            by_size = largest({name: attachment._parts(name)[0].detach().abs() for name in attachment.eligible}, count)
            by_gates = largest({name: attachment._mean_difference(name).abs() for name in attachment.eligible}, count)
            pairs = [(set(by_size[name].tolist()), set(by_gates[name].tolist())) for name in attachment.eligible]
            seen["alike"] = sum(len(one & other) for one, other in pairs) / count
        start(phase)

    attachment.start_phase = watch
    fit(attachment, steps=steps)
    assert (steps == 6 or seen["closed"] > 0) and seen["closed"] < 0.5
    assert seen["alike"] > 0.5 and (steps == 6 or seen["alike"] < 1)


def test_gates_move_at_a_constant_rate():
    attachment = attach(make("diff_pruning"), tiny_base("llama"))
    rates, differences = [], []
    finish = attachment.after_backward

    def watch(step, total):
        finish(step, total)
        if attachment._start:
            rates.append(attachment._optimizer.param_groups[1]["lr"])
            differences.append(attachment._optimizer.param_groups[0]["lr"])

    attachment.after_backward = watch
    fit(attachment, steps=49)
    assert rates == [0.8] * 25  # 20 over the first phase's steps
    assert len(set(differences)) > 1
    assert attachment._gate_rate(6) == 1.0
    assert attachment._gate_rate(400) == attachment._gate_rate(4000) == pytest.approx(0.1)


@pytest.mark.parametrize("name", [*TWO_PHASES, "lt_sft+adapter"])
def test_fewer_steps_than_phases_are_refused_everywhere(name, tmp_path, save_tiny):
    base, task, settings = tiny_base("llama"), tiny_task(), TrainSettings(max_steps=1)
    attachment = attach(make(name), base, task)
    with pytest.raises(SettingError, match="trains in 2 phases"):
        train(attachment, _sequences(attachment, task), settings)
    base.release()
    result = compare(base, task, [make("base"), make(name)], tmp_path / "out", budget=Budget(steps=1, test_examples=4))
    row = result["rows"][-1]
    assert row["status"] != "ok" and "trains in 2 phases" in row["reason"]
    (planned,) = Planner(sketch(save_tiny(tmp_path / "model")), task, [make(name)], settings).rows(math.inf)
    assert planned.verdict == "not possible" and "trains in 2 phases" in planned.reason
