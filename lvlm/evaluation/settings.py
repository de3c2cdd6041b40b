"""Settings of an evaluation that replace those of the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lvlm.errors import UserError, check_count, one_of
from lvlm.likelihood.names import MOST_REPEATS, Resampling


@dataclass(frozen=True)
class Settings:
    """What an evaluation is asked for beyond the recipe's own; None is as the recipe says.

    Raises:
        UserError: one of them is out of range, or not known.
    """

    estimators: Sequence[str] | None = None
    ks: Sequence[int] | None = None
    windows: int | None = None
    chunk: int | None = None
    resampling: Resampling | None = None
    resample_below: float | None = None
    repeats: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.estimators, str):
            raise UserError(
                f"estimators is {self.estimators!r}; it is a list of names: [{self.estimators!r}]"
            )
        if self.estimators is not None and not list(self.estimators):
            raise UserError("estimators is empty; name some, such as elbo,smc, or leave the option out")
        if self.ks is not None and not list(self.ks):
            raise UserError("k is empty; it is a whole number, or several")
        if self.resampling is not None:
            one_of(self.resampling, Resampling, "resampling")
        for k in self.ks or ():
            check_count("k", k)
        for what in ("windows", "chunk", "repeats"):
            if (value := getattr(self, what)) is not None:
                check_count(what, value)
        if (self.repeats or 0) > MOST_REPEATS:
            raise UserError(f"repeats is {self.repeats}; it is at most {MOST_REPEATS:,}")
        if self.resample_below is not None and not 0 <= self.resample_below <= 1:
            raise UserError(f"resample_below is {self.resample_below}; it is a share, from 0 to 1")

    @property
    def as_declared(self) -> bool:
        """Whether the recipe is followed throughout."""
        return self == Settings()
