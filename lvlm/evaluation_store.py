"""Estimates that were computed before: `RUN/evaluations`, one file for each number and its settings.

A file is used again only if all that its numbers depend on is the same: the weights, the windows, the estimator's
settings, the seed, the precision and the kind of device. What is damaged, or of another version, is computed anew.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lvlm.errors import UserError
from lvlm.runs import write_atomically

VERSION = 1  # of what the numbers mean; a change of any estimator's value is a new one


class EvaluationStore:
    """The stored numbers of one run on some windows.

    Args:
        folder: the run's.
        windows_hash: of the windows; its first digits are in the files' names.
        common: what all the numbers depend on, as JSON can say it.
    """

    def __init__(self, folder: Path, windows_hash: str, common: Mapping[str, Any]) -> None:
        self.folder = folder / "evaluations"
        self.common = {"version": VERSION, "windows": windows_hash, **common}

    def _file(self, name: str, settings: str) -> tuple[Path, str]:
        about = json.dumps({**self.common, "name": name, "settings": settings}, sort_keys=True)
        key = hashlib.sha256(about.encode()).hexdigest()[:12]
        return self.folder / f"{self.common['windows'][:12]}-{name}-{key}.npz", about

    def load(self, name: str, settings: str) -> dict[str, np.ndarray[Any, Any]] | None:
        """The arrays that were saved for this, or None."""
        path, about = self._file(name, settings)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            return None
        return arrays if str(arrays.pop("about", "")) == about else None

    def save(self, name: str, settings: str, arrays: Mapping[str, Any]) -> None:
        """Keep arrays.

        Raises:
            UserError: they can't be written.
        """
        path, about = self._file(name, settings)
        packed = io.BytesIO()
        np.savez(packed, about=np.array(about), **arrays)
        try:
            self.folder.mkdir(exist_ok=True)
            write_atomically(path, packed.getvalue())
        except OSError as error:
            raise UserError(
                f"{path}: the evaluation could not be written: {error.strerror or error}"
            ) from None
