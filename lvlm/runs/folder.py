"""Run folders: made once, never overwritten by accident, read without executing anything.

RUN/recipe.yaml        every resolved value, by kind; no import paths
RUN/run.json           versions, plugins, sha256 of the recipe, data fingerprint, parameters, training's cost
RUN/files/             copies of what the data's codec is made of (a tokenizer.json), by sha256 in run.json
RUN/metrics.jsonl      what was logged            RUN/tensorboard/   the same, for TensorBoard
RUN/checkpoints/       see lvlm.runs.checkpoint
RUN/evaluation.json    see lvlm.likelihood.estimate; per-sequence arrays in evaluation.npz
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lvlm.errors import UserError
from lvlm.interfaces import Params
from lvlm.model.latent_lm import LatentLM
from lvlm.recipe.assemble import count_parameters
from lvlm.recipe.recipe import Resolved
from lvlm.registry.roles import nested_roles
from lvlm.runs.record import RunRecord
from lvlm.system.files import (
    delete,
    entries,
    is_file,
    is_folder,
    is_there,
    left_unfinished,
    write_atomically,
    writing,
)
from lvlm.system.lock import LOCK
from lvlm.system.records import read_record_file
from lvlm.system.regular import MIB

UNBORN = {
    "run.json",
    "files",
    LOCK,
}  # what a run that was killed at birth may leave, beside files that are half-written

MOST_RECORD_BYTES = 16 * MIB  # of run.json

WRITTEN_AT_BIRTH = {"run.json", "recipe.yaml"}

MADE_LATER = (
    "files",
    "checkpoints",
    "tensorboard",
    "metrics.jsonl",
    "evaluation.json",
    "evaluation.npz",
    "evaluations",
    "steering.json",
)


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run."""
    return is_file(folder / "recipe.yaml") and is_file(folder / "run.json")


def claim(folder: Path, *, overwrite: bool) -> None:
    """Make sure that a new run may be written to a folder; nothing is deleted before `write_run`.

    Raises:
        UserError: it holds a run (without `overwrite`), or something that isn't a run.
    """
    if not is_there(folder):
        return
    if not is_folder(folder):
        raise UserError(f"{folder}: is a file; name a folder for the run")
    there = {path.name for path in entries(folder) if left_unfinished(path) not in WRITTEN_AT_BIRTH}
    if there <= UNBORN and ("files" not in there or "run.json" in there):
        return
    if not is_run(folder):
        raise UserError(f"{folder}: holds other files and no run; name another folder with --out")
    if not overwrite:
        raise UserError(
            f"{folder}: holds a run; go on with --resume, start anew with --overwrite, or name another --out"
        )


def write_run(folder: Path, resolved: Resolved, facts: dict[str, Any]) -> None:
    """Write recipe.yaml and run.json of a new run; delete what a run before it made there, and nothing else.

    Raises:
        UserError: the folder can't be written.
    """
    used = _plugins_used(resolved)
    # A plugin file is not named in the saved recipe: reading a run must not execute anything.
    installed = [name for name in resolved.recipe.plugins if name not in resolved.registry.files()]
    saved = replace(resolved, recipe=resolved.recipe.model_copy(update={"plugins": installed}))
    files = resolved.recipe.data.files()
    recipe = saved.to_yaml()
    record = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "saved_step": 0,  # of the newest checkpoint that was ever written
        "versions": versions(),
        "plugins": [
            {"name": p.name, "version": p.version, "kinds": p.kinds}
            | ({"sha256": p.sha256} if p.single_file else {})
            for p in resolved.registry.plugins
            if p.name in used
        ],
        "recipe_sha256": hashlib.sha256(recipe.encode()).hexdigest(),
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        **facts,
    }
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in MADE_LATER:
            delete(folder / name)
        for path in folder.iterdir():
            if left_unfinished(path) in WRITTEN_AT_BIRTH:
                delete(path)
        write_record(folder, record)
        for name, content in files.items():
            (folder / "files" / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "files" / name, content)
        write_atomically(folder / "recipe.yaml", recipe)  # last: with it the folder is a run


def _plugins_used(resolved: Resolved) -> set[str]:
    """The plugins of the recipe's kinds, data and their parts too; the core is none."""
    recipe, registry = resolved.recipe, resolved.registry
    model, data = recipe.model, recipe.data
    parts: list[Params | None] = [
        model.backbone,
        *(
            part
            for one in model.each_latent.values()
            for part in (one.encoder, one.quantizer, one.injection, one.prior)
        ),
        recipe.loss,
        *(added.loss for added in recipe.added_losses.values()),
        data,
    ]
    if data.holds is not None:
        parts += getattr(data, data.holds).values()
    parts += [
        getattr(part, option) for part in parts if part is not None for option in nested_roles(type(part))
    ]
    used = {registry.get(part.role, part.kind_name()).plugin for part in parts if part is not None}
    if model.has_latent:
        used |= {registry.get("estimator", name).plugin for name in recipe.evaluate.estimators}
    return used - {""}


def update_record(folder: Path, **facts: Any) -> None:
    """Add facts to run.json."""
    write_record(folder, read_record(folder) | facts)


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Replace run.json."""
    write_atomically(folder / "run.json", json.dumps(record, indent=1) + "\n")


def read_record(folder: Path) -> dict[str, Any]:
    """The values of run.json, whose fields are those of `RunRecord`.

    Raises:
        UserError: it can't be read, or a field is of another form.
    """
    record = read_record_file(folder / "run.json", RunRecord, "a run's record", most_bytes=MOST_RECORD_BYTES)
    return record.model_dump(exclude_unset=True)


def refuse_other_data(folder: Path, fingerprint: str) -> None:
    """Make sure that the data are those that the run was trained on: else what was held out may have moved.

    Raises:
        UserError: they changed.
    """
    was = read_record(folder).get("data_fingerprint")
    if not was:
        raise UserError(f"{folder / 'run.json'}: has no data_fingerprint, so that the data can't be compared")
    if was != fingerprint:
        raise UserError(
            f"{folder}: the data changed since the run began (fingerprint {was} then, {fingerprint} now)"
        )


def refuse_other_files(folder: Path, files: dict[str, bytes]) -> None:
    """Make sure that a recipe's tokenizers are those that the run was begun with.

    Raises:
        UserError: one was exchanged.
    """
    known = read_record(folder).get("files", {})
    for name, content in files.items():
        now = hashlib.sha256(content).hexdigest()
        if known.get(name) != now:
            then = str(known.get(name))[:16]
            raise UserError(
                f"{folder}: can't resume, {name} is another than the run's (sha256 {then} then, {now[:16]} "
                f"now); give the"
                f" old one back, or resume without naming a recipe: the run keeps its own copy in "
                f"{folder / 'files'}"
            )


def versions() -> dict[str, str]:
    """Versions of lvlm, torch and Python, as run.json records them."""
    return {
        "lvlm": importlib.metadata.version("lvlm"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def parameters_record(model: LatentLM) -> dict[str, int]:
    """Parameter counts by part, as run.json keeps them."""
    return asdict(count_parameters(model))
