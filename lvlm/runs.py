"""Run folders: made once, never overwritten by accident, read without executing anything.

RUN/recipe.yaml        every resolved value, by kind; no import paths
RUN/run.json           versions, plugins, data fingerprint, parameters, and what the training cost
RUN/files/             copies of what the data's codec is made of (a tokenizer.json), by sha256 in run.json
RUN/metrics.jsonl      what was logged            RUN/tensorboard/   the same, for TensorBoard
RUN/checkpoints/       see lvlm.training.checkpoint
RUN/evaluation.json    see lvlm.evaluation; per-sequence arrays in evaluation.npz
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lvlm.errors import UserError, nearest
from lvlm.model import LatentLM

if TYPE_CHECKING:
    from lvlm.recipe import Resolved
    from lvlm.registry import Registry


UNBORN = {
    "files",
    "run.json",
    ".run.json.writing",
    ".recipe.yaml.writing",
}  # what a run that died at birth may leave
MADE_LATER = ("files", "checkpoints", "tensorboard", "metrics.jsonl", "evaluation.json", "evaluation.npz")


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run."""
    return (folder / "recipe.yaml").is_file() and (folder / "run.json").is_file()


def claim(folder: Path, *, overwrite: bool) -> None:
    """Make sure that a new run may be written to a folder; nothing is deleted before `write_run`.

    Raises:
        UserError: it holds a run (without `overwrite`), or something that isn't a run.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder for the run")
    there = {path.name for path in folder.iterdir()}
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
    record = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "plugins": [
            {"name": p.name, "version": p.version, "kinds": p.kinds}
            for p in resolved.registry.plugins
            if p.name in used
        ],
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        **facts,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in MADE_LATER:
            delete(folder / name)
        write_atomically(folder / "run.json", json.dumps(record, indent=1) + "\n")
        for name, content in files.items():
            (folder / "files" / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "files" / name, content)
        write_atomically(folder / "recipe.yaml", saved.to_yaml())  # last: with it the folder is a run
    except OSError as error:
        raise UserError(f"{folder}: could not be written: {error.strerror or error}") from None


def _plugins_used(resolved: Resolved) -> set[str]:
    recipe, registry = resolved.recipe, resolved.registry
    parts = [
        recipe.model.backbone,
        recipe.model.encoder,
        recipe.model.quantizer,
        recipe.model.injection,
        recipe.loss,
    ]
    return {registry.get(part.role, part.kind_name()).plugin for part in parts if part is not None}


def update_record(folder: Path, **facts: Any) -> None:
    """Add facts to run.json."""
    record = read_record(folder) | facts
    write_atomically(folder / "run.json", json.dumps(record, indent=1) + "\n")


def read_record(folder: Path) -> dict[str, Any]:
    """run.json.

    Raises:
        UserError: it can't be read.
    """
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a run's record: {error}") from None
    return record


def refuse_other_data(folder: Path, fingerprint: str) -> None:
    """Make sure that the data are those that the run was trained on: else what was held out may have moved.

    Raises:
        UserError: they changed.
    """
    was = read_record(folder).get("data_fingerprint")
    if was != fingerprint:
        raise UserError(
            f"{folder}: the data changed since the run began (fingerprint {was} then, {fingerprint} now)"
        )


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
    from lvlm.recipe import read_recipe
    from lvlm.registry import Registry

    folder = Path(folder)
    if not folder.exists():
        siblings = [p.name for p in folder.parent.iterdir() if is_run(p)] if folder.parent.is_dir() else []
        raise UserError(f"{folder}: no such run{nearest(folder.name, siblings)}")
    if not is_run(folder):
        raise UserError(f"{folder}: holds no run (a run has recipe.yaml and run.json)")
    record = read_record(folder)
    files = _kept_files(folder, record)
    registry = registry.extended(plugin_files) if registry else Registry.load(files=plugin_files)
    try:
        return read_recipe(folder / "recipe.yaml", overrides, registry=registry, files=files)
    except UserError as error:
        missing = _missing_plugins(record, registry)
        hint = f"\n{folder}: was trained with {missing}; give a plugin file again with --plugin FILE"
        raise UserError(f"{error}{hint if missing else ''}") from None


def _kept_files(folder: Path, record: dict[str, Any]) -> Path | None:
    """The folder of a run's copies, each of which is what it was; None for a run without any."""
    known = record.get("files")
    if not isinstance(known, dict) or not known:
        return None
    for name, sha256 in known.items():
        path = folder / "files" / name
        try:
            now = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read, and the run needs it: {error.strerror or error}"
            ) from None
        if now != sha256:
            raise UserError(
                f"{path}: was exchanged since the run began (sha256 {sha256[:16]} then, {now[:16]} now)"
            )
    return folder / "files"


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
                f"{folder}: can't resume, {name} is another than the run's (sha256 {then} then, {now[:16]} now); give the"
                f" old one back, or resume without naming a recipe: the run keeps its own copy in {folder / 'files'}"
            )


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


