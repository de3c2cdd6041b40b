"""Studies: arms and seeds, trained, evaluated and (where a recipe says so) steered one after the other, and
one report.

OUT/ARM/seedK/      a run each (lvlm.runs.folder)
OUT/report.html     the comparison
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lvlm.errors import Interrupted, UserError
from lvlm.evaluation.run import evaluate
from lvlm.runs.folder import is_run
from lvlm.runs.opened import open_run
from lvlm.steering.run import steer
from lvlm.system.files import writing
from lvlm.training.train import train_resolved


def run_study(
    source: str | Path,
    out: Path,
    overrides: Sequence[str] = (),
    *,
    plugin_files: Sequence[str] = (),
    console: Console,
    command: str = "",
) -> Path:
    """Run what isn't finished yet, then write the report, print its table and return its path.

    Raises:
        UserError: a fault in any arm or a folder that holds something else (before anything runs), a folder
            that holds another run, arms that can't be compared.
    """
    from lvlm.recipe.study import read_study
    from lvlm.report import ReportRun, read_report, report_study

    study = read_study(source, overrides, plugin_files=plugin_files)
    claim_study(out, study.arms)
    total, began, worked = len(study.runs), time.monotonic(), 0
    console.print(
        f"study {study.name}: {len(study.arms)} arms x {len(study.seeds)} seeds in {out}", highlight=False
    )
    reported = []
    for number, run in enumerate(study.runs, start=1):
        folder = out / run.arm / f"seed{run.seed}"
        reported.append(ReportRun(run.arm, run.seed, folder))
        label = f"[{number}/{total}] {run.arm} seed {run.seed}"
        train_resolved(run.resolved, folder, resume=True, console=console, label=label)
        evaluated, steered = (folder / "evaluation.json").exists(), run.resolved.recipe.steer is not None
        if not evaluated or steered:
            opened = open_run(folder, registry=run.resolved.registry)
            if not evaluated:
                evaluate(opened, console=console, label=f"{label}  evaluating")
            if steered:
                steer(opened, console=console, label=f"{label}  steering")
        if evaluated:
            continue
        worked += 1
        minutes = (time.monotonic() - began) / worked * (total - number) / 60
        console.print(f"{label}  done; about {minutes:.1f} min left", highlight=False, markup=False)
    report = read_report(
        out,
        title=study.name,
        description=study.description,
        command=command,
        controls=study.controls,
        runs=reported,
    )
    return report_study(report, console)


def claim_study(out: Path, arms: Sequence[str]) -> None:
    """Make sure that a study may be begun in a folder, or gone on with; see `lvlm.runs.folder.claim` for a
    run.

    Raises:
        UserError: it holds something that is no study.
    """
    with writing(out):  # whose name may be too long
        if not out.exists():
            return
        if not out.is_dir():
            raise UserError(f"{out}: is a file; name a folder for the study")
        others = {path.name for path in out.iterdir()} - {*arms, "report.html"}
        if others and not any(is_run(run) for run in out.glob("*/seed*")):
            raise UserError(f"{out}: holds other files and no study; name another folder with --out")


def study(
    source: str | Path,
    out: str | Path,
    *overrides: str,
    plugin_files: Sequence[str] = (),
    console: Console | None = None,
    command: str = "",
) -> Path:
    """Run a study and write its report; what is finished already isn't run again.

    Args:
        source: a study's YAML file, or the name of a shipped study, such as demo.
        out: the study's folder.
        overrides: as for `build`.
        plugin_files: as for `build`.
        console: where progress and the table go; quiet unless given.
        command: what the report says that it was made with.

    Returns:
        The path of the HTML report.

    Raises:
        UserError: for bad input, or arms that can't be compared.
        lvlm.errors.Interrupted: by Ctrl-C or SIGTERM, after saving the run that was under way.
    """
    try:
        return run_study(
            source,
            Path(out),
            overrides,
            plugin_files=plugin_files,
            console=console or Console(quiet=True),
            command=command,
        )
    except Interrupted as stop:
        if not str(stop):  # of several processes one tells
            raise
        message = f"stopped; what was done is kept in {out}, and the same command goes on from there"
        raise Interrupted(stop.signal_number, message) from None
