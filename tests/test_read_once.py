"""What is verified is what is read: files that are exchanged after they were compared with their sha256."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lvlm
from lvlm.data import BinsData
from lvlm.data.bins_files import sha256_of
from lvlm.data.codecs import TokenizerCodec
from lvlm.errors import UserError
from lvlm.recipe.read import read_recipe
from lvlm.runs.folder import write_run
from lvlm.runs.opened import open_run
from lvlm.runs.read import read_run
from tests.every_data import made
from tests.tiny import edit_json, tiny, write_text

KINDS = ("text, tokens, epochs", "dataset, tokens", "bins, tokens", "mixture, tokens")


def run_of(data: dict[str, Any], folder: Path) -> Path:
    """A run that was never trained."""
    recipe = tiny("baseline", made().text)
    write_run(folder, read_recipe({**recipe, "data": data}), {})
    return folder


def exchanged(path: Path, content: bytes) -> None:
    """Another file under the same name, with the same times."""
    times = path.stat()
    other = path.with_name("other")
    other.write_bytes(content)
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(path)


def other_tokenizer(folder: Path) -> bytes:
    return lvlm.train_tokenizer([str(made().text)], folder / "other.json", vocab=300).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_that_is_exchanged_after_it_was_verified_is_not_read(kind: str, tmp_path: Path) -> None:
    run = run_of(made().variant(kind).model_dump(mode="json"), tmp_path / "run")
    opened = read_run(run)
    kept = sorted((run / "files").rglob("tokenizer.json"))
    assert kept, "the run keeps no tokenizer"
    before, other = kept[0].read_bytes(), other_tokenizer(tmp_path)
    for path in kept:
        exchanged(path, other)
    codec = opened.recipe.data.codec
    assert isinstance(codec, TokenizerCodec)
    assert codec.content == before != other
    assert set(opened.recipe.data.files().values()) >= {before}
    with pytest.raises(UserError, match=r"tokenizer.json: was exchanged since the run began"):
        read_run(run)


def test_a_run_reads_its_own_tokenizer_after_the_users_is_gone(tmp_path: Path) -> None:
    folder = shutil.copytree(made().bins, tmp_path / "bins")
    data = BinsData(path=str(folder), window=12)
    run = run_of(data.model_dump(mode="json"), tmp_path / "run")
    name = data.codec.name
    shutil.rmtree(folder)
    assert read_run(run).recipe.data.codec.name == name


def test_an_export_holds_what_was_verified(tmp_path: Path) -> None:
    recipe = tiny("baseline", made().text, data={"tokenizer": str(made().tokenizer)}, train={"steps": 2})
    run = lvlm.train(recipe, tmp_path / "run")
    opened, before = open_run(run), (run / "files" / "tokenizer.json").read_bytes()
    exchanged(run / "files" / "tokenizer.json", other_tokenizer(tmp_path))
    out = lvlm.export(opened, tmp_path / "out", format="safetensors")
    assert (out / "files" / "tokenizer.json").read_bytes() == before
    assert lvlm.load(out).codec is not None


@pytest.mark.parametrize("documents", ["join", "pad"])
def test_bins_that_are_exchanged_after_they_were_verified_are_not_read(
    documents: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(made().bins, tmp_path / "bins")
    source = BinsData.model_validate({"path": str(folder), "window": 12, "documents": documents}).open()
    sent, digest = pickle.dumps(source), source.windows(2).digest
    for name in ("train.bin", "validation.bin", "validation.ends"):
        exchanged(folder / name, bytes((folder / name).stat().st_size))
    assert source.windows(2).digest == digest, "the files that were opened are no longer read"
    with pytest.raises(UserError, match=r"\.bin: was changed while it was in use"):
        pickle.loads(sent).train_batch(seed=0, step=0, rows=2)


def test_another_process_reads_the_bins_that_were_verified(tmp_path: Path) -> None:
    folder = shutil.copytree(made().bins, tmp_path / "bins")
    source = BinsData(path=str(folder), window=12).open()
    assert pickle.loads(pickle.dumps(source)).windows(2).digest == source.windows(2).digest


def rewritten(name: str, change: Callable[[np.ndarray[Any, Any]], None], dtype: str, folder: Path) -> None:
    """A file of other content, with a manifest that agrees."""
    array = np.fromfile(folder / name, dtype=dtype)
    change(array)
    array.tofile(folder / name)
    edit_json(folder / "manifest.json", lambda said: said["sha256"].update({name: sha256_of(folder / name)}))


def first(value: int, array: np.ndarray[Any, Any]) -> None:
    array[0] = value


def written(content: bytes, folder: Path) -> None:
    (folder / "manifest.json").write_bytes(content)


def with_values(folder: Path, **values: Any) -> None:
    edit_json(folder / "manifest.json", lambda said: said.update(values))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            partial(rewritten, "train.bin", partial(first, 65_535), "<u2"),
            "holds the id 65535, beyond the voc",
        ),
        (partial(rewritten, "test.ends", partial(first, -5), "<i8"), "the ends of documents are in no order"),
        (partial(rewritten, "test.ends", partial(first, 10**15), "<i8"), "ends of documents are in no order"),
        (partial(written, b'{"format":' + b"[" * 100_000), "nested more than"),
        (partial(written, b'{"format": ' + b"9" * 10_000 + b"}"), "not a manifest of bins: "),
        (partial(written, b"\xff\xfe"), "it is not UTF-8 text"),
        (partial(written, b" " * (2**26 + 1)), "is larger than 64 MiB"),
        (partial(with_values, held_out=float("nan")), "held_out: Input should be a finite number"),
        (partial(with_values, vocab=2**40), "vocab: Input should be less than"),
        (partial(with_values, end_of_document=10**6), "end_of_document is 1000000, beyond the vocabulary"),
        (partial(with_values, sha256={"train.bin": "x"}), "sha256.train.bin: String should match"),
        (partial(with_values, tokenizer="../tokenizer.json"), "tokenizer: Input should be 'tokenizer.json'"),
    ],
)
def test_a_manifest_of_bins_goes_through_the_door_of_records(
    damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(made().bins, tmp_path / "bins")
    damage(folder)
    with pytest.raises(UserError, match=message):
        BinsData(path=str(folder), window=8).open()
    with pytest.raises(UserError, match=message):
        lvlm.check_data(folder)


@pytest.mark.parametrize("name", ["manifest.json", "train.bin", "tokenizer.json"])
def test_a_pipe_in_place_of_a_file_of_bins_is_refused(name: str, tmp_path: Path) -> None:
    folder = shutil.copytree(made().bins, tmp_path / "bins")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match=name):
        BinsData(path=str(folder), window=8).open()


def test_no_empty_file_is_mapped(tmp_path: Path) -> None:
    rows = write_text(tmp_path)
    folder = lvlm.prepare_data([str(rows)], tmp_path / "bins")
    (folder / "test.ends").write_bytes(b"")
    digest = sha256_of(folder / "test.ends")
    edit_json(folder / "manifest.json", lambda said: said["bytes"].update({"test.ends": 0}))
    edit_json(folder / "manifest.json", lambda said: said["sha256"].update({"test.ends": digest}))
    assert BinsData(path=str(folder), window=8).open().windows(1).digest
