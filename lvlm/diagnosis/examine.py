"""The doctor: numbers that tell whether a run's decoder reads its codes. `findings.py` says what they mean.

a checkpoint ─── validation windows ─┬─ codes of posterior, prior, another row   does the decoder read them?
                                     ├─ raw KL, active units      does the encoder say something?
                                     ├─ gradient of the run's own loss            can the encoder learn?
                                     └─ state of its optimiser                    was everything trained?

Nothing of the run is changed, and two examinations give the same numbers: all noise has a seed of its own.

Shape legend: see `lvlm.interfaces`; N windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from lvlm.arguments import checks_arguments
from lvlm.data.source import need_windows
from lvlm.diagnosis.findings import Finding, findings_of
from lvlm.diagnosis.measure import measure
from lvlm.diagnosis.measured import Measured
from lvlm.errors import UserError, check_count
from lvlm.interfaces.brief import Brief
from lvlm.runs.opened import OpenedRun, open_run
from lvlm.system.progress import Display


@dataclass(frozen=True, repr=False)
class Examination(Brief):
    """What was found. `newest_step` is that of the run's last checkpoint; `measured` is None without a
    latent.
    """

    run: str
    step: int
    newest_step: int
    measured: Measured | None
    findings: list[Finding]


@checks_arguments
def doctor(
    run: str | Path | OpenedRun,
    *overrides: str,
    step: int | None = None,
    windows: int | None = None,
    plugin_files: Sequence[str] = (),
    console: Console | None = None,
) -> Examination:
    """Examine whether the decoder of a run reads its codes, and find what to try when it doesn't.

    Looks at one checkpoint of one seed on validation windows; changes nothing.

    Args:
        run: as for `load`, or a run that is open.
        overrides: as for `evaluate`.
        step: as for `load`.
        windows: how many validation windows, as many as in training unless given. With more of them intervals
            are narrower.
        plugin_files: as for `build`.
        console: where progress goes; quiet unless given.

    Raises:
        UserError: no such run or checkpoint, a damaged one, other data than it was trained on, or
            fewer windows than are asked for.
    """
    if windows is not None:
        check_count("windows", windows)
    with Display(console or Console(quiet=True), f"examining {run}", 100) as display:
        opened = open_run(run, overrides, step=step, plugin_files=plugin_files)
        measured = None
        if opened.recipe.model.latents:
            raise UserError(
                f"{opened}: model.latents names latents, and the doctor knows the only one of a model"
            )
        if opened.model.latent is not None:
            count = windows or opened.recipe.train.evaluate_windows
            need_windows(f"windows is {count}", count, opened.recipe.data.row_bytes)
            held_out = opened.data.windows(count)
            measured = measure(
                opened.model, opened.recipe, held_out, opened.checkpoint, progress=display.share
            )
    findings = findings_of(measured, opened.resolved)
    return Examination(str(opened), opened.step, opened.newest_step, measured, findings)
