"""Kind 'letters': endless synthetic rows whose true likelihood is known.

Fleuret, "The Free Transformer", arXiv 2510.17558, section 4.1. One row is 66 tokens:

    K>______KKKKKKKK___!____________!_______________ ...
    ││└ 64 characters: '_', a run of 8 letters that starts anywhere in 0..56, each '!' with probability 1/16
    └┴─ prompt: a letter, then '>'

Shape legend: N rows, L = 64 characters, T = 65 inputs.
"""

from __future__ import annotations

import hashlib
import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lvlm.data.attributes import Attribute
from lvlm.data.codecs import CharacterCodec
from lvlm.data.source import DataParams, Source, Split, Windows, uniforms
from lvlm.errors import one_of
from lvlm.interfaces import IGNORE, Batch

SYMBOLS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ_!>"
LETTERS = 26
BLANK, NOISE, PROMPT = (SYMBOLS.index(symbol) for symbol in "_!>")
LENGTH = 64
RUN = 8
STARTS = LENGTH - RUN + 1
NOISE_RATE = 1 / 16

EXPECTED_LOG_STARTS = 0.005327932
"""E log N, nats: what the noise hides of the start; N is the number of starts that a row allows."""
ENTROPY_NATS = (
    LENGTH * (NOISE_RATE * math.log(16) + (1 - NOISE_RATE) * math.log(16 / 15))
    + math.log(STARTS)
    - EXPECTED_LOG_STARTS
)
"""The mean of -log p(row | letter): 64 h(1/16) + log 57 - E log N = 19.000389 nats."""


class LettersData(DataParams):
    """Synthetic rows with a known answer: a letter's run of 8 at a random place, under noise."""

    kind: Literal["letters"] = "letters"

    @property
    def codec(self) -> CharacterCodec:
        """The codec of the 29 symbols."""
        return CharacterCodec("letters", SYMBOLS, known="A-Z, '_', '!' and '>'")

    @property
    def tokens(self) -> int:
        """T: 65 inputs, of which the last 64 predict a character."""
        return LENGTH + 1

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """Attributes of a row: where the run starts, which the data draw uniformly; where the noise is;
        whether the row is possible.
        """
        return (
            Attribute("start", "number", starts, unit="characters", control=True, uniform_over=STARTS),
            Attribute("noise", "flags", lambda _, text_NL: text_NL == NOISE),
            Attribute(
                "valid", "check", lambda prompt_NP, text_NL: np.isfinite(nll_nats(prompt_NP[:, 0], text_NL))
            ),
        )

    def open(self) -> LettersSource:
        """Open the generator; nothing is read."""
        return LettersSource(self)


class LettersSource(Source):
    """Endless rows; validation and test come from streams that no training seed reaches."""

    def __init__(self, params: LettersData) -> None:
        self.params: LettersData = params
        rule = f"letters 1: {SYMBOLS} {LENGTH} {RUN} {NOISE_RATE}, split by counter"
        self.fingerprint = hashlib.sha256(rule.encode()).hexdigest()[:16]

    def train_batch(self, *, seed: int, step: int, rows: int) -> Batch:
        """Fresh rows for each seed and step."""
        return batch_of(*draw(uniforms((rows, LENGTH + 2), "train", seed=seed, step=step)))

    def windows(self, count: int, split: Split = "validation") -> Windows:
        """The first rows of the split's own stream, which has no end."""
        assert count >= 1, f"{count} windows"
        one_of(split, Split, "split")
        return Windows.of(batch_of(*draw(uniforms((count, LENGTH + 2), split))))

    def oracle_nll_nats(self, batch: Batch) -> NDArray[np.float64]:
        """The exact -log p(characters | letter) of each row [N], nats; +inf where the row is impossible."""
        inputs_NT, targets_NT = batch.inputs_BT.cpu().numpy(), batch.targets_BT.cpu().numpy()
        assert inputs_NT.shape[1] == LENGTH + 1, f"rows of {inputs_NT.shape[1]} inputs, not {LENGTH + 1}"
        return nll_nats(inputs_NT[:, 0], targets_NT[:, 1:])

    def sample_prompt(self) -> str:
        """A letter and the sign that ends the prompt."""
        return "K>"


