"""Progress of long work: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lvlm.system.plain import printable
from lvlm.system.terminal import tell

SECONDS_BETWEEN_LINES = 10.0

_LIVE = ("nll_exact", "ce_posterior", "kl", "elbo", "ce_prior")


def describe(metrics: Mapping[str, float]) -> str:
    """Metrics on one line: 'ce_posterior 2.310 kl 0.041 elbo 2.351 nats/token'."""
    shown = [f"{name} {metrics[name]:.3f}" for name in _LIVE if name in metrics]
    return " ".join(shown) + " nats/token" if shown else ""


class Display:
    """Progress of one piece of work, with `label` in front. Use as a context manager.

    Args:
        console: where to write; `quiet` consoles write nothing.
        label: 'free seed 1 (5/12)'.
        steps: of the whole work.
        start: steps that were done before.
    """

    def __init__(self, console: Console, label: str, steps: int, start: int = 0) -> None:
        self.console, self.label, self.steps = console, printable(label), steps
        self._began, self._first, self._printed = time.monotonic(), start, time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}", markup=False),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(self.label, total=steps, completed=start, numbers="")

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, step: int, metrics: Mapping[str, float] | None = None) -> None:
        """Show that `step` steps are done, with the newest numbers."""
        numbers = describe(metrics or {})
        if metrics and "tokens_per_second" in metrics:
            numbers += f"  {metrics['tokens_per_second']:,.0f} tokens/s"
        if self._bar:
            shown = {"numbers": numbers} if numbers else {}
            self._bar.update(self._task, completed=step, **shown)  # type: ignore[arg-type]
        elif numbers and time.monotonic() - self._printed > SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            left = (self._printed - self._began) / max(1, step - self._first) * (self.steps - step)
            self.line(f"step {step}/{self.steps}  {numbers}  {left:.0f} s left")

    def share(self, done: float) -> None:
        """Show the share of the work that is done, 0 to 1."""
        self.update(round(done * self.steps))

    def line(self, text: str) -> None:
        """Print a line that stays."""
        tell(self.console, f"{self.label}  {text}")
