"""Noise that belongs to a row: neither the rows beside it nor its length change it.

Shape legend: S slots, n numbers of a slot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

WEIGHING, RESAMPLING, PRIOR_CODES, POSTERIOR_CODES, TOKENS = range(1, 6)
"""What a row's noise is for; each has a stream of its own."""

SLOTS_A_DRAW = 16
"""Codes are drawn in blocks of so many slots: a longer row begins with a shorter one's noise."""


def generators(
    seeds: Sequence[int], purpose: int, device: torch.device, number: int = 0
) -> list[torch.Generator]:
    """Random generators, one for each seed; another purpose is another stream, and so is another number of a
    latent among several.
    """
    own = [number] if number else []
    return [
        torch.Generator(device=device).manual_seed(
            int(np.random.SeedSequence([seed, purpose, *own]).generate_state(1, np.uint64)[0] >> 1)
        )
        for seed in seeds
    ]


def block(numbers_Sn: Tensor, start: int) -> Tensor:
    """A block of SLOTS_A_DRAW slots of numbers from `start` on, zeros beyond the last."""
    numbers = numbers_Sn.new_zeros(SLOTS_A_DRAW, numbers_Sn.shape[-1])
    some = numbers_Sn[start : start + SLOTS_A_DRAW]
    numbers[: len(some)] = some
    return numbers


def noise_seed(seed: int, step: int, row: int, draw: int = 0) -> int:
    """Seed of a row's noise in training, from its place in the whole batch of the step; never a seed of
    weights. Of several draws of a row's codes the first has the seed of a single one.
    """
    words = f"noise {seed} {step} {row}" + (f" {draw}" if draw else "")
    digest = hashlib.blake2b(words.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
