"""Options of a generation, checked before anything is drawn."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

import numpy as np
import torch
from torch import Tensor

from lvlm.arguments import fitted, is_whole, told, unwrapped
from lvlm.errors import UserError, nearest, one_of
from lvlm.generation.decoding import PromptCodes
from lvlm.generation.prompts import Prompt
from lvlm.generation.sampling import Sampling

_TYPES: dict[str, Any] = {
    "temperature": float,
    "top_k": int | None,
    "top_p": float | None,
    "min_p": float | None,
    "repetition_penalty": float,
    "seed": int | Sequence[int],
    "samples": int,
    "share_codes": bool,
    "code_seed": int | Sequence[int] | None,
    "hold": Iterable[int] | None,
    "stop": str | Sequence[str],
    "compile": bool,
}


GivenCodes = Tensor | Sequence[Tensor] | int
"""Codes of one latent, as `lvlm.generate` takes them."""


class GenerateOptions(TypedDict, total=False):
    """Options of `lvlm.generate` for type checkers: the fields of `Options`, described in `lvlm.generate`."""

    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float
    seed: int | Sequence[int]
    samples: int
    share_codes: bool
    code_seed: int | Sequence[int] | None
    codes: GivenCodes | Mapping[str, GivenCodes] | None
    hold: Iterable[int] | None
    prompt_codes: PromptCodes
    latent_text: Prompt | Sequence[Prompt] | None
    stop: str | Sequence[str]
    compile: bool


@dataclass(frozen=True)
class Options(Sampling):
    """Options of `lvlm.generate` with their defaults: those of `Sampling`, and these.

    `lvlm.generate` describes them.

    Raises:
        UserError: an option is out of range.
    """

    seed: int | Sequence[int] = 0
    samples: int = 1
    share_codes: bool = False
    code_seed: int | Sequence[int] | None = None
    codes: GivenCodes | Mapping[str, GivenCodes] | None = None
    hold: Iterable[int] | None = None
    prompt_codes: PromptCodes = "posterior"
    latent_text: Prompt | Sequence[Prompt] | None = None
    stop: str | Sequence[str] = ()
    compile: bool = False

    def __post_init__(self) -> None:
        for name, hint in _TYPES.items():
            object.__setattr__(self, name, fitted(getattr(self, name), hint, name))
        object.__setattr__(self, "codes", _plain_codes(self.codes))
        super().__post_init__()
        if self.samples < 1:
            raise UserError(f"samples is {self.samples}; ask for at least one")
        one_of(self.prompt_codes, PromptCodes, "prompt_codes")
        if any(not text for text in self.stops):
            raise UserError("a stop text is empty; it would end every row before it begins")
        if self.hold is not None and self.codes is None:
            raise UserError("hold says which given codes stay, but no codes are given")
        if self.latent_text is not None and self.codes is not None:
            raise UserError("codes are given, and a latent_text to read them from; give one of the two")
        if self.latent_text is not None and self.prompt_codes == "prior":
            raise UserError("latent_text is read by the encoder; prompt_codes: prior doesn't ask it")

    @classmethod
    def of(cls, options: GenerateOptions) -> Options:
        """Make the options from their names and values.

        Raises:
            UserError: an option is unknown.
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
        """The seed of each row."""
        return row_seeds(self.seed, prompts * self.samples)

    def row_code_seeds(self, prompts: int) -> list[int]:
        """The seed of each row's codes."""
        if self.code_seed is None:
            return self.row_seeds(prompts)
        return row_seeds(self.code_seed, prompts * self.samples, step=0)


def _plain_codes(codes: Any) -> Any:
    """Codes as tensors, a list of them, or a whole number; of several latents by name.

    Raises:
        UserError: they are something else.
    """
    if isinstance(codes, Mapping):
        return {name: _plain_codes(of_one) for name, of_one in codes.items()}
    if codes is None or is_whole(codes):
        return fitted(codes, int | None, "codes")
    if isinstance(codes, list | tuple):
        return [_tensor(one) if isinstance(one, np.ndarray) else one for one in codes]
    if isinstance(codes, np.generic | np.ndarray):
        plain = unwrapped(codes)
        return _plain_codes(plain) if is_whole(plain) else _tensor(np.asarray(codes))
    if isinstance(codes, Tensor):
        return codes
    raise UserError(
        f"codes is {told(codes)}; it is a tensor [S, …] or [B, S, …], a list of one tensor a row, or a whole "
        f"number"
    )


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """An array as a tensor.

    Raises:
        UserError: it holds no numbers.
    """
    try:
        return torch.from_numpy(array.astype(np.int64) if array.dtype.kind in "iu" else array.copy())
    except TypeError:
        raise UserError(f"codes is {told(array)}; an array of codes holds numbers") from None


def row_seeds(seed: int | Sequence[int], rows: int, *, step: int = 1) -> list[int]:
    """The seed of each row.

    Raises:
        UserError: the number of seeds is wrong, or one is out of range.
    """
    seeds = [seed + step * row for row in range(rows)] if isinstance(seed, int) else list(seed)
    if len(seeds) != rows:
        raise UserError(f"{len(seeds)} seeds for {rows} rows; give one for each, or one number")
    for one in seeds:
        if not isinstance(one, int) or not 0 <= one < 2**63:
            raise UserError(f"seed is {one!r}; it is a whole number from 0 to 2^63 - 1")
    return seeds


F = TypeVar("F", bound=Callable[..., Any])


def shows_options(function: F) -> F:
    """Show the fields of `Options` and their defaults in place of `**options`, for `help` and Tab."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    options = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type
        )
        for field in dataclasses.fields(Options)
    ]
    for one in (function, inspect.unwrap(function)):
        one.__dict__["__signature__"] = signature.replace(parameters=[*own, *options])
    return function
