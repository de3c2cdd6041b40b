"""Codebooks: one of N codes a slot. `categorical` draws it; the others, by the quantizers of
vector-quantize-pytorch, choose it, so that their posterior is a point mass.

| the papers | here |
|---|---|
| a prior is trained in a second stage | `prior: learned` trains it along: the KL of a code is -log p(code), and its gradient stays out of the encoder |
| the KL to the uniform prior, log N, is constant and left out | it is logged and charged like any other, but moves nothing |
| FSQ (Mentzer et al. 2023, arXiv 2309.15505) rounds lopsidedly to 2 levels | with a level count of 2, `fsq` rounds as Parker et al. 2024, arXiv 2411.19842 |
| VQ-VAE (van den Oord et al. 2017, arXiv 1711.00937), eq. 3 | `vq`, the same for each slot, in nats; slots of padding and dropped rows pull nothing |
| LFQ (Yu et al. 2023, arXiv 2310.05737) and BSQ (Zhao et al. 2024, arXiv 2406.07548): the entropy of a batch's mean | `lfq` and `bsq`: of the mean over all slots that count, which is learned along (`lvlm_codebooks.signs`) |
| residual FSQ has a code for each stage | `residual_fsq`: one index of all stages, so that the prior is over their product |
| Gumbel-softmax (Jang et al. 2017, arXiv 1611.01144) may pass mixtures on | `categorical`: one of N in every pass |
| VQ-VAE's other codebook, of moving averages | left out: it would average over padding and dropped rows |
"""

from lvlm.hookspecs import hookimpl
from lvlm.interfaces import Register
from lvlm_codebooks.bsq import BSQParams
from lvlm_codebooks.categorical import CategoricalParams
from lvlm_codebooks.fsq import FSQParams
from lvlm_codebooks.lfq import LFQParams
from lvlm_codebooks.residual_fsq import ResidualFSQParams
from lvlm_codebooks.vq import VQParams


@hookimpl
def register_quantizers(register: Register) -> None:
    """The categorical, and the codebooks of vector-quantize-pytorch."""
    register(CategoricalParams)
    register(FSQParams)
    register(ResidualFSQParams)
    register(LFQParams)
    register(BSQParams)
    register(VQParams)
