"""The tab Write: texts that share a code, above texts with codes of the prior.

    what is asked ─┬─ one code in all columns ──────────► row 1     column i has the token noise of seed + i
                   └─ codes drawn from the prior ───────► row 2     the same noise, other codes

Shape legend: see `lvlm.interfaces`.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from lvlm.arguments import fitted
from lvlm.errors import OutOfDistribution, UserError, one_of
from lvlm.generation.codes import code_of, numbers_of_code, to_bits
from lvlm.generation.encode import encode
from lvlm.generation.generate import Piece, Sample, stream
from lvlm.model.latent_lm import LatentLM

Source = Literal["prior", "text", "given"]
Form = Literal["bits", "numbers", "index"]
SHOWN_CODES = 12
MOST_COLUMNS = 4
MOST_CHARACTERS = 20_000  # of a prompt or a text that is typed
MOST_TOKENS = 65_536
SECONDS_BETWEEN_LOOKS = 0.15


@dataclass(frozen=True)
class Control:
    """How a person gives a code.

    form    'bits' where an index has bits (`Quantizer.units`), 'numbers' for continuous codes, 'index' for
            others
    count   bits, numbers, or codes to choose from
    slots   whether a text has more than one slot
    """

    form: Form
    count: int
    slots: bool

    def __post_init__(self) -> None:
        one_of(self.form, Form, "form")


@dataclass(frozen=True)
class Asked:
    """What the widgets say.

    columns     texts in a row
    source      of row 1's codes: 'prior', the encoder over a 'text' (the prompt, where `text` is empty), or
                'given'
    code_seed   of what is drawn
    bits        those that are 1
    numbers     of a continuous code
    index       of a codebook
    slot        the one that has the given code, the others being drawn; None for every slot
    """

    prompt: str
    tokens: int = 200
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    columns: int = 2
    source: Source = "prior"
    code_seed: int = 0
    text: str = ""
    bits: tuple[int, ...] = ()
    numbers: tuple[float, ...] = ()
    index: int = 0
    slot: int | None = None

    def __post_init__(self) -> None:
        """Check all that is said: whoever talks to the server isn't bound by the page's widgets."""
        one_of(self.source, Source, "source")
        for name, hint in _TYPES.items():
            object.__setattr__(self, name, fitted(getattr(self, name), hint, name.replace("_", " ")))
        for name in ("prompt", "text"):
            check_typed(getattr(self, name), name)
        if self.tokens > MOST_TOKENS:
            raise UserError(f"tokens is {self.tokens}; the page writes at most {MOST_TOKENS}")
        if max(len(self.bits), len(self.numbers)) > MOST_TOKENS:
            raise UserError(f"a code of more than {MOST_TOKENS} bits or numbers")


_TYPES: dict[str, Any] = {
    "prompt": str,
    "tokens": int,
    "temperature": float,
    "top_p": float,
    "seed": int,
    "columns": int,
    "code_seed": int,
    "text": str,
    "bits": Sequence[int],
    "numbers": Sequence[float],
    "index": int,
    "slot": int | None,
}


def check_typed(text: object, what: str) -> None:
    """Check what a person typed.

    Raises:
        UserError: it is no text, or longer than the page takes.
    """
    if len(fitted(text, str, what)) > MOST_CHARACTERS:
        raise UserError(
            f"the {what} has {len(str(text))} characters; the page takes at most {MOST_CHARACTERS}"
        )


@dataclass(frozen=True)
class Card:
    """One text.

    codes   in words, empty while it is written and without a latent
    prompt  what stands before it, where it isn't the page's: a text may complete its last character
    """

    seed: int
    text: str
    codes: str = ""
    prompt: str | None = None


@dataclass(frozen=True)
class Row:
    """Texts side by side."""

    title: str
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Written:
    """What there is so far, after the prompt as the model's tokens spell it."""

    prompt: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    done: bool = False


def control_of(model: LatentLM) -> Control | None:
    """How the codes of a model are given; None without a latent."""
    if model.latent is None:
        return None
    quantizer, slots = model.latent.quantizer, model.latent.slots.tokens is not None
    if quantizer.num_codes is None:
        return Control("numbers", numbers_of_code(model), slots)
    if quantizer.units:
        return Control("bits", len(quantizer.units), slots)
    return Control("index", quantizer.num_codes, slots)


def write(model: LatentLM, asked: Asked) -> Iterator[Written]:
    """The texts as they grow; the last one says that it is done.

    Raises:
        UserError: anything of what is asked can't be had; before the first text.
    """
    asked_rows = _asked_rows(model, asked)
    grown = [[""] * asked.columns for _ in asked_rows]
    done: list[list[Sample]] = []
    steps = [_kept(stream(model, asked.prompt, asked.tokens, **how), done) for _, how in asked_rows]
    notes: tuple[str, ...] = ()
    prompt = _shown(model, asked.prompt)
    looked = 0.0
    for number in range(asked.tokens + 1):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")  # codes are looked at in the first step
            for texts, of_row in zip(grown, steps, strict=True):
                for piece in itertools.islice(of_row, asked.columns):
                    texts[piece.row] += piece.text
        if number == 0:
            notes = tuple(
                dict.fromkeys(str(w.message) for w in told if issubclass(w.category, OutOfDistribution))
            )
        if number < asked.tokens and time.monotonic() - looked > SECONDS_BETWEEN_LOOKS:
            looked = time.monotonic()
            yield Written(prompt, _rows(asked, asked_rows, grown), notes)
    rows = tuple(
        Row(
            title,
            tuple(Card(s.seed, str(s.text), _in_words(model, s.codes), s.prompt_text) for s in samples),
        )
        for (title, _), samples in zip(asked_rows, done, strict=True)
    )
    yield Written(prompt, rows, notes, done=True)


