"""The fixed and the linear prior, and what any prior remembers while codes are drawn one after another."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lvlm.interfaces import Prior, PriorParams, Quantizer


class FixedPrior(Prior):
    """All-zero numbers, which every family takes as its own standard distribution.

    Args:
        prior_dim: J.
    """

    sees_hidden = False

    def __init__(self, prior_dim: int) -> None:
        super().__init__()
        self.prior_dim = prior_dim

    def forward(self, hidden_BSD: Tensor, before_BSC: Tensor | None = None) -> Tensor:
        """Zeros [B, S, J]."""
        return hidden_BSD.new_zeros(()).expand(*hidden_BSD.shape[:2], self.prior_dim)


class FixedPriorParams(PriorParams):
    """All-zero numbers: fair bits, a standard normal, all codes of a book alike."""

    kind: Literal["fixed"] = "fixed"
    learned: ClassVar[bool] = False

    def build(self, *, width: int, quantizer: Quantizer) -> FixedPrior:
        """The prior, whatever the width."""
        return FixedPrior(quantizer.prior_dim)


class LinearPrior(Prior):
    """hidden at each slot's first position [B, S, D] ─ linear, zero at the start ─► numbers [B, S, J].

    Args:
        width: D.
        prior_dim: J.
    """

    def __init__(self, *, width: int, prior_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(prior_dim, width))
        self.bias = nn.Parameter(torch.zeros(prior_dim))

    def forward(self, hidden_BSD: Tensor, before_BSC: Tensor | None = None) -> Tensor:
        """Numbers [B, S, J]."""
        return F.linear(hidden_BSD, self.weight, self.bias)


class LinearPriorParams(PriorParams):
    """A linear map of the causal hidden at the seam, at each slot's first position."""

    kind: Literal["linear"] = "linear"

    def build(self, *, width: int, quantizer: Quantizer) -> LinearPrior:
        """The prior of the quantizer's numbers."""
        return LinearPrior(width=width, prior_dim=quantizer.prior_dim)


class PriorMemory:
    """What a prior remembers of some rows' codes, slot after slot.

    Args:
        prior: any; one that sees no codes remembers nothing.
        hidden_BSD: some hidden of the rows.
        embedding_dim: C of the codes.
    """

    def __init__(self, prior: Prior, hidden_BSD: Tensor, embedding_dim: int) -> None:
        self._prior = prior
        self.state_B = prior.start(hidden_BSD)
        self.before_B1C = hidden_BSD.new_zeros(len(hidden_BSD), 1, embedding_dim)

    def numbers(self, hidden_B1D: Tensor, begins_B: Tensor | None = None) -> Tensor:
        """Prior numbers [B, 1, J] of the next slot of each row.

        Args:
            hidden_B1D: the hidden at the slot's first position.
            begins_B: rows in which a slot begins, all unless given; the others remember what they did.
        """
        numbers_B1J, state_B = self._prior.step(hidden_B1D, self.before_B1C, self.state_B)
        self.state_B = _of_rows(begins_B, state_B, self.state_B)
        return numbers_B1J

    def take_in(self, embedding_B1C: Tensor, begins_B: Tensor | None = None) -> None:
        """Take in the code that the slot has got, by its embedding."""
        self.before_B1C = _of_rows(begins_B, embedding_B1C, self.before_B1C)

    def take(self, rows: Tensor) -> None:
        """Go on with other rows, which may be repeated: particles, drawn anew."""
        self.state_B, self.before_B1C = self.state_B[rows], self.before_B1C[rows]


def _of_rows(which_B: Tensor | None, new_B: Tensor, old_B: Tensor) -> Tensor:
    if which_B is None:
        return new_B
    return torch.where(which_B.view(-1, *[1] * (new_B.ndim - 1)), new_B, old_B)
