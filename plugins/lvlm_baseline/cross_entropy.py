"""Cross-entropy alone: the whole objective of a model without a latent."""

from __future__ import annotations

from typing import ClassVar, Literal

from lvlm.interfaces import Batch, Loss, LossParams, Output, Terms
from lvlm.objective import costless, reconstruction


class CrossEntropy(Loss):
    """Cross-entropy over the target tokens; a latent's KL is logged and costs nothing."""

    def forward(self, output: Output, batch: Batch, *, num_tokens: int, step: int) -> Terms:
        """Terms of a batch, in nats per target token of the whole step."""
        total, sums = reconstruction(output, batch)
        return Terms(total / num_tokens, sums | costless(output))


class CrossEntropyParams(LossParams):
    """Cross-entropy over the target tokens, nothing else."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    takes_several_latents: ClassVar[bool] = True

    @property
    def takes_sampled_kl(self) -> bool:
        """True: KL costs nothing."""
        return True

    def build(self, *, width: int = 0, vocab: int = 0) -> CrossEntropy:
        """The loss; it has no layers, whatever the width and the vocabulary."""
        return CrossEntropy()
