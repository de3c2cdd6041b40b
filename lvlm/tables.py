"""What the command line shows of plain results: rich tables."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from lvlm.steering.control import HIDDEN, WHY_HIDDEN

if TYPE_CHECKING:
    from lvlm.api import Checked
    from lvlm.examination import Examination, Measured
    from lvlm.planning import Plan
    from lvlm.plugin import Kind
    from lvlm.registry import PluginInfo
    from lvlm.steering.control import Gate
    from lvlm.steering.record import Steering, Units
    from lvlm.steering.statistics import Interval


def _title(text: str) -> Text:
    return Text(text, style="bold")


def _table(*columns: str, numbers: Sequence[str] = ()) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return table


def evaluation_table(result: dict[str, Any]) -> Iterator[Table | Text]:
    """The estimates of one run, bounds apart from what has seen the answer, and what the gaps between them suggest."""
    title = f"step {result['step']}, {result['windows']} test windows ({result['windows_hash'][:12]})"
    columns = ("estimate", "nats/token", "± s.e.", "± draws", "bits/byte", "ESS", "var(log w)", "what it is")
    yield _title(title)
    table = _table(*columns, numbers=columns[1:7])
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
            _number(estimate["noise_stderr"], ".4f"),
            _number(estimate["bits_per_byte"], ".4f"),
            _number(estimate["ess"], ".1f"),
            _number(estimate["log_weight_variance"], ".3g"),
            kind + headline,
        )
    yield table
    for sentence in gaps(result):
        yield Text(sentence)
    for name, excess in result["excess_nats_per_sequence"].items():
        yield Text(f"{name} over the oracle: {excess['mean']:.3f} ± {excess['stderr']:.3f} nats per sequence")
    latent = result["latent"]
    if latent:
        budget = latent["budget_nats_per_slot"]
        allowed = "no budget" if budget is None else f"budget {budget:.3f}"
        state = {
            True: "alive",
            False: "DEAD (raw KL under 5 % of its budget)",
            None: "its KL has a floor and can't tell whether it lives; lvlm doctor can",
        }[result["alive"]]
        yield Text(
            f"latent: {latent['kl_nats_per_slot']:.4f} nats per slot ({allowed}), "
            f"{latent['active_units']} of {latent['units']} units active: {state}"
        )


def steering_tables(found: Steering, gate: Gate) -> Iterator[Table | Text]:
    """What codes steer; what may not be shown is named as such."""
    yield _title(
        f"step {found.step}, {found.settings['groups']} prompts x {found.settings['samples']} samples"
    )
    columns = ("measure", "shared codes", "codes apart", "difference [95 %]", "what it is")
    table = _table(*columns, numbers=columns[1:4])
    hidden = False

    def add(name: str, one: Interval, other: Interval, difference: Interval, what: str) -> None:
        nonlocal hidden
        if gate.shows(difference):
            span = "–" if difference.low is None else f" [{difference.low:+.3f}, {difference.high:+.3f}]"
            cells = [
                _number(one.value, ".3f"),
                _number(other.value, ".3f"),
                _number(difference.value, "+.3f") + span,
            ]
        else:
            hidden, cells = True, [HIDDEN] * 3
        table.add_row(name, *cells, what)

    for number in found.numbers:
        icc, transfer = number.icc, number.transfer
        what = f"share of the variance ({number.unit}) between groups"
        add(f"ICC(1) of {number.name}", icc.shared, icc.apart, icc.difference, what)
        if transfer is not None:
            what = f"the source's, within {number.tolerance:g}; apart: codes of the prior"
            add(
                f"transfer of {number.name}", transfer.success, transfer.prior_rate, transfer.difference, what
            )
    for flags in found.flags:
        agreement = flags.kappa
        what = f"agreement of two samples, beyond chance; set in {flags.rate:.3f} of prior places"
        add(f"kappa of {flags.name}", agreement.shared, agreement.apart, agreement.difference, what)
    yield table
    if hidden:
        yield Text(f"{HIDDEN}: {WHY_HIDDEN}")
    if not found.has_latent:
        yield Text("no latent: there are no codes to share")
    for check in found.checks:
        low, high = _number(check.share.low, ".3f"), _number(check.share.high, ".3f")
        yield Text(f"{check.name}: {_number(check.share.value, '.3f')} of prior texts [{low}, {high}]")
    for number in found.numbers:
        if number.spread is not None:
            spread = number.spread
            yield Text(
                f"{number.name} against uniform: chi-square {spread.chi_square:.1f} with {len(spread.counts) - 1} degrees of "
                f"freedom, p = {spread.p_value:.2g}; {spread.left_out} texts without"
            )
    diversity = found.diversity
    several = ", ".join(f"distinct-{n} {share:.3f}" for n, share in diversity.distinct.items())
    yield Text(
        f"diversity: {several}, self-BLEU {diversity.self_bleu:.3f} at temperature {diversity.temperature:.3g} "
        f"({diversity.entropy_nats_per_token:.4f} nats of entropy per token)"
    )
    if found.units is not None and gate.open:
        yield from _units_table(found.units)


def _units_table(units: Units) -> Iterator[Table | Text]:
    names = list(units.all_redrawn.numbers)
    columns = ("change", "tokens that differ", *(f"{name} differs" for name in names))
    table = _table(*columns, numbers=columns[1:])
    named = [(f"unit {number}", change) for number, change in enumerate(units.units)]
    for name, change in [
        *named,
        ("all codes redrawn", units.all_redrawn),
        ("other noise, same codes", units.other_noise),
    ]:
        table.add_row(name, f"{change.tokens:.4f}", *(f"{change.numbers[one]:.3f}" for one in names))
    yield Text("single units of the codes, changed in all slots under the same noise: shares")
    yield table


def tasks_table(found: dict[str, Any]) -> Table:
    """The results of lm-eval's tasks."""
    table = _table("task", "metric", "value", "± s.e.", numbers=("value", "± s.e."))
    for task, numbers in found["results"].items():
        for name, value in numbers.items():
            metric, _, kind = name.partition(",")
            if "," in name and not metric.endswith("_stderr"):
                error = numbers.get(f"{metric}_stderr,{kind}")
                table.add_row(task, metric, f"{value:.4f}", _number(error, ".4f"))
    return table


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def gaps(result: dict[str, Any]) -> Iterator[str]:
    """What the differences between the bounds of one model suggest."""
    nats = {name: one["nats_per_token"] for name, one in result["estimates"].items() if one["bound"]}
    error = {name: one["noise_stderr"] or 0.0 for name, one in result["estimates"].items()}
    if len(nats) < 2 or result["latent"] is None:
        return
    best = "nll_exact" if "nll_exact" in nats else min(nats, key=lambda name: nats[name])

    def below(one: str, other: str) -> bool:
        return bool(nats[other] - nats[one] > 2 * math.hypot(error[one], error[other]) + 5e-5)

    def last(kind: str) -> str | None:
        return next((name for name in reversed(nats) if re.fullmatch(kind + r"_\d+", name)), None)

    if best == "nll_exact":
        yield f"All codes were tried: {best} is the likelihood, {nats[best]:.4f} nats/token, and the others bound it."
    else:
        yield f"The tightest bound is {best}: {nats[best]:.4f} nats/token. All bound the same number from above."
    if "elbo" in nats and below(best, "elbo"):
        yield (
            f"elbo is {nats['elbo'] - nats[best]:.4f} above it: at least so much it loses because the posterior isn't "
            "the model's own."
        )
    iwae, smc, deferred = last("nll_iwae"), last("nll_smc"), last("nll_smc_deferred")
    if iwae and smc and below(smc, iwae):
        yield f"{smc} is below {iwae}: weights of whole sequences degenerate with length; trust the filter."
    if iwae and smc and below(iwae, smc):
        yield f"{iwae} is below {smc}: the filter drops codes that pay off later, so they say something of the whole text."
    if smc and deferred and below(deferred, smc):
        yield f"{deferred} is below {smc}: codes are paid for early and pay off late."
    if "ce_prior" in nats and not below(best, "ce_prior"):
        yield "ce_prior is as low as any: knowing the codes is worth nothing, or there are none to speak of."
    ess = result["estimates"][best]["ess"]
    if ess is not None and ess < 2:
        yield f"Of {best} hardly one weight counts (ESS {ess:.1f}); more particles would lower it."


