"""Keys and values of one block, written in place as decoding goes on."""

from __future__ import annotations

import copy

import torch
from torch import Tensor


class LayerCache:
    """A preallocated cache, [B, kv_heads, capacity, head_width] each for keys and values."""

    def __init__(self, rows: int, kv_heads: int, capacity: int, head_width: int, like: Tensor) -> None:
        # Zeros, not what was in memory: a masked NaN is NaN all the same.
        self.keys = torch.zeros(rows, kv_heads, capacity, head_width, dtype=like.dtype, device=like.device)
        self.values = torch.zeros_like(self.keys)
        self.rows_B = torch.arange(rows, device=like.device)
        self.length = 0
        self.at_B: Tensor | None = None
        self.memory: tuple[Tensor, Tensor] | None = None

    def hold_memory(self, rows: int) -> None:
        """Make room for the keys and values of so many rows of a memory, which the first tokens fill."""
        shape = (*self.keys.shape[:2], rows, self.keys.shape[3])
        self.memory = (self.keys.new_zeros(shape), self.keys.new_zeros(shape))

    def turn(self, at_B: Tensor, length: int) -> None:
        """From now on a row takes in one key at a time, at its own place `at_B`, and sees those up to it, of
        the first `length`: rows that begin with prompts of unequal lengths, or shapes that stay the same from
        step to step.
        """
        self.at_B, self.length = at_B, length

    def append(self, k_BHUd: Tensor, v_BHUd: Tensor) -> tuple[Tensor, Tensor]:
        """Take in the newest keys and values; return all so far."""
        if self.at_B is not None:
            assert k_BHUd.shape[2] == 1, f"{k_BHUd.shape[2]} keys a row"
            self.keys[self.rows_B, :, self.at_B] = k_BHUd[:, :, 0]
            self.values[self.rows_B, :, self.at_B] = v_BHUd[:, :, 0]
            return self.keys.narrow(2, 0, self.length), self.values.narrow(2, 0, self.length)
        start, self.length = self.length, self.length + k_BHUd.shape[2]
        capacity = self.keys.shape[2]
        assert self.length <= capacity, f"cache of {capacity} positions asked to hold {self.length}"
        # narrow, and not slices: a step of one token is made of some two hundred calls as small as these.
        self.keys.narrow(2, start, k_BHUd.shape[2]).copy_(k_BHUd)
        self.values.narrow(2, start, k_BHUd.shape[2]).copy_(v_BHUd)
        return self.keys.narrow(2, 0, self.length), self.values.narrow(2, 0, self.length)

    def mask(self, queries: int) -> Tensor | None:
        """What so many further queries may look at, bool, broadcast to [B, heads, queries, keys]; None where
        a causal block needs no telling: nothing is in the cache, or one query looks at all of it.
        """
        if self.at_B is not None:
            return (torch.arange(self.length, device=self.at_B.device) <= self.at_B[:, None])[:, None, None]
        if self.length == 0 or queries == 1:
            return None
        seen = torch.ones(queries, self.length + queries, dtype=torch.bool, device=self.keys.device)
        return seen.tril(self.length)

    def part(self, rows: slice) -> LayerCache:
        """Some of the rows: a cache of its own length on the same memory."""
        view = copy.copy(self)
        view.keys, view.values = self.keys[rows], self.values[rows]
        if self.memory is not None:
            view.memory = (self.memory[0][rows], self.memory[1][rows])
        return view

    def take(self, rows_B: Tensor) -> None:
        """Row i becomes a copy of what row `rows_B[i]` was."""
        for held in (self.keys, self.values):
            held[:, :, : self.length] = held[rows_B, :, : self.length]
        for held in self.memory or ():
            held.copy_(held[rows_B])
