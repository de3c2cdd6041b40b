"""What data promise, as checks of one kind: fixed windows, pure batches, exact resuming, a right oracle.

Shape legend: B rows, T input tokens, U = T + 1, N rows.
"""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from lvlm.data import Attribute, DataParams, Reader, Source, Split, StreamSource, Windows, open_reader
from lvlm.errors import UserError
from lvlm.interfaces import IGNORE, Batch
from lvlm.testing.oracle import check_oracle

SEED = 3
ROWS = 4
FEW, MANY = 8, 16


def check_data(params: DataParams) -> None:
    """Everything that holds for any kind of data: the promises of docs/interfaces.md, one by one."""
    with untouched_randomness():
        source, again = params.open(), params.open()
        check_declared(params, source, again)
        check_windows(source, again)
        if not isinstance(source, StreamSource):
            check_batches(source, again)
    check_splits(source)
    check_resuming(source, again)
    check_codec(params, source)
    check_files(params)
    check_attributes(params, source)
    check_oracle(source)


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Inside, the global generators of Python, numpy and torch are neither used nor seeded."""

    def states() -> tuple[Any, ...]:
        _, key, place, *_ = np.random.get_state()
        return random.getstate(), np.asarray(key).tobytes(), place, torch.get_rng_state().tolist()

    before = states()
    yield
    assert states() == before, "global randomness was used or seeded; draw from `lvlm.data.uniforms`"


def check_declared(params: DataParams, source: Source, again: Source) -> None:
    """Options are documented, and a recipe keeps them; a fingerprint names the content."""
    fields = {name: field for name, field in type(params).model_fields.items() if name != "kind"}
    silent = [name for name, field in fields.items() if not field.description]
    assert not silent, f"options without a docstring: {silent}"
    assert not list(params.faults()), f"the example has faults: {list(params.faults())}"
    if params.holds is None:  # else the class by itself doesn't know which kinds there are
        read = type(params).model_validate_json(params.model_dump_json())
        assert read == params, "a recipe that is written and read again has other options"
    assert params.vocab >= 2, f"a vocabulary of {params.vocab}"
    assert params.tokens >= 1, f"rows of {params.tokens} tokens"
    assert source.params == params, "`source.params` is what was opened"
    assert re.fullmatch("[0-9a-f]{16}", source.fingerprint), "a fingerprint is 16 hex digits"
    assert source.fingerprint == again.fingerprint, "opened twice, the fingerprint differs"
    assert source.bytes_per_token is None or source.bytes_per_token > 0, "bytes_per_token is above 0, or None"
    if source.why_no_bytes is not None:
        assert source.bytes_per_token is None, "`why_no_bytes` says why bytes_per_token is None"


def check_windows(source: Source, again: Source) -> None:
    """Windows are rows as declared, the same each time, a prefix of more, and named by their digest."""
    for split in get_args(Split):
        few, more = source.windows(FEW, split), source.windows(MANY, split)
        check_rows(few.batch, source.params, FEW)
        check_rows(more.batch, source.params, MANY)
        assert _key(few.batch) == _key(more.batch[:FEW]), f"fewer {split} windows are no prefix of more"
        if not isinstance(again, StreamSource):
            again.train_batch(seed=SEED, step=1, rows=2)  # must not matter
        fixed = again.windows(FEW, split)
        assert fixed.digest == few.digest, f"the {split} windows are not the same each time"
        assert few.digest == Windows.of(few.batch).digest, "the digest is `Windows.of(batch)`'s"
        _check_texts_differ(few.batch)


def _check_texts_differ(batch: Batch) -> None:
    """Other texts are not all one."""
    if batch.latent_inputs_BU is not None:
        texts = {row.numpy().tobytes() for row in batch.latent_inputs_BU}
        assert len(texts) > 1, "all rows have the same other text"


def check_rows(batch: Batch, params: DataParams, rows: int) -> None:
    """Token ids in range, targets that are the next inputs, padding on the right."""
    inputs_BT, targets_BT, keep_BT = batch.inputs_BT, batch.targets_BT, batch.keep_BT
    for name, x_BT, dtype in (
        ("inputs_BT", inputs_BT, torch.int64),
        ("targets_BT", targets_BT, torch.int64),
        ("keep_BT", keep_BT, torch.bool),
    ):
        assert x_BT.shape == (rows, params.tokens), (
            f"{name} is {list(x_BT.shape)}, not {[rows, params.tokens]}"
        )
        assert x_BT.dtype == dtype, f"{name} is {x_BT.dtype}, not {dtype}"
    predicted_BT = targets_BT != IGNORE
    for name, ids in (("inputs_BT", inputs_BT), ("targets_BT", targets_BT[predicted_BT])):
        assert ((ids >= 0) & (ids < params.vocab)).all(), f"{name} holds ids beyond 0..{params.vocab - 1}"
    assert not (keep_BT[:, 1:] & ~keep_BT[:, :-1]).any(), "padding stands on the right"
    assert not (predicted_BT & ~keep_BT).any(), "a target is IGNORE where the input is padding"
    assert predicted_BT.any(1).all(), "a row has nothing to predict"
    _check_other_texts(batch, params, rows)
    shifted_BT = predicted_BT[:, :-1] & keep_BT[:, 1:]
    assert (targets_BT[:, :-1] == inputs_BT[:, 1:])[shifted_BT].all(), "a target is not the next input"


def _check_other_texts(batch: Batch, params: DataParams, rows: int) -> None:
    """Another text where one is declared: token ids in range, padding on the right, something to read."""
    ids_BU, keep_BU, tokens = batch.latent_inputs_BU, batch.latent_keep_BU, params.latent_tokens
    if ids_BU is None or keep_BU is None:
        assert tokens is None, f"latent_tokens is {tokens}, and a row has no latent_inputs_BU"
        return
    assert tokens is not None, "a row has latent_inputs_BU, and latent_tokens is None"
    for name, x_BU, dtype in (
        ("latent_inputs_BU", ids_BU, torch.int64),
        ("latent_keep_BU", keep_BU, torch.bool),
    ):
        assert x_BU.shape == (rows, tokens), f"{name} is {list(x_BU.shape)}, not {[rows, tokens]}"
        assert x_BU.dtype == dtype, f"{name} is {x_BU.dtype}, not {dtype}"
    assert ((ids_BU >= 0) & (ids_BU < params.vocab)).all(), (
        f"latent_inputs_BU holds ids beyond 0..{params.vocab - 1}"
    )
    assert not (keep_BU[:, 1:] & ~keep_BU[:, :-1]).any(), "padding of another text stands on the right"
    assert keep_BU.any(1).all(), "a row's other text has nothing to read"


def check_splits(source: Source) -> None:
    """Training rows, validation and test don't meet, whatever the seed; single rows may repeat by chance."""
    held = {split: _set(source.windows(MANY, split).batch) for split in get_args(Split)}
    drawn = {f"training rows of seed {seed}": _set(_first_rows(source, seed)) for seed in (0, 1)}
    parts = [*(held | drawn).items()]
    for number, (name, rows) in enumerate(parts):
        assert len(rows) > MANY // 2, f"most {name} rows are equal"
        for other, others in parts[:number]:
            if name not in held and other not in held:
                continue  # two seeds may draw one row of the same text
            assert len(rows & others) < MANY // 2, f"{name} and {other} share rows"


