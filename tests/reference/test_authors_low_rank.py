"""DyLoRA, AdaLoRA and PiSSA beside the authors' code."""

import pytest
import torch

from authors_values import authors_values, drawn, tensor
from tunewise.engine.anatomy import oriented
from tunewise.techniques.building.lowrank import start
from tunewise.techniques.building.peft_lora import Factors
from tunewise.techniques.registry import make
from tunewise.testing import attach, tiny_base

DYLORA, ADALORA, PISSA = authors_values("dylora"), authors_values("adalora"), authors_values("pissa")
CLOSE = {"rtol": 1e-8, "atol": 1e-8}  # the authors' numbers are stored with ten digits


# DyLoRA.


def dylora(**settings):
    """Attach DyLoRA to linears (32, 32) of which the first has the authors' weights and factors."""
    base = tiny_base("llama", torch.float64)
    fixed = {"r": DYLORA["r"], "lora_alpha": DYLORA["lora_alpha"], "target_modules": ["q"]}
    attachment = attach(make("dylora", {"dylora": fixed | settings}), base)
    path = next(iter(attachment.layers))
    numbers = {name: drawn(DYLORA["seeds"][name], *shape) for name, shape in DYLORA["shapes"].items()}
    with torch.no_grad():
        attachment.layers[path].weight.copy_(numbers["weight"] * DYLORA["scales"]["weight"])
        for part, name in zip(attachment.pairs[path], ("a", "b"), strict=True):
            part.copy_(numbers[name])
    return attachment, path, numbers


@pytest.mark.parametrize("run", DYLORA["runs"], ids=lambda run: f"rank={run['rank']}-frozen={run['frozen']}")
def test_dylora_gives_the_outputs_and_gradients_of_the_authors_layer(run):
    attachment, path, numbers = dylora(update="frozen" if run["frozen"] else "full")
    attachment.b = run["rank"]
    output = attachment.layers[path](numbers["x"])
    torch.testing.assert_close(output[:, :8].detach(), tensor(run["y"]), **CLOSE)
    (output * numbers["upstream"]).sum().backward()
    attachment.after_backward(0, 1)
    a, b = attachment.pairs[path]
    torch.testing.assert_close(a.grad.sum(1), tensor(run["gradient_a_sums"]), **CLOSE)
    torch.testing.assert_close(a.grad[:, :6], tensor(run["gradient_a"]), **CLOSE)
    torch.testing.assert_close(b.grad[:6], tensor(run["gradient_b"]), **CLOSE)


@pytest.mark.parametrize("merged", DYLORA["merged"], ids=lambda merged: f"rank={merged['rank']}")
def test_dylora_merges_each_rank_as_the_authors_layer(merged):
    attachment, path, _ = dylora(rank=merged["rank"])
    before = attachment.layers[path].weight.detach().clone()
    attachment.merge()
    change = attachment.layers[path].weight.detach() - before
    torch.testing.assert_close(change[0, :6], tensor(merged["row"]), **CLOSE)


# AdaLoRA.


def adalora(delta_t):
    """Attach AdaLoRA to two linears (32, 32) with the authors' weights and triplets."""
    fixed = {"init_r": ADALORA["r"], "target_r": ADALORA["target_rank"], "target_modules": ["q"]}
    fixed |= {"tinit": ADALORA["init_warmup"], "tfinal": ADALORA["final_warmup"], "delta_t": delta_t}
    fixed |= {name: ADALORA[name] for name in ("lora_alpha", "beta1", "beta2", "orth_reg_weight")}
    attachment = attach(make("adalora", {"adalora": fixed}), tiny_base("llama", torch.float64))
    parameters, scales = [], ADALORA["scales"]
    for place, (path, (e, p, q)) in enumerate(attachment.triplets.items()):
        for part, parameter in {"a": q, "e": e, "b": p}.items():
            seed = ADALORA["seeds"]["parameters"][f"q{place}.{part}"]
            with torch.no_grad():
                parameter.copy_(drawn(seed, *parameter.shape) * scales["parameters"])
            parameters.append(parameter)
        weight = drawn(ADALORA["seeds"]["weights"][place], 32, 32) * scales["weights"]
        with torch.no_grad():
            oriented(attachment.layers[path]).copy_(weight)
    return attachment, parameters


