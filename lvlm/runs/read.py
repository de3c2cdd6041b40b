"""Reads the recipe of a run, with the tokenizers that the run keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lvlm.errors import UserError, nearest
from lvlm.recipe.read import read_recipe
from lvlm.recipe.recipe import Resolved
from lvlm.registry.registry import Registry
from lvlm.runs.folder import is_run, read_record
from lvlm.system.files import reading

SHOWN_RUNS = 12


def read_run(
    folder: str | Path,
    overrides: Sequence[str] = (),
    *,
    registry: Registry | None = None,
    plugin_files: Sequence[str] = (),
) -> Resolved:
    """The recipe of a run. Plugin *files* of a run are not executed unless they are named again.

    Raises:
        UserError: no run there, or its kinds are not to be had.
    """
    folder = Path(folder)
    if not folder.exists():
        siblings = [p.name for p in folder.parent.iterdir() if is_run(p)] if folder.parent.is_dir() else []
        raise UserError(f"{folder}: no such run{nearest(folder.name, siblings)}")
    if not is_run(folder):
        raise UserError(f"{folder}: holds no run (a run has recipe.yaml and run.json){_runs_below(folder)}")
    record = read_record(folder)
    files = _kept_files(folder, record)
    registry = registry.extended(plugin_files) if registry else Registry.load(files=plugin_files)
    try:
        return read_recipe(folder / "recipe.yaml", overrides, registry=registry, files=files, saved=True)
    except UserError as error:
        missing = _missing_plugins(record, registry)
        hint = f"\n{folder}: was trained with {missing}; give a plugin file again with --plugin FILE"
        raise UserError(f"{error}{hint if missing else ''}") from None


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
    over the validation windows lies above zero; `lvlm.training.validation.onset` has the exact rule.

    Returns:
        None where codes aren't read at the end, without a latent, and for a run that isn't finished or is of
        a version that kept no record of it.

    Raises:
        UserError: run.json can't be read.
    """
    step = read_record(folder).get("onset")
    return step if isinstance(step, int) else None


def _kept_files(folder: Path, record: dict[str, Any]) -> Path | None:
    """The folder of a run's copies, each of which is what it was; None for a run without any."""
    known = record.get("files")
    if not isinstance(known, dict) or not known:
        return None
    for name, sha256 in known.items():
        path = folder / "files" / name
        with reading(f"{path}: cannot be read, and the run needs it"):
            now = hashlib.sha256(path.read_bytes()).hexdigest()
        if now != sha256:
            raise UserError(
                f"{path}: was exchanged since the run began (sha256 {sha256[:16]} then, {now[:16]} now)"
            )
    return folder / "files"


def _missing_plugins(record: dict[str, Any], registry: Registry) -> str:
    """The plugins that a run was trained with and that are not here, in words."""
    loaded = {plugin.name for plugin in registry.plugins if not plugin.error}
    used = record.get("plugins")
    named = [p for p in used if isinstance(p, dict)] if isinstance(used, list) else []
    return ", ".join(
        f"the plugin {p.get('name')!r} (version {p.get('version')})"
        for p in named
        if p.get("name") not in loaded
    )
