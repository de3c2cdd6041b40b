"""Small data of every kind, with the options that change how rows are read; made once for a test module."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import lvlm
from lvlm.data import BinsData, DataParams, HuggingFaceData, MixtureData, TextData
from lvlm.interfaces import Ramp
from lvlm.registry.registry import Registry
from lvlm.testing.corpus import documents, write_corpus, write_rows

__all__ = ["KINDS", "VARIANTS", "WINDOW", "documents", "made", "write_rows"]

WINDOW = 16

KINDS = Registry.load(only=()).kinds["data"]
"""The core's own."""


class Made:
    """A folder with a text, rows, a tokenizer, and bins."""

    def __init__(self, folder: Path) -> None:
        self.folder = write_corpus(folder)
        self.text, self.rows = folder / "text.txt", folder / "rows.jsonl"
        self.of_two = folder / "pairs.jsonl"
        rows = [{"text": text, "latent_text": " ".join(text.split()[2::-1])} for text in documents()]
        self.of_two.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.tokenizer = lvlm.train_tokenizer([str(self.rows)], folder / "tokenizer.json", vocab=300)
        self.bins = lvlm.prepare_data([str(self.rows)], folder / "token-bins", tokenizer=str(self.tokenizer))

    def variant(self, name: str) -> DataParams:
        """The example of a kind, or one of `OPTIONS`."""
        return OPTIONS[name](self) if name in OPTIONS else self.example(name)

    def example(self, kind: str) -> DataParams:
        """That of a kind, which may read the folder."""
        params = KINDS[kind].params
        assert issubclass(params, DataParams)
        return params.example_in(self.folder)

    def of_text(self, **options: object) -> TextData:
        """The text, in tokens."""
        values = {"path": str(self.text), "window": WINDOW, "tokenizer": str(self.tokenizer)}
        return TextData.model_validate(values | options)

    def of_bins(self, **options: object) -> BinsData:
        """The rows' tokens."""
        return BinsData.model_validate({"path": str(self.bins), "window": WINDOW} | options)

    def dataset(self, **options: object) -> HuggingFaceData:
        """The rows, in tokens."""
        values = {"path": str(self.rows), "window": WINDOW, "tokenizer": str(self.tokenizer)}
        return HuggingFaceData.model_validate(values | options)

    def pairs(self, kind: type[TextData] | type[HuggingFaceData], **options: object) -> DataParams:
        """Documents with their first words in another order as another text; some of both are cut."""
        values = {"path": str(self.of_two), "window": 24, "latent_field": "latent_text", "latent_window": 12}
        return kind.model_validate(values | options)

    def streamed(self, **options: object) -> HuggingFaceData:
        """The rows as a stream."""
        return self.dataset(streaming=True, **options)


def _mixture(made: Made) -> MixtureData:
    parts: dict[str, DataParams] = {"text": made.of_text(), "bins": made.of_bins()}
    return MixtureData(parts=parts, weights={"text": Ramp(start=1, end=0.2, steps=50)})


OPTIONS: dict[str, Callable[[Made], DataParams]] = {
    "bins, tokens": lambda made: made.of_bins(),
    "dataset, tokens": lambda made: made.dataset(),
    "mixture, tokens": _mixture,
    "text, tokens, epochs": lambda made: made.of_text(path=str(made.rows), window=8, order="epochs"),
    "bins, padded": lambda made: made.of_bins(documents="pad"),
    "bins, padded, epochs": lambda made: made.of_bins(documents="pad", order="epochs"),
    "bins, epochs": lambda made: made.of_bins(order="epochs"),
    "dataset, padded": lambda made: made.dataset(documents="pad", tokenizer=None),
    "mixture, padded": lambda made: MixtureData(
        parts={"joined": made.of_bins(), "padded": made.of_bins(documents="pad")}
    ),
    "text, two texts": lambda made: made.pairs(TextData),
    "text, two texts, tokens, epochs": lambda made: made.pairs(
        TextData, tokenizer=str(made.tokenizer), order="epochs"
    ),
    "dataset, two texts": lambda made: made.pairs(HuggingFaceData, tokenizer=str(made.tokenizer)),
    "mixture, two texts": lambda made: MixtureData(
        parts={
            "one": made.pairs(TextData),
            "back": made.pairs(HuggingFaceData, field="latent_text", latent_field="text"),
        }
    ),
    "streamed": lambda made: made.streamed(),
    "streamed, padded": lambda made: made.streamed(documents="pad"),
    "streamed, mixed": lambda made: made.streamed(shuffle_buffer=16),
    "streamed, bytes": lambda made: made.streamed(tokenizer=None),
}
"""Other ways to read the kinds."""

VARIANTS = (*KINDS, *OPTIONS)


@functools.cache
def made() -> Made:
    """Made once for all tests of a process."""
    folder = tempfile.TemporaryDirectory(prefix="lvlm-data-")
    _keep.append(folder)
    return Made(Path(folder.name))


_keep: list[object] = []
