"""Folders of files for `kind: huggingface`: what is left out is said, and nothing is read as something else."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from lvlm.data import HuggingFaceData
from lvlm.data.files import tell_once
from lvlm.errors import UserError

ROWS = "".join(json.dumps({"text": f"line {n} of a text"}) + "\n" for n in range(300)).encode()

pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def said_anew() -> None:
    tell_once.cache_clear()


def folder_of(folder: Path, **files: bytes) -> Path:
    """A folder of files; '__' in a name is the point in front of its ending."""
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


def opened(path: Path, **options: object) -> object:
    return HuggingFaceData.model_validate({"path": str(path), "window": 8, **options}).open()


@pytest.mark.parametrize("streaming", [False, True])
def test_files_that_are_left_out_are_said_once(
    streaming: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_of(
        tmp_path, a__jsonl=ROWS, b__txt=b"x\n", c__JSONL=ROWS, README__md=b"# card\n", d__csv=b"text\nq\n"
    )
    with caplog.at_level(logging.WARNING, "lvlm"):
        opened(folder, streaming=streaming)
        opened(folder, streaming=streaming)
    (line,) = [record.message for record in caplog.records if record.name.startswith("lvlm")]
    assert "3 files (b.txt, c.JSONL, d.csv) left out" in line
    assert "here .jsonl in small letters" in line


def test_a_folder_that_is_read_whole_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = folder_of(tmp_path, a__jsonl=ROWS, b__jsonl__gz=gzip.compress(ROWS), README__md=b"# card\n")
    opened(folder)
    assert not [record for record in caplog.records if record.name.startswith("lvlm")]


def test_splits_that_are_left_out_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = folder_of(tmp_path, train__jsonl=ROWS, test__jsonl=ROWS, notes__jsonl=ROWS)
    opened(folder)
    told = "\n".join(record.message for record in caplog.records)
    assert "the splits test are left out" in told
    assert "1 file (notes.jsonl) left out" in told
    caplog.clear()
    opened(folder, test="test")
    assert "splits test are" not in caplog.text


@pytest.mark.parametrize(
    ("name", "pack"),
    [("a.jsonl.gz", gzip.compress), ("a.jsonl.xz", lzma.compress), ("a.jsonl.bz2", bz2.compress)],
)
def test_what_is_packed_by_its_name_is_read(
    name: str, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    for packed, folder in ((pack(ROWS), tmp_path / "packed"), (ROWS, tmp_path / "plain")):
        folder.mkdir()
        (folder / (name if packed is not ROWS else "a.jsonl")).write_bytes(packed)
    one, other = (HuggingFaceData(path=str(tmp_path / n), window=8).open() for n in ("packed", "plain"))
    assert one.windows(2).digest == other.windows(2).digest


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.txt",
            gzip.compress(ROWS),
            r"is packed with gzip, which its name doesn't say; name it 'a.txt.gz'",
        ),
        ("a.jsonl", lzma.compress(ROWS), r"is packed with xz, .* name it 'a.jsonl.xz'"),
        ("a.jsonl.gz", bz2.compress(ROWS), r"is packed with bzip2, "),
        ("a.jsonl.gz", ROWS, r"is no gzip file, though its name says so"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfdabc", r"zstandard isn't read; unpack it"),
        ("a.jsonl", b"\x28\xb5\x2f\xfdabc", r"zstandard isn't read; unpack it"),
        (
            "a.JSONL",
            ROWS,
            r"holds no file that `datasets` reads, but 1 file \(a.JSONL\); .* in small letters",
        ),
        ("a.unknown", ROWS, r"holds no file that `datasets` reads, but 1 file \(a.unknown\)"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_what_would_be_read_as_something_else_is_refused(
    streaming: bool, name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        opened(tmp_path, streaming=streaming)


def test_a_single_file_is_looked_at_too(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(ROWS))
    with pytest.raises(UserError, match="is packed with gzip"):
        opened(tmp_path / "a.jsonl")
    (tmp_path / "B.JSONL").write_bytes(ROWS)
    assert opened(tmp_path / "B.JSONL")


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no data files"):
        opened(tmp_path)
