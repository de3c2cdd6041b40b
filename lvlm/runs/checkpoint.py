"""Checkpoints: written whole or not at all, in the background, by one process or many; read by any number.

RUN/checkpoints/step-000300/
    model.safetensors       weights; with several processes model-1-of-2.safetensors, …, a part from each
    optimiser.safetensors   the optimiser's tensors, as NAME/exp_avg
    trainer.pt              the loss's state and what else a loop remembers; read with weights_only
    checkpoint.json         format, step, the validation bound that a choice goes by, sha256 of all files

Tensors go through torch.distributed.checkpoint, which puts parts together again for any number of processes.
Its own format has an index that is unpickled, so they are in its other one, safetensors.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import async_save

from lvlm.errors import UserError, one_of
from lvlm.recipe.sections import Select
from lvlm.runs.manifest import (
    FORMAT,
    OPTIMISER,
    Checkpoint,
    Manifest,
    NotWhole,
    first_line,
    read_checkpoint,
    verified,
)
from lvlm.system.files import file_digest, sync
from lvlm.system.world import ALONE, World

# torch warns, from its own threads too, of a save without process group that was asked for by name.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")

Found = list["Checkpoint"]

Broken = list[tuple[Path, UserError]]


class Checkpoints:
    """The checkpoints of a run: the newest `keep` of them and the one that the run's rule selects.

    Args:
        run: its folder.
        keep: how many.
        world: the processes that write one together.
        select: the rule, `train.select` of the recipe.
    """

    def __init__(self, run: Path, keep: int = 2, world: World = ALONE, *, select: Select = "last") -> None:
        self.folder, self.keep, self.world = run / "checkpoints", keep, world
        self.select = one_of(select, Select, "select")
        self.saved: int | None = None
        """The step of the newest checkpoint that this process, the first of several, has written."""
        self._thread: ThreadPoolExecutor | None = None
        self._under_way: tuple[Path, Future[Any]] | None = None

    def list(self) -> list[Checkpoint]:
        """All that are whole, oldest first.

        Raises:
            UserError: one has a manifest that can't be read.
        """
        found, broken = self._scan()
        for _, fault in broken:
            raise fault
        return found

    def some(self) -> Found:
        """All that are whole, oldest first, and at least one.

        Raises:
            UserError: there is none, or one has a manifest that can't be read.
        """
        found = self.list()
        if not found:
            raise UserError(
                f"{self.folder.parent}: no checkpoint yet; train it first, or start again with --overwrite"
            )
        return found

    def newest(self) -> Checkpoint:
        """The last one.

        Raises:
            UserError: there is none.
        """
        return self.some()[-1]

    def newest_whole(self, tell: Callable[[str], object]) -> Checkpoint | None:
        """The one to resume from: the last of which no byte is wrong; None where none was ever made. What is
        passed over is put aside under another name.

        Args:
            tell: is told of each that is passed over, and why.

        Raises:
            UserError: there are checkpoints, and none is whole.
        """
        found, broken = self._scan()
        for checkpoint in reversed(found):
            try:
                checkpoint.verify()
            except UserError as error:
                broken.append((checkpoint.folder, error))
                continue
            for folder, fault in broken:
                aside = folder.with_name(f"passed-over-{folder.name}")
                if aside.exists():
                    shutil.rmtree(aside)
                folder.rename(aside)
                tell(f"passed over: {_reason(fault)}; it is now {aside}")
            return checkpoint
        if broken:
            reasons = "\n".join(f"  {_reason(fault)}" for _, fault in broken)
            raise UserError(
                f"no checkpoint is whole, so there is nothing to go on from; nothing was touched, and "
                f"--overwrite begins "
                f"anew:\n{reasons}"
            )
        return None

    def save(
        self,
        tensors: Mapping[str, Tensor],
        trainer_state: dict[str, Any],
        *,
        step: int,
        bound_name: str,
        bound: float | None,
        wait: bool = True,
    ) -> None:
        """Write, sync and rename; then delete what is neither recent nor selected. Every process of the
        world calls it.

        The tensors are copied before it returns; with `wait` off, writing them goes on behind the loop.

        Args:
            tensors: from `tensors_of`.
            trainer_state: what torch.load reads with weights_only.
            step: optimiser steps done.
            bound_name: name of the bound that a rule of choice compares.
            bound: nats per token; None where it was not evaluated.
            wait: until it is on the disk.

        Raises:
            UserError: no space left, or another refusal of the file system, of this save or the one before
                it; what was there before is kept.
        """
        self.wait()
        final = self.folder / f"step-{step:06d}"
        temporary = self.folder / f".writing-{step:06d}"
        state = io.BytesIO()
        torch.save(trainer_state, state)  # now: the loop goes on, and it is small
        manifest = Manifest(FORMAT, step, bound_name, bound, {})
        with _told_in_words(final):
            if self.world.leads:
                self._clear()
                temporary.mkdir(parents=True)
            self.world.barrier()
            try:
                written = async_save(
                    dict(tensors),
                    storage_writer=HuggingFaceStorageWriter(
                        str(temporary),
                        {name: 2 if name.startswith(f"{OPTIMISER}/") else 1 for name in tensors},
                        save_distributed=True,
                    ),
                    process_group=self.world.checkpoints,
                    no_dist=self.world.ranks == 1,
                )
            except BaseException:
                self._clear()
                raise
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "checkpoint")
        done = self._thread.submit(self._finish, written, temporary, final, manifest, state.getvalue())
        self._under_way = (final, done)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until what `save` began is on the disk.

        Raises:
            UserError: it could not be written.
        """
        if self._under_way is None:
            return
        (final, done), self._under_way = self._under_way, None
        error = None
        try:
            with _told_in_words(final):
                done.result()
        except UserError as failure:
            error = str(failure)
        errors = [e for e in self.world.gathered(error) if e]
        if errors:
            if self.world.leads:
                self._clear()
            raise UserError(error or errors[0])
        if self.world.leads:
            self._prune()

    def close(self) -> None:
        """Let the background thread go, after what it does; a save that failed leaves nothing behind."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
        if self._under_way is not None and self._under_way[1].exception() is not None and self.world.leads:
            self._clear()

    def _finish(self, written: Any, temporary: Path, final: Path, manifest: Manifest, state: bytes) -> None:
        written.result()
        if not self.world.leads:
            return
        _rename_parts(temporary, self.world.ranks)
        (temporary / "trainer.pt").write_bytes(state)
        manifest.sha256.update({path.name: file_digest(path) for path in sorted(temporary.iterdir())})
        (temporary / "checkpoint.json").write_text(json.dumps(asdict(manifest), indent=1) + "\n")
        for path in temporary.iterdir():
            sync(path)
        sync(temporary)
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
        sync(self.folder)
        self.saved = manifest.step

    def _scan(self) -> tuple[Found, Broken]:
        found: Found = []
        broken: Broken = []
        for path in sorted(self.folder.glob("step-*")):
            if (path / "checkpoint.json").exists():
                try:
                    found.append(read_checkpoint(path))
                except UserError as error:
                    broken.append((path, error))
        return sorted(found, key=lambda c: c.step), broken

    def _clear(self) -> None:
        """Delete what a save left half-written: this one, or one that was killed."""
        for path in self.folder.glob(".writing-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _prune(self) -> None:
        found, _ = self._scan()
        if not found:
            return
        kept = {c.folder for c in (*found[-self.keep :], selected_of(found, self.select))}
        for checkpoint in found:
            if checkpoint.folder not in kept:
                shutil.rmtree(checkpoint.folder)


def selected_of(found: Sequence[Checkpoint], rule: Select) -> Checkpoint:
    """The checkpoint that a rule selects: the newest for 'last', else the one with the lowest bound, and the
    newest where no bound was evaluated. Of equal bounds the newest wins.

    Args:
        found: oldest first, and at least one.
        rule: `train.select` of the run's recipe.

    Raises:
        UserError: an unknown rule.
    """
    one_of(rule, Select, "select")
    rated = [c for c in found if c.manifest.bound is not None]
    if rule == "last" or not rated:
        return found[-1]
    return min(rated, key=lambda c: (cast(float, c.manifest.bound), -c.step))


def load_trainer_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the loop remembered beside tensors, on the CPU.

    Raises:
        UserError: the file is damaged.
    """
    path, content = checkpoint.folder / "trainer.pt", verified(checkpoint, "trainer.pt")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: not a trainer state: {first_line(error)}") from None
    return state


