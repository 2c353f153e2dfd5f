"""Spilled tensors come back bit for bit, and take no memory until they are read."""

import errno
import tempfile
from pathlib import Path

import pytest
import torch

from tunewise.advice.plan.ledger import fake_tensors
from tunewise.engine.memory import release_pages, spill_to_disk


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(3, 5), (300, 500), ()])
def test_values_come_back_and_are_their_own(dtype, shape):
    values = torch.randn(shape).to(dtype)
    spilled, before = spill_to_disk(values), values.clone()
    values.zero_()
    assert spilled.shape == before.shape and spilled.dtype == dtype and torch.equal(spilled, before)


def test_columns_that_do_not_follow_one_another_too():
    values = torch.randn(400, 300).T
    assert torch.equal(spill_to_disk(values), values)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's list of mappings")
def test_large_ones_are_mapped_and_have_no_name_left_and_take_memory_only_when_read():
    values = torch.randn(1000, 1000)
    spilled = spill_to_disk(values)
    assert _resident() < spilled.nbytes / 10
    assert torch.equal(spilled, values) and _resident() >= spilled.nbytes
    release_pages(spilled)
    assert _resident() < spilled.nbytes / 10
    assert torch.equal(spilled, values)
    small = spill_to_disk(torch.ones(3))
    release_pages(small)  # not in a file
    assert small.tolist() == [1, 1, 1]


def _resident():
    """Bytes of spilled tensors that are resident in memory."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    starts = [index for index, line in enumerate(lines) if "tunewise-" in line and line.endswith("(deleted)")]
    assert starts
    return 1024 * sum(
        int(next(line for line in lines[start:] if line.startswith("Rss")).split()[1]) for start in starts
    )


def test_a_full_disk_keeps_them_in_memory(monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    values = torch.randn(300, 500)
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", full)
    assert torch.equal(spill_to_disk(values), values)


def test_a_plan_counts_nothing_for_them_on_a_processor_and_a_copy_on_a_gpu():
    for device, copies in (("cpu", 0), ("cuda", 1)):
        with fake_tensors(device) as ledger:
            values = torch.zeros(300, 500)
            before = ledger.live
            spilled = spill_to_disk(values)
            assert ledger.live - before == copies * spilled.nbytes
