"""Codes of several latents: each particle draws those of a lower seam first, then runs on to the next seam.

    tokens ─ below all seams ─► hidden [B, T, D]                                          once
    each seam below the last: each particle's numbers ─► codes of the whole row,
                              blocks to the next seam ─► hidden [P, T, D]                 K times
    the last seam: each particle's numbers ─► codes slot after slot, blocks to the head   K times, by chunks

The posterior of an upper latent sees the whole row, and so all codes of the lower ones: these are drawn for
the whole row before the first token is weighed. A particle that goes on with another's past takes over all
that was drawn for that one below the last seam, and draws anew at it. Each code is charged, log p - log q, at
the first token of its slot, so that a slot of the row comes before those of tokens. The product of the mean
weights is an unbiased estimate of p(x): lower codes of later slots are a part of the particle's state, drawn
from q, and the target of a step is p of what was charged times q of the rest (Naesseth et al. 2019, arXiv
1903.04797, section 2.2).

Shape legend: B rows, K particles, P = B x K, T tokens, S slots of a latent, C embedding width.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from lvlm.errors import UserError, one_of
from lvlm.interfaces import Batch, LayerCache, Slots
from lvlm.likelihood.names import Proposal
from lvlm.likelihood.particles import MOST_CODE_SEQUENCES, Rows, need_draws, parts, posterior_of
from lvlm.likelihood.walk import Draws, StepByStep, Walk, seeds_of_particles
from lvlm.model.latent_lm import LatentLM
from lvlm.model.latent_path import LatentPath
from lvlm.model.ports import Ports
from lvlm.objective import cross_entropy_nats
from lvlm.system.device import Autocast
from lvlm.system.machine import need_memory


class SeveralRows(Rows):
    """Some rows under a model with several latents; what `Rows` is for one. Its slots are the tokens.

    Args:
        model: in evaluation mode.
        batch: the rows, on the model's device.
        seeds: one for each row, from which all its noise comes.
        at_once: rows per forward.
        autocast: makes the precision context of a forward.
        prompt: as for `Rows`.
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
        self.model, self.batch, self.seeds = model, batch, seeds
        self.at_once, self.autocast, self.prompt = at_once, autocast, prompt
        self.slots = Slots(1)
        self._walked: dict[tuple[Proposal, int], Walked] = {}
        self._costs: dict[tuple[Proposal, int], Tensor] = {}
        with autocast():
            tokens = batch.inputs_BT.shape[1]
            self.place = model.place(torch.arange(tokens, device=batch.inputs_BT.device))
            self.hidden_BTD = model.below(batch.inputs_BT, self.place)

    @property
    def kl_is_exact(self) -> bool:
        """Whether the KL is the same whatever is drawn: that of an upper latent follows the lower codes."""
        return False

    def walk(self, proposal: Proposal, k: int) -> Walked:
        """Codes of K particles a row, token after token."""
        one_of(proposal, Proposal, "proposal")
        return Walked(self, proposal, k)

    def draws(self, proposal: Proposal, k: int) -> Draws:
        """Log-ratios [B, K, T] of K draws of all codes; the same at every call."""
        return Draws(torch.empty(0), self._whole(proposal, k).log_ratio_BKT)

    def cost(self, proposal: Proposal, k: int) -> Tensor:
        """-log p(x given z) of each draw, [B, K], nats, float64."""
        return self._cost_by_target(proposal, k).sum(-1)

    def mean_cost_by_target(self, proposal: Proposal, k: int) -> Tensor:
        """The same by target, averaged over draws, [B, T]."""
        return self._cost_by_target(proposal, k).mean(1)

    def kls_of_draws(self, k: int) -> dict[str, Tensor]:
        """KL(q || p) of each latent in nats by draw, [B, K, S, d]; zero in slots that are padding."""
        walked = self._whole("posterior", k)
        return {name: self._kl(name, walked, k) for name in self.model.names}

    def kl_of_draws(self, k: int) -> Tensor:
        """The sum over latents at the first token of each slot, [B, K, T, 1]."""
        tokens = self.batch.inputs_BT.shape[1]
        each = [
            at_first_tokens(kl_BKSd.sum(-1), self.model.paths[name].slots, tokens)
            for name, kl_BKSd in self.kls_of_draws(k).items()
        ]
        return torch.stack(each).sum(0)[..., None]

    def cost_of_chunk(self, walk: Walk, layers: list[LayerCache], start: int, end: int) -> Tensor:
        """-log p of the targets from start to end, [B, K], nats, with the codes of a walk's particles; the
        caches of the blocks above the lowest seam grow by them.
        """
        assert isinstance(walk, Walked), walk
        return walk.cost(start, end, layers).sum(-1)

    def log_joint_of_all(self) -> Tensor:
        """Log p(x, z) of all codes that the slots can hold, [B, N], nats, float64.

        Raises:
            UserError: some are continuous, or they are too many.
        """
        tokens, each = self.batch.inputs_BT.shape[1], []
        count = 1
        for path in self.model.paths.values():
            codes, slots = path.quantizer.num_codes, path.slots.count(tokens)
            if codes is None:
                raise UserError("exact enumeration needs codes that can be counted, and some are continuous")
            count *= codes**slots
            if count > MOST_CODE_SEQUENCES:
                raise UserError(
                    f"exact enumeration would try more than {MOST_CODE_SEQUENCES:,} sequences of codes; "
                    f"estimate by 'iwae' or 'smc', or make bits or window smaller"
                )
            each.append(list(itertools.product(range(codes), repeat=slots)))
        all_codes = list(zip(*itertools.product(*each), strict=True))
        device = self.batch.inputs_BT.device
        named = {n: torch.tensor(c, device=device) for n, c in zip(self.model.names, all_codes, strict=True)}
        found = [self._log_joint(row, named) for row in range(len(self.batch))]
        return torch.stack(found)

    def _log_joint(self, row: int, codes: dict[str, Tensor]) -> Tensor:
        """Log p(x, z) of one row with codes [N, S] of each latent, [N]."""
        model, found = self.model, []
        for part in parts(len(next(iter(codes.values()))), self.at_once):
            here = {name: of_one[part] for name, of_one in codes.items()}
            many = len(next(iter(here.values())))
            with self.autocast():
                x_NTD, ports = self.hidden_BTD[row].expand(many, -1, -1), Ports()
                log_p_N = torch.zeros(many, dtype=torch.float64, device=x_NTD.device)
                for stage in model.stages[1:]:
                    hidden_NTD = ports.of_tokens(x_NTD)
                    for name in stage.latents:
                        path = model.paths[name]
                        embedding_NSC = path.quantizer.given(here[name]).embedding_BSC
                        prior_NSJ = path.prior(first_hidden(path, hidden_NTD), embedding_NSC)
                        log_p_N += path.log_prior(here[name], prior_NSJ).double().sum(-1)
                        path.enter(ports, embedding_NSC.to(x_NTD.dtype), self.place.positions_T)
                    x_NTD = model.through(stage, x_NTD, self.place, ports)
                logits = model.head(model.last(x_NTD, ports))
            targets_NT = self.batch.targets_BT[row].expand(many, -1)
            found.append(log_p_N - cross_entropy_nats(logits, targets_NT).double().sum(-1))
        return torch.cat(found)

    def _whole(self, proposal: Proposal, k: int) -> Walked:
        one_of(proposal, Proposal, "proposal")
        if (proposal, k) not in self._walked:
            need_draws(self.model, len(self.batch), self.batch.inputs_BT.shape[1], k)
            walked = self.walk(proposal, k)
            with self.autocast():
                walked.go(slice(0, self.batch.inputs_BT.shape[1]))
            self._walked[proposal, k] = walked
        return self._walked[proposal, k]

    def _cost_by_target(self, proposal: Proposal, k: int) -> Tensor:
        one_of(proposal, Proposal, "proposal")
        if (proposal, k) not in self._costs:
            self._costs[proposal, k] = self._whole(proposal, k).cost(0, self.batch.inputs_BT.shape[1])
        return self._costs[proposal, k]

    def _kl(self, name: str, walked: Walked, k: int) -> Tensor:
        path, codes = self.model.paths[name], walked.codes_of(name)
        numbers, found = walked.numbers[name], []
        kept_BS = path.slots.any(self.batch.keep_BT)[:, None, :, None]
        for part in parts(len(codes), self.at_once):
            with self.autocast():
                drawn = path.quantizer.given(codes[part])
                drawn.posterior_BSK = numbers.posterior_BSK[part]
                prior_PSJ = path.prior(numbers.hidden_BSD[part], drawn.embedding_BSC)
                found.append(path.kl(drawn, prior_PSJ))
        kl_BKSd: Tensor = torch.cat(found).view(-1, k, *found[0].shape[1:]) * kept_BS
        return kl_BKSd


