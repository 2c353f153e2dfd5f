"""The two descriptions of a packed row agree: masks of trees, and sequences whose keys are gathered."""

from itertools import pairwise

import pytest
import torch

from tunewise.engine.segment_attention import tree_mask
from tunewise.engine.segments import Segment
from tunewise.engine.varlen_attention import supports_flash, varlen_layout

LEAF = Segment(3)
TREES = {
    "plain": (Segment(4), Segment(1), Segment(6)),
    "one beginning": (Segment(5, (LEAF, Segment(1), Segment(2))),),
    "beginnings of beginnings": (Segment(2), Segment(3, (Segment(2, (LEAF, LEAF)), Segment(4))), Segment(2)),
    "branches of nothing": (Segment(0, (Segment(2), LEAF)), Segment(2)),
}


@pytest.mark.parametrize("row", TREES.values(), ids=TREES)
def test_a_part_sees_what_it_continues_and_itself(row):
    layout = varlen_layout(row, torch.device("cpu"))
    total = sum(segment.length for segment in row)
    positions = torch.arange(total) if layout.gather is None else layout.gather
    seen = torch.zeros(total, total, dtype=torch.bool)
    queries, keys = layout.queries.tolist(), layout.keys.tolist()
    for part in range(len(queries) - 1):
        part_keys = positions[keys[part] : keys[part + 1]]
        past = len(part_keys) - (queries[part + 1] - queries[part])
        for turn, query in enumerate(range(queries[part], queries[part + 1])):
            seen[query, part_keys[: past + turn + 1]] = True
    expected = torch.block_diag(
        *(
            torch.ones(tree.length, tree.length).tril()
            if (mask := tree_mask(tree, None, seen.device)) is None
            else mask
            for tree in row
        )
    )
    assert torch.equal(seen, expected.bool())
    longest = (max(after - before for before, after in pairwise(ends)) for ends in (queries, keys))
    assert layout.longest == tuple(longest)
    assert (layout.gather is None) == all(not tree.branches or not tree.prefix for tree in row)


@pytest.mark.parametrize(
    ("size", "dtype", "takes"),
    [
        (64, torch.bfloat16, True),
        (256, torch.float16, True),
        (64, torch.float32, False),
        (20, torch.bfloat16, False),
        (512, torch.bfloat16, False),
    ],
)
def test_heads_that_flash_attention_does_not_take_go_another_way(size, dtype, takes):
    assert supports_flash(torch.empty(1, 2, 3, size, dtype=dtype)) is takes
