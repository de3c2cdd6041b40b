"""Options of a generation, checked before anything is drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lvlm.errors import UserError, nearest
from lvlm.generation.decoding import PromptCodes
from lvlm.generation.sampling import Sampling

_NUMBER, _WHOLE = (int, float), int

_TYPES: tuple[tuple[str, Any, str], ...] = (
    *((name, _NUMBER, "a number") for name in ("temperature", "top_p", "min_p", "repetition_penalty")),
    *((name, _WHOLE, "a whole number") for name in ("top_k", "samples")),
    *((name, (_WHOLE, Sequence), "a whole number, or one for each row") for name in ("seed", "code_seed")),
    ("stop", Sequence, "a text, or several"),
    ("hold", Iterable, "the numbers of slots"),
    ("codes", (Tensor, int, list, tuple), "a tensor, a list of one a row, or a whole number"),
)


@dataclass(frozen=True)
class Options(Sampling):
    """How text is made: the fields of `Sampling`, and these.

    seed          of row i it is seed + i; or one for each row
    samples       texts of each prompt
    share_codes   samples of a prompt have the codes of its first one; their tokens differ
    code_seed     of the codes, where it isn't the seed; one for all rows, or one for each
    codes         given codes, for as many first slots as there are: [S, …] or [1, S, …] for all rows, or [B, S, …], or a
                  list of one [S, …] a row; a single number (or a vector [Z]) is the code of every slot. The slots count
                  from the prompt's first token; those after the given ones are drawn.
    hold          the slots that keep their given codes; all unless said. The others are drawn.
    prompt_codes  where codes of the prompt's slots come from: 'posterior' (the encoder, which sees the prompt alone)
                  or 'prior'
    stop          texts that end a row; they aren't part of it
    compile       compile a step: worth it for many tokens

    Raises:
        UserError: one of them is out of range.
    """

    seed: int | Sequence[int] = 0
    samples: int = 1
    share_codes: bool = False
    code_seed: int | Sequence[int] | None = None
    codes: Tensor | Sequence[Tensor] | int | None = None
    hold: Iterable[int] | None = None
    prompt_codes: PromptCodes = "posterior"
    stop: str | Sequence[str] = ()
    compile: bool = False

    def __post_init__(self) -> None:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, of, what in _TYPES:
            value = getattr(self, name)
            if value is None and defaults[name] is None:
                continue
            if not isinstance(value, of) or isinstance(value, bool):
                raise UserError(f"{name} is {value!r}; it is {what}")
        if not all(isinstance(text, str) for text in self.stops):
            raise UserError(f"stop is {self.stop!r}; it is a text, or several")
        super().__post_init__()
        if self.samples < 1:
            raise UserError(f"samples is {self.samples}; ask for at least one")
        if self.prompt_codes not in ("posterior", "prior"):
            near = nearest(str(self.prompt_codes), ("posterior", "prior"))
            raise UserError(f"prompt_codes is {self.prompt_codes!r}; it is 'posterior' or 'prior'{near}")
        if any(not text for text in self.stops):
            raise UserError("a stop text is empty; it would end every row before it begins")
        if self.hold is not None and self.codes is None:
            raise UserError("hold says which given codes stay, but no codes are given")

    @classmethod
    def of(cls, options: dict[str, Any]) -> Options:
        """Options by name.

        Raises:
            UserError: an unknown one.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise UserError(f"unknown option {name!r}; known: {', '.join(known)}{nearest(name, known)}")
        return cls(**options)

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end a row."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def row_seeds(self, prompts: int) -> list[int]:
        """One for each row."""
        return row_seeds(self.seed, prompts * self.samples)

    def row_code_seeds(self, prompts: int) -> list[int]:
        """Of the codes of each row."""
        if self.code_seed is None:
            return self.row_seeds(prompts)
        return row_seeds(self.code_seed, prompts * self.samples, step=0)


def row_seeds(seed: int | Sequence[int], rows: int, *, step: int = 1) -> list[int]:
    """One for each row.

    Raises:
        UserError: another number of them, or one out of range.
    """
    seeds = [seed + step * row for row in range(rows)] if isinstance(seed, int) else list(seed)
    if len(seeds) != rows:
        raise UserError(f"{len(seeds)} seeds for {rows} rows; give one for each, or one number")
    for one in seeds:
        if not isinstance(one, int) or not 0 <= one < 2**63:
            raise UserError(f"seed is {one!r}; it is a whole number from 0 to 2^63 - 1")
    return seeds
