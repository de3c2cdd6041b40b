"""Scores of a continuation: what generation would say, and nothing that has seen the answer.

codes of the prompt        from the encoder, which sees the prompt alone, or another text
codes of what follows      from the prior
p(continuation | prompt)   the mean over both, estimated by a particle filter over the continuation
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lvlm.arguments import checks_arguments, token_ids
from lvlm.errors import UserError
from lvlm.interfaces import IGNORE, Batch
from lvlm.likelihood.filter import Filter, run_filter
from lvlm.likelihood.several import rows_of
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


@checks_arguments
@torch.no_grad()
def score(
    model: LatentLM,
    prompt: Sequence[int] | Tensor,
    continuation: Sequence[int] | Tensor,
    *,
    latent_text: Sequence[int] | Tensor | None = None,
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
        prompt: token ids, at least one; a list, or a tensor [T].
        continuation: as the prompt.
        latent_text: token ids of a text that the encoder reads in place of the prompt. Without one, a model
            of two texts a row takes the prompt's codes from the prior.
        k: particles.
        seed: of the codes' noise.
        chunk: tokens between resampling checks of the particle filter.
        rows: particles per forward.
        autocast: makes the precision context of a forward.

    Raises:
        UserError: no prompt, no continuation, more tokens than the context holds, ids outside the vocabulary;
            a latent text for a model whose encoder can't read it, or that has none.
    """
    given = token_ids(prompt, "the prompt")
    scored = token_ids(continuation, "the continuation")
    _check(model, given, scored, k=k, chunk=chunk, rows=rows, seed=seed)
    tokens = torch.tensor([given + scored], device=model.device)
    inputs_BT, targets_BT = tokens[:, :-1], tokens[:, 1:].clone()
    targets_BT[:, : len(given) - 1] = IGNORE
    batch = Batch(inputs_BT, targets_BT, torch.ones_like(inputs_BT, dtype=torch.bool))
    if latent_text is not None:
        batch = replace(batch, latent_inputs_BU=_read(model, token_ids(latent_text, "the latent text")))
    with evaluating(model):
        one = rows_of(model, batch, seeds=[seed], at_once=rows, autocast=autocast, prompt=len(given))
        if not model.names:
            return Score(-float(one.exact_by_target().sum()))
        found = run_filter(one, Filter(k, chunk, proposal="prior"))
    return Score(-float(found.nats))


def _read(model: LatentLM, ids: list[int]) -> Tensor:
    """What the encoder reads, [1, U]."""
    if not model.names:
        raise UserError("latent_text is given, but the model has no latent")
    model.check_other_text()
    context, vocab = model.backbone.context, model.backbone.vocab
    if not 1 <= len(ids) <= context:
        raise UserError(f"the latent text has {len(ids)} tokens; the model reads 1 to {context}")
    if min(ids) < 0 or max(ids) >= vocab:
        raise UserError(
            f"the latent text: tokens {min(ids)} to {max(ids)}; the vocabulary is 0 to {vocab - 1}"
        )
    return torch.tensor([ids], device=model.device)


def _check(model: LatentLM, prompt: list[int], continuation: list[int], *, seed: int, **counts: int) -> None:
    if not prompt:
        raise UserError("the prompt is empty; there is no start symbol, so give at least one token")
    if not continuation:
        raise UserError("the continuation is empty; there is nothing to score")
    for what, count in counts.items():
        if count < 1:
            raise UserError(f"{what} is {count}; it is at least 1")
    if not 0 <= seed < 2**63:
        raise UserError(f"seed is {seed}; it is a whole number from 0 to 2^63 - 1")
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