# ----------------------------------------------------------------------------------------------------- files


def _rename_parts(folder: Path, ranks: int) -> None:
    """From shard-00001-model-00002-of-00002.safetensors to what the files hold."""
    for path in folder.glob("shard-*.safetensors"):
        _, rank, _, number, *_ = path.stem.split("-")
        kind = "model" if int(number) == 1 else OPTIMISER
        part = "" if ranks == 1 else f"-{int(rank)}-of-{ranks}"
        path.rename(folder / f"{kind}{part}.safetensors")


def _reason(error: UserError) -> str:
    return error.reason if isinstance(error, NotWhole) else str(error)


@contextmanager
def _told_in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:
        raise UserError(_write_failure(path, error)) from error


def _write_failure(path: Path, error: BaseException) -> str:
    causes, told = [error], list[BaseException]()
    while causes:
        cause = causes.pop()
        told.append(cause)
        if isinstance(cause, CheckpointException):
            causes += [failure[0] for failure in cause.failures.values()]
        if cause.__context__ is not None:
            causes.append(cause.__context__)
    full = (
        any(isinstance(one, OSError) and one.errno == errno.ENOSPC for one in told)
        or any("No space left" in str(one) for one in told)
        or shutil.disk_usage(path.parent.parent).free < 2**20
    )
    reason = "no space left on the disk" if full else first_line(cast(Exception, told[-1]))
    return f"{path}: could not be written: {reason}; checkpoints from before are untouched"
