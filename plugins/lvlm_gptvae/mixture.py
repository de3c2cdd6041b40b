"""A learned mixture of Gaussians as a prior of vectors (Tomczak and Welling 2018, arXiv 1705.07120)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from lvlm.errors import UserError
from lvlm.interfaces import KLForm, Latent, Prior, PriorParams, Quantizer, exponential, normal
from lvlm.objective import full_precision, wide


class MixturePrior(Prior):
    """p(z) = sum over m of w_m N(z; mean_m, scale_m), the same in every slot and for every text.

    logits of the weights [M] ─► numbers [B, S, M], zero at the start: even weights

    The "MoG" prior of the paper (section 4.1), beside its VampPrior: means and scales are parameters, and not
    posteriors of made-up inputs. Scales start at 1 and means close to 0, apart from each other only so far
    that components can become different ones. The KL to a mixture has no closed form, so it is sampled.

    Args:
        dim: Z of the codes.
        components: M.
        spread: standard deviation of the means at the start; 0 would keep all components alike for ever.
    """

    sees_hidden = False
    kl: KLForm = "sampled"

    def __init__(self, *, dim: int, components: int, spread: float) -> None:
        super().__init__()
        self.logits_M = nn.Parameter(torch.zeros(components))
        self.mean_MZ = nn.Parameter(torch.zeros(components, dim))
        self.log_scale_MZ = nn.Parameter(torch.zeros(components, dim))
        nn.init.normal_(self.mean_MZ, std=spread)

    def forward(self, hidden_BSD: Tensor, before_BSC: Tensor | None = None) -> Tensor:
        """Logits of the weights, [B, S, M]."""
        return self.logits_M.expand(*hidden_BSD.shape[:2], -1)

    def sample(
        self, quantizer: Quantizer, numbers_BSJ: Tensor, generator: torch.Generator | None = None
    ) -> Latent:
        """A component of each slot, and a vector of it."""
        with full_precision(numbers_BSJ):
            logits_BSM = wide(numbers_BSJ)
            device, dtype = logits_BSM.device, logits_BSM.dtype
            race_BSM = exponential(logits_BSM.shape, generator, device=device, dtype=dtype)
            which_BS = (logits_BSM.softmax(-1) / race_BSM).argmax(-1)  # as torch.multinomial does
            mean_BSZ, scale_BSZ = wide(self.mean_MZ)[which_BS], wide(self.log_scale_MZ).exp()[which_BS]
            noise_BSZ = normal(mean_BSZ.shape, generator, device=device, dtype=dtype)
            latent = quantizer.given(mean_BSZ + scale_BSZ * noise_BSZ)
            latent.prior_BSJ = logits_BSM
        return latent

    def log_prob(self, quantizer: Quantizer, codes: Tensor, numbers_BSJ: Tensor) -> Tensor:
        """Log-density of vectors [B, S, Z], [B, S], nats."""
        with full_precision(numbers_BSJ):
            weights = Categorical(logits=wide(numbers_BSJ), validate_args=False)
            each = Normal(wide(self.mean_MZ), wide(self.log_scale_MZ).exp(), validate_args=False)
            mixture: Any = MixtureSameFamily(weights, Independent(each, 1), validate_args=False)
            log_p_BS: Tensor = mixture.log_prob(wide(codes))
            return log_p_BS


class MixturePriorParams(PriorParams):
    """A mixture of diagonal Gaussians, learned, the same in every slot; the KL to it is sampled."""

    kind: Literal["mixture"] = "mixture"
    kl: ClassVar[KLForm] = "sampled"
    needs_continuous: ClassVar[bool] = True
    components: int = Field(default=8, ge=1, le=2**16)
    """Gaussians M in the mixture."""
    spread: float = Field(default=0.1, gt=0)
    """Standard deviation of their means at the start; their scales start at 1."""

    def build(self, *, width: int, quantizer: Quantizer) -> MixturePrior:
        """The prior of the quantizer's vectors, whatever the width.

        Raises:
            UserError: the quantizer's codes are indices.
        """
        if quantizer.code_dim is None:
            raise UserError(
                f"a mixture of Gaussians is a prior of vectors; codes of {type(quantizer).__name__} are "
                f"indices"
            )
        return MixturePrior(dim=quantizer.code_dim, components=self.components, spread=self.spread)
