"""Whether an oracle is the -log p of the rows that data draw.

Small rows are enumerated: the probabilities sum to 1, and rows that are drawn have the entropy that follows.

Rows of any size are changed a little. Where x is drawn from p, and x' from x by a symmetric rule, any
function t of the ratio r = p(x') / p(x) with t(r) = -r t(1/r) has mean 0 (detailed balance). We take
t = r (r - 1) / (1 + r)^2, which is bounded, and 0 where x' is impossible. The norm of p cancels here: that is
what the enumeration is for.

Shape legend: N rows, T input tokens, n predicted tokens of a row, M all rows of n tokens.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor

from lvlm.data import Source, StreamSource
from lvlm.interfaces import IGNORE, Batch

ROWS = 4000
ENUMERATED = 2**16
DEVIATIONS = 5.0


def check_oracle(source: Source) -> None:
    """The oracle gives a finite -log p of each row by itself, and it is that of the rows that are drawn."""
    held = source.windows(16).batch
    nats_N = source.oracle_nll_nats(held)
    if nats_N is None:
        return
    assert nats_N.shape == (16,), f"the oracle gives {list(nats_N.shape)}, not one number a row"
    assert np.isfinite(nats_N).all(), "the oracle finds rows of the data impossible"
    assert (nats_N > -1e-9).all(), "a probability above 1"
    backwards = source.oracle_nll_nats(
        Batch(*(x.flip(0) for x in (held.inputs_BT, held.targets_BT, held.keep_BT)))
    )
    assert backwards is not None
    assert np.allclose(backwards[::-1], nats_N), "the oracle of a row depends on the rows beside it"
    if isinstance(source, StreamSource):
        return
    drawn = source.train_batch(seed=0, step=0, rows=ROWS)
    _check_changes(source, drawn)
    _check_enumeration(source, drawn)


def _nll(source: Source, batch: Batch) -> NDArray[np.float64]:
    nats_N = source.oracle_nll_nats(batch)
    assert nats_N is not None, "the oracle knows some rows and not others"
    assert not np.isnan(nats_N).any(), "the oracle gives NaN"
    return nats_N


def _check_changes(source: Source, drawn: Batch) -> None:
    """Detailed balance: one token drawn anew; one token exchanged with the row beside it."""
    generator = torch.Generator().manual_seed(0)
    can_BT = drawn.targets_BT != IGNORE
    place_N = torch.multinomial(can_BT.double(), 1, generator=generator)[:, 0]
    new_N = torch.randint(source.params.vocab, (len(drawn),), generator=generator)
    nats_N = _nll(source, drawn)
    redrawn_N = nats_N - _nll(source, _with(drawn, place_N, new_N))
    _assert_balanced(redrawn_N, "a token is drawn anew")
    # Pairs of rows: (x, y) is as likely to become (x', y') as the other way round.
    place_N = place_N[0::2].repeat_interleave(2)
    rows = torch.arange(len(drawn))
    both_N = can_BT[rows, place_N] & can_BT[rows ^ 1, place_N]
    taken_N = drawn.targets_BT[rows ^ 1, place_N]
    kept_N = drawn.targets_BT[rows, place_N]
    swapped = _with(drawn, place_N, torch.where(both_N, taken_N, kept_N))
    change_N = nats_N - _nll(source, swapped)
    _assert_balanced(change_N[0::2] + change_N[1::2], "two rows exchange a token")


def _assert_balanced(log_ratio_N: NDArray[np.float64], what: str) -> None:
    t_N = expit(log_ratio_N) * np.tanh(log_ratio_N / 2)
    error = t_N.std() / math.sqrt(len(t_N))
    assert abs(t_N.mean()) <= DEVIATIONS * error + 1e-9, (
        f"the oracle is not the -log p of the rows that are drawn: where {what}, detailed balance is off by"
        f" {t_N.mean():.4f} ± {error:.4f}"
    )


def _with(batch: Batch, place_N: Tensor, token_N: Tensor) -> Batch:
    """The rows with another token each as their target at a place, and as the input behind it."""
    inputs_NT, targets_NT = batch.inputs_BT.clone(), batch.targets_BT.clone()
    rows = torch.arange(len(batch))
    predicted = targets_NT[rows, place_N] != IGNORE
    targets_NT[rows[predicted], place_N[predicted]] = token_N[predicted]
    behind = predicted & (place_N + 1 < inputs_NT.shape[1])
    inputs_NT[rows[behind], place_N[behind] + 1] = token_N[behind]
    return Batch(inputs_NT, targets_NT, batch.keep_BT)


def _check_enumeration(source: Source, drawn: Batch) -> None:
    """Over all rows behind the first row's prompt, probabilities sum to 1, with the entropy of the draws."""
    first = drawn[:1]
    places = (first.targets_BT[0] != IGNORE).nonzero()[:, 0]
    if not bool(first.keep_BT.all()) or source.params.vocab ** len(places) > ENUMERATED:
        return
    digits: Any = np.indices([source.params.vocab] * len(places)).reshape(len(places), -1).T
    combination_Mn = torch.from_numpy(np.ascontiguousarray(digits))
    count = len(combination_Mn)
    inputs_MT, targets_MT = (x.expand(count, -1).clone() for x in (first.inputs_BT, first.targets_BT))
    targets_MT[:, places] = combination_Mn
    behind = places + 1 < inputs_MT.shape[1]
    inputs_MT[:, places[behind] + 1] = combination_Mn[:, behind]
    nats_M = _nll(source, Batch(inputs_MT, targets_MT, first.keep_BT.expand(count, -1).clone()))
    p_M = np.exp(-nats_M)
    assert abs(p_M.sum() - 1) < 1e-6, f"the probabilities of all rows sum to {p_M.sum():.6f}"
    surprise_M = np.where(p_M > 0, nats_M, 0.0)
    entropy = float((p_M * surprise_M).sum())
    deviation = math.sqrt(max(0.0, float((p_M * surprise_M**2).sum()) - entropy**2))
    predicted_T = first.targets_BT[0] != IGNORE
    given_T = torch.ones_like(predicted_T)
    given_T[1:] = ~predicted_T[:-1]
    alike_N = (drawn.inputs_BT == first.inputs_BT)[:, given_T].all(1)
    alike_N &= ((drawn.targets_BT != IGNORE) == predicted_T).all(1) & drawn.keep_BT.all(1)
    nats_N = _nll(source, drawn)[alike_N.numpy()]
    error = deviation / math.sqrt(len(nats_N))
    assert abs(nats_N.mean() - entropy) <= DEVIATIONS * error + 1e-9, (
        f"drawn rows have {nats_N.mean():.4f} nats on average, and the oracle's own entropy is {entropy:.4f}"
        f" ± {error:.4f}"
    )
