"""Activation checkpointing: blocks that forget what they computed, and compute it again in the backward pass.

(Chen et al. 2016, Training deep nets with sublinear memory cost, arXiv 1604.06174.) It goes on before
compilation and sharding, around a block's `forward`, so that names of parameters stay what they are. torch
keeps the random state of what runs twice; the codes are drawn outside of blocks.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from lvlm.errors import one_of
from lvlm.model.latent_lm import LatentLM
from lvlm.training.parallel import blocks_of

# What 'selective' keeps: products and attention, which cost the time.
KEPT: list[Any] = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
]


def keep_fewer_activations(model: LatentLM, which: Literal["none", "full", "selective"] | int) -> None:
    """Make blocks recompute in the backward pass, in place.

    Args:
        model: whose blocks.
        which: 'none', 'full' (all blocks), every n-th block, or 'selective' (the cheap operations of all
            blocks).

    Raises:
        UserError: none of these.
    """
    if isinstance(which, bool) or not (isinstance(which, int) and which >= 1):
        one_of(which, ("none", "full", "selective"), "recompute", or_="a number of blocks from 1 on")
    if which == "none":
        return
    again: Any = functools.partial(checkpoint, use_reentrant=False)
    if which == "selective":
        contexts = functools.partial(create_selective_checkpoint_contexts, KEPT)
        again = functools.partial(again, context_fn=contexts)
    every = which if isinstance(which, int) else 1
    for number, block in enumerate(blocks_of(model)):
        if number % every == 0:
            block.forward = _in_training(block, again)


def _in_training(block: torch.nn.Module, again: Any) -> Any:
    plain = block.forward

    @functools.wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if block.training and torch.is_grad_enabled():
            return again(plain, *args, **kwargs)
        return plain(*args, **kwargs)

    return forward
