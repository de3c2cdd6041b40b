"""Decoding token by token: keys and values of every block, and a code for every slot, drawn once and kept.

    prompts ─ below the seam ─► hidden ─ encoder ─► codes of the prompt's slots (or prior, or given)
                                                    codes of later slots          from the prior, or given
    then each step     tokens_B ─ below ─ above ─ head ─► logits_BV

A fixed prior doesn't depend on the text, so its codes and their embeddings are all drawn before the first
token. A learned prior draws the code of a slot once the hidden state at its first position is known.

Shape legend: see `lvlm.interfaces`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lvlm.errors import UserError, one_of
from lvlm.interfaces import LayerCache, Quantizer
from lvlm.model.latent_lm import LatentLM, LatentPath, Place
from lvlm.model.noise import POSTERIOR_CODES, PRIOR_CODES, SLOTS_A_DRAW, block, generators

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
    ) -> None:
        self._path, device = path, path.readout.weight.device
        self._of_prior = generators(seeds, PRIOR_CODES, device)
        self._of_posterior = generators(seeds, POSTERIOR_CODES, device)
        self._leader_B = torch.tensor(leaders, device=device)
        self._leads = sorted(set(leaders))
        self._held_BS = torch.zeros(len(seeds), slots, dtype=torch.bool, device=device)
        zeros_SJ = path.readout.weight.new_zeros(1, 1).expand(slots, path.quantizer.prior_dim)
        if path.prior_head is None:
            drawn = {
                row: draw_codes(path.quantizer, zeros_SJ, None, self._of_prior[row]) for row in self._leads
            }
        else:  # placeholders of the same shape; each code is drawn when its slot begins
            drawn = dict.fromkeys(
                self._leads, draw_codes(path.quantizer, zeros_SJ, None, torch.Generator(device))
            )
        self.codes = torch.stack([drawn[row] for row in leaders])
        if given is not None:
            self._take(given, len(seeds))
        self.embedding_BSC = path.quantizer.given(self.codes).embedding_BSC
        self.waits_for_text = path.prior_head is not None and not bool(self._held_BS.all())
        """Whether a learned prior draws codes during decoding, each when its slot begins."""

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

    def begin(self, counts_B: Sequence[int], posterior_BSK: Tensor | None, prior_BSJ: Tensor) -> None:
        """Draw the codes of the prompts' slots from the posterior or, without one, from the prior.

        Args:
            counts_B: number of slots in each prompt.
            posterior_BSK: numbers of the posterior, from an encoder that saw the prompt alone.
            prior_BSJ: numbers of the prior, for as many slots.
        """
        if posterior_BSK is None and self._path.prior_head is None:
            return
        for row in self._leads:
            count = counts_B[row]
            numbers_SK = None if posterior_BSK is None else posterior_BSK[row, :count]
            of_row = self._of_prior if numbers_SK is None else self._of_posterior
            drawn = draw_codes(self._path.quantizer, prior_BSJ[row, :count], numbers_SK, of_row[row])
            self._write(row, slice(0, count), drawn)

    def go_on(self, begins_B: Sequence[int | None], hidden_B1D: Tensor) -> None:
        """Draw the code of the slot that begins in each row, if one does, from a learned prior."""
        rows = [row for row in self._leads if begins_B[row] is not None]
        if not rows:
            return
        prior_B1J = self._path.prior(hidden_B1D)
        for row in rows:
            slot = begins_B[row]
            assert slot is not None
            code = self._path.quantizer.sample(prior_B1J[row : row + 1], self._of_prior[row]).codes[0]
            self._write(row, slice(slot, slot + 1), code)

    def _write(self, row: int, slots: slice, codes: Tensor) -> None:
        """Write codes to a row and to the rows that share them, except in slots whose codes are given."""
        for follower in (self._leader_B == row).nonzero()[:, 0].tolist():
            free_S = (~self._held_BS[follower, slots]).nonzero()[:, 0]
            new = codes[free_S]
            self.codes[follower, slots.start + free_S] = new
            self.embedding_BSC[follower, slots.start + free_S] = self._path.quantizer.given(
                new[None]
            ).embedding_BSC[0]


def draw_codes(
    quantizer: Quantizer, prior_SJ: Tensor, posterior_SK: Tensor | None, generator: torch.Generator
) -> Tensor:
    """Codes [S] or [S, Z] of one row, from the posterior where there is one."""
    codes = []
    for start in range(0, len(prior_SJ), SLOTS_A_DRAW):
        prior_1SJ = block(prior_SJ, start)[None]
        if posterior_SK is None:
            codes.append(quantizer.sample(prior_1SJ, generator).codes[0])
        else:
            codes.append(quantizer(block(posterior_SK, start)[None], prior_1SJ, generator).codes[0])
    return torch.cat(codes)[: len(prior_SJ)]


class Decoding:
    """Rows that are decoded together.

    Args:
        model: a model in evaluation mode.
        capacity: the most tokens that a row is fed.
        rows: number of rows.
        codes: codes of the rows' slots; None for a model without a latent.
        prompt_codes: source of the codes of the prompt's slots that are not given.
        compile: compile a step; its shapes are then the same from the first to the last, at the price of
            attention over the whole capacity.
    """

    def __init__(
        self,
        model: LatentLM,
        rows: int,
        capacity: int,
        codes: RowCodes | None = None,
        *,
        prompt_codes: PromptCodes = "posterior",
        compile: bool = False,
    ) -> None:
        assert not model.training
        assert (codes is None) == (model.latent is None)
        self.model, self.codes, self.capacity = model, codes, capacity
        self._prompt_codes = one_of(prompt_codes, PromptCodes, "prompt_codes")
        self._layers = model.make_cache(rows, capacity)
        self._in_front = model.prefix_rows
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
        hidden_BTD = model.below(tokens_BT, place, layers=self._layers)
        if self.codes is not None and model.latent is not None:
            path = model.latent
            first_S = path.slots.first_positions(tokens, device)
            encode = self._prompt_codes == "posterior" and not self.codes.all_given(len(first_S))
            posterior, other = None, model.read(latent_tokens_BU, latent_keep_BU) if encode else None
            if other is not None:
                posterior = path.posterior(*other)
            elif encode and not model.reads_other_text:
                posterior = path.posterior(tokens_BT, hidden_BTD, keep_BT)
            counts = [path.slots.count(length) for length in self._lengths]
            self.codes.begin(counts, posterior, path.prior(hidden_BTD[:, first_S]))
        y_BTD = model.above(hidden_BTD, self._embedding(), place, layers=self._layers)
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
        below, above = _compiled() if self._compile else (_below, _above)
        place, hidden_B1D = below(model, tokens_B1, positions, self._layers)
        if self.codes is not None and self.codes.waits_for_text and model.latent is not None:
            count = model.latent.slots.count
            begins = [n if (n := count(length)) < count(length + 1) else None for length in self._lengths]
            self.codes.go_on(begins, hidden_B1D)
        logits_BV = above(model, hidden_B1D, self._embedding(), place, self._layers)
        self._lengths = [length + 1 for length in self._lengths]
        if self._at_B is not None:
            self._at_B.add_(1)
            self._turn(max(self._lengths) + 1)
        return logits_BV

    def used(self, row: int, tokens: int) -> Tensor | None:
        """The codes [S] or [S, Z] of a row's first `tokens` tokens; None without a latent."""
        if self.codes is None or self.model.slots is None:
            return None
        return self.codes.codes[row, : self.model.slots.count(tokens)]

    def _embedding(self) -> Tensor | None:
        return None if self.codes is None else self.codes.embedding_BSC

    def _turn(self, length: int) -> None:
        """Set the place of each row's next key in every cache."""
        assert self._at_B is not None
        length = self.capacity if self._compile else min(length, self.capacity)
        above_B = self._at_B + self._in_front
        for number, layer in enumerate(self._layers):
            if number < self.model.seam:
                layer.turn(self._at_B, length)
            else:
                layer.turn(above_B, length + self._in_front)

    def _head(self, last_BD: Tensor) -> Tensor:
        return self.model.backbone.head(last_BD[:, None])[:, 0]


def _below(
    model: LatentLM, tokens_B1: Tensor, positions: Tensor, layers: Sequence[LayerCache]
) -> tuple[Place, Tensor]:
    place = model.place(positions)
    return place, model.below(tokens_B1, place, layers=layers)


def _above(
    model: LatentLM,
    hidden_B1D: Tensor,
    embedding_BSC: Tensor | None,
    place: Place,
    layers: Sequence[LayerCache],
) -> Tensor:
    y_B1D = model.above(hidden_B1D, embedding_BSC, place, layers=layers)
    return model.backbone.head(y_B1D)[:, 0]


@functools.cache
def _compiled() -> tuple[Callable[..., tuple[Place, Tensor]], Callable[..., Tensor]]:
    """The two halves of a step, compiled once for each model and shape."""
    return torch.compile(_below, dynamic=False), torch.compile(_above, dynamic=False)
