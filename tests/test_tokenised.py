"""Tokenizers, bins and Hugging Face datasets: the same tokens from each, a run that keeps its own, errors in
words.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import lvlm
from lvlm.data import BinsData, DataParams, HuggingFaceData, TextData, open_reader
from lvlm.data.bins_files import Manifest
from lvlm.data.codecs import ByteCodec, TokenizerCodec, open_codec
from lvlm.data.documents import SPLITS, drawn_split
from lvlm.data.mixture import MixtureData
from lvlm.data.rows import pieces, shuffled
from lvlm.errors import MissingLibrary, UserError
from lvlm.interfaces import IGNORE
from lvlm.recipe.read import read_recipe
from tests.every_data import WINDOW, documents, made, write_rows
from tests.tiny import edit_json, tiny, write_text

DRAWN = ("validation", "test")


def codec() -> TokenizerCodec:
    found = open_codec(made().tokenizer)
    assert isinstance(found, TokenizerCodec)
    return found


def tokens_in(source: Any) -> dict[str, list[int]]:
    return {split: np.asarray(source._tokens[split][:]).tolist() for split in SPLITS}


# ------------------------------------------------------------------------------------------------- tokenizers


def test_a_trained_tokenizer_reads_and_writes_any_text() -> None:
    assert codec().vocab == 300
    for text in ("", "the quick brown fox", "naïve  \n\t𝄞", "12: fox<|endoftext|>"):
        assert codec().decode(codec().encode(text)) == text
    assert len(codec().encode("the quick brown fox jumps")) < 15
    assert codec().encode("<|endoftext|>") == [codec().end] == [codec().id_of("<|endoftext|>")]
    with pytest.raises(UserError, match=r"no token '<|endoftxt|>'; did you mean '<|endoftext|>'\?"):
        codec().id_of("<|endoftxt|>")


def test_the_same_text_gives_the_same_tokenizer(tmp_path: Path) -> None:
    again = lvlm.train_tokenizer([str(made().rows)], tmp_path / "again.json", vocab=300)
    assert again.read_bytes() == made().tokenizer.read_bytes()


def test_a_tokenizer_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("mine")
    with pytest.raises(UserError, match=r"is there already; .* --overwrite"):
        lvlm.train_tokenizer([str(made().rows)], path, vocab=300)
    assert path.read_text() == "mine"
    lvlm.train_tokenizer([str(made().rows)], path, vocab=260, overwrite=True)
    assert open_codec(path).vocab == 260


@pytest.mark.parametrize(
    ("name", "vocab", "message"),
    [
        ("a.json", 256, r"vocab is 256; it is at least 257"),
        ("a.json", 10**23, r"vocab is 10{23}; it is a whole number of at most 64 bits"),
        ("a" * 300, 300, r"a{300}': File name too long"),
        ("", 300, r": is a folder; name a file"),
    ],
)
def test_what_is_no_tokenizer(tmp_path: Path, name: str, vocab: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        lvlm.train_tokenizer([str(made().rows)], tmp_path / name, vocab=vocab)
    assert not list(tmp_path.iterdir())


def test_a_text_that_gives_less_than_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a latent\xff\n" * 4 + b"\xfe\xfd\n")
    screen = io.StringIO()
    file = lvlm.train_tokenizer(
        [str(tmp_path / "a.txt")],
        tmp_path / "t.json",
        vocab=2**32,
        console=Console(file=screen, width=200),
    )
    reached = open_codec(file).vocab
    assert 257 < reached < 300
    assert f"the text gave {reached} ids, not 4294967296" in screen.getvalue()
    assert "6 of 43 bytes of the input are no UTF-8 and were read as U+FFFD" in screen.getvalue()
    screen.truncate(0)
    lvlm.train_tokenizer([str(made().rows)], tmp_path / "whole.json", vocab=300, console=Console(file=screen))
    assert "ids" not in screen.getvalue()


def test_text_in_tokens(tmp_path: Path) -> None:
    text = "".join(f"{line}\n" for line in documents(4000))  # some blocks of 64 KiB
    (tmp_path / "a.txt").write_text(text)
    source = TextData(path=str(tmp_path), window=8, tokenizer=str(made().tokenizer)).open()
    parts = {split: codec().decode(ids) for split, ids in tokens_in(source).items()}
    assert "".join(parts.values()) == text
    assert source.bytes_per_token == len(parts["test"]) / len(tokens_in(source)["test"])
    assert source.bytes_per_token > 2
    as_bytes = TextData(path=str(tmp_path), window=8).open()
    assert source.fingerprint != as_bytes.fingerprint
    assert as_bytes.bytes_per_token == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "tokeniser.json",
            None,
            r"cannot be read: no file .*did you mean 'tokenizer.json'\?; `lvlm tokenizer train` makes one",
        ),
        ("bad.json", "{}", r"bad.json: not a tokenizer.json: "),
        ("bad.json", b"\xff", r"bad.json: not a tokenizer.json: "),
    ],
)
def test_bad_tokenizers(tmp_path: Path, name: str, content: Any, message: str) -> None:
    shutil.copy(made().tokenizer, tmp_path / "tokenizer.json")
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    data = {"kind": "text", "path": "a.txt", "tokenizer": str(tmp_path / name), "window": 8}
    with pytest.raises(UserError, match=r"data.tokenizer: .*" + message):
        read_recipe({"extends": "baseline", "data": data})


@pytest.mark.parametrize("library", ["tokenizers", "datasets"])
def test_a_missing_library_says_with_which_extra_it_comes(
    monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    rows = str(made().rows)  # made with the library, before it goes
    monkeypatch.setitem(sys.modules, library, None)
    if library == "datasets":
        monkeypatch.setitem(sys.modules, "datasets.distributed", None)
    uses: dict[str, Callable[[], object]] = {
        "datasets": HuggingFaceData(path=rows).open,
        "tokenizers": lambda: lvlm.train_tokenizer([rows], made().folder / "new.json"),
    }
    with pytest.raises(
        MissingLibrary, match=rf"{library} isn't installed: .*pip install -e '\.\[{library}\]'"
    ):
        uses[library]()


# --------------------------------------------------------------------------------------------------------
# rows


def test_every_token_but_a_first_is_a_target_once() -> None:
    ends = np.array([1, 5, 14, 15, 40])
    rows = pieces(ends, 4).tolist()
    targets = [place for start, length in rows for place in range(start + 1, start + length)]
    assert targets == sorted(set(range(40)) - {0, 1, 5, 14, 15})
    assert all(2 <= length <= 5 for _, length in rows)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 65, 1000])
def test_an_order_of_an_epoch_is_a_permutation(count: int) -> None:
    for epoch in (0, 1, 5):
        order = shuffled(np.arange(epoch * count, (epoch + 1) * count), count, seed=3)
        assert sorted(order.tolist()) == list(range(count))
    if count >= 64:
        other = shuffled(np.arange(count), count, seed=4)
        assert (shuffled(np.arange(count), count, seed=3) != other).any()
        assert abs(np.corrcoef(np.arange(count), other)[0, 1]) < 0.4


# --------------------------------------------------------------------------------------------------------
# bins


def expected(texts: list[str]) -> dict[str, list[int]]:
    """Documents by the hash of their text, each with its end."""
    out: dict[str, list[int]] = {split: [] for split in SPLITS}
    for text in texts:
        ids = out[drawn_split(text.encode(), DRAWN, 0.05)]
        ids += [*codec().encode(text), codec().end or 0]
    return out


def test_bins_are_the_text_tokenised_in_memory() -> None:
    wanted = expected(documents())
    source = BinsData(path=str(made().bins), window=WINDOW).open()
    assert tokens_in(source) == wanted
    dataset = HuggingFaceData(path=str(made().rows), window=WINDOW, tokenizer=str(made().tokenizer)).open()
    assert tokens_in(dataset) == wanted
    held = [text for text in documents() if drawn_split(text.encode(), DRAWN, 0.05) == "test"]
    assert source.bytes_per_token == sum(map(len, held)) / len(wanted["test"])
    assert dataset.bytes_per_token == source.bytes_per_token
    for split in DRAWN:
        assert torch.equal(
            source.windows(9, split).batch.inputs_BT, dataset.windows(9, split).batch.inputs_BT
        )
    manifest = json.loads((made().bins / "manifest.json").read_text())
    assert sum(split["documents"] for split in manifest["splits"].values()) == len(documents())
    assert manifest["dtype"] == "<u2"
    lvlm.check_data(made().bins)


def test_bins_of_bytes_are_the_text(tmp_path: Path) -> None:
    text = write_text(tmp_path)
    lvlm.prepare_data([str(text)], tmp_path / "bins")
    bins, whole = (
        BinsData(path=str(tmp_path / "bins"), window=8).open(),
        TextData(path=str(text), window=8).open(),
    )
    assert tokens_in(bins) == tokens_in(whole)
    assert bins.bytes_per_token == 1
    for split in DRAWN:
        assert bins.windows(5, split).digest == whole.windows(5, split).digest  # type: ignore[arg-type]


def test_the_same_rows_as_text_and_as_bins_are_held_out_differently(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for number, text in enumerate(documents(400)):
        (folder / f"{number}.txt").write_text(text + "\n")
    lvlm.prepare_data([str(folder)], tmp_path / "bins")
    lvlm.prepare_data([str(made().rows)], tmp_path / "row-bins")
    for read, prepared in ((folder, "bins"), (made().rows, "row-bins")):
        as_text = TextData(path=str(read), window=8).open()
        as_bins = BinsData(path=str(tmp_path / prepared), window=8).open()
        assert as_text.fingerprint != as_bins.fingerprint
        # by the digest of these a report refuses to compare
        assert as_text.windows(5, "test").digest != as_bins.windows(5, "test").digest


def test_a_document_is_never_joined_with_another_when_padded() -> None:
    texts = set(documents())
    for params in (
        BinsData(path=str(made().bins), window=64, documents="pad"),
        HuggingFaceData(path=str(made().rows), window=200, documents="pad"),
        HuggingFaceData(path=str(made().rows), window=200, documents="pad", streaming=True),
    ):
        batch = params.open().windows(12).batch
        lengths = batch.keep_BT.sum(1)
        assert lengths.min() < lengths.max() < params.tokens
        for inputs_T, targets_T, keep_T in zip(batch.inputs_BT, batch.targets_BT, batch.keep_BT, strict=True):
            text = params.codec.decode(inputs_T[keep_T].tolist())
            assert text in texts or f"{text}" in {one[: len(text)] for one in texts}
            assert (targets_T[~keep_T] == IGNORE).all()
            assert (inputs_T[~keep_T] == 0).all()
            assert (targets_T[keep_T][:-1] == inputs_T[keep_T][1:]).all()


def test_inputs_of_every_form_give_the_same_bins(tmp_path: Path) -> None:
    import datasets

    rows = [{"text": text} for text in documents(200)]
    content = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jsonl").write_text(content)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(content.encode(), mtime=0))
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    found = set()
    for number, name in enumerate(("folder", "b.jsonl.gz", "saved")):
        out = lvlm.prepare_data(
            [str(tmp_path / name)], tmp_path / f"bins{number}", tokenizer=str(made().tokenizer)
        )
        found.add(BinsData(path=str(out), window=8).open().fingerprint)
    assert len(found) == 1


def test_splits_that_a_dataset_has_are_kept(tmp_path: Path) -> None:
    import datasets

    texts = {"train": documents(120), "test": [f"held {n}" for n in range(30)]}
    parts = {name: datasets.Dataset.from_list([{"text": t} for t in of]) for name, of in texts.items()}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    lvlm.prepare_data([str(tmp_path / "saved")], tmp_path / "bins")
    options: dict[str, Any] = {"path": str(tmp_path / "saved"), "window": 4, "test": "test"}
    held = "".join(f"{text}\n" for text in texts["test"])
    for params in (BinsData(path=str(tmp_path / "bins"), window=4), HuggingFaceData(**options)):
        tokens = {split: bytes(ids).decode() for split, ids in tokens_in(params.open()).items()}
        assert tokens["test"] == held
        assert "held" not in tokens["train"] + tokens["validation"]
        assert len(tokens["validation"]) > 100
    streamed = HuggingFaceData(**options, streaming=True).open()
    assert bytes(streamed.windows(1, "test").batch.inputs_BT[0].tolist()).decode() == "held"


def test_the_end_of_a_document_can_be_said(tmp_path: Path) -> None:
    values = json.loads(made().tokenizer.read_text())
    values["added_tokens"][0]["content"] = "<stop>"
    values["model"]["vocab"] = {
        "<stop>" if token == "<|endoftext|>" else token: i for token, i in values["model"]["vocab"].items()
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"none of the known ends of a document \(.*</s>.*\); say which"):
        lvlm.prepare_data([str(made().rows)], tmp_path / "bins", tokenizer=str(tmp_path))
    with pytest.raises(UserError, match=r"no token '<stp>'; did you mean '<stop>'\?"):
        lvlm.prepare_data(
            [str(made().rows)], tmp_path / "bins", tokenizer=str(tmp_path), end_of_document="<stp>"
        )
    assert not list(tmp_path.glob("*bins*"))
    lvlm.prepare_data(
        [str(made().rows)], tmp_path / "bins", tokenizer=str(tmp_path), end_of_document="<stop>"
    )
    assert tokens_in(BinsData(path=str(tmp_path / "bins"), window=8).open())["test"][-1] == 0
    with pytest.raises(UserError, match=r"bytes end a document with a line break"):
        lvlm.prepare_data([str(made().rows)], tmp_path / "more", end_of_document="<stop>")


def cut_off(folder: Path) -> None:
    path = folder / "train.bin"
    path.write_bytes(path.read_bytes()[:-2])


def change_a_byte(folder: Path) -> None:
    path = folder / "test.bin"
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)


def without(key: str, folder: Path) -> None:
    edit_json(folder / "manifest.json", lambda manifest: manifest.pop(key))


def exchange_the_tokenizer(folder: Path) -> None:
    lvlm.train_tokenizer([str(made().text)], folder / "tokenizer.json", vocab=300, overwrite=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_off, r"train.bin: has \d+ bytes, but \d+ were written; it is cut off or changed"),
        (change_a_byte, r"test.bin: is not what was written \(sha256 "),
        (
            exchange_the_tokenizer,
            r"tokenizer.json: is tokenizer \w+, but the bins were made with tokenizer \w+",
        ),
        (lambda f: (f / "tokenizer.json").unlink(), r"tokenizer.json': cannot be read"),
        (lambda f: (f / "train.ends").unlink(), r"train.ends: is missing; prepare the bins again"),
        (lambda f: (f / "manifest.json").unlink(), r"holds no manifest.json; `lvlm data prepare` writes it"),
        (lambda f: (f / "manifest.json").write_text("{"), r"manifest.json: not a manifest of bins: "),
        (
            lambda f: edit_json(f / "manifest.json", lambda m: m.update(format="2")),
            r"its format is '2', not 'lvlm bins 1'",
        ),
        (lambda f: (f / "manifest.json").write_text("[]"), r"manifest.json: not a manifest of bins: "),
        (lambda f: (f / "manifest.json").write_bytes(b"\xff"), r"manifest.json: not a manifest of bins: "),
        (lambda f: edit_json(f / "manifest.json", dict.clear), r"its format is None, not 'lvlm bins 1'"),
        *(
            (partial(without, key), rf"manifest.json: not a manifest of bins: {key}: Field required$")
            for key in Manifest.model_fields
            if key not in ("format", "not_given_back")  # older bins lack the latter
        ),
        (
            lambda f: edit_json(f / "manifest.json", lambda m: m["splits"]["test"].pop("tokens")),
            r"splits.test.tokens: Field required$",
        ),
        (
            lambda f: edit_json(f / "manifest.json", lambda m: m["splits"].pop("train")),
            r"splits.train: Field required$",
        ),
        (
            lambda f: edit_json(f / "manifest.json", lambda m: m["sha256"].pop("test.bin")),
            r"sha256 is not of the files test.bin, test.ends, ",
        ),
        (
            lambda f: edit_json(f / "manifest.json", lambda m: m.update(dtype="<u4")),
            r"train.bin has another size than its \d+ tokens of <u4",
        ),
        (
            lambda f: edit_json(f / "manifest.json", lambda m: m.update(dtype="<f8", more=1)),
            r"dtype: Input should be '<u2' or '<u4'; more: Extra inputs are not permitted",
        ),
        (
            lambda f: edit_json(f / "manifest.json", lambda m: m.update(vocab="many")),
            r"vocab: Input should be a valid integer",
        ),
        (
            lambda f: edit_json(f / "manifest.json", lambda m: m.update(vocab=299)),
            r"a vocabulary of 299 ids, but the tokenizer has 300",
        ),
        (
            lambda f: edit_json(f / "manifest.json", lambda m: m["splits"]["test"].update(largest_id=300)),
            r"test.bin holds the id 300, beyond the vocabulary of 300",
        ),
        (
            lambda f: shutil.rmtree(f),
            r"no file or folder '.*bins': the folder '.*' holds no 'bins'; `lvlm data prepare` makes one",
        ),
    ],
)
def test_damaged_bins(tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    folder = tmp_path / "bins"
    shutil.copytree(made().bins, folder)
    damage(folder)
    params = BinsData(path=str(folder), window=8)
    with pytest.raises(UserError, match=message) as told:
        params.open()
    if "manifest of bins" in str(told.value):  # seen without reading any data
        assert [fault for _, fault in params.faults()] == [str(told.value)]
    with pytest.raises(UserError, match=message.replace("no file or folder", ".*")):
        lvlm.check_data(folder)


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.txt", None, {}, r"input: no file or folder .*a.txt"),
        ("a.txt", "", {}, r"input: there is no text to train on"),
        ("a.txt", "ab", {}, r"input: the validation split has 0 tokens; there is too little text"),
        (
            "a.jsonl",
            '{"txt": "a"}',
            {},
            r"a.jsonl:1: no field 'text'; known fields: txt; did you mean 'txt'\?",
        ),
        ("a.jsonl", '{"text": "a"}\n{"text"', {}, r"a.jsonl:2: not JSON"),
        ("a.gz", "no gzip", {}, r"a.gz' is not a whole gzip file"),
        ("state.json", "{}", {}, r"not a dataset that can be read: "),
        ("a.txt", "a" * 99, {"held_out": 0.3}, r"held_out is 0.3; it is above 0 and at most 0.25"),
        ("a.txt", "a" * 99, {"out": ""}, r"is there already; name a new folder"),
    ],
)
def test_what_cannot_be_prepared(
    tmp_path: Path, name: str, content: str | None, options: dict[str, Any], message: str
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    if content is not None:
        (given / name).write_text(content)
    path = given if name == "state.json" else given / name
    options = dict(options)
    out = tmp_path / options.pop("out", "bins")
    with pytest.raises(UserError, match=message):
        lvlm.prepare_data([str(path)], out, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["given"]


def test_bins_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lvlm.data.bins_writer.Writer.add", stop)
        with pytest.raises(KeyboardInterrupt):
            lvlm.prepare_data([str(made().rows)], tmp_path / "bins")
    assert not list(tmp_path.iterdir())
    lvlm.prepare_data([str(made().rows)], tmp_path / "bins")


def test_input_is_read_a_piece_at_a_time(tmp_path: Path) -> None:
    import tracemalloc

    line = "all work and no play makes a dull corpus of many lines\n"
    (tmp_path / "long.txt").write_text(line * 500_000)  # 27 MB
    tracemalloc.start()
    try:
        lvlm.prepare_data([str(tmp_path / "long.txt")], tmp_path / "bins")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 12e6
    assert (tmp_path / "bins" / "train.bin").stat().st_size == pytest.approx(
        2 * 0.9 * 500_000 * len(line), rel=1e-4
    )


# ------------------------------------------------------------------------------------------------- Hugging
# Face


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (documents(50), {"field": "txt"}, r"no field 'txt'; known fields: text; did you mean 'text'\?"),
        (documents(50), {"train": "trian"}, r"no split 'trian'; known: train; did you mean 'train'\?"),
        (documents(50), {"test": "tests"}, r"no split 'tests'; known: train"),
        (
            [*documents(50), None],
            {},
            r"split 'train', row 51: the field 'text' should be a string, but it is None",
        ),
        (["", ""], {}, r"there is no text to train on|there is no test document|cannot be read"),
    ],
)
def test_bad_datasets(
    tmp_path: Path, streaming: bool, texts: list[str | None], options: dict[str, Any], message: str
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", texts)
    with pytest.raises(UserError, match=message):
        HuggingFaceData(path=str(path), window=8, streaming=streaming, **options).open().windows(10**6)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", b'{"text": "fine"}\n' * 40 + b'{"text": \n'),
        (
            "rows.jsonl",
            b'{"text": "fine"}\n' * 200_000 + b"no JSON\n",
        ),  # behind what the library looks at first
        ("words.txt", b"fine\n\xff\xfe\n"),
        ("rows.parquet", b"PAR1 and nothing else"),
        ("rows.jsonl.gz", gzip.compress(b'{"text": "fine"}\n' * 40, mtime=0)[:-12]),
    ],
)
def test_a_dataset_that_breaks_while_it_is_read(
    tmp_path: Path, streaming: bool, name: str, content: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    told = rf"^data.path: {path}(, split 'train')?: cannot be read(?: after \d+ rows)?: \S.*$"
    params = HuggingFaceData(path=str(path), window=8, streaming=streaming)
    with pytest.raises(UserError, match=told):
        params.open()


@pytest.mark.parametrize("what", ["file", "folder", "saved"])
@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_read_here_sends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, streaming: bool
) -> None:
    import datasets

    (tmp_path / "rows").mkdir()
    path = write_rows(tmp_path / "rows" / "rows.jsonl", documents(60))
    if what == "folder":
        path = path.parent
    elif what == "saved":
        path = tmp_path / "saved"
        datasets.Dataset.from_list([{"text": text} for text in documents(60)]).save_to_disk(path)
    asked: list[object] = []

    def noted(*where: object, **_: object) -> list[object]:
        asked.append(where)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", noted)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", True)
    source = HuggingFaceData(path=str(path), window=8, streaming=streaming).open()
    source.windows(2)
    reader = open_reader(source, seed=0, rows=2)
    reader.batch(0)
    reader.close()
    assert asked == []
    assert datasets.config.HF_UPDATE_DOWNLOAD_COUNTS


def test_a_stream_whose_files_changed_is_another(tmp_path: Path) -> None:
    def name(texts: list[str]) -> str:
        path = write_rows(tmp_path / "rows.jsonl", texts)
        return HuggingFaceData(path=str(path), window=8, streaming=True).open().fingerprint

    texts = documents(60)
    assert name(texts) == name(texts)
    assert name([*texts, "one more"]) != name(texts)


def test_a_saved_dataset_that_breaks_while_it_is_read(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list([{"text": text} for text in documents(50)]).save_to_disk(tmp_path / "saved")
    arrow = next((tmp_path / "saved").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:-800])
    with pytest.raises(UserError, match=r"saved(, split 'train')?: (cannot be read|not a dataset)"):
        lvlm.prepare_data([str(tmp_path / "saved")], tmp_path / "bins")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "nowhere.jsonl"}, r"data.path: no file or folder 'nowhere.jsonl'"),
        ({"path": __file__}, r"a file ends in one of .jsonl, .ndjson, .json, .csv, .parquet, .txt"),
    ],
)
def test_datasets_that_are_not_there(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        HuggingFaceData(**options).open()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"data.path: name either a path or a dataset of the hub"),
        ({"path": "a", "hub": "b/c"}, r"data.path: name either a path or a dataset of the hub"),
        ({"path": "a", "revision": "main"}, r"data.revision: a revision goes with a dataset of the hub"),
        (
            {"path": "a", "streaming": True, "order": "epochs"},
            r"data.order: a stream is read in its own order",
        ),
        (
            {"path": "a", "shuffle_buffer": 10},
            r"data.shuffle_buffer: goes with streaming: true",
        ),
        ({"path": "a", "test": "train"}, r"data.validation: train, validation and test are different splits"),
        (
            {"path": "a", "end_of_document": "<end>"},
            r"data.end_of_document: bytes end a document with a line break",
        ),
    ],
)
def test_options_that_exclude_each_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_recipe({"extends": "baseline", "data": {"kind": "huggingface", "window": 8, **options}})


def test_drawn_documents_are_in_one_split_whatever_reads_them() -> None:
    streamed, whole = made().streamed(documents="pad").open(), made().variant("bins, padded").open()
    for split in DRAWN:
        rows = [source.windows(12, split).batch for source in (streamed, whole)]  # type: ignore[arg-type]
        texts = [
            {made().streamed().codec.decode(row_T[:4].tolist()) for row_T in batch.inputs_BT}
            for batch in rows
        ]
        assert texts[0] & texts[1] or len(texts[0]) < 12


# ------------------------------------------------------------------------------------------- a run keeps its
# own


@pytest.fixture
def own(tmp_path: Path) -> dict[str, DataParams]:
    """Data with a tokenizer that can be taken away."""
    for name in ("tokenizer.json", "rows.jsonl"):
        shutil.copy(made().folder / name, tmp_path / name)
    shutil.copytree(made().bins, tmp_path / "bins")
    text = TextData(path=str(tmp_path / "rows.jsonl"), window=12, tokenizer=str(tmp_path / "tokenizer.json"))
    bins = BinsData(path=str(tmp_path / "bins"), window=12)
    return {"text": text, "bins": bins}


def trained(folder: Path, data: dict[str, Any]) -> tuple[dict[str, Any], Path]:
    recipe = tiny("baseline", made().text, train={"steps": 2, "evaluate_every": 2}) | {"data": data}
    return recipe, lvlm.train(recipe, folder / "run")


@pytest.mark.parametrize("kind", ["text", "bins", "mixture"])
def test_a_run_keeps_its_tokenizer(tmp_path: Path, own: dict[str, DataParams], kind: str) -> None:
    data = {name: params.model_dump() for name, params in own.items()}
    data["mixture"] = {"kind": "mixture", "parts": dict(data)}
    _, run = trained(tmp_path, data[kind])
    said = lvlm.sample(run, "the quick", tokens=5)[0].text
    exported = lvlm.export(run, tmp_path / "exported")
    before = lvlm.evaluate(run)
    (tmp_path / "tokenizer.json").unlink()
    assert lvlm.evaluate(exported)["estimates"] == before["estimates"]
    shutil.rmtree(tmp_path / "bins")
    for folder in (run, exported):
        assert lvlm.sample(folder, "the quick", tokens=5)[0].text == said
        assert lvlm.load(folder).backbone.vocab == 300
    kept = next((exported / "files").rglob("tokenizer.json"))
    kept.write_bytes(kept.read_bytes().replace(b"}", b" }", 1))
    with pytest.raises(UserError, match=r"tokenizer.json: was exchanged since the run began \(sha256 "):
        lvlm.sample(exported, "the quick")
    kept.unlink()
    with pytest.raises(UserError, match=r"tokenizer.json: cannot be read"):
        lvlm.sample(exported, "the quick")


def test_a_tokenizer_exchanged_behind_a_run(tmp_path: Path, own: dict[str, DataParams]) -> None:
    recipe, run = trained(tmp_path, own["text"].model_dump())
    lvlm.train_tokenizer([str(made().text)], tmp_path / "tokenizer.json", vocab=300, overwrite=True)
    with pytest.raises(
        UserError, match=r"can't resume, tokenizer.json is another than the run's .* without naming"
    ):
        lvlm.train(recipe, run, resume=True)
    lvlm.train(None, run, resume=True)  # with the run's own
    assert lvlm.sample(run, "the quick", tokens=3)


def test_a_run_on_bytes_keeps_nothing(tmp_path: Path) -> None:
    run = lvlm.train(tiny("baseline", write_text(tmp_path), train={"steps": 2}), tmp_path / "run")
    assert not (run / "files").exists()
    assert isinstance(TextData(path="a").codec, ByteCodec)


def test_training_on_a_stream_resumes_bit_for_bit(tmp_path: Path) -> None:
    data = made().streamed(window=12).model_dump()
    recipe = tiny("free", made().text, train={"steps": 8, "evaluate_every": 8, "checkpoint_every": 4}) | {
        "data": data
    }
    whole = lvlm.train(recipe, tmp_path / "whole")
    shutil.copytree(whole, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-000008")
    cut = lvlm.train(recipe, tmp_path / "cut", resume=True)
    for name, weight in lvlm.load(whole, step=8).state_dict().items():
        assert torch.equal(weight, lvlm.load(cut, step=8).state_dict()[name]), name


def test_data_say_which_token_ends_a_document() -> None:
    end = made().of_bins().codec.encode("<|endoftext|>")
    for data in (made().of_bins(), made().dataset(), made().streamed()):
        assert [data.document_end] == end
    assert made().of_text().document_end is None
    assert made().dataset(tokenizer=None).document_end == ord("\n")
    other = made().dataset().codec.encode("a")[0]
    assert made().dataset(end_of_document="a").document_end == other
    bins, text = made().of_bins(), made().of_text()
    assert [MixtureData(parts={"one": bins, "other": made().dataset()}).document_end] == end
    assert MixtureData(parts={"one": bins, "other": text}).document_end is None
