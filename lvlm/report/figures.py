"""The report's figures, as SVG that takes its text colour from the page and needs nothing from outside it.

matplotlib is used through `Figure` alone: no pyplot, no window, no global state. Every figure comes with
words for those who can't see it. Marks of runs that don't read their codes are hollow. All axes are nats per
target token unless they say otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from lvlm.report.canvas import (
    CONTROL_COLOUR,
    INK,
    SETTINGS,
    Picture,
    finish,
    new_canvas,
    plain,
    style_of,
    styles,
)
from lvlm.report.rows import EXACT, ORACLE, Report, Row, Run
from lvlm.report.steering import excess, gate_of, measures, values
from lvlm.statistics.crossed import FloatArray

POSITIONS_SHOWN = 40


def draw(report: Report) -> list[Picture]:
    """Every figure that the study has the numbers for."""
    with rc_context(SETTINGS):
        drawn = (_battery, _rate_distortion, _curves, _by_position, _steering)
        pictures = [figure(report) for figure in drawn]
    return [picture for picture in pictures if picture is not None]


def draw_plane(report: Report) -> Picture | None:
    """The rate-distortion plane alone; None where no arm has a latent."""
    with rc_context(SETTINGS):
        return _rate_distortion(report)


def _battery(report: Report) -> Picture:
    """Every valid estimate of every arm, as a bar over the control's exact value; without one, as it is."""
    control = report.control_row
    paired = control is not None and control.exact and any(row.over_control for row in report.rows)
    shown = {row.label: row.over_control if paired else row.estimates for row in report.rows}
    canvas, (axis,) = new_canvas(1.2 + 0.27 * sum(map(len, shown.values())))
    told, labels, places, place = [], [], [], -0.6
    for row in report.rows:
        place += 0.6 * bool(shown[row.label])
        for name, value in shown[row.label].items():
            place += 1.0
            style = style_of(report, row.arm)
            if paired:
                colour = style["color"]
                axis.barh([place], [value.value], height=0.72, color=colour, edgecolor=colour, alpha=0.55)
                style["marker"] = "none"
            reach = value.high - value.value
            spread = reach if np.isfinite(reach) else None  # of one seed nothing is known
            axis.errorbar([value.value], [place], xerr=spread, capsize=3, markersize=6, **style)
            labels.append(f"{row.label}   {name}")
            places.append(place)
            told.append(
                f"{row.label} {name} {value.value:+.4f}"
                if paired
                else f"{row.label} {name} {value.value:.4f}"
            )
    oracle = next((nats for run in report.runs if (nats := run.value(ORACLE)) is not None), None)
    zero = control.headline.value if control is not None and paired else 0.0
    if control is not None and paired:
        label = f"{plain(control.label)}, {EXACT}: {zero:.4f}"
        axis.axvline(0, color=CONTROL_COLOUR, linewidth=1.4, label=label, zorder=1)
        told.append(f"over {control.label} {zero:.4f}")
    if oracle is not None:
        axis.axvline(oracle - zero, color=INK, linewidth=1.4, linestyle=":", label=ORACLE, zorder=1)
        told.append(f"the oracle {oracle:.4f}")
    axis.set_yticks(places, labels)
    axis.set_ylim(place + 0.8, 0.2)
    axis.grid(visible=False, axis="y")
    over = f" over {plain(control.label)}" if control is not None and paired else ""
    axis.set_xlabel(f"nats per token{over} (lower is better)")
    if axis.get_legend_handles_labels()[0]:
        canvas.legend(loc="outside upper right", ncols=2, fontsize=9)
    kind = "Bars with paired 95 % t intervals" if paired else "Dots with 95 % t intervals"
    alt = f"{kind}, nats per token: {'; '.join(told)}."
    note = (
        "Each estimate but nll_exact is an upper bound, so the leftmost of an arm is the one nearest "
        "the truth. "
    )
    note += (
        "Intervals are of the paired difference, over seeds and windows; verdicts are of the headline alone."
        if paired
        else "These intervals are of one arm alone, over seeds and windows."
    )
    note += " One seed has none." if any(len(row.runs) == 1 for row in report.rows) else ""
    return Picture("Battery of estimators", "battery", canvas, alt, note)


