"""GPT-VAE's injection: rows in front of the sequence, as a soft prompt made from the code."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from lvlm.interfaces import Conditioning, Injection, InjectionParams, PortName, Slots


class Prefix(Injection):
    """embedding [B, S, P/S · D] ─ cut into rows ─ + learned base ─► prefix [B, P, D] at positions -P..-1.

    The base tells the rows apart, and keeps them away from zero, where the gradient of an RMSNorm explodes.
    """

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.embedding_dim, self.prefix_rows = width * length, length
        self.base_PD = nn.Parameter(torch.empty(length, width))
        nn.init.normal_(self.base_PD, std=0.02)

    def forward(
        self, embedding_BSC: Tensor, positions_T: Tensor, keep_B: Tensor | None = None
    ) -> Conditioning:
        """Conditioning of the given positions from the embeddings of codes [B, S, C]. A prefix is the same
        for all positions.
        """
        rows_BPD = rearrange(embedding_BSC, "B S (P D) -> B (S P) D", P=self.prefix_rows)
        return Conditioning(prefix_BPD=rows_BPD + self.base_PD, prefix_keep_B=keep_B)


class PrefixParams(InjectionParams):
    """Rows in front of the sequence, at negative positions (GPT-VAE)."""

    kind: Literal["prefix"] = "prefix"
    ports: ClassVar[frozenset[PortName]] = frozenset({"prefix"})
    needs_fixed_slots: ClassVar[bool] = True
    needs_block: ClassVar[bool] = True
    length: int = Field(default=1, ge=1)
    """Rows of the prefix."""

    def build(self, *, width: int, slots: Slots) -> Prefix:
        """The injection for a stack of that width."""
        assert slots.tokens is None, slots
        return Prefix(width, self.length)
