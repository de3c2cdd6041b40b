"""The data sources: pure batches, fixed windows, disjoint splits, errors in words."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lvlm.data import Source, StreamSource, TextData, TokenSource
from lvlm.data.codecs import ByteCodec
from lvlm.data.corpus import File, split_by_file, split_by_position, split_files
from lvlm.data.python import PythonData
from lvlm.data.source import uniforms
from lvlm.errors import UserError
from lvlm.recipe.read import read_recipe
from lvlm.registry.registry import Registry
from lvlm.testing import check_data
from tests.every_data import KINDS, VARIANTS, made

SEED = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_data_keeps_its_promises(name: str) -> None:
    check_data(made().variant(name))


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_reads_every_kind(kind: str, registry: Registry) -> None:
    params = made().example(kind)
    said = {"extends": "baseline", "data": params.model_dump(mode="json")}
    assert read_recipe(said, registry=registry).recipe.data == params


def test_nobody_knows_the_likelihood_of_real_text() -> None:
    sources = [made().variant(name).open() for name in VARIANTS]
    real = [source for source in sources if isinstance(source, TokenSource | StreamSource)]
    assert {source.params.kind_name() for source in real} >= {"python", "text", "bins", "huggingface"}
    assert [source.oracle_nll_nats(source.windows(4).batch) for source in real] == [None] * len(real)


@pytest.mark.parametrize(
    "wrong", [{"path": ""}, {"path": []}, {"path": "x", "window": 1}, {"path": "x", "by": 1}]
)
def test_wrong_params(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TextData(**wrong)


@given(seed=SEED, step=SEED, rows=st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_uniforms_are_a_prefix_and_splits_apart(seed: int, step: int, rows: int) -> None:
    full = uniforms((6, 3), "train", seed=seed, step=step)
    assert (uniforms((rows, 3), "train", seed=seed, step=step) == full[:rows]).all()
    assert ((full >= 0) & (full < 1)).all()
    held_out = [uniforms((6, 3), split, seed=seed, step=step) for split in ("validation", "test")]
    assert not set(full.ravel()) & set(np.ravel(held_out))


# --------------------------------------------------------------------------------------------------- splits


def marked(number: int, lines: int = 40) -> File:
    """A file whose every byte but line breaks is its own number."""
    return File(f"{number:03}.txt", (bytes([number + 128]) * 24 + b"\n") * lines)


def test_no_file_stands_in_two_splits() -> None:
    splits = split_files([marked(number) for number in range(100)])
    assert splits.rule == "file"
    parts = [set(part) - {10} for part in splits[:3]]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts)) == 100


def test_a_split_by_file_ignores_the_other_files() -> None:
    files = [marked(number) for number in range(100)]
    some = split_by_file(files[10:60])
    for whole, part in zip(split_by_file(files)[:3], some[:3], strict=True):
        assert set(part) <= set(whole)


def test_few_files_are_split_by_position() -> None:
    files = [marked(number) for number in range(5)]
    splits = split_files(files)
    assert splits.rule == "position"
    assert b"".join(splits[:3]) == b"".join(file.content for file in files)


@given(sizes=st.lists(st.integers(0, 400), min_size=1, max_size=60))
@settings(max_examples=50, deadline=None)
def test_splits_lose_nothing(sizes: list[int]) -> None:
    files = [File(f"{i}.txt", b"x" * size) for i, size in enumerate(sizes)]
    for split in (split_files, split_by_file, split_by_position):
        assert sum(part.count(b"x") for part in split(files)[:3]) == sum(sizes)


def folder_of(files: list[File], folder: Path) -> Path:
    for file in files:
        (folder / file.name).write_bytes(file.content)
    return folder


def test_training_never_sees_held_out_files(tmp_path: Path) -> None:
    source = TextData(path=str(folder_of([marked(n) for n in range(100)], tmp_path)), window=8).open()
    seen = [
        set(source.train_batch(seed=0, step=step, rows=64).targets_BT.flatten().tolist())
        for step in range(40)
    ]
    held = [set(source.windows(n, split).batch.inputs_BT.flatten().tolist()) for n, split in _most(source)]
    train = set.union(*seen) - {10}
    assert len(train) > 80
    assert not train & held[0]
    assert not train & held[1]
    assert not held[0] & held[1] - {10}


def _most(source: Source) -> Iterator[tuple[int, Any]]:
    """How many windows each held-out split holds, from the error's own words."""
    for split in ("validation", "test"):
        with pytest.raises(UserError, match="ask for at most") as error:
            source.windows(10**9, split)
        yield int(str(error.value).split("ask for at most ")[1].split(",")[0]), split


