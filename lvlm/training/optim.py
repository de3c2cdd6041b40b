"""AdamW, its parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lvlm.model.latent_lm import LatentLM

if TYPE_CHECKING:
    from lvlm.recipe.sections import TrainParams


def parameter_groups(model: LatentLM, loss: nn.Module, train: TrainParams) -> list[dict[str, Any]]:
    """Parameter groups: matrices decay, vectors (norms, biases, a learned query) don't, and the encoder has
    its own rate.

    Every trainable parameter is in one group; `rate_factor` multiplies the group's learning rate.
    """
    inference = {p for path in model.paths.values() for p in path.inference_parameters()}
    trainable = [p for p in nn.ModuleList([model, loss]).parameters() if p.requires_grad]  # tied ones once
    groups = []
    for encodes, decays in itertools.product((False, True), (True, False)):
        parameters = [p for p in trainable if (p in inference, p.ndim >= 2) == (encodes, decays)]
        if parameters:
            groups.append(
                {
                    "params": parameters,
                    "weight_decay": train.weight_decay if decays else 0.0,
                    "rate_factor": train.encoder_learning_rate_factor if encodes else 1.0,
                }
            )
    return groups


def make_optimiser(model: LatentLM, loss: nn.Module, train: TrainParams) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), fused."""
    return torch.optim.AdamW(
        parameter_groups(model, loss, train),
        lr=train.learning_rate,
        betas=(train.adam_beta1, train.adam_beta2),
        fused=True,
    )


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group, times the group's factor."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["rate_factor"]


def learning_rate(step: int, train: TrainParams) -> float:
    """Learning rate at a step: linear warm-up, then a cosine to `final_learning_rate` at the last step, and
    constant ever after.
    """
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    span = max(1, train.steps - 1 - train.warmup_steps)
    done = min(1.0, (step - train.warmup_steps) / span)
    cosine = (1 + math.cos(math.pi * done)) / 2
    return train.final_learning_rate + (train.learning_rate - train.final_learning_rate) * cosine
