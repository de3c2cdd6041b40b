"""Tables of a report: comparison, latents, trust, costs.

The comparison answers the question and fits a printed page; all bounds, and how far each can be trusted, have
a table of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable

from lvlm.report.numbers import in_digits
from lvlm.report.rows import EXACT, LatentFacts, Report, Row
from lvlm.report.words import about
from lvlm.statistics import Interval, clopper_pearson
from lvlm.system.terminal import plain

ROOMY = 120  # console width from which what matters less is shown


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


def _interval(found: Interval | None, *, sign: str = "", digits: int = 4) -> Cell:
    if found is None:
        return NOTHING
    value, ends = in_digits(found, sign=sign, digits=digits)
    return Cell(value, ends)  # one seed has no ends


def _count(number: float | None) -> Cell:
    if number is None:
        return NOTHING
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return Cell(f"{number / size:.3g}{unit}")
    return Cell(f"{number:.0f}")


def comparison(report: Report) -> Table:
    """The comparison table: likelihoods and bounds on them only, so ce_posterior has no place here."""
    excess = Header("excess", "nats/sequence", "headline less the oracle's; zero is perfect")
    with_excess = any(row.excess for row in report.rows)
    with_latent = any(row.has_latent for row in report.rows)
    by_control = [
        Header(_over(arm, report), "nats/token", f"headline less that of {arm}, paired by seed and window")
        for arm in report.controls
    ]
    reading = [
        Header(
            "read", "seeds", "seeds whose decoder reads its codes; the exact 95 % interval of their share"
        ),
        Header("worth", "nats/token", "of the right code to the decoder: ce_prior less ce_posterior"),
        Header("raw KL", "nats/token", about("kl")[1], ROOMY),
    ]
    headers = [
        Header("arm", "", "mean over seeds"),
        Header("headline", "nats/token", "the estimate that the recipe names beforehand; lower is better"),
        *by_control,
        *([excess] if with_excess else []),
        Header("estimator", "", "which estimate the headline is"),
        *(reading if with_latent else []),
        Header("parameters", "", "backbone and latent, and code tables, which are looked up", ROOMY),
    ]
    rows = []
    for row in report.rows:
        found = [
            Cell(row.label, _count_of(len(row.runs), "seed")),
            _interval(row.headline),
            *(_gap(row, arm) for arm in report.controls),
            *([_interval(row.excess, sign="+", digits=3)] if with_excess else []),
            _estimator(row),
        ]
        if with_latent:
            rate = _cell(row.mean(lambda run: run.value("kl")))
            found += [_readers(row), _interval(row.worth, sign="+"), rate]
        rows.append([*found, _parameters(row)])
    return Table(headers, rows)


def _over(arm: str, report: Report) -> str:
    """The header of a difference; one control needs no name."""
    return "difference" if len(report.controls) == 1 else f"over {arm}"


def _gap(row: Row, control: str) -> Cell:
    if row.arm == control:
        return Cell("control")
    return _interval(row.differences.get(control), sign="+")


def _estimator(row: Row) -> Cell:
    names = row.headlines
    if len(names) == 1:
        name = next(iter(names))
        return Cell(name, about(name)[0])
    return Cell("lowest", ", ".join(f"{name} ({count})" for name, count in names.items()))


def _readers(row: Row) -> Cell:
    if row.readers is None:
        return NOTHING
    share = clopper_pearson(*row.readers)
    onset = f", from {', '.join(map(str, row.onsets))}" if row.onsets else ""
    return Cell(f"{row.readers[0]} of {row.readers[1]}", f"[{share.low:.2f}, {share.high:.2f}]{onset}")


def _parameters(row: Row) -> Cell:
    parts = row.runs[0].evaluation.parameters
    table = f", table {_count(parts.table).text}" if parts.table else ""
    return Cell(
        _count(parts.backbone + parts.latent + parts.table).text,
        f"latent {_count(parts.latent).text}{table}" if row.has_latent else "",
    )


def _count_of(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def costs(report: Report) -> Table:
    """What was scored, and what it took."""
    headers = [
        Header("arm"),
        Header("scored at", "step", "of the checkpoint, by the rule train.select"),
        Header("trained", "steps"),
        Header("headline", "bits/byte", "comparable across tokenisers that give a text back"),
        Header("backbone", "parameters"),
        Header("latent", "parameters"),
        Header("table", "parameters", "code tables, a lookup and not a matrix product"),
        Header("speed", "tokens/s", "training, median of a run"),
        Header("memory", "MiB", "peak, the largest of the seeds"),
    ]
    rows = []
    for row in report.rows:
        memory = [run.evaluation.peak_memory_mib for run in row.runs]
        cells = [
            Cell(row.label),
            Cell(_range([run.evaluation.step for run in row.runs])),
            Cell(_range([run.trained for run in row.runs])),
            _cell(row.mean(lambda run: run.evaluation.estimates[run.evaluation.headline].bits_per_byte)),
            *(_count(getattr(row.runs[0].evaluation.parameters, part)) for part in PARTS),
            _cell(row.mean(lambda run: run.evaluation.tokens_per_second), ",.0f"),
            _cell(max((m for m in memory if m is not None), default=None), ",.0f"),
        ]
        rows.append(cells)
    return Table(headers, rows)


PARTS = ("backbone", "latent", "table")


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def cost_notes(report: Report) -> list[str]:
    """What the table of costs leaves out, and why."""
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
    headers = [
        Header("arm"),
        Header("ce_posterior", "nats/token", about("ce_posterior")[1]),
        Header("ce_prior", "nats/token", ": ".join(about("ce_prior"))),
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
        cells = [
            Cell(row.label),
            _cell(row.mean(lambda run: run.value("ce_posterior"))),
            _cell(row.mean(lambda run: run.value("ce_prior"))),
            _cell(row.mean(lambda run: run.value("kl"))),
            *_of_latent(facts),
        ]
        rows.append(cells)
        for name in row.runs[0].evaluation.latents:  # of several, each by itself
            own = [run.evaluation.latents[name] for run in row.runs if name in run.evaluation.latents]
            tokens = row.runs[0].evaluation.target_tokens / row.runs[0].evaluation.windows
            per_token = fmean(f.kl_nats_per_slot * f.slots_per_row for f in own) / tokens
            rows.append(
                [Cell(f"{row.label} · {name}"), Cell(""), Cell(""), _cell(per_token), *_of_latent(own)]
            )
    return Table(headers, rows)


def latent_arms(report: Report) -> list[str]:
    """The arm of each row of `latents`."""
    return [row.arm for row in report.rows if row.has_latent for _ in ("", *row.runs[0].evaluation.latents)]


def _of_latent(facts: Sequence[LatentFacts]) -> list[Cell]:
    return [
        _cell(fmean(f.kl_nats_per_slot for f in facts)),
        _cell(facts[0].budget_nats_per_slot),
        _cell(facts[0].slots_per_row, "g"),
        Cell(f"{fmean(f.active_units for f in facts):.3g} of {facts[0].units}"),
    ]


def diagnostics(report: Report) -> Table:
    """All bounds, and how far each can be trusted: means over windows and seeds."""
    headers = [
        Header("arm"),
        Header("estimator"),
        Header("bound", "nats/token", "mean over seeds"),
        Header("over the control", "nats/token", f"less the exact value of {report.control}, paired"),
        Header("± draws", "nats/token", "Monte Carlo standard error of one run, from repeated estimates"),
        Header("ESS", "particles", "effective sample size of the weights; of a filter the least on the way"),
        Header(
            "var(log w)",
            "nats²",
            "of a filter summed over the way; importance weighting needs exp of it in samples",
        ),
    ]
    rows: list[list[Cell]] = []
    if all(row.estimates.keys() <= {EXACT} for row in report.rows):
        return Table(headers, rows)
    for row in report.rows:
        # before version 3 the error was guessed from one set of weights
        repeated = all(one.evaluation.version >= 3 for one in row.runs)
        for name, interval in row.estimates.items():

            def mean(of: str, name: str = name, row: Row = row) -> float | None:
                return row.mean(lambda run: getattr(run.evaluation.estimates[name], of))

            chosen = row.headlines.get(name, 0)
            mark = "" if not chosen else "headline" if chosen == len(row.runs) else f"headline of {chosen}"
            cells = [
                _interval(interval),
                _interval(row.over_control.get(name), sign="+"),
                _cell(mean("noise_stderr") if repeated else None),
                _cell(mean("ess"), ".1f"),
                _cell(mean("log_weight_variance"), ".3g"),
            ]
            rows.append([Cell(row.label), Cell(name, mark), *cells])
    return Table(headers, rows)


def comparison_table(report: Report, width: int = 150) -> RichTable:
    """The comparison table for a console of some width: the page's rows and cells, in the columns that
    fit.
    """
    source = comparison(report)
    table = RichTable(title=plain(report.title), box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    shown = [number for number, header in enumerate(source.headers) if header.room <= width]
    for number in shown:
        header = source.headers[number]
        # arm names and intervals give way, at their spaces; names and numbers don't
        whole = not (
            number == 0 or (number < len(source.headers) - 1 and header.text not in ("estimator", "raw KL"))
        )
        head = plain("\n".join(filter(None, header[:2])))
        table.add_column(head, justify="right" if number else "left", no_wrap=whole, overflow="fold")
    for row in source.rows:
        table.add_row(*(plain("\n".join(filter(None, row[number]))) for number in shown))
    return table
