"""A memory made from the code, which blocks attend to."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from lvlm.interfaces import BlockInjectionParams, Conditioning, Injection, PortName, Slots


class CrossAttention(Injection):
    """embedding [B, S, M/S · D] ─ cut into rows ─► memory [B, M, D]; learned names tell the rows apart.

    After the memory scheme of Optimus (Li et al. 2020, arXiv 2004.04092), in which
    every layer attends to vectors made from the code.

    Deviations: Optimus puts the vectors among the keys and values of self-attention; here a block has a
    cross-attention of its own (`lvlm.nn.MemoryAttention`), so that zero embeddings leave the decoder as it
    is. Optimus makes other vectors for every layer: `shared: false`.
    """

    def __init__(self, width: int, rows: int) -> None:
        super().__init__()
        self.embedding_dim, self.memory_rows = width * rows, rows
        self.key_MD = nn.Parameter(torch.empty(rows, width))
        nn.init.normal_(self.key_MD)

    def forward(
        self, embedding_BSC: Tensor, positions_T: Tensor, keep_B: Tensor | None = None
    ) -> Conditioning:
        """Conditioning from the embeddings of codes [B, S, C]. A memory is the same for all positions."""
        rows_BMD = rearrange(embedding_BSC, "B S (M D) -> B (S M) D", M=self.memory_rows)
        return Conditioning(memory_BMD=rows_BMD, memory_key_MD=self.key_MD, memory_keep_B=keep_B)


class CrossAttentionParams(BlockInjectionParams):
    """Rows of a memory that blocks attend to by cross-attention (after Optimus)."""

    kind: Literal["cross_attention"] = "cross_attention"
    ports: ClassVar[frozenset[PortName]] = frozenset({"memory"})
    needs_fixed_slots: ClassVar[bool] = True
    rows: int = Field(default=1, ge=1)
    """Rows of the memory."""

    def build(self, *, width: int, slots: Slots) -> CrossAttention:
        """The injection for a stack of that width."""
        assert slots.tokens is None, slots
        return CrossAttention(width, self.rows)