def test_windows_are_disjoint_and_spread(tmp_path: Path) -> None:
    text = tmp_path / "numbers.txt"
    text.write_text(
        "".join(f"{i:07}\n" for i in range(20_000))
    )  # each line is 8 bytes and says where it stands
    source = TextData(path=str(text), window=31).open()
    (count, _), _ = _most(source)
    assert count == 250  # 8000 bytes in windows of 31 + 1
    codec = ByteCodec()
    rows = [codec.decode(row)[:7] for row in source.windows(count).batch.inputs_BT.tolist()]
    assert sorted(int(row) for row in rows) == list(range(18_000, 19_000, 4))
    for few in (4, 8, 32):
        places = sorted(int(row) - 18_000 for row in rows[:few])
        assert max(b - a for a, b in pairwise([0, *places, 1000])) < 3 * 1000 / few


# ------------------------------------------------------------------------------------------------ the codec


@given(st.text())
@settings(max_examples=50, deadline=None)
def test_bytes_round_trip(text: str) -> None:
    codec = ByteCodec()
    try:
        assert codec.decode(codec.encode(text)) == text
    except UserError:
        assert any("\ud800" <= character <= "\udfff" for character in text)


def test_bytes_that_are_no_text() -> None:
    assert ByteCodec().decode([0xFF, 65]) == "\ufffdA"
    with pytest.raises(UserError, match=r"'\\udc80' at position 2"):
        ByteCodec().encode("ab\udc80")


# ------------------------------------------------------------------------------------------- reading of text

LINE = "the quick brown fox jumps over the lazy dog\n"


def content_of(source: Source) -> bytes:
    return b"".join(part.tobytes() for part in source._tokens.values())  # type: ignore[attr-defined]


def test_every_format_reads_the_same(tmp_path: Path) -> None:
    plain = (LINE * 50).encode()
    rows = b"".join(json.dumps({"id": i, "text": LINE[:-1]}).encode() + b"\n\n" for i in range(50))
    written = {
        "a.txt": plain,
        "a.txt.gz": gzip.compress(plain),
        "a.gz": gzip.compress(plain),
        "a.jsonl": rows,
        "a.jsonl.gz": gzip.compress(rows),
        "a.md": plain,
        "noname": plain,
    }
    for name, content in written.items():
        (tmp_path / name).write_bytes(content)
    sources = [TextData(path=str(tmp_path / name), window=8).open() for name in written]
    assert {content_of(source) for source in sources} == {plain}
    assert len({source.fingerprint for source in sources}) == 1


