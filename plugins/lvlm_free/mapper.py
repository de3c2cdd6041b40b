"""The binary mapper (F25 section 3.3), exact and without a one-hot.

Bits B_h ~ Bernoulli(sigmoid(l_h)), independent; code index c = sum_h B_h 2^h. The paper outputs
Y + (G - detach(G)), with Y the one-hot of c and G_c = P(code = c), and maps it through W of 2^H rows. The
value is row c of W, and the gradient passes through all 2^H probabilities:

    forward   R = W[c]
    backward  dW_c  = sum of g over the tokens that drew c
              dl_h  = sum_c V_c bit_h(c) - sigmoid(l_h) sum_c V_c,    V = (g W^T) * G

G is a product over bits, so with the bits cut into a low and a high half, V never has to be formed: its
marginals over each half hold all that dl needs, and both are summed while g W^T goes by, a tile at a time.

Groups: H bits in groups of n, each with a table of 2^n rows; the rows of all groups are added. n = H is the
paper's joint map, n = 1 one direction per bit.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lvlm.nn.device import device_type

FEW_BITS = 4
TILE = {"cpu": (1024, 2048)}  # tokens by rows of g W^T, what is held at once: the cache of a CPU,
TILE_ELSEWHERE = (16_384, 4096)  # 256 MiB on a GPU


def code_bits(bits: int, device: torch.device) -> Tensor:
    """The bits of all codes, [2^bits, bits], 0 or 1."""
    codes = torch.arange(2**bits, device=device)
    return (codes[:, None] >> torch.arange(bits, device=device)) & 1


def code_probabilities(logits_Nn: Tensor) -> Tensor:
    """Probabilities of all 2^n codes of n independent bits, [N, n] -> [N, 2^n]; bit h has the value 2^h."""
    one_Nn, zero_Nn = logits_Nn.sigmoid(), (-logits_Nn).sigmoid()
    codes = logits_Nn.new_ones(len(logits_Nn), 1)
    for h in range(logits_Nn.shape[1]):
        codes = torch.cat((codes * zero_Nn[:, h, None], codes * one_Nn[:, h, None]), dim=-1)
    return codes


def group_sizes(bits: int, bits_per_group: int) -> list[int]:
    """Bits of each group; the last may be smaller."""
    return [min(bits_per_group, bits - start) for start in range(0, bits, bits_per_group)]


def look_up(
    logits_NH: Tensor,
    table_RC: Tensor,
    rows_NG: Tensor,
    bits_per_group: int,
    *,
    bitwise: bool = False,
    products: torch.dtype | None = None,
) -> Tensor:
    """The sum of each token's rows, one a group, [N, C], with a gradient to the logits.

    Args:
        logits_NH: of the bits.
        table_RC: the groups' tables, one below the other.
        rows_NG: the rows that the sampled bits select.
        bits_per_group: n.
        bitwise: not the slope of the expectation over all codes of a group, but over each bit with the other
            sampled bits held.
        products: what g W^T is computed in, as autocast would the dense form's; the table's own type unless
            given. Its sums over codes are kept in the type of the logits.
    """
    args = (logits_NH, table_RC, rows_NG, bits_per_group, bitwise, products or table_RC.dtype)
    out: Tensor = _Lookup.apply(*args)  # type: ignore[no-untyped-call]
    return out


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_NH: Tensor,
        table_RC: Tensor,
        rows_NG: Tensor,
        bits_per_group: int,
        bitwise: bool,
        products: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(logits_NH, table_RC, rows_NG)
        ctx.bits_per_group, ctx.bitwise, ctx.products = bits_per_group, bitwise, products
        return F.embedding_bag(rows_NG, table_RC, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits_NH, table_RC, rows_NG = ctx.saved_tensors
        grad_NC = grads[0].to(table_RC.dtype)
        d_logits = d_table = None
        if ctx.needs_input_grad[1]:
            d_table = torch.zeros_like(table_RC)
            for rows_N in rows_NG.unbind(1):
                d_table.index_add_(0, rows_N, grad_NC)
        if ctx.needs_input_grad[0]:
            if ctx.bitwise:
                d_logits = bitwise_gradient(grad_NC, logits_NH, table_RC, rows_NG, ctx.bits_per_group)
            else:
                g, table = grad_NC.to(ctx.products), table_RC.to(ctx.products)
                d_logits = exact_gradient(g, logits_NH, table, ctx.bits_per_group)
        return d_logits, d_table, None, None, None, None


def exact_gradient(grad_NC: Tensor, logits_NH: Tensor, table_RC: Tensor, bits_per_group: int) -> Tensor:
    """d/dl of sum_c (g . W_c) G_c(l), over all codes of each group, [N, H]."""
    parts, row, bit = [], 0, 0
    for size in group_sizes(logits_NH.shape[1], bits_per_group):
        table = table_RC[row : row + 2**size]
        parts.append(group_gradient(grad_NC, logits_NH[:, bit : bit + size], table))
        row, bit = row + 2**size, bit + size
    return torch.cat(parts, dim=-1)


def group_gradient(grad_NC: Tensor, logits_Nn: Tensor, table_RC: Tensor) -> Tensor:
    """`exact_gradient` of one group with its table of R = 2^n rows, [N, n]."""
    n = logits_Nn.shape[1]
    if n <= FEW_BITS:  # nothing to save by halving
        v = code_probabilities(logits_Nn) * (grad_NC @ table_RC.T).to(logits_Nn.dtype)
        return _slopes(v, logits_Nn)
    low = n // 2
    p_low, p_high = code_probabilities(logits_Nn[:, :low]), code_probabilities(logits_Nn[:, low:])
    v_low, v_high = torch.zeros_like(p_low), torch.zeros_like(p_high)
    weigh_low, weigh_high = p_low.to(grad_NC.dtype), p_high.to(grad_NC.dtype)
    tokens, rows = TILE.get(device_type(grad_NC), TILE_ELSEWHERE)
    highs = max(1, rows >> low)
    for first in range(0, 2 ** (n - low), highs):
        some = slice(first, first + highs)
        rows_RC = table_RC[first << low : (first + highs) << low]
        for start in range(0, len(grad_NC), tokens):
            part = slice(start, start + tokens)
            pull = (grad_NC[part] @ rows_RC.T).view(-1, len(rows_RC) >> low, 2**low)
            v_high[part, some] = torch.bmm(pull, weigh_low[part, :, None])[:, :, 0].to(v_high.dtype)
            v_low[part] += torch.bmm(weigh_high[part, None, some], pull)[:, 0]
    return torch.cat(
        (_slopes(v_low * p_low, logits_Nn[:, :low]), _slopes(v_high * p_high, logits_Nn[:, low:])), dim=-1
    )


def _slopes(v_NR: Tensor, logits_Nn: Tensor) -> Tensor:
    """sum_c v_c (bit_h(c) - sigmoid(l_h)), [N, n]."""
    bits = code_bits(logits_Nn.shape[1], v_NR.device).to(v_NR.dtype)
    return v_NR @ bits - logits_Nn.sigmoid() * v_NR.sum(-1, keepdim=True)


def bitwise_gradient(
    grad_NC: Tensor, logits_NH: Tensor, table_RC: Tensor, rows_NG: Tensor, bits_per_group: int
) -> Tensor:
    """sigmoid'(l_h) g . (W[bit h set] - W[bit h clear]), the other bits as sampled, [N, H].

    For a fixed g its mean over the other bits is `exact_gradient`; it costs one row a bit instead of 2^n.
    """
    slopes = logits_NH.sigmoid() * (-logits_NH).sigmoid()
    here_NG = [(grad_NC * table_RC[rows_N]).sum(-1) for rows_N in rows_NG.unbind(1)]
    first_row = 2**bits_per_group
    out = torch.empty_like(logits_NH)
    for h in range(logits_NH.shape[1]):
        group, bit = divmod(h, bits_per_group)
        rows_N = rows_NG[:, group]
        is_set = ((rows_N - group * first_row) >> bit) & 1
        there_N = (grad_NC * table_RC[rows_N + (1 - 2 * is_set) * (1 << bit)]).sum(-1)
        out[:, h] = (2 * is_set - 1) * (here_NG[group] - there_N)
    return out * slopes
