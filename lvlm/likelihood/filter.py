"""The particle filter."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lvlm.errors import one_of
from lvlm.interfaces import IGNORE
from lvlm.likelihood.names import Proposal, Resampling
from lvlm.likelihood.particles import Rows
from lvlm.likelihood.weights import Bounds, effective_size, variance
from lvlm.model.noise import RESAMPLING
from lvlm.system.machine import need_memory


@dataclass(frozen=True)
class Filter:
    """How a particle filter runs.

    k              particles
    chunk          tokens between two looks at the weights
    resampling     how ancestors are drawn
    resample_below of K, the effective sample size under which they are; 0 never does, 1 does at every chunk
    proposal       where codes come from: 'mixture' draws each slot from posterior or prior with even odds, so
                   that no slot's p(z)/q(z given x) exceeds 2 (defensive sampling: Hesterberg 1995,
                   Technometrics 37(2))
    deferred       log p(z)/q(z given x) enters at the end, and not on the way: for a plan that is paid for
                   early and pays off late
    """

    k: int
    chunk: int = 4
    resampling: Resampling = "systematic"
    resample_below: float = 0.5
    proposal: Proposal = "posterior"
    deferred: bool = False

    def __post_init__(self) -> None:
        one_of(self.resampling, Resampling, "resampling")
        one_of(self.proposal, Proposal, "proposal")


def run_filter(rows: Rows, spec: Filter) -> Bounds:
    """-log of an unbiased estimate of p(x) by sequential Monte Carlo, so a bound in expectation (Gordon et
    al. 1993; Naesseth et al. 2019, Elements of Sequential Monte Carlo, arXiv 1903.04797, section 3.1).

    Each chunk runs teacher-forced behind the key/value cache of the blocks above the seam. Weights of the
    chunk: p(x given the past, z) p(z) / q(z given x), the ratio of slots that begin in it. Under a prior that
    sees codes, a chunk's are drawn when its particles have been (`lvlm.likelihood.walk`). With resampling off
    it is `importance`.
    """
    model, k, device = rows.model, spec.k, rows.hidden_BTD.device
    slots, targets_BT = rows.slots, rows.batch.targets_BT
    batch, tokens = targets_BT.shape
    cache = model.cache_bytes(batch * k, tokens, above=True)
    need_memory(f"k is {k}", cache, device, mend="fewer particles need less")
    walk = rows.walk(spec.proposal, k)
    layers = model.make_cache(batch * k, tokens, above=True)
    last_target_B = (targets_BT != IGNORE).int().cumsum(1).argmax(1)
    of_rows = rows.generators(RESAMPLING)

    zeros_BK = torch.zeros(batch, k, dtype=torch.float64, device=device)
    log_weight, owed = zeros_BK.clone(), zeros_BK.clone()
    log_mean_B, spread_B, crowd_B = zeros_BK[:, 0].clone(), zeros_BK[:, 0].clone(), zeros_BK[:, 0] + k
    first = max(rows.prompt, spec.chunk)  # a prompt is no target: nothing to weigh in it
    edges = [0, *range(first, tokens, spec.chunk), tokens]
    for start, end in itertools.pairwise(edges):
        begun = 0 if start == 0 else slots.count(start)
        new = slice(begun, slots.count(end))
        with rows.autocast():
            ratio_BK = walk.go(new).sum(-1)
        gain_BK = -rows.cost_of_chunk(walk, layers, start, end)
        if spec.deferred:
            owed = owed + ratio_BK
        else:
            gain_BK = gain_BK + ratio_BK
        log_weight, spread_B = log_weight + gain_BK, spread_B + variance(gain_BK)
        if end == tokens:
            break
        size_B = effective_size(log_weight)
        crowd_B = torch.minimum(crowd_B, size_B)
        again_B = (size_B < spec.resample_below * k) | (spec.resample_below >= 1)
        again_B = again_B & (last_target_B >= end)
        if not bool(again_B.any()):
            continue
        ancestor_BK = torch.arange(k, device=device).expand(batch, k).clone()
        for row in again_B.nonzero()[:, 0].tolist():
            ancestor_BK[row] = ancestors(log_weight[row].softmax(0), spec.resampling, of_rows[row])
        log_mean_B = log_mean_B + torch.where(again_B, log_weight.logsumexp(1) - math.log(k), 0.0)
        log_weight = torch.where(again_B[:, None], 0.0, log_weight)
        owed = owed.gather(1, ancestor_BK)
        from_P = (ancestor_BK + k * torch.arange(batch, device=device)[:, None]).flatten()
        for layer in layers:
            layer.take(from_P)
        walk.take(from_P, slots.count(end) - 1)
    if spec.deferred:
        log_weight, spread_B = log_weight + owed, spread_B + variance(owed)
    return Bounds(
        nats=math.log(k) - log_weight.logsumexp(1) - log_mean_B,
        ess=torch.minimum(crowd_B, effective_size(log_weight)),
        log_weight_variance=spread_B,
    )


def ancestors(weight_K: Tensor, rule: Resampling, generator: torch.Generator) -> Tensor:
    """Indices [K]: particle i is expected K times its weight often (Douc and Cappe 2005, arXiv cs/0507025).

    'multinomial' draws each by itself, 'stratified' one in each of K equal strata, 'systematic' all by one
    number.
    """
    one_of(rule, Resampling, "resampling")
    k, device = len(weight_K), weight_K.device
    draws = 1 if rule == "systematic" else k
    u = torch.rand(draws, generator=generator, device=device, dtype=torch.float64)
    places_K = u if rule == "multinomial" else (torch.arange(k, device=device) + u) / k
    return torch.searchsorted(weight_K.cumsum(0), places_K).clamp(max=k - 1)
