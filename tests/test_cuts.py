"""Splits by position cut no character, and leave a text of plain characters as it was."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lvlm
from lvlm.data import BinsData, HuggingFaceData, TextData
from lvlm.data.codecs import LONGEST_BLOCK, blocks
from lvlm.data.corpus import HELD_OUT, File, split_by_position
from lvlm.data.cuts import cut_near
from lvlm.data.documents import SPLITS, _stretches
from lvlm.data.prepare import LONGEST_WORD, with_short_words
from tests.tokenizers_of_others import write_tokenizer

RIVER = "河流慢慢地记录每一块石头"


@given(st.text(max_size=30), st.integers(0, 200), st.integers(0, 20))
def test_a_cut_is_between_characters_at_or_behind_its_place(text: str, place: int, near: int) -> None:
    content = text.encode(errors="replace")
    place = min(place, len(content))
    cut = cut_near(content, place, near)
    assert place <= cut <= len(content)
    assert content[:cut].decode() + content[cut:].decode() == content.decode()
    if content.isascii():
        assert cut == place


@given(st.binary(max_size=20), st.integers(0, 20), st.integers(0, 20))
def test_bytes_of_no_text_are_cut_too(content: bytes, place: int, near: int) -> None:
    place = min(place, len(content))
    assert place <= cut_near(content, place, near) <= len(content)
    assert cut_near(b"\x80" * 9, 4, 0) == 4


@pytest.mark.parametrize(
    "one",
    [
        "e\u0301",  # a letter and its accent
        "\u0928\u093f",  # a Devanagari syllable
        "\U0001f469\u200d\U0001f52c",  # a woman and a microscope, joined: a scientist
        "\U0001f44d\U0001f3fd",  # a thumb of some skin
        "\u1112\u1161\u11ab",  # a Korean syllable in three parts
        "\U0001f1eb\U0001f1ee",  # a flag of two letters
        "\u2764\ufe0f",  # a heart that is to be a picture
    ],
)
def test_what_a_reader_sees_as_one_is_not_cut(one: str) -> None:
    content, size = ("ab" + one * 3 + "cd").encode(), len(one.encode())
    cuts = {cut_near(content, place, 0) for place in range(len(content) + 1)}
    whole = {2 + size * number for number in range(4)}
    assert cuts == {0, 1, *whole, len(content) - 1, len(content)}


def test_a_cut_inside_a_character_prefers_a_line_near_by() -> None:
    content = "河流慢\nabc\n".encode()
    assert [cut_near(content, 4, near) for near in (0, 5, 6, 20)] == [6, 6, 10, 10]
    assert cut_near(content, 3, 20) == 3
    assert cut_near(content, 11, 20) == 11


def parts_of(source: Any) -> dict[str, str]:
    return {
        split: source.params.codec.decode(np.asarray(source._tokens[split][:]).tolist()) for split in SPLITS
    }


@pytest.mark.parametrize("repeats", [300, 301, 302])
@pytest.mark.parametrize("form", ["one line", "lines"])
@pytest.mark.parametrize("tokenizer", [None, "bytelevel"])
def test_no_split_has_half_a_character(
    tmp_path: Path, repeats: int, form: str, tokenizer: str | None
) -> None:
    text = f"{RIVER}\n" * repeats if form == "lines" else RIVER * repeats + "\n"
    (tmp_path / "c.txt").write_text(text)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": text}))
    file = None if tokenizer is None else str(write_tokenizer(tokenizer, tmp_path / "t.json"))
    lvlm.prepare_data([str(tmp_path / "c.txt")], tmp_path / "bins", tokenizer=file)
    options: dict[str, Any] = {"window": 16, "tokenizer": file}
    sources = [
        TextData(path=str(tmp_path / "c.txt"), **options),
        BinsData(path=str(tmp_path / "bins"), window=16),
        HuggingFaceData(path=str(tmp_path / "rows.jsonl"), **options),
    ]
    for params in sources:
        parts = parts_of(params.open())
        assert "\ufffd" not in "".join(parts.values())
        assert all(parts.values())
        assert "".join(parts.values()).removesuffix("</s>").strip() == text.strip()


def test_a_text_of_plain_characters_is_split_where_it_was() -> None:
    content = b"".join(b"%d lines\n" % number for number in range(777))
    held = len(content) // HELD_OUT
    found = split_by_position([File("a.txt", content)])
    assert found[:3] == (
        content[: -2 * held],
        content[-2 * held : -held],
        content[-held:],
    )


@pytest.mark.parametrize("piece", ["x", "ab c", "é", RIVER, "a\n", "0123456789" * 9000 + "\n", "e\u0301"])
@pytest.mark.parametrize("size", [0, 10, LONGEST_BLOCK, 3 * LONGEST_BLOCK + 17])
def test_a_line_without_end_is_cut_between_characters_into_blocks(piece: str, size: int) -> None:
    content = (piece * (size // len(piece.encode()) + 1)).encode()[:size].decode(errors="ignore").encode()
    found = list(blocks(content))
    assert b"".join(found) == content
    assert all(len(one) <= LONGEST_BLOCK and one.decode() for one in found)
    assert not any(one.startswith("\u0301".encode()) for one in found)
    assert [one.content for one in _stretches(io.BytesIO(content), b"name")] == found


def test_a_long_row_is_one_document_in_pieces(tmp_path: Path) -> None:
    rows = [
        {"text": letter * length} for letter, length in (("a", 3 * LONGEST_BLOCK), ("b", 10**6), ("c", 10**6))
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = str(write_tokenizer("bytelevel", tmp_path / "t.json"))
    lvlm.prepare_data([str(tmp_path / "a.jsonl")], tmp_path / "bins", tokenizer=tokenizer, held_out=0.2)
    splits = json.loads((tmp_path / "bins" / "manifest.json").read_text())["splits"]
    assert sum(one["bytes"] for one in splits.values()) == sum(len(row["text"]) for row in rows)


def test_a_tokenizer_is_learned_of_a_long_word_in_time(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("0" * 2**20 + " " * 2**20 + " a word and others" * 99)
    lvlm.train_tokenizer([str(tmp_path / "a.txt")], tmp_path / "t.json", vocab=300)
    text = " a word\n and  others" * 99
    assert with_short_words(text) == [text]
    long = "x" * 10_000 + text + " " * 10_000
    assert "".join(with_short_words(long)) == long
    words = [word for one in with_short_words(long) for word in re.findall(r"\S+|\s+", one)]
    assert max(map(len, words)) == LONGEST_WORD
