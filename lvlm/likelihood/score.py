"""Scores of a continuation: what generation would say, and nothing that has seen the answer.

codes of the prompt        from the encoder, which sees the prompt alone
codes of what follows      from the prior
p(continuation | prompt)   the mean over both, estimated by a particle filter over the continuation
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from lvlm.errors import UserError
from lvlm.interfaces import IGNORE, Batch
from lvlm.likelihood.filter import Filter, run_filter
from lvlm.likelihood.particles import Rows
from lvlm.model.latent_lm import LatentLM
from lvlm.model.modes import evaluating
from lvlm.system.device import Autocast


@dataclass(frozen=True)
class Score:
    """A continuation's score.

    log_prob_nats  log of an estimate of p(continuation | prompt) whose mean is exact, so in the mean at most
                   the log; exact for a model without a latent. How much it varies is seen by scoring with
                   several seeds
    """

    log_prob_nats: float


@torch.no_grad()
def score(
    model: LatentLM,
    prompt: Sequence[int],
    continuation: Sequence[int],
    *,
    k: int = 16,
    seed: int = 0,
    chunk: int = 4,
    rows: int = 16,
    autocast: Autocast = nullcontext,
) -> Score:
    """Log-probability of a continuation after a prompt, as generation has it.

    Choices that are to be compared need the same k and seed: they then share the codes of the prompt, and the
    draws of the codes after it (common random numbers), so that differences are surer than each score.

    Args:
        model: any model of the zoo; its training mode is restored.
        prompt: token ids, at least one.
        continuation: token ids, at least one.
        k: particles.
        seed: of the codes' noise.
        chunk: tokens between resampling checks of the particle filter.
        rows: particles per forward.
        autocast: makes the precision context of a forward.

    Raises:
        UserError: no prompt, no continuation, more tokens than the context holds, ids outside the vocabulary.
    """
    prompt, continuation = list(prompt), list(continuation)
    _check(model, prompt, continuation, k, chunk)
    tokens = torch.tensor([prompt + continuation], device=model.device)
    inputs_BT, targets_BT = tokens[:, :-1], tokens[:, 1:].clone()
    targets_BT[:, : len(prompt) - 1] = IGNORE
    batch = Batch(inputs_BT, targets_BT, torch.ones_like(inputs_BT, dtype=torch.bool))
    with evaluating(model):
        one = Rows(model, batch, seeds=[seed], at_once=rows, autocast=autocast, prompt=len(prompt))
        if model.latent is None:
            return Score(-float(one.exact_by_target().sum()))
        found = run_filter(one, Filter(k, chunk, proposal="prior"))
    return Score(-float(found.nats))


def _check(model: LatentLM, prompt: list[int], continuation: list[int], k: int, chunk: int) -> None:
    if not prompt:
        raise UserError("the prompt is empty; there is no start symbol, so give at least one token")
    if not continuation:
        raise UserError("the continuation is empty; there is nothing to score")
    if k < 1 or chunk < 1:
        raise UserError(f"k is {k} and chunk is {chunk}; each is at least 1")
    context, total = model.backbone.context, len(prompt) + len(continuation)
    if total > context + 1:
        raise UserError(
            f"a prompt of {len(prompt)} tokens and a continuation of {len(continuation)} make {total}; the "
            f"model "
            f"scores at most {context + 1} (model.backbone.context: {context})"
        )
    low, high = min(prompt + continuation), max(prompt + continuation)
    if low < 0 or high >= model.backbone.vocab:
        raise UserError(f"tokens {low} to {high}; the vocabulary is 0 to {model.backbone.vocab - 1}")
