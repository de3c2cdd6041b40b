"""The baseline: a plain causal decoder and cross-entropy. Every other model is this one, cut at a seam."""

from lvlm.hookspecs import hookimpl
from lvlm.interfaces import Register
from lvlm_baseline.cross_entropy import CrossEntropyParams
from lvlm_baseline.decoder import DecoderParams


@hookimpl
def register_backbones(register: Register) -> None:
    """The Llama-like decoder."""
    register(DecoderParams)


@hookimpl
def register_losses(register: Register) -> None:
    """Cross-entropy alone."""
    register(CrossEntropyParams)
