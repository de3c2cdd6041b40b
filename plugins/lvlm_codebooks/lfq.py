"""Lookup-free quantization (Yu et al. 2023, MAGVIT-v2, arXiv 2310.05737, section 3.1)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from lvlm_codebooks.signs import Signs, SignsParams


class LFQ(Signs):
    """numbers z [B, S, H] ─ sign ─► a corner of the cube [-1, 1]^H, with the gradient of z (eq. 3).

    There is no codebook to learn. The entropy penalty (eq. 5) and a commitment, which keeps z near the
    corners, are those of `lvlm_codebooks.signs`, which says how its posterior and its usage of codes depart
    from the paper.
    """

    kind: ClassVar[str] = "lfq"

    def bounded(self, numbers_BSK: Tensor) -> Tensor:
        """The numbers themselves."""
        return numbers_BSK


class LFQParams(SignsParams):
    """One code a slot: the signs of its numbers, a corner of a cube (LFQ)."""

    kind: Literal["lfq"] = "lfq"
    makes: ClassVar[type[Signs]] = LFQ
    commitment: float = Field(default=0.25, ge=0)
    """Nats per squared distance that pull the numbers to their corner."""
