"""Multi-token prediction (Gloeckle et al. 2024, arXiv 2404.19737)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from lvlm.errors import UserError, one_of
from lvlm.interfaces import IGNORE, Batch, LossParams, Output
from lvlm.nn import TransformerBlock, rotary
from lvlm.objective import Addition, cross_entropy_of

INIT_STD = 0.02
HEAD_WIDTH = 64
ROPE_THETA = 10_000.0

HeadShape = Literal["block", "linear"]


class Head(nn.Module):
    """The last hidden x ─ one causal block, or x + linear(norm(x)) ─► a hidden for the model's head."""

    def __init__(self, shape: HeadShape, *, width: int) -> None:
        super().__init__()
        self.block: TransformerBlock | None = None
        if one_of(shape, HeadShape, "head") == "block":
            heads = attention_heads(width)
            self.block = TransformerBlock(width, heads, heads, 8 * width // 3, causal=True)
            self.block.init_weights(INIT_STD, INIT_STD)
            return
        self.norm, self.linear = nn.RMSNorm(width, eps=1e-5), nn.Linear(width, width, bias=False)
        nn.init.normal_(self.linear.weight, std=INIT_STD)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Hidden to hidden, [B, T, D]."""
        if self.block is None:
            y_BTD: Tensor = x_BTD + self.linear(self.norm(x_BTD))
            return y_BTD
        positions_T = torch.arange(x_BTD.shape[1], device=x_BTD.device)
        dtype = torch.promote_types(self.block.attention.q.weight.dtype, torch.float32)
        where = rotary(positions_T, self.block.attention.head_width, ROPE_THETA, dtype)
        return cast(Tensor, self.block(x_BTD, where))


def attention_heads(width: int) -> int:
    """The most attention heads of an even width of at least `HEAD_WIDTH`; one where there are none.

    Raises:
        UserError: the width is odd.
    """
    if width % 2:
        raise UserError(
            f"loss 'mtp' with head: block needs an even width, and {width} is odd; set head: linear"
        )
    most = max(1, width // HEAD_WIDTH)
    return next(heads for heads in range(most, 0, -1) if width % (2 * heads) == 0)


class MultiToken(Addition):
    """Cross-entropy of the tokens from two ahead on, each by a head of its own on the last hidden.

        last hidden at t ─┬─ the model's head ─────────────► token t + 1   the cross-entropy of every loss
                          ├─ head 2 ─ the model's head ────► token t + 2   'mtp_2'
                          └─ head n ─ the model's head ────► token t + n   'mtp_n'

    Gloeckle et al. 2024, eq. 2, with all heads after the trunk in parallel. As there, the heads share the
    unembedding. Here they share the model's last norm, too; a target counts where the row has the token, so
    that a row's end has fewer; and the next token has no block of its own, so that the model generates
    without any head: they belong to the loss and are left behind.
    """

    def __init__(self, tokens: int, head: HeadShape, *, width: int) -> None:
        super().__init__()
        self.width = width
        self.heads = nn.ModuleList(Head(head, width=width) for _ in range(tokens - 1))

    def addition(self, output: Output, batch: Batch, *, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of all further tokens, summed over the batch, nats, and that of each as 'mtp_2'."""
        hidden_BTD, code_BTD = output.hidden_BTD[..., : self.width], output.hidden_BTD[..., self.width :]
        nats, sums = hidden_BTD.new_zeros(()), {}
        for further, head in enumerate(self.heads, start=1):
            targets_BT = F.pad(batch.targets_BT[:, further:], (0, further), value=IGNORE)
            targets_BT = targets_BT[:, : batch.targets_BT.shape[1]]
            ahead_BTD = torch.cat((head(hidden_BTD), code_BTD), dim=-1)  # what codes say to the logits stays
            one = cross_entropy_of(replace(output, hidden_BTD=ahead_BTD), targets_BT).sum()
            nats, sums[f"mtp_{further + 1}"] = nats + one, one.detach()
        return nats, sums


class MultiTokenParams(LossParams):
    """Cross-entropy of several tokens ahead, each by a head of its own (multi-token prediction)."""

    kind: Literal["mtp"] = "mtp"
    takes_several_latents: ClassVar[bool] = True
    may_be_added: ClassVar[bool] = True
    tokens: int = Field(default=2, ge=2, le=64)
    """Tokens ahead, the next one included: n - 1 heads."""
    head: HeadShape = "block"
    """One causal transformer block for each head (the paper's), or a linear map beside the hidden."""

    def build(self, *, width: int, vocab: int) -> MultiToken:
        """The loss with its heads."""
        return MultiToken(self.tokens, self.head, width=width)