class Walked:
    """Particles of several latents on their way through the tokens (`lvlm.likelihood.walk.Walk`).

    Args:
        rows: the rows.
        proposal: where codes come from.
        k: particles of a row.
    """

    def __init__(self, rows: SeveralRows, proposal: Proposal, k: int) -> None:
        model, batch = rows.model, rows.batch
        self._rows, self._k, self._tokens = rows, k, batch.inputs_BT.shape[1]
        width = 2 * model.backbone.width * len(model.names)  # the stream, and what latents see of it
        held = len(batch) * k * self._tokens * width * rows.hidden_BTD.element_size()
        need_memory(f"k is {k}", held, model.device, mend="fewer particles need less")
        self._of_row_P = torch.arange(len(batch), device=rows.hidden_BTD.device).repeat_interleave(k)
        self._x_PUD, self._front = rows.hidden_BTD[self._of_row_P], 0
        self.numbers: dict[str, StepByStep] = {}
        """What the codes of each latent are drawn from, by particle."""
        for stage in model.stages[1:]:
            self._last = stage
            for name in stage.latents:
                self.numbers[name] = self._begin(name, proposal)
            if stage is not model.stages[-1]:
                for name in stage.latents:
                    with rows.autocast():
                        self.numbers[name].go(slice(0, model.paths[name].slots.count(self._tokens)))
                self._run_to_the_next()
        self._given: list[Tensor] = []

    @property
    def log_ratio_BKT(self) -> Tensor:  # noqa: N802  as tensors are named
        """Log-ratios of all that was gone through."""
        return torch.cat(self._given, 2)

    def codes_of(self, name: str) -> Tensor:
        """All codes of a latent, [P, S] or [P, S, Z]."""
        return self.numbers[name].draws.codes.flatten(0, 1)

    def go(self, slots: slice) -> Tensor:
        """Go through the next tokens; log-ratios [B, K, n] of the slots that begin there."""
        each = []
        for name, walk in self.numbers.items():
            of = self._rows.model.paths[name].slots
            if name in self._last.latents:
                walk.go(slice(of.count(slots.start) if slots.start else 0, of.count(slots.stop)))
            each.append(at_first_tokens(walk.draws.log_ratio_BKS[:, 0], of, self._tokens))
        new_BKn = torch.stack(each).sum(0).view(-1, self._k, self._tokens)[:, :, slots]
        self._given.append(new_BKn)
        return new_BKn

    def take(self, from_P: Tensor, last: int) -> None:
        """Let each particle go on with the past of another, and with all that was drawn for that one."""
        self._x_PUD = self._x_PUD[from_P]
        for walk in self.numbers.values():
            walk.become(from_P)

    def cost(self, start: int, end: int, layers: list[LayerCache] | None = None) -> Tensor:
        """-log p of the targets from start to end, [B, K, n], nats, float64.

        Args:
            start: the first token.
            end: behind the last one.
            layers: caches of the blocks above the lowest seam, which grow by these tokens; None for whole
                rows.
        """
        rows, model, costs = self._rows, self._rows.model, []
        lower = self._last.start - model.seam  # blocks between the seams, which ran over whole rows
        place = model.place(torch.arange(start, end, device=self._x_PUD.device))
        pieces = layers
        for part in parts(len(self._of_row_P), rows.at_once):
            pieces = None if layers is None else [layer.part(part) for layer in layers]
            stack = None if pieces is None else [*pieces[:1] * model.seam, *pieces]
            with rows.autocast():
                ports = Ports()
                first = 0 if start == 0 else self._front + start
                ports.front = self._front if start == 0 else 0
                for name in self.numbers:
                    self._enter(name, ports, part, place.positions_T, end)
                x_PUD = self._x_PUD[part, first : self._front + end]
                x_PUD = model.through(self._last, x_PUD, place, ports, layers=stack)
                logits = model.head(model.last(x_PUD, ports))
            targets = rows.batch.targets_BT[self._of_row_P[part], start:end]
            costs.append(cross_entropy_nats(logits, targets).double())
        if layers is not None and pieces is not None:
            for layer, piece in zip(layers[lower:], pieces[lower:], strict=True):
                layer.length = piece.length
        return torch.cat(costs).view(-1, self._k, end - start)

    def _begin(self, name: str, proposal: Proposal) -> StepByStep:
        """The numbers of a latent from the stream at its seam, and the way through its slots."""
        rows, batch = self._rows, self._rows.batch
        path, found = rows.model.paths[name], []
        repeated = batch.each(lambda x: x[self._of_row_P])
        for part in parts(len(self._of_row_P), rows.at_once):
            with rows.autocast():
                hidden = self._x_PUD[part, self._front :]
                posterior = posterior_of(rows.model, name, repeated[part], hidden, rows.prompt)
                found.append((first_hidden(path, hidden), posterior))
        hidden_PSD, posterior_PSK = (torch.cat(x) for x in zip(*found, strict=True))
        number = rows.model.names.index(name)
        seeds = [one for own in rows.seeds for one in seeds_of_particles(own, self._k, number)]
        keep_PS = path.slots.any(batch.keep_BT)[self._of_row_P]
        known = posterior_PSK.shape[1] if rows.prompt else 0
        return StepByStep(
            path, hidden_PSD, posterior_PSK, keep_PS, proposal=proposal, seeds=seeds, k=1, known=known
        )

    def _run_to_the_next(self) -> None:
        """Blocks from this seam to the next, over whole rows."""
        rows, found, front = self._rows, [], 0
        for part in parts(len(self._of_row_P), rows.at_once):
            with rows.autocast():
                ports = Ports()
                ports.front = self._front
                for name in self.numbers:
                    self._enter(name, ports, part, rows.place.positions_T, self._tokens)
                found.append(rows.model.through(self._last, self._x_PUD[part], rows.place, ports))
                front = ports.front
        self._x_PUD, self._front = torch.cat(found), front

    def _enter(self, name: str, ports: Ports, part: slice, positions_T: Tensor, end: int) -> None:
        path = self._rows.model.paths[name]
        embedding = self.numbers[name].embedding_PSC[part, : path.slots.count(end)]
        path.enter(ports, embedding.to(self._x_PUD.dtype), positions_T)


def first_hidden(path: LatentPath, hidden_BTD: Tensor) -> Tensor:
    """The hidden at each slot's first position, [B, S, D]."""
    return hidden_BTD[:, path.slots.first_positions(hidden_BTD.shape[1], hidden_BTD.device)]


def at_first_tokens(x_RS: Tensor, slots: Slots, tokens: int) -> Tensor:
    """Numbers of slots at the first token of each, zeros elsewhere: [..., S] -> [..., T]."""
    first_S = slots.first_positions(tokens, x_RS.device)[: x_RS.shape[-1]]
    return x_RS.new_zeros(*x_RS.shape[:-1], tokens).index_copy(-1, first_S, x_RS)


def rows_of(
    model: LatentLM,
    batch: Batch,
    *,
    seeds: Sequence[int],
    at_once: int,
    autocast: Autocast,
    prompt: int = 0,
) -> Rows:
    """Some rows under a model with any number of latents; arguments as for `Rows`."""
    kind = SeveralRows if len(model.names) > 1 else Rows
    return kind(model, batch, seeds=seeds, at_once=at_once, autocast=autocast, prompt=prompt)
