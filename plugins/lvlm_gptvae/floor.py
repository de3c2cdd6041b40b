"""GPT-VAE's loss: a KL floor per dimension (Kingma et al. 2016, arXiv 1606.04934, section 8)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from lvlm.interfaces import LossParams
from lvlm.objective import HingedELBO


class FloorParams(LossParams):
    """Cross-entropy plus the KL of each dimension above a floor (GPT-VAE)."""

    kind: Literal["floor"] = "floor"
    needs_latent: ClassVar[bool] = True
    floor_bits: float = Field(default=0.5, ge=0)
    """KL that costs nothing, in bits per unit (a dimension, or a bit) of a slot, in every row."""
    beta: float = Field(default=1.0, ge=0)
    """Weight of the KL above the floor, in nats of cross-entropy per nat."""
    beta_warmup_steps: int = Field(default=0, ge=0)
    """Steps over which beta rises linearly from 0."""

    def build(self) -> HingedELBO:
        """The loss."""
        return HingedELBO(
            budget_bits=self.floor_bits, per="unit", beta=self.beta, beta_warmup_steps=self.beta_warmup_steps
        )
