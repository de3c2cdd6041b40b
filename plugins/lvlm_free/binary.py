"""The binary mapper (F25 section 3.3), exact and without a one-hot.

Bits B_h ~ Bernoulli(sigmoid(l_h)), independent; code index c = sum_h B_h 2^h. The paper outputs
Y + (G - detach(G)), with Y the one-hot of c and G_c = P(code = c), and maps it through W of 2^H rows. The value
is row c of W, and the gradient passes through all 2^H probabilities:

    forward   R = W[c]
    backward  dW_c  = sum of g over the tokens that drew c
              dl_h  = sum_c V_c bit_h(c) - sigmoid(l_h) sum_c V_c,    V = (g W^T) * G

G is a product over bits, so with the bits cut into a low and a high half, V never has to be formed: its
marginals over each half are two small matrix products, and they hold all that dl needs.

Groups: H bits in groups of n, each with a table of 2^n rows; the rows of all groups are added. n = H is the
paper's joint map, n = 1 one direction per bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lvlm.errors import UserError
from lvlm.interfaces import Latent, Quantizer, QuantizerParams
from lvlm.kl import bernoulli_kl, full_precision, wide

FEW_BITS = 4
CHUNK_NUMBERS = 1 << 24  # size of the largest temporary of the backward pass, in numbers


def code_probabilities(logits_Nn: Tensor) -> Tensor:
    """Probabilities of all 2^n codes of n independent bits, [N, n] -> [N, 2^n]; bit h has the value 2^h."""
    one_Nn, zero_Nn = logits_Nn.sigmoid(), (-logits_Nn).sigmoid()
    codes = logits_Nn.new_ones(len(logits_Nn), 1)
    for h in range(logits_Nn.shape[1]):
        codes = torch.cat((codes * zero_Nn[:, h, None], codes * one_Nn[:, h, None]), dim=-1)
    return codes


def code_bits(bits: int, device: torch.device) -> Tensor:
    """The bits of all codes, [2^bits, bits], 0 or 1."""
    codes = torch.arange(2**bits, device=device)
    return (codes[:, None] >> torch.arange(bits, device=device)) & 1


def logit_gradient(pull_NR: Tensor, logits_Nn: Tensor) -> Tensor:
    """Gradient of sum_c pull_c G_c(l) with respect to the logits l, [N, n], for R = 2^n codes."""
    n = logits_Nn.shape[1]
    if n <= FEW_BITS:  # nothing to save by halving
        v = code_probabilities(logits_Nn) * pull_NR
        bits = code_bits(n, v.device).to(v.dtype)
        return v @ bits - logits_Nn.sigmoid() * v.sum(-1, keepdim=True)
    low = n // 2
    p_low, p_high = code_probabilities(logits_Nn[:, :low]), code_probabilities(logits_Nn[:, low:])
    pull = pull_NR.reshape(len(pull_NR), 2 ** (n - low), 2**low)
    v_high = p_high * torch.bmm(pull, p_low[:, :, None])[:, :, 0]
    v_low = p_low * torch.bmm(p_high[:, None, :], pull)[:, 0, :]
    ones = torch.cat(
        (
            v_low @ code_bits(low, pull.device).to(pull.dtype),
            v_high @ code_bits(n - low, pull.device).to(pull.dtype),
        ),
        dim=-1,
    )
    return ones - logits_Nn.sigmoid() * v_high.sum(-1, keepdim=True)


class _Lookup(torch.autograd.Function):
    """Rows of the tables for the sampled codes, with the gradient of the straight-through one-hot."""

    @staticmethod
    def forward(
        ctx: Any, logits_NH: Tensor, table_RC: Tensor, rows_NG: Tensor, bits_per_group: int
    ) -> Tensor:
        ctx.save_for_backward(logits_NH, table_RC, rows_NG)
        ctx.bits_per_group = bits_per_group
        return F.embedding_bag(rows_NG, table_RC, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        logits_NH, table_RC, rows_NG = ctx.saved_tensors
        grad_NC = grads[0].to(table_RC.dtype)
        d_logits = d_table = None
        if ctx.needs_input_grad[1]:
            d_table = torch.zeros_like(table_RC)
            for rows_N in rows_NG.unbind(1):
                d_table.index_add_(0, rows_N, grad_NC)
        if ctx.needs_input_grad[0]:
            d_logits = torch.empty_like(logits_NH)
            chunk = max(1, CHUNK_NUMBERS // len(table_RC))
            for start in range(0, len(logits_NH), chunk):
                part = slice(start, start + chunk)
                d_logits[part] = _all_logit_gradients(
                    grad_NC[part] @ table_RC.T, logits_NH[part], ctx.bits_per_group
                )
        return d_logits, d_table, None, None


def _all_logit_gradients(pull_NR: Tensor, logits_NH: Tensor, bits_per_group: int) -> Tensor:
    """`logit_gradient` over groups; groups of one size go as one batch, a smaller last one by itself."""
    rows, bits = logits_NH.shape
    whole = bits // bits_per_group * bits_per_group
    whole_codes = bits // bits_per_group * 2**bits_per_group
    parts = [
        logit_gradient(
            pull_NR[:, :whole_codes].reshape(-1, 2**bits_per_group),
            logits_NH[:, :whole].reshape(-1, bits_per_group),
        ).view(rows, whole)
    ]
    if whole < bits:
        parts.append(logit_gradient(pull_NR[:, whole_codes:], logits_NH[:, whole:]))
    return torch.cat(parts, dim=-1)


class Binary(Quantizer):
    """Independent bits, embedded by tables.

    logits [B, S, H] ─ sample bits ─ index ─ look up, add groups ─► embedding [B, S, C]

    Codes are int64 indices [B, S] in [0, 2^H). The gradient is the paper's: the value at the drawn code, the
    slope of the expectation over all codes (exact inside each group).
    """

    def __init__(self, *, bits: int, bits_per_group: int, embedding_dim: int, embedding_std: float) -> None:
        super().__init__()
        self.posterior_dim = self.prior_dim = self.kl_dim = self.bits = bits
        self.embedding_dim, self.bits_per_group = embedding_dim, bits_per_group
        sizes = [min(bits_per_group, bits - start) for start in range(0, bits, bits_per_group)]
        self.table_RC = nn.Parameter(torch.zeros(sum(2**n for n in sizes), embedding_dim))
        if embedding_std:
            nn.init.normal_(self.table_RC, std=embedding_std)

    def table_parameters(self) -> Iterable[nn.Parameter]:
        """The code tables, listed by themselves in every parameter count."""
        return (self.table_RC,)

    def _bits_of(self, codes_BS: Tensor) -> Tensor:
        return (codes_BS[..., None] >> torch.arange(self.bits, device=codes_BS.device)) & 1

    def _rows_of(self, bits_BSH: Tensor) -> Tensor:
        """Rows of the stacked tables, [B * S, G]."""
        bit = torch.arange(self.bits, device=bits_BSH.device)
        values = bits_BSH << (bit % self.bits_per_group)
        groups = -(-self.bits // self.bits_per_group)
        padded = F.pad(values, (0, groups * self.bits_per_group - self.bits))
        rows: Tensor = padded.view(-1, groups, self.bits_per_group).sum(-1)
        return rows + (1 << self.bits_per_group) * torch.arange(groups, device=rows.device)

    def _draw(self, logits_BSH: Tensor, generator: torch.Generator | None) -> Tensor:
        noise = torch.rand(
            logits_BSH.shape, generator=generator, device=logits_BSH.device, dtype=logits_BSH.dtype
        )
        return (noise < logits_BSH.sigmoid()).long()

    def _latent(self, bits_BSH: Tensor, logits_BSH: Tensor) -> Latent:
        rows_NG = self._rows_of(bits_BSH)
        embedding_NC: Tensor = _Lookup.apply(
            logits_BSH.reshape(-1, self.bits), self.table_RC, rows_NG, self.bits_per_group
        )  # type: ignore[no-untyped-call]
        codes_BS = (bits_BSH << torch.arange(self.bits, device=bits_BSH.device)).sum(-1)
        return Latent(codes_BS, embedding_NC.view(*codes_BS.shape, self.embedding_dim))

    def forward(
        self, posterior_BSK: Tensor, prior_BSJ: Tensor, generator: torch.Generator | None = None
    ) -> Latent:
        """See `lvlm.interfaces.Quantizer`."""
        with full_precision(posterior_BSK):
            logits_BSH, prior_BSH = wide(posterior_BSK), wide(prior_BSJ)
            latent = self._latent(self._draw(logits_BSH, generator), logits_BSH)
            latent.kl_BSd = bernoulli_kl(logits_BSH, prior_BSH)
            latent.posterior_BSK, latent.prior_BSJ = logits_BSH, prior_BSH
        return latent

    def sample(self, prior_BSJ: Tensor, generator: torch.Generator | None = None) -> Latent:
        """See `lvlm.interfaces.Quantizer`."""
        logits_BSH = wide(prior_BSJ)
        latent = self._latent(self._draw(logits_BSH, generator), logits_BSH)
        latent.prior_BSJ = logits_BSH
        return latent

    def given(self, codes: Tensor) -> Latent:
        """Indices [B, S], int64, each in [0, 2^bits)."""
        if codes.is_floating_point() or codes.dtype == torch.bool or codes.ndim != 2:
            raise UserError(
                f"binary codes are integer indices of shape [rows, slots], not {codes.dtype} of shape {list(codes.shape)}"
            )
        if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < 2**self.bits):
            raise UserError(
                f"a code of {self.bits} bits is an index from 0 to {2**self.bits - 1}; "
                f"got {int(codes.min())} to {int(codes.max())}"
            )
        bits_BSH = self._bits_of(codes.long())
        return self._latent(bits_BSH, bits_BSH.new_zeros(bits_BSH.shape, dtype=self.table_RC.dtype))

    def log_prob(self, codes: Tensor, numbers: Tensor) -> Tensor:
        """See `lvlm.interfaces.Quantizer`."""
        with full_precision(numbers):
            logits_BSH = wide(numbers)
            signs_BSH = 2 * self._bits_of(codes) - 1
            log_prob_BS: Tensor = F.logsigmoid(logits_BSH * signs_BSH).sum(-1)
            return log_prob_BS


class BinaryParams(QuantizerParams):
    """Independent bits, embedded by a table of all codes, or by a table per group of bits (FREE)."""

    kind: Literal["binary"] = "binary"
    bits: int = Field(default=8, ge=1, le=48)
    """Bits H of a slot."""
    bits_per_group: int | None = Field(default=None, ge=1, le=16)
    """Bits that share a table of 2^n rows; all bits (the paper's joint map) unless given."""
    embedding_std: float = Field(default=0.0, ge=0)
    """Standard deviation of the table at the start; 0 makes step 0 equal the baseline."""

    @model_validator(mode="after")
    def _table_fits(self) -> Self:
        if self.bits > 16 and self.bits_per_group is None:
            raise ValueError(
                f"a joint table of 2^{self.bits} rows is too large; set bits_per_group, at most 16"
            )
        return self

    @classmethod
    def example(cls) -> Self:
        """Three bits in two groups of unequal size."""
        return cls(bits=3, bits_per_group=2)

    def build(self, *, embedding_dim: int) -> Binary:
        """The quantizer whose codes become vectors of that width."""
        return Binary(
            bits=self.bits,
            bits_per_group=min(self.bits, self.bits_per_group or self.bits),
            embedding_dim=embedding_dim,
            embedding_std=self.embedding_std,
        )
