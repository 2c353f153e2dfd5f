"""Sparse techniques over the tensors of a whole model: numbers worked out from the papers' equations in numpy.

`test_authors_sparse.py` holds what the authors' code gives on a few numbers.
"""

import numpy as np
import pytest
import torch

from tunewise.techniques.building.sparse_entries import largest
from tunewise.techniques.registry import make
from tunewise.testing import attach, tiny_base


def test_diff_pruning_projects_to_the_largest_gated_differences():
    base = tiny_base("llama")
    attachment = attach(make("diff_pruning", {"diff_pruning": {"density": 0.05, "target_modules": ["q"]}}), base)
    attachment.start_phase(0)
    random = np.random.default_rng(0)
    products, order = [], list(attachment.eligible)
    for place, name in enumerate(order):
        w, alpha, group = attachment._parts(name)
        drawn, logits, whole = random.normal(size=w.shape), random.normal(1, 2, size=w.shape), 0.5 + place
        with torch.no_grad():
            w.copy_(torch.from_numpy(drawn))
            alpha.copy_(torch.from_numpy(logits))
            group.fill_(whole)
        products.append((drawn * _mean_gate(logits) * _mean_gate(whole)).ravel())
    flat = np.concatenate(products)
    count = attachment.budget(0.05)
    attachment.start_phase(1)
    first, chosen = 0, attachment.changed_entries()
    threshold = np.partition(np.abs(flat), len(flat) - count)[len(flat) - count]
    for name, product in zip(order, products, strict=True):
        kept = np.flatnonzero(np.abs(product) >= threshold)
        assert chosen.get(name, torch.tensor([])).tolist() == kept.tolist()
        assert not len(kept) or np.allclose(
            attachment.params()[f"{name}.value"].detach().numpy(), product[kept], atol=1e-6
        )
        first += len(kept)
    assert first == count


def test_lt_sft_chooses_by_the_threshold_of_the_reference_and_rewinds():
    """The reference keeps all |theta_1 - theta_0| that reach the k-th largest, over all tensors together."""
    base = tiny_base("llama")
    attachment = attach(make("lt_sft", {"lt_sft": {"density": 0.02}}), base)
    before = {name: parameter.detach().clone() for name, parameter in attachment.eligible.items()}
    attachment.start_phase(0)
    random, moves = np.random.default_rng(1), {}
    for name, parameter in attachment.eligible.items():
        with torch.no_grad():
            parameter += torch.from_numpy(random.normal(scale=0.1, size=tuple(parameter.shape))).float()
        moves[name] = np.abs(parameter.detach().numpy() - before[name].numpy()).ravel()
    flat = np.concatenate(list(moves.values()))
    count = attachment.budget(0.02)
    threshold = np.partition(flat, len(flat) - count)[len(flat) - count]
    attachment.start_phase(1)
    chosen = attachment.changed_entries()
    for name, distances in moves.items():
        assert chosen.get(name, torch.tensor([])).tolist() == np.flatnonzero(distances >= threshold).tolist()
        assert torch.equal(attachment.eligible[name], before[name])


def test_fisher_scores_pick_by_sums_of_squares_and_not_by_squared_sums():
    """Two examples (1, 2, -1) and (.5, -1, 3) of a softmax over two classes, whose labels are 0 and 1."""
    weights = torch.tensor([[0.1, -0.2, 0.3], [0.0, 0.4, -0.1]], requires_grad=True)
    rows = (torch.tensor([1.0, 2.0, -1.0]), 0), (torch.tensor([0.5, -1.0, 3.0]), 1)
    information = torch.zeros(2, 3)
    for x, label in rows:
        (gradient,) = torch.autograd.grad(torch.log_softmax(weights @ x, 0)[label], weights)
        information += gradient**2
    expected = [0.85510694, 3.42042775, 7.38886888]
    assert information.flatten().tolist() == pytest.approx(expected * 2, rel=1e-5)
    assert largest({"weights": information}, 2)["weights"].tolist() == [2, 5]


def _mean_gate(alpha):
    return np.clip(3 / (1 + np.exp(-np.asarray(alpha))) - 1.5, 0, 1)
