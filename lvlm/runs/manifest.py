"""A checkpoint and its manifest: what is verified is what is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lvlm.errors import UserError
from lvlm.system.files import file_digest

FORMAT = 2

OPTIMISER = "optimiser"


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


class NotWhole(UserError):
    """A checkpoint that can't be used; `reason` is why, without the way out that others are told."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"{reason}; delete {folder} to fall back on an older checkpoint")
        self.reason = reason


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
            UserError: one is missing, damaged or exchanged.
        """
        if not self.files("model") or "trainer.pt" not in self.manifest.sha256:
            path = self.folder / "checkpoint.json"
            raise NotWhole(self.folder, f"{path}: names no weights or no trainer state")
        for name in self.manifest.sha256:
            verified(self, name)


def read_checkpoint(folder: Path) -> Checkpoint:
    path = folder / "checkpoint.json"
    try:
        manifest = Manifest(**json.loads(path.read_text()))
        if not (isinstance(manifest.step, int) and isinstance(manifest.sha256, dict)):
            raise ValueError("its step is no number, or its sha256 no mapping")
        if not (manifest.bound is None or isinstance(manifest.bound, int | float)):
            raise ValueError("its bound is no number")
    except (OSError, ValueError, TypeError) as error:
        raise NotWhole(folder, f"{path}: not a checkpoint's manifest: {first_line(error)}") from None
    if manifest.format != FORMAT:
        raise UserError(f"{path}: format {manifest.format}; this lvlm reads format {FORMAT}")
    return Checkpoint(folder, manifest)


def verified(checkpoint: Checkpoint, name: str) -> Path:
    path = checkpoint.folder / name
    if not path.exists():
        raise NotWhole(checkpoint.folder, f"{path}: missing; the checkpoint is not whole")
    expected, actual = checkpoint.manifest.sha256.get(name), file_digest(path)
    if actual != expected:
        raise NotWhole(
            checkpoint.folder,
            (
                f"{path}: damaged or exchanged: its sha256 is {actual[:12]}…, the manifest says "
                f"{str(expected)[:12]}…"
            ),
        )
    return path


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
