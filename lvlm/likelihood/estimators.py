"""Estimators of a model's likelihood, on one interface: rows in, a number for each out.

Each is a module and its kind, which says what the number is called, what it bounds, and what glossaries say
of it (`lvlm kinds estimator`). `exact` is the likelihood; all others are upper bounds on the negative
log-likelihood in the mean over their draws. Means over sequences and their errors are
`lvlm.likelihood.estimate`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from lvlm.errors import UserError, one_of
from lvlm.likelihood.filter import Filter, run_filter
from lvlm.likelihood.kind import Effort, Estimator, EstimatorParams, Status
from lvlm.likelihood.names import Proposal, Resampling
from lvlm.likelihood.particles import Rows
from lvlm.likelihood.weights import Bounds, averaged, importance


@dataclass(frozen=True)
class Exact(Estimator):
    """The likelihood itself."""

    label = "nll_exact"
    k = 1

    def __call__(self, rows: Rows) -> Bounds:
        """Sum over the codes of all slots, nats per row."""
        if not rows.model.names:
            return Bounds(rows.exact_by_target().sum(-1))
        return Bounds(-rows.log_joint_of_all().logsumexp(1))


class ExactParams(EstimatorParams):
    """The model's own negative log-likelihood; with a latent, only where all codes can be tried."""

    kind: Literal["exact"] = "exact"
    number: ClassVar[str] = "nll_exact"
    status: ClassVar[Status] = "exact"
    unbiased: ClassVar[bool] = True

    def build(self, effort: Effort) -> Estimator:
        """The estimator."""
        return Exact()


@dataclass(frozen=True)
class Elbo(Estimator):
    """The negative evidence lower bound from k draws."""

    k: int
    label = "elbo"

    def __call__(self, rows: Rows) -> Bounds:
        """Cross-entropy under codes of the posterior plus raw KL, nats per row; where the KL depends on the
        codes that were drawn, it is the mean over the same draws.
        """
        cost_BK, kl_BK = rows.cost("posterior", self.k), rows.kl_of_draws(self.k).double().sum((2, 3))
        ce, both = averaged(cost_BK), averaged(cost_BK + kl_BK)
        return Bounds(ce.nats + kl_BK.mean(1), noise=ce.noise if rows.kl_is_exact else both.noise)


class ElboParams(EstimatorParams):
    """ce_posterior + raw KL: the negative evidence lower bound."""

    kind: Literal["elbo"] = "elbo"
    number: ClassVar[str] = "elbo"

    def build(self, effort: Effort) -> Estimator:
        """The estimator."""
        return Elbo(effort.k)


@dataclass(frozen=True)
class PriorRollout(Estimator):
    """The mean cross-entropy of k draws from the prior."""

    k: int
    label = "ce_prior"

    def __call__(self, rows: Rows) -> Bounds:
        """Mean cross-entropy, nats per row."""
        return averaged(rows.cost("prior", self.k))


class PriorRolloutParams(EstimatorParams):
    """Cross-entropy with codes drawn from the prior, as in generation."""

    kind: Literal["prior"] = "prior"
    number: ClassVar[str] = "ce_prior"

    def build(self, effort: Effort) -> Estimator:
        """The estimator."""
        return PriorRollout(effort.k)


@dataclass(frozen=True)
class Importance(Estimator):
    """Importance weighting of whole sequences."""

    k: int
    proposal: Proposal = "posterior"

    def __post_init__(self) -> None:
        one_of(self.proposal, Proposal, "proposal")

    @property
    def label(self) -> str:
        """'nll_iwae_K', with the proposal unless it is the posterior."""
        return f"nll_iwae_{_of(self.proposal)}{self.k}"

    def __call__(self, rows: Rows) -> Bounds:
        """Minus the log of the mean weight, nats per row."""
        log_ratio_BKS = rows.draws(self.proposal, self.k).log_ratio_BKS
        return importance(log_ratio_BKS.sum(-1) - rows.cost(self.proposal, self.k))


class ImportanceParams(EstimatorParams):
    """K weighted posterior samples of the whole sequence; tighter as K grows."""

    kind: Literal["iwae"] = "iwae"
    number: ClassVar[str] = "nll_iwae_K"
    unbiased: ClassVar[bool] = True

    def build(self, effort: Effort) -> Estimator:
        """The estimator."""
        return Importance(effort.k)