def draw(u_NU: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Letters [N] and characters [N, L] from uniform numbers [N, 2 + L]: letter, start, noise."""
    letter_N = (u_NU[:, 0] * LETTERS).astype(np.int64)
    start_N = (u_NU[:, 1] * STARTS).astype(np.int64)
    offset_NL = np.arange(LENGTH) - start_N[:, None]
    clean_NL = np.where((offset_NL >= 0) & (offset_NL < RUN), letter_N[:, None], BLANK)
    return letter_N, np.where(u_NU[:, 2:] < NOISE_RATE, NOISE, clean_NL)


def batch_of(letter_N: NDArray[np.int64], text_NL: NDArray[np.int64]) -> Batch:
    """Rows for a model: the prompt and the characters; the loss is on the characters alone."""
    prompt_N = np.full_like(letter_N, PROMPT)
    row_NU = torch.from_numpy(np.column_stack([letter_N, prompt_N, text_NL]))
    inputs_NT, targets_NT = row_NU[:, :-1].clone(), row_NU[:, 1:].clone()
    targets_NT[:, 0] = IGNORE  # '>' is part of the prompt
    return Batch(inputs_NT, targets_NT, torch.ones_like(inputs_NT, dtype=torch.bool))


def nll_nats(letter_N: NDArray[np.int64], text_NL: NDArray[np.int64]) -> NDArray[np.float64]:
    """The exact -log p(text | letter) [N] in nats; +inf for texts that the data cannot produce.

    k log 16 + (64 - k) log(16/15) + log 57 - log N, with k '!' in the text and N starts that allow it.
    """
    noise_NL = text_NL == NOISE
    not_blank_NL = ~noise_NL & (text_NL != BLANK)
    not_letter_NL = ~noise_NL & (text_NL != letter_N[:, None])
    # A start allows the text when nothing contradicts it: letters inside the run, blanks outside.
    inside_NS = _sums_of_runs(not_letter_NL)
    outside_NS = not_blank_NL.sum(1, keepdims=True) - _sums_of_runs(not_blank_NL)
    starts_N = ((inside_NS == 0) & (outside_NS == 0)).sum(1)
    noise_N = noise_NL.sum(1)
    with np.errstate(divide="ignore"):  # no start: log 0, an infinite nll
        log_starts_N = np.log(starts_N)
    seen_N = noise_N * -math.log(NOISE_RATE) + (LENGTH - noise_N) * -math.log(1 - NOISE_RATE)
    return np.asarray(seen_N + math.log(STARTS) - log_starts_N, dtype=np.float64)


def starts(_: NDArray[np.int64], text_NL: NDArray[np.int64]) -> NDArray[np.float64]:
    """The start that contradicts the fewest characters of a text, whichever the letter [N]; the first of
    several, NaN without any letter.
    """
    letter_NL = text_NL < LETTERS
    blank_NL = text_NL == BLANK
    contradictions_NS = letter_NL.sum(1, keepdims=True) - _sums_of_runs(letter_NL) + _sums_of_runs(blank_NL)
    return np.where(letter_NL.any(1), contradictions_NS.argmin(1), np.nan)


def _sums_of_runs(flags_NL: NDArray[np.bool_]) -> NDArray[np.int16]:
    """The number of flags in the run from each start, [N, 57]."""
    before_NU = np.zeros((len(flags_NL), LENGTH + 1), dtype=np.int16)
    flags_NL.cumsum(1, out=before_NU[:, 1:])
    return before_NU[:, RUN:] - before_NU[:, :-RUN]
