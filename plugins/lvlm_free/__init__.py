"""FREE: the binary variant (Fleuret 2025, The Free Transformer, arXiv 2510.17558; F25 in this package).

| the paper | here |
|---|---|
| seam at L/2 | `model.seam: middle`, or any block |
| encoder: one non-causal block, learned query, K/V from the hidden | `learned_query`; the query has rotary positions, without which every token would get the same posterior |
| binary mapper, 16 bits, dense one-hot | `binary`; the same value and gradients through a table lookup; `bits_per_group` factors the table |
| post-sampler's initialisation unstated | zero, so that step 0 equals the baseline bit for bit; `binary.embedding_std` |
| K/V input of block L/2+1 is X + R; where it is normalised is unstated | `kv.norm`: `sum` = norm(x + r), `hidden` = norm(x) + r |
| hinge on the KL per token (eq. 5) | loss `elbo`, `term: hinge`, `per: slot` |
"""

from lvlm.hookspecs import hookimpl
from lvlm.interfaces import Register
from lvlm_free.add import AddParams
from lvlm_free.binary import BinaryParams
from lvlm_free.kv import KVParams
from lvlm_free.learned_query import LearnedQueryParams


@hookimpl
def register_encoders(register: Register) -> None:
    """One non-causal block with a learned query."""
    register(LearnedQueryParams)


@hookimpl
def register_quantizers(register: Register) -> None:
    """The binary mapper."""
    register(BinaryParams)


@hookimpl
def register_injections(register: Register) -> None:
    """Into the keys and values of one block, or onto the hidden."""
    register(KVParams)
    register(AddParams)
