"""The plainest port: the code is added to the hidden at the seam."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from lvlm.interfaces import BlockInjectionParams, Conditioning, Injection, PortName, Slots
from lvlm.nn import spread


class Add(Injection):
    """embedding [B, S, D] ─ spread over positions ─► added to the hidden [B, T, D]."""

    def __init__(self, width: int, slots: Slots) -> None:
        super().__init__()
        self.embedding_dim, self.slots = width, slots

    def forward(
        self, embedding_BSC: Tensor, positions_T: Tensor, keep_B: Tensor | None = None
    ) -> Conditioning:
        """Conditioning of the given positions from the embeddings of codes [B, S, C]."""
        return Conditioning(add_BTD=spread(embedding_BSC, self.slots, positions_T, keep_B))


class AddParams(BlockInjectionParams):
    """Added to the hidden at the seam."""

    kind: Literal["add"] = "add"
    ports: ClassVar[frozenset[PortName]] = frozenset({"add"})
    needs_block: ClassVar[bool] = False

    def build(self, *, width: int, slots: Slots) -> Add:
        """The injection for a stack of that width."""
        return Add(width, slots)
