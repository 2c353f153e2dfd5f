"""The chunked loss equals torch's."""

import pytest
import torch
from torch import nn

from tunewise.advice.plan.ledger import fake_tensors
from tunewise.engine import loss


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("hooked", [True, False])
@pytest.mark.parametrize("rows", [1, 16, 53])
def test_value_and_gradients_equal_torch(monkeypatch, rows, hooked, bias):
    monkeypatch.setattr(loss, "_CHUNK_ELEMENTS", 40 * 16)
    torch.manual_seed(0)
    head = nn.Linear(12, 40, bias=bias).double()
    if hooked:
        head.register_forward_hook(lambda module, args, output: output * 1.5)
    hidden = torch.randn(rows, 12, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(40, (rows,))
    grads = []
    for value in (
        loss.head_loss(head, hidden, targets),
        nn.functional.cross_entropy(head(hidden), targets, reduction="sum"),
    ):
        inputs = [hidden, *head.parameters()]
        grads.append([value.detach(), *torch.autograd.grad(value * 0.3, inputs)])
    for ours, theirs in zip(*grads, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    nll = nn.functional.cross_entropy(head(hidden), targets, reduction="none")
    assert torch.allclose(loss.token_nll(head, hidden, targets, range(rows)), nll, rtol=1e-12)


def test_a_gpu_computes_more_rows_at_once():
    """Products of few rows leave a GPU idle; on a CPU, logits of few rows stay in its caches."""
    peaks = {}
    for device in ("cpu", "cuda"):
        with fake_tensors(device) as ledger:
            head, hidden = nn.Linear(8, 128_000, bias=False), torch.zeros(600, 8)
            ledger.take_allocations()
            calls = ledger.work.calls
            loss.head_loss(head, hidden, torch.zeros(600, dtype=torch.long))
            peaks[device] = ledger.work.calls - calls
            largest = max(entry.nbytes for entry in ledger.take_allocations().entries)
            assert largest == 4 * 128_000 * (32 if device == "cpu" else 524)
    assert peaks["cuda"] < peaks["cpu"] / 5


def test_no_labels_is_zero_and_harmless():
    head = nn.Linear(4, 9)
    hidden = torch.randn(0, 4, requires_grad=True)
    value = loss.head_loss(head, hidden, torch.zeros(0, dtype=torch.long))
    value.backward()
    assert value.item() == 0.0
    assert loss.token_nll(head, hidden, torch.zeros(0, dtype=torch.long), []).shape == (0,)


@pytest.mark.parametrize("rows", [1, 16, 53])
def test_several_targets_of_a_row_are_those_of_the_row_repeated(monkeypatch, rows):
    monkeypatch.setattr(loss, "_CHUNK_ELEMENTS", 40 * 16)
    torch.manual_seed(0)
    head, hidden = nn.Linear(12, 40).double(), torch.randn(rows, 12, dtype=torch.float64)
    sources = sorted(torch.randint(rows, (3 * rows,)).tolist())
    targets = torch.randint(40, (3 * rows,))
    calls = []
    head.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    together = loss.token_nll(head, hidden, targets, sources)
    assert sum(calls) == rows
    assert torch.allclose(together, loss.token_nll(head, hidden[sources], targets, range(3 * rows)), rtol=1e-12)


def test_no_gradient_is_made_for_a_frozen_head():
    head = nn.Linear(4, 9).requires_grad_(False)
    hidden = torch.randn(5, 4, requires_grad=True)
    targets = torch.tensor([0, 3, 8, 1, 1])
    value = loss.head_loss(head, hidden, targets)
    gradients = value.grad_fn.saved_tensors  # computed in the forward pass: of hidden, weight and bias
    assert [part is not None for part in gradients] == [True, False, False]
    expected = torch.autograd.grad(nn.functional.cross_entropy(head(hidden), targets, reduction="sum"), hidden)[0]
    assert torch.allclose(torch.autograd.grad(value, hidden)[0], expected, atol=1e-6)


def test_a_second_backward_is_refused():
    hidden = torch.randn(5, 4, requires_grad=True)
    value = loss.head_loss(nn.Linear(4, 9), hidden, torch.tensor([0, 3, 8, 1, 1]))
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        value.backward()


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_scaled_loss_adds_up_the_same_gradients(monkeypatch, watched, frozen):
    """The head's gradient is accumulated in the forward pass, unless a hook waits for it in the backward pass."""
    monkeypatch.setattr(loss, "_CHUNK_ELEMENTS", 40 * 16)
    torch.manual_seed(0)
    heads, seen = [nn.Linear(12, 40).double() for _ in range(2)], []
    heads[1].load_state_dict(heads[0].state_dict())
    for head in heads:
        head.weight.requires_grad_(not frozen)
    if watched and not frozen:
        heads[0].weight.register_post_accumulate_grad_hook(lambda weight: seen.append(weight.grad.clone()))
    states = torch.randn(2, 53, 12, dtype=torch.float64)
    for state in states:
        targets = torch.randint(40, (53,))
        both = [state.clone().requires_grad_() for _ in heads]
        scaled = loss.head_loss(heads[0], both[0], targets, 0.3)
        plain = nn.functional.cross_entropy(heads[1](both[1]), targets, reduction="sum") * 0.3
        scaled.backward()
        plain.backward()
        assert torch.allclose(scaled, plain, rtol=1e-12) and torch.allclose(both[0].grad, both[1].grad, rtol=1e-10)
    for ours, theirs in zip(heads[0].parameters(), heads[1].parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        assert ours.grad is None or torch.allclose(ours.grad, theirs.grad, rtol=1e-10)
    assert len(seen) == (2 if watched and not frozen else 0)
