"""One door for the JSON files that a run or a study keeps: bounded, plain, and of the model that says its
fields.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from lvlm.errors import UserError
from lvlm.system.regular import MIB, read_regular

MOST_BYTES = 64 * MIB
"""Most bytes of a JSON file, unless its reader says otherwise."""

DEEPEST = 64
"""Objects and lists within each other; lvlm writes fewer than ten."""

MOST_VALUES = 4_000_000
"""Values of a JSON file; each takes some hundred bytes of memory, however few it takes in the file."""

SHOWN_FAULTS = 3


class Record(BaseModel):
    """What all models of such files have in common: nothing coerced, nothing infinite, and keys of other
    versions pass.
    """

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


M = TypeVar("M", bound=BaseModel)


def read_record_file(
    path: Path, model: type[M], what: str, *, most_bytes: int = MOST_BYTES, way_out: str = ""
) -> M:
    """A JSON file as its model.

    Args:
        path: of the file.
        model: what it holds.
        what: what it is, for the error: "a run's record".
        most_bytes: a file that is larger is refused unread.
        way_out: what follows in the error: "; evaluate the run again".

    Raises:
        UserError: it can't be read, is no JSON, or a field is missing or wrong; with the fields' names.
    """
    values = parsed(read_regular(path, most_bytes=most_bytes), str(path), what, way_out)
    return checked(values, model, str(path), what, way_out)


def read_values(path: Path, what: str = "JSON", *, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """A JSON file as plain values, for a reader that looks at one of them and checks it itself.

    Raises:
        UserError: it can't be read, or holds no JSON object.
    """
    return parsed(read_regular(path, most_bytes=most_bytes), str(path), what)


def parsed(content: bytes, where: str, what: str, way_out: str = "") -> dict[str, Any]:
    """The JSON object in some bytes.

    Raises:
        UserError: they hold none: not UTF-8, no JSON, another value than an object, too deep, or a number of
            thousands of digits.
    """
    try:
        if marks(content) > MOST_VALUES:
            raise ValueError(f"it holds more than {MOST_VALUES:,} values")
        values = json.loads(content.decode())
        if not isinstance(values, dict):
            raise ValueError("it holds no JSON object")
        if _deeper_than(values, DEEPEST):
            raise ValueError(f"it is nested more than {DEEPEST} deep")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not {what}: it is not UTF-8 text (byte {error.start}){way_out}") from None
    except RecursionError:
        raise UserError(f"{where}: not {what}: it is nested more than {DEEPEST} deep{way_out}") from None
    except ValueError as error:
        raise UserError(f"{where}: not {what}: {error}{way_out}") from None
    return values


def marks(content: bytes) -> int:
    """Commas and brackets in JSON: as many as it has values, or more."""
    return sum(map(content.count, (b",", b"[", b"{")))


def checked(values: Any, model: type[M], where: str, what: str, way_out: str = "") -> M:
    """Values as a model.

    Raises:
        UserError: a field is missing or wrong.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: not {what}: {faults(error)}{way_out}") from None


def faults(error: ValidationError) -> str:
    """What is wrong with fields, the first few, in words: 'estimates.elbo.bound: Field required'."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    told = [
        f"{_dotted(one['loc'])}{one['msg'].removeprefix('Value error, ')}" for one in found[:SHOWN_FAULTS]
    ]
    return "; ".join(told) + (f"; and {len(found) - SHOWN_FAULTS} more" if len(found) > SHOWN_FAULTS else "")


def read_lines(path: Path, model: type[M], *, most_bytes: int, cut: bool) -> Iterator[M]:
    """A file of one JSON object a line.

    Args:
        path: of the file.
        model: of a line.
        most_bytes: as for `read_record_file`.
        cut: whether a crash may have cut off the last line, which is then passed over.

    Raises:
        UserError: it can't be read, or a line is no JSON or of another form; with its number.
    """
    content = read_regular(path, most_bytes=most_bytes)
    if marks(content) > 2 * MOST_VALUES:
        raise UserError(f"{path}: holds more than {2 * MOST_VALUES:,} values, which no log does")
    lines = io.BytesIO(content)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            values = parsed(line, where, "JSON")
        except UserError:
            if cut and lines.tell() == len(content):
                return
            raise
        yield checked(values, model, where, "a line of a run's log")


def _dotted(place: Sequence[int | str]) -> str:
    words = ".".join(map(str, place))
    return f"{words[:200]}: " if words else ""


def _deeper_than(value: Any, left: int) -> bool:
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return bool(below) and (left == 0 or any(_deeper_than(one, left - 1) for one in below))