def _kept(steps: Generator[Piece, None, list[Sample]], into: list[list[Sample]]) -> Iterator[Piece]:
    into.append((yield from steps))


def _rows(
    asked: Asked, asked_rows: list[tuple[str, dict[str, Any]]], grown: list[list[str]]
) -> tuple[Row, ...]:
    return tuple(
        Row(title, tuple(Card(asked.seed + column, text) for column, text in enumerate(texts)))
        for (title, _), texts in zip(asked_rows, grown, strict=True)
    )


def _asked_rows(model: LatentLM, asked: Asked) -> list[tuple[str, dict[str, Any]]]:
    """Title and options of each row of texts."""
    if not 1 <= asked.columns <= MOST_COLUMNS:
        raise UserError(f"{asked.columns} texts side by side; ask for 1 to {MOST_COLUMNS}")
    common: dict[str, Any] = {
        "temperature": asked.temperature,
        "top_p": None if asked.top_p >= 1 else asked.top_p,
        "seed": asked.seed,
        "samples": asked.columns,
    }
    if model.latent is None:
        return [("Samples", common)]
    common |= {"prompt_codes": "prior"}
    shared = common | {"share_codes": True, "code_seed": asked.code_seed}
    others = common | {"code_seed": [asked.code_seed + 1 + column for column in range(asked.columns)]}
    below = ("Codes of the prior, others in each column", others)
    if asked.source == "prior":
        return [("One draw from the prior in all columns", shared), below]
    if asked.source == "text":
        written = asked.prompt if model.reads_other_text else None
        found = encode(model, asked.text or asked.prompt, written=written, seed=asked.code_seed)
        codes = found[0].codes
        whose = "the text" if asked.text else "the prompt"
        title = f"The code of {whose}"
        if model.latent.slots.tokens is not None:
            where = "the first slot" if len(codes) == 1 else f"the first {len(codes)} slots"
            title = f"Codes of {whose} in {where}, then one draw from the prior"
        return [(title, shared | {"codes": codes}), below]
    code, said = _given(model, asked)
    if model.latent.slots.tokens is None:
        return [(f"Code {said}", shared | {"codes": code}), below]
    if asked.slot is None:
        return [(f"Code {said} in every slot", shared | {"codes": code}), below]
    slots = model.latent.slots.count(max(1, len(_ids(model, asked.prompt)) + asked.tokens - 1))
    if not 0 <= asked.slot < slots:
        raise UserError(f"there is no slot {asked.slot}; prompt and text have slots 0 to {slots - 1}")
    held = {"codes": code.expand(asked.slot + 1, *code.shape), "hold": [asked.slot]}
    title = f"Code {said} in slot {asked.slot}, one draw from the prior in the others"
    return [(title, shared | held), (f"The same draw, slot {asked.slot} as it was drawn", shared)]


def _ids(model: LatentLM, prompt: str) -> list[int]:
    assert model.codec is not None
    return model.codec.encode(prompt)


def _shown(model: LatentLM, prompt: str) -> str:
    assert model.codec is not None
    return model.codec.decode(_ids(model, prompt))


def _given(model: LatentLM, asked: Asked) -> tuple[Tensor, str]:
    """The code that the widgets say, and in words."""
    control = control_of(model)
    assert control is not None
    if control.form == "bits":
        bits = "".join(str(int(bit in asked.bits)) for bit in range(control.count))
        return code_of(model, bits=bits), bits
    if control.form == "index":
        return code_of(model, index=asked.index), str(asked.index)
    said = _listed([f"{number:.2f}" for number in asked.numbers])
    return code_of(model, vector=asked.numbers), f"({said})"


def _in_words(model: LatentLM, codes: Tensor | None) -> str:
    """The codes that a text had."""
    if codes is None:
        return ""
    control = control_of(model)
    assert control is not None
    if control.form == "bits":
        each = ["".join(map(str, bits)) for bits in to_bits(codes, control.count).tolist()]
    elif control.form == "index":
        each = [str(code) for code in codes.tolist()]
    else:
        each = ["(" + _listed([f"{number:.2f}" for number in code]) + ")" for code in codes.tolist()]
        return each[0] + (f" and {len(each) - 1} more" if len(each) > 1 else "")
    return _listed(each)


def _listed(words: list[str]) -> str:
    return " ".join(words[:SHOWN_CODES]) + (" …" if len(words) > SHOWN_CODES else "")
