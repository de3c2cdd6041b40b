"""Our models in EleutherAI's lm-evaluation-harness (the extra `lm-eval`), scored by `lvlm.score`.

What a request means is the harness's own: how a context and a continuation become tokens
(`TemplateLM._encode_pair`), the windows of a long text, the names of generation options. The numbers are
ours.

Import this module only where lm-eval is wanted: it needs the package.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from lm_eval.api.instance import Instance
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lvlm.data import Codec
from lvlm.errors import UserError
from lvlm.evaluation.harness_options import Asked
from lvlm.evaluation.harness_text import HarnessText
from lvlm.generation.generate import generate
from lvlm.generation.options import GenerateOptions
from lvlm.interfaces.codec import continuation
from lvlm.likelihood.score import score
from lvlm.model.latent_lm import LatentLM

MOST_NEW_TOKENS = 256  # the harness's own default where a task says none

T = TypeVar("T")
Pair = tuple[tuple[str, str], list[int], list[int]]
"""The texts of a context and its continuation, and the tokens of each."""


class HarnessLM(HarnessText):
    """A model of the zoo as the harness sees it.

    Every choice of a context is scored with the same K and the same noise, which come from the context alone;
    so no score depends on which others were asked for, or in which order. 'Greedy' is the likeliest token
    after token, with codes of the context from the encoder and later ones from the prior.

    What became of the requests is counted: `truncated` contexts that were cut on the left, `shortened`
    answers that could not be as long as the task allows, `merged` continuations whose tokens begin inside the
    context, and `forgetful`, the tasks with texts that their tokens don't give back.

    Args:
        model: in evaluation mode, on its device.
        codec: text to token ids and back.
        k: particles.
        seed: of all noise, beside the context.
        document_end: the token that ends a document; the codec's own unless given.
        prefix: the token in front of a text without a context; the end of a document unless given, and the
            newline where there is none.
        autocast: makes the precision context of a forward.
        progress: called with the share of a batch of requests that is done.
    """

    def __init__(
        self,
        model: LatentLM,
        codec: Codec,
        *,
        k: int = 16,
        seed: int = 0,
        document_end: int | None = None,
        prefix: int | None = None,
        autocast: Any = None,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        super().__init__(codec, document_end=document_end, prefix=prefix)
        self.model, self.k, self.seed = model, k, seed
        self._options = {} if autocast is None else {"autocast": autocast}
        self._progress = progress or (lambda _: None)
        self.truncated = self.shortened = 0
        self.forgetful: set[str | None] = set()

    @property
    def max_length(self) -> int:
        """Tokens that the model reads at once."""
        return self.model.backbone.context

    @property
    def max_gen_toks(self) -> int:
        """Tokens of an answer where a task doesn't say, and the context holds them."""
        return MOST_NEW_TOKENS

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log p(continuation | context) in nats, and whether greedy decoding says the continuation.

        Raises:
            UserError: a continuation that is longer than the model's context, or that has no tokens.
        """
        pairs = [(request.args, *self._encode_pair(*request.args)) for request in requests]
        return self._loglikelihood_tokens(pairs, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: list[Pair], disable_tqdm: bool = True, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        fitted = [self._fit(prompt, text) for _, prompt, text in requests]
        seeds = [_seed(self.seed, prompt) for _, prompt, _ in requests]
        keys = [(seed, tuple(prompt)) for seed, (prompt, _) in zip(seeds, fitted, strict=True)]
        longest: dict[tuple[int, tuple[int, ...]], int] = defaultdict(int)
        for key, (_, text) in zip(keys, fitted, strict=True):
            longest[key] = max(longest[key], len(text))
        greedy: dict[tuple[int, tuple[int, ...]], list[int]] = {}

        def one(number: int) -> tuple[float, bool]:
            prompt, text = fitted[number]
            key, seed = keys[number], seeds[number]
            if key not in greedy and longest[key]:
                greedy[key] = generate(self.model, prompt, longest[key], temperature=0.0, seed=seed)[0].tokens
            found = self._score(prompt, text, seed), greedy.get(key, [])[: len(text)] == text
            self.cache_hook.add_partial("loglikelihood", requests[number][0], found)
            return found

        return self._in_order(one, [len(prompt) + len(text) for prompt, text in fitted])

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log p of whole texts in nats: windows as long as the context, every token scored once."""
        texts = [self.tok_encode(request.args[0]) for request in requests]

        def one(number: int) -> float:
            (said,), ids = requests[number].args, texts[number]
            if self.codec.decode(ids) != said:
                self.forgetful.add(requests[number].task_name)
            windows = get_rolling_token_windows(
                ids, prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            )
            pieces = map(make_disjoint_window, windows)
            found = math.fsum(self._score(prompt, text, _seed(self.seed, prompt)) for prompt, text in pieces)
            self.cache_hook.add_partial("loglikelihood_rolling", (said,), found)
            return found

        return self._in_order(one, [len(ids) for ids in texts])

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Texts up to the first stop or the end of the document; greedy unless the task samples.

        A request that is asked again, as tasks with repeats do, is drawn anew.

        Raises:
            UserError: a generation option that is unknown or out of range.
        """
        asked = [Asked.of(request.args[1]) for request in requests]
        prompts = [self.tok_encode(request.args[0]) or [self.prefix_token_id] for request in requests]
        times: Counter[str] = Counter()
        repeats = []
        for request in requests:
            repeats.append(times[repr(request.args)])
            times[repr(request.args)] += 1

        def one(number: int) -> str:
            found = self._answer(prompts[number], asked[number], repeats[number])
            self.cache_hook.add_partial("generate_until", requests[number].args, found)
            return found

        return self._in_order(one, [len(prompt) for prompt in prompts])

    def _answer(self, prompt: list[int], asked: Asked, repeat: int) -> str:
        own = self.seed if asked.seed is None else asked.seed
        seed = _seed(own, prompt, repeat if asked.samples else 0)
        prompt, tokens = self._room(prompt, asked.tokens)
        end = self.eot_token_id
        stops = [*asked.stops, *([] if end is None else [self.codec.decode([end]).strip()])]
        options: GenerateOptions = {**asked.sampling, "seed": seed}
        if self.model.codec is not None:  # else all tokens are made, and cut below
            options["stop"] = stops
        ids = generate(self.model, prompt, tokens, **options)[0].tokens
        if end in ids:
            ids = ids[: ids.index(end)]
        text = continuation(self.codec, prompt, ids)
        return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]

    def _room(self, prompt: list[int], asked: int | None) -> tuple[list[int], int]:
        """The end of a prompt that leaves room for an answer, and how many tokens that may have.

        As the harness does, the prompt is cut on the left for the answer's sake. An answer as long as the
        context, which the harness refuses, gets what the prompt leaves, and half of the context at least.
        """
        context = self.max_length
        tokens = MOST_NEW_TOKENS if asked is None else asked
        if tokens >= context or asked is None:
            left = max(context - len(prompt), context // 2)
            self.shortened += asked is not None
            tokens = max(1, min(tokens, left))
        return self._cut(prompt, max(1, context - tokens)), tokens

    def _fit(self, prompt: list[int], text: list[int]) -> tuple[list[int], list[int]]:
        """As much of a context's end as the model can read before all of the continuation."""
        if len(text) > self.max_length:
            raise UserError(
                f"a choice of {len(text)} tokens is longer than the model's context of {self.max_length}: "
                f"{self.codec.decode(text)[:60]!r}…"
            )
        return self._cut(prompt, self.max_length + 1 - len(text)), text

    def _cut(self, prompt: list[int], most: int) -> list[int]:
        self.truncated += len(prompt) > most
        return prompt[-most:]

    def _score(self, prompt: list[int], text: list[int], seed: int) -> float:
        if not text:
            return 0.0
        return score(self.model, prompt, text, k=self.k, seed=seed, **self._options).log_prob_nats

    def _in_order(self, one: Callable[[int], T], lengths: Sequence[int]) -> list[T]:
        """What `one` says of each request, in the order of requests; the longest first, so that too little
        memory shows at once.
        """
        found: dict[int, T] = {}
        for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
            found[number] = one(number)
            self._progress(len(found) / len(lengths))
        return [found[number] for number in range(len(lengths))]


def _seed(seed: int, prompt: Sequence[int], repeat: int = 0) -> int:
    """The seed of a request's noise: a function of the context, and of how often it was asked before."""
    of = (seed, list(prompt), repeat) if repeat else (seed, list(prompt))
    return int.from_bytes(hashlib.sha256(repr(of).encode()).digest()[:7], "big")
