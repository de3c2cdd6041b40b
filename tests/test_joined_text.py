"""Prompt and text are the text of all ids, whatever the tokenizer: whole, in pieces, by token, up to a stop."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import lvlm
from lvlm.cli.app import app
from lvlm.data.attributes import text_attributes
from lvlm.data.codecs import ByteCodec, TokenizerCodec
from lvlm.generation.kl_by_token import reading_of
from lvlm.generation.row_text import RowText
from lvlm.interfaces import Codec
from lvlm.interfaces.codec import TextStream, continuation, joined, token_texts
from lvlm.playground.writing import Asked, write
from lvlm.steering.measure import kept
from lvlm.steering.probe import Texts
from tests.tiny import tiny
from tests.tokenizers_of_others import KINDS, codec_of, write_documents, write_tokenizer

IDS = st.lists(st.integers(0, 10_000), max_size=40)


@functools.cache
def codec(kind: str) -> Codec:
    return ByteCodec() if kind == "bytes" else codec_of(kind)


def within(kind: str, numbers: list[int]) -> list[int]:
    return [number % codec(kind).vocab for number in numbers]


@pytest.mark.parametrize("kind", ["bytes", *KINDS])
@given(IDS, IDS)
def test_pieces_join_to_the_text_of_all_ids(kind: str, before: list[int], after: list[int]) -> None:
    prompt, ids = within(kind, before), within(kind, after)
    whole, known = codec(kind).decode(prompt + ids), codec(kind).decode(prompt)
    shown, text = joined(codec(kind), prompt, ids)
    assert shown + text == whole
    assert known.startswith(shown)
    assert shown == known or not whole.startswith(known)
    assert text == continuation(codec(kind), prompt, ids)
    stream = TextStream(codec(kind), prompt)
    pieces = [stream.push(token) for token in ids]
    assert "".join([*pieces, stream.finish()]) == text
    assert "".join(token_texts(codec(kind), ids)) == codec(kind).decode(ids)


@pytest.mark.parametrize("kind", ["bytes", *KINDS])
def test_pieces_of_a_long_text_join(kind: str) -> None:
    r = random.Random(0)
    written = codec(kind).encode("the river keeps a slow account of every stone it moves. " * 40)
    for ids in (written, [r.randrange(codec(kind).vocab) for _ in range(1200)]):
        stream = TextStream(codec(kind), ids[:300])
        pieces = [stream.push(token) for token in ids[300:]]
        assert "".join([*pieces, stream.finish()]) == continuation(codec(kind), ids[:300], ids[300:])
        assert "".join(token_texts(codec(kind), ids)) == codec(kind).decode(ids)


@pytest.mark.parametrize("kind", ["bytes", *KINDS])
@given(IDS, IDS, st.sampled_from([" ", "e", " it", "\ufffd", "河"]))
def test_a_row_stops_in_the_joined_text(kind: str, before: list[int], after: list[int], stop: str) -> None:
    prompt, ids = within(kind, before), within(kind, after)
    row, pieces = RowText(codec(kind), [stop], prompt), []
    for number, token in enumerate(ids):
        pieces.append(row.push(token, last=number == len(ids) - 1))
        if row.ended_by is not None:
            break
    text = continuation(codec(kind), prompt, ids[: row.count])
    assert "".join(pieces) == row.text == text.partition(stop)[0]
    assert (row.ended_by == stop) == (stop in text)


@pytest.mark.parametrize(
    ("kind", "text"), [("sentencepiece", " it"), ("wordpiece", " it"), ("wordlevel", " it")]
)
def test_a_word_that_follows_keeps_its_space(kind: str, text: str) -> None:
    prompt, ids = codec(kind).encode("the river"), codec(kind).encode("it")
    assert codec(kind).decode(ids) == "it"
    assert joined(codec(kind), prompt, ids) == ("the river", text)
    assert token_texts(codec(kind), prompt + ids)[-1] == text


def test_a_character_that_the_prompt_begins_belongs_to_the_text() -> None:
    ids = list("the 河".encode())
    assert joined(ByteCodec(), ids[:-2], ids[-2:]) == ("the ", "河")
    stream = TextStream(ByteCodec(), ids[:-2])
    assert [stream.push(ids[-2]), stream.push(ids[-1]), stream.finish()] == ["", "河", ""]


def test_a_byte_that_fits_no_character_changes_those_before_it() -> None:
    codec = codec_of("sentencepiece")
    river = codec.encode("the 河")
    broken = [codec.id_of("<0xFF>")]
    assert joined(codec, river, broken) == ("the ", "\ufffd" * 4)
    stream = TextStream(codec, codec.encode("the"))
    assert [stream.push(token) for token in river[-3:]] == ["", "", ""]  # might be four of U+FFFD
    assert stream.open == "河"
    assert stream.push(codec.encode("it")[0]) == "河 it"
    assert token_texts(codec, [*river, *codec.encode("it")])[-4:] == ["河", "", "", " it"]


@pytest.mark.parametrize("kind", ["bytes", "bytelevel", "sentencepiece"])
def test_a_character_of_several_tokens_stands_at_its_first(kind: str) -> None:
    ids = codec(kind).encode("a 河 b")
    texts = token_texts(codec(kind), ids)
    assert "河" in texts or " 河" in texts
    assert "".join(texts) == "a 河 b"
    assert "\ufffd" not in "".join(texts)


def test_a_tokenizer_without_bytes_has_no_text_unsettled() -> None:
    found: Any = codec_of("bytelevel")
    assert isinstance(found, TokenizerCodec)
    assert found.unsettled(list(range(found.vocab))) == 0
    assert "ByteFallback" not in json.dumps(json.loads(found.content))


# ------------------------------------------------------------------------------------------------- everywhere


@pytest.fixture(scope="module", params=["sentencepiece", "wordpiece", "wordlevel", "bytelevel"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of FREE with a tokenizer of the kind."""
    folder = tmp_path_factory.mktemp(request.param)
    text = write_documents(folder / "text.txt")
    tokenizer = write_tokenizer(request.param, folder / "tokenizer.json")
    recipe = tiny("free", text, data={"tokenizer": str(tokenizer)}, train={"steps": 2})
    recipe["model"]["quantizer"] = {**recipe["model"].get("quantizer", {}), "bits": 2}
    lvlm.train(recipe, folder / "run")
    return folder / "run"


