"""AdamW, its parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from lvlm.recipe import TrainParams


def parameter_groups(modules: Sequence[nn.Module], weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; vectors (norms, biases, a learned query) don't. Every trainable parameter is in one."""
    parameters = nn.ModuleList(modules).parameters()  # each once, tied ones too
    trainable = [p for p in parameters if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]


def make_optimiser(modules: Sequence[nn.Module], train: TrainParams) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), fused."""
    return torch.optim.AdamW(
        parameter_groups(modules, train.weight_decay),
        lr=train.learning_rate,
        betas=(train.adam_beta1, train.adam_beta2),
        fused=True,
    )


def learning_rate(step: int, train: TrainParams) -> float:
    """Linear warm-up, then a cosine to `final_learning_rate` at the last step, and constant ever after."""
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    span = max(1, train.steps - 1 - train.warmup_steps)
    done = min(1.0, (step - train.warmup_steps) / span)
    cosine = (1 + math.cos(math.pi * done)) / 2
    return train.final_learning_rate + (train.learning_rate - train.final_learning_rate) * cosine
