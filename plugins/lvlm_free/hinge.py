"""FREE's loss: the KL of each slot above a budget (F25 eq. 5)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from lvlm.interfaces import LossParams
from lvlm.objective import HingedELBO


class HingeParams(LossParams):
    """Cross-entropy plus the KL above a budget per slot, or per sequence (FREE)."""

    kind: Literal["hinge"] = "hinge"
    needs_latent: ClassVar[bool] = True
    budget_bits: float = Field(default=0.5, ge=0)
    """KL that costs nothing, in bits per slot."""
    per: Literal["slot", "sequence"] = "slot"
    """Whether each slot has its budget or a sequence shares the sum of its slots' budgets."""
    beta: float = Field(default=1.0, ge=0)
    """Weight of the KL above the budget, in nats of cross-entropy per nat."""
    beta_warmup_steps: int = Field(default=0, ge=0)
    """Steps over which beta rises linearly from 0."""

    def build(self) -> HingedELBO:
        """The loss."""
        return HingedELBO(
            budget_bits=self.budget_bits,
            per=self.per,
            beta=self.beta,
            beta_warmup_steps=self.beta_warmup_steps,
        )
