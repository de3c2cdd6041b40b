"""Codes of particles, slot after slot: drawn ahead, or each when the codes before it are known.

Under a prior that sees codes, p of a slot depends on what its particle drew before. A particle that goes on
with another's past goes on with what the prior remembers of it, too.

Shape legend: B rows, K particles, P = B x K, S slots, n slots of one step, C embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lvlm.errors import one_of
from lvlm.interfaces import RowGenerator, uniform
from lvlm.likelihood.names import Proposal
from lvlm.model.latent_path import LatentPath
from lvlm.model.noise import WEIGHING


@dataclass(frozen=True)
class Draws:
    """K codes for each slot of each row.

    codes           int64 [B, K, S] or float [B, K, S, Z]
    log_ratio_BKS   log p(z) - log q(z given x), nats; zero in slots that are padding
    """

    codes: Tensor
    log_ratio_BKS: Tensor


class Walk(Protocol):
    """Codes of particles, a few slots at a time."""

    def go(self, slots: slice) -> Tensor:
        """Go through the next slots; their log-ratios [B, K, n], as `Draws` has them."""
        ...

    def take(self, from_P: Tensor, last: int) -> None:
        """Let each particle go on with the past of another, or with its own.

        Args:
            from_P: whose past each particle takes over.
            last: the one slot begun that later tokens may use, too.
        """
        ...


class DrawnAhead:
    """Codes that were all drawn before, as nothing depends on a particle's past."""

    def __init__(self, draws: Draws, embedding_PSC: Tensor) -> None:
        self.draws, self.embedding_PSC = draws, embedding_PSC

    def go(self, slots: slice) -> Tensor:
        """Log-ratios of the slots."""
        return self.draws.log_ratio_BKS[:, :, slots]

    def take(self, from_P: Tensor, last: int) -> None:
        """Take over the code of the slot that goes on."""
        self.embedding_PSC[:, last] = self.embedding_PSC[from_P, last]


class StepByStep:
    """Codes drawn slot after slot, each under what the prior remembers of the particle's codes before.

    Args:
        path: the latent.
        hidden_BSD: the hidden at each slot's first position.
        posterior_BSK: posterior numbers, of the first slots at least.
        keep_BS: slots that aren't padding.
        proposal: where codes come from.
        seeds: one for each particle, B x K.
        k: particles of a row.
        known: slots at the start whose codes come from the posterior at no price, whatever the proposal.
    """

    def __init__(
        self,
        path: LatentPath,
        hidden_BSD: Tensor,
        posterior_BSK: Tensor,
        keep_BS: Tensor,
        *,
        proposal: Proposal,
        seeds: Sequence[int],
        k: int,
        known: int,
    ) -> None:
        self._path, self._k, self._known = path, k, known
        self._proposal = one_of(proposal, Proposal, "proposal")
        self.hidden_BSD, self.posterior_BSK, self._keep_BS = hidden_BSD, posterior_BSK, keep_BS
        self._generator = RowGenerator(seeds, hidden_BSD.device)
        self._memory = path.memory(hidden_BSD[:, :1].repeat_interleave(k, 0))
        slots, width = hidden_BSD.shape[1], path.quantizer.embedding_dim
        self.embedding_PSC = path.readout.weight.new_zeros(len(seeds), slots, width)
        self._codes: list[Tensor] = []
        self._ratios: list[Tensor] = []

    @property
    def draws(self) -> Draws:
        """All that was drawn; of a particle that took over another's past it is its own, unless it became the
        other (`become`).
        """
        return Draws(torch.cat(self._codes, 2), torch.cat(self._ratios, 2))

    def go(self, slots: slice) -> Tensor:
        """Draw the codes of the next slots."""
        new: list[Tensor] = []
        for slot in range(slots.start, slots.stop):
            codes_P1, ratio_P1 = self._draw(slot)
            embedding_P1C = self._path.quantizer.given(codes_P1).embedding_BSC
            self._memory.take_in(embedding_P1C)
            self.embedding_PSC[:, slot] = embedding_P1C[:, 0]
            ratio_BK1 = ratio_P1.double().view(-1, self._k, 1) * self._keep_BS[:, None, slot, None]
            self._codes.append(codes_P1.view(-1, self._k, *codes_P1.shape[1:]))
            new.append(ratio_BK1)
        self._ratios += new
        if not new:
            return self.hidden_BSD.new_zeros(len(self.hidden_BSD), self._k, 0, dtype=torch.float64)
        return torch.cat(new, 2)

    def take(self, from_P: Tensor, last: int) -> None:
        """Take over memories, and the code of the slot that goes on."""
        self._memory.take(from_P)
        self.embedding_PSC[:, last] = self.embedding_PSC[from_P, last]

    def become(self, from_P: Tensor) -> None:
        """Let each particle, a row of its own here, become a copy of another; later draws stay its own."""
        self._memory.take(from_P)
        self.hidden_BSD, self.posterior_BSK = self.hidden_BSD[from_P], self.posterior_BSK[from_P]
        self.embedding_PSC = self.embedding_PSC[from_P]
        self._codes = [codes[from_P] for codes in self._codes]
        self._ratios = [ratio[from_P] for ratio in self._ratios]

    def _draw(self, slot: int) -> tuple[Tensor, Tensor]:
        """Codes [P, 1] or [P, 1, Z] and log-ratios [P, 1] of a slot."""
        path, generator = self._path, self._generator
        quantizer = path.quantizer
        hidden_P1D, posterior_P1K = (
            x[:, slot : slot + 1].repeat_interleave(self._k, 0) for x in (self.hidden_BSD, self.posterior_BSK)
        )
        prior_P1J = self._memory.numbers(hidden_P1D)
        drawn = path.prior_head.sample(quantizer, prior_P1J, generator).codes
        nothing_P1 = torch.zeros(len(drawn), 1, dtype=torch.float64, device=drawn.device)
        if slot < self._known:
            return quantizer(posterior_P1K, path.zeros(hidden_P1D), generator).codes, nothing_P1
        if self._proposal == "prior":
            return drawn, nothing_P1
        from_posterior = quantizer(posterior_P1K, path.zeros(hidden_P1D), generator).codes
        own_P1 = torch.ones(drawn.shape[:2], dtype=torch.bool, device=drawn.device)
        if self._proposal == "mixture":
            own_P1 = uniform(own_P1.shape, generator, device=own_P1.device) < 0.5
        drawn = choose(own_P1, from_posterior, drawn)
        log_p, log_q = path.log_prior(drawn, prior_P1J), quantizer.log_prob(drawn, posterior_P1K)
        if self._proposal == "mixture":
            log_q = torch.logaddexp(log_q, log_p) - math.log(2)
        return drawn, log_p - log_q


def choose(first_KS: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Codes [K, S] or [K, S, Z] of `one` where it is said, else of `other`."""
    return torch.where(first_KS.view(-1, first_KS.shape[-1], *[1] * (one.ndim - 2)), one, other)


def seeds_of_particles(seed: int, k: int, latent: int = 0) -> list[int]:
    """Seeds of a row's K particles, from the row's; fewer are the first of more, and those of each latent
    are its own.
    """
    source = np.random.SeedSequence([seed, WEIGHING, latent] if latent else [seed, WEIGHING])
    return [int(word >> 1) for word in source.generate_state(k, np.uint64)]
