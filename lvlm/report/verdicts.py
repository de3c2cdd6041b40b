"""Verdicts: what an arm's difference to the control allows one to say, and no more.

| word                | when                                                                            |
|---------------------|---------------------------------------------------------------------------------|
| better              | the interval lies below zero: also of a bound, since the model is better still  |
| worse               | the interval lies above zero, and both are exact likelihoods                    |
| not distinguishable | the interval holds zero                                                         |
| cannot say          | a bound above the control says nothing against the model; nor does a difference |
|                     | of two bounds, or what is left of an arm of which a seed diverged                |
| too few seeds       | fewer than three of the arm or of its control                                   |
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from lvlm.report.numbers import in_digits
from lvlm.report.rows import EXACT, Report, Row
from lvlm.statistics import FEWEST_SEEDS, Interval

Word = Literal["better", "worse", "not distinguishable", "cannot say", "too few seeds"]


class Verdict(NamedTuple):
    """A word on an arm, and the sentence that says why."""

    word: Word
    label: str
    text: str

    @property
    def tone(self) -> Literal["better", "worse", "open"]:
        """What colours follow."""
        return self.word if self.word == "better" or self.word == "worse" else "open"


def word_of(gap: Interval | None, *, seeds: int, exact: bool, diverged: bool) -> Word:
    """The verdict on an arm.

    Args:
        gap: headline less the control's exact likelihood; None where the control's own headline is a bound.
        seeds: of the arm or of its control, whichever has fewer.
        exact: whether the headline is the arm's likelihood; if not it is an upper bound.
        diverged: whether a seed of either is missing because its training diverged.
    """
    if gap is None or diverged:
        return "cannot say"
    if seeds < FEWEST_SEEDS:
        return "too few seeds"
    if gap.high < 0:
        return "better"
    if gap.low <= 0:
        return "not distinguishable"
    return "worse" if exact else "cannot say"


def verdicts(report: Report) -> list[Verdict]:
    """Verdicts on all arms beside the control, each over all its seeds; then arms without runs."""
    control = report.control_row
    found = [_verdict(row, control) for row in report.rows if control and row is not control]
    lost: dict[str, list[str]] = {}
    for run in report.left_out:
        if run.arm not in (*report.arms, report.control):
            lost.setdefault(run.arm, []).append(f"seed {run.seed} {run.why}")
    found += [
        Verdict("cannot say", arm, f"has no evaluated run: {'; '.join(why)}.") for arm, why in lost.items()
    ]
    return found


def _verdict(row: Row, control: Row) -> Verdict:
    gap, seeds = row.differences.get(control.arm), min(len(row.runs), len(control.runs))
    diverged = row.diverged or control.diverged
    word = word_of(gap, seeds=seeds, exact=row.exact, diverged=bool(diverged))
    told = _told(word, row, control, gap, seeds)
    return Verdict(word, row.label, " ".join([told, *_reading(row)]))


def _told(word: Word, row: Row, control: Row, gap: Interval | None, seeds: int) -> str:
    """The sentence of the word."""
    if gap is None:
        return (
            f"is not compared: {_and(control.headlines)} of {control.label} is itself a bound, and a "
            "difference of two bounds says nothing about the models. Name an arm with nll_exact as the "
            "control."
        )
    value, ends = in_digits(gap, sign="+")
    over, interval = f"{value} nats/token", f"95 % interval {ends}, {_seeds(seeds)}"
    bounding = [name for name in row.headlines if name != EXACT]
    they = "is an upper bound" if len(bounding) == 1 else "are upper bounds"
    bound = f" {_and(bounding)} {they}" if bounding else ""
    if row.diverged or control.diverged:
        whose = row if row.diverged else control
        return (
            f"gets no verdict: {_seeds(whose.diverged)} of {whose.label} diverged, and the seeds that are "
            f"left were chosen by what became of them. Their difference to {control.label} is {over}."
        )
    if seeds == 1:
        return (
            f"gets no verdict from one seed: its difference to {control.label} is {over} in this one "
            "training, and nothing is known of another."
        )
    if word == "too few seeds":
        return (
            f"gets no verdict from {_seeds(seeds)}: its difference to {control.label} is {over}, {interval}; "
            f"{FEWEST_SEEDS} are the least."
        )
    if word == "not distinguishable":
        open_end = f";{bound}, so the model may be better" if bound else ""
        return f"is not distinguishable from {control.label}: difference {over}, {interval}{open_end}."
    if word == "cannot say":
        return (
            f"can't be judged:{bound}, and the headline lies above {control.label} by {value[1:]} "
            f"nats/token, {interval}. A bound that doesn't beat the control says nothing against the model."
        )
    by = f"is {word} than {control.label} by {value[1:]} nats/token, {interval}."
    return f"{by}{bound}, so the model itself may be better still." if bound else by


def _reading(row: Row) -> list[str]:
    """How many seeds read their codes."""
    if row.readers is None:
        return []
    readers, known = row.readers
    onset = (
        f", onset at {'step' if len(row.onsets) == 1 else 'steps'} {_and(row.onsets)}" if row.onsets else ""
    )
    seeds = f"{known} seed{'s' * (known > 1)}"
    if readers:
        return [f"Codes are read in {readers} of {seeds}{onset}."]
    rate = row.mean(lambda run: run.value("kl"))
    paid = "" if rate is None else f", and elbo pays {rate:.4f} nats/token of KL for them"
    return [f"Codes are read in none of {seeds}{paid}."]


def _seeds(seeds: int | tuple[int, ...]) -> str:
    if isinstance(seeds, tuple):
        return f"seed{'s' * (len(seeds) > 1)} {_and(seeds)}"
    return "one seed" if seeds == 1 else f"{seeds} seeds"


def _and(things: Iterable[object]) -> str:
    *most, last = map(str, things)
    return f"{', '.join(most)} and {last}" if most else last
