"""Prompts as rows of token ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvlm.arguments import is_whole, listed, token_ids, told
from lvlm.data.codecs import ByteCodec
from lvlm.errors import UserError
from lvlm.model.latent_lm import LatentLM
from lvlm.system.limits import CALL_TOKENS, TEXT_BYTES

Prompt = str | bytes | Sequence[int] | Tensor

TOKENS = 200
"""How many tokens are added to a prompt, unless told."""


# -------------------------------------------------------------------------------------- what is requested


def token_rows(
    model: LatentLM, prompts: Prompt | Sequence[Prompt], *, what: str = "prompt"
) -> list[list[int]]:
    """Token ids of each prompt.

    Raises:
        UserError: there is no prompt, or one is neither text nor ids, or the model's codec can't read it, or
            there is too much of it.
    """
    given = _listed(prompts, what)
    if isinstance(given, str | bytes):
        return [_ids(model, given, what)]
    if not given:
        raise UserError(f"no {what}: give at least one")
    if not any(_holds_several(one) for one in given):
        return [_ids(model, given, what)]  # ids of a single prompt
    rows, tokens = list[list[int]](), 0
    for one in given:
        rows.append(_ids(model, one, what))
        tokens += len(rows[-1])
        if tokens > CALL_TOKENS:
            raise UserError(f"the {what}s have more than {CALL_TOKENS:,} tokens; give fewer at a time")
    return rows


def _listed(prompts: Any, what: str) -> str | bytes | list[Any]:
    """A text, or what a list, an array or a tensor holds.

    Raises:
        UserError: it is none of them, or a tensor of other dimensions or of no whole numbers, or too long.
    """
    if isinstance(prompts, np.ndarray) and prompts.dtype.kind in "USO":
        prompts = prompts.tolist()  # texts
    if isinstance(prompts, np.ndarray | Tensor):
        if prompts.ndim not in (1, 2):
            raise UserError(f"the {what} is {told(prompts)}; token ids are [T], or [B, T] for several")
        return [prompts] if prompts.ndim == 1 else listed(prompts, f"the {what}")
    if isinstance(prompts, str | bytes):
        return prompts
    if not isinstance(prompts, Iterable) or isinstance(prompts, Mapping | AbstractSet):
        raise UserError(f"the {what} is {told(prompts)}; it is a text, or a list of token ids, or several")
    return listed(prompts, f"the {what}")


def _holds_several(one: object) -> bool:
    """Whether it is a text or several ids, not one id."""
    if isinstance(one, np.generic | np.ndarray | Tensor) and not isinstance(one, str | bytes):
        return one.ndim > 0
    return isinstance(one, str | bytes | Iterable)


def _ids(model: LatentLM, prompt: Any, what: str) -> list[int]:
    if isinstance(prompt, str | bytes):
        if model.codec is None:
            raise UserError(f"a {what} is text, but the model has no codec; give token ids, or use lvlm.load")
        if len(prompt) > TEXT_BYTES:
            raise UserError(f"a {what} has {len(prompt):,} characters; it has at most {TEXT_BYTES:,}")
        if isinstance(prompt, bytes) and isinstance(model.codec, ByteCodec):
            return list(prompt)
        return model.codec.encode(prompt if isinstance(prompt, str) else prompt.decode(errors="replace"))
    if not isinstance(prompt, Iterable) or isinstance(prompt, Mapping | AbstractSet):
        raise UserError(f"a {what} is {told(prompt)}; it is a text, or a list of token ids")
    return token_ids(prompt, f"a {what}", or_="a text, or ")


def tokens_asked(model: LatentLM, rows: list[list[int]], tokens: int | None) -> int:
    """The number of tokens to add: the one that is given. Unless given, it is `TOKENS`, or as many as the
    model's context has room for after the longest prompt, and 1 at least.
    """
    if tokens is not None:
        return tokens
    return max(1, min(TOKENS, model.backbone.context + 1 - max(map(len, rows), default=1)))


def check_rows(model: LatentLM, rows: list[list[int]], tokens: int, *, what: str = "prompt") -> None:
    """Check that the model can read all prompts and has room for `tokens` tokens after each.

    Raises:
        UserError: it can't read one or has no room, or `tokens` is not a number from 1 up.
    """
    vocab, context = model.backbone.vocab, model.backbone.context
    if not is_whole(tokens):
        raise UserError(f"tokens is {told(tokens)}; it is a whole number")
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
