"""Small data of every kind, with the options that change how rows are read; made once for a test module."""

from __future__ import annotations

import functools
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import lvlm
from lvlm.data import (
    BinsData,
    CoinData,
    DataParams,
    HuggingFaceData,
    LettersData,
    MixtureData,
    PythonData,
    TextData,
)
from lvlm.interfaces import Ramp

WINDOW = 16


def documents(count: int = 600) -> list[str]:
    """Texts of 3 to 40 words, no two of them equal."""
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs"]
    choose = random.Random(0)
    return [
        f"{number}: {' '.join(choose.choices(words, k=choose.randint(2, 39)))}" for number in range(count)
    ]


def write_rows(path: Path, texts: Sequence[str | None], field: str = "text") -> Path:
    """A .jsonl of texts."""
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))
    return path


class Made:
    """A folder with a text, rows, a tokenizer, bins and a dataset."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.text = folder / "words.txt"
        self.text.write_text(" ".join(f"word{i}" for i in range(2000)))
        self.rows = write_rows(folder / "rows.jsonl", documents())
        self.tokenizer = lvlm.train_tokenizer([str(self.rows)], folder / "tokenizer.json", vocab=300)
        self.bins = lvlm.prepare_data([str(self.rows)], folder / "bins", tokenizer=str(self.tokenizer))

    def kinds(self) -> dict[str, DataParams]:
        """One of each kind, whose batches are pure."""
        tokenizer = str(self.tokenizer)
        return {
            "python": PythonData(window=32, max_megabytes=0.5),
            "text": TextData(path=str(self.text), window=WINDOW),
            "bins": BinsData(path=str(self.bins), window=WINDOW),
            "huggingface": HuggingFaceData(path=str(self.rows), window=WINDOW, tokenizer=tokenizer),
            "mixture": MixtureData(
                parts={
                    "text": TextData(path=str(self.text), window=WINDOW, tokenizer=tokenizer),
                    "bins": BinsData(path=str(self.bins), window=WINDOW),
                },
                weights={"text": Ramp(start=1, end=0.2, steps=50)},
            ),
            "letters": LettersData(),
            "coin": CoinData(),
        }

    def variants(self) -> dict[str, DataParams]:
        """The kinds, and other ways to read them."""
        rows, bins, tokenizer = str(self.rows), str(self.bins), str(self.tokenizer)
        pad = MixtureData(
            parts={
                "joined": BinsData(path=bins, window=WINDOW),
                "padded": BinsData(path=bins, window=WINDOW, documents="pad"),
            }
        )
        return self.kinds() | {
            "text, tokens, epochs": TextData(path=rows, window=8, tokenizer=tokenizer, order="epochs"),
            "bins, padded": BinsData(path=bins, window=WINDOW, documents="pad"),
            "bins, padded, epochs": BinsData(path=bins, window=WINDOW, documents="pad", order="epochs"),
            "bins, epochs": BinsData(path=bins, window=WINDOW, order="epochs"),
            "dataset, padded": HuggingFaceData(path=rows, window=WINDOW, documents="pad"),
            "mixture, padded": pad,
            "streamed": self.streamed(),
            "streamed, padded": self.streamed(documents="pad"),
            "streamed, mixed": self.streamed(shuffle_buffer=16),
            "streamed, bytes": HuggingFaceData(path=rows, window=WINDOW, streaming=True),
        }

    def streamed(self, **options: object) -> HuggingFaceData:
        """The rows as a stream."""
        values = {
            "path": str(self.rows),
            "window": WINDOW,
            "tokenizer": str(self.tokenizer),
            "streaming": True,
        }
        return HuggingFaceData.model_validate(values | options)


KINDS = ("python", "text", "bins", "huggingface", "mixture", "letters", "coin")
VARIANTS = (
    *KINDS,
    "text, tokens, epochs",
    "bins, padded",
    "bins, padded, epochs",
    "bins, epochs",
    "dataset, padded",
    "mixture, padded",
    "streamed",
    "streamed, padded",
    "streamed, mixed",
    "streamed, bytes",
)


@functools.cache
def made() -> Made:
    """Made once for all tests of a process."""
    folder = tempfile.TemporaryDirectory(prefix="lvlm-data-")
    _keep.append(folder)
    return Made(Path(folder.name))


_keep: list[object] = []
