"""Tasks of lm-evaluation-harness on a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lvlm.errors import MissingLibrary
from lvlm.system.progress import Display


def lm_eval(
    run: str | Path,
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
        run: as for `load`.
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
        from lvlm.evaluation.harness import run_tasks
    except ImportError as error:
        raise MissingLibrary.of("lm-eval", "lm-eval") from error
    folder = None if include_path is None else Path(include_path)
    with Display(console or Console(quiet=True), f"lm-eval of {run}", 100) as display:
        return run_tasks(
            Path(run), tasks, k=k, seed=seed, limit=limit, include_path=folder, plugin_files=plugin_files,
            progress=display.share,
        )  # fmt: skip
