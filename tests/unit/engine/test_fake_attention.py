"""On fake tensors one call of each kind stands for all calls of a packed row: it takes what they take together."""

import pytest
import torch

from tunewise.advice.plan.ledger import fake_tensors
from tunewise.engine import segment_attention
from tunewise.engine.fake_tensor import ONCE
from tunewise.engine.segment_attention import attend_by_parts, kernel_calls
from tunewise.engine.segments import Segment

PLAIN = tuple(Segment(length) for length in (40, 7, 90, 33, 12))
SHARED = (Segment(300, tuple(Segment(length) for length in (20, 120, 200, 5))), Segment(50))


def work_and_peak(row, window):
    """What a pass there and back takes: FLOPs, bytes moved, operations, and bytes alive at most."""
    tokens = sum(segment.length for segment in row)
    segment_attention.tree_mask.cache_clear()
    with fake_tensors() as ledger:
        query = torch.zeros(1, 4, tokens, 16, requires_grad=True)
        key, value = (torch.zeros(1, 2, tokens, 16, requires_grad=True) for _ in range(2))
        before = ledger.work
        out = attend_by_parts(query, key.repeat(1, 2, 1, 1), value.repeat(1, 2, 1, 1), row, 0.25, window)
        out.sum().backward()
        return ledger.work.plus(before, -1), ledger.take_allocations().peak


@pytest.mark.parametrize(("row", "window"), [(PLAIN, None), (PLAIN, 16), (SHARED, None)])
def test_stand_ins_take_what_all_calls_take(row, window, monkeypatch):
    work_and_peak(row, window)  # what torch imports at its first call keeps tensors alive
    work, peak = work_and_peak(row, window)
    monkeypatch.setattr(
        segment_attention, "_stand_ins", lambda row, window: [(c, ONCE) for c in kernel_calls(row, window)]
    )
    expected, expected_peak = work_and_peak(row, window)
    assert work.flops == pytest.approx(expected.flops) and work.calls == expected.calls
    assert work.moved == pytest.approx(expected.moved, rel=0.1)
    assert expected_peak * 0.97 <= peak <= expected_peak
