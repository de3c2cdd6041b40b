"""Weighted codes: draws for a row, importance sampling over whole sequences, and the particle filter.

Below the seam nothing depends on a code, and neither proposal looks at what a particle drew before, so for
each row

    tokens ─ below the seam ─► hidden ─► posterior numbers, prior numbers        once
    numbers ─► K x S codes and log p(z)/q(z given x) of each                     once, all noise of the row
    codes ─ above the seam ─► -log p(x given z)                                  K times: what is paid for

All noise of a row comes from a generator of its own, so that neither the micro-batch nor the other rows
change it.

Shape legend: B rows, K particles, P = B x K rows of a forward, T tokens, S slots, C embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lvlm.errors import UserError, one_of
from lvlm.interfaces import Batch
from lvlm.likelihood.names import Proposal
from lvlm.model.latent_lm import LatentLM, LatentPath
from lvlm.model.noise import SLOTS_A_DRAW, WEIGHING, block, generators
from lvlm.objective import cross_entropy_nats
from lvlm.system.device import Autocast
from lvlm.system.machine import need_memory

MOST_CODE_SEQUENCES = 65_536

BYTES_OF_A_DRAW = 16  # a code, and log p(z)/q(z given x)
BYTES_OF_A_COST = 8  # -log p of a target


@dataclass(frozen=True)
class Draws:
    """K codes for each slot of each row.

    codes           int64 [B, K, S] or float [B, K, S, Z]
    log_ratio_BKS   log p(z) - log q(z given x), nats; zero in slots that are padding
    """

    codes: Tensor
    log_ratio_BKS: Tensor


def need_draws(model: LatentLM, rows: int, tokens: int, k: int) -> None:
    """Make sure that K codes of each slot, and what each costs at each target, fit the memory.

    Raises:
        BeyondMachine: they don't.
    """
    slots = 0 if model.slots is None else model.slots.count(tokens)
    needed = rows * k * (slots * BYTES_OF_A_DRAW + tokens * BYTES_OF_A_COST)
    need_memory(f"k is {k}", needed, model.device, mend="fewer codes per slot need less")


class Rows:
    """Some rows and all of the model that no code changes.

    Args:
        model: in evaluation mode.
        batch: the rows, on the model's device.
        seeds: one for each row, from which all its noise comes.
        at_once: rows per forward.
        autocast: makes the precision context of a forward.
        prompt: tokens at the start whose codes come from the encoder that sees them alone, at no price,
            whatever the proposal; later codes come from the prior. 0: the encoder sees the whole row. Where
            rows have another text, the encoder sees all of it in both cases; where a model was trained with
            one and a prompt has none, all codes come from the prior.
    """

    def __init__(
        self,
        model: LatentLM,
        batch: Batch,
        *,
        seeds: Sequence[int],
        at_once: int,
        autocast: Autocast,
        prompt: int = 0,
    ) -> None:
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
            self.posterior_BSK = self._posterior(model.latent)

    def _posterior(self, path: LatentPath) -> Tensor:
        """Posterior numbers of the slots that the encoder knows of."""
        batch, other = self.batch, self.model.read(self.batch.latent_inputs_BU, self.batch.latent_keep_BU)
        if other is not None:
            return path.posterior(*other)
        if self.prompt and self.model.reads_other_text:
            return self.hidden_BTD.new_zeros(len(batch), 0, path.quantizer.posterior_dim)
        seen = slice(0, self.prompt or None)
        return path.posterior(batch.inputs_BT[:, seen], self.hidden_BTD[:, seen], batch.keep_BT[:, seen])

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
        one_of(proposal, Proposal, "proposal")
        if (proposal, k) not in self._draws:
            need_draws(self.model, len(self.batch), self.batch.inputs_BT.shape[1], k)
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
        one_of(proposal, Proposal, "proposal")
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
                f"exact enumeration would try {codes} codes in each of {slots} slots, more than {most:,} "
                f"sequences in "
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
