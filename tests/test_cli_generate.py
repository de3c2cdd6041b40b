"""The commands that write and read with a run: sample, encode, interpolate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import lvlm
from lvlm.cli.app import app
from lvlm.cli.texts import reading_tables
from lvlm.generation.kl_by_token import Reading, Span
from tests.tiny import tiny, write_text


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of each arm."""
    folder = tmp_path_factory.mktemp("generate")
    text = write_text(folder)
    for arm in ("free", "gptvae", "baseline"):
        lvlm.train(tiny(arm, text), folder / arm)
    return folder


def ran(*words: object, status: int = 0) -> Result:
    found = CliRunner().invoke(app, [str(word) for word in words])
    assert found.exit_code == status, (found.output, found.exception)
    return found


def sampled(run: Path, *words: object) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(ran("sample", run, *words, "--json").stdout)
    return found


def test_samples_come_below_each_other_in_columns_or_while_they_are_made(runs: Path) -> None:
    words = ("sample", runs / "free", "--prompt", "12", "--tokens", 6)
    text = ran(*words).stdout
    assert text.startswith("12")
    assert ran(*words, "--stream").stdout == text
    several = ran(*words, "--samples", 2).stdout
    assert several.startswith("--- seed 0\n12")
    assert "--- seed 1\n12" in several
    columns = ran(*words, "--samples", 2, "--side-by-side").stdout
    assert "seed 0" in columns.splitlines()[1]
    assert "seed 1" in columns.splitlines()[1]


def test_a_record_has_all_that_reproduces_a_text(runs: Path) -> None:
    (record,) = sampled(runs / "free", "--prompt", "12", "--tokens", 6, "--seed", 3, "--top-p", 0.9)
    assert record["seed"] == 3
    assert record["ended_by"] == "length"
    assert len(record["tokens"]) == len(record["log_prob_nats"]) == 6  # type: ignore[arg-type]
    codes = ",".join(map(str, record["codes"]))  # type: ignore[call-overload]
    again = sampled(
        runs / "free", "--prompt", "12", "--tokens", 6, "--seed", 3, "--top-p", 0.9, "--code", codes
    )
    assert again == [record]


def test_codes_of_a_file_of_a_text_and_as_bits_are_the_ones_that_are_used(runs: Path, tmp_path: Path) -> None:
    ran("encode", runs / "free", "--text", "12 lines", "--out", tmp_path / "codes")
    with np.load(tmp_path / "codes.npz") as arrays:
        wanted = arrays["codes"].tolist()
        assert arrays["kl_nats"].shape == (8, 8)
    words = ("--prompt", "12", "--tokens", 7)
    for way in (("--codes", tmp_path / "codes.npz"), ("--codes-of", "12 lines")):
        (record,) = sampled(runs / "free", *words, *way)
        assert record["codes"] == wanted
    (held,) = sampled(runs / "free", *words, "--codes-of", "12 lines", "--hold", "2:4")
    assert held["codes"][2:4] == wanted[2:4]  # type: ignore[index]
    assert held["codes"] != wanted
    warned = ran("sample", runs / "free", *words, "--bits", "01100000", "--json")
    assert json.loads(warned.stdout)[0]["codes"] == [6] * 8
    assert "out of distribution" in warned.stderr
    (record,) = sampled(runs / "gptvae", *words, "--vector", ",".join(["0.5"] * 16))
    assert record["codes"] == [[0.5] * 16]


def test_a_flipped_bit_stands_beside_the_text_as_it_was(runs: Path) -> None:
    as_drawn, flipped = sampled(runs / "free", "--prompt", "12", "--tokens", 6, "--flip", 3)
    assert (as_drawn["how"], flipped["how"]) == ("as drawn", "bit 3 flipped")
    assert [code ^ 8 for code in as_drawn["codes"]] == flipped["codes"]  # type: ignore[attr-defined]
    columns = ran("sample", runs / "free", "--prompt", "12", "--tokens", 6, "--flip", 3).stdout
    assert "bit 3 flipped" in columns


