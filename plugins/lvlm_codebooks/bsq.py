"""Binary spherical quantization (Zhao et al. 2024, arXiv 2406.07548, section 3)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lvlm_codebooks.signs import Signs, SignsParams

SHORTEST = 1e-3


class BSQ(Signs):
    """numbers z [B, S, H] ─ u = z / |z| ─ sign ─► sign(u) / sqrt(H), with the gradient of u.

    Numbers and codes lie on the unit sphere, which bounds the distance between them, so no commitment is
    needed. The entropy penalty (section 3.2) is that of `lvlm_codebooks.signs`, which says how its posterior
    and its usage of codes depart from the paper. Numbers aren't made longer than 1000-fold, so that the
    gradient of a slot at zero is finite.
    """

    kind: ClassVar[str] = "bsq"

    def bounded(self, numbers_BSK: Tensor) -> Tensor:
        """The numbers, on the unit sphere."""
        return F.normalize(numbers_BSK, dim=-1, eps=SHORTEST)


class BSQParams(SignsParams):
    """One code a slot: the signs of its numbers, on the unit sphere (BSQ)."""

    kind: Literal["bsq"] = "bsq"
    makes: ClassVar[type[Signs]] = BSQ
    spherical: ClassVar[bool] = True
    # A single number has no direction but its sign, and so no gradient.
    bits: int = Field(default=8, ge=2, le=16)
    """Bits H of a slot: posterior numbers. A prior has a number for each of the 2^H codes."""
    commitment: float = Field(default=0.0, ge=0)
    """Nats per squared distance that pull the numbers' direction to its code."""
