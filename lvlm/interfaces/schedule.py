"""Numbers that follow the training step: constant, linear, cyclical."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from lvlm.interfaces.section import Section


class Ramp(Section):
    """From `start` to `end` in a straight line over `steps` steps, then constant; with `cycle_steps`, again
    and again (Fu et al. 2019, Cyclical Annealing Schedule, arXiv 1903.10145).
    """

    start: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """The value at step 0, and at the start of every cycle."""
    end: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """The value at the end of the way, and from there on."""
    steps: int = Field(ge=1)
    """How long the way from start to end is."""
    after: int = Field(default=0, ge=0)
    """Steps at the start value before the way, or the first cycle, begins."""
    cycle_steps: int | None = Field(default=None, ge=1)
    """After so many steps it begins anew; null for once."""

    @model_validator(mode="after")
    def _cycle_is_long_enough(self) -> Self:
        if self.cycle_steps is not None and self.cycle_steps < self.steps:
            raise ValueError(f"cycle_steps {self.cycle_steps} are fewer than the ramp's steps {self.steps}")
        return self


Schedule = Annotated[float, Field(ge=0, allow_inf_nan=False)] | Ramp
"""A constant, or a ramp."""


def least_of(schedule: Schedule) -> float:
    """The smallest value that a schedule ever has."""
    return min(schedule.start, schedule.end) if isinstance(schedule, Ramp) else float(schedule)


Budget = Annotated[float, Field(ge=0, allow_inf_nan=True)] | Ramp
"""A schedule that may also be infinite throughout."""


def final_value(schedule: Schedule | Budget) -> float:
    """The value at the end of a schedule's way."""
    return schedule.end if isinstance(schedule, Ramp) else float(schedule)


def value_at(schedule: Schedule | Budget, step: int) -> float:
    """The value of a schedule after `step` steps."""
    if not isinstance(schedule, Ramp):
        return float(schedule)
    within = max(0, step - schedule.after)
    if schedule.cycle_steps is not None:
        within %= schedule.cycle_steps
    return schedule.start + (schedule.end - schedule.start) * min(1.0, within / schedule.steps)
