"""The objective: cross-entropy, closed-form KLs, KL terms, and gradients through codes."""

from lvlm.objective.additions import Addition, WithAdditions
from lvlm.objective.cross_entropy import cross_entropy_nats, cross_entropy_of, name_of_cross_entropy
from lvlm.objective.divergences import bernoulli_kl, full_precision, gaussian_kl, gaussian_log_prob, wide
from lvlm.objective.gradients import score_function, straight_through
from lvlm.objective.kl_controllers import (
    PID,
    Clamp,
    ClampParams,
    Controller,
    Lagrangian,
    LagrangianParams,
    PIDParams,
)
from lvlm.objective.kl_hinges import (
    HingeParams,
    LocalShape,
    LocalTerm,
    MaskParams,
    Plain,
    PlainParams,
    TargetParams,
)
from lvlm.objective.kl_terms import Granularity, KLTerm, TermParams
from lvlm.objective.losses import (
    ELBO,
    NATS_PER_BIT,
    Charge,
    costless,
    kl_sums,
    per_token,
    real_kl,
    reconstruction,
)

__all__ = [
    "ELBO",
    "NATS_PER_BIT",
    "PID",
    "Addition",
    "Charge",
    "Clamp",
    "ClampParams",
    "Controller",
    "Granularity",
    "HingeParams",
    "KLTerm",
    "Lagrangian",
    "LagrangianParams",
    "LocalShape",
    "LocalTerm",
    "MaskParams",
    "PIDParams",
    "Plain",
    "PlainParams",
    "TargetParams",
    "TermParams",
    "WithAdditions",
    "bernoulli_kl",
    "costless",
    "cross_entropy_nats",
    "cross_entropy_of",
    "full_precision",
    "gaussian_kl",
    "gaussian_log_prob",
    "kl_sums",
    "name_of_cross_entropy",
    "per_token",
    "real_kl",
    "reconstruction",
    "score_function",
    "straight_through",
    "wide",
]
