"""Commands that measure a run: eval, lm-eval, doctor, steer."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from lvlm.cli.shared import AsJSON, Overrides, PluginFiles, listed, progress
from lvlm.cli.streams import put, show
from lvlm.cli.words import described_by
from lvlm.errors import UserError


@described_by("evaluate")
def evaluate(
    run: str,
    overrides: Overrides = None,
    estimators: Annotated[str | None, typer.Option(metavar="NAME,…")] = None,
    k: Annotated[str | None, typer.Option(metavar="N,…")] = None,
    windows: int | None = None,
    chunk: int | None = None,
    resampling: str | None = None,
    resample_below: float | None = None,
    repeats: int | None = None,
    step: int | None = None,
    as_json: AsJSON = False,
    plugin: PluginFiles = None,
) -> None:
    """Evaluate a run: valid bounds on the likelihood, and what the latent does. As the recipe declares,
    unless told.
    """
    import lvlm
    from lvlm.cli.tables import evaluation_table

    names: Any = None if estimators is None else listed(estimators)
    result = lvlm.evaluate(
        run,
        *(overrides or []),
        estimators=names,
        k=None if k is None else [_whole(number) for number in listed(k)],
        windows=windows,
        chunk=chunk,
        resampling=resampling,  # type: ignore[arg-type]  # checked there
        resample_below=resample_below,
        repeats=repeats,
        step=step,
        plugin_files=plugin or [],
        console=progress(),
    )
    if as_json:
        put(json.dumps(result, indent=1))
    else:
        show(*evaluation_table(result))


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"k is {text!r}; it is a whole number, or several with commas between") from None


@described_by("lm_eval")
def lm_eval(
    run: str,
    overrides: Overrides = None,
    *,
    tasks: Annotated[str, typer.Option(metavar="NAME,…")],
    k: int = 16,
    seed: int = 0,
    limit: int | None = None,
    include_path: str | None = None,
    as_json: AsJSON = False,
    plugin: PluginFiles = None,
) -> None:
    """Run tasks of EleutherAI's lm-evaluation-harness on a run; needs the extra lm-eval."""
    import lvlm
    from lvlm.cli.tables import tasks_table

    if not listed(tasks):
        raise UserError("which tasks? --tasks NAME,NAME")
    found = lvlm.lm_eval(
        run,
        listed(tasks),
        *(overrides or []),
        k=k,
        seed=seed,
        limit=limit,
        include_path=include_path,
        plugin_files=plugin or [],
        console=progress(),
    )
    if as_json:
        put(json.dumps(found, indent=1))
    else:
        show(tasks_table(found))


@described_by("doctor")
def doctor(
    run: str,
    overrides: Overrides = None,
    step: int | None = None,
    windows: int | None = None,
    as_json: AsJSON = False,
    plugin: PluginFiles = None,
) -> None:
    """Say whether the decoder of a run reads its codes, and what to try when it doesn't. Changes nothing."""
    from dataclasses import asdict

    import lvlm
    from lvlm.cli.latent_tables import examination_tables

    examination = lvlm.doctor(
        run, *(overrides or []), step=step, windows=windows, plugin_files=plugin or [], console=progress()
    )
    if as_json:
        put(json.dumps(asdict(examination), indent=1))
    else:
        show(*examination_tables(examination))


@described_by("steer", entropy="entropy_nats_per_token")
def steer(
    run: str,
    overrides: Overrides = None,
    groups: int | None = None,
    samples: int | None = None,
    sources: int | None = None,
    prompt_tokens: int | None = None,
    entropy: float | None = None,
    seed: int | None = None,
    control: Annotated[
        str | None, typer.Option(help="A run that lvlm steer has measured, on data with a positive control.")
    ] = None,
    as_json: AsJSON = False,
    plugin: PluginFiles = None,
) -> None:
    """Measure what codes steer. A null result is shown only beside a positive control that came out."""
    import lvlm
    from lvlm.cli.latent_tables import steering_tables
    from lvlm.steering.control import Gate, read_control

    controls = [read_control(control)] if control else []
    found = lvlm.steer(
        run,
        *(overrides or []),
        groups=groups,
        samples=samples,
        sources=sources,
        prompt_tokens=prompt_tokens,
        entropy_nats_per_token=entropy,
        seed=seed,
        plugin_files=plugin or [],
        console=progress(),
    )
    if as_json:
        put(found.model_dump_json(indent=1))
    else:
        show(*steering_tables(found, Gate.of([found, *controls], lvlm=found.lvlm)))
