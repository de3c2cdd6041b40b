"""Controllers: KL terms whose price follows the mean KL of the step before (clamp, pid, lagrangian)."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import ClassVar, Literal, Self

import torch
import torch.distributed as dist
from pydantic import Field, model_validator
from torch import Tensor

from lvlm.errors import one_of
from lvlm.interfaces import Case, Remedy
from lvlm.objective.kl_terms import Granularity, KLTerm, TermParams


class Controller(KLTerm):
    """A charge on all KL at a price that follows the mean KL per slot (or per unit of a slot) of the step
    before.

    Its state is part of the trainer's checkpoint, and its means are taken over all processes.

    Args:
        budget_nats: the mean that it steers to, per slot or per unit of a slot.
        per: 'slot' for one price, 'unit' for one each.
    """

    def __init__(self, budget_nats: float, per: Literal["unit", "slot"]) -> None:
        super().__init__()
        self.budget_nats, self.per = budget_nats, one_of(per, ("unit", "slot"), "per")
        # Broadcast until the first batch shows how many units there are.
        self.price_u, self.memory_u, self.seen_kl_u, self.seen_slots = torch.zeros(4, 1, dtype=torch.float64)

    def forward(self, kl_BSd: Tensor, keep_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Charge all KL at the present price."""
        cost_BSu = kl_BSd if self.per == "unit" else kl_BSd.sum(-1, keepdim=True)
        if self.training:
            seen_u = cost_BSu.detach().double().sum((0, 1))
            self.seen_kl_u = self.seen_kl_u.to(seen_u.device) + seen_u
            self.seen_slots = self.seen_slots.to(seen_u.device) + keep_BS.sum()
        charged = (cost_BSu * self.price_u.to(cost_BSu)).sum()
        return charged, charged

    def at_budget(self, budget_nats: float) -> None:
        """Steer to another budget from here on; prices stay until the step is over."""
        self.budget_nats = budget_nats

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
        """Set `price_u` from the mean KL, nats; `memory_u` is its state from before."""

    def short_by_u(self, mean_u: Tensor) -> Tensor:
        """Share of the budget by which the mean falls short of it; negative above."""
        return 1 - mean_u / self.budget_nats

    def get_extra_state(self) -> dict[str, Tensor]:
        """State between two steps."""
        return {"price_u": self.price_u, "memory_u": self.memory_u}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Restore the state."""
        self.price_u, self.memory_u = state["price_u"], state["memory_u"]


class Clamp(Controller):
    """A controller whose price is 1 above the budget and 0 below."""

    def steer(self, mean_u: Tensor) -> None:
        """Set the price to 1 above the budget, else to 0."""
        self.price_u = (mean_u > self.budget_nats).double()


class PID(Controller):
    """ControlVAE's controller without its differential, on the error as a share of the budget.

    Args:
        budget_nats: as for `Controller`.
        per: as for `Controller`.
        proportional: gain on the present error.
        integral: gain on the summed error, per step.
    """

    def __init__(
        self, budget_nats: float, per: Literal["unit", "slot"], *, proportional: float, integral: float
    ) -> None:
        super().__init__(budget_nats, per)
        self.proportional, self.integral = proportional, integral

    def steer(self, mean_u: Tensor) -> None:
        """Set the price from the error and its integral, which stays in [0, 1], so that it doesn't wind
        up.
        """
        short_u = self.short_by_u(mean_u).clamp(min=-1)  # the same pace up and down
        self.memory_u = (self.memory_u.to(mean_u) - self.integral * short_u).clamp(0, 1)
        self.price_u = (self.proportional * torch.sigmoid(-short_u) + self.memory_u).clamp(0, 1)


class Lagrangian(Controller):
    """A controller with a multiplier that grows while the mean is short of its budget, and shrinks above it.

    What is missing is paid for at once as well, as in an augmented Lagrangian; without that the mean swings
    around its budget for ever (Platt and Barr 1988, Constrained Differential Optimization).

    Args:
        budget_nats: as for `Controller`.
        per: as for `Controller`.
        rate: growth per step while the KL is zero.
        largest: of the multiplier.
    """

    def __init__(
        self, budget_nats: float, per: Literal["unit", "slot"], *, rate: float, largest: float
    ) -> None:
        super().__init__(budget_nats, per)
        self.rate, self.largest = rate, largest

    def steer(self, mean_u: Tensor) -> None:
        """Grow or shrink the multiplier, and set the price."""
        grown_u = self.memory_u.to(mean_u) + self.rate * self.short_by_u(mean_u)
        self.memory_u = grown_u.clamp(0, self.largest)
        self.price_u = 1 - self.memory_u - self.short_by_u(mean_u).clamp(min=0)


class ClampParams(TermParams):
    """The KL of a batch whose mean is above the budget: max(mean KL, budget)."""

    kind: Literal["clamp"] = "clamp"
    takes_schedule: ClassVar[bool] = True
    follows_mean: ClassVar[bool] = True
    linear: ClassVar[bool] = True

    def build(self, *, budget_nats: float, per: Granularity) -> Clamp:
        """The controller."""
        return Clamp(budget_nats, _unit_or_slot(per))


class PIDParams(TermParams):
    """A price between 0 and 1 that a PI controller sets, to bring the mean KL down to the budget
    (ControlVAE).
    """

    kind: Literal["pid"] = "pid"
    takes_schedule: ClassVar[bool] = True
    steers: ClassVar[bool] = True
    follows_mean: ClassVar[bool] = True
    linear: ClassVar[bool] = True
    proportional: float = Field(default=0.01, ge=0)
    """Gain on the present error."""
    integral: float = Field(default=0.01, ge=0)
    """Gain on the summed error, per step."""

    @model_validator(mode="after")
    def _has_a_say(self) -> Self:
        if self.proportional == self.integral == 0:
            raise ValueError("with both gains at 0, pid never charges anything")
        return self

    def build(self, *, budget_nats: float, per: Granularity) -> PID:
        """The controller."""
        return PID(budget_nats, _unit_or_slot(per), proportional=self.proportional, integral=self.integral)


class LagrangianParams(TermParams):
    """A price that falls below 0 while the mean KL is short of the budget: a minimum rate."""

    kind: Literal["lagrangian"] = "lagrangian"
    takes_schedule: ClassVar[bool] = True
    steers: ClassVar[bool] = True
    follows_mean: ClassVar[bool] = True
    linear: ClassVar[bool] = True
    pays_for_kl: ClassVar[bool] = True
    rate: float = Field(default=0.01, gt=0)
    """By how much the multiplier grows in a step while the KL is zero."""
    largest: float = Field(default=10.0, gt=0)
    """Where the multiplier stops growing."""

    def remedies(self, case: Case) -> Iterator[Remedy]:
        """A multiplier that grows faster."""
        if case.trouble == "silent":
            yield Remedy((f"rate={10 * self.rate:g}",), "the multiplier grows faster")

    def build(self, *, budget_nats: float, per: Granularity) -> Lagrangian:
        """The controller."""
        return Lagrangian(budget_nats, _unit_or_slot(per), rate=self.rate, largest=self.largest)


def _unit_or_slot(per: Granularity) -> Literal["unit", "slot"]:
    """What a controller can have a price for: it follows a mean over the batch, so not a sequence."""
    return one_of(per, ("unit", "slot"), "per")  # type: ignore[arg-type]
