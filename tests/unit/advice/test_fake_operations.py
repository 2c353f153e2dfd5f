"""Fake tensors have the shapes, strides, types and memory that real ones have after the same operations."""

import pytest
import torch
from torch import nn

from tunewise.advice.plan.ledger import fake_tensors
from tunewise.engine.device import is_fake

OPERATIONS = {
    "sum": lambda a, b: a + b.T,
    "product": lambda a, b: a @ b,
    "broadcast": lambda a, b: a * b[:, :1].T,
    "view": lambda a, b: a.T[1:].unsqueeze(0).expand(3, -1, -1),
    "copy of a view": lambda a, b: a.T.contiguous().reshape(-1),
    "softmax": lambda a, b: a.softmax(-1),
    "concatenation": lambda a, b: torch.cat([a, b.T]),
    "parts": lambda a, b: list(a.split(2)) + list(b.unbind(1)),
    "half precision": lambda a, b: (a.bfloat16() @ b.to(torch.bfloat16)).float(),
    "comparison": lambda a, b: (a > b.T).any(0),
    "rows": lambda a, b: a[torch.tensor([2, 0, 0])],
    "masked rows": lambda a, b: a[torch.tensor([True, False, True, True])],
    "written in place": lambda a, b: [a.clone().mul_(2), a.zero_()],
    "written through a view": lambda a, b: a[1:].fill_(3),
    "norm": lambda a, b: torch.linalg.vector_norm(a),
    "attention": lambda a, b: nn.functional.scaled_dot_product_attention(a[None, None], a[None, None], a[None, None]),
    "convolution": lambda a, b: nn.functional.conv1d(b[None], a[:, :, None]),
    "random": lambda a, b: torch.rand(3, 4, generator=torch.Generator().manual_seed(0)) + a[0, :4],
    "data": lambda a, b: [setattr(a, "data", b), a @ b.T][1:],
}


def layouts(outputs):
    outputs = outputs if isinstance(outputs, list) else [outputs]
    return [(tuple(each.shape), each.stride(), each.dtype, each.device.type) for each in outputs]


def tensors():
    return torch.zeros(4, 5), torch.zeros(5, 4)


@pytest.mark.parametrize("name", OPERATIONS)
def test_fake_results_are_laid_out_like_real_ones(name):
    real = layouts(OPERATIONS[name](*tensors()))
    for _ in range(2):  # the second time, what torch said is remembered
        with fake_tensors():
            outputs = OPERATIONS[name](*tensors())
            assert layouts(outputs) == real
            assert all(map(is_fake, outputs if isinstance(outputs, list) else [outputs]))


def test_gradients_are_laid_out_like_real_ones():
    def gradients():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.SiLU(), nn.Linear(7, 3, bias=False))
        inputs = torch.zeros(4, 5, requires_grad=True)
        nn.functional.cross_entropy(model(inputs), torch.tensor([0, 1, 2, 0])).backward()
        return [inputs.grad, *(parameter.grad for parameter in model.parameters())]

    real = layouts(gradients())
    with fake_tensors():
        assert layouts(gradients()) == real


def test_memory_is_that_of_what_is_alive():
    with fake_tensors() as ledger:
        a = torch.zeros(10, 10)
        view, copy = a[2:], a.clone()
        del a
        assert ledger.live == 800
        del copy
        assert ledger.live == 400
        del view
        other = torch.zeros(10)
        other.data = torch.zeros(1)
        assert ledger.live == 4


def test_numbers_that_are_read_are_those_that_were_written():
    with fake_tensors():
        number = torch.tensor(2.5)
        assert number.item() == 2.5
        number += 1
        assert number.item() == 1.0 and torch.zeros(2, 2).tolist() == [[1.0, 1.0], [1.0, 1.0]]
        assert bool(torch.zeros(3).isfinite().all())


def test_a_fake_tensor_is_of_no_use_outside():
    with fake_tensors():
        tensor = torch.zeros(2)
    assert "FakeTensor([2]" in repr(tensor)
    with pytest.raises(RuntimeError, match="outside of its ledger"):
        tensor + 1


def test_what_has_no_type_has_the_default_one_of_its_time():
    """A model is built under its own type, and another one of the same sizes may come after it."""
    before = torch.get_default_dtype()
    try:
        for default in (torch.bfloat16, torch.float32, torch.bfloat16):
            torch.set_default_dtype(default)
            with fake_tensors():
                made = [torch.empty(7, 3), torch.zeros(7), torch.arange(4) / 2]
                assert [each.dtype for each in made] == [default] * len(made)
    finally:
        torch.set_default_dtype(before)
