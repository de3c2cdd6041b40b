"""Cross-entropy in nats, whole or in chunks, and its name."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lvlm.interfaces import IGNORE, Output
from lvlm.objective.divergences import wide


def cross_entropy_nats(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Cross-entropy of each target, [B, T], nats; zero where the target is IGNORE."""
    flat = F.cross_entropy(
        wide(logits_BTV).flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORE, reduction="none"
    )
    return flat.view(targets_BT.shape)


def cross_entropy_of(output: Output, targets_BT: Tensor) -> Tensor:
    """Cross-entropy of each target under an output, [B, T], nats; zero where the target is IGNORE.

    Where the output has `chunk_tokens`, the logits of each chunk are made, used and forgotten, and made once
    more in the backward pass.
    """
    if output.chunk_tokens is None:
        return cross_entropy_nats(output.logits_BTV, targets_BT)

    def of_chunk(hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        return cross_entropy_nats(output.head(hidden_ND[None]), targets_N[None])[0]

    hidden_ND, targets_N = output.hidden_BTD.flatten(0, 1), targets_BT.flatten()
    parts = [
        checkpoint(of_chunk, hidden_nD, targets_n, use_reentrant=False, preserve_rng_state=False)
        for hidden_nD, targets_n in zip(
            torch.split(hidden_ND, output.chunk_tokens),
            torch.split(targets_N, output.chunk_tokens),
            strict=True,
        )
    ]
    return torch.cat(parts).view(targets_BT.shape)


def name_of_cross_entropy(output: Output) -> str:
    """Name of an output's cross-entropy: 'nll_exact' without a latent, else by where its codes came from.

    'ce_posterior' has seen the answer, and is no bound: one latent's codes of the posterior are enough.
    """
    latents = [drawn.latent for drawn in output.latents.values()]
    if not latents:
        return "nll_exact"
    if any(latent.posterior_BSK is not None for latent in latents):
        return "ce_posterior"
    return "ce_given" if any(latent.prior_BSJ is None for latent in latents) else "ce_prior"
