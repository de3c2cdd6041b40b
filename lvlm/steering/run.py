"""The steering of a run, stored beside it in steering.json and not measured twice.

What is stored is used again only if all that its numbers depend on is the same: weights, data, settings,
precision, device and the version of the measures.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from rich.console import Console

from lvlm.arguments import checks_arguments
from lvlm.data.source import need_windows
from lvlm.errors import UserError
from lvlm.generation.generate import BYTES_OF_A_TOKEN
from lvlm.interfaces import IGNORE, Batch
from lvlm.recipe.sections import SteerParams
from lvlm.runs.opened import OpenedRun, open_run
from lvlm.runs.work import working_on
from lvlm.steering.measure import measure
from lvlm.steering.probe import HALVINGS, Prober, Prompts
from lvlm.steering.record import FILE, VERSION, Steering, read_steering
from lvlm.system.files import write_atomically, writing
from lvlm.system.machine import need_memory
from lvlm.system.progress import Display

if TYPE_CHECKING:
    from lvlm.data.source import Windows


@checks_arguments
def steer(
    run: str | Path | OpenedRun,
    *overrides: str,
    groups: int | None = None,
    samples: int | None = None,
    sources: int | None = None,
    prompt_tokens: int | None = None,
    entropy_nats_per_token: float | None = None,
    seed: int | None = None,
    plugin_files: Sequence[str] = (),
    console: Console | None = None,
    label: str | None = None,
) -> Steering:
    """Measure what the codes of a run's selected checkpoint steer, and keep it in the run's steering.json.

    The checkpoint is chosen once, when the run is opened: one that lands meanwhile changes nothing.

    Args:
        run: as for `load`, or a run that is open. What isn't given is as its recipe's `steer` says, or that
            section's default.
        overrides: as for `evaluate`.
        groups: prompts, from the test windows; samples of one share its codes.
        samples: samples of each prompt.
        sources: test windows whose codes are carried over to another prompt.
        prompt_tokens: tokens of a window that are given.
        entropy_nats_per_token: mean token entropy at which diversity is measured, nats.
        seed: of all noise.
        plugin_files: as for `build`.
        console: where progress goes; quiet unless given.
        label: what stands in front of the progress; the run's name unless given.

    Raises:
        UserError: no such run, or a damaged one; another process works on it; options out of range; too
            little data, other data than it was trained on, or data with padded rows.
    """
    said = {
        "groups": groups,
        "samples": samples,
        "sources": sources,
        "prompt_tokens": prompt_tokens,
        "entropy_nats_per_token": entropy_nats_per_token,
        "seed": seed,
    }
    said = {name: value for name, value in said.items() if value is not None}
    label = label or f"steering {run}"
    with ExitStack() as work, Display(console or Console(quiet=True), label, 100) as display:
        opened = open_run(run, overrides, plugin_files=plugin_files)
        params = _with(opened.recipe.steer or SteerParams(), said)
        _check(opened, params)
        opened.model  # noqa: B018  read now: a training may delete the checkpoint while the data are opened
        windows = _windows(opened, params)
        key = _key(opened, params, windows.digest)
        stored = read_steering(opened.folder)
        if stored is not None and stored.key == key:
            return stored
        work.enter_context(working_on(opened.folder, "a measurement of steering"))
        prompt_tokens = _prompt_tokens(windows.batch, params.prompt_tokens)
        result = Steering(
            version=VERSION,
            key=key,
            lvlm=importlib.metadata.version("lvlm"),
            step=opened.step,
            settings={**params.model_dump(), "prompt_tokens": prompt_tokens},
            **_measured(opened, params, Prompts.of(windows.batch, prompt_tokens), display.share),
        )
        with writing(opened.folder / FILE):
            write_atomically(opened.folder / FILE, result.model_dump_json(indent=1) + "\n")
    return result


def _with(declared: SteerParams, said: dict[str, Any]) -> SteerParams:
    """What the recipe declares, with what was said in its place."""
    try:
        return SteerParams.model_validate({**declared.model_dump(), **said})
    except ValidationError as error:
        wrong = error.errors()[0]
        name = wrong["loc"][0]
        raise UserError(f"{name} is {said.get(str(name))}: {wrong['msg']}") from None


def _check(run: OpenedRun, params: SteerParams) -> None:
    """Check what is measured, as far as it needs neither weights nor data.

    Raises:
        UserError: the memory doesn't hold so many texts, or a window so many tokens.
    """
    tokens, count = run.recipe.data.tokens, max(params.groups, params.sources)
    need_windows(
        f"steer.groups is {params.groups}, steer.sources {params.sources}", count, run.recipe.data.row_bytes
    )
    texts = params.groups * params.samples
    what = f"steer.groups is {params.groups} and steer.samples {params.samples}"
    need_memory(what, texts * tokens * BYTES_OF_A_TOKEN, mend="fewer of either need less")
    if (params.prompt_tokens or 0) > run.recipe.data.tokens:
        raise UserError(
            f"steer.prompt_tokens is {params.prompt_tokens}, but a window has {run.recipe.data.tokens} tokens"
        )


def _windows(run: OpenedRun, params: SteerParams) -> Windows:
    """The test windows whose beginnings are prompts, and whose codes are carried over."""
    data, count = run.data, max(params.groups, params.sources)
    try:
        return data.windows(count, split="test")
    except UserError as error:
        asked = f"steer.groups is {params.groups}, steer.sources {params.sources}"
        raise UserError(f"{error} ({asked}: as many windows as the larger)") from None


def _key(run: OpenedRun, params: SteerParams, windows_hash: str) -> str:
    """A hash of all that the numbers depend on."""
    about = {
        "version": VERSION,
        "weights": run.weights_sha256,
        "windows": windows_hash,
        "settings": params.model_dump(),
        "precision": run.precision,
        "device": run.device.type,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _measured(
    run: OpenedRun, params: SteerParams, prompts: Prompts, progress: Callable[[float], None]
) -> dict[str, Any]:
    model = run.on_device()
    units = None if model.latent is None else len(model.latent.quantizer.units)
    total, done = _rows_to_draw(params, len(prompts.prompt_NP), units), 0

    def told(rows: int) -> None:
        nonlocal done
        done += rows
        progress(min(1.0, done / total))

    prober = Prober(
        model,
        tokens=prompts.text_NL.shape[1],
        rows=params.rows,
        seed=params.seed,
        autocast=run.autocast,
        told=told,
    )
    return measure(
        prober,
        prompts,
        run.recipe.data.attributes,
        run.recipe.data.codec,
        groups=params.groups,
        samples=params.samples,
        entropy_nats=params.entropy_nats_per_token,
    )


def _prompt_tokens(batch: Batch, asked: int | None) -> int:
    """Prompt tokens: as many as asked for, or what the data don't score: the token before the first target
    and all before it.
    """
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
    return apart + diversity + (0 if units is None else 2 * windows + apart * (4 + units if units else 1))
