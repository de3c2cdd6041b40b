"""What a task of lm-evaluation-harness asks of a generation: the options of its `generation_kwargs`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from lm_eval.models.utils import normalize_gen_kwargs

from lvlm.errors import UserError, nearest
from lvlm.generation.options import GenerateOptions, Options

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""The names that the harness knows for the number of tokens; where several are given, the first counts."""

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")

KNOWN = ("until", *LENGTHS, "do_sample", *SAMPLING, "seed")

ASKS_NOTHING: dict[str, Any] = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "length_penalty": 1,
    "use_cache": True,
}
"""Options that other models have, with the value that asks for nothing more than every generation does."""


@dataclass(frozen=True)
class Asked:
    """A generation as a task asks for it.

    stops      texts that end it, in the order of the task
    tokens     how many at most; None where the task doesn't say
    samples    whether tokens are drawn; else each is the likeliest
    sampling   the options of `lvlm.generate` that say how
    seed       of this task's noise; None for the adapter's
    """

    stops: tuple[str, ...]
    tokens: int | None
    samples: bool
    sampling: GenerateOptions
    seed: int | None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Asked:
        """The options of a request, under the harness's rules (`lm_eval.models.utils.normalize_gen_kwargs`).

        Tokens are drawn where `do_sample` is true, or where it isn't said and the temperature is above 0. An
        option that is null counts as not given.

        Raises:
            UserError: an option that `lvlm.generate` has no counterpart for, or a value out of range.
        """
        given = {name: value for name, value in options.items() if value is not None}
        for name, value in list(given.items()):
            if name in ASKS_NOTHING and value == ASKS_NOTHING[name]:
                del given[name]
            elif name not in KNOWN:
                raise UserError(
                    f"generation_kwargs: {name} is {value!r}, and lvlm has no such option; known: "
                    f"{', '.join(KNOWN)}{nearest(name, KNOWN)}"
                )
        stops = _stops(given.pop("until", []))
        for name in LENGTHS:
            if name in given:
                given[name] = _whole(name, given[name], least=1)
        if not isinstance(given.get("do_sample", False), bool):
            raise UserError(f"generation_kwargs: do_sample is {given['do_sample']!r}; it is true or false")
        if "temperature" in given:
            given["temperature"] = _number("temperature", given["temperature"])
        normal: dict[str, Any] = dict(normalize_gen_kwargs(given))
        sampling = {name: normal[name] for name in SAMPLING if name in normal}
        sampling["temperature"] = given.get("temperature", 1.0) if normal["do_sample"] else 0.0
        if sampling.get("top_k") in (0, -1):  # how other libraries say that no token is cut
            del sampling["top_k"]
        try:
            Options(stop=stops, **(sampling | {"temperature": given.get("temperature", 1.0)}))
        except UserError as error:
            raise UserError(f"generation_kwargs: {error}") from None
        return cls(
            stops,
            normal["max_gen_toks"] if any(name in given for name in LENGTHS) else None,
            normal["do_sample"],
            cast(GenerateOptions, sampling),
            _whole("seed", given["seed"], least=0) if "seed" in given else None,
        )


def _stops(until: object) -> tuple[str, ...]:
    """Texts that end a generation; an empty one ends none."""
    texts = [until] if isinstance(until, str) else until
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"generation_kwargs: until is {until!r}; it is a text, or a list of texts")
    return tuple(text for text in texts if text)


def _whole(name: str, value: object, *, least: int) -> int:
    number = _number(name, value)
    if number != int(number) or number < least:
        raise UserError(f"generation_kwargs: {name} is {value!r}; it is a whole number, at least {least}")
    return int(number)


def _number(name: str, value: object) -> float:
    """A number, which a task may also write as text."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = float(value)
        if not abs(number) < float("inf"):
            raise ValueError
    except ValueError:
        raise UserError(f"generation_kwargs: {name} is {value!r}; it is a number") from None
    return number
