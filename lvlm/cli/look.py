"""Commands that show something and change nothing, and export."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from lvlm.cli.shared import AsJSON, Overrides, PluginFiles, RecipeArgument, RunArgument, show


def check(
    recipe: RecipeArgument, overrides: Overrides = None, as_json: AsJSON = False, plugin: PluginFiles = None
) -> None:
    """Resolve a recipe: values with their origins, parameters by part, shapes at the seam. Trains nothing."""
    import lvlm
    from lvlm.cli.tables import checked_record, checked_tables

    checked = lvlm.check(recipe, *(overrides or []), plugin_files=plugin or [])
    if as_json:
        print(json.dumps(checked_record(checked), indent=1))
    else:
        show(*checked_tables(checked))


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

    import lvlm
    from lvlm.cli.tables import plan_tables

    found = lvlm.plan(
        recipe, *(overrides or []), gpus=gpus, memory=memory, gpu=gpu, mfu=mfu, tokens=tokens, price_per_hour=price,
        plugin_files=plugin or [],
    )  # fmt: skip
    if as_json:
        print(json.dumps(asdict(found) | {"fits": found.fits}, indent=1))
    else:
        show(*plan_tables(found))


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
    import lvlm

    print(lvlm.export(run, out, format=format, step=step, plugin_files=plugin or []))
    record = Path(out) / "export.json"
    if record.exists():
        off = json.loads(record.read_text())["check"]["largest_difference"]
        print(f"differs from PyTorch by {max(off.values()):.2g} at most", file=sys.stderr)


def plugins(as_json: AsJSON = False, plugin: PluginFiles = None) -> None:
    """List the plugins, what they supply, and why one failed."""
    from dataclasses import asdict

    import lvlm
    from lvlm.cli.tables import plugins_table

    found = lvlm.plugins(plugin_files=plugin or [])
    if as_json:
        print(json.dumps([asdict(p) for p in found], indent=1))
    else:
        show(plugins_table(found))


def kinds(
    role: Annotated[
        str | None, typer.Argument(help="backbone, encoder, quantizer, injection, loss or data.")
    ] = None,
    as_json: AsJSON = False,
    plugin: PluginFiles = None,
) -> None:
    """List the kinds of a role with their options."""
    import lvlm
    from lvlm.cli.tables import kinds_record, kinds_tables

    found = lvlm.kinds(role, plugin_files=plugin or [])
    if as_json:
        print(json.dumps(kinds_record(found), indent=1))
    else:
        show(*kinds_tables(found))


def schema(plugin: PluginFiles = None) -> None:
    """Print the JSON Schema of recipes, for editors."""
    import lvlm

    print(json.dumps(lvlm.schema(plugin_files=plugin or []), indent=1))