PROMPT = "the river"


def test_a_sample_joins(run: Path) -> None:
    model = lvlm.load(run)
    assert model.codec is not None
    stops: tuple[list[str], ...] = ([], ["\0"], [" "])
    for stop in stops:
        for sample in lvlm.generate(model, PROMPT, 8, samples=4, stop=stop):
            whole = model.codec.decode(sample.prompt + sample.tokens)
            assert sample.prompt_text == model.codec.decode(sample.prompt) == PROMPT
            assert whole.startswith(f"{sample.prompt_text}{sample.text}")
            assert (whole == f"{sample.prompt_text}{sample.text}") == (sample.ended_by == "length")
    pieces = [piece.text for piece in lvlm.stream(model, PROMPT, 8, seed=3)]
    assert "".join(pieces) == lvlm.generate(model, PROMPT, 8, seed=3)[0].text


def test_commands_show_the_joined_text(run: Path) -> None:
    codec = lvlm.load(run).codec
    assert codec is not None
    words = ["sample", str(run), "--prompt", PROMPT, "--tokens", "8", "--seed", "3"]
    shown, streamed, (record,) = (
        said(*words),
        said(*words, "--stream"),
        json.loads(said(*words, "--json")),
    )
    whole = codec.decode(record["prompt"] + record["tokens"])
    assert shown == streamed == f"{whole}\n"
    assert record["prompt_text"] + record["text"] == whole
    for line in json.loads(said("interpolate", str(run), PROMPT, "it moves", "--prompt", "the", "--json")):
        assert line["prompt_text"] + line["text"] == codec.decode(line["prompt"] + line["tokens"])


def test_an_encoded_text_joins_over_its_windows(run: Path) -> None:
    model = lvlm.load(run)
    assert model.codec is not None
    text = "the river keeps a slow account of every stone it moves and nobody reads 河 the book"
    found = lvlm.encode_text(run, text)
    assert len(found) > 1
    whole = model.codec.decode([token for one in found for token in one.tokens])
    assert "".join(piece for one in found for piece in one.texts or ()) == whole
    assert "".join(span.text for span in reading_of(found).spans) == whole


def test_an_evaluations_sample_and_steerings_texts_join(run: Path) -> None:
    codec = lvlm.load(run).codec
    assert codec is not None
    sample = lvlm.evaluate(run)["sample"]
    assert sample is not None
    ids = codec.encode(sample["prompt"])
    assert sample["prompt"] == codec.decode(ids)
    (again,) = lvlm.generate(lvlm.load(run), ids, sample["tokens"])
    assert sample["prompt"] + sample["text"] == codec.decode(again.prompt + again.tokens)
    texts = np.array([codec.encode("it moves")])
    by_name = {one.name: one for one in text_attributes(codec)}
    found = by_name["word_length"].measure(np.array([codec.encode("the river")]), texts)
    assert found == pytest.approx([3.5])


def test_the_page_shows_the_joined_text(run: Path) -> None:
    model = lvlm.load(run)
    assert model.codec is not None
    *_, page = write(model, Asked("The RIVER", tokens=6))
    assert page.prompt == model.codec.decode(model.codec.encode("The RIVER"))
    (sample,) = lvlm.generate(model, "The RIVER", 6, prompt_codes="prior", code_seed=0)
    card = page.rows[0].cards[0]
    assert f"{card.prompt}{card.text}" == model.codec.decode(sample.prompt + sample.tokens)


def test_steering_keeps_texts_that_join() -> None:
    prompt_NP, text_NL = torch.tensor([[*b"ab\xe6\xb2"]] * 2), torch.tensor([[*b"\xb3c"], [*b"cd"]])
    (group,) = kept(ByteCodec(), Texts(prompt_NP, text_NL, None), None, 2)
    assert group.prompt == "ab"
    assert group.apart == ["河c", "\ufffdcd"]
    assert group.shared == []


def said(*words: str) -> str:
    found = CliRunner().invoke(app, list(words))
    assert found.exit_code == 0, (found.output, found.exception)
    return found.stdout
