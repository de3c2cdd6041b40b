"""A Laplace latent: sharper than the Gaussian at its mean, heavier in its tails."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lvlm.errors import UserError
from lvlm.hookspecs import hookimpl
from lvlm.interfaces import Latent, Quantizer, QuantizerParams, Register, exponential
from lvlm.objective import full_precision, wide

LOG_SCALE_BOUND = 10.0


def laplace_kl(q_mean: Tensor, q_log_scale: Tensor, p_mean: Tensor, p_log_scale: Tensor) -> Tensor:
    """KL(Laplace(q) || Laplace(p)) per dimension, nats, as a sum of two terms that are never negative."""
    log_ratio = q_log_scale - p_log_scale
    distance = (q_mean - p_mean).abs() * (-q_log_scale).exp()
    return log_ratio.expm1() - log_ratio + log_ratio.exp() * (distance + (-distance).expm1())


class Laplace(Quantizer):
    """numbers (mean, log-scale) [B, S, 2Z] ─ mean + scale · noise ─ linear ─► embedding [B, S, C].

    Codes are vectors [B, S, Z]. All-zero numbers are Laplace(0, 1), the prior.
    """

    def __init__(self, *, dim: int, embedding_dim: int) -> None:
        super().__init__()
        self.posterior_dim = self.prior_dim = 2 * dim
        self.kl_dim = self.code_dim = self.dim = dim
        self.units = tuple(f"coordinate {number}" for number in range(dim))
        self.embedding_dim = embedding_dim
        self.embedding = nn.Linear(dim, embedding_dim, bias=False)
        nn.init.zeros_(self.embedding.weight)  # step 0 doesn't depend on the code

    def _moments(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-scale; the log-scale is softly bounded, so that no number makes a scale overflow."""
        mean, raw = wide(numbers).chunk(2, dim=-1)
        return mean, LOG_SCALE_BOUND * torch.tanh(raw / LOG_SCALE_BOUND)

    def _draw(self, numbers: Tensor, generator: torch.Generator | None) -> Latent:
        mean, log_scale = self._moments(numbers)
        # The difference of two exponential variables; -log of a uniform number would be infinite at 0.
        one, two = (
            exponential(mean.shape, generator, device=mean.device, dtype=mean.dtype) for _ in range(2)
        )
        codes_BSZ = mean + log_scale.exp() * (one - two)
        return Latent(codes_BSZ, self.embedding(codes_BSZ))

    def forward(
        self, posterior_BSK: Tensor, prior_BSJ: Tensor, generator: torch.Generator | None = None
    ) -> Latent:
        """Draw from the posterior, differentiably, with the KL to the prior in nats."""
        with full_precision(posterior_BSK):
            latent = self._draw(posterior_BSK, generator)
            latent.kl_BSd = laplace_kl(*self._moments(posterior_BSK), *self._moments(prior_BSJ))
            latent.posterior_BSK, latent.prior_BSJ = wide(posterior_BSK), wide(prior_BSJ)
        return latent

    def sample(self, prior_BSJ: Tensor, generator: torch.Generator | None = None) -> Latent:
        """Draw from the prior, without KL."""
        with full_precision(prior_BSJ):
            latent = self._draw(prior_BSJ, generator)
            latent.prior_BSJ = wide(prior_BSJ)
        return latent

    def given(self, codes: Tensor) -> Latent:
        """Vectors [B, S, Z], finite floats."""
        if not codes.is_floating_point() or codes.ndim != 3 or codes.shape[-1] != self.dim:
            raise UserError(
                f"laplace codes are floats of shape [rows, slots, {self.dim}], "
                f"not {codes.dtype} of shape {list(codes.shape)}"
            )
        if not bool(codes.isfinite().all()):
            raise UserError("a laplace code holds NaN or infinity")
        codes = codes.to(self.embedding.weight.dtype)
        return Latent(codes, self.embedding(codes))

    def log_prob(self, codes: Tensor, numbers: Tensor) -> Tensor:
        """Log-probability of codes under numbers, [B, S], nats."""
        with full_precision(numbers):
            mean, log_scale = self._moments(numbers)
            distance = (wide(codes) - mean).abs() * (-log_scale).exp()
            return -(distance + log_scale + math.log(2)).sum(-1)


class LaplaceParams(QuantizerParams):
    """Independent Laplace variables with a linear embedding."""

    kind: Literal["laplace"] = "laplace"
    continuous: ClassVar[bool] = True
    dim: int = Field(default=16, ge=1, le=2**20)
    """Dimensions Z of a slot."""

    def build(self, *, embedding_dim: int) -> Laplace:
        """The quantizer whose codes become vectors of that width."""
        return Laplace(dim=self.dim, embedding_dim=embedding_dim)


@hookimpl
def register_quantizers(register: Register) -> None:
    """The Laplace latent."""
    register(LaplaceParams)
