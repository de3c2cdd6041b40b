"""GPT-VAE: the continuous variant, one Gaussian per sequence in a prefix (after Li et al. 2020, Optimus,
arXiv 2004.04092, and Bowman et al. 2016, arXiv 1511.06349, with a decoder-only backbone).

| the public GPT-VAE (x-transformers) | here |
|---|---|
| per-token mean cross-entropy plus per-sequence KL, so weight 1 is beta = T | one objective in nats per sequence, divided by target tokens |
| KL charged for rows whose latent was dropped | dropped rows cost nothing |
| dropped rows shift positions | the prefix stands at negative positions and is hidden by a mask |
| a Gaussian alone | `vmf`, too: directions on a sphere (Xu and Durrett 2018, arXiv 1808.10805), whose KL is constant |
| floor per dimension | loss `elbo`, `term: hinge`, `per: unit` |
"""

from lvlm.hookspecs import hookimpl
from lvlm.interfaces import Register
from lvlm_gptvae.bidirectional import BidirectionalParams
from lvlm_gptvae.cross_attention import CrossAttentionParams
from lvlm_gptvae.film import FilmParams
from lvlm_gptvae.gaussian import GaussianParams
from lvlm_gptvae.logits import LogitsParams
from lvlm_gptvae.mixture import MixturePriorParams
from lvlm_gptvae.prefix import PrefixParams
from lvlm_gptvae.vmf import VMFParams


@hookimpl
def register_encoders(register: Register) -> None:
    """A non-causal stack of its own over the tokens."""
    register(BidirectionalParams)


@hookimpl
def register_quantizers(register: Register) -> None:
    """The diagonal Gaussian, and directions on a sphere."""
    register(GaussianParams)
    register(VMFParams)


@hookimpl
def register_priors(register: Register) -> None:
    """The mixture of Gaussians."""
    register(MixturePriorParams)


@hookimpl
def register_injections(register: Register) -> None:
    """Rows in front of the sequence, and other ways in than FREE's."""
    register(PrefixParams)
    register(FilmParams)
    register(CrossAttentionParams)
    register(LogitsParams)