def check_batches(source: Source, again: Source) -> None:
    """A training batch is a function of seed and step alone; fewer rows are a prefix of more."""
    first = source.train_batch(seed=SEED, step=7, rows=FEW)
    check_rows(first, source.params, FEW)
    for step in (9, 7):  # what was drawn before doesn't matter
        last = again.train_batch(seed=SEED, step=step, rows=FEW)
    assert _key(first) == _key(last), "a training batch depends on what was drawn before it"
    if source.fewer_rows_are_a_prefix:
        few = source.train_batch(seed=SEED, step=7, rows=3)
        assert _key(few) == _key(first[:3]), "fewer training rows are no prefix of more"
    asked = [(0, 0), (0, 1), (1, 0), (1, 1), (2**32, 0)]
    found = {_key(source.train_batch(seed=seed, step=step, rows=FEW)) for seed, step in asked}
    assert len(found) == len(asked), "two seeds or steps have the same rows"


def check_resuming(source: Source, again: Source) -> None:
    """A reader goes on exactly where another stood, over ranks and workers."""
    if isinstance(source, StreamSource):
        _check_stream(source, again)
        return
    with _reader(source) as reader:
        for step in range(3):
            assert _key(reader.batch(step)) == _key(source.train_batch(seed=SEED, step=step, rows=ROWS))
        state = _saved(reader.state_dict())
    for rank, ranks, workers in ((0, 1, 0), (0, 2, 0), (1, 2, 0), (1, 2, 1)):
        each = ROWS // ranks
        with _reader(again, rank=rank, ranks=ranks, workers=workers) as reader:
            reader.load_state_dict(state)
            for step in (3, 4) if workers else (3, 4, 1000):  # a jump starts the workers anew
                wanted = source.train_batch(seed=SEED, step=step, rows=ROWS)[rank * each : (rank + 1) * each]
                who = f"rank {rank} of {ranks} with {workers} workers"
                assert _key(reader.batch(step)) == _key(wanted), f"{who} reads other rows at step {step}"


