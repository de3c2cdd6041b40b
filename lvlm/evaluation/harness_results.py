"""Tasks of lm-evaluation-harness by name, and the numbers that they come out with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager

from lvlm.errors import UserError, nearest
from lvlm.evaluation.harness import HarnessLM
from lvlm.system.files import is_folder

PER_TEXT = ("bits_per_byte", "byte_perplexity", "word_perplexity")
"""Metrics that divide a log-likelihood by the length of the text, so that tokens have to hold all of it."""


def find_tasks(tasks: Sequence[str], include_path: Path | None = None) -> TaskManager:
    """Index of lm-eval's tasks: its own, and those of a folder.

    Raises:
        UserError: no such folder, or an unknown task.
    """
    if include_path is not None and not is_folder(include_path):
        raise UserError(f"{include_path}: no folder of tasks")
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    for task in tasks:
        if not manager.match_tasks([task]):
            raise UserError(f"unknown task {task!r}; see: lm_eval ls tasks{nearest(task, manager.all_tasks)}")
    return manager


def results_of(
    adapter: HarnessLM, tasks: Sequence[str], manager: TaskManager, *, limit: int | None = None
) -> tuple[dict[str, dict[str, float]], dict[str, list[str]]]:
    """The harness's numbers, {task: {metric: value}}, and the metrics that were left out, {task: [metric]}.

    What is left out: numbers that divide by the length of a text, where tokens don't give the text back. A
    tokenizer that forgets what it reads would have a small number there.

    Raises:
        UserError: a request that the adapter refuses.
    """
    found = lm_eval.simple_evaluate(
        model=adapter, tasks=list(tasks), limit=limit, task_manager=manager, log_samples=False
    )
    assert found is not None
    groups = set(found.get("groups") or ())
    results, left_out = {}, {}
    for task, numbers in found["results"].items():
        forgets = adapter.forgetful and (task in adapter.forgetful or task in groups)
        out = [name for name in numbers if forgets and name.partition(",")[0] in PER_TEXT]
        results[task] = {name: n for name, n in numbers.items() if _is_number(n) and name not in out}
        if out:
            left_out[task] = [name.partition(",")[0] for name in out]
    return results, left_out


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
