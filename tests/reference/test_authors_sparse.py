"""The sparse techniques and masks beside the authors' code, on tensors of a few numbers and a quadratic loss.

The loss is half the squared distance from a target, another one in each step, so that its gradients are known.
"""

import pytest
import torch
from torch import nn

from authors_values import authors_values, tensor, tensors
from tunewise.techniques.partial.diff_pruning import gate
from tunewise.techniques.registry import make
from tunewise.testing import attach, tiny_base

CLOSE = {"rtol": 1e-8, "atol": 1e-8}  # the authors' numbers are stored with ten digits
LT_SFT, DIFF_PRUNING, MASK = (authors_values(name) for name in ("lt_sft", "diff_pruning", "threshold_mask"))


def on_tensors(name, start, **settings):
    """Attach a sparse technique, and let it train these tensors in place of the model's."""
    attachment = attach(make(name, {name: settings}), tiny_base("llama", torch.float64))
    attachment.eligible = {key: nn.Parameter(value.clone(), requires_grad=False) for key, value in start.items()}
    attachment.size = sum(value.numel() for value in start.values())
    return attachment


def backward(attachment, target):
    """Compute the gradients of the loss and of the technique's own term."""
    penalty = attachment.penalty()
    distances = [(parameter - target[name]).square().sum() / 2 for name, parameter in attachment.eligible.items()]
    (sum(distances) + (0 if penalty is None else penalty)).backward()


def values(attachment):
    return {name: parameter.detach().clone() for name, parameter in attachment.eligible.items()}


# LT-SFT.


def run_phase(attachment, phase, targets, steps):
    attachment.start_phase(phase)
    optimizer = torch.optim.AdamW(attachment.param_groups())
    for step in range(steps):
        backward(attachment, targets[step % len(targets)])
        optimizer.step()
        optimizer.zero_grad()
        attachment.after_step(step, steps)


@pytest.mark.parametrize("run", LT_SFT["runs"], ids=lambda run: f"{run['ft_params_proportion']}-l1={run['l1']}")
def test_lt_sft_chooses_rewinds_and_retrains_as_composable_sft(run):
    start, targets = tensors(LT_SFT["start"]), [tensors(each) for each in LT_SFT["targets"]]
    rates = dict(zip(("dense_learning_rate", "learning_rate"), LT_SFT["rates"], strict=True))
    attachment = on_tensors("lt_sft", start, density=run["ft_params_proportion"], l1=run["l1"], **rates)
    assert attachment.budget(run["ft_params_proportion"]) == run["n_tunable_params"]
    run_phase(attachment, 0, targets, LT_SFT["steps"][0])
    for name, parameter in values(attachment).items():
        torch.testing.assert_close(parameter, tensor(run["after_dense"][name]), **CLOSE)
    attachment.start_phase(1)
    assert run["rewound_is_start"] and all(torch.equal(attachment.eligible[name], start[name]) for name in start)
    chosen = attachment.changed_entries()
    assert {name: chosen[name].tolist() if name in chosen else [] for name in start} == run["chosen"]
    attachment = on_tensors("lt_sft", start, density=run["ft_params_proportion"], l1=run["l1"], **rates)
    for phase, steps in enumerate(LT_SFT["steps"]):
        run_phase(attachment, phase, targets, steps)
    for name, parameter in values(attachment).items():
        torch.testing.assert_close(parameter, tensor(run["after_sparse"][name]), **CLOSE)
        torch.testing.assert_close(parameter - start[name], tensor(run["diffs"][name]), **CLOSE)


# Diff pruning.


def test_gates_and_their_slopes_are_those_of_diffpruning():
    """The authors clip their draws to (1e-4, 1 - 1e-4) and ours are clipped to (1e-6, 1 - 1e-6)."""
    gates = tensors(DIFF_PRUNING["gates"])
    z, slope = gate(gates["alpha"], gates["noise"])
    torch.testing.assert_close(z, gates["gate"], **CLOSE)
    torch.testing.assert_close(slope, gates["slope"], **CLOSE)
    torch.testing.assert_close(gate(gates["alpha"])[0], gates["gate_at_half"], **CLOSE)  # the mean gate is that of 1/2


@pytest.mark.parametrize("phase", DIFF_PRUNING["phases"], ids=lambda phase: f"structured={phase['structured']}")
def test_diff_pruning_trains_as_diffpruning(phase, monkeypatch):
    """Weights that the gates write, w, alpha and the groups' gates, with the authors' draws and rates.

    Not covered is the penalty on groups: here it is the paper's product, there the sum (the file says so).
    """
    start, steps = tensors(DIFF_PRUNING["start"]), DIFF_PRUNING["steps"]
    attachment = on_tensors(
        "diff_pruning",
        start,
        structured=phase["structured"],
        l0_weight=phase["l0_weight"],
        dense_learning_rate=DIFF_PRUNING["rate"],
        alpha_learning_rate=phase["alpha_rates"][0],
    )
    attachment.start_phase(0)
    parameters = attachment.params()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.fill_(0.0 if name.endswith(".w") else DIFF_PRUNING["alpha_init"])
    optimizer = attachment.optimizer(attachment.param_groups(), (0.9, 0.999))
    for group in optimizer.param_groups:
        group["eps"] = 1e-30  # as in their run: their AdamW adds it before the bias is corrected, and torch's after it
    rates = {"w": [], "alpha": []}
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = DIFF_PRUNING["rate"] * (1 - step / steps)
        noise = phase["noise"][step]
        parts = [f"{name}{part}" for name in start for part in ("", ".group") if f"{name}{part}" in noise]
        draws = iter([tensor(noise[part]) for part in parts])
        monkeypatch.setattr(
            "tunewise.techniques.partial.diff_pruning._uniform", lambda like, d=draws: next(d).view_as(like)
        )
        attachment.before_step(step, steps)
        for name, parameter in values(attachment).items():
            torch.testing.assert_close(parameter, tensor(phase["weights"][step][name]), **CLOSE)
        backward(attachment, tensors(DIFF_PRUNING["targets"][step]))
        for kind, group in zip(rates, optimizer.param_groups, strict=True):
            rates[kind].append(group["lr"])
        optimizer.step()
        optimizer.zero_grad()
    assert rates == {"w": pytest.approx(phase["w_rates"]), "alpha": phase["alpha_rates"]}
    for part in ("w", "alpha", "group"):
        for name, expected in phase[part].items():
            torch.testing.assert_close(
                parameters[f"{name}.{part}"].detach().flatten(), tensor(expected).flatten(), **CLOSE
            )


