"""Kind 'python': the installed Python's own sources and documentation, so that a run needs no download."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from lvlm.data.corpus import CorpusParams, File, name_hash, split_by_file
from lvlm.data.rows import TokenSource
from lvlm.errors import UserError

# Left out: what is not Python's own, tests, and the character tables of `encodings`, which are no prose.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "encodings"}


class PythonData(CorpusParams):
    """The standard library's sources and documentation of the running Python, as bytes or a tokenizer's
    tokens.

    Split by file, about 90/5/5, through a hash of its path in the library. The content, and so the
    fingerprint, changes with the version of Python.
    """

    kind: Literal["python"] = "python"

    max_megabytes: float = Field(default=8.0, gt=0, allow_inf_nan=False)
    """The limit in 10^6 bytes: whole files are taken, in the order of the hash of their paths, as long as
    they fit.
    """

    @classmethod
    def example(cls) -> Self:
        """Some of the library, in short rows."""
        return cls(window=32, max_megabytes=0.5)

    def open(self) -> TokenSource:
        """Read the library.

        Raises:
            UserError: when this Python comes without its sources, or when too few bytes are allowed.
        """
        root = Path(sysconfig.get_paths()["stdlib"])
        found = sorted(_sources(root), key=name_hash)
        if not found:
            raise UserError(f"data: this Python has no library sources under '{root}'; use kind: text")
        files, left = [], int(self.max_megabytes * 1e6)
        for name in found:
            path = root / name
            if (size := path.stat().st_size) <= left:
                left -= size
                files.append(File(name, path.read_bytes()))
        return self.source(split_by_file(files), prompt="def ")


def _sources(root: Path) -> list[str]:
    """Paths inside the library, with forward slashes, without `_sysconfigdata*`, which differs by machine."""
    names = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [s for s in subfolders if s not in SKIPPED_FOLDERS and not s.startswith("config-")]
        inside = Path(folder).relative_to(root)
        names += [
            (inside / file).as_posix()
            for file in files
            if file.endswith(".py") and not file.startswith("_sysconfigdata")
        ]
    return names
