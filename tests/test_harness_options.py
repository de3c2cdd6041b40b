"""The generation options of lm-eval's tasks: what is obeyed, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import lvlm
from lvlm.errors import UserError
from tests.test_harness_tokens import CONTEXT, adapter_of, model_of

pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model of bytes, so that a token is a character."""
    return adapter_of(model_of(tmp_path_factory.mktemp("options"), "bytes", "free"))


def request(context: str, options: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance("generate_until", {}, (context, options), 0)


def tokens(adapter: Any, monkeypatch: pytest.MonkeyPatch, context: str = "The river", **options: Any) -> Any:
    """The ids that answer a request."""
    from lvlm.evaluation import harness

    made = []

    def keeping(*args: Any, **given: Any) -> Any:
        made.append(lvlm.generate(*args, **given))
        return made[-1]

    monkeypatch.setattr(harness, "generate", keeping)
    adapter.generate_until([request(context, options)])
    return made[-1][0].tokens


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("value", [3, 3.0, "3"])
def test_every_name_of_a_length_counts(
    adapter: Any, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    assert len(tokens(adapter, monkeypatch, **{name: value})) == 3


def test_of_two_lengths_the_harnesss_own_name_wins(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(tokens(adapter, monkeypatch, max_new_tokens=5, max_gen_toks=2)) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "temperature": 1.0, "top_p": 1e-9},
        {"do_sample": True, "top_k": 1},
        {"do_sample": True, "min_p": 1.0},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 0},
        {"temperature": "0.0"},
        {"do_sample": False, "temperature": 0.7},
        {"do_sample": True, "temperature": 0.0},
        {"top_p": 0.9},
        {"num_beams": 1, "do_sample": None, "top_k": None, "until": None},
    ],
)
def test_what_leaves_only_the_likeliest_token_is_greedy(
    adapter: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    greedy = tokens(adapter, monkeypatch, max_gen_toks=8)
    assert tokens(adapter, monkeypatch, max_gen_toks=8, **options) == greedy


@pytest.mark.parametrize(
    ("options", "ours"),
    [
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"temperature": 0.7}, {"temperature": 0.7}),
        ({"do_sample": True, "top_k": 0}, {"temperature": 1.0}),
        ({"do_sample": True, "top_k": -1}, {"temperature": 1.0}),
        ({"do_sample": True, "top_k": 9, "top_p": 0.7}, {"temperature": 1.0, "top_k": 9, "top_p": 0.7}),
        ({"do_sample": True, "min_p": 0.1}, {"temperature": 1.0, "min_p": 0.1}),
        ({"repetition_penalty": 1.3}, {"temperature": 0.0, "repetition_penalty": 1.3}),
    ],
)
def test_options_are_those_of_generate(
    adapter: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], ours: dict[str, Any]
) -> None:
    from lvlm.evaluation.harness import _seed

    prompt = list(b"The river")
    (wanted,) = lvlm.generate(adapter.model, prompt, 8, seed=_seed(0, prompt), **ours)
    assert tokens(adapter, monkeypatch, max_gen_toks=8, **options) == wanted.tokens


def test_a_repeated_request_is_drawn_anew_and_a_seed_counts(adapter: Any) -> None:
    def ask(times: int, **options: Any) -> Any:
        return adapter.generate_until([request("The river", {"max_gen_toks": 8, **options})] * times)

    first, second = ask(2, do_sample=True)
    assert first != second
    assert ask(2, do_sample=True) == [first, second]
    assert ask(1, do_sample=True) == [first]
    assert ask(1, do_sample=True, seed=0) == [first]
    assert ask(1, do_sample=True, seed=5) != [first]
    assert len(set(ask(2))) == 1, "greedy is greedy"


def test_answers_come_in_the_order_of_requests(adapter: Any) -> None:
    asked = [request("a" * n, {"max_gen_toks": 3}) for n in (2, 9, 5, 7)]
    assert adapter.generate_until(asked) == adapter.generate_until(asked[::-1])[::-1]


@pytest.mark.parametrize("kind", ["bytes", "wordpiece", "wordlevel"])
def test_a_stop_is_found_in_the_text(tmp_path: Path, kind: str) -> None:
    """Whether or not the tokenizer has a token for it, and across the borders of tokens."""
    adapter = adapter_of(model_of(tmp_path, kind))

    def ask(until: Any) -> str:
        (answer,) = adapter.generate_until([request("the river", {"max_gen_toks": 6, "until": until})])
        return str(answer)

    whole = ask([])
    assert ask(["\n"]) == ask("\n") == ask(["", "\n"]) == ask(("\n",)) == whole.split("\n")[0]
    stop = whole[2:5]
    assert ask(stop) == ask(["nowhere", stop]) == whole[: whole.index(stop)]


def test_the_context_is_shared_by_prompt_and_answer(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def counts() -> tuple[int, int]:
        return adapter.truncated, adapter.shortened

    monkeypatch.setattr(adapter, "truncated", 0)
    monkeypatch.setattr(adapter, "shortened", 0)
    long = "the river keeps a slow account of every stone"
    assert len(tokens(adapter, monkeypatch, "The river", until=[])) == CONTEXT - 9
    assert counts() == (0, 0), "no task asked for more"
    assert adapter._room(list(long.encode()), 10) == (list(long.encode())[-(CONTEXT - 10) :], 10)
    assert counts() == (1, 0)
    assert adapter._room(list(long.encode()), None) == (list(long.encode())[-CONTEXT // 2 :], CONTEXT // 2)
    assert counts() == (2, 0)
    assert adapter._room(list(b"The river"), 500) == (list(b"The river"), CONTEXT - 9)
    assert counts() == (2, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_beams": 4}, "num_beams is 4, and lvlm has no such option; known: until, max_gen_toks"),
        ({"tempreature": 0.3}, "did you mean 'temperature'"),
        ({"max_gen_tokens": 3}, "did you mean 'max_gen_toks'"),
        ({"typical_p": 0.9}, "typical_p is 0.9"),
        ({"max_gen_toks": 0}, "max_gen_toks is 0; it is a whole number, at least 1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
        ({"max_new_tokens": "many"}, "max_new_tokens is 'many'; it is a number"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"do_sample": "yes"}, "do_sample is 'yes'; it is true or false"),
        ({"temperature": "hot"}, "temperature is 'hot'; it is a number"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": -1.0, "do_sample": True}, "temperature is -1.0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": -7}, "top_k is -7"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"seed": -1}, "seed is -1"),
        ({"until": 3}, "until is 3; it is a text, or a list of texts"),
        ({"until": ["a", 3]}, "until is"),
    ],
)
def test_what_lvlm_cannot_do_is_refused_before_anything_is_drawn(
    adapter: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=f"generation_kwargs: .*{words}"):
        adapter.generate_until([request("The river", {}), request("The river", options)])
