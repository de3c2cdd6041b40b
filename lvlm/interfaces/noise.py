"""Random numbers that parts draw. Under a `RowGenerator` a row's are its own, whatever rows are beside it.

    seed, step, row ─► RowGenerator ─► uniform, normal, exponential ─► codes, dropout

A part that draws by these three functions trains alike however the rows of a step are divided into
micro-batches and over processes. The bits of a row are SplitMix64's (Steele, Lea and Flood 2014, Fast
Splittable Pseudorandom Number Generators): a hash of the row's seed and a counter, in integers alone, so
they are computed for all rows at once, and are the same on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor


def _signed(word: int) -> int:
    return word - (word >> 63 << 64)


GOLDEN, FIRST, SECOND = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""SplitMix64's increment and multipliers, as torch's int64 holds them."""


class RowGenerator(torch.Generator):
    """A generator for batches of rows. Each row has its own seed, and nothing else decides what it draws.

    It serves `uniform`, `normal` and `exponential`, for shapes that begin with its rows. For torch's own
    functions it is a generator like any other, seeded by the first row: they mix the rows.

    Args:
        seeds: one for each row, from 0 to 2^63 - 1; seeds of neighbours shouldn't be, so hash what they are
            made from.
        device: where numbers are drawn.
    """

    def __new__(cls, seeds: Sequence[int], device: torch.device | str = "cpu") -> Self:  # noqa: ARG004
        """A generator on the device. torch's own takes its device here, and no seeds."""
        return super().__new__(cls, device)  # type: ignore[call-arg]

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.manual_seed(seeds[0])
        self._seed_B = torch.tensor(seeds, dtype=torch.int64, device=device)
        self._drawn = 0

    def bits(self, shape: Sequence[int]) -> Tensor:
        """64 random bits for each place of a shape [B, …], as int64.

        Raises:
            ValueError: the shape has another number of rows.
        """
        rows = len(self._seed_B)
        if not shape or shape[0] != rows:
            raise ValueError(f"this generator draws for {rows} rows: the shape {list(shape)} must begin so")
        count = math.prod(shape[1:])
        at_N = torch.arange(self._drawn, self._drawn + count, device=self._seed_B.device)
        self._drawn += count
        x_BN = self._seed_B[:, None] + (at_N + 1) * GOLDEN
        x_BN = (x_BN ^ _shifted(x_BN, 30)).mul_(FIRST)
        x_BN = (x_BN ^ _shifted(x_BN, 27)).mul_(SECOND)
        return (x_BN ^ _shifted(x_BN, 31)).view(*shape)


def _shifted(x: Tensor, by: int) -> Tensor:
    """Bits moved to the right, zeros from the left: torch's own shift would repeat the sign."""
    return (x >> by).bitwise_and_((1 << (64 - by)) - 1)


def uniform(
    shape: Sequence[int],
    generator: torch.Generator | None,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniform numbers in [0, 1).

    Args:
        shape: of what is returned; rows come first.
        generator: by row if it is a `RowGenerator`; torch's global one unless given.
        device: the generator's.
        dtype: a float type, which has all its digits.
    """
    if not isinstance(generator, RowGenerator):
        return torch.rand(shape, generator=generator, device=device, dtype=dtype)
    digits = 1 - int(math.log2(torch.finfo(dtype).eps))
    return _shifted(generator.bits(shape), 64 - digits).to(dtype).mul_(2.0**-digits)


def normal(
    shape: Sequence[int],
    generator: torch.Generator | None,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal numbers; arguments as for `uniform`."""
    if not isinstance(generator, RowGenerator):
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)
    length = exponential(shape, generator, device=device, dtype=dtype).mul_(2).sqrt_()  # Box and Muller 1958
    return length.mul_(uniform(shape, generator, device=device, dtype=dtype).mul_(2 * math.pi).cos_())


def exponential(
    shape: Sequence[int],
    generator: torch.Generator | None,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Exponential numbers of mean 1, above 0; arguments as for `uniform`. Minus their logarithm is Gumbel
    noise.
    """
    if not isinstance(generator, RowGenerator):
        return torch.empty(shape, device=device, dtype=dtype).exponential_(generator=generator)
    u = uniform(shape, generator, device=device, dtype=torch.float64)
    return u.neg_().log1p_().neg_().clamp_(min=2.0**-54).to(dtype)  # small ones keep all their digits
