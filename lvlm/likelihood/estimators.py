"""The estimators of a model's likelihood, on one interface: rows in, a bound for each out.

| estimator      | name of the number    | what it is                                                          | bounds the NLL |
|----------------|-----------------------|---------------------------------------------------------------------|----------------|
| `exact`        | `nll_exact`           | all codes of all slots, summed; a model without a latent, as it is  | is the NLL     |
| `elbo`         | `elbo`                | ce_posterior + raw KL                                               | yes            |
| `prior`        | `ce_prior`            | cross-entropy with codes from the prior, averaged                   | yes            |
| `iwae`         | `nll_iwae_K`          | -log mean of K weights, codes of whole sequences from the posterior | yes            |
| `smc`          | `nll_smc_K`           | particle filter, codes from the posterior                           | yes            |
| `smc_deferred` | `nll_smc_deferred_K`  | particle filter that charges p(z)/q(z given x) at the end           | yes            |
| `…_prior`      | `nll_…_prior_K`       | `iwae` or `smc` with codes from the prior                           | yes            |
| `…_mixture`    | `nll_…_mixture_K`     | `iwae` or `smc`, each code from posterior or prior with even odds   | yes            |

All are upper bounds in expectation; means over sequences and their errors are `lvlm.likelihood.estimate`'s.
"""

from __future__ import annotations

import abc
import re
from dataclasses import dataclass

from lvlm.errors import UserError
from lvlm.likelihood.filter import Filter, run_filter
from lvlm.likelihood.names import EstimatorName, Proposal, Resampling
from lvlm.likelihood.particles import Rows
from lvlm.likelihood.weights import Bounds, averaged, importance


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
        return f"nll_iwae_{_of(self.proposal)}{self.k}"

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
        return f"nll_smc_{'deferred_' * self.spec.deferred}{_of(self.spec.proposal)}{self.spec.k}"

    def __call__(self, rows: Rows) -> Bounds:
        """See `Estimator`."""
        return run_filter(rows, self.spec)


def _of(proposal: Proposal) -> str:
    return "" if proposal == "posterior" else f"{proposal}_"


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
            kind, _, of = name.partition("_")
            proposal: Proposal = "prior" if of == "prior" else "mixture" if of == "mixture" else "posterior"
            for k in sorted(set(ks)):
                if kind == "iwae":
                    found.append(Importance(k, proposal))
                else:
                    spec = Filter(k, chunk, resampling, resample_below, proposal, of == "deferred")
                    found.append(ParticleFilter(spec))
    return found


_PATTERN = re.compile(
    r"nll_exact|elbo|ce_prior|nll_iwae_(prior_|mixture_)?\d+|nll_smc_(prior_|mixture_|deferred_)?\d+"
)


def is_bound(name: str) -> bool:
    """Whether a number by that name is a valid upper bound on the negative log-likelihood (or is it)."""
    return _PATTERN.fullmatch(name) is not None


def label_of(name: EstimatorName, k: int) -> str:
    """The name of an estimator's number."""
    (estimator,) = make_estimators([name], [k], has_latent=True)
    return estimator.label
