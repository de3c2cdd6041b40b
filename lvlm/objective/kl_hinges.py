"""Local KL terms: plain charges all; hinge, mask and target look at each unit, slot or sequence by itself."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from lvlm.errors import one_of
from lvlm.objective.kl_terms import Granularity, KLTerm, TermParams

LocalShape = Literal["hinge", "mask", "target"]


class LocalTerm(KLTerm):
    """A charge on each unit, slot or sequence by itself.

    Args:
        shape: 'hinge', 'mask' or 'target'.
        budget_nats: per unit ('unit'), or per slot ('slot', 'sequence').
        per: what the budget is granted to; a sequence shares the sum of its slots' budgets.
    """

    def __init__(self, shape: LocalShape, budget_nats: float, per: Granularity) -> None:
        super().__init__()
        self.shape, self.budget_nats = one_of(shape, LocalShape, "shape"), budget_nats
        self.per = one_of(per, Granularity, "per")

    def at_budget(self, budget_nats: float) -> None:
        """Take another budget."""
        self.budget_nats = budget_nats

    def forward(self, kl_BSd: Tensor, keep_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Charge each unit, slot or sequence by itself."""
        if self.per == "unit":
            cost, units = kl_BSd, keep_BS[..., None]
        elif self.per == "slot":
            cost, units = kl_BSd.sum(-1), keep_BS
        else:
            cost, units = kl_BSd.sum((-1, -2)), keep_BS.sum(-1)
        # An infinite budget of no slots is 0, and not NaN.
        limit = torch.where(units > 0, self.budget_nats * units.clamp(min=1), 0.0).to(cost)
        over = cost - limit
        if self.shape == "target":
            return over.abs().sum(), (cost * over.sign()).sum()
        above = (over > 0).to(cost)
        charged = over.relu() if self.shape == "hinge" else cost * above
        return charged.sum(), (cost * above).sum()


class Plain(KLTerm):
    """All of the KL, at a price of 1."""

    def forward(self, kl_BSd: Tensor, keep_BS: Tensor) -> tuple[Tensor, Tensor]:
        """The sum, as charge and as KL times its price."""
        charged = kl_BSd.sum()
        return charged, charged


class PlainParams(TermParams):
    """All of the KL, without a budget: the evidence lower bound itself, of a KL that is sampled, too."""

    kind: Literal["plain"] = "plain"
    linear: ClassVar[bool] = True
    takes_budget: ClassVar[bool] = False

    def build(self, *, budget_nats: float, per: Granularity) -> Plain:
        """The term, which has no use for either."""
        one_of(per, Granularity, "per")
        return Plain()


class HingeParams(TermParams):
    """KL above the budget: relu(KL - budget)."""

    kind: Literal["hinge"] = "hinge"
    takes_schedule: ClassVar[bool] = True
    free_within_budget: ClassVar[bool] = True

    def build(self, *, budget_nats: float, per: Granularity) -> LocalTerm:
        """The term (Kingma et al. 2016, arXiv 1606.04934; F25 eq. 5)."""
        return LocalTerm("hinge", budget_nats, per)


class MaskParams(TermParams):
    """All of the KL where it is above the budget, none below; the gradient of the hinge."""

    kind: Literal["mask"] = "mask"
    takes_schedule: ClassVar[bool] = True
    free_within_budget: ClassVar[bool] = True

    def build(self, *, budget_nats: float, per: Granularity) -> LocalTerm:
        """The term (Li et al. 2020, Optimus, arXiv 2004.04092)."""
        return LocalTerm("mask", budget_nats, per)


class TargetParams(TermParams):
    """The distance of the KL from the budget, |KL - budget|: a latent below it is pulled up."""

    kind: Literal["target"] = "target"
    takes_schedule: ClassVar[bool] = True
    steers: ClassVar[bool] = True
    pays_for_kl: ClassVar[bool] = True

    def build(self, *, budget_nats: float, per: Granularity) -> LocalTerm:
        """The term."""
        return LocalTerm("target", budget_nats, per)