def _check_stream(source: Source, again: Source) -> None:
    firsts = []
    for rank, ranks, workers in ((0, 1, 0), (0, 2, 0), (1, 2, 0), (0, 1, 1)):
        options = {"rank": rank, "ranks": ranks, "workers": workers}
        with _reader(source, **options) as reader:
            firsts.append(reader.batch(0))
            check_rows(firsts[-1], source.params, ROWS // ranks)
            state = _saved(reader.state_dict())
            wanted = [_key(reader.batch(step)) for step in (1, 2, 3)]
        with _reader(again, **options) as reader:
            reader.load_state_dict(state)
            found = [_key(reader.batch(step)) for step in (1, 2, 3)]
        assert found == wanted, f"a stream doesn't go on where it stood, with {options}"
    assert not _set(firsts[1]) & _set(firsts[2]), "two ranks read the same rows of a stream"


def check_codec(params: DataParams, source: Source) -> None:
    """Text becomes ids in range and comes back; ids always become a text; what has no id is a `UserError`."""
    codec, prompt = params.codec, source.sample_prompt()
    assert codec.name, "a codec has a name"
    assert codec.name == params.codec.name, "the codec's name changes"
    assert codec.vocab == params.vocab, "the codec's vocabulary is the data's"
    assert 1 <= len(prompt) <= 64, f"the sample prompt has {len(prompt)} characters, not 1 to 64"
    assert codec.decode(codec.encode(prompt)) == prompt, (
        f"the prompt {prompt!r} doesn't come back from its ids"
    )
    ids = torch.randint(params.vocab, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    assert isinstance(codec.decode(ids), str), "`decode` gives a text"
    for text in ("a", "é☃\n", "\udc80"):
        try:
            found = codec.encode(text)
        except UserError:
            continue
        assert all(0 <= one < params.vocab for one in found), f"{text!r} has ids beyond the vocabulary"


def check_files(params: DataParams) -> None:
    """The codec of a run is made of the run's own copies of files."""
    kept = params.with_files(params.files()).codec
    assert kept.name == params.codec.name, "with a run's own files the codec is another"


def check_attributes(params: DataParams, source: Source) -> None:
    """What can be measured on texts: one value a text or position, on the data's own rows and on any ids."""
    attributes = params.attributes
    names = [attribute.name for attribute in attributes]
    assert len(set(names)) == len(names), f"attributes of one name: {names}"
    batch = source.windows(MANY).batch
    row_BU = torch.cat([batch.inputs_BT, batch.targets_BT[:, -1:].clamp(min=0)], dim=1)
    prompt_tokens = min(len(params.codec.encode(source.sample_prompt())), params.tokens)
    any_BU = torch.randint(params.vocab, row_BU.shape, generator=torch.Generator().manual_seed(0))
    for attribute in attributes:
        assert re.fullmatch(r"\w+", attribute.name), f"the name {attribute.name!r} is no word"
        assert attribute.tolerance >= 0, f"{attribute.name}: a tolerance below 0"
        own = _measured(attribute, row_BU, prompt_tokens)
        _measured(attribute, any_BU, prompt_tokens)
        if attribute.scale == "check" and bool(batch.keep_BT.all()):
            assert own.all(), f"{attribute.name}: the data's own rows fail the check"
        if attribute.uniform_over is not None:
            inside = np.isnan(own) | ((own >= 0) & (own < attribute.uniform_over))
            assert inside.all(), f"{attribute.name} leaves 0..{attribute.uniform_over}"


def _measured(attribute: Attribute, row_BU: Tensor, prompt_tokens: int) -> Any:
    row_NU = row_BU.numpy()
    found = attribute.measure(row_NU[:, :prompt_tokens], row_NU[:, prompt_tokens:])
    text = row_NU[:, prompt_tokens:].shape
    shape = text if attribute.scale == "flags" else text[:1]
    assert found.shape == shape, f"{attribute.name} has shape {list(found.shape)}, not {list(shape)}"
    if attribute.scale == "number":
        assert np.issubdtype(found.dtype, np.number), f"{attribute.name} is no number but {found.dtype}"
    else:
        assert found.dtype == bool, f"{attribute.name} is not bool but {found.dtype}"
    return found


def _first_rows(source: Source, seed: int) -> Batch:
    with _reader(source, seed=seed, rows=MANY) as reader:
        return reader.batch(0)


@contextmanager
def _reader(source: Source, **options: Any) -> Iterator[Reader]:
    reader = open_reader(source, **{"seed": SEED, "rows": ROWS, **options})
    try:
        yield reader
    finally:
        reader.close()


def _saved(state: dict[str, Any]) -> dict[str, Any]:
    """A state as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return dict(torch.load(file, weights_only=True))


def _key(batch: Batch) -> bytes:
    """All of a batch."""
    return b"".join(x.contiguous().numpy().tobytes() for x in batch.tensors)


def _set(batch: Batch) -> set[bytes]:
    """Its rows, without their other texts: splits must not share what is predicted."""
    batch = Batch(batch.inputs_BT, batch.targets_BT, batch.keep_BT)
    return {_key(batch[number : number + 1]) for number in range(len(batch))}
