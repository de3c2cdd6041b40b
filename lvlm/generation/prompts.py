"""Prompts as rows of token ids."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor

from lvlm.data.codecs import ByteCodec
from lvlm.errors import UserError
from lvlm.model.latent_lm import LatentLM

Prompt = str | bytes | Sequence[int] | Tensor


# -------------------------------------------------------------------------------------- what is requested


def token_rows(
    model: LatentLM, prompts: Prompt | Sequence[Prompt], *, what: str = "prompt"
) -> list[list[int]]:
    """Token ids of each prompt.

    Raises:
        UserError: there is no prompt, or one is neither text nor ids, or the model's codec can't read it.
    """
    if isinstance(prompts, str | bytes) or (hasattr(prompts, "ndim") and prompts.ndim == 1):
        return [_ids(model, cast(Prompt, prompts), what)]
    if not isinstance(prompts, Iterable):
        raise UserError(f"the {what} is {prompts!r}; it is a text, or a list of token ids, or several")
    listed = list(prompts)
    if not listed:
        raise UserError(f"no {what}: give at least one")
    if not any(isinstance(one, str | bytes | Iterable) for one in listed):
        return [_ids(model, cast(Prompt, listed), what)]  # ids of a single prompt
    return [_ids(model, one, what) for one in listed]


def _ids(model: LatentLM, prompt: Prompt, what: str) -> list[int]:
    if isinstance(prompt, str | bytes):
        if model.codec is None:
            raise UserError(f"a {what} is text, but the model has no codec; give token ids, or use lvlm.load")
        if isinstance(prompt, bytes) and isinstance(model.codec, ByteCodec):
            return list(prompt)
        return model.codec.encode(prompt if isinstance(prompt, str) else prompt.decode(errors="replace"))
    try:
        return [operator.index(token) for token in prompt]
    except TypeError:
        raise UserError(f"a {what} is {prompt!r}; it is a text, or a list of token ids") from None


def tokens_that_fit(model: LatentLM, rows: list[list[int]], most: int) -> int:
    """So many tokens, or as many as the model's context has room for after the longest prompt; 1 at least."""
    return max(1, min(most, model.backbone.context + 1 - max(map(len, rows), default=1)))


def check_rows(model: LatentLM, rows: list[list[int]], tokens: int, *, what: str = "prompt") -> None:
    """Check that the model can read all prompts and has room for `tokens` tokens after each.

    Raises:
        UserError: it can't read one or has no room, or `tokens` is not a number from 1 up.
    """
    vocab, context = model.backbone.vocab, model.backbone.context
    if not isinstance(tokens, int):
        raise UserError(f"tokens is {tokens!r}; it is a whole number")
    if tokens < 1:
        raise UserError(f"tokens is {tokens}; ask for at least one")
    for number, row in enumerate(rows):
        which = f"the {what}" if len(rows) == 1 else f"{what} {number}"
        if not row:
            raise UserError(f"{which} is empty; there is no start symbol, so give at least one token")
        if min(row) < 0 or max(row) >= vocab:
            raise UserError(f"{which}: tokens {min(row)} to {max(row)}; the vocabulary is 0 to {vocab - 1}")
        if len(row) + tokens - 1 > context:
            raise UserError(
                f"{which} of {len(row)} tokens and {tokens} more: the model's context is {context} "
                f"(model.backbone.context), so "
                + (
                    f"ask for at most {context + 1 - len(row)} tokens"
                    if len(row) <= context
                    else f"shorten it to {context} tokens or fewer"
                )
            )


def padded(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens [B, T], padded on the right, and which of them are real."""
    longest = max(map(len, rows))
    tokens_BT = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
    lengths_B1 = torch.tensor([len(row) for row in rows], device=device)[:, None]
    return tokens_BT, torch.arange(longest, device=device) < lengths_B1
