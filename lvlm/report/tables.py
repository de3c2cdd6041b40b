"""Tables of a report: comparison, latents, diagnostics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from lvlm.report.rows import EXACT, Report, Row
from lvlm.report.words import about
from lvlm.statistics.interval import Interval, clopper_pearson

# ---- tables
# -------------------------------------------------------------------------------------------------

BOUNDS_FROM, DETAILS_FROM = 140, 220  # console widths


class Header(NamedTuple):
    text: str
    unit: str = ""
    help: str = ""
    room: int = 0  # the console width from which it is shown there; the page shows every column


class Cell(NamedTuple):
    text: str
    detail: str = ""


@dataclass(frozen=True)
class Table:
    headers: Sequence[Header]
    rows: Sequence[Sequence[Cell]]


NOTHING = Cell("–")


def _cell(value: float | None, form: str = ".4f") -> Cell:
    return NOTHING if value is None else Cell(format(value, form))


def _interval(value: Interval | None, form: str = ".4f") -> Cell:
    if value is None:
        return NOTHING
    return Cell(f"{value.value:{form}}", f"[{value.low:{form}}, {value.high:{form}}]")


def _count(number: float | None) -> Cell:
    if number is None:
        return NOTHING
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return Cell(f"{number / size:.3g}{unit}")
    return Cell(f"{number:.0f}")


def comparison(report: Report) -> Table:
    """The comparison table: likelihoods and bounds on them only, so ce_posterior has no place here."""
    bounds = [n for n in dict.fromkeys(n for row in report.rows for n in row.estimates) if n != EXACT]
    room = BOUNDS_FROM + 20 * max(0, len(bounds) - 3)
    excess = Header("excess", "nats/sequence", "headline minus the oracle's; zero is perfect")
    with_excess = any(row.excess for row in report.rows)
    headers = [
        Header("arm", "", "mean over seeds"),
        Header("headline", "nats/token", "the estimator that the recipe names beforehand; lower is better"),
        Header("headline", "bits/byte", "the same, comparable across tokenisers", DETAILS_FROM),
        Header("difference", "nats/token", f"headline minus that of {report.control}, paired"),
        *([excess] if with_excess else []),
        Header("estimator", "", "which estimator the headline is"),
        *(Header(name, "nats/token", ": ".join(about(name)), room) for name in bounds),
        Header("raw KL", "nats/token", about("kl")[1]),
        Header("alive", "runs", "runs whose latent is used, with the exact 95 % interval of their share"),
        Header("backbone", "parameters", "", DETAILS_FROM),
        Header("latent", "parameters", "", DETAILS_FROM),
        Header("table", "parameters", "code tables, a lookup and not a matrix product", DETAILS_FROM),
        Header("speed", "tokens/s", "training, median of a run"),
        Header("memory", "MiB", "peak, the largest of the seeds", DETAILS_FROM),
    ]
    rows = []
    for row in report.rows:
        alive = NOTHING
        if row.alive:
            share = clopper_pearson(*row.alive)
            alive = Cell(f"{row.alive[0]} of {row.alive[1]}", f"[{share.low:.2f}, {share.high:.2f}]")
        memory = [run.evaluation.peak_memory_mib for run in row.runs]
        control = Cell("control") if row.arm == report.control else NOTHING
        cells = [
            Cell(row.label, f"{len(row.runs)} seed{'s' * (len(row.runs) != 1)}"),
            _interval(row.estimates[row.headline]),
            _cell(row.mean(lambda run: run.evaluation.estimates[run.evaluation.headline].bits_per_byte)),
            _interval(row.difference, "+.4f") if row.difference else control,
            *([_interval(row.excess, "+.3f")] if with_excess else []),
            Cell(row.headline, about(row.headline)[0]),
            *(_cell(row.estimates[name].value if name in row.estimates else None) for name in bounds),
            _cell(row.mean(lambda run: run.value("kl"))),
            alive,
            _count(row.mean(lambda run: run.evaluation.parameters.backbone)),
            _count(row.mean(lambda run: run.evaluation.parameters.latent)),
            _count(row.mean(lambda run: run.evaluation.parameters.table)),
            _cell(row.mean(lambda run: run.evaluation.tokens_per_second), ",.0f"),
            _cell(max((m for m in memory if m is not None), default=None), ",.0f"),
        ]
        rows.append(cells)
    return Table(headers, rows)


def comparison_notes(report: Report) -> list[str]:
    """What the comparison table leaves out, and why."""
    of_arms: dict[str, list[str]] = {}
    for run in report.runs:
        if run.evaluation.no_bits_per_byte:
            of_arms.setdefault(run.evaluation.no_bits_per_byte, []).append(run.arm)
    return [
        f"Bits per byte of {', '.join(dict.fromkeys(arms))} are left out: {why}."
        for why, arms in of_arms.items()
    ]


def latents(report: Report) -> Table:
    """What the codes hold and cost. ce_posterior belongs here, away from every likelihood."""
    worth = "what the right code is worth; near zero: it is ignored"
    headers = [
        Header("arm"),
        Header("ce_posterior", "nats/token", about("ce_posterior")[1]),
        Header("ce_prior − ce_posterior", "nats/token", worth),
        Header("raw KL", "nats/token"),
        Header("raw KL", "nats/slot"),
        Header("budget", "nats/slot", "the KL that costs nothing"),
        Header("slots", "per row"),
        Header("active units", "of all"),
    ]
    rows = []
    for row in report.rows:
        facts = [run.evaluation.latent for run in row.runs if run.evaluation.latent is not None]
        if not facts:
            continue
        posterior = row.mean(lambda run: run.value("ce_posterior"))
        prior = row.mean(lambda run: run.value("ce_prior"))
        cells = [
            Cell(row.label),
            _cell(posterior),
            _cell(None if posterior is None or prior is None else prior - posterior, "+.4f"),
            _cell(row.mean(lambda run: run.value("kl"))),
            _cell(fmean(f.kl_nats_per_slot for f in facts)),
            _cell(facts[0].budget_nats_per_slot),
            _cell(facts[0].slots_per_row, "g"),
            Cell(f"{fmean(f.active_units for f in facts):.3g} of {facts[0].units}"),
        ]
        rows.append(cells)
    return Table(headers, rows)


def diagnostics(report: Report) -> Table:
    """How far each bound can be trusted: spread of its weights, means over windows and seeds."""
    headers = [
        Header("arm"),
        Header("estimator"),
        Header("nats/token", "", "mean over seeds"),
        Header("± draws", "nats/token", "Monte Carlo standard error of one run, its windows given"),
        Header("ESS", "particles", "effective sample size of the weights; of a filter the least on the way"),
        Header(
            "var(log w)",
            "nats²",
            "of a filter summed over the way; importance weighting needs exp of it in samples",
        ),
    ]
    rows = []
    for row in report.rows:
        for name, interval in row.estimates.items():

            def mean(of: str, name: str = name, row: Row = row) -> float | None:
                return row.mean(lambda run: getattr(run.evaluation.estimates[name], of))

            if mean("noise_stderr") is not None or mean("ess") is not None:
                cells = [
                    _cell(mean("noise_stderr")),
                    _cell(mean("ess"), ".1f"),
                    _cell(mean("log_weight_variance"), ".3g"),
                ]
                rows.append([Cell(row.label), Cell(name), _cell(interval.value), *cells])
    return Table(headers, rows)


def comparison_table(report: Report, width: int = 150) -> RichTable:
    """The comparison table for a console of some width: the page's rows and cells, in the columns that
    fit.
    """
    source = comparison(report)
    table = RichTable(title=Text(report.title), box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    if notes := comparison_notes(report):
        table.caption, table.caption_justify = Text("\n".join(notes)), "left"
    shown = [number for number, header in enumerate(source.headers) if header.room <= width]
    for number in shown:
        header = source.headers[number]
        # arm names and intervals give way, at their spaces; names and numbers don't
        whole = not (number == 0 or header.text in ("headline", "difference", "excess", "alive"))
        head = Text("\n".join(filter(None, header[:2])))
        table.add_column(head, justify="right" if number else "left", no_wrap=whole, overflow="fold")
    for row in source.rows:
        table.add_row(*(Text("\n".join(filter(None, row[number]))) for number in shown))
    return table