def _rate_distortion(report: Report) -> Picture | None:
    """Raw KL against ce_posterior: what the codes cost and what is left to say once they are known."""
    canvas, (axis,) = new_canvas(4.4)
    told, latents = [], False
    for row in report.rows:
        points, label = list(_plane_points(row.runs)), row.label
        if points:
            latents = True
        elif row.exact and row.arm == report.control:
            points, label = [((0.0, row.headline.value), False)], f"{row.label} (exact, at rate 0)"
        else:
            continue
        for number, ((rate, distortion), hollow) in enumerate(points):
            axis.plot(
                [rate],
                [distortion],
                linestyle="none",
                markersize=8,
                label=None if number else plain(label),
                clip_on=False,
                zorder=3,
                **style_of(report, row.arm, hollow=hollow),
            )
        rate, distortion = np.mean([place for place, _ in points], axis=0)
        told.append(f"{label}: KL {rate:.4f}, cross-entropy {distortion:.4f}")
    if not latents:
        return None
    axis.margins(0.12)
    right, (low, high) = max(axis.get_xlim()[1], 0.02), axis.get_ylim()
    pad = 0.5 * max(0.0, 0.3 * right - (high - low))  # a flat cloud still shows the slope of the lines
    low, high = low - pad, high + pad
    axis.set_xlim(0, right)
    axis.set_ylim(low, high)
    for elbo in MaxNLocator(8).tick_values(low, high + right):
        axis.axline((0, elbo), slope=-1, color="#808080", linewidth=1, alpha=0.6, linestyle=":", zorder=0)
        leave = min(right, elbo - low)  # where the line meets the lower or the right edge
        if 0.04 * right < leave and elbo - leave < high:
            axis.annotate(
                f"{elbo:g}",
                (leave, elbo - leave),
                fontsize=8,
                color="#808080",
                xytext=(3, 2),
                textcoords="offset points",
                annotation_clip=False,
            )
    finish(axis, x="rate: raw KL, nats per token", y="distortion: ce_posterior, nats per token")
    alt = f"Rate-distortion plane, means over seeds in nats per token: {'; '.join(told)}."
    note = (
        "Every seed is a point, hollow where its codes aren't read; dotted lines join equal ELBO, with its "
        "value at their end. Down and to the left is better. ce_posterior has seen the answer: only its sum "
        "with the rate is a bound, and it means nothing alone."
    )
    return Picture("Rate-distortion plane", "plane", canvas, alt, note)


def _plane_points(runs: Sequence[Run]) -> Iterator[tuple[tuple[float, float], bool]]:
    """Raw KL and ce_posterior of each run that has them, and whether its mark is hollow."""
    for run in runs:
        rate, distortion = run.value("kl"), run.value("ce_posterior")
        if rate is not None and distortion is not None:
            yield (rate, distortion), run.reads is False


def _series(run: Run, *names: str) -> dict[int, float]:
    """Numbers by step: the first of these names that an evaluation during training holds."""
    found = {}
    for event in run.events:
        value = next((event[name] for name in names if event.get(name) is not None), None)
        if event.get("event") == "evaluate" and value is not None:
            found[event["step"]] = value
    return found


def _worth_series(run: Run) -> dict[int, float]:
    """ce_prior less ce_posterior by step."""
    prior, posterior = _series(run, "ce_prior"), _series(run, "ce_posterior")
    return {step: prior[step] - posterior[step] for step in prior if step in posterior}


def _lines(axis: Axes, report: Report, row: Row, series: Sequence[dict[int, float]]) -> FloatArray | None:
    """Draw seeds thin and their mean thick, over the steps that all of them have; return the mean."""
    series = [one for one in series if one]
    shared = sorted(set[int].intersection(*map(set, series))) if series else []
    colour, marker = styles(report)[row.arm]
    for one in series:
        axis.plot(list(one), list(one.values()), color=colour, linewidth=0.8, alpha=0.45)
    if not shared:
        return None
    mean: FloatArray = np.mean([[one[step] for step in shared] for one in series], axis=0)
    axis.plot(
        shared,
        mean,
        color=colour,
        linewidth=2.2,
        label=plain(row.label),
        marker=marker if len(shared) == 1 else None,
    )
    return mean


def _curves(report: Report) -> Picture | None:
    """Validation bound, worth of the right code, and raw KL over the steps."""
    canvas, (left, middle, right) = new_canvas(3.8, panels=3, width=9.6)
    told = []
    for row in report.rows:
        bound = _lines(left, report, row, [_series(run, "nll_exact", "elbo") for run in row.runs])
        worth = _lines(middle, report, row, [_worth_series(run) for run in row.runs])
        kl = _lines(right, report, row, [_series(run, "kl") for run in row.runs])
        if bound is not None:
            raw = "" if kl is None else f" with raw KL {kl[-1]:.4f}"
            raw += "" if worth is None else f" and codes worth {worth[-1]:+.4f}"
            told.append(f"{row.label} ends at {bound[-1]:.4f}{raw}")
        budget = row.runs[0].evaluation.budget
        if kl is not None and budget is not None:
            right.axhline(budget, color=styles(report)[row.arm].colour, linestyle=":", linewidth=1.4)
    if not told:
        return None
    finish(left, x="step", y="validation elbo or nll_exact, nats per token")
    middle.set_xlabel("step")
    middle.set_ylabel("worth of the right code, nats per token")
    right.set_xlabel("step")
    right.set_ylabel("raw KL, nats per token")
    if right.lines:
        right.set_ylim(bottom=0)
    if middle.lines:
        middle.axhline(0, color=CONTROL_COLOUR, linewidth=1)
    for axis in (middle, right):
        axis.set_visible(bool(axis.lines))
    alt = f"Learning curves, nats per token: {'; '.join(told)}."
    note = (
        "Thin lines are seeds, thick ones their mean. In the middle, codes are read from where a seed leaves "
        "zero. On the right, dotted lines are the budgets: KL below is free."
    )
    return Picture("Learning curves", "curves", canvas, alt, note)


