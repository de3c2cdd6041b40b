"""The KL term `my_kind`: a hinge that leaks, so that KL within the budget costs a little, too.

It works as it stands. CHANGE marks where yours begins.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from lvlm.hookspecs import hookimpl
from lvlm.interfaces import Register
from lvlm.objective import Granularity, KLTerm, TermParams


class MyKind(KLTerm):
    """relu(KL - budget) + leak · min(KL, budget), of each unit, slot or sequence by itself."""

    def __init__(self, *, budget_nats: float, per: Granularity, leak: float) -> None:
        super().__init__()
        self.budget_nats, self.per, self.leak = budget_nats, per, leak

    def forward(self, kl_BSd: Tensor, keep_BS: Tensor) -> tuple[Tensor, Tensor]:
        """What is charged, and the raw KL times its price: sums over the batch, nats."""
        if self.per == "unit":
            cost, units = kl_BSd, keep_BS[..., None]
        elif self.per == "slot":
            cost, units = kl_BSd.sum(-1), keep_BS
        else:
            cost, units = kl_BSd.sum((-1, -2)), keep_BS.sum(-1)
        # The budget of so many units; an infinite one of no units is 0, and not NaN.
        budget = torch.where(units > 0, self.budget_nats * units.clamp(min=1), 0.0).to(cost)
        # CHANGE: what is charged for `cost` under `budget`, and the price: the derivative of that by the
        # cost.
        charged = (cost - budget).relu() + self.leak * torch.minimum(cost, budget)
        price = torch.where(cost > budget, 1.0, self.leak)
        return charged.sum(), (cost * price).sum()


class MyKindParams(TermParams):
    """KL above the budget, and a share of what is within it."""

    kind: Literal["my_kind"] = "my_kind"
    # CHANGE: options, each with a range and a docstring. `steers`, `follows_mean` and `pays_for_kl` of the
    # base class say what a recipe may combine it with.
    leak: float = Field(default=0.05, ge=0, le=1)
    """Nats charged per nat of KL within the budget."""

    def build(self, *, budget_nats: float, per: Granularity) -> MyKind:
        """The term for a budget per unit, or per slot."""
        return MyKind(budget_nats=budget_nats, per=per, leak=self.leak)


@hookimpl
def register_terms(register: Register) -> None:
    """Supply the KL term."""
    register(MyKindParams)
