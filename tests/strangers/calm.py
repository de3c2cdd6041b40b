"""A stranger's term that is added to any loss: a price for sure predictions."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from lvlm.hookspecs import hookimpl
from lvlm.interfaces import IGNORE, Batch, LossParams, Output, Register
from lvlm.objective import Addition


class Calm(Addition):
    """Minus the entropy of each prediction, nats (Pereyra et al. 2017, arXiv 1701.06548)."""

    def addition(self, output: Output, batch: Batch, *, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """See `lvlm.objective.Addition`."""
        log_p_BTV = output.logits_BTV.log_softmax(-1)
        entropy_BT = -(log_p_BTV.exp() * log_p_BTV).sum(-1)
        return -(entropy_BT * (batch.targets_BT != IGNORE)).sum(), {}


class CalmParams(LossParams):
    """A price for sure predictions, beside the cross-entropy."""

    kind: Literal["calm"] = "calm"
    may_be_added: ClassVar[bool] = True

    def build(self, *, width: int, vocab: int) -> Calm:
        """The loss; it has no layers."""
        return Calm()


@hookimpl
def register_losses(register: Register) -> None:
    """The one loss."""
    register(CalmParams)