def _in_groups(by_place: dict[int, float]) -> dict[int, float]:
    """Means over neighbouring positions, at most some forty: one position of a few windows is mostly
    noise.
    """
    places = list(by_place)
    size = -(-len(places) // POSITIONS_SHOWN)
    groups = (places[start : start + size] for start in range(0, len(places), size or 1))
    return {group[len(group) // 2]: sum(by_place[p] for p in group) / len(group) for group in groups}


def _by_position(report: Report) -> Picture | None:
    """Figure by position: where the codes carry something, and where the text is hard."""
    canvas, (left, right) = new_canvas(3.6, panels=2)
    told = []
    for row in report.rows:
        found = [run.evaluation.latent.kl_by_slot for run in row.runs if run.evaluation.latent is not None]
        mean = _lines(left, report, row, [dict(enumerate(kls)) for kls in found if len(kls) > 1])
        if mean is not None:
            told.append(f"the KL of {row.label} is largest at slot {mean.argmax()}")
        by_place = [
            _in_groups({p: ce for p, ce in enumerate(run.evaluation.ce_by_position) if ce is not None})
            for run in row.runs
        ]
        mean = _lines(right, report, row, by_place)
        if mean is not None:
            told.append(f"the cross-entropy of {row.label} ends at {mean[-1]:.4f}")
    if not told:
        return None
    if left.lines:
        left.set_ylim(bottom=0)
        finish(left, x="slot position in the row", y="raw KL, nats per slot")
    else:
        left.set_visible(False)
    right.set_ylim(bottom=0)
    finish(right, x="target position in the row", y="ce_posterior or nll_exact, nats")
    alt = f"Raw KL by slot and cross-entropy by position: {'; '.join(told)}."
    note = (
        "On the left, a flat line spends the same everywhere; a peak says where the model has something to "
        "decide. On the "
        "right, ce_posterior has seen the answer, and is no likelihood: only its shape is to be read "
        "beside nll_exact."
    )
    return Picture("KL and cross-entropy by position", "position", canvas, alt, note)


Points = dict[str, list[tuple[float, float | None]]]
"""By row, each seed's number and what it is compared with."""


def _steering(report: Report) -> Picture | None:
    """What codes steer, a panel for each measure and one for the excess over the oracle; every seed a
    point.
    """
    found, gate, told = measures(report), gate_of(report), []
    panels: list[tuple[str, Points]] = []
    for measure in found:
        points: Points = {}
        for row in report.rows:
            shown = values(row, measure, gate) or []
            pairs = [(one.value, one.beside) for one in shown]
            alone: list[tuple[float, float | None]] = [
                (beside, None) for value, beside in pairs if value is None and beside is not None
            ]
            points[row.label] = [(v, b) for v, b in pairs if v is not None] or alone
        panels.append((measure.name, points))
    over: Points = {
        row.label: [(e, None) for run in row.runs if (e := excess(run)) is not None] for row in report.rows
    }
    if any(over.values()):
        panels.append(("excess over the oracle, nats/sequence", over))
    panels = [(name, points) for name, points in panels if any(points.values())]
    if not found or not panels:
        return None
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    labels = [row.label for row in report.rows]
    canvas = Canvas(figsize=(7.2, 0.5 + lines * (1.0 + 0.27 * len(labels))), layout="constrained")
    axes = canvas.subplots(lines, columns, squeeze=False)
    for number, axis in enumerate(axes.flat):
        if number >= len(panels):
            axis.set_visible(False)
            continue
        name, points = panels[number]
        axis.grid(color="#80808033", linewidth=0.6, axis="x")
        axis.set_axisbelow(True)
        for place, row in enumerate(report.rows):
            of_seeds = points[row.label]
            if not of_seeds:
                continue
            numbers = [value for value, _ in of_seeds]
            besides = [beside for _, beside in of_seeds if beside is not None]
            axis.plot(
                numbers,
                [place] * len(numbers),
                linestyle="none",
                markersize=6,
                alpha=0.7,
                **style_of(report, row.arm),
            )
            middle = float(np.mean(numbers))
            axis.plot(
                [middle] * 2, [place - 0.32, place + 0.32], color=styles(report)[row.arm].colour, linewidth=2
            )
            if besides:
                axis.plot(
                    besides,
                    [place] * len(besides),
                    linestyle="none",
                    marker="|",
                    markersize=9,
                    color=CONTROL_COLOUR,
                )
            told.append(f"{name} of {row.label} {middle:.3f}")
        axis.set_yticks(
            range(len(labels)), [plain(label) for label in labels] if number % columns == 0 else []
        )
        axis.set_ylim(len(labels) - 0.4, -0.6)
        axis.set_xlabel(name, fontsize=9)
        if all(0 <= value <= 1 for of in points.values() for value, _ in of):
            axis.set_xlim(-0.04, 1.04)
    alt = f"Steering, means over seeds: {'; '.join(told)}."
    note = (
        "Every seed is a point and a bar their mean; grey ticks are what the point is to be compared with: "
        "samples that share "
        "no codes, or codes of the prior. An arm without a latent shows those alone."
    )
    return Picture("Steering", "steering", canvas, alt, note)
