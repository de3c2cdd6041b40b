"""What a report says of steering: a table and a figure. Without a positive control that came out, no null is
shown.

Every seed is measured on the same prompts and sources, the groups, so that seeds and groups are crossed.

Legend: S seeds, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple, Self

import numpy as np

from lvlm.report.rows import EXACT, ORACLE, Report, Row, Run
from lvlm.report.tables import NOTHING, Cell, Header, Table
from lvlm.statistics import Interval, paired_interval
from lvlm.statistics.jackknife import FloatArray
from lvlm.steering.control import HIDDEN, WHY_HIDDEN, Gate
from lvlm.steering.record import Contrast, Steering, Transfer

SAME_GROUPS = ("groups", "samples", "sources", "prompt_tokens", "seed")  # settings that choose the groups
SAME_ENTROPY_NATS = 0.02  # arms whose mean token entropies are no further apart may be compared in diversity


class Compared(NamedTuple):
    """A number of one run and what it is to be compared with.

    value        None without a latent
    beside       of samples that share no codes, or have codes of the prior
    difference   the first less the second, with the run's own interval over groups
    by_group     the same, one number for each group, None for a group that lacks it; None if not stored
    """

    value: float | None
    beside: float | None = None
    difference: Interval | None = None
    by_group: list[float | None] | None = None

    @classmethod
    def of(cls, value: Interval | None, beside: Interval | None, found: Contrast | Transfer) -> Self:
        """Values of the intervals; None where there is no interval."""
        return cls(_value(value), _value(beside), found.difference, found.difference_by_group)


def _value(found: Interval | None) -> float | None:
    return None if found is None else found.value


@dataclass(frozen=True)
class Measure:
    """One number of a run's steering.

    of          what a run has of it; None where it has none
    """

    name: str
    beside: str
    help: str
    of: Callable[[Steering], Compared | None]


def gate_of(report: Report) -> Gate:
    """Opened by any run of the study, of the version that measured the first."""
    found = [run.steering for run in report.runs if run.steering is not None]
    return Gate.of(found, lvlm=found[0].lvlm) if found else Gate(open=False)


def measures(report: Report) -> list[Measure]:
    """By the names of the attributes, in the order in which the data give them."""
    found: dict[str, Measure] = {}
    for run in report.runs:
        if run.steering is not None:
            for measure in _measures(run.steering):
                found.setdefault(measure.name, measure)
    return list(found.values())


def _measures(steering: Steering) -> Iterator[Measure]:
    for index, number in enumerate(steering.numbers):

        def icc(found: Steering, index: int = index) -> Compared:
            contrast = found.numbers[index].icc
            return Compared.of(contrast.shared, contrast.apart, contrast)

        def transfer(found: Steering, index: int = index) -> Compared | None:
            carried = found.numbers[index].transfer
            if carried is None:
                return None
            return Compared.of(carried.success, carried.prior_rate, carried)

        help_icc = "ICC(1): the share of the variance that lies between samples of different codes"
        help_transfer = f"texts with another's codes and its {number.name}, within {number.tolerance:g}"
        yield Measure(f"ICC of {number.name}", "apart", help_icc, icc)
        yield Measure(f"transfer of {number.name}", "prior", help_transfer, transfer)
    for index, flags in enumerate(steering.flags):

        def kappa(found: Steering, index: int = index) -> Compared:
            contrast = found.flags[index].kappa
            return Compared.of(contrast.shared, contrast.apart, contrast)

        def rate(found: Steering, index: int = index) -> Compared:
            return Compared(found.flags[index].rate)

        help_kappa = "Cohen's kappa of two samples with the same codes, position by position"
        yield Measure(f"kappa of {flags.name}", "apart", help_kappa, kappa)
        yield Measure(
            f"rate of {flags.name}",
            "",
            "the share of places that it is set in, with codes of the prior",
            rate,
        )
    for index, check in enumerate(steering.checks):

        def share(found: Steering, index: int = index) -> Compared:
            return Compared(found.checks[index].share.value)

        yield Measure(f"{check.name} from the prior", "", "the share of texts with codes of the prior", share)


def table(report: Report) -> Table:
    """Means over seeds, what they are to be compared with, and the difference over seeds and groups."""
    gate, found = gate_of(report), measures(report)
    rows = _steered(report)
    diverse = _comparable(rows)
    headers = [Header("arm"), *(Header(one.name, "", one.help) for one in found)]
    if diverse:
        headers += [
            Header("distinct-2", "", "different pairs of tokens over all pairs"),
            Header("self-BLEU", "", "how much of a text is in the others"),
        ]
    cells = []
    for row in rows:
        line = [Cell(row.label), *(_cell(row, one, gate) for one in found)]
        if diverse:
            spreads = [run.steering.diversity for run in row.runs if run.steering]
            line += [_seeds([d.distinct["2"] for d in spreads]), _seeds([d.self_bleu for d in spreads])]
        cells.append(line)
    return Table(headers, cells)


def arms(report: Report) -> list[str]:
    """The arm of each row of the table."""
    return [row.arm for row in _steered(report)]


def _steered(report: Report) -> list[Row]:
    return [row for row in report.rows if any(run.steering for run in row.runs)]


def _comparable(rows: list[Row]) -> bool:
    """Whether all samples were drawn at one entropy, without which their diversity says nothing."""
    entropies = [
        run.steering.diversity.entropy_nats_per_token for row in rows for run in row.runs if run.steering
    ]
    return bool(entropies) and max(entropies) - min(entropies) <= SAME_ENTROPY_NATS


def notes(report: Report) -> list[str]:
    """What stands under the table."""
    rows = _steered(report)
    if not rows:
        return []
    gate, found = gate_of(report), measures(report)
    said = [] if gate.open else [f"{HIDDEN}: {WHY_HIDDEN}."]
    compared = [(row, values(row, one, gate) or []) for row in rows for one in found]
    missing = {reason for row, of in compared if (reason := _no_interval(row, of))}
    said += [reason for reason in (ONE_SEED, OTHER_SETTINGS, NOT_BY_GROUP) if reason in missing]
    if not _comparable(rows):
        said.append(
            "Diversity is left out: these samples differ in entropy; set steer.entropy_nats_per_token for "
            "all arms."
        )
    return said


ONE_SEED = "A difference without brackets is of one seed: it says nothing of other ones."
OTHER_SETTINGS = (
    "Differences of arms whose seeds were measured with different settings have no interval: their prompts "
    "are not the same."
)
NOT_BY_GROUP = (
    "Differences that are not known prompt by prompt have no interval: an earlier version of lvlm measured "
    "them (lvlm steer RUN measures anew), or one prompt alone carries them."
)


def values(row: Row, measure: Measure, gate: Gate) -> list[Compared] | None:
    """Each run's number and what it is compared with, or None where one of them may not be shown."""
    found = []
    for run in row.runs:
        one = measure.of(run.steering) if run.steering else None
        if one is None:
            continue
        if not gate.shows(one.difference):
            return None
        found.append(one)
    return found


