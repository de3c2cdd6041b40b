"""A categorical code, reparameterised: Gumbel-softmax, straight through (Jang et al. 2017, arXiv 1611.01144;
Maddison et al. 2017, arXiv 1611.00712).

With logits l, Gumbel noise g and a temperature t,

    c = argmax_n (l_n + g_n)                                a draw of softmax(l)
    y = softmax((l + g) / t)                                its relaxation (Jang, eq. 2)
    embedding = W[c], with the gradient of y W (Jang, section 2.2: straight-through)
    KL(q || p) = sum_n q_n (log q_n - log p_n)              closed form, of the categoricals

| estimator | gradient to the logits |
|---|---|
| `gumbel` | of y: biased; a low temperature trades bias for variance |
| `exact` | of softmax(l): the slope of the expectation over all codes, with the decoder's gradient held |
| `reinforce` | score function with the other rows as baseline, see `lvlm.objective.score_function` |

`exact` is unbiased where the decoder is linear in the embedding.

Deviations: codes are one of N in every pass, never the mixture y; and the KL is that of the categoricals, not
of the relaxed densities, so it needs no sample and the bounds are those of what is decoded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from lvlm.errors import one_of
from lvlm.interfaces import (
    Latent,
    Quantizer,
    QuantizerParams,
    Schedule,
    exponential,
    least_of,
    value_at,
)
from lvlm.objective import full_precision, wide
from lvlm_codebooks.indices import MOST_CODES, drawn, indices, log_categorical, prior_words

Estimator = Literal["gumbel", "exact", "reinforce"]


class Categorical(Quantizer):
    """logits [B, S, N] ─ + Gumbel noise ─ largest ─► code [B, S] ─ its row of a table ─► embedding [B, S, C].

    Codes are int64 indices [B, S] in [0, N). All-zero logits are the uniform prior.

    Args:
        codes: N.
        embedding_dim: width of the embedding.
        embedding_std: of the table at the start.
        estimator: how the gradient reaches the logits.
        temperature: of 'gumbel'.
    """

    def __init__(
        self,
        *,
        codes: int,
        embedding_dim: int,
        embedding_std: float,
        estimator: Estimator = "gumbel",
        temperature: Schedule = 1.0,
    ) -> None:
        super().__init__()
        self.num_codes = self.posterior_dim = self.prior_dim = self.codes = codes
        self.kl_dim = 1
        self.prior_words = prior_words(codes)
        self.embedding_dim = embedding_dim
        self.estimator, self.temperature = one_of(estimator, Estimator, "estimator"), temperature
        self.at_step(0)
        self.table_NC = nn.Parameter(torch.zeros(codes, embedding_dim))
        if embedding_std:
            nn.init.normal_(self.table_NC, std=embedding_std)

    def at_step(self, step: int) -> None:
        """The temperature of this step."""
        self.temperature_now = value_at(self.temperature, step)

    def table_parameters(self) -> Iterable[nn.Parameter]:
        """The table, listed by itself in every parameter count."""
        return (self.table_NC,)

    def forward(
        self, posterior_BSK: Tensor, prior_BSJ: Tensor, generator: torch.Generator | None = None
    ) -> Latent:
        """Draw from the posterior, differentiably, with the KL to the prior in nats."""
        with full_precision(posterior_BSK):
            posterior_BSK, prior_BSJ = wide(posterior_BSK), wide(prior_BSJ)
            log_q_BSN, log_p_BSN = posterior_BSK.log_softmax(-1), prior_BSJ.log_softmax(-1)
            noise = exponential(log_q_BSN.shape, generator, device=log_q_BSN.device, dtype=log_q_BSN.dtype)
            noisy_BSN = log_q_BSN - noise.log()
            codes_BS, q_BSN = noisy_BSN.argmax(-1), log_q_BSN.exp()
            embedding_BSC = self.embed(codes_BS)
            if self.estimator != "reinforce":
                soft_BSN = (
                    q_BSN if self.estimator == "exact" else (noisy_BSN / self.temperature_now).softmax(-1)
                )
                # The table's gradient comes by the row that was drawn, the logits' by all rows.
                embedding_BSC = embedding_BSC + (soft_BSN - soft_BSN.detach()) @ wide(self.table_NC.detach())
            return Latent(
                codes_BS,
                embedding_BSC,
                kl_BSd=(q_BSN * (log_q_BSN - log_p_BSN)).sum(-1, keepdim=True),
                posterior_BSK=posterior_BSK,
                prior_BSJ=prior_BSJ,
                score_BS=log_categorical(codes_BS, posterior_BSK) if self.estimator == "reinforce" else None,
            )

    def sample(self, prior_BSJ: Tensor, generator: torch.Generator | None = None) -> Latent:
        """Draw from the prior, without KL."""
        with full_precision(prior_BSJ):
            prior_BSJ = wide(prior_BSJ)
            codes_BS = drawn(prior_BSJ, generator)
            return Latent(codes_BS, self.embed(codes_BS), prior_BSJ=prior_BSJ)

    def given(self, codes: Tensor) -> Latent:
        """Indices [B, S], int64, each in [0, N)."""
        codes = indices(codes, self.codes)
        return Latent(codes, self.embed(codes))

    def embed(self, codes: Tensor) -> Tensor:
        """Embedding [B, S, C] of codes that are known to be right. Plain look-ups."""
        return F.embedding(codes, self.table_NC)

    def log_prob(self, codes: Tensor, numbers: Tensor) -> Tensor:
        """Log-probability of codes under numbers, [B, S], nats."""
        with full_precision(numbers):
            return log_categorical(codes, wide(numbers))


class CategoricalParams(QuantizerParams):
    """One of N codes a slot, drawn from a categorical (Gumbel-softmax)."""

    kind: Literal["categorical"] = "categorical"
    codes: int = Field(default=64, ge=2, le=MOST_CODES)
    """How many codes there are: rows of the table, and numbers per slot."""
    embedding_std: float = Field(default=0.0, ge=0)
    """Standard deviation of the table at the start; 0 makes step 0 equal the baseline."""
    estimator: Estimator = "gumbel"
    """How the gradient reaches the logits: 'gumbel' (straight through), 'exact' or 'reinforce'."""
    temperature: Schedule = 1.0
    """Temperature of the estimator 'gumbel': a number, or {start, end, steps}; above 0."""

    @model_validator(mode="after")
    def _temperature_fits(self) -> Self:
        if least_of(self.temperature) <= 0:
            raise ValueError("temperature must stay above 0")
        if self.estimator != "gumbel" and self.temperature != 1.0:
            raise ValueError(f"temperature does nothing with estimator {self.estimator!r}")
        return self

    @classmethod
    def example(cls) -> Self:
        """Five codes."""
        return cls(codes=5)

    def build(self, *, embedding_dim: int) -> Categorical:
        """The quantizer whose codes become vectors of that width."""
        return Categorical(
            codes=self.codes,
            embedding_dim=embedding_dim,
            embedding_std=self.embedding_std,
            estimator=self.estimator,
            temperature=self.temperature,
        )
