"""Bounds on the likelihood: particles, weights, filters and estimators, from a model and rows of tokens.

An author of an estimator needs `EstimatorParams`, `Estimator` and `Effort`; `Rows`, which makes draws, costs
and weights of a model's rows; `Bounds`, what it returns; and `importance`, `averaged` and `run_filter`, which
make bounds of weights.
"""

from lvlm.likelihood.filter import Filter, run_filter
from lvlm.likelihood.kind import Effort, Estimator, EstimatorParams, Status
from lvlm.likelihood.names import Proposal, Resampling
from lvlm.likelihood.particles import Rows
from lvlm.likelihood.walk import Draws
from lvlm.likelihood.weights import Bounds, averaged, importance

__all__ = [
    "Bounds",
    "Draws",
    "Effort",
    "Estimator",
    "EstimatorParams",
    "Filter",
    "Proposal",
    "Resampling",
    "Rows",
    "Status",
    "averaged",
    "importance",
    "run_filter",
]
