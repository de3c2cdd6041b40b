"""The contracts between the core and its parts: `parts.py` is the page to read, `params.py` what a recipe
says.
"""

from lvlm.interfaces.cache import LayerCache
from lvlm.interfaces.codec import Codec
from lvlm.interfaces.data import IGNORE, Batch, Conditioning, Drawn, Latent, Output, Slots, Terms
from lvlm.interfaces.noise import RowGenerator, exponential, normal, uniform
from lvlm.interfaces.params import (
    PARAMS_OF_PART,
    PART_ROLES,
    BackboneParams,
    BlockInjectionParams,
    EncoderParams,
    InjectionParams,
    LossParams,
    Params,
    PortName,
    PriorParams,
    QuantizerParams,
    Register,
)
from lvlm.interfaces.parts import Backbone, Block, Encoder, Injection, KLForm, Loss, Prior, Quantizer
from lvlm.interfaces.remedy import Case, Remedy, Trouble
from lvlm.interfaces.schedule import Budget, Ramp, Schedule, final_value, least_of, value_at
from lvlm.interfaces.section import Section

__all__ = [
    "IGNORE",
    "PARAMS_OF_PART",
    "PART_ROLES",
    "Backbone",
    "BackboneParams",
    "Batch",
    "Block",
    "BlockInjectionParams",
    "Budget",
    "Case",
    "Codec",
    "Conditioning",
    "Drawn",
    "Encoder",
    "EncoderParams",
    "Injection",
    "InjectionParams",
    "KLForm",
    "Latent",
    "LayerCache",
    "Loss",
    "LossParams",
    "Output",
    "Params",
    "PortName",
    "Prior",
    "PriorParams",
    "Quantizer",
    "QuantizerParams",
    "Ramp",
    "Register",
    "Remedy",
    "RowGenerator",
    "Schedule",
    "Section",
    "Slots",
    "Terms",
    "Trouble",
    "exponential",
    "final_value",
    "least_of",
    "normal",
    "uniform",
    "value_at",
]
