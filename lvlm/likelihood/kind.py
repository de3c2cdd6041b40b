"""The contract of estimators: how a number of some rows is made, and all that is known of the number.

Rows ─ Estimator ─► Bounds (nats of each row)          EstimatorParams: name, status, words
"""

from __future__ import annotations

import abc
import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from lvlm.errors import one_of
from lvlm.interfaces import Params
from lvlm.likelihood.names import Resampling
from lvlm.likelihood.particles import Rows
from lvlm.likelihood.weights import Bounds

Status = Literal["exact", "upper bound", "no bound"]
"""What a number is to the negative log-likelihood, in the mean over its draws."""


class Estimator(abc.ABC):
    """One way to a number: a frozen dataclass whose fields are all that the number depends on beside the
    noise.
    """

    costly: ClassVar[bool] = False
    """True where it is computed and kept by itself, so that little is lost when an evaluation is
    interrupted.
    """

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """Name of the number: `EstimatorParams.number` with K filled in."""

    k: int
    """Codes per slot; 1 where none are drawn."""

    @abc.abstractmethod
    def __call__(self, rows: Rows) -> Bounds:
        """Estimate the negative log-likelihood of some rows, nats per row.

        Raises:
            UserError: the model isn't one that it can estimate.
        """


@dataclass(frozen=True)
class Effort:
    """What a recipe's `evaluate` section says to all estimators."""

    k: int
    """Codes per slot, or particles."""
    chunk: int = 4
    """Tokens between resampling checks of a particle filter."""
    resampling: Resampling = "systematic"
    """How particles are drawn anew."""
    resample_below: float = 0.5
    """The share of K under which the effective sample size must fall before a filter resamples."""

    def __post_init__(self) -> None:
        one_of(self.resampling, Resampling, "resampling")


class EstimatorParams(Params):
    """Base of estimators' kinds: everything about a number but its value.

    A recipe names estimators by kind alone, in `evaluate.estimators`, so a kind has no options of its own.
    Its docstring's first line is what glossaries say of the number.
    """

    role: ClassVar[str] = "estimator"

    number: ClassVar[str]
    """Name of the number, with K where it depends on it: 'nll_iwae_K'. A name says how; never 'nll' alone."""
    status: ClassVar[Status] = "upper bound"
    """What the number is to the negative log-likelihood. What is no bound never stands beside a baseline."""
    unbiased: ClassVar[bool] = False
    """Whether the mean of exp(-number) over its draws is the likelihood itself, whatever K."""

    @classmethod
    def label(cls, k: int) -> str:
        """Name of the number for K codes or particles."""
        return re.sub(r"K$", str(k), cls.number)

    @classmethod
    def names(cls, label: str) -> bool:
        """Whether a number of this name is this kind's."""
        return re.fullmatch(re.sub(r"K$", r"\\d+", cls.number), label) is not None

    @property
    def has_k(self) -> bool:
        """Whether each K is a number of its own; else the largest K is used."""
        return self.number.endswith("K")

    def build(self, effort: Effort) -> Estimator:
        """The estimator."""
        raise NotImplementedError(f"{type(self).__name__}.build")
