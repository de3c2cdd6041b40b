"""The injection `my_kind`: the code is scaled by a learned gate and added to the hidden at the seam.

It works as it stands. CHANGE marks where yours begins.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lvlm.hookspecs import hookimpl
from lvlm.interfaces import Conditioning, Injection, InjectionParams, Register, Slots
from lvlm.nn import spread


class MyKind(Injection):
    """embedding [B, S, D] ─ · gate [D] ─ spread over positions ─► added to the hidden [B, T, D]."""

    def __init__(self, *, width: int, slots: Slots, gate: float) -> None:
        super().__init__()
        self.embedding_dim = width  # the contract: the width C that a quantizer's embedding is to have
        self.slots = slots
        self.gate_D = nn.Parameter(torch.full((width,), gate))

    def forward(
        self, embedding_BSC: Tensor, positions_T: Tensor, keep_B: Tensor | None = None
    ) -> Conditioning:
        """The conditioning at `positions_T` of codes whose embedding is [B, S, C]; where keep_B is False,
        nothing.
        """
        # CHANGE: what the code becomes, and the port. `add_BTD` is added to the hidden, `kv_BTD` to keys and
        # values of the block at the seam, `prefix_BPD` (with `prefix_keep_B`, and `prefix_rows` set above)
        # stands before the tokens. `spread` gives each position the row of its slot and puts zeros where
        # keep_B is False.
        return Conditioning(add_BTD=spread(embedding_BSC * self.gate_D, self.slots, positions_T, keep_B))


class MyKindParams(InjectionParams):
    """Scaled by a learned gate and added to the hidden at the seam."""

    kind: Literal["my_kind"] = "my_kind"
    # CHANGE: `needs_fixed_slots = True` if it can't serve a growing number of slots, `needs_block = True` if
    # it needs a block at the seam (both `ClassVar[bool]`); then the options.
    gate: float = Field(default=1.0)
    """The gate before training."""

    def build(self, *, width: int, slots: Slots) -> MyKind:
        """The injection for a stack of that width."""
        return MyKind(width=width, slots=slots, gate=self.gate)


@hookimpl
def register_injections(register: Register) -> None:
    """Supply the injection."""
    register(MyKindParams)
