"""A small corpus on disk, for the examples of kinds that read files."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from lvlm.data.prepare import prepare_data


def documents(count: int = 600) -> list[str]:
    """Texts of 3 to 40 words, no two of them equal."""
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs"]
    choose = random.Random(0)
    return [
        f"{number}: {' '.join(choose.choices(words, k=choose.randint(2, 39)))}" for number in range(count)
    ]


def write_rows(path: Path, texts: Sequence[str | None], field: str = "text") -> Path:
    """Write a .jsonl of texts."""
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))
    return path


def write_corpus(folder: Path) -> Path:
    """Write `text.txt`, `rows.jsonl` and the bins of the latter, `bins`, into a folder."""
    (folder / "text.txt").write_text(" ".join(f"word{number}" for number in range(2000)))
    rows = write_rows(folder / "rows.jsonl", documents())
    prepare_data([str(rows)], folder / "bins")
    return folder
