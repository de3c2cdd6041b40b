"""Commands that show something and change nothing, and export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lvlm.cli.shared import AsJSON, Overrides, PluginFiles
from lvlm.cli.streams import put, say, show
from lvlm.cli.words import described_by


@described_by("check")
def check(
    recipe: str, overrides: Overrides = None, as_json: AsJSON = False, plugin: PluginFiles = None
) -> None:
    """Resolve a recipe: values with their origins, parameters by part, shapes at the seam; or a study: every
    arm. Trains nothing.
    """
    import lvlm
    from lvlm.cli.tables import checked_record, checked_study, checked_tables
    from lvlm.recipe.study import is_study

    if is_study(recipe):
        from lvlm.recipe.check import check_study

        study, arms = check_study(recipe, *(overrides or []), plugin_files=plugin or [])
        if as_json:
            records = {arm: checked_record(checked) for arm, checked in arms.items()}
            put(json.dumps({"study": study.name, "seeds": study.seeds, "arms": records}, indent=1))
        else:
            show(*checked_study(study, arms))
        return
    checked = lvlm.check(recipe, *(overrides or []), plugin_files=plugin or [])
    if as_json:
        put(json.dumps(checked_record(checked), indent=1))
    else:
        show(*checked_tables(checked))


@described_by("plan", price="price_per_hour")
def plan(
    recipe: str,
    overrides: Overrides = None,
    gpus: int = 1,
    memory: str | None = None,
    gpu: str | None = None,
    mfu: float = 0.4,
    tokens: str | None = None,
    price: float | None = None,
    as_json: AsJSON = False,
    plugin: PluginFiles = None,
) -> None:
    """Say what a training needs: memory of a device under the sharding plan, FLOPs, time, cost. Trains
    nothing.
    """
    from dataclasses import asdict

    import lvlm
    from lvlm.cli.tables import plan_tables

    found = lvlm.plan(
        recipe,
        *(overrides or []),
        gpus=gpus,
        memory=memory,
        gpu=gpu,
        mfu=mfu,
        tokens=tokens,
        price_per_hour=price,
        plugin_files=plugin or [],
    )
    if as_json:
        put(json.dumps(asdict(found) | {"fits": found.fits}, indent=1))
    else:
        show(*plan_tables(found))


@described_by("export")
def export(
    run: str,
    out: Annotated[str, typer.Argument()],
    format: str = "safetensors",
    step: int | None = None,
    plugin: PluginFiles = None,
) -> None:
    """Write a run without its optimiser: as a folder that lvlm reads like a run, or as graphs, checked
    against PyTorch.
    """
    import lvlm

    folder = lvlm.export(
        run,
        out,
        format=format,  # type: ignore[arg-type]  # checked there
        step=step,
        plugin_files=plugin or [],
    )
    put(folder)
    record = Path(out) / "export.json"
    if record.exists():
        off = json.loads(record.read_text())["check"]["largest_difference"]
        say(f"differs from PyTorch by {max(off.values()):.2g} at most")


@described_by("plugins")
def plugins(as_json: AsJSON = False, plugin: PluginFiles = None) -> None:
    """List the plugins, what they supply, and why one failed."""
    from dataclasses import asdict

    import lvlm
    from lvlm.cli.tables import plugins_table

    found = lvlm.plugins(plugin_files=plugin or [])
    if as_json:
        put(json.dumps([asdict(p) for p in found], indent=1))
    else:
        show(plugins_table(found))


@described_by("kinds")
def kinds(
    role: Annotated[str | None, typer.Argument()] = None,
    as_json: AsJSON = False,
    plugin: PluginFiles = None,
) -> None:
    """List the kinds of a role with their options."""
    import lvlm
    from lvlm.cli.tables import kinds_record, kinds_tables

    found = lvlm.kinds(role, plugin_files=plugin or [])
    if as_json:
        put(json.dumps(kinds_record(found), indent=1))
    else:
        show(*kinds_tables(found))


@described_by("schema")
def schema(plugin: PluginFiles = None) -> None:
    """Print the JSON Schema of recipes, for editors."""
    import lvlm

    put(json.dumps(lvlm.schema(plugin_files=plugin or []), indent=1))
