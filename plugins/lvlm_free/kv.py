"""FREE's injection: into what the keys and values of one block are made from (F25 section 3.2)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from torch import Tensor

from lvlm.errors import one_of
from lvlm.interfaces import (
    BlockInjectionParams,
    Case,
    Conditioning,
    Injection,
    PortName,
    Remedy,
    Slots,
)
from lvlm.nn import spread


class KV(Injection):
    """Block `seam` takes its queries from x and its keys and values from x + r.

    embedding [B, S, D] ─ spread over positions ─► kv [B, T, D]

    Args:
        norm: 'sum' normalises x + r, 'hidden' normalises x and adds r after; the paper leaves it open.
    """

    def __init__(self, width: int, slots: Slots, norm: Literal["sum", "hidden"]) -> None:
        super().__init__()
        self.embedding_dim, self.slots = width, slots
        self.norm = one_of(norm, ("sum", "hidden"), "norm")

    def forward(
        self, embedding_BSC: Tensor, positions_T: Tensor, keep_B: Tensor | None = None
    ) -> Conditioning:
        """Conditioning of the given positions from the embeddings of codes [B, S, C]."""
        kv_BTD = spread(embedding_BSC, self.slots, positions_T, keep_B)
        return Conditioning(kv_BTD=kv_BTD) if self.norm == "sum" else Conditioning(kv_normed_BTD=kv_BTD)


class KVParams(BlockInjectionParams):
    """Into the keys and values of the block at the seam (FREE)."""

    kind: Literal["kv"] = "kv"
    ports: ClassVar[frozenset[PortName]] = frozenset({"kv"})
    norm: Literal["sum", "hidden"] = "sum"
    """What the block's norm sees: the hidden plus the code, or the hidden alone with the code added after."""

    def remedies(self, case: Case) -> Iterator[Remedy]:
        """The plainest port, then the other norm."""
        if case.trouble == "unread":
            where = "(1 MB of text, width 64, 600 steps)"
            yield Remedy(("kind=add",), f"read in 3 of 3 seeds, 'kv' with its defaults in 2 of 3 {where}")
            if self.norm == "sum":
                yield Remedy(
                    ("norm=hidden",), f"read in 2 of 3 seeds, and beginning to be in the third {where}"
                )

    def build(self, *, width: int, slots: Slots) -> KV:
        """The injection for a stack of that width."""
        return KV(width, slots, self.norm)
