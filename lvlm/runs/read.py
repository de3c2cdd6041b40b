"""Reads the recipe of a run, with the tokenizers that the run keeps; executes nothing that the run holds."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lvlm.errors import UserError, nearest
from lvlm.recipe.recipe import Resolved
from lvlm.recipe.saved import read_saved_recipe
from lvlm.registry.registry import PluginInfo, Registry
from lvlm.runs.folder import is_run, read_record
from lvlm.system.files import entries, given_path, is_folder, is_there, real, shown
from lvlm.system.regular import MIB, read_regular

LOGGER = logging.getLogger(__name__)

MOST_RECIPE_BYTES = 4 * MIB

MOST_KEPT_BYTES = 1024 * MIB
"""Most bytes of a file in RUN/files; tokenizers of 100 MiB are known."""

SHOWN_RUNS = 12


def read_run(
    folder: str | Path,
    overrides: Sequence[str] = (),
    *,
    registry: Registry | None = None,
    plugin_files: Sequence[str] = (),
) -> Resolved:
    """The recipe of a run. Plugin *files* of a run are not executed unless the user names them again; one of
    another content than the run was made with is used, after a warning.

    Raises:
        UserError: no run there, its recipe was changed since, or its kinds are not to be had.
    """
    folder = given_path(folder, "the run's folder")
    if not is_there(folder):
        siblings = [p.name for p in entries(folder.parent) if is_run(p)] if is_folder(folder.parent) else []
        raise UserError(f"{folder}: no such run{nearest(folder.name, siblings)}")
    if not is_run(folder):
        raise UserError(f"{folder}: holds no run (a run has recipe.yaml and run.json){_runs_below(folder)}")
    record = read_record(folder)
    content = _recipe(folder / "recipe.yaml", record)
    files = _kept_files(folder, record)
    registry = registry.extended(plugin_files) if registry else Registry.load(files=plugin_files)
    try:
        resolved = read_saved_recipe(
            content, shown(folder / "recipe.yaml"), overrides, registry=registry, files=files
        )
    except UserError as error:
        missing = _missing_plugins(folder, record, registry)
        raise UserError("\n".join([str(error), *missing])) from None
    for plugin in resolved.registry.plugins:
        _warn_of_another(folder, record, plugin)
    return resolved


def _runs_below(folder: Path) -> str:
    """What to name in place of a folder that holds runs, in words."""
    try:
        found = sorted(path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/run.json"))
    except OSError:
        return ""
    runs = [str(path) for path in found if is_run(path)]
    more = f" and {len(runs) - SHOWN_RUNS:,} more" if len(runs) > SHOWN_RUNS else ""
    return f"; name one of the runs in it: {', '.join(runs[:SHOWN_RUNS])}{more}" if runs else ""


def onset(folder: Path) -> int | None:
    """The step from which on the decoder of a finished run reads its codes, as run.json has it.

    The first evaluation of a stretch up to the end in which the interval of worth = ce_prior - ce_posterior
    over the validation windows lies above 0.0001 nats/token; `lvlm.training.validation.onset` has the
    exact rule.

    Returns:
        None where codes aren't read at the end, without a latent, and for a run that isn't finished or is of
        a version that kept no record of it.

    Raises:
        UserError: run.json can't be read.
    """
    step: int | None = read_record(folder).get("onset")
    return step


def _recipe(path: Path, record: dict[str, Any]) -> bytes:
    """The saved recipe, which is what it was when the run began; older runs can't tell."""
    content = read_regular(path, most_bytes=MOST_RECIPE_BYTES)
    then, now = record.get("recipe_sha256"), hashlib.sha256(content).hexdigest()
    if then not in (None, now):
        raise UserError(
            f"{path}: was changed since the run began (sha256 {then[:16]} then, {now[:16]} now), and a run "
            f"is what it was trained as; put the old file back, or train the new recipe into another folder"
        )
    return content


def _kept_files(folder: Path, record: dict[str, Any]) -> dict[str, bytes] | None:
    """The contents of a run's copies by name, each of which is what it was; None for a run without.

    Nothing opens the files again: a codec is made of the bytes that were compared.

    Raises:
        UserError: one is missing or was exchanged, or others lie beside them.
    """
    known, kept = record.get("files"), folder / "files"
    if not known:
        return None
    contents = {}
    for path in kept.rglob("*"):
        if not path.is_dir() and path.relative_to(kept).as_posix() not in known:
            raise UserError(f"{path}: is none of the run's files, which run.json names; move it elsewhere")
    for name, sha256 in known.items():
        path = kept / name
        if {"", ".", ".."} & set(name.split("/")) or not real(path).is_relative_to(real(kept)):
            raise UserError(f"{folder / 'run.json'}: files: {name!r} is no file in {kept}")
        contents[name] = read_regular(path, most_bytes=MOST_KEPT_BYTES)
        now = hashlib.sha256(contents[name]).hexdigest()
        if now != sha256:
            raise UserError(
                f"{path}: was exchanged since the run began (sha256 {sha256[:16]} then, {now[:16]} now)"
            )
    return contents


def _missing_plugins(folder: Path, record: dict[str, Any], registry: Registry) -> list[str]:
    """A line for each plugin that the run was trained with and that is not here."""
    loaded = [plugin for plugin in registry.plugins if not plugin.error]
    names, contents = {plugin.name for plugin in loaded}, {plugin.sha256 for plugin in loaded} - {""}
    lines = []
    for used in record.get("plugins", []):
        if used["name"] in names or used.get("sha256") in contents:
            continue
        name, version, sha256 = used["name"], used.get("version", "unknown"), used.get("sha256")
        how = "install it, or give its file with --plugin FILE"
        if sha256 is not None:
            how = f"give its file {name}.py again with --plugin FILE (sha256 {sha256})"
        lines.append(f"{folder}: was trained with the plugin {name!r} (version {version}); {how}")
    return lines


def _warn_of_another(folder: Path, record: dict[str, Any], plugin: PluginInfo) -> None:
    """Warn of a plugin file that has another content than the one that the run was made with.

    The user named it, and it may well be mended only, so that it is no error.
    """
    for used in record.get("plugins", []):
        then = used.get("sha256") or used.get("version", "")
        if not plugin.single_file or used["name"] != plugin.name or not re.fullmatch("[0-9a-f]{12,64}", then):
            continue
        if not plugin.sha256.startswith(then):
            LOGGER.warning(
                f"{folder}: was made with another {plugin.name}.py (sha256 {then[:12]}) than "
                f"{shown(Path(plugin.origin))} (sha256 {plugin.version}); the numbers may differ"
            )
