"""The prior `my_kind`: what is expected of a code depends on the text so far and on the code before it.

It works as it stands. CHANGE marks where yours begins.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn

from lvlm.hookspecs import hookimpl
from lvlm.interfaces import Prior, PriorParams, Quantizer, Register


class MyKind(Prior):
    """numbers of a slot = linear(hidden at its first position) + linear(embedding of the code before it)."""

    sees_codes = True

    def __init__(self, *, width: int, embedding_dim: int, prior_dim: int) -> None:
        super().__init__()
        self.of_hidden = nn.Linear(width, prior_dim)
        self.of_code = nn.Linear(embedding_dim, prior_dim, bias=False)
        for zero in (self.of_hidden.weight, self.of_hidden.bias, self.of_code.weight):
            nn.init.zeros_(zero)  # all-zero numbers are the fixed prior, from which every prior starts

    def forward(self, hidden_BSD: Tensor, before_BSC: Tensor | None = None) -> Tensor:
        """Numbers [B, S, J] of all slots at once; slot s may know hidden and codes up to its own place."""
        assert before_BSC is not None
        # CHANGE: what a slot's numbers are made of.
        numbers_BSJ: Tensor = self.of_hidden(hidden_BSD)
        return numbers_BSJ + self.of_code(before_BSC.to(self.of_code.weight.dtype))

    # CHANGE: where more than one code before matters, `start` gives what is remembered before the first slot.

    def step(self, hidden_B1D: Tensor, before_B1C: Tensor, state_B: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of the next slot as `forward` gives them, and what is remembered after it: nothing here."""
        return self(hidden_B1D, before_B1C), state_B


class MyKindParams(PriorParams):
    """A linear map of the causal hidden and of the code before."""

    kind: Literal["my_kind"] = "my_kind"
    sees_codes: ClassVar[bool] = True

    def build(self, *, width: int, quantizer: Quantizer) -> MyKind:
        """The prior of the quantizer's numbers."""
        return MyKind(width=width, embedding_dim=quantizer.embedding_dim, prior_dim=quantizer.prior_dim)


@hookimpl
def register_priors(register: Register) -> None:
    """Supply the prior."""
    register(MyKindParams)
