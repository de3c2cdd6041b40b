"""Checkpoints: written whole or not at all, read without executing anything.

RUN/checkpoints/step-000300/
    model.safetensors    weights
    trainer.pt           optimiser and random state; read with weights_only
    checkpoint.json      format, step, the bound it was selected by, sha256 of the two files
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from lvlm.errors import UserError
from lvlm.model import LatentLM

FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """What checkpoint.json says. `bound` is nats per token by `bound_name` on the training-time windows."""

    format: int
    step: int
    bound_name: str
    bound: float | None
    sha256: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk."""

    folder: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.manifest.step


class Checkpoints:
    """The checkpoints of a run: the newest `keep` of them and the best by its bound."""

    def __init__(self, run: Path, keep: int = 2) -> None:
        self.folder, self.keep = run / "checkpoints", keep

    def list(self) -> list[Checkpoint]:
        """All that are whole, oldest first.

        Raises:
            UserError: one has a manifest that can't be read.
        """
        found = [
            _read(path) for path in sorted(self.folder.glob("step-*")) if (path / "checkpoint.json").exists()
        ]
        return sorted(found, key=lambda c: c.step)

    def newest(self) -> Checkpoint:
        """The one to resume from.

        Raises:
            UserError: there is none.
        """
        found = self.list()
        if not found:
            raise UserError(
                f"{self.folder.parent}: no checkpoint yet; train it first, or start again with --overwrite"
            )
        return found[-1]

    def best(self) -> Checkpoint:
        """The one with the lowest bound; the newest where none was evaluated."""
        rated = [c for c in self.list() if c.manifest.bound is not None]
        return min(rated, key=lambda c: (c.manifest.bound, -c.step)) if rated else self.newest()

    def save(
        self,
        model: LatentLM,
        trainer_state: dict[str, Any],
        *,
        step: int,
        bound_name: str,
        bound: float | None,
    ) -> Checkpoint:
        """Write, sync and rename; then delete what is neither recent nor best.

        Raises:
            UserError: no space left, or another refusal of the file system; what was there before is kept.
        """
        final = self.folder / f"step-{step:06d}"
        temporary = self.folder / f".writing-{step:06d}"
        try:
            self._clear()
            temporary.mkdir(parents=True)
            save_model(model, str(temporary / "model.safetensors"))
            torch.save(trainer_state, temporary / "trainer.pt")
            digests = {name: _digest(temporary / name) for name in ("model.safetensors", "trainer.pt")}
            manifest = Manifest(FORMAT, step, bound_name, bound, digests)
            (temporary / "checkpoint.json").write_text(json.dumps(asdict(manifest), indent=1) + "\n")
            for path in temporary.iterdir():
                _sync(path)
            _sync(temporary)
            if final.exists():
                shutil.rmtree(final)
            os.replace(temporary, final)
            _sync(self.folder)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise UserError(_write_failure(final, error)) from error
        finally:
            self._clear()
        self._prune()
        return Checkpoint(final, manifest)

    def _clear(self) -> None:
        """Delete what a save left half-written: this one, or one that was killed."""
        for path in self.folder.glob(".writing-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _prune(self) -> None:
        found = self.list()
        kept = {c.folder for c in found[-self.keep :]} | {self.best().folder}
        for checkpoint in found:
            if checkpoint.folder not in kept:
                shutil.rmtree(checkpoint.folder)


def load_weights(model: LatentLM, checkpoint: Checkpoint) -> None:
    """Copy the weights of a checkpoint into a model of the same shape.

    Raises:
        UserError: the file is damaged, or holds other weights than the recipe's model has.
    """
    path = _verified(checkpoint, "model.safetensors")
    try:
        load_model(model, str(path), device=str(model.device))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: these are not the weights of the run's recipe: {reason[:400]}") from None


def load_trainer_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """Optimiser and random state, on the CPU.

    Raises:
        UserError: the file is damaged.
    """
    path = _verified(checkpoint, "trainer.pt")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: not a trainer state: {_first_line(error)}") from None
    return state


def _read(folder: Path) -> Checkpoint:
    path = folder / "checkpoint.json"
    try:
        manifest = Manifest(**json.loads(path.read_text()))
        if not (isinstance(manifest.step, int) and isinstance(manifest.sha256, dict)):
            raise ValueError("its step is no number, or its sha256 no mapping")
        if not (manifest.bound is None or isinstance(manifest.bound, int | float)):
            raise ValueError("its bound is no number")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: not a checkpoint's manifest: {_first_line(error)}; {_fall_back(folder)}"
        ) from None
    if manifest.format != FORMAT:
        raise UserError(f"{path}: format {manifest.format}; this lvlm reads format {FORMAT}")
    return Checkpoint(folder, manifest)


def _verified(checkpoint: Checkpoint, name: str) -> Path:
    path = checkpoint.folder / name
    if not path.exists():
        raise UserError(f"{path}: missing; the checkpoint is not whole; {_fall_back(checkpoint.folder)}")
    expected, actual = checkpoint.manifest.sha256.get(name), _digest(path)
    if actual != expected:
        raise UserError(
            f"{path}: damaged or exchanged: its sha256 is {actual[:12]}…, the manifest says {str(expected)[:12]}…; "
            f"{_fall_back(checkpoint.folder)}"
        )
    return path


def _fall_back(folder: Path) -> str:
    return f"delete {folder} to fall back on an older checkpoint"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_failure(path: Path, error: Exception) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            break
        cause = cause.__context__
    full = (
        cause is not None
        or "No space left" in str(error)
        or shutil.disk_usage(path.parent.parent).free < 2**20
    )
    reason = "no space left on the disk" if full else str(error)
    return f"{path}: could not be written: {reason}; checkpoints from before are untouched"
