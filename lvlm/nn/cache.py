"""Keys and values of one block, written in place as decoding goes on."""

from __future__ import annotations

import copy

import torch
from torch import Tensor


class LayerCache:
    """A preallocated cache, [B, kv_heads, capacity, head_width] each for keys and values."""

    def __init__(self, rows: int, kv_heads: int, capacity: int, head_width: int, like: Tensor) -> None:
        self.keys = torch.empty(rows, kv_heads, capacity, head_width, dtype=like.dtype, device=like.device)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def append(self, k_BHUd: Tensor, v_BHUd: Tensor) -> tuple[Tensor, Tensor]:
        """Take in the newest keys and values; return all so far."""
        start, self.length = self.length, self.length + k_BHUd.shape[2]
        capacity = self.keys.shape[2]
        assert self.length <= capacity, f"cache of {capacity} positions asked to hold {self.length}"
        self.keys[:, :, start : self.length] = k_BHUd
        self.values[:, :, start : self.length] = v_BHUd
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def part(self, rows: slice) -> LayerCache:
        """Some of the rows: a cache of its own length on the same memory."""
        view = copy.copy(self)
        view.keys, view.values = self.keys[rows], self.values[rows]
        return view

    def take(self, rows_B: Tensor) -> None:
        """Row i becomes a copy of what row `rows_B[i]` was."""
        for held in (self.keys, self.values):
            held[:, :, : self.length] = held[rows_B, :, : self.length]
