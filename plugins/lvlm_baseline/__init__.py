"""What every arm shares: a plain causal decoder, which every other model is, cut at a seam; a
prior that sees codes; and the losses.
"""

from lvlm.hookspecs import hookimpl
from lvlm.interfaces import Register
from lvlm.objective import (
    ClampParams,
    HingeParams,
    LagrangianParams,
    MaskParams,
    PIDParams,
    PlainParams,
    TargetParams,
)
from lvlm_baseline.cross_entropy import CrossEntropyParams
from lvlm_baseline.decoder import DecoderParams
from lvlm_baseline.elbo import ElboParams
from lvlm_baseline.iwae import IwaeParams
from lvlm_baseline.mtp import MultiTokenParams
from lvlm_baseline.priors import AutoregressivePriorParams


@hookimpl
def register_backbones(register: Register) -> None:
    """The Llama-like decoder."""
    register(DecoderParams)


@hookimpl
def register_priors(register: Register) -> None:
    """The recurrent network over the codes before."""
    register(AutoregressivePriorParams)


@hookimpl
def register_losses(register: Register) -> None:
    """Cross-entropy alone, or with a KL term, weighed over several codes, or of several tokens ahead."""
    register(CrossEntropyParams)
    register(ElboParams)
    register(IwaeParams)
    register(MultiTokenParams)


@hookimpl
def register_terms(register: Register) -> None:
    """The KL terms of the literature."""
    register(PlainParams)
    register(HingeParams)
    register(MaskParams)
    register(TargetParams)
    register(ClampParams)
    register(PIDParams)
    register(LagrangianParams)
