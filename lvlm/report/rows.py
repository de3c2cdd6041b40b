"""Rows of a report: runs, arms, and the numbers that are compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from lvlm.likelihood.reading import is_read
from lvlm.statistics import Interval
from lvlm.statistics.crossed import FloatArray
from lvlm.steering.record import Steering
from lvlm.system.records import Record

EXACT, ORACLE = "nll_exact", "nll_oracle"


@dataclass(frozen=True)
class ReportRun:
    """Place of one run of a study, whether it is there or not."""

    arm: str
    seed: int
    folder: Path


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("Input should be a valid string")
    return value


Text = Annotated[str, PlainValidator(_text)]
"""May hold lone surrogates, which pydantic refuses; the page escapes them."""

Measured = Annotated[float, Field(allow_inf_nan=True)]
"""A number; not finite where the run diverged."""

Count = Annotated[int, Field(ge=0, lt=2**63)]

AtLeast0 = Annotated[float, Field(ge=0)]


class Estimate(Record):
    nats_per_token: Measured
    bits_per_byte: Measured | None
    bound: bool
    noise_stderr: Measured | None = None
    ess: Measured | None = None
    log_weight_variance: Measured | None = None


class LatentFacts(Record):
    budget_nats_per_slot: AtLeast0 | None
    slots_per_row: AtLeast0
    kl_nats_per_slot: Measured
    active_units: Count
    units: Count
    kl_by_slot: list[Measured]


class Parameters(Record):
    backbone: Count
    latent: Count
    table: Count


class Sample(Record):
    prompt: Text
    text: Text
    temperature: AtLeast0


class Evaluation(Record):
    """`evaluation.json`, the part of it that the report reads."""

    version: Literal[2, 3] = Field(alias="schema")
    step: Count
    windows_hash: str
    windows: Annotated[int, Field(ge=1, lt=2**31)]
    target_tokens: Annotated[int, Field(ge=1, lt=2**63)]
    codec: str
    headline: str
    settings: dict[str, str]
    """All that each estimate depends on beside model, windows and noise."""
    ce_by_position: list[Measured | None]
    estimates: dict[str, Estimate]
    latent: LatentFacts | None
    latents: dict[str, LatentFacts] = Field(default={})
    """Facts of each of several latents, by name."""
    parameters: Parameters
    tokens_per_second: AtLeast0 | None
    peak_memory_mib: AtLeast0 | None
    sample: Sample | None
    no_bits_per_byte: str | None = None
    """Why bits per byte are left out, in words."""

    @property
    def budget(self) -> float | None:
        """The KL that costs nothing, in nats per target token."""
        if self.latent is None or self.latent.budget_nats_per_slot is None:
            return None
        slots = self.latent.slots_per_row * self.windows
        return self.latent.budget_nats_per_slot * slots / self.target_tokens


@dataclass(frozen=True)
class LeftOut:
    """A run that isn't there to be compared, and why, in words that follow its name."""

    arm: str
    seed: int
    why: str
    diverged: bool = False

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed} {self.why}"


@dataclass(frozen=True)
class Run:
    arm: str
    seed: int
    evaluation: Evaluation
    nats: dict[str, FloatArray]  # nats per sequence by estimator, and 'targets'
    events: tuple[dict[str, Any], ...]
    recipe: str
    versions: dict[str, str]
    steering: Steering | None = None
    worth: Interval | None = None
    """What the right code is worth, nats per token, over this run's windows; None where it isn't known."""
    onset: int | None = None
    """The step at which reading began, by the validations during training."""

    @property
    def trained(self) -> int:
        """Steps taken, from the log; the evaluated checkpoint may be an earlier one. 0: nothing was
        logged.
        """
        return max((int(event.get("step", 0)) for event in self.events), default=0)

    @property
    def reads(self) -> bool | None:
        """Whether the decoder reads its codes, by this run's windows; None where it isn't known."""
        return None if self.worth is None else is_read(self.worth.low)

    def value(self, name: str) -> float | None:
        """One estimate, in nats per token."""
        return self.evaluation.estimates[name].nats_per_token if name in self.evaluation.estimates else None


@dataclass(frozen=True)
class Row:
    """An arm: all its seeds, whatever became of their latents.

    left_out        why seeds are missing, by seed
    headline        each run's own headline, nats per token
    estimates       every bound that all runs have, nats per token
    differences     headline less a control's, paired, nats per token, by the control's name; None where the
                    control's own headline is a bound
    over_control    every bound less the first control's exact value, paired, nats per token
    excess          headline less the oracle's, nats per sequence
    worth           ce_prior less ce_posterior, nats per token
    """

    arm: str
    runs: tuple[Run, ...]
    left_out: dict[int, LeftOut]
    headline: Interval
    estimates: dict[str, Interval]
    differences: dict[str, Interval | None]
    over_control: dict[str, Interval]
    excess: Interval | None
    worth: Interval | None

    @property
    def label(self) -> str:
        """What the arm is called."""
        return self.arm

    @property
    def has_latent(self) -> bool:
        """Whether there are codes."""
        return self.runs[0].evaluation.latent is not None

    @property
    def headlines(self) -> dict[str, int]:
        """Names of the runs' headlines, with how many runs have each."""
        return dict(Counter(run.evaluation.headline for run in self.runs))

    @property
    def exact(self) -> bool:
        """Whether the headline is the models' likelihood rather than a bound on it."""
        return set(self.headlines) == {EXACT}

    @property
    def readers(self) -> tuple[int, int] | None:
        """Number of runs whose decoder reads its codes, and of runs where it is known; None without any."""
        known = [run.reads for run in self.runs if run.reads is not None]
        return (sum(known), len(known)) if known else None

    @property
    def onsets(self) -> tuple[int, ...]:
        """Steps at which reading began, of the runs where it did."""
        return tuple(sorted(run.onset for run in self.runs if run.onset is not None))

    @property
    def diverged(self) -> tuple[int, ...]:
        """Seeds whose training diverged."""
        return tuple(seed for seed, why in self.left_out.items() if why.diverged)

    def mean(self, of: Callable[[Run], float | None]) -> float | None:
        """The mean over seeds; None if any run lacks the number."""
        found = [value for value in map(of, self.runs) if value is not None]
        return fmean(found) if len(found) == len(self.runs) else None


@dataclass(frozen=True)
class Report:
    """A study as it is shown."""

    out: Path
    title: str
    description: str
    command: str
    controls: tuple[str, ...]
    """Arms that the others are compared with; the first gives the verdict."""
    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...]
    """Runs without a usable evaluation."""

    @property
    def control(self) -> str:
        """The arm that verdicts are about."""
        return self.controls[0]

    @property
    def arms(self) -> tuple[str, ...]:
        """Arms with an evaluated run, in the study's order."""
        return tuple(row.arm for row in self.rows)

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every evaluated run."""
        return tuple(run for row in self.rows for run in row.runs)

    @property
    def control_row(self) -> Row | None:
        """What verdicts compare with; None where it has no evaluated run."""
        return next((row for row in self.rows if row.arm == self.control), None)
