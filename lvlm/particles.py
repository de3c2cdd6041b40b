"""Weighted codes: draws for a row, importance sampling over whole sequences, and the particle filter.

Below the seam nothing depends on a code, and neither proposal looks at what a particle drew before, so for each row

    tokens ─ below the seam ─► hidden ─► posterior numbers, prior numbers        once
    numbers ─► K x S codes and log p(z)/q(z given x) of each                     once, all noise of the row
    codes ─ above the seam ─► -log p(x given z)                                  K times: what is paid for

All noise of a row comes from a generator of its own, so that neither the micro-batch nor the other rows change it.

Shape legend: B rows, K particles, P = B x K rows of a forward, T tokens, S slots, C embedding width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lvlm.errors import UserError
from lvlm.interfaces import IGNORE, Batch
from lvlm.model import LatentLM
from lvlm.nn.cache import LayerCache
from lvlm.noise import RESAMPLING, SLOTS_A_DRAW, WEIGHING, block, generators
from lvlm.objective import cross_entropy_nats
from lvlm.training.device import Autocast

Proposal = Literal["posterior", "prior", "mixture"]
Resampling = Literal["systematic", "stratified", "multinomial"]

MOST_CODE_SEQUENCES = 65_536


@dataclass(frozen=True)
class Bounds:
    """What an estimator says of some rows, [B] each, float64.

    nats        the bound (or the exact value), nats per sequence
    ess         effective sample size of the weights, in particles; of a filter the least on the way
    log_weight_variance   of a filter summed over the increments on the way
    noise       estimate of the Monte Carlo variance of `nats`, nats squared; NaN for one particle. Of a filter it is
                rough, and may be negative: read its mean over rows
    All but `nats` are None where nothing is drawn or weighed.
    """

    nats: Tensor
    ess: Tensor | None = None
    log_weight_variance: Tensor | None = None
    noise: Tensor | None = None


@dataclass(frozen=True)
class Draws:
    """K codes for each slot of each row.

    codes           int64 [B, K, S] or float [B, K, S, Z]
    log_ratio_BKS   log p(z) - log q(z given x), nats; zero in slots that are padding
    """

    codes: Tensor
    log_ratio_BKS: Tensor


class Rows:
    """Some rows and all of the model that no code changes.

    Args:
        model: in evaluation mode.
        batch: the rows, on the model's device.
        seeds: one for each row, from which all its noise comes.
        at_once: rows per forward.
        autocast: makes the precision context of a forward.
        prompt: tokens at the start whose codes come from the encoder that sees them alone, at no price, whatever the
            proposal; later codes come from the prior. 0: the encoder sees the whole row.
    """

    def __init__(
        self, model: LatentLM, batch: Batch, *, seeds: Sequence[int], at_once: int, autocast: Autocast,
        prompt: int = 0,
    ) -> None:  # fmt: skip
        assert len(seeds) == len(batch), (len(seeds), len(batch))
        self.model, self.batch, self.seeds, self.at_once, self.autocast = (
            model,
            batch,
            seeds,
            at_once,
            autocast,
        )
        self.prompt = prompt
        tokens_BT, keep_BT = batch.inputs_BT, batch.keep_BT
        self._draws: dict[tuple[Proposal, int], Draws] = {}
        self._costs: dict[tuple[Proposal, int], Tensor] = {}
        self._costs_by_target: dict[tuple[Proposal, int], Tensor] = {}
        with autocast():
            self.place = model.place(torch.arange(tokens_BT.shape[1], device=tokens_BT.device))
            self.hidden_BTD = model.below(tokens_BT, self.place)
            if model.latent is None:
                return
            self.slots = model.latent.slots
            self.keep_BS = self.slots.any(keep_BT)
            first_S = self.slots.first_positions(tokens_BT.shape[1], tokens_BT.device)
            self.prior_BSJ = model.latent.prior(self.hidden_BTD[:, first_S])
            seen = slice(0, prompt or None)
            self.posterior_BSK = model.latent.posterior(
                tokens_BT[:, seen], self.hidden_BTD[:, seen], keep_BT[:, seen]
            )

    def generators(self, purpose: int) -> list[torch.Generator]:
        """One for each row; another purpose is another stream."""
        return generators(self.seeds, purpose, self.model.device)

    def kl(self) -> Tensor:
        """KL(q || p), nats; zero in slots that are padding."""
        assert self.model.latent is not None
        latent = self.model.latent.quantizer(self.posterior_BSK, self.prior_BSJ, self.generators(WEIGHING)[0])
        assert latent.kl_BSd is not None
        kl_BSd: Tensor = latent.kl_BSd * self.keep_BS[..., None]
        return kl_BSd

    def draws(self, proposal: Proposal, k: int) -> Draws:
        """K codes of the proposal for each slot; the same at every call."""
        if (proposal, k) not in self._draws:
            drawn = [self._draw(row, proposal, k, g) for row, g in enumerate(self.generators(WEIGHING))]
            codes, log_ratio = zip(*drawn, strict=True)
            self._draws[proposal, k] = Draws(torch.stack(codes), torch.stack(log_ratio))
        return self._draws[proposal, k]

    def _draw(
        self, row: int, proposal: Proposal, k: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Codes [K, S] (or [K, S, Z]) and log-ratios [K, S] of one row."""
        assert self.model.latent is not None
        quantizer = self.model.latent.quantizer
        known, total = self.posterior_BSK.shape[1], self.prior_BSJ.shape[1]
        codes, ratios = [], []
        for start in range(0, total, SLOTS_A_DRAW):
            prior_KSJ, posterior_KSK = (
                block(numbers_BSn[row], start).expand(k, -1, -1)
                for numbers_BSn in (self.prior_BSJ, self.posterior_BSK)
            )
            drawn = quantizer.sample(prior_KSJ, generator).codes
            ratio = prior_KSJ.new_zeros(prior_KSJ.shape[:2])
            if self.prompt:
                own = torch.arange(start, start + SLOTS_A_DRAW, device=drawn.device) < known
                drawn = _choose(own, quantizer(posterior_KSK, prior_KSJ, generator).codes, drawn)
            elif proposal != "prior":
                from_posterior = quantizer(posterior_KSK, prior_KSJ, generator).codes
                own = torch.ones(drawn.shape[:2], dtype=torch.bool, device=drawn.device)
                if proposal == "mixture":
                    own = torch.rand(own.shape, generator=generator, device=own.device) < 0.5
                drawn = _choose(own, from_posterior, drawn)
                log_p = quantizer.log_prob(drawn, prior_KSJ)
                log_q = quantizer.log_prob(drawn, posterior_KSK)
                if proposal == "mixture":
                    log_q = torch.logaddexp(log_q, log_p) - math.log(2)
                ratio = log_p - log_q
            codes.append(drawn)
            ratios.append(ratio)
        log_ratio_KS = torch.cat(ratios, 1)[:, :total].double() * self.keep_BS[row]
        return torch.cat(codes, 1)[:, :total], log_ratio_KS

    def cost(self, proposal: Proposal, k: int) -> Tensor:
        """-log p(x given z) of each draw, [B, K], nats, float64."""
        if (proposal, k) not in self._costs:
            cost_BKT = self.cost_by_target(self.draws(proposal, k).codes)
            self._costs[proposal, k], self._costs_by_target[proposal, k] = cost_BKT.sum(-1), cost_BKT.mean(1)
        return self._costs[proposal, k]

    def mean_cost_by_target(self, proposal: Proposal, k: int) -> Tensor:
        """The same by target, averaged over draws, [B, T]."""
        self.cost(proposal, k)
        return self._costs_by_target[proposal, k]

    def exact_by_target(self) -> Tensor:
        """-log p of each target of a model without a latent, [B, T], nats, float64."""
        with self.autocast():
            logits = self.model.backbone.head(self.model.above(self.hidden_BTD, None, self.place))
        return cross_entropy_nats(logits, self.batch.targets_BT).double()

    def cost_of(self, codes: Tensor) -> Tensor:
        """-log p(x given z) of codes [B, K, S] or [B, K, S, Z]; [B, K], nats, float64."""
        return self.cost_by_target(codes).sum(-1)

    def cost_by_target(self, codes: Tensor) -> Tensor:
        """The same by target, [B, K, T]."""
        rows, k = codes.shape[:2]
        of_row_P = torch.arange(rows, device=codes.device).repeat_interleave(k)
        costs = []
        for part in parts(rows * k, self.at_once):
            hidden = self.hidden_BTD[of_row_P[part]]
            with self.autocast():
                last = self.model.above(hidden, self.embed(codes.flatten(0, 1)[part]), self.place)
                logits = self.model.backbone.head(last)
            costs.append(cross_entropy_nats(logits, self.batch.targets_BT[of_row_P[part]]).double())
        return torch.cat(costs).view(rows, k, -1)

    def embed(self, codes: Tensor) -> Tensor:
        """Embeddings [P, S, C] of codes [P, S] or [P, S, Z]."""
        assert self.model.latent is not None
        embedding_PSC: Tensor = self.model.latent.quantizer.given(codes).embedding_BSC
        return embedding_PSC

    def code_sequences(self, most: int = MOST_CODE_SEQUENCES) -> Tensor:
        """All codes that the slots can hold, [N, S].

        Raises:
            UserError: they are continuous, or more than `most`.
        """
        assert self.model.latent is not None
        codes, slots = self.model.latent.quantizer.num_codes, self.prior_BSJ.shape[1]
        if codes is None:
            raise UserError("exact enumeration needs codes that can be counted, and these are continuous")
        if codes**slots > most:
            raise UserError(
                f"exact enumeration would try {codes} codes in each of {slots} slots, more than {most:,} sequences in "
                "all; estimate by 'iwae' or 'smc', or make bits or window smaller"
            )
        sequences = torch.cartesian_prod(*[torch.arange(codes)] * slots)
        return sequences.view(-1, slots).to(self.batch.inputs_BT.device)


