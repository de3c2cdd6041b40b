"""A prior that sees the codes before, with numbers of the quantizer's own family."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from lvlm.interfaces import Prior, PriorParams, Quantizer
from lvlm.objective import full_precision


class AutoregressivePrior(Prior):
    """A recurrent network over the codes before each slot, beside a linear map of the hidden.

    hidden at each slot's first position [B, S, D] ─ linear ─┐
    embeddings of the codes before [B, S, C] ─ GRU ─ linear ─┴─► numbers [B, S, J]

    Both linear maps are zero at the start. The GRU is that of Cho et al. 2014, arXiv 1406.1078; what it
    remembers of a row is one vector, so that particles can take over each other's. Autoregressive priors of
    codes are those of van den Oord et al. 2017, arXiv 1711.00937; there the prior is trained afterwards, here
    together with the codes. The KL of a slot is that to its numbers under the codes drawn before it, and
    through their embedding the gradient reaches their posterior as the family estimates it.

    Args:
        width: D.
        embedding_dim: C.
        prior_dim: J.
        memory: width of the GRU.
    """

    sees_codes = True

    def __init__(self, *, width: int, embedding_dim: int, prior_dim: int, memory: int) -> None:
        super().__init__()
        self.of_hidden = nn.Linear(width, prior_dim)
        self.recurrent = nn.GRU(embedding_dim, memory, batch_first=True)
        self.of_codes = nn.Linear(memory, prior_dim, bias=False)
        for zero in (self.of_hidden.weight, self.of_hidden.bias, self.of_codes.weight):
            nn.init.zeros_(zero)

    def forward(self, hidden_BSD: Tensor, before_BSC: Tensor | None = None) -> Tensor:
        """Numbers [B, S, J] under the codes before each slot."""
        assert before_BSC is not None
        return self._numbers(hidden_BSD, before_BSC, self.start(hidden_BSD))[0]

    def start(self, hidden_BSD: Tensor) -> Tensor:
        """Zeros, [B, width of the GRU]."""
        return self.of_codes.weight.new_zeros(len(hidden_BSD), self.recurrent.hidden_size)

    def step(self, hidden_B1D: Tensor, before_B1C: Tensor, state_B: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of the next slot, and the GRU's state after the code before it."""
        return self._numbers(hidden_B1D, before_B1C, state_B)

    def _numbers(self, hidden_BSD: Tensor, before_BSC: Tensor, state_Bm: Tensor) -> tuple[Tensor, Tensor]:
        with full_precision(hidden_BSD):
            dtype = self.of_codes.weight.dtype
            heard_BSm, state_1Bm = self.recurrent(before_BSC.to(dtype), state_Bm[None])
            return self.of_hidden(hidden_BSD.to(dtype)) + self.of_codes(heard_BSm), state_1Bm[0]


class AutoregressivePriorParams(PriorParams):
    """A GRU over the codes of earlier slots, beside a linear map of the causal hidden."""

    kind: Literal["autoregressive"] = "autoregressive"
    sees_codes: ClassVar[bool] = True
    width: int = Field(default=64, ge=1, le=2**16)
    """Width of the GRU: what is remembered of the codes before."""

    def build(self, *, width: int, quantizer: Quantizer) -> AutoregressivePrior:
        """The prior of the quantizer's numbers."""
        return AutoregressivePrior(
            width=width,
            embedding_dim=quantizer.embedding_dim,
            prior_dim=quantizer.prior_dim,
            memory=self.width,
        )
