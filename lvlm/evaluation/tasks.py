"""Tasks of lm-evaluation-harness on a run."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lvlm.arguments import checks_arguments
from lvlm.errors import MissingLibrary, UserError, bounded
from lvlm.runs.opened import OpenedRun, open_run
from lvlm.system.files import given_path
from lvlm.system.plain import printable
from lvlm.system.progress import Display


@checks_arguments
def lm_eval(
    run: str | Path | OpenedRun,
    tasks: Sequence[str],
    *overrides: str,
    k: int = 16,
    seed: int = 0,
    limit: int | None = None,
    include_path: str | Path | None = None,
    plugin_files: Sequence[str] = (),
    console: Console | None = None,
) -> dict[str, Any]:
    """Run tasks of EleutherAI's lm-evaluation-harness on a run; needs the extra lm-eval.

    A text without a context follows what stood between two texts in training: the end of a document, or a
    newline where the data don't mark it.

    Args:
        run: as for `load`, or a run that is open.
        tasks: names of lm-eval's tasks, which may download their data.
        overrides: as for `evaluate`.
        k: particles, the same for every choice.
        seed: of all noise.
        limit: documents of each task; all unless given.
        include_path: a folder with further tasks.
        plugin_files: as for `build`.
        console: where progress goes; quiet unless given.

    Returns:
        `results`, {task: {metric: value}}, and what they are of: step, k, seed, limit. What became of the
        requests: `truncated` contexts were cut on the left, `shortened` answers got fewer tokens than their
        task allows, `merged` choices begin inside the last token of their context; `left_out` names the
        metrics per byte or word that a tokenizer has no right to, since decoding its tokens doesn't give the
        text back.

    Raises:
        UserError: no such run, an unknown task, a choice longer than the context, a generation option that
            lvlm doesn't have.
        lvlm.errors.MissingLibrary: lm-eval isn't installed.
    """
    try:
        from lvlm.evaluation.harness import HarnessLM
        from lvlm.evaluation.harness_results import find_tasks, results_of
        from lvlm.evaluation.harness_text import newline
    except ImportError as error:
        raise MissingLibrary.of("lm-eval", "lm-eval") from error
    if k < 1:
        raise UserError(f"k is {k}; it is at least 1")
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}; it is at least 1")
    with Display(console or Console(quiet=True), f"lm-eval of {run}", 100) as display:
        manager = find_tasks(
            tasks, None if include_path is None else given_path(include_path, "--include-path")
        )
        opened = open_run(run, overrides, plugin_files=plugin_files)
        if overrides:
            opened.data  # noqa: B018  which compares them with those of the training
        data = opened.recipe.data
        codec, end = data.codec, data.document_end
        adapter = HarnessLM(
            opened.on_device(),
            codec,
            k=k,
            seed=seed,
            document_end=end,
            prefix=newline(codec) if end is None else end,
            autocast=opened.autocast,
            progress=display.share,
        )
        results, left_out = results_of(adapter, tasks, manager, limit=limit)
    found = {
        "step": opened.step,
        "k": k,
        "seed": seed,
        "limit": limit,
        "truncated": adapter.truncated,
        "shortened": adapter.shortened,
        "merged": adapter.merged,
        "left_out": left_out,
        "results": results,
    }
    for line in _remarks(found, adapter.max_length):
        print(bounded(printable(line)), file=sys.stderr)
    return found


def _remarks(found: dict[str, Any], context: int) -> Iterator[str]:
    """What a reader of the results has to know, a line each."""
    if found["truncated"]:
        yield f"{found['truncated']} contexts were cut on the left to fit {context} tokens"
    if found["shortened"]:
        yield (
            f"{found['shortened']} answers were kept shorter than their task allows: the model's context is "
            f"{context} tokens"
        )
    if found["merged"]:
        yield (
            f"{found['merged']} choices merge with the end of their context into one token, so that the "
            f"harness scores only what follows that token"
        )
    for task, metrics in found["left_out"].items():
        yield (
            f"{task}: {', '.join(metrics)} left out, since decoding the tokens of its texts doesn't give the "
            f"texts back"
        )
