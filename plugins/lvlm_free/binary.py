"""Independent bits (F25 section 3.3): sampled, embedded by tables, with a choice of gradient estimators.

| estimator | gradient to the logits | an estimate of |
|---|---|---|
| `exact` | slope of the expectation over all codes of a group, the decoder's gradient held (the paper's) | the exact gradient, unbiased where the decoder is linear in the embedding and groups are added |
| `bitwise` | the same, over each bit with the other sampled bits held | the exact gradient, unbiased where the decoder is linear, with another bias than `exact` where it bends; noisier, and without the cost of 2^n rows |
| `gumbel` | that of a binary concrete sample, straight through (Maddison et al. 2017, arXiv 1611.00712; Jang et al. 2017, arXiv 1611.01144) | biased; a low temperature trades bias for variance |
| `reinforce` | score function with the other rows as baseline, see `lvlm.objective.score_function` | the exact gradient, unbiased for any decoder; the noisiest |

The value is the same in all: the rows that the sampled bits select.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from lvlm.errors import UserError, one_of
from lvlm.interfaces import (
    Latent,
    Quantizer,
    QuantizerParams,
    Schedule,
    least_of,
    uniform,
    value_at,
)
from lvlm.objective import bernoulli_kl, full_precision, wide
from lvlm_free.mapper import group_sizes, look_up

Estimator = Literal["exact", "bitwise", "gumbel", "reinforce"]


class Binary(Quantizer):
    """Independent bits, embedded by tables.

    logits [B, S, H] ─ sample bits ─ index ─ look up, add groups ─► embedding [B, S, C]

    Codes are int64 indices [B, S] in [0, 2^H).
    """

    def __init__(
        self,
        *,
        bits: int,
        bits_per_group: int,
        embedding_dim: int,
        embedding_std: float,
        estimator: Estimator = "exact",
        temperature: Schedule = 1.0,
    ) -> None:
        super().__init__()
        self.posterior_dim = self.prior_dim = self.kl_dim = self.bits = bits
        self.num_codes = 2**bits
        self.units = tuple(f"bit {bit}" for bit in range(bits))
        self.prior_words = (
            f"bit h of a code, of value 2^h, is 1 with probability sigmoid(number h), h from 0 to "
            f"{bits - 1}; "
            f"with all-zero numbers a code is a uniform integer from 0 to {2**bits - 1}"
        )
        self.embedding_dim, self.bits_per_group = embedding_dim, bits_per_group
        self.estimator, self.temperature = one_of(estimator, Estimator, "estimator"), temperature
        self.at_step(0)
        rows = sum(2**n for n in group_sizes(bits, bits_per_group))
        self.table_RC = nn.Parameter(torch.zeros(rows, embedding_dim))
        if embedding_std:
            nn.init.normal_(self.table_RC, std=embedding_std)

    def at_step(self, step: int) -> None:
        """The temperature of this step."""
        self.temperature_now = value_at(self.temperature, step)

    def table_parameters(self) -> Iterable[nn.Parameter]:
        """The code tables, listed by themselves in every parameter count."""
        return (self.table_RC,)

    def _bits_of(self, codes_BS: Tensor) -> Tensor:
        return (codes_BS[..., None] >> torch.arange(self.bits, device=codes_BS.device)) & 1

    def _rows_of(self, bits_BSH: Tensor) -> Tensor:
        """Rows of the stacked tables, [B * S, G]."""
        bit = torch.arange(self.bits, device=bits_BSH.device)
        values = bits_BSH << (bit % self.bits_per_group)
        groups = -(-self.bits // self.bits_per_group)
        padded = F.pad(values, (0, groups * self.bits_per_group - self.bits))
        rows: Tensor = padded.reshape(-1, groups, self.bits_per_group).sum(-1)
        return rows + (1 << self.bits_per_group) * torch.arange(groups, device=rows.device)

    def _draw(self, logits_BSH: Tensor, generator: torch.Generator | None) -> Tensor:
        """L + logistic noise, [B, S, H]: above zero where the bit is 1."""
        noise = uniform(logits_BSH.shape, generator, device=logits_BSH.device, dtype=logits_BSH.dtype)
        return logits_BSH + torch.logit(noise)

    def _latent(self, bits_BSH: Tensor, logits_BSH: Tensor, products: torch.dtype | None = None) -> Latent:
        embedding_NC = look_up(
            logits_BSH.reshape(-1, self.bits),
            self.table_RC,
            self._rows_of(bits_BSH),
            self.bits_per_group,
            bitwise=self.estimator == "bitwise",
            products=products,
        )
        codes_BS = (bits_BSH << torch.arange(self.bits, device=bits_BSH.device)).sum(-1)
        return Latent(codes_BS, embedding_NC.view(*codes_BS.shape, self.embedding_dim))

    def forward(
        self, posterior_BSK: Tensor, prior_BSJ: Tensor, generator: torch.Generator | None = None
    ) -> Latent:
        """Draw from the posterior, differentiably, with the KL to the prior in nats."""
        with full_precision(posterior_BSK):
            logits_BSH, prior_BSH = wide(posterior_BSK), wide(prior_BSJ)
            noisy_BSH = self._draw(logits_BSH, generator)
            slopes_from = logits_BSH
            if self.estimator == "gumbel":
                slopes_from = noisy_BSH / self.temperature_now
            elif self.estimator == "reinforce":
                slopes_from = logits_BSH.detach()
            # Numbers in bfloat16 come from a model under autocast, whose products are.
            half = posterior_BSK.dtype if posterior_BSK.dtype != logits_BSH.dtype else None
            latent = self._latent((noisy_BSH > 0).long(), slopes_from, half)
            if self.estimator == "reinforce":
                latent.score_BS = self.log_prob(latent.codes, logits_BSH)
            latent.kl_BSd = bernoulli_kl(logits_BSH, prior_BSH)
            latent.posterior_BSK, latent.prior_BSJ = logits_BSH, prior_BSH
        return latent

    def sample(self, prior_BSJ: Tensor, generator: torch.Generator | None = None) -> Latent:
        """Draw from the prior, without KL."""
        logits_BSH = wide(prior_BSJ)
        latent = self._latent((self._draw(logits_BSH, generator) > 0).long(), logits_BSH.detach())
        latent.prior_BSJ = logits_BSH
        return latent

    def given(self, codes: Tensor) -> Latent:
        """Indices [B, S], int64, each in [0, 2^bits)."""
        if codes.is_floating_point() or codes.dtype == torch.bool or codes.ndim != 2:
            raise UserError(
                f"binary codes are integer indices of shape [rows, slots], not {codes.dtype} of shape "
                f"{list(codes.shape)}"
            )
        if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < 2**self.bits):
            low, high = int(codes.min()), int(codes.max())
            got = f"{low}" if low == high else f"{low} to {high}"
            raise UserError(f"a code of {self.bits} bits is an index from 0 to {2**self.bits - 1}; got {got}")
        bits_BSH = self._bits_of(codes.long())
        return self._latent(bits_BSH, bits_BSH.new_zeros(bits_BSH.shape, dtype=self.table_RC.dtype))

    def embed(self, codes: Tensor) -> Tensor:
        """Embedding [B, S, C] of codes that are known to be right. Plain look-ups."""
        rows = 2**self.bits_per_group  # of each group's table; the last may have fewer, and as many values
        groups = range(-(-self.bits // self.bits_per_group))
        rows_BSG = torch.stack([codes // rows**group % rows + rows * group for group in groups], dim=-1)
        return F.embedding(rows_BSG, self.table_RC).sum(-2)

    def divergence(self, latent: Latent, prior_BSJ: Tensor) -> Tensor:
        """KL [B, S, H], nats, of the posterior behind a latent to other prior numbers."""
        assert latent.posterior_BSK is not None
        with full_precision(prior_BSJ):
            return bernoulli_kl(wide(latent.posterior_BSK), wide(prior_BSJ))

    def log_prob(self, codes: Tensor, numbers: Tensor) -> Tensor:
        """Log-probability of codes under numbers, [B, S], nats."""
        with full_precision(numbers):
            logits_BSH = wide(numbers)
            signs_BSH = 2 * self._bits_of(codes) - 1
            log_prob_BS: Tensor = F.logsigmoid(logits_BSH * signs_BSH).sum(-1)
            return log_prob_BS


class BinaryParams(QuantizerParams):
    """Independent bits, embedded by a table of all codes, or by a table per group of bits (FREE)."""

    kind: Literal["binary"] = "binary"
    bits: int = Field(default=8, ge=1, le=48)
    """Bits H of a slot."""
    bits_per_group: int | None = Field(default=None, ge=1, le=16)
    """Bits that share a table of 2^n rows; all bits (the paper's joint map) unless given."""
    embedding_std: float = Field(default=0.0, ge=0)
    """Standard deviation of the table at the start; 0 makes step 0 equal the baseline."""
    estimator: Estimator = "exact"
    """How the gradient reaches the logits: 'exact' (the paper's), 'bitwise', 'gumbel' or 'reinforce'."""
    temperature: Schedule = 1.0
    """Temperature of the estimator 'gumbel': a number, or {start, end, steps}; above 0."""

    @model_validator(mode="after")
    def _table_fits(self) -> Self:
        if self.bits > 16 and self.bits_per_group is None:
            raise ValueError(
                f"a joint table of 2^{self.bits} rows is too large; set bits_per_group, at most 16"
            )
        if self.bits_per_group is not None and self.bits_per_group > self.bits:
            raise ValueError(f"bits_per_group {self.bits_per_group} exceeds bits {self.bits}")
        if least_of(self.temperature) <= 0:
            raise ValueError("temperature must stay above 0")
        if self.estimator != "gumbel" and self.temperature != 1.0:
            raise ValueError(f"temperature does nothing with estimator {self.estimator!r}")
        return self

    @property
    def scores_codes(self) -> bool:
        """Under 'reinforce'."""
        return self.estimator == "reinforce"

    @classmethod
    def example(cls) -> Self:
        """Three bits in two groups of unequal size."""
        return cls(bits=3, bits_per_group=2)

    def build(self, *, embedding_dim: int) -> Binary:
        """The quantizer whose codes become vectors of that width."""
        return Binary(
            bits=self.bits,
            bits_per_group=self.bits_per_group or self.bits,
            embedding_dim=embedding_dim,
            embedding_std=self.embedding_std,
            estimator=self.estimator,
            temperature=self.temperature,
        )
