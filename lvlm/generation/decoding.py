"""Decoding token by token: keys and values of every block, and a code for every slot, drawn once and kept.

    prompts ─ below the seam ─► hidden ─ encoder ─► codes of the prompt's slots (or prior, or given)
                                                    codes of later slots          from the prior, or given
    then each step     tokens_B ─ below all seams ─ from each seam to the next ─ head ─► logits_BV

A prior that sees neither the text nor codes has all codes and their embeddings drawn before the first token.
Any other draws the code of a slot once the hidden state at its first position is known.

Shape legend: see `lvlm.interfaces`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lvlm.errors import UserError, one_of
from lvlm.interfaces import LayerCache
from lvlm.model.latent_lm import LatentLM, Place
from lvlm.model.latent_path import LatentPath
from lvlm.model.noise import POSTERIOR_CODES, PRIOR_CODES, SLOTS_A_DRAW, block, generators
from lvlm.model.ports import Ports

PromptCodes = Literal["posterior", "prior"]


@dataclass(frozen=True)
class Given:
    """Codes given by the caller, in place of drawn ones.

    codes     int64 [B, S] or float [B, S, Z], of a row's first slots; more than a row needs are ignored
    hold_BS   bool, the slots that keep them; the others are drawn as if nothing had been given
    """

    codes: Tensor
    hold_BS: Tensor


class RowCodes:
    """A code for each slot of each row.

    Args:
        path: the latent path of the model.
        slots: number of slots in a row.
        seeds: seed of each row's codes.
        leaders: for each row, the row whose codes it shares (itself if it draws its own).
        given: codes given by the caller, if any.
        number: of the latent among several, each of which has noise of its own.

    Raises:
        UserError: codes that don't fit the quantizer or the rows.
    """

    def __init__(
        self,
        path: LatentPath,
        slots: int,
        seeds: Sequence[int],
        leaders: Sequence[int],
        given: Given | None,
        number: int = 0,
    ) -> None:
        self._path, device = path, path.readout.weight.device
        self._of_prior = generators(seeds, PRIOR_CODES, device, number)
        self._of_posterior = generators(seeds, POSTERIOR_CODES, device, number)
        self._leader_B = torch.tensor(leaders, device=device)
        self._leads = sorted(set(leaders))
        self._held_BS = torch.zeros(len(seeds), slots, dtype=torch.bool, device=device)
        no_text_1S1 = path.readout.weight.new_zeros(1, slots, 1)
        self._follows = path.prior_head.sees_hidden or path.prior_head.sees_codes
        if not self._follows:
            prior_SJ = path.prior(no_text_1S1)[0]
            drawn = {row: prior_codes(path, prior_SJ, self._of_prior[row]) for row in self._leads}
        else:  # placeholders of the same shape; each code is drawn when its slot begins
            zeros_1SJ = path.zeros(no_text_1S1)
            placeholder = path.quantizer.sample(zeros_1SJ, torch.Generator(device)).codes[0]
            drawn = dict.fromkeys(self._leads, placeholder)
        self.codes = torch.stack([drawn[row] for row in leaders])
        if given is not None:
            self._take(given, len(seeds))
        self.embedding_BSC = path.quantizer.given(self.codes).embedding_BSC
        self.waits_for_text = self._follows and not bool(self._held_BS.all())
        """Whether the prior draws codes during decoding, each when its slot begins."""

    def all_given(self, slots: int) -> bool:
        """Whether the codes of the first `slots` slots are given in every row."""
        return bool(self._held_BS[:, :slots].all())

    def _take(self, given: Given, rows: int) -> None:
        chosen = self._path.quantizer.given(given.codes).codes
        if chosen.shape[0] != rows:
            or_all = ", or [1, slots, …] for all of them" if rows > 1 else ""
            raise UserError(
                f"codes of shape {list(given.codes.shape)} given for {rows} rows; they are [{rows}, slots, "
                f"…]{or_all}"
            )
        count = min(self._held_BS.shape[1], chosen.shape[1])
        held_BS = given.hold_BS[:, :count]
        self._held_BS[:, :count] = held_BS
        self.codes[:, :count][held_BS] = chosen[:, :count][held_BS].to(self.codes.dtype)

    def begin(self, counts_B: Sequence[int], posterior_BSK: Tensor | None, hidden_BSD: Tensor) -> None:
        """Draw the codes of the prompts' slots from the posterior or, without one, from the prior.

        Args:
            counts_B: number of slots in each prompt.
            posterior_BSK: numbers of the posterior, from an encoder that saw the prompt alone.
            hidden_BSD: the hidden at the first position of as many slots.
        """
        path = self._path
        self._memory = path.memory(hidden_BSD)
        if posterior_BSK is not None:
            for row in self._leads:
                drawn = posterior_codes(path, posterior_BSK[row, : counts_B[row]], self._of_posterior[row])
                self._write(row, slice(0, counts_B[row]), drawn)
        elif self._follows and not path.prior_head.sees_codes:
            prior_BSJ = path.prior(hidden_BSD)
            for row in self._leads:
                drawn = prior_codes(path, prior_BSJ[row, : counts_B[row]], self._of_prior[row])
                self._write(row, slice(0, counts_B[row]), drawn)
        if path.prior_head.sees_codes:
            for slot, hidden_B1D in enumerate(torch.split(hidden_BSD, 1, dim=1)):
                begins_B = [slot if slot < count else None for count in counts_B]
                self._slot(begins_B, hidden_B1D, draw=posterior_BSK is None)

    def go_on(self, begins_B: Sequence[int | None], hidden_B1D: Tensor) -> None:
        """Draw the code of the slot that begins in each row, if one does."""
        self._slot(begins_B, hidden_B1D, draw=True)

    def _slot(self, begins_B: Sequence[int | None], hidden_B1D: Tensor, *, draw: bool) -> None:
        """Draw codes, or keep those that are there, and let the prior remember them."""
        path, rows = self._path, {row: slot for row, slot in enumerate(begins_B) if slot is not None}
        if not rows:
            return
        begins = torch.tensor([slot is not None for slot in begins_B], device=hidden_B1D.device)
        prior_B1J = self._memory.numbers(hidden_B1D, begins)
        for row in self._leads:
            if draw and row in rows:
                numbers_11J, generator = prior_B1J[row : row + 1], self._of_prior[row]
                code = path.prior_head.sample(path.quantizer, numbers_11J, generator).codes[0]
                self._write(row, slice(rows[row], rows[row] + 1), code)
        if path.prior_head.sees_codes:
            slot_B = torch.tensor([slot or 0 for slot in begins_B], device=begins.device)
            every_B = torch.arange(len(slot_B), device=begins.device)
            self._memory.take_in(self.embedding_BSC[every_B, slot_B][:, None], begins)

    def _write(self, row: int, slots: slice, codes: Tensor) -> None:
        """Write codes to a row and to the rows that share them, except in slots whose codes are given."""
        for follower in (self._leader_B == row).nonzero()[:, 0].tolist():
            free_S = (~self._held_BS[follower, slots]).nonzero()[:, 0]
            new = codes[free_S]
            self.codes[follower, slots.start + free_S] = new
            self.embedding_BSC[follower, slots.start + free_S] = self._path.quantizer.given(
                new[None]
            ).embedding_BSC[0]


def prior_codes(path: LatentPath, prior_SJ: Tensor, generator: torch.Generator) -> Tensor:
    """Codes [S] or [S, Z] of one row from prior numbers that no code changes."""
    codes = [
        path.prior_head.sample(path.quantizer, block(prior_SJ, start)[None], generator).codes[0]
        for start in range(0, len(prior_SJ), SLOTS_A_DRAW)
    ]
    return torch.cat(codes)[: len(prior_SJ)]


def posterior_codes(path: LatentPath, posterior_SK: Tensor, generator: torch.Generator) -> Tensor:
    """Codes [S] or [S, Z] of one row from posterior numbers; they don't depend on the prior."""
    codes = []
    for start in range(0, len(posterior_SK), SLOTS_A_DRAW):
        posterior_1SK = block(posterior_SK, start)[None]
        codes.append(path.quantizer(posterior_1SK, path.zeros(posterior_1SK), generator).codes[0])
    return torch.cat(codes)[: len(posterior_SK)]


