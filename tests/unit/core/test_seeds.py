"""The order of sums on a GPU: asked for, and given back."""

import torch

from tunewise.core.seeds import repeatable, strictly


def state():
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def test_an_order_is_kept_inside_alone():
    before = state()
    with repeatable(torch.device("cpu")), strictly():
        assert state() == before
    with repeatable(torch.device("cuda")):
        assert state() == (True, True)
        with strictly():
            assert state() == (True, False)
        assert state() == (True, True)
    assert state() == before
