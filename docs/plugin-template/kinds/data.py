"""The data `my_kind`: rows that count around a circle of symbols and sometimes stumble. The likelihood is
known.

It works as it stands. CHANGE marks where yours begins.
"""

from __future__ import annotations

import hashlib
import math
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from lvlm.data import Attribute, Batch, CharacterCodec, DataParams, Source, Split, Windows, uniforms
from lvlm.hookspecs import hookimpl
from lvlm.interfaces import Register

SYMBOLS = "abcd"


class MyKindData(DataParams):
    """Synthetic rows: the alphabet in a circle, with stumbles of a known probability."""

    kind: Literal["my_kind"] = "my_kind"
    # CHANGE: options, each with a range and a docstring, which is its help.
    length: int = Field(default=32, ge=1)
    """Steps of a row; the symbol before the first of them is given."""
    stumble: float = Field(default=0.1, gt=0, lt=1)
    """The probability that a symbol isn't followed by the next one, but by any other, itself among them."""

    @classmethod
    def example(cls) -> Self:
        """Rows that are so short that the tests enumerate them."""
        return cls(length=6, stumble=0.3)

    @property
    def codec(self) -> CharacterCodec:
        """Text as tokens: one a symbol."""
        return CharacterCodec("my_kind", SYMBOLS)

    @property
    def tokens(self) -> int:
        """T: tokens of a row, as a model reads them."""
        return self.length

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """What `lvlm steer` measures of a text; none is needed."""
        return (Attribute("repeats", "number", lambda _, text_NL: (np.diff(text_NL) == 0).sum(1)),)

    def open(self) -> MyKindSource:
        """The source of rows."""
        return MyKindSource(self)


class MyKindSource(Source):
    """Endless rows, made of uniform numbers that depend on seed, step and split alone."""

    def __init__(self, params: MyKindData) -> None:
        self.params: MyKindData = params
        # The fingerprint names the data: runs of other data are never compared. Raise the version with the
        # rule.
        rule = f"my_kind 1: {params.length} {params.stumble!r}"
        self.fingerprint = hashlib.sha256(rule.encode()).hexdigest()[:16]

    def _rows(self, u_NU: NDArray[np.float64]) -> Batch:
        # CHANGE: the rule that makes rows of uniform numbers, and `oracle_nll_nats` with it.
        p, others = self.params.stumble, len(SYMBOLS) - 1
        step_NU = np.where(u_NU < p, (2 + u_NU / p * others).astype(np.int64), 1)  # 1: to the next symbol
        step_NU[:, 0] = (u_NU[:, 0] * len(SYMBOLS)).astype(np.int64)  # the first symbol is any
        row_NU = torch.from_numpy(step_NU.cumsum(1) % len(SYMBOLS))
        inputs_NT, targets_NT = row_NU[:, :-1].clone(), row_NU[:, 1:].clone()
        return Batch(inputs_NT, targets_NT, torch.ones_like(targets_NT, dtype=torch.bool))

    def train_batch(self, *, seed: int, step: int, rows: int) -> Batch:
        """Rows of a training step, a function of seed and step: so a resumed run sees what it would have
        seen.
        """
        return self._rows(uniforms((rows, self.params.length + 1), "train", seed=seed, step=step))

    def windows(self, count: int, split: Split = "validation") -> Windows:
        """The first `count` rows of a split that isn't trained on."""
        return Windows.of(self._rows(uniforms((count, self.params.length + 1), split)))

    def oracle_nll_nats(self, batch: Batch) -> NDArray[np.float64]:
        """The exact -log p of each row [N] behind its first symbol, nats. Without an oracle, leave this
        method out.
        """
        p, others = self.params.stumble, len(SYMBOLS) - 1
        counts_NT = (batch.targets_BT == (batch.inputs_BT + 1) % len(SYMBOLS)).cpu().numpy()
        return np.where(counts_NT, -math.log1p(-p), math.log(others / p)).sum(1)

    def sample_prompt(self) -> str:
        """What `lvlm sample` begins with, unless it is given a prompt."""
        return "a"


@hookimpl
def register_data(register: Register) -> None:
    """Supply the data."""
    register(MyKindData)
