"""The diagonal Gaussian, reparameterised (Kingma and Welling 2014, arXiv 1312.6114)."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from lvlm.errors import UserError, one_of
from lvlm.interfaces import Latent, Quantizer, QuantizerParams, normal
from lvlm.objective import full_precision, gaussian_kl, gaussian_log_prob, wide


class Gaussian(Quantizer):
    """numbers (mean, log-variance) [B, S, 2Z] ─ mean + sigma · noise ─ linear ─► embedding [B, S, C].

    Codes are vectors [B, S, Z]. The log-variance is softly bounded, bound · tanh(raw / bound), so that zero
    stays zero and no number makes a variance overflow.

    Args:
        variance: 'own' makes each slot's from its numbers; 'shared' learns one per dimension and a number
            fixes it, and then the posterior's numbers are the mean alone, [B, S, Z]. The prior always has
            both.
    """

    raw_log_variance_Z: Tensor

    def __init__(
        self,
        *,
        dim: int,
        embedding_dim: int,
        embedding_std: float,
        log_variance_bound: float,
        variance: Literal["own", "shared"] | float = "own",
    ) -> None:
        super().__init__()
        if isinstance(variance, bool) or not isinstance(variance, float | int):
            one_of(variance, ("own", "shared"), "variance", or_="a number")
        self.prior_dim = 2 * dim
        self.posterior_dim = 2 * dim if variance == "own" else dim
        self.can_be_prior = isinstance(variance, str) or variance == 1
        self.kl_dim = self.code_dim = self.dim = dim
        self.units = tuple(f"coordinate {number}" for number in range(dim))
        if variance == "shared":
            self.raw_log_variance_Z = nn.Parameter(torch.zeros(dim))
        elif not isinstance(variance, str):
            fixed = log_variance_bound * math.atanh(math.log(variance) / log_variance_bound)
            self.register_buffer("raw_log_variance_Z", torch.full((dim,), fixed), persistent=False)
        self.embedding_dim, self.log_variance_bound = embedding_dim, log_variance_bound
        self.prior_words = (
            f"the first {dim} numbers are means m, the others raw log-variances r; with b = "
            f"{log_variance_bound:g} a code is "
            f"m + exp(b tanh(r / b) / 2) times standard normal noise; with all-zero numbers it is standard "
            f"normal"
        )
        self.embedding = nn.Linear(dim, embedding_dim, bias=False)
        nn.init.normal_(self.embedding.weight, std=embedding_std)

    def _moments(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        numbers = wide(numbers)
        if numbers.shape[-1] == self.dim:  # a posterior whose variance isn't its own
            mean, raw = numbers, wide(self.raw_log_variance_Z).expand_as(numbers)
        else:
            mean, raw = numbers.chunk(2, dim=-1)
        return mean, self.log_variance_bound * torch.tanh(raw / self.log_variance_bound)

    def _draw(self, mean: Tensor, log_variance: Tensor, generator: torch.Generator | None) -> Latent:
        noise = normal(mean.shape, generator, device=mean.device, dtype=mean.dtype)
        codes_BSZ = mean + (log_variance / 2).exp() * noise
        return Latent(codes_BSZ, self.embedding(codes_BSZ))

    def forward(
        self, posterior_BSK: Tensor, prior_BSJ: Tensor, generator: torch.Generator | None = None
    ) -> Latent:
        """Draw from the posterior, differentiably, with the KL to the prior in nats."""
        with full_precision(posterior_BSK):
            q_mean, q_log_variance = self._moments(posterior_BSK)
            latent = self._draw(q_mean, q_log_variance, generator)
            latent.kl_BSd = gaussian_kl(q_mean, q_log_variance, *self._moments(prior_BSJ))
            latent.posterior_BSK, latent.prior_BSJ = wide(posterior_BSK), wide(prior_BSJ)
        return latent

    def sample(self, prior_BSJ: Tensor, generator: torch.Generator | None = None) -> Latent:
        """Draw from the prior, without KL."""
        with full_precision(prior_BSJ):
            latent = self._draw(*self._moments(prior_BSJ), generator)
            latent.prior_BSJ = wide(prior_BSJ)
        return latent

    def given(self, codes: Tensor) -> Latent:
        """Vectors [B, S, Z], finite floats."""
        if not codes.is_floating_point() or codes.ndim != 3 or codes.shape[-1] != self.dim:
            raise UserError(
                f"gaussian codes are floats of shape [rows, slots, {self.dim}], "
                f"not {codes.dtype} of shape {list(codes.shape)}"
            )
        if not bool(codes.isfinite().all()):
            raise UserError("a gaussian code holds NaN or infinity")
        with full_precision(codes):
            codes = codes.to(self.embedding.weight.dtype)
            return Latent(codes, self.embedding(codes))

    def embed(self, codes: Tensor) -> Tensor:
        """Embedding [B, S, C] of codes that are known to be right."""
        embedding_BSC: Tensor = self.embedding(codes)
        return embedding_BSC

    def divergence(self, latent: Latent, prior_BSJ: Tensor) -> Tensor:
        """KL [B, S, Z], nats, of the posterior behind a latent to other prior numbers."""
        assert latent.posterior_BSK is not None
        with full_precision(prior_BSJ):
            return gaussian_kl(*self._moments(latent.posterior_BSK), *self._moments(prior_BSJ))

    def log_prob(self, codes: Tensor, numbers: Tensor) -> Tensor:
        """Log-probability of codes under numbers, [B, S], nats."""
        with full_precision(numbers):
            return gaussian_log_prob(wide(codes), *self._moments(numbers)).sum(-1)


class GaussianParams(QuantizerParams):
    """Diagonal Gaussian with a linear embedding (GPT-VAE)."""

    kind: Literal["gaussian"] = "gaussian"
    continuous: ClassVar[bool] = True
    dim: int = Field(default=16, ge=1, le=2**20)
    """Dimensions Z of a slot."""
    embedding_std: float = Field(default=0.0, ge=0)
    """Standard deviation of the embedding's weights at the start; 0 makes step 0 independent of the code."""
    log_variance_bound: float = Field(default=10.0, gt=0)
    """The log-variance stays softly inside plus and minus this."""
    variance: Literal["own", "shared"] | Annotated[float, Field(gt=0)] = "own"
    """The posterior's: each slot's 'own', one learned per dimension ('shared'), or a fixed number. Other than
    1, a fixed one costs KL under a fixed prior whatever the mean is (Razavi et al. 2019, arXiv
    1901.03416)."""

    @model_validator(mode="after")
    def _bound_holds_the_variance(self) -> Self:
        if isinstance(self.variance, float) and abs(math.log(self.variance)) >= self.log_variance_bound:
            raise ValueError(
                f"the logarithm of variance {self.variance} lies outside log_variance_bound "
                f"{self.log_variance_bound}"
            )
        return self

    def build(self, *, embedding_dim: int) -> Gaussian:
        """The quantizer whose codes become vectors of that width."""
        return Gaussian(
            dim=self.dim,
            embedding_dim=embedding_dim,
            embedding_std=self.embedding_std,
            log_variance_bound=self.log_variance_bound,
            variance=self.variance,
        )