def load_run(
    folder: str | Path,
    *,
    registry: Registry | None = None,
    plugin_files: Sequence[str] = (),
    step: int | None = None,
) -> tuple[LatentLM, Resolved, int]:
    """The model of a run with the weights of its best checkpoint by bound (or those of `step`), its recipe
    and the step.

    Raises:
        UserError: no run, no such checkpoint, or a damaged one.
    """
    from lvlm.assemble import assemble
    from lvlm.training.checkpoint import Checkpoints, load_weights

    if (Path(folder) / "export.json").is_file():
        raise UserError(f"{folder}: graphs for other runtimes; lvlm reads runs, and exports as safetensors")
    resolved = read_run(folder, registry=registry, plugin_files=plugin_files)
    checkpoints = Checkpoints(Path(folder))
    checkpoint = checkpoints.best()
    if step is not None:
        by_step = {c.step: c for c in checkpoints.list()}
        if step not in by_step:
            raise UserError(f"{folder}: no checkpoint of step {step}; there are {sorted(by_step)}")
        checkpoint = by_step[step]
    model = assemble(resolved.recipe)
    load_weights(model, checkpoint)
    model.at_step(checkpoint.step)
    return model.eval(), resolved, checkpoint.step


def export_run(folder: Path, out: Path, *, step: int | None = None, plugin_files: Sequence[str] = ()) -> Path:
    """See `lvlm.export`. The export is a run with one checkpoint, which knows no optimiser and can't be resumed."""
    from lvlm.training.checkpoint import Checkpoints, tensors_of

    with new_folder(out) as temporary:
        model, _, step = load_run(folder, plugin_files=plugin_files, step=step)
        (manifest,) = [c.manifest for c in Checkpoints(folder).list() if c.step == step]
        copy_recipe(folder, temporary)
        Checkpoints(temporary).save(
            tensors_of(model), {}, step=step, bound_name=manifest.bound_name, bound=manifest.bound
        )
    return out


def copy_recipe(folder: Path, to: Path) -> None:
    """What a run says of itself, and the files that it needs to read text, into a folder that is there."""
    for name in ("run.json", "recipe.yaml"):
        shutil.copy(folder / name, to / name)
    if (folder / "files").is_dir():
        shutil.copytree(folder / "files", to / "files")


def versions() -> dict[str, str]:
    """Of what computes."""
    return {
        "lvlm": importlib.metadata.version("lvlm"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside, then rename: a reader sees the old file or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.writing-{os.getpid()}")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which gets the name `out` when all is written, and is gone when something went wrong.

    Raises:
        UserError: `out` is there already, or can't be written.
    """
    temporary = out.with_name(f".{out.name}.writing-{os.getpid()}")
    try:
        if out.exists():
            raise UserError(f"{out}: is there already; name a new folder")
        delete(temporary)
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, out)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another process was first
            raise UserError(f"{out}: is there already; name a new folder") from None
        raise UserError(f"{out}: could not be written: {error.strerror or error}") from None
    finally:
        delete(temporary)


def delete(path: Path) -> None:
    """Delete a file, a folder with all that it holds, or nothing; of a link, the link."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except NotADirectoryError:  # below a file there is nothing
        pass


def parameters_record(model: LatentLM) -> dict[str, int]:
    """Parameter counts by part, as run.json keeps them."""
    from lvlm.assemble import count_parameters

    return asdict(count_parameters(model))
