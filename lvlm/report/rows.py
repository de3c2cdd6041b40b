"""Rows of a report: runs, arms, and the numbers that are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pydantic import BaseModel, Field, SkipValidation

from lvlm.statistics.bootstrap import FloatArray
from lvlm.statistics.interval import Interval
from lvlm.steering.record import Steering

EXACT, ORACLE = "nll_exact", "nll_oracle"


@dataclass(frozen=True)
class ReportRun:
    """Place of one run of a study, whether it is there or not."""

    arm: str
    seed: int
    folder: Path


class Estimate(BaseModel):
    nats_per_token: float
    bits_per_byte: float | None
    bound: bool
    noise_stderr: float | None = None
    ess: float | None = None
    log_weight_variance: float | None = None


class LatentFacts(BaseModel):
    budget_nats_per_slot: float | None
    slots_per_row: float
    kl_nats_per_slot: float
    active_units: int
    units: int
    kl_by_slot: tuple[float, ...]


class Parameters(BaseModel):
    backbone: int
    latent: int
    table: int


class Sample(BaseModel):
    prompt: SkipValidation[str]  # may hold lone surrogates, which pydantic refuses; the page escapes them
    text: SkipValidation[str]
    temperature: float


class Evaluation(BaseModel):
    """`evaluation.json`, the part of it that the report reads."""

    version: Literal[2] = Field(alias="schema")
    windows_hash: str
    windows: int
    target_tokens: int
    codec: str
    headline: str
    settings: dict[str, str]
    """All that each estimate depends on beside model, windows and noise."""
    ce_by_position: tuple[float | None, ...]
    estimates: dict[str, Estimate]
    latent: LatentFacts | None
    parameters: Parameters
    tokens_per_second: float | None
    peak_memory_mib: float | None
    sample: Sample | None
    no_bits_per_byte: str | None = None
    """Why bits per byte are left out, in words."""
    living: bool | None = Field(alias="alive")
    """Whether the latent is used (lvlm.evaluation.run has the rule); None: there is no latent."""

    @property
    def budget(self) -> float | None:
        """The KL that costs nothing, in nats per target token."""
        if self.latent is None or self.latent.budget_nats_per_slot is None:
            return None
        slots = self.latent.slots_per_row * self.windows
        return self.latent.budget_nats_per_slot * slots / self.target_tokens


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

    @property
    def trained(self) -> int:
        """Steps taken, from the log; the evaluated checkpoint may be an earlier one. 0: nothing was
        logged.
        """
        return max((int(event.get("step", 0)) for event in self.events), default=0)

    def value(self, name: str) -> float | None:
        """One estimate, in nats per token."""
        return self.evaluation.estimates[name].nats_per_token if name in self.evaluation.estimates else None


@dataclass(frozen=True)
class Row:
    """Runs that may be averaged: the seeds of an arm whose latents all live, are all dead, or don't exist."""

    label: str
    arm: str
    runs: tuple[Run, ...]
    alive: tuple[int, int] | None  # of all the arm's runs: k living of n
    headline: str
    estimates: dict[str, Interval]  # every bound, nats per token
    difference: Interval | None  # headline minus the control's, nats per token
    excess: Interval | None  # headline minus the oracle's, nats per sequence
    over_control: dict[str, Interval]  # every bound minus the control's exact value, paired, nats per token

    @property
    def living(self) -> bool | None:
        """Whether these latents are used; None: there is none."""
        return self.runs[0].evaluation.living

    @property
    def exact(self) -> bool:
        """Whether the headline is the model's likelihood rather than a bound on it."""
        return self.headline == EXACT

    def mean(self, of: Callable[[Run], float | None]) -> float | None:
        """The mean over seeds; None if any run lacks the number."""
        found = [value for value in map(of, self.runs) if value is not None]
        return fmean(found) if len(found) == len(self.runs) else None


@dataclass(frozen=True)
class Report:
    out: Path
    title: str
    description: str
    command: str
    control: str
    rows: tuple[Row, ...]
    left_out: tuple[str, ...]  # one sentence for each run without a usable evaluation

    @property
    def arms(self) -> tuple[str, ...]:
        """Arms with an evaluated run, in the study's order."""
        return tuple(dict.fromkeys(row.arm for row in self.rows))

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every evaluated run."""
        return tuple(run for row in self.rows for run in row.runs)

    @property
    def control_row(self) -> Row | None:
        """What the others are compared with."""
        return next((row for row in self.rows if row.arm == self.control), None)
