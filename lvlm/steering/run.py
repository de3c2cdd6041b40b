"""The steering of a run, stored beside it in steering.json and not measured twice.

What is stored is used again only if all that its numbers depend on is the same: weights, data, settings, precision, device
and the version of the measures.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError
from rich.console import Console

from lvlm.errors import UserError
from lvlm.interfaces import IGNORE, Batch
from lvlm.recipe.sections import SteerParams
from lvlm.runs.checkpoint import Checkpoints
from lvlm.runs.folder import refuse_other_data
from lvlm.runs.load import load_run, read_run
from lvlm.steering.measure import measure
from lvlm.steering.probe import HALVINGS, Prober, Prompts
from lvlm.steering.record import FILE, VERSION, Steering, read_steering
from lvlm.system.device import pick_autocast, pick_device
from lvlm.system.files import write_atomically
from lvlm.system.progress import Display

if TYPE_CHECKING:
    from lvlm.registry.registry import Registry


def steer_run(
    folder: Path,
    params: SteerParams | None = None,
    *,
    registry: Registry | None = None,
    plugin_files: tuple[str, ...] = (),
    progress: Callable[[float], None] | None = None,
) -> Steering:
    """Measure the best checkpoint of a run, as `params` or its recipe says, and keep the result in steering.json.

    Raises:
        UserError: no such run, a damaged one, other data than it was trained on, too little of it, rows with padding.
    """
    model, resolved, step = load_run(folder, registry=registry, plugin_files=plugin_files)
    recipe = resolved.recipe
    params = params or recipe.steer or SteerParams()
    device = pick_device(recipe.train.device)
    precision, autocast = pick_autocast(recipe.train.precision, device)
    data = recipe.data.open()
    refuse_other_data(folder, data.fingerprint)
    if (params.prompt_tokens or 0) > recipe.data.tokens:
        raise UserError(
            f"steer.prompt_tokens is {params.prompt_tokens}, but a window has {recipe.data.tokens} tokens"
        )
    try:
        windows = data.windows(max(params.groups, params.sources), split="test")
    except UserError as error:
        asked = f"steer.groups is {params.groups}, steer.sources {params.sources}"
        raise UserError(f"{error} ({asked}: as many windows as the larger)") from None
    best = Checkpoints(folder).best()
    about = {
        "version": VERSION,
        "weights": [best.manifest.sha256[name] for name in best.files("model")],
        "windows": windows.digest,
        "settings": params.model_dump(),
        "precision": precision,
        "device": device.type,
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    stored = read_steering(folder)
    if stored is not None and stored.key == key:
        return stored
    prompt_tokens = _prompt_tokens(windows.batch, params.prompt_tokens)
    prompts = Prompts.of(windows.batch, prompt_tokens)
    units = None if model.latent is None else len(model.latent.quantizer.units)
    total, done = _rows_to_draw(params, len(windows.batch), units), 0

    def told(rows: int) -> None:
        nonlocal done
        done += rows
        if progress:
            progress(min(1.0, done / total))

    prober = Prober(
        model.to(device), tokens=prompts.text_NL.shape[1], rows=params.rows, seed=params.seed, autocast=autocast, told=told
    )  # fmt: skip
    found = measure(
        prober,
        prompts,
        recipe.data.attributes,
        recipe.data.codec,
        groups=params.groups,
        samples=params.samples,
        entropy_nats=params.entropy_nats_per_token,
    )
    result = Steering(
        version=VERSION,
        key=key,
        lvlm=importlib.metadata.version("lvlm"),
        step=step,
        settings={**params.model_dump(), "prompt_tokens": prompt_tokens},
        **found,
    )
    try:
        write_atomically(folder / FILE, result.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{folder / FILE}: could not be written: {error.strerror or error}") from None
    return result


def _prompt_tokens(batch: Batch, asked: int | None) -> int:
    """As many as asked for, or what the data don't score: the token before the first target and all before it."""
    if not bool(batch.keep_BT.all()):
        raise UserError(
            "steering needs whole windows, and some of these are padded; use data whose rows are full"
        )
    if asked is not None:
        return asked
    is_target_T = (batch.targets_BT != IGNORE).any(0)
    return int(is_target_T.int().argmax()) + 1


def _rows_to_draw(params: SteerParams, windows: int, units: int | None) -> int:
    """Texts that will be drawn, for the progress."""
    apart = params.groups * params.samples
    diversity = windows * (1 if params.entropy_nats_per_token is None else 1 + HALVINGS)
    return apart + diversity + (0 if not units else 2 * windows + apart * (4 + units))


def steer(
    run: str | Path,
    *,
    groups: int | None = None,
    samples: int | None = None,
    sources: int | None = None,
    prompt_tokens: int | None = None,
    entropy_nats_per_token: float | None = None,
    seed: int | None = None,
    plugin_files: Sequence[str] = (),
    console: Console | None = None,
) -> Steering:
    """Measure what the codes of a run's best checkpoint steer, and keep it in the run's steering.json.

    What isn't given is as the recipe's `steer` says, or that section's default.

    Args:
        run: as for `load`.
        groups: prompts, from the test windows; samples of one share its codes.
        samples: samples of each prompt.
        sources: test windows whose codes are carried over to another prompt.
        prompt_tokens: tokens of a window that are given.
        entropy_nats_per_token: mean token entropy at which diversity is measured, nats.
        seed: of all noise.
        plugin_files: as for `build`.
        console: where progress goes; quiet unless given.

    Raises:
        UserError: no such run, or a damaged one; options out of range; data with padded rows.
    """
    said = {
        "groups": groups, "samples": samples, "sources": sources, "prompt_tokens": prompt_tokens,
        "entropy_nats_per_token": entropy_nats_per_token, "seed": seed,
    }  # fmt: skip
    said = {name: value for name, value in said.items() if value is not None}
    declared = read_run(run, plugin_files=plugin_files).recipe.steer or SteerParams()
    try:
        params = SteerParams.model_validate({**declared.model_dump(), **said})
    except ValidationError as error:
        wrong = error.errors()[0]
        name = wrong["loc"][0]
        raise UserError(f"{name} is {said.get(str(name))}: {wrong['msg']}") from None
    with Display(console or Console(quiet=True), f"steering {run}", 100) as display:
        return steer_run(Path(run), params, plugin_files=tuple(plugin_files), progress=display.share)
