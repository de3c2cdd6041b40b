"""A checkpoint and its manifest: what is verified is what is read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from lvlm.errors import UserError
from lvlm.runs.record import Count, Sha256
from lvlm.system.records import Record, read_record_file
from lvlm.system.regular import open_regular

FORMAT = 2

MANIFEST = "checkpoint.json"

OPTIMISER = "optimiser"

FILE_NAMES = re.compile(r"(model|optimiser)(-[1-9]\d{0,5}-of-[1-9]\d{0,5})?\.safetensors|trainer\.pt")
"""All names that a checkpoint's files may have, so that none leads out of its folder."""


@dataclass(frozen=True)
class Manifest:
    """What checkpoint.json says. `bound` is nats per token by `bound_name` on the validation windows;
    None where they were not evaluated at this step.
    """

    format: int
    step: int
    bound_name: str
    bound: float | None
    sha256: dict[str, str]


class _Fields(Record, extra="forbid"):
    """The fields of checkpoint.json."""

    format: int
    step: Count
    bound_name: Annotated[str, Field(max_length=1000)]
    bound: float | None
    sha256: dict[str, Sha256]


class NotWhole(UserError):
    """A checkpoint that can't be used; `reason` is why, without the way out that others are told."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"{reason}; delete {folder} to fall back on an older checkpoint")
        self.folder, self.reason = folder, reason

    def __reduce__(self) -> tuple[Any, ...]:  # another process may tell it
        return type(self), (self.folder, self.reason)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk."""

    folder: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.manifest.step

    def files(self, kind: str) -> list[str]:
        """The names of its 'model' or 'optimiser' files."""
        return sorted(name for name in self.manifest.sha256 if name.startswith(kind))

    def verify(self) -> None:
        """Read every file once.

        Raises:
            NotWhole: one is missing, damaged or exchanged, or the manifest doesn't name it.
        """
        if not self.files("model") or "trainer.pt" not in self.manifest.sha256:
            path = self.folder / MANIFEST
            raise NotWhole(self.folder, f"{path}: names no weights or no trainer state")
        self.refuse_others()
        for name in self.manifest.sha256:
            with opened(self, name) as file:
                check_digest(self, name, hashlib.file_digest(file, "sha256").hexdigest())

    def refuse_others(self) -> None:
        """Make sure that the folder holds what the manifest names and nothing else.

        Raises:
            NotWhole: it holds more.
        """
        with _told_as_not_whole(self.folder):
            there = {path.name for path in self.folder.iterdir()}
        if others := sorted(there - self.manifest.sha256.keys() - {MANIFEST}):
            path = self.folder / others[0]
            raise NotWhole(self.folder, f"{path}: the checkpoint's manifest names no such file; move it away")


def read_checkpoint(folder: Path) -> Checkpoint:
    """A checkpoint by its manifest; its other files are not read.

    Raises:
        NotWhole: the manifest is damaged, or names what can't be a file of a checkpoint.
        UserError: it is of another version.
    """
    path = folder / MANIFEST
    with _told_as_not_whole(folder):
        said = read_record_file(path, _Fields, "a checkpoint's manifest")
    if said.format != FORMAT:
        raise UserError(f"{path}: format {said.format}; this lvlm reads format {FORMAT}")
    for name in said.sha256:
        if not FILE_NAMES.fullmatch(name):
            raise NotWhole(
                folder, f"{path}: not a checkpoint's manifest: {name[:100]!r} is no file of a checkpoint"
            )
    if folder.name != f"step-{said.step:06d}":
        raise NotWhole(folder, f"{path}: is of step {said.step}, and its folder is called {folder.name}")
    return Checkpoint(folder, Manifest(**said.model_dump()))


@contextmanager
def opened(checkpoint: Checkpoint, name: str) -> Iterator[BufferedReader]:
    """A file of a checkpoint, which lies in its folder itself.

    Raises:
        NotWhole: it is missing, or no regular file.
    """
    path = checkpoint.folder / name
    if not path.is_symlink() and not path.exists():
        raise NotWhole(checkpoint.folder, f"{path}: missing; the checkpoint is not whole")
    with _told_as_not_whole(checkpoint.folder), open_regular(path, links=False) as file:
        yield file


def verified(checkpoint: Checkpoint, name: str) -> bytes:
    """The content of a small file of a checkpoint, which is what the manifest says.

    Raises:
        NotWhole: it is missing, damaged or exchanged.
    """
    checkpoint.refuse_others()
    with opened(checkpoint, name) as file:
        content = file.read()
    check_digest(checkpoint, name, hashlib.sha256(content).hexdigest())
    return content


def check_digest(checkpoint: Checkpoint, name: str, actual: str) -> None:
    """Make sure that a file is what the manifest says.

    Raises:
        NotWhole: it isn't.
    """
    expected = checkpoint.manifest.sha256.get(name)
    if actual != expected:
        raise NotWhole(
            checkpoint.folder,
            (
                f"{checkpoint.folder / name}: damaged or exchanged: its sha256 is {actual[:12]}…, the "
                f"manifest says {str(expected)[:12]}…"
            ),
        )


@contextmanager
def _told_as_not_whole(folder: Path) -> Iterator[None]:
    try:
        yield
    except NotWhole:
        raise
    except UserError as error:
        raise NotWhole(folder, str(error)) from None
    except OSError as error:
        raise NotWhole(folder, f"{folder}: cannot be read: {error.strerror or error}") from None


def first_line(error: Exception) -> str:
    """The first line of an error, or its type where it has no words."""
    return next(iter(str(error).splitlines()), type(error).__name__)
