"""Kind 'mixture': rows of several data, by weights that may follow the step (easy to hard, one domain after
another).

    (seed, step, row) ─ weights at the step ─► part ─ train_batch(its own seed, step) ─► the row

Which part a row comes from is a pure function, and so are the parts' rows: a mixture resumes like a single
source.

Shape legend: B rows, T input tokens, P parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, SerializeAsAny

from lvlm.data.coin import CoinData
from lvlm.data.source import DataParams, Source, Split, StreamSource, Windows, uniforms
from lvlm.errors import UserError, listing, nearest, one_of
from lvlm.interfaces import Batch, Codec, Ramp, Schedule, value_at

Weight = Annotated[float, Field(ge=0)]


class MixtureData(DataParams):
    """Rows of several data with the same tokens and window, by weights, which may be ramps over the steps."""

    may_be_part: ClassVar[bool] = False
    holds: ClassVar[str | None] = "parts"

    kind: Literal["mixture"] = "mixture"

    parts: dict[str, SerializeAsAny[DataParams]] = Field(min_length=1)
    """The parts by name, each of any other kind of data."""
    weights: dict[str, Schedule] = Field(default={})
    """The weight of each part's rows by name, relative to the sum of all; a number or a ramp over steps; 1
    unless given.
    """
    held_out_weights: dict[str, Weight] | None = None
    """The shares of the held-out windows by name, 0 unless given; null for the weights at the end of their
    ramps.
    """

    @classmethod
    def example(cls) -> Self:
        """Two coins, of which one gives way to the other."""
        parts: dict[str, DataParams] = {
            "easy": CoinData(length=16, noise=0.3),
            "hard": CoinData(length=16, noise=0.4),
        }
        return cls(parts=parts, weights={"easy": Ramp(start=1, end=0.2, steps=50)})

    @property
    def codec(self) -> Codec:
        """The codec of the parts."""
        return self._first.codec

    @property
    def document_end(self) -> int | None:
        """The parts', where all have the same one."""
        ends = {part.document_end for part in self.parts.values()}
        return ends.pop() if len(ends) == 1 else None

    @property
    def tokens(self) -> int:
        """T: input tokens of a row, the same in all parts."""
        return self._first.tokens

    @property
    def latent_tokens(self) -> int | None:
        """U: tokens of the other text of a row, the same in all parts; None where parts have none."""
        return self._first.latent_tokens

    @property
    def _first(self) -> DataParams:
        return next(iter(self.parts.values()))

    def files(self) -> dict[str, bytes]:
        """The files of all parts, each part's in its own folder."""
        return {
            f"{name}/{file}": content
            for name, part in self.parts.items()
            for file, content in part.files().items()
        }

    def with_files(self, files: Mapping[str, bytes]) -> Self:
        """The same mixture, each part with the files of its own folder."""
        parts = {
            name: part.with_files(
                {
                    file.removeprefix(f"{name}/"): content
                    for file, content in files.items()
                    if file.startswith(f"{name}/")
                }
            )
            for name, part in self.parts.items()
        }
        return self.model_copy(update={"parts": parts})

    def faults(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Faults of parts; parts that don't fit together; weights of no part, or all zero."""
        broken = False
        for name, part in self.parts.items():
            if "/" in name or name in (".", ".."):
                yield (
                    ("parts", name),
                    f"the name {name!r} cannot name a folder in a run; leave out '/' and '.'",
                )
            for path, message in part.faults():
                broken = True
                yield ("parts", name, *path), message
            for path, message in part.faults_as_part():
                yield ("parts", name, *path), message
        if not broken:
            yield from self._misfits()
        for key, weights in (("weights", self.weights), ("held_out_weights", self.held_out_weights or {})):
            for name in weights:
                if name not in self.parts:
                    yield (
                        (key, name),
                        f"no part {name!r}; known: {listing(self.parts)}{nearest(name, self.parts)}",
                    )
        steps = {0} | {weight.steps for weight in self.weights.values() if isinstance(weight, Ramp)}
        empty = [step for step in sorted(steps) if not sum(self.weights_at(step).values())]
        if empty:
            yield ("weights",), f"at step {empty[0]} the weights of all parts are 0"
        if not sum(self.shares().values()):
            yield ("held_out_weights",), "no part has a share of the held-out windows; name one above 0"

    def _misfits(self) -> Iterator[tuple[tuple[str, ...], str]]:
        first_name, first = next(iter(self.parts.items()))
        for name, part in self.parts.items():
            if part.codec.name != first.codec.name:
                yield (
                    ("parts", name),
                    f"has other tokens ({part.codec.name}) than {first_name!r} ({first.codec.name});"
                    " the parts of a mixture share one tokenizer",
                )
            if part.tokens != first.tokens:
                yield (
                    ("parts", name),
                    (
                        f"has rows of {part.tokens} tokens, and {first_name!r} of {first.tokens}; give both "
                        f"one window"
                    ),
                )
            if part.latent_tokens != first.latent_tokens:
                yield (
                    ("parts", name),
                    f"has {_other_text(part)}, and {first_name!r} has {_other_text(first)}; "
                    "all parts have the same",
                )

    def weights_at(self, step: int) -> dict[str, float]:
        """The weight of each part at a step."""
        return {name: value_at(self.weights.get(name, 1.0), step) for name in self.parts}

    def shares(self) -> dict[str, float]:
        """The weight of each part in the held-out windows."""
        if self.held_out_weights is not None:
            return {name: self.held_out_weights.get(name, 0.0) for name in self.parts}
        said = {name: self.weights.get(name, 1.0) for name in self.parts}
        return {name: weight.end if isinstance(weight, Ramp) else weight for name, weight in said.items()}

    def open(self) -> MixtureSource:
        """Open all parts.

        Raises:
            UserError: a part can't be opened; the message names it.
        """
        sources = {}
        for name, part in self.parts.items():
            try:
                sources[name] = part.open()
            except UserError as error:
                raise type(error)(f"data.parts.{name}: {error}") from None
            if isinstance(sources[name], StreamSource):
                raise UserError(f"data.parts.{name}: a stream has no row of its own at a step to pick")
        return MixtureSource(self, sources)


class MixtureSource(Source):
    """A source of rows, each from one of the parts."""

    def __init__(self, params: MixtureData, sources: Mapping[str, Source]) -> None:
        assert not any(isinstance(source, StreamSource) for source in sources.values())
        self.params: MixtureData = params
        self._sources = dict(sources)
        shares = params.shares()
        sha = hashlib.sha256(b"mixture 1")
        for name, source in sources.items():
            sha.update(f"\n{name!r} {source.fingerprint} {shares[name]!r}".encode())
        self.fingerprint = sha.hexdigest()[:16]
        total = sum(shares.values())
        of_parts = {name: source.bytes_per_token for name, source in sources.items() if shares[name]}
        known = [(size, shares[name]) for name, size in of_parts.items() if size is not None]
        reasons = ((name, sources[name].why_no_bytes) for name in of_parts)
        self.why_no_bytes = next((f"in part {name!r} {why}" for name, why in reasons if why), None)
        self.bytes_per_token = (
            sum(size * share for size, share in known) / total if len(known) == len(of_parts) else None
        )

    def train_batch(self, *, seed: int, step: int, rows: int) -> Batch:
        """Rows of the parts; row i of a part is used where the mixture's row i is of this part."""
        names, part_B = list(self._sources), self._parts(seed, step, rows)
        out: list[torch.Tensor] = []
        for number in np.unique(part_B):
            (mine_B,) = np.nonzero(part_B == number)
            name = names[number]
            batch = self._sources[name].train_batch(
                seed=seed_of(seed, name), step=step, rows=int(mine_B[-1]) + 1
            )
            out = out or [torch.empty((rows, x.shape[1]), dtype=x.dtype) for x in batch.tensors]
            for whole, x in zip(out, batch.tensors, strict=True):
                whole[mine_B] = x[mine_B]
        return Batch(*out)

    def _parts(self, seed: int, step: int, rows: int) -> NDArray[np.int64]:
        """The number of each row's part [B]."""
        weight_P = np.array(list(self.params.weights_at(step).values()))
        if not weight_P.sum() > 0:
            raise UserError(f"data.weights: at step {step} the weights of all parts are 0")
        edge_P = np.cumsum(weight_P) / weight_P.sum()
        u_B = uniforms((rows,), "mixture", seed=seed, step=step)
        last = int(np.flatnonzero(weight_P)[-1])  # where rounding leaves the last edge below 1
        return np.searchsorted(edge_P, u_B, side="right").clip(max=last).astype(np.int64)

    def windows(self, count: int, split: Split = "validation") -> Windows:
        """Windows of the parts by their shares, mixed as evenly as possible: each next one is from the part
        that lags most.

        Raises:
            UserError: when a part holds too few.
        """
        assert count >= 1, f"{count} windows"
        one_of(split, Split, "split")
        names, share_P = list(self._sources), np.array(list(self.params.shares().values()))
        share_P = share_P / share_P.sum()
        taken_P, part_B = np.zeros(len(names), dtype=np.int64), np.empty(count, dtype=np.int64)
        for number in range(count):
            part_B[number] = np.argmax(np.where(share_P > 0, share_P * (number + 1) - taken_P, -np.inf))
            taken_P[part_B[number]] += 1
        out: list[torch.Tensor] = []
        for number, name in enumerate(names):
            if not taken_P[number]:
                continue
            try:
                batch = self._sources[name].windows(int(taken_P[number]), split).batch
            except UserError as error:
                raise UserError(f"data.parts.{name}: {error}") from None
            out = out or [torch.empty((count, x.shape[1]), dtype=x.dtype) for x in batch.tensors]
            for whole, x in zip(out, batch.tensors, strict=True):
                whole[part_B == number] = x
        return Windows.of(Batch(*out))

    def sample_prompt(self) -> str:
        """The prompt of the part with the largest share."""
        shares = self.params.shares()
        return self._sources[max(shares, key=shares.__getitem__)].sample_prompt()


def _other_text(part: DataParams) -> str:
    """The other text of a part's rows, in words."""
    return "one text a row" if part.latent_tokens is None else f"another text of {part.latent_tokens} tokens"


def seed_of(seed: int, name: str) -> int:
    """A part's own seed, so that two parts draw different rows."""
    digest = hashlib.blake2b(f"part {seed} {name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
