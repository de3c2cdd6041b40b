"""What the command line shows of plain results: rich tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from lvlm.api import Checked
    from lvlm.plugin import Kind
    from lvlm.registry import PluginInfo


def _title(text: str) -> Text:
    return Text(text, style="bold")


def _table(*columns: str, numbers: Sequence[str] = ()) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return table


def evaluation_table(result: dict[str, Any]) -> Iterator[Table | Text]:
    """The estimates of one run, bounds apart from what has seen the answer."""
    title = f"step {result['step']}, {result['windows']} test windows ({result['windows_hash'][:12]})"
    columns = ("estimate", "nats/token", "± s.e.", "bits/byte", "what it is")
    yield _title(title)
    table = _table(*columns, numbers=columns[1:4])
    for name, estimate in result["estimates"].items():
        kind = "upper bound on the NLL" if estimate["bound"] else "no bound"
        kind = {
            "nll_exact": "the model's NLL",
            "nll_oracle": "the data's own NLL",
            "ce_posterior": "no bound: the codes have seen the answer",
            "kl": "no bound: what the codes cost, raw",
        }.get(name, kind)
        bits = estimate["bits_per_byte"]
        headline = "  <- headline" if name == result["headline"] else ""
        table.add_row(
            name,
            f"{estimate['nats_per_token']:.4f}",
            f"{estimate['stderr']:.4f}",
            "-" if bits is None else f"{bits:.4f}",
            kind + headline,
        )
    yield table
    for name, excess in result["excess_nats_per_sequence"].items():
        yield Text(f"{name} over the oracle: {excess['mean']:.3f} ± {excess['stderr']:.3f} nats per sequence")
    latent = result["latent"]
    if latent:
        budget = latent["budget_nats_per_slot"]
        allowed = "no budget" if budget is None else f"budget {budget:.3f}"
        state = "alive" if result["alive"] else "DEAD (raw KL under 5 % of its budget)"
        yield Text(
            f"latent: {latent['kl_nats_per_slot']:.4f} nats per slot ({allowed}), "
            f"{latent['active_units']} of {latent['units']} units active: {state}"
        )


def checked_tables(checked: Checked) -> Iterator[Table | Text]:
    """Values and where they come from; parameters; shapes."""
    yield _title(f"{checked.resolved.recipe.name}: resolved values")
    values = _table("key", "value", "origin")
    for path, value, origin in checked.resolved.describe():
        values.add_row(path, repr(value), origin)
    yield values
    yield _title("\nparameters")
    parameters = _table("part", "count", numbers=("count",))
    for part in ("backbone", "latent", "table", "total"):
        parameters.add_row(part, f"{getattr(checked.parameters, part):,}")
    yield parameters
    yield _title("\nshapes of a micro-batch, from the tokens through the seam to the logits")
    shapes = _table("tensor", "shape")
    for name, shape in checked.shapes.items():
        shapes.add_row(name, str(list(shape)))
    yield shapes


def checked_record(checked: Checked) -> dict[str, Any]:
    """The same as plain data."""
    count = checked.parameters
    return {
        "values": {
            path: {"value": value, "origin": origin} for path, value, origin in checked.resolved.describe()
        },
        "parameters": {part: getattr(count, part) for part in ("backbone", "latent", "table", "total")},
        "shapes": {name: list(shape) for name, shape in checked.shapes.items()},
    }


def plugins_table(plugins: Sequence[PluginInfo]) -> Table:
    """Plugins with their kinds, or with the reason of their failure."""
    table = _table("name", "version", "origin", "supplies")
    for plugin in plugins:
        supplies = (
            Text(f"failed: {plugin.error}", style="red") if plugin.error else Text(", ".join(plugin.kinds))
        )
        table.add_row(plugin.name, plugin.version, plugin.origin, supplies)
    return table


def kinds_tables(kinds: Sequence[Kind]) -> Iterator[Table | Text]:
    """A table per kind: its options, their defaults and what they mean."""
    for record in kinds_record(kinds):
        yield _title(f"{record['role']} {record['kind']}") + Text(
            f"  {record['help']}  (plugin {record['plugin']})"
        )
        table = _table("  option", "default", "meaning")
        for option in record["options"]:
            table.add_row("  " + option["name"], option["default"], option["help"])
        yield table


def kinds_record(kinds: Sequence[Kind]) -> list[dict[str, Any]]:
    """The same as plain data."""
    return [
        {
            "role": kind.role,
            "kind": kind.name,
            "plugin": kind.plugin,
            "help": kind.help,
            "options": [
                {
                    "name": name,
                    "default": "required"
                    if field.is_required()
                    else repr(field.get_default(call_default_factory=True)),
                    "help": field.description or "",
                }
                for name, field in kind.params.model_fields.items()
                if name != "kind"
            ],
        }
        for kind in kinds
    ]
