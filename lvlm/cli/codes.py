"""Codes as the command line gives them: files, numbers and slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lvlm.cli.shared import listed
from lvlm.errors import UserError
from lvlm.system.files import given_path

if TYPE_CHECKING:
    from lvlm.model.latent_lm import LatentLM


def given_codes(
    model: LatentLM,
    *,
    latent_text: list[str] | None,
    codes_of: str | None,
    code: str | None,
    bits: str | None,
    vector: str | None,
    codes: str | None,
) -> Any:
    """The codes that were asked for; None where they are drawn, and where those of a text are wanted, which
    is checked only.

    Args:
        model: that they are for; it may be without weights.
        latent_text: texts that the encoder will read, in place of codes.
        codes_of: the text.
        code: indices.
        bits: bits of a code.
        vector: numbers of a code.
        codes: a file.
    """
    from lvlm.generation import codes as turn
    from lvlm.generation import encode

    ways = {
        "--latent-text": latent_text or None,
        "--codes-of": codes_of,
        "--code": code,
        "--bits": bits,
        "--vector": vector,
        "--codes": codes,
    }
    said = [name for name, value in ways.items() if value is not None]
    if len(said) > 1:
        raise UserError(f"codes are given by {' and '.join(said)}; choose one")
    if codes_of is not None:
        encode.check_encoded(model, codes_of)
        return None
    if codes is not None:
        return encode.read_codes(given_path(codes, "--codes"))
    if code is not None:
        numbers = _numbers(code, "--code", int)
        return turn.code_of(model, index=numbers[0] if len(numbers) == 1 else numbers)
    if bits is not None:
        return turn.code_of(model, bits=bits)
    if vector is not None:
        return turn.code_of(model, vector=_numbers(vector, "--vector", float))
    return None


def _numbers(text: str, option: str, of: type) -> list[Any]:
    try:
        return [of(part) for part in listed(text)] or [of(text)]
    except ValueError:
        kind = "whole numbers" if of is int else "numbers"
        raise UserError(f"{option} is {text!r}; it is {kind} with commas between") from None


def slots_of(text: str) -> Sequence[int]:
    """'0:8' or '1,5'."""
    start, colon, end = text.partition(":")
    if not colon:
        named: Sequence[int] = _numbers(text, "--hold", int)
        return named
    try:
        slots = range(int(start or 0), int(end))
    except ValueError:
        slots = range(0)
    if not slots:
        raise UserError(f"--hold is {text!r}; it is slots with commas between, or from:to as in 0:8")
    return slots