def _choose(first_KS: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Codes [K, S] or [K, S, Z] of `one` where it is said, else of `other`."""
    return torch.where(first_KS.view(-1, first_KS.shape[-1], *[1] * (one.ndim - 2)), one, other)


def parts(count: int, size: int) -> Iterator[slice]:
    """0..count in pieces."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


# ------------------------------------------------------------------------------------------ weights of whole rows


def averaged(cost_BK: Tensor) -> Bounds:
    """The mean cost of draws: the prior rollout, and ce_posterior."""
    k = cost_BK.shape[1]
    spread_B = cost_BK.var(1) if k > 1 else torch.full_like(cost_BK[:, 0], math.nan)
    return Bounds(cost_BK.mean(1), noise=spread_B / k)


def importance(log_weight_BK: Tensor) -> Bounds:
    """-log of the mean weight (Burda et al. 2016, arXiv 1509.00519), and how far its weights can be trusted."""
    k = log_weight_BK.shape[1]
    return Bounds(
        nats=math.log(k) - log_weight_BK.logsumexp(1),
        ess=effective_size(log_weight_BK),
        log_weight_variance=variance(log_weight_BK),
        noise=_relative_variance(log_weight_BK.softmax(1).square().sum(1), k, 1),
    )


def effective_size(log_weight_BK: Tensor) -> Tensor:
    """1 / sum of squared normalised weights, [B]: between 1 and K."""
    return 1 / log_weight_BK.softmax(1).square().sum(1)


def variance(x_BK: Tensor) -> Tensor:
    """Over particles, [B]; zero for one particle."""
    return x_BK.var(1) if x_BK.shape[1] > 1 else torch.zeros_like(x_BK[:, 0])


def _relative_variance(crowding_B: Tensor, k: int, generations: Tensor | int) -> Tensor:
    """Variance of an estimate over its square, and so, for small ones, of its log, from how much weight shares an
    ancestor (Lee and Whiteley 2018, Biometrika 105(3), eq. 5): 1 - (K/(K-1))^n (1 - sum over first ancestors of their
    share squared), n the times that particles were drawn.

    For multinomial resampling; the other rules vary less. With n = 1 it is the usual one of importance sampling. When
    all weight has one ancestor it is 1, and says nothing but that.
    """
    if k == 1:
        return torch.full_like(crowding_B, math.nan)
    return 1 - (k / (k - 1)) ** generations * (1 - crowding_B)


# ------------------------------------------------------------------------------------------ the particle filter


@dataclass(frozen=True)
class Filter:
    """How a particle filter runs.

    k              particles
    chunk          tokens between two looks at the weights
    resampling     how ancestors are drawn
    resample_below of K, the effective sample size under which they are; 0 never does, 1 does at every chunk
    proposal       where codes come from: 'mixture' draws each slot from posterior or prior with even odds, so that no
                   slot's p(z)/q(z given x) exceeds 2 (defensive sampling: Hesterberg 1995, Technometrics 37(2))
    deferred       log p(z)/q(z given x) enters at the end, and not on the way: for a plan that is paid for early and
                   pays off late
    """

    k: int
    chunk: int = 4
    resampling: Resampling = "systematic"
    resample_below: float = 0.5
    proposal: Proposal = "posterior"
    deferred: bool = False


def run_filter(rows: Rows, spec: Filter) -> Bounds:
    """-log of an unbiased estimate of p(x) by sequential Monte Carlo, so a bound in expectation (Gordon et al. 1993;
    Naesseth et al. 2019, Elements of Sequential Monte Carlo, arXiv 1903.04797, section 3.1).

    Each chunk runs teacher-forced behind the key/value cache of the blocks above the seam. Weights of the chunk:
    p(x given the past, z) p(z) / q(z given x), the ratio of slots that begin in it. With resampling off it is `importance`.
    """
    model, k, device = rows.model, spec.k, rows.hidden_BTD.device
    slots, targets_BT = rows.slots, rows.batch.targets_BT
    batch, tokens = targets_BT.shape
    draws = rows.draws(spec.proposal, k)
    embedding_PSC = rows.embed(draws.codes.flatten(0, 1)).clone()
    prefix = 0 if model.injection is None else model.injection.prefix_rows
    layers = [
        model.backbone.make_cache(batch * k, tokens + prefix) for _ in model.backbone.blocks[model.seam :]
    ]
    last_target_B = (targets_BT != IGNORE).int().cumsum(1).argmax(1)
    of_rows = rows.generators(RESAMPLING)

    zeros_BK = torch.zeros(batch, k, dtype=torch.float64, device=device)
    log_weight, owed = zeros_BK.clone(), zeros_BK.clone()
    log_mean_B, spread_B, crowd_B = zeros_BK[:, 0].clone(), zeros_BK[:, 0].clone(), zeros_BK[:, 0] + k
    eve_BK = torch.arange(k, device=device).expand(batch, k).clone()
    generations_B = torch.ones(batch, device=device)
    first = max(rows.prompt, spec.chunk)  # a prompt is no target: nothing to weigh in it
    edges = [0, *range(first, tokens, spec.chunk), tokens]
    for start, end in itertools.pairwise(edges):
        begun = 0 if start == 0 else slots.count(start)
        new = slice(begun, slots.count(end))
        gain_BK = -_cost_of_chunk(rows, embedding_PSC, layers, start, end)
        ratio_BK = draws.log_ratio_BKS[:, :, new].sum(-1)
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
        owed, eve_BK = owed.gather(1, ancestor_BK), eve_BK.gather(1, ancestor_BK)
        generations_B = generations_B + again_B
        from_P = (ancestor_BK + k * torch.arange(batch, device=device)[:, None]).flatten()
        for layer in layers:
            layer.take(from_P)
        last = slots.count(end) - 1  # the one slot that both earlier and later tokens may use
        embedding_PSC[:, last] = embedding_PSC[from_P, last]
    if spec.deferred:
        log_weight, spread_B = log_weight + owed, spread_B + variance(owed)
    share_BK = log_weight.softmax(1)
    of_eve_BK = torch.zeros_like(share_BK).scatter_add(1, eve_BK, share_BK)
    return Bounds(
        nats=math.log(k) - log_weight.logsumexp(1) - log_mean_B,
        ess=torch.minimum(crowd_B, effective_size(log_weight)),
        log_weight_variance=spread_B,
        noise=_relative_variance(of_eve_BK.square().sum(1), k, generations_B),
    )


def _cost_of_chunk(
    rows: Rows, embedding_PSC: Tensor, layers: list[LayerCache], start: int, end: int
) -> Tensor:
    """-log p of the targets from start to end, [B, K], nats; the cache grows by them."""
    model, (batch, _) = rows.model, rows.batch.targets_BT.shape
    k = len(embedding_PSC) // batch
    of_row_P = torch.arange(batch, device=embedding_PSC.device).repeat_interleave(k)
    embedding_PSC = embedding_PSC[:, : rows.slots.count(end)]
    costs, pieces = [], layers
    for part in parts(len(of_row_P), rows.at_once):
        pieces = [layer.part(part) for layer in layers]
        with rows.autocast():
            hidden = rows.hidden_BTD[of_row_P[part], start:end]
            stack = [*layers[:1] * model.seam, *pieces]  # those below the seam aren't looked at
            place = model.place(torch.arange(start, end, device=hidden.device))
            last = model.above(hidden, embedding_PSC[part], place, layers=stack)
            logits = model.backbone.head(last)
        costs.append(cross_entropy_nats(logits, rows.batch.targets_BT[of_row_P[part], start:end]).double())
    for layer, piece in zip(layers, pieces, strict=True):
        layer.length = piece.length
    return torch.cat(costs).sum(-1).view(batch, k)


def ancestors(weight_K: Tensor, rule: Resampling, generator: torch.Generator) -> Tensor:
    """Indices [K]: particle i is expected K times its weight often (Douc and Cappe 2005, arXiv cs/0507025).

    'multinomial' draws each by itself, 'stratified' one in each of K equal strata, 'systematic' all by one number.
    """
    k, device = len(weight_K), weight_K.device
    draws = 1 if rule == "systematic" else k
    u = torch.rand(draws, generator=generator, device=device, dtype=torch.float64)
    places_K = u if rule == "multinomial" else (torch.arange(k, device=device) + u) / k
    return torch.searchsorted(weight_K.cumsum(0), places_K).clamp(max=k - 1)
