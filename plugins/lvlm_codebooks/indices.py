"""Codes that are one of N: their log-probabilities, draws from logits, and what may be given for one."""

from __future__ import annotations

import torch
from torch import Tensor

from lvlm.errors import UserError
from lvlm.interfaces import exponential

MOST_CODES = 65_536
"""Codes of a slot at most: a learned prior has a number for each."""


def log_categorical(codes_BS: Tensor, logits_BSN: Tensor) -> Tensor:
    """Log p(code) of a categorical, [B, S], nats."""
    return logits_BSN.log_softmax(-1).gather(-1, codes_BS[..., None])[..., 0]


def drawn(logits_BSN: Tensor, generator: torch.Generator | None) -> Tensor:
    """Codes [B, S] of a categorical, drawn as torch.multinomial does: the winner of a race of exponential
    variables.
    """
    race_BSN = exponential(logits_BSN.shape, generator, device=logits_BSN.device, dtype=logits_BSN.dtype)
    return (logits_BSN.softmax(-1) / race_BSN).argmax(-1)


def indices(codes: Tensor, count: int) -> Tensor:
    """Codes that somebody chose, as int64 [B, S].

    Raises:
        UserError: they are no integers [B, S], or one isn't in [0, count).
    """
    if codes.is_floating_point() or codes.dtype == torch.bool or codes.ndim != 2:
        raise UserError(
            f"codes of a codebook are integer indices of shape [rows, slots], "
            f"not {codes.dtype} of shape {list(codes.shape)}"
        )
    if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < count):
        raise UserError(
            f"a code of this codebook is an index from 0 to {count - 1}; "
            f"got {int(codes.min())} to {int(codes.max())}"
        )
    return codes.long()


def prior_words(count: int) -> str:
    """How a code is drawn from N logits, for those who do it outside of PyTorch."""
    return (
        f"code c has the probability softmax(numbers)[c]; with all-zero numbers a code is a uniform "
        f"integer from 0 to {count - 1}"
    )
