"""Room for a training on this machine: what can't fit is refused before it is allocated.

    threads, workers, rows of tokens ─ before the data are read ─┐
    weights, gradients, optimiser, activations ─ of the model ───┴─► BeyondMachine, or nothing

The memory of a step is bounded from both sides by a formula; only between the bounds it is planned, which
takes seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lvlm.data.source import need_windows
from lvlm.errors import BeyondMachine
from lvlm.system.machine import memory_bytes, need_memory, need_threads, need_workers
from lvlm.training.parallel import layout
from lvlm.training.plan import step_bytes

if TYPE_CHECKING:
    from lvlm.recipe.recipe import Recipe


STATE_BYTES = 16  # of a parameter: weight, gradient, and AdamW's two means, float32

ROWS = (256, 512)  # that the memory of more is planned from: even numbers, as shuffled codes want them

MOST_FLOATS = 64
"""Numbers that a block keeps for a token and a unit of width, at most: ordinary blocks keep 20 to 40."""


def refuse_options(recipe: Recipe, *, ranks: int = 1) -> None:
    """Refuse threads, workers and rows that this machine hasn't room for.

    Raises:
        BeyondMachine: one of them.
    """
    train, row_bytes = recipe.train, recipe.data.row_bytes
    if train.threads is not None:
        need_threads(f"train.threads is {train.threads}", train.threads)
    need_workers(f"train.workers is {train.workers}", train.workers)
    need_memory(f"train.rows is {train.rows}", train.rows / ranks * row_bytes)
    for name, count in (
        ("train.evaluate_windows", train.evaluate_windows),
        ("evaluate.windows", recipe.evaluate.windows),
    ):
        need_windows(f"{name} is {count}", count, row_bytes)


def refuse_step(recipe: Recipe, parameters: int, device: torch.device, *, ranks: int = 1) -> None:
    """Refuse a step of the optimiser that the device hasn't room for.

    Args:
        recipe: what is trained.
        parameters: of the whole model.
        device: that trains it.
        ranks: processes that train it together.

    Raises:
        BeyondMachine: it hasn't.
    """
    train, tokens = recipe.train, recipe.data.tokens
    rows = train.micro_rows or -(-train.rows // ranks)
    forward = rows * train.draws
    backbone, vocab = recipe.model.backbone, recipe.model.vocab or recipe.data.vocab
    _, over = layout(ranks, train.shard_over)
    state = STATE_BYTES * parameters / over
    what = f"train.{'micro_rows' if train.micro_rows else 'rows'} is {rows} of {tokens} tokens"
    if train.draws > 1:
        what += f", and train.draws {train.draws}"
    mend = "fewer train.micro_rows need less"
    need_memory("the model's weights, gradients and optimiser", state, device)
    row = recipe.data.row_bytes + tokens * 4 * backbone.width
    need_memory(what, state + forward * row, device, mend=mend)
    encoders = [one.encoder for one in recipe.model.each_latent.values()]
    blocks = backbone.layers + sum(int(getattr(one, "layers", 0) or 0) for one in encoders) + 1
    longest = max(tokens, recipe.data.encoder_tokens)
    per_block = (tokens + (recipe.data.latent_tokens or 0)) * (MOST_FLOATS * backbone.width + longest)
    at_most = state * 2 + forward * 4 * (blocks * per_block + tokens * 8 * vocab)
    there = memory_bytes(device)
    if ranks > 1 or there is None or at_most <= there:
        return
    here = recipe.model_copy(update={"train": train.model_copy(update={"device": device.type})})
    try:
        planned = _planned(here, rows)
    except BeyondMachine:
        raise
    except Exception:  # a part that can't be planned is tried
        return
    need_memory(what, planned, device, mend=f"{mend}; so does train.recompute=full")


def _planned(recipe: Recipe, rows: int) -> float:
    """Bytes at the peak of a step. Many rows are extrapolated from few, as every row holds the same."""
    few, more = ROWS
    if rows <= more:
        return step_bytes(recipe, rows)
    low, high = step_bytes(recipe, few), step_bytes(recipe, more)
    return low + (rows - few) / (more - few) * max(0, high - low)
