"""Names of estimators, resampling rules and proposals."""

from __future__ import annotations

from typing import Literal, get_args

EstimatorName = Literal[
    "exact",
    "elbo",
    "prior",
    "iwae",
    "iwae_prior",
    "iwae_mixture",
    "smc",
    "smc_prior",
    "smc_mixture",
    "smc_deferred",
]

ESTIMATOR_NAMES: tuple[EstimatorName, ...] = get_args(EstimatorName)

Proposal = Literal["posterior", "prior", "mixture"]

Resampling = Literal["systematic", "stratified", "multinomial"]
