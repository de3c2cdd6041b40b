"""Reads a run's recipe, and loads its model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch

from lvlm.errors import UserError, nearest
from lvlm.generation.encode import Encoded, encode_in_windows
from lvlm.generation.generate import Sample, generate
from lvlm.generation.options import GenerateOptions, shows_options
from lvlm.model.latent_lm import LatentLM
from lvlm.model.precision import Precision, check_precision, convert
from lvlm.runs.folder import is_run, read_record
from lvlm.system.device import pick_device

if TYPE_CHECKING:
    from lvlm.recipe.recipe import Resolved
    from lvlm.registry.registry import Registry


def load(
    run: str | Path,
    *,
    plugin_files: Sequence[str] = (),
    step: int | None = None,
    precision: Precision = "fp32",
    device: str | torch.device = "cpu",
) -> LatentLM:
    """Load the model of a run, in evaluation mode, with the weights of a checkpoint.

    Executes nothing that the run holds.

    Args:
        run: a run's folder.
        plugin_files: as for `build`.
        step: of which checkpoint; the best by bound unless given.
        precision: of the weights: fp32, bf16, or int8 (needs the extra int8). Less than fp32 is for
            generating and encoding.
        device: where it computes: cpu, cuda, …; auto is a GPU where there is one.

    Raises:
        UserError: no such run or checkpoint, or a damaged one.
        lvlm.errors.MissingLibrary: 'int8' without torchao.
    """
    check_precision(precision)
    place = pick_device(str(device))
    return convert(load_run(run, plugin_files=plugin_files, step=step)[0].to(place), precision)


@shows_options
def sample(
    run: str | Path,
    prompt: str | Sequence[str],
    tokens: int = 200,
    *,
    plugin_files: Sequence[str] = (),
    precision: Precision = "fp32",
    device: str | torch.device = "auto",
    **options: Unpack[GenerateOptions],
) -> list[Sample]:
    """Continue prompts with the model of a run.

    Args:
        run: as for `load`.
        prompt: what the text begins with. A list gives several.
        tokens: as for `generate`.
        plugin_files: as for `build`.
        precision: as for `load`.
        device: as for `load`.
        options: as for `generate`.

    Raises:
        UserError: no such run, a prompt that the model can't read, options out of range.
    """
    model = load(run, plugin_files=plugin_files, precision=precision, device=device)
    return generate(model, prompt, tokens, **options)


def encode_text(
    run: str | Path,
    text: str | bytes,
    *,
    seed: int = 0,
    plugin_files: Sequence[str] = (),
    precision: Precision = "fp32",
    device: str | torch.device = "auto",
) -> list[Encoded]:
    """Encode a text of any length with the model of a run, in windows.

    A window has as many tokens as a row had in training, and is encoded by itself.

    Args:
        run: as for `load`.
        text: the text itself, of any length.
        seed: of the codes, which are drawn from the posterior; of window i it is seed + i.
        plugin_files: as for `build`.
        precision: as for `load`.
        device: as for `load`.

    Raises:
        UserError: no such run, one without a latent, an empty text, or one that the model can't read.
    """
    check_precision(precision)
    model, resolved, _ = load_run(run, plugin_files=plugin_files)
    model = convert(model.to(pick_device(str(device))), precision)
    return encode_in_windows(model, text, resolved.recipe.data.tokens, seed=seed)


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
    from lvlm.recipe.read import read_recipe
    from lvlm.registry.registry import Registry

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
    from lvlm.recipe.assemble import assemble
    from lvlm.runs.checkpoint import Checkpoints
    from lvlm.runs.weights import load_weights

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
