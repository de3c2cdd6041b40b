"""The verb `train`: from a recipe to a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lvlm.arguments import checks_arguments
from lvlm.errors import UserError
from lvlm.recipe.paths import path_places
from lvlm.recipe.read import RecipeSource, read_recipe
from lvlm.recipe.tree import dotted
from lvlm.runs.divergence import forget_divergence
from lvlm.runs.folder import claim, is_run, refuse_other_files, write_run
from lvlm.runs.read import read_run
from lvlm.runs.work import working_on
from lvlm.system.device import pick_device, threads_restored
from lvlm.system.files import given_path, refused
from lvlm.system.terminal import tell
from lvlm.system.world import is_loss_of_another, join_world, led
from lvlm.training.room import refuse_options
from lvlm.training.signals import stop_signals
from lvlm.training.trainer import Trainer
from lvlm.training.watch import Watch

if TYPE_CHECKING:
    from lvlm.recipe.recipe import Resolved


@checks_arguments
def train(
    recipe: RecipeSource | None,
    out: str | Path,
    *overrides: str,
    resume: bool = False,
    overwrite: bool = False,
    plugin_files: Sequence[str] = (),
    console: Console | None = None,
) -> Path:
    """Train a recipe into a run folder.

    Args:
        recipe: a YAML file, or the name of a shipped recipe, such as free; none to resume a run with its own.
            From Python also a mapping, or a `Recipe`.
        out: the run's folder.
        overrides: as for `build`.
        resume: go on where the run in the folder stopped, exactly; begin where there is none. So a job that
            may be started again can always say it.
        overwrite: replace the run in the folder.
        plugin_files: as for `build`.
        console: where progress goes; quiet unless given.

    Raises:
        UserError: for bad input, a full disk, a loss that isn't finite.
        lvlm.errors.Interrupted: by Ctrl-C or SIGTERM, after saving.
    """
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    if recipe is None:
        if not resume:
            raise UserError("which recipe? name one, or go on with a run by --resume --out RUN")
        resolved = read_run(out, overrides, plugin_files=plugin_files)
    else:
        resolved = read_recipe(recipe, overrides, plugin_files=plugin_files)
    return train_resolved(
        resolved, given_path(out, "the run's folder"), resume=resume, overwrite=overwrite, console=console
    )


@threads_restored()
def train_resolved(
    resolved: Resolved,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    label: str | None = None,
) -> Path:
    """Train a resolved recipe into a run folder; `lvlm.runs.folder` lists what the folder holds.

    Started by torchrun or srun, all processes train one run together; the first one writes and prints.

    Args:
        resolved: the recipe.
        out: the run's folder; with several processes, on a disk that all of them see.
        resume: go on from the newest whole checkpoint, exactly as if there had been no interruption.
        overwrite: delete a run that is there.
        console: where progress goes; quiet unless given.
        label: what stands in front of each line; the recipe's name and seed unless given.

    Raises:
        BeyondMachine: the recipe needs more memory, threads or processes than this machine has.
        UserError: the folder is taken, or another process works on it; the data can't be read, the
            loss isn't finite, the disk is full, torch can't compile what it was told to,
            another process is lost.
        Interrupted: by Ctrl-C or SIGTERM, after saving; only the leading process tells.
    """
    spec = resolved.recipe.train
    world = join_world(pick_device(spec.device).type, timeout_seconds=spec.timeout_seconds)
    console = console if console is not None and world.leads else Console(quiet=True)
    label = label or f"{resolved.recipe.name} seed {resolved.recipe.seed}"
    watch = Watch(world, spec.timeout_seconds)
    work = ExitStack()
    try:
        refuse_options(resolved.recipe, ranks=world.ranks)
        resuming = led(world, lambda: _prepare(work, resolved, out, resume=resume, overwrite=overwrite))
        trainer = Trainer(resolved, out, world, watch)
        if resuming:
            trainer.restore(lambda line: tell(console, f"{label}  {line}"))
            if trainer.step >= spec.steps:
                tell(console, f"{label}  finished already ({trainer.step} steps)")
                return out
        led(world, lambda: _begin(resolved, out, trainer, resuming=resuming))
        if world.ranks > 1:  # torchrun ends those that survive, which have a word to say before
            work.enter_context(stop_signals())
        trainer.run(console, label)
    except OSError as error:
        raise refused(error, out) from error
    except RuntimeError as error:
        if world.ranks > 1 and is_loss_of_another(error):
            reason = str(error).splitlines()[0]
            raise UserError(f"{out}: {watch.verdict()} ({reason}); go on with --resume") from error
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = str(error).split("\n")[0]
        raise UserError(
            f"{out}: train.compile: torch can't compile here ({reason}); train with train.compile=false"
        ) from error
    finally:
        work.close()
        watch.close()
    return out


def _prepare(work: ExitStack, resolved: Resolved, out: Path, *, resume: bool, overwrite: bool) -> bool:
    """Take the folder's lock, and return whether there is a run to resume; else make sure that the folder may
    be written.
    """
    claim(out, overwrite=True)  # nothing of ours goes into a folder of something else, a lock neither
    work.enter_context(working_on(out, "a training", make=True))
    if resume and is_run(out):
        _refuse_changes(resolved, out)
        return True
    claim(out, overwrite=overwrite)
    return False


def _begin(resolved: Resolved, out: Path, trainer: Trainer, *, resuming: bool) -> None:
    if resuming:
        forget_divergence(out)  # it may come again, and is then recorded again
    else:
        write_run(out, resolved, trainer.facts())


def _refuse_changes(resolved: Resolved, out: Path) -> None:
    """Refuse a recipe that differs from the run's own in more than may change on the way."""
    if changed := recipe_changes(resolved, out):
        raise UserError(
            f"{out}: can't resume, the recipe differs from the run's:\n"
            + "\n".join(f"  {change}" for change in changed)
            + "\nresume without the change, or train it into another folder"
        )
    refuse_other_files(out, resolved.recipe.data.files())


def recipe_changes(resolved: Resolved, run: Path) -> list[str]:
    """What differs between a recipe and the one that a run was begun with, a line each.

    Raises:
        UserError: the run's recipe can't be read.
    """
    before = {path: value for path, value, _ in read_run(run, registry=resolved.registry).describe()}
    now = {path: value for path, value, _ in resolved.describe()}
    moved = {dotted(place) for place in path_places(resolved.tree, resolved.registry)}
    changed = sorted(
        k
        for k in (before.keys() | now.keys()) - moved  # which other checks compare by content
        if before.get(k) != now.get(k) and k[:7] != "plugins"
    )
    return [f"{k}: {before.get(k)!r} in the run, {now.get(k)!r} now" for k in changed]
