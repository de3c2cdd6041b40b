"""Kind 'coin': one fair coin decides a whole row, under noise; the true likelihood has a closed form.

    >110111101111…     '>', then bits X_t = Z xor flip_t: Z is fair, each flip has probability eps
    -log p(x) = -log( 1/2 eps^a (1 - eps)^(n - a) + 1/2 (1 - eps)^a eps^(n - a) ),    a ones among n bits

The smallest data with one global decision: a latent that helps at all must hold Z, log 2 nats a row.

Shape legend: N rows, L bits.
"""

from __future__ import annotations

import hashlib
import math
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator

from lvlm.data.codecs import CharacterCodec
from lvlm.data.source import DataParams, Source, Split, Windows, uniforms
from lvlm.errors import one_of
from lvlm.interfaces import Batch

SYMBOLS = "01>"
START = SYMBOLS.index(">")


class CoinData(DataParams):
    """Synthetic rows with a known answer: one fair coin, repeated under noise."""

    kind: Literal["coin"] = "coin"
    length: int = Field(default=64, ge=1)
    """Bits of a row."""
    noise: float = Field(default=0.1, json_schema_extra={"exclusiveMaximum": 0.5, "exclusiveMinimum": 0})
    """The probability that a bit is flipped; at 0.5 the coin would leave no trace."""

    @classmethod
    def example(cls) -> Self:
        """Data with rows few enough to be counted, and noisy enough to differ."""
        return cls(length=10, noise=0.4)

    @field_validator("noise")
    @classmethod
    def _coin_is_hidden_but_not_lost(cls, noise: float) -> float:
        if not 0 < noise < 0.5:
            raise ValueError(
                f"{noise} is not above 0 and below 0.5: with no noise one bit tells all others, at 0.5 the "
                f"coin "
                "leaves no trace, and above it only its sides are exchanged"
            )
        return noise

    @property
    def codec(self) -> CharacterCodec:
        """The codec of the 3 symbols."""
        return CharacterCodec("coin", SYMBOLS, known="'0', '1' and '>'")

    @property
    def tokens(self) -> int:
        """T: as many inputs as bits, '>' being the first."""
        return self.length

    def open(self) -> CoinSource:
        """Open the generator; nothing is read."""
        return CoinSource(self)


class CoinSource(Source):
    """Endless rows; validation and test come from streams that no training seed reaches."""

    def __init__(self, params: CoinData) -> None:
        self.params: CoinData = params
        rule = f"coin 1: {SYMBOLS} {params.length} {params.noise!r}, split by counter"
        self.fingerprint = hashlib.sha256(rule.encode()).hexdigest()[:16]

    def _draw(self, uniform_NU: NDArray[np.float64]) -> Batch:
        coin_N1 = uniform_NU[:, :1] < 0.5
        bits_NL = (coin_N1 ^ (uniform_NU[:, 1:] < self.params.noise)).astype(np.int64)
        row_NU = torch.from_numpy(np.pad(bits_NL, ((0, 0), (1, 0)), constant_values=START))
        inputs_NT = row_NU[:, :-1].clone()
        return Batch(inputs_NT, row_NU[:, 1:].clone(), torch.ones_like(inputs_NT, dtype=torch.bool))

    def train_batch(self, *, seed: int, step: int, rows: int) -> Batch:
        """Fresh rows for each seed and step."""
        return self._draw(uniforms((rows, self.params.length + 1), "train", seed=seed, step=step))

    def windows(self, count: int, split: Split = "validation") -> Windows:
        """The first rows of the split's own stream, which has no end."""
        assert count >= 1, f"{count} windows"
        one_of(split, Split, "split")
        return Windows.of(self._draw(uniforms((count, self.params.length + 1), split)))

    def oracle_nll_nats(self, batch: Batch) -> NDArray[np.float64]:
        """The exact -log p(bits) of each row [N], nats; +inf where a target is no bit."""
        bits_NL = batch.targets_BT.cpu().numpy()
        nats_N = nll_nats((bits_NL == 1).sum(1), bits_NL.shape[1], self.params.noise)
        return np.where(((bits_NL == 0) | (bits_NL == 1)).all(1), nats_N, np.inf)

    def sample_prompt(self) -> str:
        """The sign that begins a row."""
        return ">"


def nll_nats(ones_N: NDArray[np.int64], length: int, noise: float) -> NDArray[np.float64]:
    """-log p of rows with the given numbers of ones, nats."""
    flip, keep = math.log(noise), math.log1p(-noise)
    zeros_N = length - ones_N
    of_tails, of_heads = ones_N * flip + zeros_N * keep, ones_N * keep + zeros_N * flip
    return np.asarray(math.log(2) - np.logaddexp(of_tails, of_heads), dtype=np.float64)


def entropy_nats(length: int, noise: float) -> float:
    """The mean of `nll_nats` over rows, exact: a sum over the number of ones."""
    ones = np.arange(length + 1)
    log_binomial = [math.lgamma(length + 1) - math.lgamma(a + 1) - math.lgamma(length - a + 1) for a in ones]
    nats = nll_nats(ones, length, noise)
    return float((np.exp(np.array(log_binomial) - nats) * nats).sum())
