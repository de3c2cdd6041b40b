"""Our own estimators and the simplest priors, which take the route that a stranger's take."""

from __future__ import annotations

from lvlm.hookspecs import hookimpl
from lvlm.interfaces import Register
from lvlm.likelihood.estimators import (
    ElboParams,
    ExactParams,
    FilterDeferredParams,
    FilterMixtureParams,
    FilterParams,
    FilterPriorParams,
    ImportanceMixtureParams,
    ImportanceParams,
    ImportancePriorParams,
    PriorRolloutParams,
)
from lvlm.model.prior import FixedPriorParams, LinearPriorParams


@hookimpl
def register_priors(register: Register) -> None:
    """Priors that recipes know by a word, with every plugin or none."""
    register(FixedPriorParams)
    register(LinearPriorParams)


@hookimpl
def register_estimators(register: Register) -> None:
    """The likelihood itself, the two plain bounds, importance weighting, and particle filters."""
    register(ExactParams)
    register(ElboParams)
    register(PriorRolloutParams)
    register(ImportanceParams)
    register(ImportancePriorParams)
    register(ImportanceMixtureParams)
    register(FilterParams)
    register(FilterPriorParams)
    register(FilterMixtureParams)
    register(FilterDeferredParams)
