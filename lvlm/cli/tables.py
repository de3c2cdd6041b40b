"""What the command line shows of plain results: rich tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from lvlm.errors import shortened
from lvlm.evaluation.words import suggestions

if TYPE_CHECKING:
    from lvlm.evaluation.result import Evaluation
    from lvlm.recipe.check import Checked
    from lvlm.recipe.study import Study
    from lvlm.registry.plugin import Kind
    from lvlm.registry.registry import PluginInfo
    from lvlm.training.plan import Plan


def heading(text: str) -> Text:
    return Text(text, style="bold")


def new_table(*columns: str, numbers: Sequence[str] = ()) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return table


_CHOSEN = {
    "last": "the last checkpoint",
    "headline": "best on validation by the headline",
    "bound": "best on validation by the lower of elbo and ce_prior",
    None: "as asked for, which is not the selected checkpoint",
}


def evaluation_table(result: Evaluation) -> Iterator[Table | Text]:
    """The estimates of one run, bounds apart from what has seen the answer, and what the gaps between them
    suggest.
    """
    windows = f"{result['windows']} test windows ({result['windows_hash'][:12]})"
    title = f"step {result['step']} of {result['steps']}, {_CHOSEN[result['select']]}; {windows}"
    columns = ("estimate", "nats/token", "± s.e.", "± draws", "bits/byte", "ESS", "var(log w)", "what it is")
    yield heading(title)
    table = new_table(*columns, numbers=columns[1:7])
    for name, estimate in result["estimates"].items():
        kind = "upper bound on the NLL" if estimate["bound"] else "no bound"
        kind = {
            "nll_exact": "the model's NLL",
            "nll_oracle": "the data's own NLL",
            "ce_posterior": "no bound: the codes have seen the answer",
            "kl": "no bound: what the codes cost, raw",
        }.get(name, kind)
        headline = "  <- headline" if name == result["headline"] else ""
        table.add_row(
            name,
            f"{estimate['nats_per_token']:.4f}",
            f"{estimate['stderr']:.4f}",
            in_digits(estimate["noise_stderr"], ".4f"),
            in_digits(estimate["bits_per_byte"], ".4f"),
            in_digits(estimate["ess"], ".1f"),
            in_digits(estimate["log_weight_variance"], ".3g"),
            kind + headline,
        )
    yield table
    if result["no_bits_per_byte"]:
        yield Text(f"bits/byte are left out: {result['no_bits_per_byte']}")
    if result["newest_step"] < result["steps"]:
        yield Text(
            f"The newest checkpoint is of step {result['newest_step']} of {result['steps']}: the training "
            f"isn't finished, or this is an export of an earlier step."
        )
    for sentence in suggestions(result):
        yield Text(sentence)
    for name, excess in result["excess_nats_per_sequence"].items():
        yield Text(f"{name} over the oracle: {excess['mean']:.3f} ± {excess['stderr']:.3f} nats per sequence")
    latent = result["latent"]
    if latent:
        budget = latent["budget_nats_per_slot"]
        allowed = "no budget" if budget is None else f"budget {budget:.3f}"
        yield Text(_reading(result))
        yield Text(
            f"raw KL: {latent['kl_nats_per_slot']:.4f} nats per slot ({allowed}), "
            f"{latent['active_units']} of {latent['units']} units active"
        )
    for name, own in result["latents"].items():
        budget = own["budget_nats_per_slot"]
        allowed = "no budget" if budget is None else f"budget {budget:.3f}"
        yield Text(
            f"  {name}: {own['kl_nats_per_slot']:.4f} nats per slot ({allowed}), "
            f"{own['slots_per_row']:g} slots a row, {own['active_units']} of {own['units']} units active"
        )


def _reading(result: Evaluation) -> str:
    """Whether this run's decoder reads its codes, in words."""
    worth = result["worth_nats_per_token"]
    if worth is None:
        return "codes: what they are worth isn't known without the estimator 'prior' and two windows"
    said = "read" if result["reads"] else "not read"
    return (
        f"codes: {said}; the right ones are worth {worth['value']:+.4f} nats/token, 95 % interval over "
        f"windows [{worth['low']:+.4f}, {worth['high']:+.4f}]"
    )


def tasks_table(found: dict[str, Any]) -> Table:
    """The results of lm-eval's tasks."""
    table = new_table("task", "metric", "value", "± s.e.", numbers=("value", "± s.e."))
    for task, numbers in found["results"].items():
        for name, value in numbers.items():
            metric, _, kind = name.partition(",")
            if "," in name and not metric.endswith("_stderr"):
                error = numbers.get(f"{metric}_stderr,{kind}")
                table.add_row(task, metric, f"{value:.4f}", in_digits(error, ".4f"))
    return table


