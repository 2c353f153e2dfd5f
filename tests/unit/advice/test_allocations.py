"""The peak of memory at any depth follows from the allocations of two shallow copies."""

import itertools

import pytest

from tunewise.advice.plan.allocations import Allocation, Allocations, peak_between


def run(depth, *, weights=10, kept=7, freed_backwards=True, head=500, optimizer=True):
    """Allocate as a training does: weights, blocks forwards, a head, blocks backwards, and an optimiser."""
    entries, alive = [Allocation(None, 0, 100 + weights * depth)], 100 + weights * depth

    def take(operation, size, frees=0):
        nonlocal alive
        alive += size
        entries.append(Allocation(operation, size, alive))
        alive -= frees

    take("embed", 20)
    for _ in range(depth):
        take("attend", 90, frees=80)
        take("feed", kept + 60, frees=60)
    take("head", head, frees=head - 5)
    for block in reversed(range(depth)):
        take("feed back", 66, frees=60 + kept)
        take("attend back", 95 if block else 50, frees=(85 if block else 40) if freed_backwards else 0)
    take("norms", 4 * depth, frees=4 * depth)
    if optimizer:
        for _ in range(depth):
            take("moments", 2 * weights)
    return Allocations([*entries, Allocation(None, 0, alive)])


@pytest.mark.parametrize("head", [0, 60, 500, 5000])
@pytest.mark.parametrize(("weights", "kept"), [(10, 7), (0, 70), (300, 1)])
@pytest.mark.parametrize(("few", "many", "depth"), [(2, 3, 32), (2, 3, 3), (4, 8, 32), (2, 4, 30)])
def test_the_peak_is_that_of_the_deep_model(few, many, depth, weights, kept, head):
    for frees, optimizer in itertools.product((True, False), repeat=2):
        options = {"weights": weights, "kept": kept, "head": head, "freed_backwards": frees, "optimizer": optimizer}
        share = (depth - few) / (many - few)
        found = peak_between(run(few, **options), run(many, **options), share)
        assert found == run(depth, **options).peak


def test_what_does_something_else_when_it_is_deeper_is_not_taken():
    few, many, other = run(2), run(3), Allocations([Allocation(None, 0, 1), Allocation("other", 1, 2)])
    assert peak_between(many, few, 10) is None
    assert peak_between(few, other, 10) is None
    assert peak_between(Allocations(), few, 10) is None
    assert peak_between(Allocations(), Allocations(), 10) == 0