def test_long_runs_take_the_authors_rate_of_gates():
    attachment = on_tensors("diff_pruning", tensors(DIFF_PRUNING["start"]))
    assert {attachment._gate_rate(400)} == {rate for phase in DIFF_PRUNING["phases"] for rate in phase["alpha_rates"]}


@pytest.mark.parametrize("restart", ["zw", "w"])
@pytest.mark.parametrize("run", DIFF_PRUNING["projection"]["runs"], ids=lambda run: str(run["target_sparsity"]))
def test_diff_pruning_projects_as_diffpruning(run, restart):
    """The authors project what the last draw of the gates lets through; here, and in their run, it is the mean gates.

    Their search for a threshold ends with at most the wanted share; here the share is rounded to the nearest number.
    """
    given = {key: tensors(numbers) for key, numbers in DIFF_PRUNING["projection"].items() if key != "runs"}
    start, kept = given["start"], run["kept"]
    count = sum(map(len, kept.values()))
    size = sum(value.numel() for value in start.values())
    assert count == int(run["target_sparsity"] * size)
    attachment = on_tensors("diff_pruning", start, density=count / size, restart=restart)
    attachment.start_phase(0)
    with torch.no_grad():
        for name in start:
            for part in ("w", "alpha", "group"):
                parameter = attachment.params()[f"{name}.{part}"]
                parameter.copy_(given[part][name].view_as(parameter))
    attachment.start_phase(1)
    assert {name: places.tolist() for name, places in attachment.changed_entries().items()} == kept
    for name, places in kept.items():
        expected = tensor(run["difference"][name]) if restart == "zw" else given["w"][name].flatten()[places]
        torch.testing.assert_close(attachment.params()[f"{name}.value"].detach(), expected, **CLOSE)


# Masks.


@pytest.mark.parametrize(("init", "authors"), [("uniform", "maskbert"), ("ones", "piggyback")])
def test_masks_outputs_and_gradients_of_scores_are_the_authors(init, authors):
    """Scores at the threshold are off. The numbers stand in a corner of a larger matrix, which is 0 elsewhere."""
    recipe, expected = make("threshold_mask", {"threshold_mask": {"init": init}}), MASK[authors]
    attachment = attach(recipe, tiny_base("llama", torch.float64))
    assert attachment.tau == expected["threshold"]
    name = next(iter(attachment.masked))
    rows, columns = len(MASK["weight"]), len(MASK["weight"][0])
    score = attachment.params()[f"{name}.score"]
    attachment.weights[name] = torch.zeros_like(attachment.weights[name])
    attachment.weights[name][:rows, :columns] = tensor(MASK["weight"])
    with torch.no_grad():
        score[:rows, :columns] = tensor(MASK["score"])
    attachment.after_step(0, 1)
    corner = attachment.masked[name][:rows, :columns]
    assert torch.equal(corner, tensor(MASK["weight"]) * tensor(expected["mask"]))
    output = torch.nn.functional.linear(tensor(MASK["x"]), corner, tensor(MASK["bias"]))
    torch.testing.assert_close(output.detach(), tensor(expected["y"]), **CLOSE)
    (output * tensor(MASK["upstream"])).sum().backward()
    torch.testing.assert_close(score.grad[:rows, :columns], tensor(expected["score_gradient"]), **CLOSE)


def scores_at_start(**settings):
    attachment = attach(make("threshold_mask", {"threshold_mask": settings}), tiny_base("llama"))
    return torch.cat([score.detach().flatten() for score in attachment.params().values()])


@pytest.mark.parametrize("start", MASK["maskbert"]["start"], ids=lambda start: str(start["init_sparsity"]))
def test_uniform_scores_start_in_the_authors_interval(start):
    scores, width = scores_at_start(init="uniform", sparsity=start["init_sparsity"]), start["high"] - start["low"]
    assert start["low"] <= float(scores.min()) < start["low"] + 0.01 * width
    assert start["high"] - 0.01 * width < float(scores.max()) <= start["high"] + 1e-6


def test_equal_scores_start_where_piggybacks_do():
    assert scores_at_start(init="ones").unique().tolist() == [pytest.approx(MASK["piggyback"]["start_score"])]
