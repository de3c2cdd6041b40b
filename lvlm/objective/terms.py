"""KL terms: what is charged for the KL of a step. All the terms in use, in two families.

Local terms look at each unit, slot or sequence by itself; k is its budget in nats.

    hinge       relu(KL - k)        one-sided (Kingma et al. 2016, arXiv 1606.04934; F25 eq. 5)
    mask        KL where KL > k     one-sided, the gradient of the hinge (Li et al. 2020, Optimus, 2004.04092)
    target      |KL - k|            two-sided: below its budget a latent is pulled up

Controllers set one price per nat, or one per unit, from the mean KL of the whole step before: the price is then the
same number for all micro-batches and ranks, and the loss is linear in the KL.

    clamp       1 where the mean was above k, else 0            the gradient of max(mean KL, k); one-sided
    pid         P sigmoid(error) + integral, in [0, 1]          ControlVAE (Shao et al. 2020, arXiv 2004.05988); the
                                                                price stops at 0, so it pulls nothing up
    lagrangian  1 - lambda - relu(1 - mean / k), where lambda   a minimum rate (after Rezende and Viola 2018,
                >= 0 grows while mean < k                       arXiv 1810.00597); two-sided: prices get negative
"""

from __future__ import annotations

import abc
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

Granularity = Literal["unit", "slot", "sequence"]

LocalShape = Literal["hinge", "mask", "target"]


class KLTerm(nn.Module, abc.ABC):
    """A KL term, before beta."""

    @abc.abstractmethod
    def forward(self, kl_BSd: Tensor, keep_BS: Tensor) -> tuple[Tensor, Tensor]:
        """What is charged, summed over the batch, and the raw KL times its price: both scalars in nats.

        kl_BSd is zero where keep_BS is False.
        """

    def after_step(self) -> None:
        """See `lvlm.interfaces.Loss.after_step`."""


class LocalTerm(KLTerm):
    """Charges each unit, slot or sequence by itself.

    Args:
        shape: 'hinge', 'mask' or 'target'.
        budget_nats: per unit ('unit'), or per slot ('slot', 'sequence').
        per: what the budget is granted to; a sequence shares the sum of its slots' budgets.
    """

    def __init__(self, shape: LocalShape, budget_nats: float, per: Granularity) -> None:
        super().__init__()
        self.shape, self.budget_nats, self.per = shape, budget_nats, per

    def forward(self, kl_BSd: Tensor, keep_BS: Tensor) -> tuple[Tensor, Tensor]:
        """See `KLTerm`."""
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


class Controller(KLTerm):
    """Charges all KL at a price that follows the mean KL per slot (or per unit of a slot) of the step before.

    Its state is part of the trainer's checkpoint, and its means are taken over all processes.

    Args:
        budget_nats: the mean that it steers to, per slot or per unit of a slot.
        per: 'slot' for one price, 'unit' for one each.
    """

    def __init__(self, budget_nats: float, per: Literal["unit", "slot"]) -> None:
        super().__init__()
        self.budget_nats, self.per = budget_nats, per
        # Broadcast until the first batch shows how many units there are.
        self.price_u, self.memory_u, self.seen_kl_u, self.seen_slots = torch.zeros(4, 1, dtype=torch.float64)

    def forward(self, kl_BSd: Tensor, keep_BS: Tensor) -> tuple[Tensor, Tensor]:
        """See `KLTerm`."""
        cost_BSu = kl_BSd if self.per == "unit" else kl_BSd.sum(-1, keepdim=True)
        if self.training:
            seen_u = cost_BSu.detach().double().sum((0, 1))
            self.seen_kl_u = self.seen_kl_u.to(seen_u.device) + seen_u
            self.seen_slots = self.seen_slots.to(seen_u.device) + keep_BS.sum()
        charged = (cost_BSu * self.price_u.to(cost_BSu)).sum()
        return charged, charged

    def after_step(self) -> None:
        """Take in what all processes saw, and set the next step's price."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.seen_kl_u)
            dist.all_reduce(self.seen_slots)
        if self.seen_slots > 0:
            self.steer(self.seen_kl_u / self.seen_slots)
        self.seen_kl_u, self.seen_slots = torch.zeros_like(self.seen_kl_u), torch.zeros_like(self.seen_slots)

    @abc.abstractmethod
    def steer(self, mean_u: Tensor) -> None:
        """Set `price_u` from the mean KL, nats; `memory_u` is what it needs from before."""

    def short_by_u(self, mean_u: Tensor) -> Tensor:
        """By which share of its budget the mean falls short of it; negative above."""
        return 1 - mean_u / self.budget_nats

    def get_extra_state(self) -> dict[str, Tensor]:
        """The state between two steps."""
        return {"price_u": self.price_u, "memory_u": self.memory_u}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Take it up again."""
        self.price_u, self.memory_u = state["price_u"], state["memory_u"]


class Clamp(Controller):
    """Price 1 above the budget and 0 below."""

    def steer(self, mean_u: Tensor) -> None:
        """See `Controller`."""
        self.price_u = (mean_u > self.budget_nats).double()


class PID(Controller):
    """ControlVAE's controller without its differential, on the error as a share of the budget.

    Args:
        budget_nats: the KL that the mean is steered to.
        per: the part of the latent that has this budget.
        proportional: the gain on the error of the step before.
        integral: the gain on the sum of all errors.
    """

    def __init__(
        self, budget_nats: float, per: Literal["unit", "slot"], *, proportional: float, integral: float
    ) -> None:
        super().__init__(budget_nats, per)
        self.proportional, self.integral = proportional, integral

    def steer(self, mean_u: Tensor) -> None:
        """See `Controller`; the integral is kept in [0, 1], so that it doesn't wind up."""
        short_u = self.short_by_u(mean_u).clamp(min=-1)  # the same pace up and down
        self.memory_u = (self.memory_u.to(mean_u) - self.integral * short_u).clamp(0, 1)
        self.price_u = (self.proportional * torch.sigmoid(-short_u) + self.memory_u).clamp(0, 1)


class Lagrangian(Controller):
    """A multiplier that grows while the mean is short of its budget, and shrinks above it; what is missing is paid
    for at once as well, as in an augmented Lagrangian, without which the mean swings around its budget for ever
    (Platt and Barr 1988, Constrained Differential Optimization).

    Args:
        budget_nats: the KL that the mean is steered to.
        per: the part of the latent that has this budget.
        rate: growth per step when the latent is dead.
        largest: of the multiplier.
    """

    def __init__(
        self, budget_nats: float, per: Literal["unit", "slot"], *, rate: float, largest: float
    ) -> None:
        super().__init__(budget_nats, per)
        self.rate, self.largest = rate, largest

    def steer(self, mean_u: Tensor) -> None:
        """See `Controller`."""
        grown_u = self.memory_u.to(mean_u) + self.rate * self.short_by_u(mean_u)
        self.memory_u = grown_u.clamp(0, self.largest)
        self.price_u = 1 - self.memory_u - self.short_by_u(mean_u).clamp(min=0)
