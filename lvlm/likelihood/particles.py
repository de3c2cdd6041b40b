"""Weighted codes: draws for a row, importance sampling over whole sequences, and the particle filter.

Below the seam nothing depends on a code, and neither proposal looks at what a particle drew before (but for a
prior that sees codes, see `lvlm.likelihood.walk`), so for each row

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

import torch
from torch import Tensor

from lvlm.errors import UserError, one_of
from lvlm.interfaces import Batch, LayerCache
from lvlm.likelihood.names import Proposal
from lvlm.likelihood.walk import DrawnAhead, Draws, StepByStep, Walk, choose, seeds_of_particles
from lvlm.model.latent_lm import LatentLM
from lvlm.model.latent_path import LatentPath
from lvlm.model.noise import SLOTS_A_DRAW, WEIGHING, block, generators
from lvlm.objective import cross_entropy_nats
from lvlm.system.device import Autocast
from lvlm.system.machine import need_memory

MOST_CODE_SEQUENCES = 65_536

BYTES_OF_A_DRAW = 16  # a code, and log p(z)/q(z given x)
BYTES_OF_A_COST = 8  # -log p of a target


def need_draws(model: LatentLM, rows: int, tokens: int, k: int) -> None:
    """Make sure that K codes of each slot, and what each costs at each target, fit the memory.

    Raises:
        BeyondMachine: they don't.
    """
    slots = sum(path.slots.count(tokens) for path in model.paths.values())
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
            self.first_BSD = self.hidden_BTD[:, first_S]
            if not model.latent.prior_head.sees_codes:
                self.prior_BSJ = model.latent.prior(self.first_BSD)
            self.posterior_BSK = posterior_of(model, model.names[0], batch, self.hidden_BTD, prompt)

    def generators(self, purpose: int) -> list[torch.Generator]:
        """One for each row; another purpose is another stream."""
        return generators(self.seeds, purpose, self.model.device)

    @property
    def path(self) -> LatentPath:
        """The latent of the model."""
        assert self.model.latent is not None
        return self.model.latent

    @property
    def kl_is_exact(self) -> bool:
        """Whether the KL is the same whatever is drawn."""
        return not self.path.kl_follows_draws

    def kl_of_draws(self, k: int) -> Tensor:
        """KL(q || p) in nats by draw, [B, K, S, d], or [B, 1, S, d] where it is exact; zero in slots that are
        padding. Where it follows the draws, each is what the posterior's K codes say: their mean is the KL.
        """
        path, kept = self.path, self.keep_BS[:, None, :, None]
        if self.kl_is_exact:
            latent = path.quantizer(self.posterior_BSK, self.prior_BSJ, self.generators(WEIGHING)[0])
            assert latent.kl_BSd is not None
            exact_B1Sd: Tensor = latent.kl_BSd[:, None] * kept
            return exact_B1Sd
        codes, found = self.draws("posterior", k).codes.flatten(0, 1), []
        of_row_P = self.row_of_each(k)
        for part in parts(len(of_row_P), self.at_once):
            rows = of_row_P[part]
            with self.autocast():
                drawn = path.quantizer.given(codes[part])
                drawn.posterior_BSK = self.posterior_BSK[rows]
                prior_PSJ = path.prior(self.first_BSD[rows], drawn.embedding_BSC)
                found.append(path.kl(drawn, prior_PSJ))
        kl_BKSd: Tensor = torch.cat(found).view(-1, k, *found[0].shape[1:]) * kept
        return kl_BKSd

    def kls_of_draws(self, k: int) -> dict[str, Tensor]:
        """`kl_of_draws` of each latent, by name."""
        return {name: self.kl_of_draws(k) for name in self.model.names}

    def row_of_each(self, k: int) -> Tensor:
        """The row of each of K particles a row, [P]."""
        return torch.arange(len(self.batch), device=self.hidden_BTD.device).repeat_interleave(k)

    def log_prior(self, codes: Tensor) -> Tensor:
        """Log p(z) of codes [B, K, S] or [B, K, S, Z], slot by slot, [B, K, S], nats, float64."""
        path, (batch, k), flat = self.path, codes.shape[:2], codes.flatten(0, 1)
        if not path.prior_head.sees_codes:
            prior_BKSJ = self.prior_BSJ[:, None].expand(-1, k, -1, -1)
            return path.log_prior(flat, prior_BKSJ.flatten(0, 1)).double().view(batch, k, -1)
        found, of_row_P = [], self.row_of_each(k)
        for part in parts(len(of_row_P), self.at_once):
            with self.autocast():
                prior_PSJ = path.prior(self.first_BSD[of_row_P[part]], self.embed(flat[part]))
                found.append(path.log_prior(flat[part], prior_PSJ).double())
        return torch.cat(found).view(batch, k, -1)

    def draws(self, proposal: Proposal, k: int) -> Draws:
        """K codes of the proposal for each slot; the same at every call."""
        one_of(proposal, Proposal, "proposal")
        if (proposal, k) not in self._draws:
            need_draws(self.model, len(self.batch), self.batch.inputs_BT.shape[1], k)
            if self.path.prior_head.sees_codes:
                walk = self._step_by_step(proposal, k)
                with self.autocast():
                    walk.go(slice(0, self.first_BSD.shape[1]))
                self._draws[proposal, k] = walk.draws
                return self._draws[proposal, k]
            drawn = [self._draw(row, proposal, k, g) for row, g in enumerate(self.generators(WEIGHING))]
            codes, log_ratio = zip(*drawn, strict=True)
            self._draws[proposal, k] = Draws(torch.stack(codes), torch.stack(log_ratio))
        return self._draws[proposal, k]

    def walk(self, proposal: Proposal, k: int) -> Walk:
        """The same codes slot after slot, for a filter, which may let particles go on with another's."""
        if self.path.prior_head.sees_codes:
            return self._step_by_step(proposal, k)
        draws = self.draws(proposal, k)
        return DrawnAhead(draws, self.embed(draws.codes.flatten(0, 1)).clone())

    def _step_by_step(self, proposal: Proposal, k: int) -> StepByStep:
        known = self.posterior_BSK.shape[1] if self.prompt else 0
        seeds = [seed for own in self.seeds for seed in seeds_of_particles(own, k)]
        numbers = (self.first_BSD, self.posterior_BSK, self.keep_BS)
        return StepByStep(self.path, *numbers, proposal=proposal, seeds=seeds, k=k, known=known)

    def _draw(
        self, row: int, proposal: Proposal, k: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Codes [K, S] (or [K, S, Z]) and log-ratios [K, S] of one row."""
        path, quantizer = self.path, self.path.quantizer
        known, total = self.posterior_BSK.shape[1], self.prior_BSJ.shape[1]
        codes, ratios = [], []
        for start in range(0, total, SLOTS_A_DRAW):
            prior_KSJ, posterior_KSK = (
                block(numbers_BSn[row], start).expand(k, -1, -1)
                for numbers_BSn in (self.prior_BSJ, self.posterior_BSK)
            )
            zeros_KSJ = path.zeros(prior_KSJ)  # what a posterior draws doesn't depend on the prior
            drawn = path.prior_head.sample(quantizer, prior_KSJ, generator).codes
            ratio = prior_KSJ.new_zeros(prior_KSJ.shape[:2])
            if self.prompt:
                own = torch.arange(start, start + SLOTS_A_DRAW, device=drawn.device) < known
                drawn = choose(own, quantizer(posterior_KSK, zeros_KSJ, generator).codes, drawn)
            elif proposal != "prior":
                from_posterior = quantizer(posterior_KSK, zeros_KSJ, generator).codes
                own = torch.ones(drawn.shape[:2], dtype=torch.bool, device=drawn.device)
                if proposal == "mixture":
                    own = torch.rand(own.shape, generator=generator, device=own.device) < 0.5
                drawn = choose(own, from_posterior, drawn)
                log_p = path.log_prior(drawn, prior_KSJ)
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
            logits = self.model.head(self.model.above(self.hidden_BTD, None, self.place))
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
                logits = self.model.head(last)
            costs.append(cross_entropy_nats(logits, self.batch.targets_BT[of_row_P[part]]).double())
        return torch.cat(costs).view(rows, k, -1)

    def cost_of_chunk(self, walk: Walk, layers: list[LayerCache], start: int, end: int) -> Tensor:
        """-log p of the targets from start to end, [B, K], nats, with the codes of a walk's particles; the
        caches of the blocks above the seam grow by them.
        """
        assert isinstance(walk, DrawnAhead | StepByStep), walk
        model, embedding_PSC = self.model, walk.embedding_PSC[:, : self.slots.count(end)]
        k = len(embedding_PSC) // len(self.batch)
        of_row_P = self.row_of_each(k)
        costs, pieces = [], layers
        for part in parts(len(of_row_P), self.at_once):
            pieces = [layer.part(part) for layer in layers]
            with self.autocast():
                hidden = self.hidden_BTD[of_row_P[part], start:end]
                stack = [*layers[:1] * model.seam, *pieces]  # those below the seam aren't looked at
                place = model.place(torch.arange(start, end, device=hidden.device))
                last = model.above(hidden, embedding_PSC[part], place, layers=stack)
                logits = model.head(last)
            targets = self.batch.targets_BT[of_row_P[part], start:end]
            costs.append(cross_entropy_nats(logits, targets).double())
        for layer, piece in zip(layers, pieces, strict=True):
            layer.length = piece.length
        return torch.cat(costs).sum(-1).view(-1, k)

    def log_joint_of_all(self) -> Tensor:
        """Log p(x, z) of all codes that the slots can hold, [B, N], nats, float64.

        Raises:
            UserError: they are continuous, or too many.
        """
        codes = self.code_sequences().expand(len(self.batch), -1, -1)
        return self.log_prior(codes).sum(-1) - self.cost_of(codes)

    def embed(self, codes: Tensor) -> Tensor:
        """Embeddings [P, S, C] of codes [P, S] or [P, S, Z]."""
        embedding_PSC: Tensor = self.path.quantizer.given(codes).embedding_BSC
        return embedding_PSC

    def code_sequences(self, most: int = MOST_CODE_SEQUENCES) -> Tensor:
        """All codes that the slots can hold, [N, S].

        Raises:
            UserError: they are continuous, or more than `most`.
        """
        codes, slots = self.path.quantizer.num_codes, self.first_BSD.shape[1]
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


def posterior_of(model: LatentLM, name: str, batch: Batch, hidden_BTD: Tensor, prompt: int = 0) -> Tensor:
    """Posterior numbers of the slots that a latent's encoder knows of, [B, S, K].

    Args:
        model: the model.
        name: of the latent.
        batch: the rows, perhaps with another text.
        hidden_BTD: the hidden of the rows at the latent's seam.
        prompt: tokens at the start that the encoder sees; 0 for whole rows.
    """
    path = model.paths[name]
    other = model.read(name, batch.latent_inputs_BU, batch.latent_keep_BU)
    if other is not None:
        return path.posterior(*other)
    if prompt and model.reads_other_text_for(name):
        return hidden_BTD.new_zeros(len(batch), 0, path.quantizer.posterior_dim)
    seen = slice(0, prompt or None)
    return path.posterior(batch.inputs_BT[:, seen], hidden_BTD[:, seen], batch.keep_BT[:, seen])


def parts(count: int, size: int) -> Iterator[slice]:
    """0..count in pieces."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
