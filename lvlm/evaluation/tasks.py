"""Tasks of lm-evaluation-harness on a run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lvlm.errors import MissingLibrary, UserError
from lvlm.runs.opened import OpenedRun, open_run
from lvlm.system.progress import Display


def lm_eval(
    run: str | Path | OpenedRun,
    tasks: Sequence[str],
    *,
    k: int = 16,
    seed: int = 0,
    limit: int | None = None,
    include_path: str | Path | None = None,
    plugin_files: Sequence[str] = (),
    console: Console | None = None,
) -> dict[str, Any]:
    """Run tasks of EleutherAI's lm-evaluation-harness on a run; needs the extra lm-eval.

    Args:
        run: as for `load`, or a run that is open.
        tasks: names of lm-eval's tasks, which may download their data.
        k: particles, the same for every choice.
        seed: of all noise.
        limit: documents of each task; all unless given.
        include_path: a folder with further tasks.
        plugin_files: as for `build`.
        console: where progress goes; quiet unless given.

    Raises:
        UserError: no such run, an unknown task, a choice longer than the context.
        lvlm.errors.MissingLibrary: lm-eval isn't installed.
    """
    try:
        from lvlm.evaluation.harness import HarnessLM, find_tasks, results_of
    except ImportError as error:
        raise MissingLibrary.of("lm-eval", "lm-eval") from error
    if k < 1:
        raise UserError(f"k is {k}; it is at least 1")
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; it is at least 1")
    with Display(console or Console(quiet=True), f"lm-eval of {run}", 100) as display:
        manager = find_tasks(tasks, None if include_path is None else Path(include_path))
        opened = open_run(run, plugin_files=plugin_files)
        adapter = HarnessLM(
            opened.on_device(),
            opened.recipe.data.codec,
            k=k,
            seed=seed,
            autocast=opened.autocast,
            progress=display.share,
        )
        results = results_of(adapter, tasks, manager, limit=limit)
    if adapter.truncated:
        print(f"{adapter.truncated} contexts were cut on the left to fit {adapter.context}", file=sys.stderr)
    return {
        "step": opened.step,
        "k": k,
        "seed": seed,
        "limit": limit,
        "truncated": adapter.truncated,
        "results": results,
    }
