"""The next token: from logits to one choice a row.

    logits ─ repetition penalty ─ temperature ─ top-k ─ top-p ─ min-p ─► probabilities ─► token

Shape legend: B rows, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lvlm.errors import UserError
from lvlm.objective import wide

LOWEST_TEMPERATURE = 1e-6  # below, logits divided by it overflow; nothing but the likeliest token is left


@dataclass(frozen=True)
class Sampling:
    """The choice of the next token; `lvlm.generate` describes the fields.

    top-p is of Holtzman et al. 2020 (arXiv 1904.09751), min-p of Nguyen et al. 2024 (arXiv 2407.01082), the
    repetition penalty of Keskar et al. 2019 (arXiv 1909.05858).

    Raises:
        UserError: a field is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UserError(
                f"temperature is {self.temperature}; it is 0 (the likeliest token) or more, and finite"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}; it is at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it is a share of the probability, above 0 and at most 1")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise UserError(f"min_p is {self.min_p}; it is a share of the largest probability, from 0 to 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise UserError(
                f"repetition_penalty is {self.repetition_penalty}; it is above 0 and finite, 1 for none"
            )

    def choose(self, logits_BV: Tensor, u_B: Tensor, seen_BV: Tensor | None = None) -> Tensor:
        """The next token of each row, [B], int64.

        Args:
            logits_BV: logits of the model.
            u_B: uniform in [0, 1), float64: all the noise there is.
            seen_BV: bool, the tokens that a row has already; needed for a repetition penalty.
        """
        if self.repetition_penalty != 1:
            assert seen_BV is not None
            less = torch.where(
                logits_BV > 0, logits_BV / self.repetition_penalty, logits_BV * self.repetition_penalty
            )
            logits_BV = torch.where(seen_BV, less, logits_BV)
        if self.temperature < LOWEST_TEMPERATURE:
            return logits_BV.argmax(-1)
        probability_BV = (logits_BV.double() / self.temperature).softmax(-1)
        for least_B1 in self._least(probability_BV):
            probability_BV = probability_BV * (probability_BV >= least_B1)
        sums_BV = probability_BV.cumsum(-1)
        chosen_B1 = torch.searchsorted(sums_BV, u_B[:, None] * sums_BV[:, -1:], right=True)
        return chosen_B1[:, 0].clamp(max=logits_BV.shape[-1] - 1)

    def _least(self, probability_BV: Tensor) -> list[Tensor]:
        """The smallest probability that each rule keeps, [B, 1]; ties are kept."""
        least = []
        if self.top_k is not None and self.top_k < probability_BV.shape[-1]:
            least.append(probability_BV.topk(self.top_k).values[:, -1:])
            probability_BV = probability_BV * (probability_BV >= least[-1])
        if self.top_p is not None and self.top_p < 1:
            sorted_BV = probability_BV.sort(-1, descending=True).values
            enough_B1 = self.top_p * probability_BV.sum(-1, keepdim=True)
            needed_B1 = (sorted_BV.cumsum(-1) < enough_B1).sum(-1, keepdim=True)
            least.append(sorted_BV.gather(-1, needed_B1.clamp(max=sorted_BV.shape[-1] - 1)))
        if self.min_p is not None:
            least.append(probability_BV.amax(-1, keepdim=True) * self.min_p)
        return least


def log_probs(logits_BV: Tensor, tokens_B: Tensor) -> Tensor:
    """Log-probability of each row's token under the model as it is, [B], nats."""
    return wide(logits_BV).log_softmax(-1).gather(-1, tokens_B[:, None])[:, 0]
