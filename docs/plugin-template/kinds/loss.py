"""The loss `my_kind`: cross-entropy plus beta times the KL, the ELBO of a beta-VAE (Higgins et al. 2017).

It works as it stands. CHANGE marks where yours begins.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from lvlm.hookspecs import hookimpl
from lvlm.interfaces import Batch, Loss, LossParams, Output, Register, Terms
from lvlm.objective import real_kl, reconstruction


class MyKind(Loss):
    """(cross-entropy + beta · KL), summed over the batch in nats, per target token of the whole step."""

    def __init__(self, *, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, output: Output, batch: Batch, *, num_tokens: int, step: int) -> Terms:
        """The loss of this micro-batch, and the sums that are logged; `num_tokens` counts the targets of the
        step.
        """
        total, sums = reconstruction(output, batch)
        kl_BSd = real_kl(output)  # of slots with a real token; None where the model has no latent
        if kl_BSd is not None:
            # CHANGE: what of the KL is charged, and how. 'kl' stays raw; 'kl_hinged' is what is above a
            # budget; 'kl_priced' is the KL times the derivative of `total` with respect to it.
            kl = kl_BSd.sum()
            total = total + self.beta * kl
            sums |= {"kl": kl.detach(), "kl_hinged": kl.detach(), "kl_priced": self.beta * kl.detach()}
        return Terms(total / num_tokens, sums)


class MyKindParams(LossParams):
    """Cross-entropy plus beta times the KL."""

    kind: Literal["my_kind"] = "my_kind"
    needs_latent: ClassVar[bool] = True
    # CHANGE: options, each with a range and a docstring, which is its help.
    beta: float = Field(default=1.0, ge=0)
    """Nats of cross-entropy that a nat of KL costs; at 1 the loss is the negative ELBO."""

    def build(self, *, width: int, vocab: int) -> MyKind:
        """The loss; one with layers of its own needs the width of hiddens and the size of the vocabulary."""
        return MyKind(beta=self.beta)


@hookimpl
def register_losses(register: Register) -> None:
    """Supply the loss."""
    register(MyKindParams)
