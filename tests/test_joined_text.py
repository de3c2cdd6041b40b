"""Prompt and text are the text of all ids, whatever the tokenizer: whole, in pieces, by token, up to a stop."""

from __future__ import annotations

import functools
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm.data.codecs import ByteCodec, TokenizerCodec
from lvlm.generation.row_text import RowText
from lvlm.interfaces import Codec
from lvlm.interfaces.codec import TextStream, continuation, joined, token_texts
from tests.tokenizers_of_others import KINDS, codec_of

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


@pytest.mark.parametrize(("kind", "text"), [("sentencepiece", " it"), ("wordpiece", " it"), ("wordlevel", " it")])
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
