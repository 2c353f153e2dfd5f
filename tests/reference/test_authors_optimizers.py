"""GaLore and AdaLomo beside the authors' code: the parameter after each of some steps with given gradients."""

import pytest
import torch
from torch import nn

from authors_values import authors_values, drawn, tensor
from tunewise.engine.optimizers import build

GALORE, ADALOMO = authors_values("galore"), authors_values("adalomo")


@pytest.mark.parametrize("run", GALORE["runs"], ids=lambda run: run["name"])
def test_galore_moves_a_matrix_as_galore_torch(run):
    parameter = nn.Parameter(drawn(GALORE["seeds"]["start"], *run["shape"]).float())
    group = {"params": [parameter], "lr": GALORE["lr"], "weight_decay": 0.0, "eps": GALORE["eps"]}
    group |= {name: GALORE[name] for name in ("rank", "update_proj_gap", "scale")}
    optimizer = build("galore", [group], tuple(GALORE["betas"]))
    for seed, expected in zip(GALORE["seeds"]["gradients"], run["after"], strict=True):
        parameter.grad = drawn(seed, *run["shape"]).float()
        optimizer.step()
        torch.testing.assert_close(parameter.detach().double(), tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ADALOMO["shapes"])
@pytest.mark.parametrize("run", ADALOMO["runs"], ids=lambda run: f"decay={run['weight_decay']}")
def test_adalomo_moves_parameters_as_lomo_optim(run, name):
    """A matrix, a vector, and a matrix so small that steps are parts of the least size."""
    shape, scale = ADALOMO["shapes"][name], ADALOMO["scales"].get(name, 1.0)
    start = drawn(ADALOMO["seeds"][name], *shape) * scale
    parameter = nn.Parameter(start.float())
    build("adalomo", [{"params": [parameter], "lr": ADALOMO["lr"], "weight_decay": run["weight_decay"]}], (0.9, 0.999))
    for seed, expected in zip(ADALOMO["gradient_seeds"][name], run["after"][name], strict=True):
        (parameter * drawn(seed, *shape).float()).sum().backward()
        torch.testing.assert_close(parameter.detach().double(), tensor(expected), rtol=1e-5, atol=1e-6 * scale)
