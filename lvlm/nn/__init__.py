"""Layers that plugins share: rotary positions, attention with a cache, the pre-norm block."""

from lvlm.interfaces import LayerCache
from lvlm.nn.attention import Attention, MemoryAttention
from lvlm.nn.block import TransformerBlock
from lvlm.nn.pool import masked_mean, spread
from lvlm.nn.rope import Rotary, rotary, rotate

__all__ = [
    "Attention",
    "LayerCache",
    "MemoryAttention",
    "Rotary",
    "TransformerBlock",
    "masked_mean",
    "rotary",
    "rotate",
    "spread",
]
