"""Measurable attributes of a text, by which steering is measured. A data kind names its attributes; the core
knows none.

Shape legend: N rows, P prompt tokens, L tokens after the prompt.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lvlm.errors import one_of
from lvlm.interfaces.codec import continuation

if TYPE_CHECKING:
    from lvlm.interfaces import Codec

Ids = NDArray[np.int64]
Measure = Callable[[Ids, Ids], NDArray[Any]]


@dataclass(frozen=True)
class Attribute:
    """One property of a text, measured from the token ids of prompt [N, P] and text [N, L].

    scale         'number': float [N], NaN where a text has none; 'flags': bool [N, L], one per position;
                  'check': bool [N], whether a text is as it should be
    unit          name of the unit of a number
    tolerance     numbers no further apart than this count as equal
    control       the data are made such that a code must be able to fix it. If steering by it is found, the
                  measurement works, and finding none elsewhere means something
    uniform_over  the data draw the number uniformly from 0 to this, exclusive
    """

    name: str
    scale: Literal["number", "flags", "check"]
    measure: Measure
    unit: str = ""
    tolerance: float = 0.0
    control: bool = False
    uniform_over: int | None = None

    def __post_init__(self) -> None:
        one_of(self.scale, ("number", "flags", "check"), "scale")


def text_attributes(codec: Codec) -> tuple[Attribute, ...]:
    """Attributes of any text: the length of its words and the kinds of its characters."""

    def of_text(count: Callable[[str], float]) -> Measure:
        def measure(prompt_NP: Ids, text_NL: Ids) -> NDArray[Any]:
            rows = zip(prompt_NP.tolist(), text_NL.tolist(), strict=True)
            return np.array([count(continuation(codec, prompt, text)) for prompt, text in rows])

        return measure

    def share(belongs: Callable[[str], bool]) -> Measure:
        return of_text(lambda text: sum(map(belongs, text)) / len(text) if text else np.nan)

    return (
        Attribute("word_length", "number", of_text(_word_length), unit="characters", tolerance=0.25),
        Attribute("capitals", "number", share(str.isupper), unit="share of characters", tolerance=0.01),
        Attribute("digits", "number", share(str.isdigit), unit="share of characters", tolerance=0.01),
        Attribute(
            "punctuation",
            "number",
            share(string.punctuation.__contains__),
            unit="share of characters",
            tolerance=0.01,
        ),
    )


def _word_length(text: str) -> float:
    lengths = [len(word) for word in text.split()]
    return sum(lengths) / len(lengths) if lengths else np.nan
