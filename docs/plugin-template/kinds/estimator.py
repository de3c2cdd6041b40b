"""The estimator `my_kind`: importance weighting with K codes of the prior, which have not seen the answer.

It works as it stands. CHANGE marks where yours begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from lvlm.hookspecs import hookimpl
from lvlm.interfaces import Register
from lvlm.likelihood import Bounds, Effort, Estimator, EstimatorParams, Proposal, Rows, importance

PROPOSAL: Proposal = "prior"


@dataclass(frozen=True)
class MyKind(Estimator):
    """-log of the mean of p(x | code) over K codes of whole sequences, nats per row."""

    # The fields are all that the number depends on, beside the noise: a stored evaluation is known by them.
    k: int

    @property
    def label(self) -> str:
        """Name of the number."""
        return MyKindParams.label(self.k)

    def __call__(self, rows: Rows) -> Bounds:
        """Estimate the negative log-likelihood of some rows, nats per row."""
        # CHANGE: where codes come from, and how their weights become a bound. `log_ratio_BKS` is log p - log
        # q of each slot's code, nats; `cost` is -log p(x | code).
        log_ratio_BK = rows.draws(PROPOSAL, self.k).log_ratio_BKS.sum(-1)
        return importance(log_ratio_BK - rows.cost(PROPOSAL, self.k))


class MyKindParams(EstimatorParams):
    """K samples of the prior, weighted by what they say of the text."""

    kind: Literal["my_kind"] = "my_kind"
    # CHANGE: what the number is called (it ends with K where it depends on it), and what it promises.
    # `status` says whether it is an upper bound, exact or no bound; `unbiased` whether the mean of
    # exp(-number) is the likelihood.
    number: ClassVar[str] = "nll_my_kind_K"
    unbiased: ClassVar[bool] = True

    def build(self, effort: Effort) -> MyKind:
        """The estimator for that effort."""
        return MyKind(effort.k)


@hookimpl
def register_estimators(register: Register) -> None:
    """Supply the estimator."""
    register(MyKindParams)