def test_folders_are_read_recursively_in_order(tmp_path: Path) -> None:
    for name in ("b/z.txt", "b/.hidden.txt", ".git/c.txt", "a.txt", "c.py", "b/a.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"body": name}) if name.endswith("jsonl") else name * 200)
    source = TextData(path=str(tmp_path), field="body", window=2).open()
    assert content_of(source).decode() == "a.txt" * 200 + "\nb/a.jsonl\n" + "b/z.txt" * 200 + "\n"


def test_several_paths_and_none_twice(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(LINE * 20)
    (tmp_path / "b.md").write_text(LINE.upper() * 20)
    paths = [str(tmp_path / "b.md"), str(tmp_path), str(tmp_path / "a.txt")]
    assert content_of(TextData(path=paths, window=4).open()).decode() == LINE.upper() * 20 + LINE * 20


def test_prompt_is_words_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(LINE * 200)
    prompt = TextData(path=str(tmp_path), window=64).open().sample_prompt()
    assert prompt in (LINE * 3).replace("\n", " ")
    assert len(prompt.split()) == 4


def test_the_content_is_in_the_fingerprint(tmp_path: Path) -> None:
    prints = set()
    for text in (LINE * 100, LINE * 101, LINE * 99 + LINE.upper()):
        (tmp_path / "a.txt").write_text(text)
        prints |= {TextData(path=str(tmp_path), window=window).open().fingerprint for window in (4, 8)}
    assert len(prints) == 3


def bad_gzip(folder: Path) -> None:
    (folder / "x.txt.gz").write_bytes(gzip.compress(LINE.encode() * 99)[:-12])


def writes(**contents: str) -> Callable[[Path], None]:
    """Writes files; '__' in a name is a dot."""

    def write(folder: Path) -> None:
        for name, content in contents.items():
            (folder / name.replace("__", ".")).write_text(content)

    return write


@pytest.mark.parametrize(
    ("write", "path", "message"),
    [
        (
            writes(corpus__txt=LINE),
            "corpsu.txt",
            r"no file or folder .*holds no 'corpsu.txt'; did you mean 'corpus.txt'\?",
        ),
        (writes(corpus__txt=LINE), "nowhere/at/all.txt", r"the folder '.*' holds no 'nowhere'$"),
        (writes(corpus__txt=LINE), "corpus.txt/a", r"corpus.txt' is no folder"),
        (writes(a__md=LINE), "", r"holds no file that ends in .txt, .jsonl, .*; it holds 1 file \(a.md\)"),
        (writes(a__txt="", b__txt=""), "", r"no text in "),
        (
            writes(a__txt=LINE),
            "a.txt",
            r"there are 44 bytes, 2 of them in the validation split, .* window of 8 tokens needs 9 bytes in each split, about 180 in all; add text$",
        ),
        (writes(a__txt=LINE * 3), "a.txt", r"or set data.window to at most 5$"),
        (
            writes(a__jsonl='{"text": "a"}\n\n{"text": '),
            "",
            r"a.jsonl:3: not JSON: Expecting value \(column 10\)",
        ),
        (writes(a__jsonl="9" * 5000), "", r"a.jsonl:1: not JSON: "),
        (
            writes(a__jsonl='["a"]'),
            "",
            r"""a.jsonl:1: expected an object with a field 'text', found \["a"\]""",
        ),
        (
            writes(a__jsonl='{"id": 1, "txt": "a"}'),
            "",
            r"a.jsonl:1: no field 'text'; known fields: id, txt; did you mean 'txt'\?",
        ),
        (writes(a__jsonl='{"text": 5}'), "", r"a.jsonl:1: the field 'text' should be a string, but it is 5"),
        (writes(a__gz="not gzip"), "", r"a.gz' is not a whole gzip file: Not a gzipped file"),
        (bad_gzip, "", r"x.txt.gz' is not a whole gzip file: "),
        (writes(), "n" * 5000, r"File name too long|holds no 'nnn"),
    ],
)
def test_errors_in_words(tmp_path: Path, write: Callable[[Path], None], path: str, message: str) -> None:
    write(tmp_path)
    with pytest.raises(UserError, match=message):
        TextData(path=str(tmp_path / path), window=8).open()


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    (tmp_path / "a.txt").write_text(LINE)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"cannot read '.*a.txt': Permission denied"):
        TextData(path=str(tmp_path / "a.txt")).open()


@pytest.mark.parametrize("split", ["validation", "test"])
def test_too_many_windows(tmp_path: Path, split: Any) -> None:
    (tmp_path / "a.txt").write_text(LINE * 100)  # 4400 bytes, 220 in each held-out split
    source = TextData(path=str(tmp_path), window=9).open()
    assert len(source.windows(22, split).batch) == 22
    with pytest.raises(
        UserError, match=f"23 {split} windows of 9 tokens .* the {split} split holds 22; ask for"
    ):
        source.windows(23, split)


# ------------------------------------------------------------------------------------------------ Python's
# own


def test_python_is_bytes_of_the_library() -> None:
    source = PythonData().open()
    content = content_of(source)
    assert 4e6 < len(content) <= 8.1e6
    assert content.count(b"def ") > 5_000
    assert b'The "for" statement' in content  # the documentation
    assert content.count(b"import unittest\n") < 20  # no tests
    assert source.sample_prompt() == "def "


def test_python_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(UserError, match=r"no library sources under .*; use kind: text"):
        PythonData().open()


def test_too_little_of_python() -> None:
    with pytest.raises(UserError, match="one window of 4096 tokens needs 4097 bytes in each split"):
        PythonData(max_megabytes=0.01, window=4096).open()
