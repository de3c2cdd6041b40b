"""The estimators of a model's likelihood, on one interface: rows in, a bound for each out.

| estimator        | name of the number    | what it is                                                          | bounds the NLL |
|------------------|-----------------------|---------------------------------------------------------------------|----------------|
| `exact`          | `nll_exact`           | all codes of all slots, summed; a model without a latent, as it is  | is the NLL     |
| `elbo`           | `elbo`                | ce_posterior + raw KL                                               | yes            |
| `prior`          | `ce_prior`            | cross-entropy with codes from the prior, averaged                   | yes            |
| `iwae`           | `nll_iwae_K`          | -log mean of K weights, codes of whole sequences from the posterior | yes            |
| `iwae_prior`     | `nll_iwae_prior_K`    | the same with codes from the prior                                  | yes            |
| `smc`            | `nll_smc_K`           | particle filter, codes from the posterior                           | yes            |
| `smc_prior`      | `nll_smc_prior_K`     | particle filter, codes from the prior                               | yes            |
| `smc_deferred`   | `nll_smc_deferred_K`  | particle filter that charges p(z)/q(z given x) at the end           | yes            |

All are upper bounds in expectation; means over sequences and their errors are `lvlm.evaluation`'s.
"""

from __future__ import annotations

import abc
import re
from dataclasses import dataclass
from typing import Literal, get_args

from lvlm.errors import UserError
from lvlm.particles import Bounds, Filter, Proposal, Resampling, Rows, averaged, importance, run_filter

EstimatorName = Literal["exact", "elbo", "prior", "iwae", "iwae_prior", "smc", "smc_prior", "smc_deferred"]
ESTIMATOR_NAMES: tuple[EstimatorName, ...] = get_args(EstimatorName)


class Estimator(abc.ABC):
    """One way to a number; frozen dataclasses, whose fields are all that the number depends on beside the noise."""

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """The name of its number."""

    k: int
    """Codes per slot; 1 where none are drawn."""

    @abc.abstractmethod
    def __call__(self, rows: Rows) -> Bounds:
        """The numbers of some rows.

        Raises:
            UserError: the model isn't one that it can estimate.
        """


@dataclass(frozen=True)
class Exact(Estimator):
    """The likelihood itself."""

    label = "nll_exact"
    k = 1

    def __call__(self, rows: Rows) -> Bounds:
        """See `Estimator`."""
        if rows.model.latent is None:
            return Bounds(rows.exact_by_target().sum(-1))
        sequences_NS = rows.code_sequences()
        quantizer, batch = rows.model.latent.quantizer, len(rows.batch)
        codes = sequences_NS.expand(batch, -1, -1)
        prior_BNSJ = rows.prior_BSJ[:, None].expand(-1, len(sequences_NS), -1, -1)
        log_p = quantizer.log_prob(codes.flatten(0, 1), prior_BNSJ.flatten(0, 1)).double()
        log_joint_BN = log_p.sum(-1).view(batch, -1) - rows.cost_of(codes)
        return Bounds(-log_joint_BN.logsumexp(1))


@dataclass(frozen=True)
class Elbo(Estimator):
    """The negative evidence lower bound from k draws."""

    k: int
    label = "elbo"

    def __call__(self, rows: Rows) -> Bounds:
        """See `Estimator`."""
        ce = averaged(rows.cost("posterior", self.k))
        return Bounds(ce.nats + rows.kl().double().sum((1, 2)), noise=ce.noise)


@dataclass(frozen=True)
class PriorRollout(Estimator):
    """The mean cross-entropy of k draws from the prior."""

    k: int
    label = "ce_prior"

    def __call__(self, rows: Rows) -> Bounds:
        """See `Estimator`."""
        return averaged(rows.cost("prior", self.k))


@dataclass(frozen=True)
class Importance(Estimator):
    """Importance weighting of whole sequences."""

    k: int
    proposal: Proposal = "posterior"

    @property
    def label(self) -> str:
        """See `Estimator`."""
        return f"nll_iwae_{'prior_' * (self.proposal == 'prior')}{self.k}"

    def __call__(self, rows: Rows) -> Bounds:
        """See `Estimator`."""
        log_ratio_BKS = rows.draws(self.proposal, self.k).log_ratio_BKS
        return importance(log_ratio_BKS.sum(-1) - rows.cost(self.proposal, self.k))


@dataclass(frozen=True)
class ParticleFilter(Estimator):
    """Sequential Monte Carlo."""

    spec: Filter

    @property
    def k(self) -> int:  # type: ignore[override]
        """See `Estimator`."""
        return self.spec.k

    @property
    def label(self) -> str:
        """See `Estimator`."""
        kind = "deferred_" if self.spec.deferred else "prior_" if self.spec.proposal == "prior" else ""
        return f"nll_smc_{kind}{self.spec.k}"

    def __call__(self, rows: Rows) -> Bounds:
        """See `Estimator`."""
        return run_filter(rows, self.spec)


def make_estimators(
    names: list[EstimatorName],
    ks: list[int],
    *,
    has_latent: bool,
    chunk: int = 4,
    resampling: Resampling = "systematic",
    resample_below: float = 0.5,
) -> list[Estimator]:
    """The estimators of those names, one for each K where the name has a K; without a latent all are `exact`.

    `elbo` and `prior`, whose mean doesn't depend on K, use the largest.

    Raises:
        UserError: no names, or no K.
    """
    if not names or not ks:
        raise UserError("name at least one estimator and one K: --estimators elbo,smc --k 16")
    if not has_latent:
        return [Exact()]
    found: list[Estimator] = []
    for name in dict.fromkeys(names):
        if name == "exact":
            found.append(Exact())
        elif name == "elbo":
            found.append(Elbo(max(ks)))
        elif name == "prior":
            found.append(PriorRollout(max(ks)))
        else:
            proposal: Proposal = "prior" if name.endswith("_prior") else "posterior"
            for k in sorted(set(ks)):
                if name.startswith("iwae"):
                    found.append(Importance(k, proposal))
                else:
                    spec = Filter(k, chunk, resampling, resample_below, proposal, name == "smc_deferred")
                    found.append(ParticleFilter(spec))
    return found


_PATTERN = re.compile(r"nll_exact|elbo|ce_prior|nll_iwae_(prior_)?\d+|nll_smc_(prior_|deferred_)?\d+")


def is_bound(name: str) -> bool:
    """Whether a number by that name is a valid upper bound on the negative log-likelihood (or is it)."""
    return _PATTERN.fullmatch(name) is not None


def label_of(name: EstimatorName, k: int) -> str:
    """The name of an estimator's number."""
    (estimator,) = make_estimators([name], [k], has_latent=True)
    return estimator.label


__all__ = [
    "ESTIMATOR_NAMES",
    "Bounds",
    "Estimator",
    "EstimatorName",
    "is_bound",
    "label_of",
    "make_estimators",
]
