"""A bias on the logits: the code speaks to the head alone."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from lvlm.interfaces import Conditioning, Injection, InjectionParams, PortName, Slots
from lvlm.nn import spread


class Logits(Injection):
    """embedding [B, S, D] ─ spread over positions ─ the head's own matrix ─► added to the logits [B, T, V].

    logits = W (norm(x) + r) = W norm(x) + W r: the bias has the rank of the hidden. As the log-linear factor
    of a topic in TopicRNN (Dieng et al. 2017, arXiv 1611.01702), which has a matrix of its own.
    """

    def __init__(self, width: int, slots: Slots) -> None:
        super().__init__()
        self.embedding_dim, self.slots = width, slots

    def forward(
        self, embedding_BSC: Tensor, positions_T: Tensor, keep_B: Tensor | None = None
    ) -> Conditioning:
        """Conditioning of the given positions from the embeddings of codes [B, S, C]."""
        return Conditioning(logits_BTD=spread(embedding_BSC, self.slots, positions_T, keep_B))


class LogitsParams(InjectionParams):
    """A bias on the logits, through the head's own matrix."""

    kind: Literal["logits"] = "logits"
    ports: ClassVar[frozenset[PortName]] = frozenset({"logits"})

    def blocks(self, seam: int, layers: int) -> tuple[int, ...]:
        """The place behind the last block."""
        return (layers,)

    def build(self, *, width: int, slots: Slots) -> Logits:
        """The injection for a stack of that width."""
        return Logits(width, slots)
