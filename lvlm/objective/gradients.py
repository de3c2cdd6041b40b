"""Gradients through codes: straight-through (Bengio et al. 2013, arXiv 1308.3432) and REINFORCE."""

from __future__ import annotations

from torch import Tensor

from lvlm.interfaces import Drawn, Output


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard`, to the last bit, with the gradient of `soft`.

    The parentheses matter: (hard + soft) - soft.detach() is off by an ulp in a quarter of the values.
    """
    return hard.detach() + (soft - soft.detach())


def score_function(ce_BT: Tensor, score_BS: Tensor, output: Output | Drawn) -> Tensor:
    """REINFORCE term (Williams 1992), nats: zero in value, with the gradient of the expected cross-entropy.

    The gradient goes to the numbers behind `score_BS`, and is estimated from one draw.

    A code is charged the cross-entropy from its slot's first position on, the only one that it can move, less
    the mean of the other rows of these at the same slot: a baseline that is no function of the code, so the
    estimate stays unbiased (after Kool et al. 2019, who average over other samples of the same row). A row by
    itself has none.
    """
    assert output.slots is not None and output.keep_BS is not None
    keep_BS = output.keep_BS.to(ce_BT)
    to_come_BT = ce_BT.flip(-1).cumsum(-1).flip(-1)
    cost_BS = to_come_BT[:, output.slots.first_positions(ce_BT.shape[1], ce_BT.device)] * keep_BS
    others_BS = keep_BS.sum(0) - keep_BS
    baseline_BS = (cost_BS.sum(0) - cost_BS) / others_BS.clamp(min=1)
    advantage_BS = (cost_BS - baseline_BS) * keep_BS
    return (advantage_BS * (score_BS - score_BS.detach())).sum()