def in_digits(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def checked_tables(checked: Checked) -> Iterator[Table | Text]:
    """Values and where they come from; parameters; shapes."""
    yield heading(f"{checked.resolved.recipe.name}: resolved values")
    values = new_table("key", "value", "origin")
    for path, value, origin in checked.resolved.describe():
        values.add_row(path, shortened(repr(value)), origin)
    yield values
    yield heading("\nparameters")
    parameters = new_table("part", "count", numbers=("count",))
    for part in ("backbone", "latent", "table", "total"):
        parameters.add_row(part, f"{getattr(checked.parameters, part):,}")
    yield parameters
    yield heading("\nshapes of a micro-batch, from the tokens through the seam to the logits")
    shapes = new_table("tensor", "shape")
    for name, shape in checked.shapes.items():
        shapes.add_row(name, str(list(shape)))
    yield shapes
    yield Text("\nno data were read: `lvlm train` opens them first")


def checked_study(study: Study, arms: Mapping[str, Checked]) -> Iterator[Table | Text]:
    """A study's arms with their parameters."""
    seeds = f"{len(study.seeds)} {'seed' if len(study.seeds) == 1 else 'seeds'}"
    yield heading(f"{study.name}: {len(arms)} {'arm' if len(arms) == 1 else 'arms'} x {seeds}, all valid")
    parts = ("backbone", "latent", "table", "total")
    table = new_table("arm", *parts, numbers=parts)
    for arm, checked in arms.items():
        table.add_row(arm, *(f"{getattr(checked.parameters, part):,}" for part in parts))
    yield table
    yield Text("\nno data were read: `lvlm study` opens them first")


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


def plan_tables(plan: Plan) -> Iterator[Table | Text]:
    """Parameters, memory, speed; then whether it fits, and what would help."""
    over = "" if plan.gpus == 1 else f", a copy of the model over {plan.shard_over} of {plan.gpus} processes"
    yield heading(f"memory of a device at its peak, micro-batches of {plan.micro_rows} rows{over}")
    table = new_table("what", "GB", numbers=("GB",))
    for holder, held in sorted(plan.bytes_by_holder.items(), key=lambda item: -item[1]):
        table.add_row(holder, f"{held / 1e9:.3f}")
    table.add_row("in all", f"{plan.peak_bytes / 1e9:.3f}")
    yield table
    yield heading("\nthe training")
    table = new_table("what", "value", "unit", numbers=("value",))
    for part in ("backbone", "latent", "table", "total"):
        table.add_row(f"parameters, {part}", f"{getattr(plan.parameters, part):,}", "")
    table.add_row("forward and backward", f"{plan.flops_per_token / 1e9:.4g}", "GFLOP/token")
    table.add_row("step", f"{plan.tokens_per_step:,}", "tokens")
    table.add_row("whole", f"{plan.tokens:.4g}", "tokens")
    if plan.tokens_per_second is not None and plan.hours is not None:
        table.add_row(f"speed at MFU {plan.mfu:g}", f"{plan.tokens_per_second:,.0f}", "tokens/s")
        table.add_row("time", f"{plan.hours:,.2f}", "hours")
    if plan.cost is not None:
        table.add_row("cost", f"{plan.cost:,.2f}", "")
    yield table
    if plan.fits is not None and plan.memory_bytes is not None:
        share = plan.peak_bytes / plan.memory_bytes
        yield Text(
            f"\n{share:.0%} of {plan.memory_bytes / 1e9:g} GB: it {'fits' if plan.fits else 'does not fit'}."
        )
        if not plan.fits:
            yield Text(
                "What helps: train.recompute=full, train.logits_chunk=2048, fewer train.micro_rows, more "
                "GPUs to "
                "divide a copy over."
            )


def plugins_table(plugins: Sequence[PluginInfo]) -> Table:
    """Plugins with their kinds, or with the reason of their failure."""
    table = new_table("name", "version", "origin", "supplies")
    for plugin in plugins:
        supplies = (
            Text(f"failed: {plugin.error}", style="red") if plugin.error else Text(", ".join(plugin.kinds))
        )
        table.add_row(plugin.name, plugin.version, plugin.origin, supplies)
    return table


def kinds_tables(kinds: Sequence[Kind]) -> Iterator[Table | Text]:
    """A table per kind: its options, their defaults and what they mean."""
    for record in kinds_record(kinds):
        plugin = f"  (plugin {record['plugin']})" if record["plugin"] else ""
        yield heading(f"{record['role']} {record['kind']}") + Text(f"  {record['help']}{plugin}")
        table = new_table("  option", "default", "meaning")
        for option in record["options"]:
            table.add_row("  " + option["name"], option["default"], option["help"])
        yield table


def kinds_record(kinds: Sequence[Kind]) -> list[dict[str, Any]]:
    """The same as plain data."""
    return [
        {
            "role": kind.role,
            "kind": kind.name,
            "plugin": kind.plugin or None,
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
