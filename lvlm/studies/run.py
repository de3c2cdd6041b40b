"""Studies: arms and seeds, trained, evaluated and (where a recipe says so) steered one after the other, and
one report.

OUT/ARM/seedK/      a run each (lvlm.runs.folder)
OUT/report.html     the comparison
OUT/study.json      what the study was run as, for reports that are made later
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from lvlm.arguments import checks_arguments
from lvlm.errors import BeyondMachine, Diverged, Interrupted, NotFinite, RunsFailed, UserError
from lvlm.evaluation.run import evaluate
from lvlm.recipe.arm_names import refuse_twins
from lvlm.recipe.paths import where_data_are
from lvlm.runs.divergence import Divergence, divergence_of, note_divergence
from lvlm.runs.folder import is_run
from lvlm.runs.opened import OpenedRun, open_run
from lvlm.runs.work import working_on
from lvlm.steering.run import steer
from lvlm.system.device import is_out_of_memory, pick_device
from lvlm.system.files import given_path, ignores_case, is_folder, is_there, left_unfinished, writing
from lvlm.system.lock import Busy
from lvlm.system.records import read_values
from lvlm.system.terminal import tell
from lvlm.system.world import join_world, place_of
from lvlm.training.train import recipe_changes, train_resolved

SECONDS_BETWEEN_QUESTIONS = 2.0
"""How often a study asks for runs that other processes work on, when nothing else is left to do."""

if TYPE_CHECKING:
    from lvlm.evaluation.result import Evaluation
    from lvlm.recipe.recipe import Resolved


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

    A run that diverges is recorded in its run.json and the others go on. It is not run again unless its
    folder was deleted or its recipe changed.

    Raises:
        UserError: a fault in any arm or a folder that holds something else (before anything runs), a folder
            that holds another run, arms that can't be compared.
        RunsFailed: runs diverged or found no memory; the report of the others is written.
    """
    from lvlm.recipe.study import read_study
    from lvlm.report import ReportRun, StudyRecord, read_report, report_study, write_record

    study = read_study(source, overrides, plugin_files=plugin_files)
    claim_study(out, study.arms)
    record = StudyRecord(
        title=study.name, description=study.description, command=command, controls=list(study.controls)
    )
    write_record(out, record)
    total, began, worked = len(study.runs), time.monotonic(), 0
    tell(console, f"study {study.name}: {len(study.arms)} arms x {len(study.seeds)} seeds in {out}")
    reported = [ReportRun(run.arm, run.seed, out / run.arm / f"seed{run.seed}") for run in study.runs]
    waiting, asked, told = deque(range(total)), 0, set[int]()
    failures: dict[int, str] = {}
    while waiting:
        number = waiting.popleft()
        run, folder = study.runs[number], reported[number].folder
        label = f"[{number + 1}/{total}] {run.arm} seed {run.seed}"
        done = _finish(run.resolved, folder, console, label)
        if isinstance(done, Busy):  # of another study, perhaps, on the same folder: the work is shared
            if number not in told:
                told.add(number)
                tell(console, f"{label}  {done.holder} works on it; back to it later")
            waiting.append(number)
            asked += 1
            if asked >= len(waiting):  # all that is left is in the hands of others
                time.sleep(SECONDS_BETWEEN_QUESTIONS)
                asked = 0
            continue
        asked = 0
        if isinstance(done, str):
            failures[number] = f"{run.arm}, seed {run.seed} {done}"
        elif done:
            worked += 1
            minutes = (time.monotonic() - began) / worked * len(waiting) / 60
            tell(console, f"{label}  done; about {minutes:.1f} min left")
    failed = [failures[number] for number in sorted(failures)]
    if len(failed) == total:
        raise RunsFailed(f"{out}: no run of the study came to its end: {'; '.join(failed)}", None)
    report = read_report(
        out,
        title=record.title,
        description=record.description,
        command=record.command,
        controls=record.controls,
        runs=reported,
    )
    page = report_study(report, console)
    if failed:
        raise RunsFailed(f"{len(failed)} of {total} runs are left out: {'; '.join(failed)}", page)
    return page


def _finish(resolved: Resolved, folder: Path, console: Console, label: str) -> bool | str | Busy:
    """Train, evaluate and steer one run as far as it isn't done.

    Returns:
        Whether it was evaluated now, or in words why it can't be; `Busy` where another process works on it.
    """
    spec = resolved.recipe.train
    world = join_world(pick_device(spec.device).type, timeout_seconds=spec.timeout_seconds)
    with ExitStack() as work:
        busy = world.from_leader(_take(work, folder) if world.leads else None)
        return busy or _finish_alone(resolved, folder, console, label)