def test_a_text_is_read_from_a_file_or_the_standard_input_in_pieces(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("12 lines of verse")  # windows of training are 12 tokens
    pieces = json.loads(ran("encode", runs / "free", file, "--json").stdout)
    assert ["".join(piece["texts"]) for piece in pieces] == ["12 lines of ", "verse"]
    assert [len(piece["kl_nats_per_token"]) for piece in pieces] == [12, 5]
    piped = CliRunner().invoke(app, ["encode", str(runs / "free"), "-", "--json"], input="12 lines of verse")
    assert json.loads(piped.stdout) == pieces
    shown = ran("encode", runs / "free", file).stdout
    assert shown.startswith("12 lines of verse")
    assert "17 tokens, 17 slots; KL" in shown
    assert "of 8 units are active" in shown


@pytest.mark.parametrize(("arm", "how"), [("free", "hamming"), ("gptvae", "spherical")])
def test_texts_between_two(runs: Path, arm: str, how: str) -> None:
    words = ("interpolate", runs / arm, "12 lines", "12 times", "--steps", 3, "--how", how)
    records = json.loads(ran(*words, "--json").stdout)
    assert [record["how"] for record in records] == ["0%", "50%", "100%"]
    assert "--- 50% of the way, seed 0\n12 " in ran(*words).stdout


MISTAKES: dict[str, tuple[tuple[object, ...], str]] = {
    "two origins of codes": (("sample", "free", "--prompt", "1", "--code", 1, "--bits", 0), "choose one"),
    "a stream of two": (("sample", "free", "--prompt", "1", "--samples", 2, "--stream"), "one sample"),
    "no number": (("sample", "free", "--prompt", "1", "--code", "a"), "--code is 'a'"),
    "no slots": (("sample", "free", "--prompt", "1", "--code", 1, "--hold", "a:b"), "--hold is 'a:b'"),
    "no file of codes": (
        ("sample", "free", "--prompt", "1", "--codes", "c.npz"),
        "no file 'c.npz'; codes come from a file that `lvlm encode",
    ),
    "a bit that isn't there": (("sample", "free", "--prompt", "1", "--tokens", 3, "--flip", 8), "no bit 8"),
    "bits of a Gaussian": (("sample", "gptvae", "--prompt", "1", "--bits", "01"), "continuous"),
    "codes without a latent": (
        ("sample", "baseline", "--prompt", "1", "--tokens", 3, "--flip", 1),
        "no latent",
    ),
    "no text": (("encode", "free"), "which text?"),
    "two texts": (("encode", "free", "a.txt", "--text", "a"), "which text?"),
    "a missing file": (("encode", "free", "a.txt"), "no file 'a.txt'"),
    "an empty text": (("encode", "free", "--text", ""), "is empty"),
    "a way that isn't there": (
        ("interpolate", "free", "a", "b", "--how", "hammin"),
        "did you mean 'hamming'",
    ),
    "no slots at all": (("sample", "free", "--prompt", "1", "--code", 1, "--hold", "2:0"), "--hold is '2:0'"),
    "a seed below 0": (("encode", "free", "--text", "a", "--seed", -3), "seed is -3"),
    "a file without a name": (("encode", "free", "--text", "a", "--out", ""), "--out is empty"),
    "a file that is there": (
        ("encode", "free", "--text", "a", "--out", "there.npz"),
        "there.npz: is there already",
    ),
    "no tokens between": (("interpolate", "free", "a", "b", "--tokens", 0), "tokens is 0"),
    "a number beyond all": (("sample", "free", "--prompt", "1", "--code", 10**30), "index from 0 to 255"),
    "a device that isn't there": (("encode", "free", "--text", "a", "--device", "tpu"), "device 'tpu'"),
    "one step": (("interpolate", "free", "a", "b", "--steps", 1), "steps is 1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_words(runs: Path, mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    words, told = MISTAKES[mistake]
    (runs / "there.npz").touch()
    found = ran(*words, status=2)
    assert found.stdout == ""
    assert found.stderr.startswith("lvlm: ")
    assert told in found.stderr


def test_a_character_of_two_tokens_is_as_dark_as_each_of_them() -> None:
    spans = (Span("a", 0.5, 1, 0), Span("é", 1.0, 2, 1), Span("b", 0.1, 1, 2))
    text, legend, *_ = reading_tables(
        Reading(spans, windows=1, tokens=4, slots=4, kl_nats=1.6, kl_nats_per_slot=(0.4,))
    )
    (_, _, one), (_, _, two), (_, _, light) = text.spans  # type: ignore[union-attr]
    assert one == two != light
    assert "0.417+" in str(legend)  # five sixths of half a nat