def test_adaloras_outputs_and_penalty_are_the_authors():
    """The authors divide by the rank plus 1e-5."""
    attachment, _ = adalora(1)
    x = drawn(ADALORA["seeds"]["x"], 2, 32)
    for module, expected in zip(attachment.layers.values(), ADALORA["y"], strict=True):
        torch.testing.assert_close(module(x)[:, :6].detach(), tensor(expected), rtol=1e-5, atol=1e-5)
    assert float(attachment.penalty().detach()) == pytest.approx(ADALORA["penalty"], rel=1e-9)


@pytest.mark.parametrize("run", ADALORA["runs"], ids=lambda run: f"interval={run['mask_interval']}")
def test_adalora_keeps_the_ranks_that_the_authors_allocator_keeps(run):
    """Steps are counted from 1, and importance is taken before the update, as in the paper's algorithm.

    The authors' trainer counts from 0 and takes it after the update; here their allocator was called in paper's order.
    """
    attachment, parameters = adalora(run["mask_interval"])
    total = ADALORA["total"]
    for step, expected in enumerate(run["steps"], 1):
        assert attachment.recipe.budget(step, total, 2) == expected["budget"]
        for place, parameter in enumerate(parameters):
            parameter.grad = drawn(1000 + 10 * step + place, *parameter.shape)
        attachment.after_backward(step - 1, total)
        with torch.no_grad():
            for parameter in parameters:
                parameter -= ADALORA["lr"] * parameter.grad
        attachment.after_step(step - 1, total)
        for (e, _, _), values, alive in zip(
            attachment.triplets.values(), expected["e"], expected["alive"], strict=True
        ):
            assert e.detach().nonzero()[:, 0].tolist() == alive, step
            torch.testing.assert_close(e.detach(), tensor(values), **CLOSE)
    for kind, name in (("I", "sensitivity_of_e"), ("U", "uncertainty_of_e")):
        for path, expected in zip(attachment.triplets, run[name], strict=True):
            torch.testing.assert_close(attachment.averages[f"{path}.lora_E.{kind}"], tensor(expected), **CLOSE)


# PiSSA and OLoRA.


def factors(kind, rank, scale):
    weight = drawn(PISSA["seed"], *PISSA["shape"]).float()
    update = Factors(torch.zeros(rank, weight.shape[1]), torch.zeros(weight.shape[0], rank), scale)
    start(kind, weight, update, torch.Generator())
    return update.a, update.b


def same_signs(a, b):
    """Return the factors with the first column of A positive: singular vectors are given up to their sign."""
    sign = torch.sign(a[:, :1].double())
    return a.double() * sign, b.double() * sign.T


def test_pissas_factors_are_the_authors():
    """Their loop that starts quantised models, with rounding left out; lora_alpha is r there, so the scale is 1."""
    own, authors = factors("pissa", PISSA["authors"]["r"], 1.0), (tensor(PISSA["authors"][part]) for part in "ab")
    for actual, expected in zip(same_signs(*own), same_signs(*authors), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "run", PISSA["peft"], ids=lambda run: f"{run['init_lora_weights']}-r={run['r']}-alpha={run['lora_alpha']}"
)
def test_factors_are_those_of_peft_which_the_authors_use(run):
    own = factors(run["init_lora_weights"], run["r"], run["lora_alpha"] / run["r"])
    expected = tensor(run["a"]), tensor(run["b"])
    for actual, wanted in zip(same_signs(*own), same_signs(*expected), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)
