"""Stores weights in four bits: NormalFloat-4 with double quantisation (Dettmers et al. 2023, sections 3 and E).

    code_i = the codebook entry nearest to w_i / absmax, in blocks of 64;   16 entries: quantiles of a normal law
    absmax, less its mean, in 8 bits by blocks of 256 with a 256-entry dynamic map: 4.127 bits per weight in all

In plain torch, with bitsandbytes' codes and, but for a scale in a few hundred rounded to the nearer place, its values;
or by bitsandbytes itself, whose kernels are faster on a GPU. Its functions are called, not its layers: those repack
themselves in an evaluation and lose gradients after (0.50.2, on CPUs with bf16).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tunewise.engine.fake_tensor import real_contents

BLOCK, BLOCK_OF_BLOCKS = 64, 256
# Quantiles of a normal law at probabilities from 0.9677083 down, with an exact zero, over their largest (section E).
CODEBOOK = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@dataclass(frozen=True)
class Packed:
    """A weight in four bits: two codes per byte, the first in the high half."""

    codes: Tensor  # (ceil(n / 2),) uint8
    absmax: Tensor  # (blocks,) uint8 indices into the dynamic map, or float32 without double quantisation
    offset: Tensor  # () float32, the mean of the true absmax
    absmax2: Tensor  # (ceil(blocks / 256),) float32
    shape: torch.Size
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that the packed weight takes."""
        return self.codes.nbytes + self.absmax.nbytes + self.offset.nbytes + self.absmax2.nbytes


@dataclass(frozen=True)
class Foreign:
    """A weight in four bits, packed by bitsandbytes."""

    codes: Tensor
    state: Any
    shape: torch.Size
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that the packed weight takes."""
        nested = self.state.state2.absmax.nbytes + 4 if self.state.nested else 0
        return int(self.codes.nbytes + self.state.absmax.nbytes + nested)


def quantise_by_bitsandbytes(weight: Tensor, double: bool = True) -> Foreign:
    """Pack a tensor into four bits per entry with bitsandbytes; ImportError where it is not installed.

    The weight is passed as one row, because narrow matrices come back wrong on a CPU (0.50.2), and never in float64,
    which the GPU kernels refuse.
    """
    from bitsandbytes.functional import quantize_4bit

    row = weight.detach().reshape(-1)
    row = row.float() if row.dtype == torch.float64 else row
    codes, state = quantize_4bit(row, blocksize=BLOCK, compress_statistics=double, quant_type="nf4")
    return Foreign(codes, state, weight.shape, weight.dtype)


def quantise(weight: Tensor, double: bool = True) -> Packed:
    """Pack a floating-point tensor of any shape into four bits per entry."""
    flat = weight.detach().reshape(-1).float()
    count = flat.numel()
    padded = torch.nn.functional.pad(flat, (0, -count % BLOCK)).view(-1, BLOCK)
    absmax = padded.abs().amax(1)
    scaled = padded * (1 / absmax)[:, None]
    book = torch.tensor(CODEBOOK, device=weight.device)
    codes = torch.bucketize(scaled.nan_to_num(0.0).view(-1), (book[1:] + book[:-1]) / 2).to(torch.uint8)[:count]
    codes = torch.nn.functional.pad(codes, (0, count % 2), value=7)  # the code of zero
    packed = codes[0::2] << 4 | codes[1::2]
    nothing = torch.zeros((), device=weight.device)
    if not double:
        return Packed(packed, absmax, nothing, nothing.view(1)[:0], weight.shape, weight.dtype)
    offset = absmax.mean()
    places, absmax2 = _quantise8(absmax - offset)
    return Packed(packed, places, offset, absmax2, weight.shape, weight.dtype)


def dequantise(packed: Packed | Foreign) -> Tensor:
    """Return the weight that the four bits encode, in its own shape and type."""
    if isinstance(packed, Foreign):
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(packed.codes, packed.state).to(packed.dtype).view(packed.shape)
    absmax = packed.absmax
    if absmax.dtype == torch.uint8:
        absmax = _dequantise8(absmax, packed.absmax2) + packed.offset
    count = packed.shape.numel()
    whole_blocks = count // BLOCK
    values = torch.nn.functional.embedding(packed.codes.int(), _pairs(packed.codes.device)).view(-1)
    values[: whole_blocks * BLOCK].view(whole_blocks, BLOCK).mul_(absmax[:whole_blocks, None])
    values[whole_blocks * BLOCK :].mul_(absmax[-1])
    return values[:count].view(packed.shape).to(packed.dtype)


def _pairs(device: torch.device) -> Tensor:
    """Return the two values that each byte encodes, (256, 2)."""
    book, byte = torch.tensor(CODEBOOK, device=device), torch.arange(256, device=device)
    return torch.stack([book[byte >> 4], book[byte & 15]], dim=1)


def _quantise8(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return indices into the dynamic map and the largest magnitude of each block of 256."""
    count = values.numel()
    padded = torch.nn.functional.pad(values, (0, -count % BLOCK_OF_BLOCKS)).view(-1, BLOCK_OF_BLOCKS)
    largest = padded.abs().amax(1)
    scaled = (padded * (1 / largest)[:, None]).nan_to_num(0.0)
    book = dynamic_map().to(values.device)
    places = torch.bucketize(scaled.view(-1), (book[1:] + book[:-1]) / 2)
    return places.to(torch.uint8)[:count], largest


def _dequantise8(places: Tensor, largest: Tensor) -> Tensor:
    values = dynamic_map().to(places.device)[places.int()]
    return values * largest.repeat_interleave(BLOCK_OF_BLOCKS)[: len(values)]


@cache
def dynamic_map() -> Tensor:
    """Return the 256 values of dynamic 8-bit quantisation (Dettmers 2016, "8-bit approximations for parallelism").

    For each of seven powers of ten: the means of steps from 0.1 to 1, twice as fine as for the last power, on both
    sides of zero. To these, 0 and 1 are added.
    """
    values = [0.0, 1.0]
    with real_contents():
        for power in range(7):
            edges = torch.linspace(0.1, 1, 2**power + 1, dtype=torch.float32)
            means = (edges[:-1] + edges[1:]) / 2.0
            scale = 10.0 ** (power - 6)
            values += (scale * means).tolist() + (-scale * means).tolist()
        return torch.tensor(sorted(values), dtype=torch.float32)