class Decoding:
    """Rows that are decoded together.

    Args:
        model: a model in evaluation mode.
        capacity: the most tokens that a row is fed.
        rows: number of rows.
        codes: codes of the rows' slots: of the only latent, or of each by name; None for a model without one.
        prompt_codes: source of the codes of the prompt's slots that are not given.
        compile: compile a step; its shapes are then the same from the first to the last, at the price of
            attention over the whole capacity.
    """

    def __init__(
        self,
        model: LatentLM,
        rows: int,
        capacity: int,
        codes: RowCodes | Mapping[str, RowCodes] | None = None,
        *,
        prompt_codes: PromptCodes = "posterior",
        compile: bool = False,
    ) -> None:
        assert not model.training
        named = dict.fromkeys(model.names, codes) if isinstance(codes, RowCodes) else codes or {}
        assert named.keys() == model.paths.keys(), f"codes of {[*named]}, latents {model.names}"
        self.model, self.codes, self.capacity = model, named, capacity
        self._prompt_codes = one_of(prompt_codes, PromptCodes, "prompt_codes")
        self._layers = model.make_cache(rows, capacity)
        self._compile = compile
        self._lengths: list[int] = []
        self._at_B: Tensor | None = None

    def begin(
        self,
        tokens_BT: Tensor,
        keep_BT: Tensor,
        latent_tokens_BU: Tensor | None = None,
        latent_keep_BU: Tensor | None = None,
    ) -> Tensor:
        """Process the prompts, padded on the right; return the logits [B, V] of each row's next token.

        Args:
            tokens_BT: the prompts.
            keep_BT: which of their tokens are real.
            latent_tokens_BU: texts that the encoder reads in place of the prompts. A model that was trained
                with two texts draws from the prior where it has none.
            latent_keep_BU: which of their tokens are real.
        """
        model, device = self.model, tokens_BT.device
        rows, tokens = tokens_BT.shape
        self._lengths = keep_BT.sum(1).tolist()
        place = model.place(torch.arange(tokens, device=device))
        x_BTD, ports = model.below(tokens_BT, place, layers=self._layers), Ports()
        for stage in model.stages[1:]:
            hidden_BTD = ports.of_tokens(x_BTD)
            for name in stage.latents:
                path, codes = model.paths[name], self.codes[name]
                first_S = path.slots.first_positions(tokens, device)
                posterior = None
                if self._prompt_codes == "posterior" and not codes.all_given(len(first_S)):
                    other = model.read(name, latent_tokens_BU, latent_keep_BU)
                    if other is not None:
                        posterior = path.posterior(*other)
                    elif not model.reads_other_text_for(name):
                        posterior = path.posterior(tokens_BT, hidden_BTD, keep_BT)
                counts = [path.slots.count(length) for length in self._lengths]
                codes.begin(counts, posterior, hidden_BTD[:, first_S])
                path.enter(ports, codes.embedding_BSC.to(x_BTD.dtype), place.positions_T)
            x_BTD = model.through(stage, x_BTD, place, ports, layers=self._layers)
        y_BTD = model.last(x_BTD, ports)
        last_B = torch.tensor(self._lengths, device=device) - 1
        if self._compile or min(self._lengths) < tokens:
            self._at_B = last_B + 1
            self._turn(tokens + 1)
        return self._head(y_BTD[torch.arange(rows, device=device), last_B])

    def step(self, tokens_B: Tensor) -> Tensor:
        """Process a token of each row; return the logits [B, V] of the next one."""
        model, tokens_B1 = self.model, tokens_B[:, None]
        if self._at_B is None:
            positions = torch.arange(self._lengths[0], self._lengths[0] + 1, device=tokens_B.device)
        else:
            positions = self._at_B[:, None]
        below, onward = _compiled() if self._compile else (_below, _onward)
        place, x_B1D = below(model, tokens_B1, positions, self._layers)
        for number, stage in enumerate(model.stages[1:], 1):
            for name in stage.latents:
                if self.codes[name].waits_for_text:
                    count = model.paths[name].slots.count
                    begins = [n if (n := count(old)) < count(old + 1) else None for old in self._lengths]
                    self.codes[name].go_on(begins, x_B1D)
            x_B1D = onward(model, number, x_B1D, self._embeddings(), place, self._layers)
        logits_BV = x_B1D if model.names else onward(model, 1, x_B1D, {}, place, self._layers)
        self._lengths = [length + 1 for length in self._lengths]
        if self._at_B is not None:
            self._at_B.add_(1)
            self._turn(max(self._lengths) + 1)
        return logits_BV

    def used(self, row: int, tokens: int) -> dict[str, Tensor]:
        """The codes [S] or [S, Z] of a row's first `tokens` tokens, by latent."""
        return {
            name: codes.codes[row, : self.model.paths[name].slots.count(tokens)]
            for name, codes in self.codes.items()
        }

    def _embeddings(self) -> dict[str, Tensor]:
        return {name: codes.embedding_BSC for name, codes in self.codes.items()}

    def _turn(self, length: int) -> None:
        """Set the place of each row's next key in every cache."""
        assert self._at_B is not None
        length = self.capacity if self._compile else min(length, self.capacity)
        places = {0: self._at_B}  # by the rows in front
        for number, layer in enumerate(self._layers):
            front = self.model.front_rows(number)
            if front not in places:
                places[front] = self._at_B + front
            layer.turn(places[front], length + front)

    def _head(self, last_BD: Tensor) -> Tensor:
        return self.model.head(last_BD[:, None])[:, 0]


def _below(
    model: LatentLM, tokens_B1: Tensor, positions: Tensor, layers: Sequence[LayerCache]
) -> tuple[Place, Tensor]:
    place = model.place(positions)
    return place, model.below(tokens_B1, place, layers=layers)


def _onward(
    model: LatentLM,
    number: int,
    x_B1D: Tensor,
    embeddings: Mapping[str, Tensor],
    place: Place,
    layers: Sequence[LayerCache],
) -> Tensor:
    """A stage behind its cache, and after the last one the head: logits [B, V]."""
    ports = Ports()
    for stage in model.stages[1 : number + 1]:
        for name in stage.latents:
            model.paths[name].enter(ports, embeddings[name].to(x_B1D.dtype), place.positions_T)
    if number < len(model.stages):
        x_B1D = model.through(model.stages[number], x_B1D, place, ports, layers=layers)
    if number + 1 < len(model.stages):
        return x_B1D
    return model.head(model.last(x_B1D, ports))[:, 0]


@functools.cache
def _compiled() -> tuple[Callable[..., tuple[Place, Tensor]], Callable[..., Tensor]]:
    """The pieces of a step, compiled once for each model and shape."""
    return torch.compile(_below, dynamic=False), torch.compile(_onward, dynamic=False)
