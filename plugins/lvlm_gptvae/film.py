"""Feature-wise modulation: the code scales and shifts what the norms of blocks put out."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from lvlm.interfaces import BlockInjectionParams, Conditioning, Injection, PortName, Slots
from lvlm.nn import spread


class Film(Injection):
    """norm(x) becomes norm(x) * (1 + scale) + offset in both norms of a block: FiLM (Perez et al. 2018, arXiv
    1709.07871), as in the adaptive norm of DiT (Peebles and Xie 2023, arXiv 2212.09748).

    embedding [B, S, 2 D] ─ spread over positions ─ cut ─► scale [B, T, D], offset [B, T, D]

    Deviations: per position, and not per row. Scale and offset are the embedding of the code itself, without
    a layer between. Both norms of a block get the same. DiT's gate of the residual is left out: zero
    embeddings already leave a block as it is.
    """

    def __init__(self, width: int, slots: Slots) -> None:
        super().__init__()
        self.embedding_dim, self.slots = 2 * width, slots

    def forward(
        self, embedding_BSC: Tensor, positions_T: Tensor, keep_B: Tensor | None = None
    ) -> Conditioning:
        """Conditioning of the given positions from the embeddings of codes [B, S, C]."""
        scale_BTD, offset_BTD = spread(embedding_BSC, self.slots, positions_T, keep_B).chunk(2, dim=-1)
        return Conditioning(scale_BTD=scale_BTD, offset_BTD=offset_BTD)


class FilmParams(BlockInjectionParams):
    """Scales and shifts the outputs of a block's norms (FiLM, adaptive norm)."""

    kind: Literal["film"] = "film"
    ports: ClassVar[frozenset[PortName]] = frozenset({"scale_shift"})

    def build(self, *, width: int, slots: Slots) -> Film:
        """The injection for a stack of that width."""
        return Film(width, slots)
