"""The command line. Everything heavy is imported inside a command, so that `lvlm --help` is quick.

A user's mistake is told in words with exit status 2; an interrupted run exits with 128 + the signal's number.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from lvlm import cli_generate, cli_play
from lvlm.cli_data import data_app, tokenizer_app
from lvlm.cli_shared import (
    AsJSON,
    Overrides,
    PluginFiles,
    RecipeArgument,
    RunArgument,
    listed,
    progress,
    show,
)
from lvlm.errors import Interrupted, UserError

# Before a command imports torch: threads that wait for each other sleep instead of spinning. Where another process
# wants a core, spinning makes a training step several times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class Commands(TyperGroup):
    """Ends every command with a message and a status, and never with a traceback of the user's own mistake."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except UserError as error:
            _end(2, str(error))
        except Interrupted as error:
            _end(128 + error.signal_number, str(error))
        except KeyboardInterrupt:
            _end(128 + signal.SIGINT, "stopped")
        except BrokenPipeError:  # `lvlm kinds | head`: whoever read is gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        return result


def _end(status: int, message: str) -> NoReturn:
    if message:  # another process of the same training tells
        print(f"lvlm: {message}", file=sys.stderr)
    sys.exit(status)


app = typer.Typer(
    cls=Commands,
    help="A comparative zoo of latent-variable language models: compose, train, compare honestly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(data_app, name="data")
cli_generate.register(app)
cli_play.register(app)


@app.command()
def train(
    recipe: Annotated[
        str | None, typer.Argument(help="A YAML file or a shipped recipe; none with --resume.")
    ] = None,
    overrides: Overrides = None,
    out: Annotated[str | None, typer.Option(help="The run's folder; runs/NAME unless given.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in --out stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    plugin: PluginFiles = None,
) -> None:
    """Train a recipe into a run folder."""
    from lvlm import api

    if out is None and recipe is None:
        raise UserError("which recipe? name one, or go on with a run by --resume --out RUN")
    folder = _folder(out, str(recipe))
    api.train(
        recipe,
        folder,
        *(overrides or []),
        resume=resume,
        overwrite=overwrite,
        plugin_files=plugin or [],
        console=progress(),
    )
    print(folder)


def _folder(out: str | None, source: str) -> Path:
    """Where a recipe or a study goes."""
    if out is None:
        return Path("runs") / Path(source).stem
    if not out.strip():  # `--out "$RUN"` of a variable that isn't set
        raise UserError("--out is empty; name a folder")
    return Path(out)


@app.command(name="eval")
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
    from lvlm import api
    from lvlm.tables import evaluation_table

    names: Any = None if estimators is None else listed(estimators)
    result = api.evaluate(
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


@app.command(name="lm-eval")
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
    from lvlm import api
    from lvlm.tables import tasks_table

    if not listed(tasks):
        raise UserError("which tasks? --tasks NAME,NAME")
    found = api.lm_eval(
        run, listed(tasks), k=k, seed=seed, limit=limit, include_path=include_path, plugin_files=plugin or [],
        console=progress(),
    )  # fmt: skip
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        show(tasks_table(found))


@app.command()
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

    from lvlm import api
    from lvlm.tables import examination_tables

    examination = api.doctor(run, step=step, plugin_files=plugin or [], console=progress())
    if as_json:
        print(json.dumps(asdict(examination), indent=1))
    else:
        show(*examination_tables(examination))


@app.command()
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
    from lvlm import api
    from lvlm.steering.control import Gate, read_control
    from lvlm.tables import steering_tables

    controls = [read_control(control)] if control else []
    found = api.steer(
        run, groups=groups, samples=samples, sources=sources, prompt_tokens=prompt_tokens,
        entropy_nats_per_token=entropy, seed=seed, plugin_files=plugin or [], console=progress(),
    )  # fmt: skip
    if as_json:
        print(found.model_dump_json(indent=1))
    else:
        show(*steering_tables(found, Gate.of([found, *controls], lvlm=found.lvlm)))


@app.command()
def study(
    source: Annotated[str, typer.Argument(help="A study's YAML file, or the name of a shipped one (demo).")],
    overrides: Overrides = None,
    out: Annotated[str | None, typer.Option(help="The study's folder; runs/NAME unless given.")] = None,
    plugin: PluginFiles = None,
) -> None:
    """Train and compare the arms of a study over its seeds; finished runs are not run again."""
    from lvlm import api

    folder = _folder(out, source)
    command = shlex.join(["lvlm", *sys.argv[1:]])
    page = api.study(
        source, folder, *(overrides or []), plugin_files=plugin or [], console=progress(), command=command
    )
    print(f"report: {page.resolve().as_uri()}")


@app.command()
def check(
    recipe: RecipeArgument, overrides: Overrides = None, as_json: AsJSON = False, plugin: PluginFiles = None
) -> None:
    """Resolve a recipe: values with their origins, parameters by part, shapes at the seam. Trains nothing."""
    from lvlm import api
    from lvlm.tables import checked_record, checked_tables

    checked = api.check(recipe, *(overrides or []), plugin_files=plugin or [])
    if as_json:
        print(json.dumps(checked_record(checked), indent=1))
    else:
        show(*checked_tables(checked))


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(help="Processes that train together.")] = 1,
    memory: Annotated[str | None, typer.Option(help="Of a device: 80GB.")] = None,
    gpu: Annotated[
        str | None, typer.Option(help="For its peak: H100, A100, …; or say train.peak_tflops.")
    ] = None,
    mfu: Annotated[float, typer.Option(help="The share of the peak that the model's products get.")] = 0.4,
    tokens: Annotated[
        str | None, typer.Option(help="To train on: 300B; the recipe's steps unless given.")
    ] = None,
    price: Annotated[float | None, typer.Option(help="Of a device and hour.")] = None,
    as_json: AsJSON = False,
    plugin: PluginFiles = None,
) -> None:
    """Say what a training needs: memory of a device under the sharding plan, FLOPs, time, cost. Trains nothing."""
    from dataclasses import asdict

    from lvlm import api
    from lvlm.tables import plan_tables

    found = api.plan(
        recipe, *(overrides or []), gpus=gpus, memory=memory, gpu=gpu, mfu=mfu, tokens=tokens, price_per_hour=price,
        plugin_files=plugin or [],
    )  # fmt: skip
    if as_json:
        print(json.dumps(asdict(found) | {"fits": found.fits}, indent=1))
    else:
        show(*plan_tables(found))


@app.command()
def export(
    run: RunArgument,
    out: Annotated[str, typer.Argument(help="A folder that isn't there yet.")],
    format: Annotated[
        str, typer.Option(help="safetensors, which lvlm reads; onnx or torch-export, for other runtimes.")
    ] = "safetensors",
    step: Annotated[
        int | None, typer.Option(help="Of which checkpoint; the best by bound unless given.")
    ] = None,
    plugin: PluginFiles = None,
) -> None:
    """Write a run without its optimiser: as a folder that lvlm reads like a run, or as graphs, checked against PyTorch."""
    from lvlm import api

    print(api.export(run, out, format=format, step=step, plugin_files=plugin or []))
    record = Path(out) / "export.json"
    if record.exists():
        off = json.loads(record.read_text())["check"]["largest_difference"]
        print(f"differs from PyTorch by {max(off.values()):.2g} at most", file=sys.stderr)


@app.command()
def plugins(as_json: AsJSON = False, plugin: PluginFiles = None) -> None:
    """List the plugins, what they supply, and why one failed."""
    from dataclasses import asdict

    from lvlm import api
    from lvlm.tables import plugins_table

    found = api.plugins(plugin_files=plugin or [])
    if as_json:
        print(json.dumps([asdict(p) for p in found], indent=1))
    else:
        show(plugins_table(found))


@app.command()
def kinds(
    role: Annotated[
        str | None, typer.Argument(help="backbone, encoder, quantizer, injection, loss or data.")
    ] = None,
    as_json: AsJSON = False,
    plugin: PluginFiles = None,
) -> None:
    """List the kinds of a role with their options."""
    from lvlm import api
    from lvlm.tables import kinds_record, kinds_tables

    found = api.kinds(role, plugin_files=plugin or [])
    if as_json:
        print(json.dumps(kinds_record(found), indent=1))
    else:
        show(*kinds_tables(found))


@app.command()
def schema(plugin: PluginFiles = None) -> None:
    """Print the JSON Schema of recipes, for editors."""
    from lvlm import api

    print(json.dumps(api.schema(plugin_files=plugin or []), indent=1))


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        from lvlm import __version__

        print(__version__)
        raise typer.Exit


main = app  # the entry point