def _take(work: ExitStack, folder: Path) -> Busy | None:
    """Take a run's lock until `work` closes; `Busy` where another process has it."""
    if folder.exists() and not folder.is_dir():
        return None  # whoever begins the run tells
    try:
        work.enter_context(working_on(folder, "a study", make=True))
    except Busy as busy:
        return busy
    return None


def _finish_alone(resolved: Resolved, folder: Path, console: Console, label: str) -> bool | str:
    """`_finish` of a run that no other process works on."""

    def told(line: str) -> str:
        tell(console, f"{label}  {line}")
        return line

    before = divergence_of(folder)
    if before is not None and not recipe_changes(resolved, folder):
        told(f"{before}; it is passed over. To try again, delete {folder} or change the recipe of the arm")
        return str(before)
    if before is not None:
        told(f"{before}; its recipe changed, so it is trained anew")
    anew = before is not None
    try:
        train_resolved(resolved, folder, resume=not anew, overwrite=anew, console=console, label=label)
        return _measure(resolved, folder, console, label)
    except Diverged as error:
        told(f"diverged: {error}")
        return str(Divergence(error.step, error.reason))
    except BeyondMachine as error:
        if place_of(os.environ)["WORLD_SIZE"] != "1":
            raise
        return told(f"is too large for this machine: {error}")
    except (MemoryError, RuntimeError) as error:
        if place_of(os.environ)["WORLD_SIZE"] != "1" or not is_out_of_memory(error):
            raise  # of several processes the others wait for this one
        return told(f"found no memory ({str(error).splitlines()[0]}); the same command tries it again")


def _measure(resolved: Resolved, folder: Path, console: Console, label: str) -> bool:
    """Evaluate and steer a trained run as far as it isn't done; whether it was evaluated now.

    Raises:
        Diverged: a number of the evaluation is not finite; run.json records it.
    """
    opened = open_run(folder, where_data_are(resolved), registry=resolved.registry)
    evaluated = _is_evaluated(opened)
    try:
        if not evaluated:
            _refuse_not_finite(evaluate(opened, console=console, label=f"{label}  evaluating"))
        if resolved.recipe.steer is not None:
            steer(opened, console=console, label=f"{label}  steering")
    except NotFinite as error:
        note_divergence(folder, Divergence(opened.step, str(error)))
        raise Diverged(opened.step, str(error), f"{folder}: {error}") from None
    return not evaluated


def _is_evaluated(run: OpenedRun) -> bool:
    """Whether evaluation.json is of the checkpoint that the run's recipe selects."""
    path = run.folder / "evaluation.json"
    try:
        return path.exists() and read_values(path).get("step") == run.step
    except UserError:
        return True  # whoever reads it for the report tells what is wrong


def _refuse_not_finite(found: Evaluation) -> None:
    """Make sure that the headline is a number.

    Raises:
        NotFinite: it isn't.
    """
    name = found["headline"]
    if name is not None and not math.isfinite(found["estimates"][name]["nats_per_token"]):
        raise NotFinite(f"{name} of the test windows is not finite")


def claim_study(out: Path, arms: Sequence[str]) -> None:
    """Make sure that a study may be begun in a folder, or gone on with; see `lvlm.runs.folder.claim` for a
    run.

    Raises:
        UserError: it holds something that is no study, or takes two arms for one.
    """
    with writing(out):  # whose name may be too long
        if ignores_case(out):
            refuse_twins(arms)
        if not is_there(out):
            return
        if not is_folder(out):
            raise UserError(f"{out}: is a file; name a folder for the study")
        from lvlm.report.folder import STUDY

        written = {"report.html", STUDY}
        others = {path.name for path in out.iterdir() if left_unfinished(path) not in written}
        others -= {*arms, *written}
        if others and not any(is_run(run) for run in out.glob("*/seed*")):
            raise UserError(f"{out}: holds other files and no study; name another folder with --out")


@checks_arguments
def study(
    source: str | Path,
    out: str | Path,
    *overrides: str,
    plugin_files: Sequence[str] = (),
    console: Console | None = None,
    command: str = "",
) -> Path:
    """Run a study and write its report; what is finished already isn't run again.

    A run that diverges is named, recorded and left out, and the others run. The next time it is passed over;
    to try it again, delete its folder or change the recipe of its arm.

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
        lvlm.errors.RunsFailed: some runs diverged or found no memory, after all others ran and the report was
            written.
        lvlm.errors.Interrupted: by Ctrl-C or SIGTERM, after saving the run that was under way.
    """
    try:
        return run_study(
            source,
            given_path(out, "the study's folder"),
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
