"""Our models in EleutherAI's lm-evaluation-harness (the extra `lm-eval`), scored by `lvlm.score`.

Import this module only where lm-eval is wanted: it needs the package.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lvlm.data import Codec
from lvlm.errors import UserError, nearest
from lvlm.generation.generate import generate
from lvlm.likelihood.score import score
from lvlm.model.latent_lm import LatentLM

MOST_NEW_TOKENS = 256  # lm-eval's own default where a task says none


class HarnessLM(LM):  # type: ignore[misc]  # lm-eval is not typed
    """A model of the zoo as lm-eval sees it.

    Every choice of a prompt is scored with the same K and the same noise, which come from the prompt alone;
    so no score depends on which others were asked for, or in which order. 'Greedy' is the likeliest token
    after token, with codes of the prompt from the encoder and later ones from the prior.

    Args:
        model: in evaluation mode, on its device.
        codec: text to token ids and back.
        k: particles.
        seed: of all noise, beside the prompt.
        start: what stands in front of a text without a context; there is no start symbol.
        progress: called with the share of a batch of requests that is done.
    """

    def __init__(
        self,
        model: LatentLM,
        codec: Codec,
        *,
        k: int = 16,
        seed: int = 0,
        start: str = "\n",
        autocast: Any = None,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.codec, self.k, self.seed = model, codec, k, seed
        self.start, self.context = codec.encode(start), model.backbone.context
        self.options = {} if autocast is None else {"autocast": autocast}
        self.progress, self.truncated = progress or (lambda _: None), 0

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log p(continuation | context) in nats, and whether greedy decoding says the continuation."""
        pairs = [self._tokens(*request.args) for request in requests]
        longest: dict[tuple[int, ...], int] = defaultdict(int)
        for prompt, text in pairs:
            longest[tuple(prompt)] = max(longest[tuple(prompt)], len(text))
        greedy: dict[tuple[int, ...], list[int]] = {}
        found = []
        for number, (prompt, text) in enumerate(pairs, start=1):
            key = tuple(prompt)
            if key not in greedy:
                greedy[key] = self._continue(prompt, longest[key], temperature=0.0)
            likely = greedy[key][: len(text)] == text
            found.append((self._score(prompt, text), likely))
            self.progress(number / len(pairs))
        return found

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log p of whole texts in nats: windows as long as the context, every token scored once."""
        found = []
        for number, request in enumerate(requests, start=1):
            ids = self.codec.encode(request.args[0])
            windows = get_rolling_token_windows(
                ids, prefix_token=self.start[-1], max_seq_len=self.context, context_len=1
            )
            pieces = (make_disjoint_window(window) for window in windows)
            found.append(sum(self._score(list(prompt), list(text)) for prompt, text in pieces))
            self.progress(number / len(requests))
        return found

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Texts up to the first stop string; greedy unless the task samples."""
        found = []
        for number, request in enumerate(requests, start=1):
            context, options = request.args
            stops = options.get("until") or []
            stops = [stops] if isinstance(stops, str) else stops
            tokens = min(int(options.get("max_gen_toks", MOST_NEW_TOKENS)), self.context - 1)
            samples = options.get("do_sample", False)
            temperature = float(options.get("temperature", 1.0)) if samples else 0.0
            prompt = self._cut(self.codec.encode(context) or self.start, self.context - tokens)
            text = self.codec.decode(
                self._continue(prompt, tokens, temperature=temperature, top_k=options.get("top_k"))
            )
            ends = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
            found.append(text[: min(ends, default=len(text))])
            self.progress(number / len(requests))
        return found

    def _tokens(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        text = self.codec.encode(continuation)
        if len(text) > self.context:
            raise UserError(
                f"a choice of {len(text)} tokens is longer than the model's context of {self.context}: "
                f"{continuation[:60]!r}…"
            )
        return self._cut(self.codec.encode(context) or self.start, self.context + 1 - len(text)), text

    def _cut(self, prompt: list[int], most: int) -> list[int]:
        self.truncated += len(prompt) > most
        return prompt[-most:]

    def _seed(self, prompt: Sequence[int]) -> int:
        digest = hashlib.sha256(repr((self.seed, list(prompt))).encode()).digest()
        return int.from_bytes(digest[:7], "big")

    def _score(self, prompt: list[int], text: list[int]) -> float:
        if not text:
            return 0.0
        return score(
            self.model, prompt, text, k=self.k, seed=self._seed(prompt), **self.options
        ).log_prob_nats

    def _continue(
        self, prompt: list[int], tokens: int, *, temperature: float, top_k: int | None = None
    ) -> list[int]:
        """So many tokens after the prompt, or as many as the context holds."""
        prompt = prompt[-max(1, self.context - tokens) :]
        tokens = min(tokens, self.context - len(prompt))
        if tokens < 1:
            return []
        seed = self._seed(prompt)
        return generate(self.model, prompt, tokens, temperature=temperature, top_k=top_k, seed=seed)[0].tokens


def find_tasks(tasks: Sequence[str], include_path: Path | None = None) -> TaskManager:
    """Index of lm-eval's tasks: its own, and those of a folder.

    Raises:
        UserError: no such folder, or an unknown task.
    """
    if include_path is not None and not include_path.is_dir():
        raise UserError(f"{include_path}: no folder of tasks")
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    for task in tasks:
        if not manager.match_tasks([task]):
            raise UserError(f"unknown task {task!r}; see: lm_eval ls tasks{nearest(task, manager.all_tasks)}")
    return manager


def results_of(
    adapter: HarnessLM, tasks: Sequence[str], manager: TaskManager, *, limit: int | None = None
) -> dict[str, dict[str, float]]:
    """lm-eval's numbers: {task: {metric: value}}.

    Raises:
        UserError: a choice is longer than the context.
    """
    found = lm_eval.simple_evaluate(
        model=adapter, tasks=list(tasks), limit=limit, task_manager=manager, log_samples=False
    )
    assert found is not None
    return {
        task: {name: value for name, value in numbers.items() if _is_number(value)}
        for task, numbers in found["results"].items()
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