def difference_over_seeds(row: Row, found: list[Compared]) -> Interval | None:
    """The mean difference with its 95 % t interval over crossed seeds and groups; None without differences.

    Only groups that all seeds have a number of are used. Where no interval can be had (one seed, or seeds
    with other groups), it is without end.
    """
    known = [one.difference.value for one in found if one.difference is not None]
    if not known:
        return None
    if _no_interval(row, found):
        return Interval(fmean(known), -math.inf, math.inf)
    return paired_interval(_shared_groups(found))


def _shared_groups(found: list[Compared]) -> FloatArray:
    """Differences by seed and group [S, G], of the groups that all seeds have a number of."""
    by_SG = np.array([one.by_group for one in found if one.difference is not None], np.float64)
    shared_SG: FloatArray = by_SG[:, np.isfinite(by_SG).all(0)]
    return shared_SG


def _no_interval(row: Row, found: list[Compared]) -> str:
    """Why the difference of a row has no interval over seeds; nothing where it has one, or no difference."""
    differences = [one for one in found if one.difference is not None]
    if not differences:
        return ""
    if len(differences) == 1:
        return ONE_SEED
    if any(one.by_group is None for one in differences):
        return NOT_BY_GROUP
    settings = [run.steering.settings for run in row.runs if run.steering]
    same = all(one.get(name) == settings[0].get(name) for one in settings for name in SAME_GROUPS)
    if not same or len({len(one.by_group or []) for one in differences}) > 1:
        return OTHER_SETTINGS
    return "" if _shared_groups(differences).shape[1] > 1 else NOT_BY_GROUP


def _cell(row: Row, measure: Measure, gate: Gate) -> Cell:
    found = values(row, measure, gate)
    if found is None:
        return Cell(HIDDEN)
    besides = [one.beside for one in found if one.beside is not None]
    if not besides:
        return _seeds([one.value for one in found])
    known = [one.value for one in found if one.value is not None]
    details = [f"{measure.beside} {fmean(besides):.3f}".strip()]
    difference = difference_over_seeds(row, found)
    if difference is not None:
        details.append(_signed(difference))
    if 0 < len(known) < len(row.runs):
        details.append(f"{len(known)} of {len(row.runs)} seeds")
    return Cell(f"{fmean(known):.3f}" if known else NOTHING.text, ", ".join(details))


def _signed(found: Interval) -> str:
    return f"{found.value:+.3f}" + (f" [{found.low:+.3f}, {found.high:+.3f}]" if found.bounded else "")


def _seeds(numbers: list[float | None]) -> Cell:
    """The mean over seeds, and the least and the largest, which is no interval."""
    known = [number for number in numbers if number is not None and math.isfinite(number)]
    if not known:
        return NOTHING
    return Cell(f"{fmean(known):.3f}", f"{min(known):.3f} to {max(known):.3f}" if len(known) > 1 else "")


def excess(run: Run) -> float | None:
    """The headline over the oracle, nats per sequence."""
    headline = run.evaluation.headline if run.evaluation.latent is not None else EXACT
    if ORACLE not in run.nats or headline not in run.nats:
        return None
    return float((run.nats[headline] - run.nats[ORACLE]).mean())