def examination_tables(examination: Examination) -> Iterator[Table | Text]:
    """The numbers of a latent, then what they mean and what to try, one finding after another."""
    newest = examination.newest_step
    which = f"step {examination.step}" + (f" (newest: {newest})" if newest != examination.step else "")
    measured = examination.measured
    if measured is not None:
        yield _title(f"{which}, {measured.windows} validation windows ({measured.windows_hash[:12]})")
        yield _measured_table(measured)
        yield Text()
    findings = Table(box=None, show_header=False, pad_edge=False)
    findings.add_column(style="bold")
    findings.add_column(overflow="fold")
    for finding in examination.findings:
        findings.add_row(finding.tone, Text(finding.what))
        for one in finding.tries:
            findings.add_row("", Text(f"try {shlex.join(one.overrides)}: {one.why}"))
    yield findings


def _measured_table(m: Measured) -> Table:
    table = _table("number", "value", "unit", "what it is", numbers=("value",))

    def row(name: str, value: str, unit: str, meaning: str) -> None:
        table.add_row(name, value, unit, Text(meaning))

    def nats(name: str, value: float | None, meaning: str, stderr: float | None = None) -> None:
        if value is not None:
            spread = "" if stderr is None else f" ± {stderr:.4f}"
            row(name, f"{value:z.4f}{spread}", "nats/token", meaning)

    budget = m.budget_nats_per_slot
    row(
        "raw KL",
        f"{m.kl_nats_per_slot:.4f}",
        "nats/slot",
        "without a budget" if budget is None else f"budget {budget:.4f}",
    )
    nats("", m.kl_nats_per_token, "what the codes cost")
    row("active units", f"{m.active_units}", f"of {m.units}", "whose KL is over 0.01 bit")
    if m.code_perplexity is not None:
        most = f"codes in use: at most {m.code_perplexity_at_most}, the slots seen"
        row("code perplexity", f"{m.code_perplexity:.2f}", "codes", most)
    nats("ce_posterior", m.ce_posterior_nats_per_token, "no bound: the codes have seen the answer")
    nats("ce_prior", m.ce_prior_nats_per_token, "codes from the prior, as in generation")
    nats("ce_shuffled", m.ce_shuffled_nats_per_token, "codes of another row")
    nats("worth", m.worth_nats_per_token, "ce_prior − ce_posterior: of the right code", m.worth_stderr)
    cost, spread = m.shuffling_cost_nats_per_token, m.shuffling_cost_stderr
    nats("cost of shuffling", cost, "ce_shuffled − ce_posterior", spread)
    change = f"{m.output_change_nats_per_token:.3g}"
    row("change of output", change, "nats/token", "KL between what two codes of the prior predict")
    if m.exchange_efficiency is not None:
        row("exchange efficiency", f"{m.exchange_efficiency:z.3f}", "nats/nat", "worth of a nat of KL")
    if m.beta_effective is not None:
        row(
            "effective beta",
            f"{m.beta_effective:z.3f}",
            "nats/nat",
            "what the loss charges for a nat of KL",
        )
    share = f"of the loss; the encoder's is {m.encoder_gradient_norm:.3g}, {100 * m.encoder_share:.2g} %"
    row("gradient norm", f"{m.gradient_norm:.3g}", "", share)
    trained = m.trainable - len(m.never_updated)
    row("trained", f"{trained}", f"of {m.trainable}", "tensors that the optimiser has a state of")
    return table


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
    yield Text("\nno data were read: `lvlm train` opens them first")


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
    yield _title(f"memory of a device at its peak, micro-batches of {plan.micro_rows} rows{over}")
    table = _table("what", "GB", numbers=("GB",))
    for holder, held in sorted(plan.bytes_by_holder.items(), key=lambda item: -item[1]):
        table.add_row(holder, f"{held / 1e9:.3f}")
    table.add_row("in all", f"{plan.peak_bytes / 1e9:.3f}")
    yield table
    yield _title("\nthe training")
    table = _table("what", "value", "unit", numbers=("value",))
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
                "What helps: train.recompute=full, train.logits_chunk=2048, fewer train.micro_rows, more GPUs to "
                "divide a copy over."
            )


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
        plugin = f"  (plugin {record['plugin']})" if record["plugin"] else ""
        yield _title(f"{record['role']} {record['kind']}") + Text(f"  {record['help']}{plugin}")
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