class ImportancePriorParams(EstimatorParams):
    """K weighted samples of the prior."""

    kind: Literal["iwae_prior"] = "iwae_prior"
    number: ClassVar[str] = "nll_iwae_prior_K"
    unbiased: ClassVar[bool] = True

    def build(self, effort: Effort) -> Estimator:
        """The estimator."""
        return Importance(effort.k, "prior")


class ImportanceMixtureParams(EstimatorParams):
    """K weighted samples, each code from posterior or prior with even odds."""

    kind: Literal["iwae_mixture"] = "iwae_mixture"
    number: ClassVar[str] = "nll_iwae_mixture_K"
    unbiased: ClassVar[bool] = True

    def build(self, effort: Effort) -> Estimator:
        """The estimator."""
        return Importance(effort.k, "mixture")


@dataclass(frozen=True)
class ParticleFilter(Estimator):
    """Sequential Monte Carlo."""

    costly: ClassVar[bool] = True
    spec: Filter

    @property
    def k(self) -> int:  # type: ignore[override]
        """Particles."""
        return self.spec.k

    @property
    def label(self) -> str:
        """'nll_smc_K', with what differs from a filter that proposes from the posterior."""
        return f"nll_smc_{'deferred_' * self.spec.deferred}{_of(self.spec.proposal)}{self.spec.k}"

    def __call__(self, rows: Rows) -> Bounds:
        """Minus the log of the product of mean weights, nats per row."""
        return run_filter(rows, self.spec)


class FilterParams(EstimatorParams):
    """Particle filter of K particles, codes from the posterior, weighed on the way."""

    kind: Literal["smc"] = "smc"
    number: ClassVar[str] = "nll_smc_K"
    unbiased: ClassVar[bool] = True

    def build(self, effort: Effort) -> Estimator:
        """The estimator."""
        return ParticleFilter(_filter(effort))


class FilterPriorParams(EstimatorParams):
    """Particle filter with codes from the prior."""

    kind: Literal["smc_prior"] = "smc_prior"
    number: ClassVar[str] = "nll_smc_prior_K"
    unbiased: ClassVar[bool] = True

    def build(self, effort: Effort) -> Estimator:
        """The estimator."""
        return ParticleFilter(_filter(effort, "prior"))


class FilterMixtureParams(EstimatorParams):
    """Particle filter, each code from posterior or prior with even odds, so that no weight runs away."""

    kind: Literal["smc_mixture"] = "smc_mixture"
    number: ClassVar[str] = "nll_smc_mixture_K"
    unbiased: ClassVar[bool] = True

    def build(self, effort: Effort) -> Estimator:
        """The estimator."""
        return ParticleFilter(_filter(effort, "mixture"))


class FilterDeferredParams(EstimatorParams):
    """Particle filter that charges for the codes at the end: for plans that pay off late."""

    kind: Literal["smc_deferred"] = "smc_deferred"
    number: ClassVar[str] = "nll_smc_deferred_K"
    unbiased: ClassVar[bool] = True

    def build(self, effort: Effort) -> Estimator:
        """The estimator."""
        return ParticleFilter(_filter(effort, deferred=True))


def _filter(effort: Effort, proposal: Proposal = "posterior", *, deferred: bool = False) -> Filter:
    return Filter(effort.k, effort.chunk, effort.resampling, effort.resample_below, proposal, deferred)


def _of(proposal: Proposal) -> str:
    return "" if proposal == "posterior" else f"{proposal}_"


def make_estimators(
    kinds: Sequence[EstimatorParams],
    ks: Sequence[int],
    *,
    has_latent: bool,
    chunk: int = 4,
    resampling: Resampling = "systematic",
    resample_below: float = 0.5,
) -> list[Estimator]:
    """Estimators of some kinds, one for each K where the number has a K; without a latent `Exact` alone.

    Those whose number has no K use the largest.

    Raises:
        UserError: no kinds, no K, or an unknown way of resampling.
    """
    if not kinds or not ks:
        raise UserError("name at least one estimator and one K: --estimators elbo,smc --k 16")
    one_of(resampling, Resampling, "resampling")
    if not has_latent:
        return [Exact()]
    each = {kind.kind_name(): kind for kind in kinds}.values()
    return [
        kind.build(Effort(k, chunk, resampling, resample_below))
        for kind in each
        for k in (sorted(set(ks)) if kind.has_k else [max(ks)])
    ]


def status_of(label: str, kinds: Iterable[type[EstimatorParams]]) -> Status:
    """What a number of that name is to the negative log-likelihood; 'no bound' for one that no kind knows."""
    return next((kind.status for kind in kinds if kind.names(label)), "no bound")
