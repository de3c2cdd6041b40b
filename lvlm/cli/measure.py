"""Commands that measure a run: eval, lm-eval, doctor, steer."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from lvlm.cli.shared import AsJSON, PluginFiles, RunArgument, listed, progress, show
from lvlm.errors import UserError


def evaluate(
    run: RunArgument,
    estimators: Annotated[
        str | None,
        typer.Option(
            help="exact, elbo, prior, iwae, smc, smc_deferred; iwae and smc also as iwae_prior, smc_mixture."
        ),
    ] = None,
    k: Annotated[str | None, typer.Option(help="Codes per slot and particles: 16, or 4,16,64.")] = None,
    windows: Annotated[int | None, typer.Option(help="How many test windows.")] = None,
    chunk: Annotated[int | None, typer.Option(help="Tokens between two looks at a filter's weights.")] = None,
    resampling: Annotated[str | None, typer.Option(help="systematic, stratified or multinomial.")] = None,
    resample_below: Annotated[
        float | None, typer.Option(help="Share of K under which the effective sample size must fall.")
    ] = None,
    as_json: AsJSON = False,
    plugin: PluginFiles = None,
) -> None:
    """Evaluate a run: valid bounds on the likelihood, and what the latent does. As the recipe declares, unless told."""
    import lvlm
    from lvlm.cli.tables import evaluation_table

    names: Any = None if estimators is None else listed(estimators)
    result = lvlm.evaluate(
        run,
        estimators=names,
        k=None if k is None else [_whole(number) for number in listed(k)],
        windows=windows,
        chunk=chunk,
        resampling=resampling,  # type: ignore[arg-type]  # checked there
        resample_below=resample_below,
        plugin_files=plugin or [],
        console=progress(),
    )
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        show(*evaluation_table(result))


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"k is {text!r}; it is a whole number, or several with commas between") from None


def lm_eval(
    run: RunArgument,
    tasks: Annotated[str, typer.Option(help="Names of lm-eval's tasks, with commas between.")],
    k: Annotated[int, typer.Option(help="Particles, the same for every choice.")] = 16,
    seed: Annotated[int, typer.Option(help="Of all noise.")] = 0,
    limit: Annotated[int | None, typer.Option(help="Documents of each task; all unless given.")] = None,
    include_path: Annotated[str | None, typer.Option(help="A folder with further tasks.")] = None,
    as_json: AsJSON = False,
    plugin: PluginFiles = None,
) -> None:
    """Run tasks of EleutherAI's lm-evaluation-harness on a run; needs the extra lm-eval."""
    import lvlm
    from lvlm.cli.tables import tasks_table

    if not listed(tasks):
        raise UserError("which tasks? --tasks NAME,NAME")
    found = lvlm.lm_eval(
        run, listed(tasks), k=k, seed=seed, limit=limit, include_path=include_path, plugin_files=plugin or [],
        console=progress(),
    )  # fmt: skip
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        show(tasks_table(found))


def doctor(
    run: RunArgument,
    step: Annotated[
        int | None, typer.Option(help="Of which checkpoint; the best by bound unless given.")
    ] = None,
    as_json: AsJSON = False,
    plugin: PluginFiles = None,
) -> None:
    """Say whether the latent of a run lives, and what to try when it doesn't. Changes nothing."""
    from dataclasses import asdict

    import lvlm
    from lvlm.cli.latent_tables import examination_tables

    examination = lvlm.doctor(run, step=step, plugin_files=plugin or [], console=progress())
    if as_json:
        print(json.dumps(asdict(examination), indent=1))
    else:
        show(*examination_tables(examination))


def steer(
    run: RunArgument,
    groups: Annotated[int | None, typer.Option(help="Prompts; samples of one share its codes.")] = None,
    samples: Annotated[int | None, typer.Option(help="Samples of each prompt.")] = None,
    sources: Annotated[
        int | None, typer.Option(help="Test windows whose codes go to another prompt.")
    ] = None,
    prompt_tokens: Annotated[int | None, typer.Option(help="Tokens of a window that are given.")] = None,
    entropy: Annotated[
        float | None, typer.Option(help="Mean token entropy at which diversity is measured, nats.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of all noise.")] = None,
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
        run, groups=groups, samples=samples, sources=sources, prompt_tokens=prompt_tokens,
        entropy_nats_per_token=entropy, seed=seed, plugin_files=plugin or [], console=progress(),
    )  # fmt: skip
    if as_json:
        print(found.model_dump_json(indent=1))
    else:
        show(*steering_tables(found, Gate.of([found, *controls], lvlm=found.lvlm)))
