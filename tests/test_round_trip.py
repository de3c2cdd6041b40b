"""Bits per byte are there where the tokens give the text back, and else left out with the reason."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

import lvlm
from lvlm.cli.app import app
from lvlm.data import BinsData, DataParams, HuggingFaceData, MixtureData, TextData
from lvlm.data.codecs import ByteCodec
from lvlm.data.round_trip import lost, lost_in_text
from lvlm.report import ReportRun, read_report, report_study
from tests.tiny import edit_json, tiny
from tests.tokenizers_of_others import KINDS, codec_of, documents, write_tokenizer

KEEPING = ("sentencepiece", "bytelevel")  # the others lose capitals, spaces or line breaks
KEEPING_LINES = (*KEEPING, "unigram")  # that knows no line break, and a row has none

Opens = Callable[[Path, str], DataParams]


def write_text(folder: Path) -> str:
    (folder / "text.txt").write_text("".join(f"{one}\n" for one in documents()))
    return str(folder / "text.txt")


def write_rows(folder: Path) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in documents()))
    return str(folder / "rows.jsonl")


def text(folder: Path, tokenizer: str) -> DataParams:
    return TextData(path=write_text(folder), window=8, tokenizer=tokenizer)


def bins(folder: Path, tokenizer: str) -> DataParams:
    out = lvlm.prepare_data([write_rows(folder)], folder / "bins", tokenizer=tokenizer)
    return BinsData(path=str(out), window=8)


def dataset(folder: Path, tokenizer: str) -> DataParams:
    return HuggingFaceData(path=write_rows(folder), window=8, tokenizer=tokenizer)


def streamed(folder: Path, tokenizer: str) -> DataParams:
    return HuggingFaceData(path=write_rows(folder), window=8, tokenizer=tokenizer, streaming=True)


def mixture(folder: Path, tokenizer: str) -> DataParams:
    return MixtureData(parts={"all": text(folder, tokenizer)})


OPENS: tuple[Opens, ...] = (text, bins, dataset, streamed, mixture)


@pytest.mark.parametrize("opens", OPENS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_that_forgets_has_no_bytes_per_token(tmp_path: Path, opens: Opens, kind: str) -> None:
    tokenizer = str(write_tokenizer(kind, tmp_path / "tokenizer.json"))
    source = opens(tmp_path, tokenizer).open()
    if kind in (KEEPING_LINES if opens in (bins, dataset, streamed) else KEEPING):
        assert source.why_no_bytes is None
        assert source.bytes_per_token is not None
        assert source.bytes_per_token > 1
    else:
        assert source.bytes_per_token is None
        assert "doesn't give the test text back" in str(source.why_no_bytes)
        assert "comes back as" in str(source.why_no_bytes)


@pytest.mark.parametrize(
    ("kind", "content", "part"),
    [
        (
            "wordlevel",
            "every stone of Helsinki",
            r"'tone of Helsinki' comes back as 'tone of <unk>'",
        ),
        ("wordpiece", "The river", r"'The river' comes back as 'the river'"),
        ("suffixes", "the  river", r"'the  river' comes back as 'the river'"),
        ("suffixes", "the river ", r"'he river ' comes back as 'he river'"),
        ("bytelevel", b"a \xff b", r"is no UTF-8 at byte 0xFF"),
    ],
)
def test_what_is_lost_is_shown(kind: str, content: str | bytes, part: str) -> None:
    codec = codec_of(kind)
    content = content.encode() if isinstance(content, str) else content
    (ids,) = codec.arrays([content])
    assert part in str(lost(codec, content, ids))
    assert part in str(lost_in_text(codec, content))


def test_nothing_is_lost_of_bytes_or_of_an_empty_text() -> None:
    assert lost_in_text(ByteCodec(), b"\xff") is None
    assert lost(ByteCodec(), b"\xff", [255]) is None
    assert lost_in_text(codec_of("wordlevel"), b"") is None


def test_one_test_document_far_behind_counts_when_it_is_read(tmp_path: Path) -> None:
    rows = {"train": documents(), "test": ["it moves"] * 100 + ["it MOVES"]}
    for split, of in rows.items():
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{split}.jsonl").write_text(
            "".join(json.dumps({"text": one}) + "\n" for one in of)
        )
    tokenizer = str(write_tokenizer("wordpiece", tmp_path / "tokenizer.json"))
    source = HuggingFaceData(
        path=str(tmp_path / "data"),
        window=4,
        tokenizer=tokenizer,
        end_of_document="</s>",
        test="test",
        streaming=True,
        documents="pad",
    ).open()
    found = []
    for count in (1, 100, 101):
        source.windows(count, "test")
        found.append((source.bytes_per_token is None, source.why_no_bytes or ""))
    assert found[:2] == [(False, "")] * 2
    assert found[2][0]
    assert "'it MOVES' comes back as 'it moves'" in found[2][1]


def test_bins_that_were_never_compared_say_so(tmp_path: Path) -> None:
    tokenizer = str(write_tokenizer("bytelevel", tmp_path / "tokenizer.json"))
    params = bins(tmp_path, tokenizer)
    before = params.open()
    edit_json(tmp_path / "bins" / "manifest.json", lambda manifest: manifest.pop("not_given_back"))
    source = params.open()
    assert source.fingerprint == before.fingerprint
    assert source.bytes_per_token is None
    assert "prepare them again" in str(source.why_no_bytes)
    lvlm.prepare_data([write_text(tmp_path)], tmp_path / "byte-bins")
    edit_json(tmp_path / "byte-bins" / "manifest.json", lambda manifest: manifest.pop("not_given_back"))
    assert BinsData(path=str(tmp_path / "byte-bins"), window=8).open().bytes_per_token == 1


@pytest.mark.parametrize("kind", ["bytelevel", "wordlevel"])
def test_an_evaluation_and_a_report_say_why(tmp_path: Path, kind: str) -> None:
    tokenizer = str(write_tokenizer(kind, tmp_path / "tokenizer.json"))
    recipe: dict[str, Any] = tiny("baseline", Path(write_text(tmp_path)), data={"tokenizer": tokenizer})
    lvlm.train(recipe, tmp_path / "study" / "run")
    shown = CliRunner().invoke(app, ["eval", str(tmp_path / "study" / "run")])
    assert shown.exit_code == 0, shown.output
    found = json.loads((tmp_path / "study" / "run" / "evaluation.json").read_text())
    numbers = {one["bits_per_byte"] for one in found["estimates"].values()}
    report = read_report(
        tmp_path / "study",
        title="t",
        description="",
        command="c",
        controls=["run"],
        runs=[ReportRun("run", 0, tmp_path / "study" / "run")],
    )
    screen = io.StringIO()
    page = report_study(report, Console(file=screen, width=260)).read_text()
    if kind == "bytelevel":
        assert None not in numbers
        assert found["no_bits_per_byte"] is None
        assert "left out" not in shown.output + page
    else:
        assert numbers == {None}
        assert found["bytes_per_token"] is None
        assert "doesn't give the test text back" in found["no_bits_per_byte"]
        assert "left out: the tokenizer doesn't give the test text back" in " ".join(shown.output.split())
        assert page.count("Bits per byte of run are left out") == 1
