"""A run that is opened once: what is measured of it, and what is written of that, is of one checkpoint.

A training may go on while its run is measured, and another checkpoint may land at any moment. So which
checkpoint it is gets decided when the run is opened, and never again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from lvlm.data import Source
from lvlm.errors import UserError, listing, nearest
from lvlm.model.latent_lm import LatentLM
from lvlm.recipe.assemble import assemble
from lvlm.recipe.files import shipped
from lvlm.recipe.paths import path_places
from lvlm.recipe.recipe import Recipe, Resolved
from lvlm.recipe.tree import dotted, short
from lvlm.registry.registry import Registry
from lvlm.runs.checkpoint import Checkpoints, selected_of
from lvlm.runs.folder import refuse_other_data
from lvlm.runs.manifest import Checkpoint
from lvlm.runs.read import read_run
from lvlm.runs.weights import load_weights
from lvlm.system.device import Autocast, pick_autocast, pick_device
from lvlm.system.files import given_path, is_file, is_folder, is_there


@dataclass(frozen=True)
class OpenedRun:
    """A run with one checkpoint, chosen when it was opened. What is dear is made when it is first asked for,
    and kept.

    folder        the run's
    resolved      its recipe and the kinds that it was read with
    checkpoint    the one that everything below is of
    newest_step   of the run's last checkpoint at that time
    selected_step   of the checkpoint that the recipe's `train.select` chose at that time
    """

    folder: Path
    resolved: Resolved
    checkpoint: Checkpoint
    newest_step: int
    selected_step: int

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def recipe(self) -> Recipe:
        """What the run is made of."""
        return self.resolved.recipe

    @property
    def registry(self) -> Registry:
        """Kinds that the recipe was read with."""
        return self.resolved.registry

    @property
    def step(self) -> int:
        """Training steps behind the checkpoint."""
        return self.checkpoint.step

    @property
    def weights_sha256(self) -> list[str]:
        """Digests of the files of the checkpoint's weights."""
        return [self.checkpoint.manifest.sha256[name] for name in self.checkpoint.files("model")]

    @cached_property
    def model(self) -> LatentLM:
        """The model with the checkpoint's weights, in evaluation mode; on the CPU until it is moved.

        Raises:
            UserError: the checkpoint is damaged, was deleted meanwhile, or isn't of this recipe.
        """
        model = assemble(self.recipe)
        load_weights(model, self.checkpoint)
        model.at_step(self.checkpoint.step)
        return model.eval()

    @cached_property
    def outline(self) -> LatentLM:
        """The model without its weights, on the meta device: what may be asked of the run can be checked with
        it before a checkpoint is read. The model itself where a part can't be built without memory.
        """
        try:
            with torch.device("meta"):
                return assemble(self.recipe).eval()
        except UserError:
            raise
        except Exception:  # of a plugin's part
            return self.model

    def on_device(self) -> LatentLM:
        """The model, on the recipe's device."""
        return self.model.to(self.device)

    @cached_property
    def device(self) -> torch.device:
        """The device of the recipe.

        Raises:
            UserError: this machine hasn't got it.
        """
        return pick_device(self.recipe.train.device)

    @property
    def precision(self) -> str:
        """The precision of the recipe on its device: 'fp32', 'bf16' or 'fp16'."""
        return pick_autocast(self.recipe.train.precision, self.device)[0]

    @property
    def autocast(self) -> Autocast:
        """Makes the precision context of a forward."""
        return pick_autocast(self.recipe.train.precision, self.device)[1]

    @cached_property
    def data(self) -> Source:
        """The data of the recipe, which are those that the run was trained on.

        Raises:
            UserError: they can't be read, or they changed since the run began.
        """
        try:
            data = self.recipe.data.open()
        except UserError as error:
            raise type(error)(f"{error}{self._where_to_look()}") from None
        refuse_other_data(self.folder, data.fingerprint)
        return data

    def _where_to_look(self) -> str:
        """What to do where the data are gone; empty where they are not."""
        tree = self.resolved.tree
        for place in path_places(tree, self.registry):
            said = tree.get(*place)
            for path in said if isinstance(said, list) else [said]:
                if path is not None and not is_there(Path(path)):
                    return f"; if the data of {self.folder} moved, say where they are: {dotted(place)}=…"
        return ""


def open_run(
    run: str | Path | OpenedRun,
    overrides: Sequence[str] = (),
    *,
    registry: Registry | None = None,
    plugin_files: Sequence[str] = (),
    step: int | None = None,
) -> OpenedRun:
    """A run with the checkpoint that its recipe selects (`train.select`), or with that of `step`; one that is
    open already is returned.

    Executes nothing that the run holds.

    Args:
        run: its folder.
        overrides: where its data are now, as data.path=…; nothing else can be changed.
        registry: the kinds that are known; those of installed plugins unless given.
        plugin_files: single-file plugins.
        step: of which checkpoint.

    Raises:
        UserError: no run, no such checkpoint, or one that can't be read.
    """
    if isinstance(run, OpenedRun):
        if step not in (None, run.step):
            raise UserError(f"{run}: is open at step {run.step}; open it anew for step {step}")
        if overrides:
            raise UserError(f"{run}: is open already; say where its data are when it is opened")
        return run
    folder = given_path(run, "the run's folder")
    _refuse_recipe(folder)
    if is_file(folder / "export.json"):
        raise UserError(f"{folder}: graphs for other runtimes; lvlm reads runs, and exports as safetensors")
    resolved = read_run(folder, overrides, registry=registry, plugin_files=plugin_files)
    _refuse_other_changes(folder, overrides, resolved)
    found = Checkpoints(folder).some()
    selected = selected_of(found, resolved.recipe.train.select)
    checkpoint = selected if step is None else _of_step(found, step, folder)
    return OpenedRun(folder, resolved, checkpoint, newest_step=found[-1].step, selected_step=selected.step)


def _refuse_recipe(folder: Path) -> None:
    """Make sure that a path isn't that of a recipe.

    Raises:
        UserError: it is a file, or the name of a recipe that comes with lvlm.
    """
    if is_folder(folder):
        return
    is_yaml = folder.suffix in (".yaml", ".yml") and is_file(folder)
    if is_yaml or folder.as_posix() in shipped():
        raise UserError(
            f"{folder}: a recipe, not a run; lvlm.train makes a run of it, and lvlm.build an untrained model"
        )


def _refuse_other_changes(folder: Path, overrides: Sequence[str], resolved: Resolved) -> None:
    """Make sure that overrides say where the data are, and no more.

    Raises:
        UserError: one says something else; the message has what may be said.
    """
    places = {dotted(place) for place in path_places(resolved.tree, resolved.registry)}
    for key in (text.partition("=")[0].strip() for text in overrides):
        if key not in places:
            known = (
                f"; known: {listing(places)}{nearest(key, places)}" if places else ", and it reads no files"
            )
            raise UserError(
                f"{folder}: {short(key)!r} can't be changed: of a run, only where its data are{known}"
            )


def _of_step(found: Sequence[Checkpoint], step: int, folder: Path) -> Checkpoint:
    """The checkpoint of a step.

    Raises:
        UserError: none is kept of that step; the message has those that are, and the nearest.
    """
    if not isinstance(step, int) or isinstance(step, bool):
        raise UserError(f"{folder}: step is {step!r}; it is a whole number")
    by_step = {one.step: one for one in found}
    if step not in by_step:
        kept, closest = ", ".join(map(str, by_step)), min(by_step, key=lambda kept: abs(kept - step))
        raise UserError(f"{folder}: no checkpoint of step {step}; kept: {kept}; the nearest is {closest}")
    return by_step[step]
