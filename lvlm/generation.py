"""Sampling text: codes of the prompt from the prompt alone, codes of what follows from the prior, drawn once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lvlm.errors import UserError
from lvlm.model import CodeSource, LatentLM

LOWEST_TEMPERATURE = 1e-6  # below, logits divided by it overflow; nothing but the likeliest token is left


@dataclass(frozen=True)
class Generated:
    """Rows of generated text.

    tokens_BT    the prompt and what follows, int64
    log_prob_BN  log-probability of each new token under the model (temperature 1, nothing cut), nats
    codes        the codes that were used, [B, S] or [B, S, Z]; None without a latent. A teacher-forced
                 forward with them gives the same log-probabilities.
    """

    tokens_BT: Tensor
    log_prob_BN: Tensor
    codes: Tensor | None


@torch.no_grad()
def generate(
    model: LatentLM,
    prompt_BT: Tensor,
    tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    codes: Tensor | None = None,
    prompt_codes: Literal["posterior", "prior"] = "posterior",
    generator: torch.Generator | None = None,
) -> Generated:
    """Continue prompts of one length by `tokens` tokens.

    Args:
        model: any model of the zoo.
        prompt_BT: int64 [B, T], at least one token each.
        tokens: how many to add.
        temperature: 0 takes the likeliest token.
        top_k: choose among so many likeliest tokens.
        codes: steer with given codes instead of drawing any, for all slots of prompt and continuation.
        prompt_codes: where the codes of the prompt's slots come from; the encoder sees the prompt alone.
        generator: the noise of codes and tokens; torch's global one unless given.

    Raises:
        UserError: an empty prompt, more tokens than the context holds, options out of range, bad codes.
    """
    _check(model, prompt_BT, tokens, temperature, top_k)
    rows, length = prompt_BT.shape
    cache = model.make_cache(rows, length + tokens)
    z: CodeSource = prompt_codes if codes is None else codes
    later: CodeSource = "prior" if codes is None else codes
    new, log_probs, step_BT = [], [], prompt_BT
    training = model.training
    model.eval()
    try:
        for _ in range(tokens):
            logits_BV = model(step_BT, z=z, cache=cache, generator=generator).logits_BTV[:, -1].float()
            step_BT = _choose(logits_BV, temperature, top_k, generator)
            new.append(step_BT)
            log_probs.append(logits_BV.log_softmax(-1).gather(-1, step_BT))
            z = later
    finally:
        model.train(training)
    return Generated(torch.cat([prompt_BT, *new], dim=1), torch.cat(log_probs, dim=1), cache.codes)


def _choose(
    logits_BV: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None
) -> Tensor:
    """The next token of each row, [B, 1]."""
    if temperature < LOWEST_TEMPERATURE:
        return logits_BV.argmax(-1, keepdim=True)
    if top_k is not None:
        cut_B1 = logits_BV.topk(min(top_k, logits_BV.shape[-1])).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < cut_B1, -torch.inf)
    return torch.multinomial((logits_BV / temperature).softmax(-1), 1, generator=generator)


def _check(model: LatentLM, prompt_BT: Tensor, tokens: int, temperature: float, top_k: int | None) -> None:
    if prompt_BT.ndim != 2 or prompt_BT.shape[1] == 0:
        raise UserError("the prompt is empty; there is no start symbol, so give at least one token")
    if tokens < 1:
        raise UserError(f"tokens is {tokens}; ask for at least one")
    if not 0 <= temperature < math.inf:
        raise UserError(f"temperature is {temperature}; it is 0 (the likeliest token) or more, and finite")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k is {top_k}; it is at least 1")
    total, context = prompt_BT.shape[1] + tokens, model.backbone.context
    if total > context:
        raise UserError(
            f"a prompt of {prompt_BT.shape[1]} tokens and {tokens} more make {total}; "
            f"the model's context is {context} (model.backbone.context)"
        )
    low, high = int(prompt_BT.min()), int(prompt_BT.max())
    if low < 0 or high >= model.backbone.vocab:
        raise UserError(f"prompt tokens {low} to {high}; the vocabulary is 0 to {model.backbone.vocab - 1}")
