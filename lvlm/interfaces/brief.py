"""Reprs of one short line: shapes in place of numbers, sizes in place of long values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LONGEST = 60  # characters of one value

MOST_ITEMS = 8


class Brief:
    """A dataclass with a short repr, for `@dataclass(repr=False)`. Fields that are None are left out, and so
    are those with `repr=False`.
    """

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # of a dataclass
        return brief_of(
            type(self).__name__, ((one.name, getattr(self, one.name)) for one in fields if one.repr)
        )


def brief_of(name: str, values: Iterable[tuple[str, Any]]) -> str:
    """'Name(field=value, …)' on one line."""
    return f"{name}({', '.join(f'{key}={brief(value)}' for key, value in values if value is not None)})"


def brief(value: Any) -> str:
    """A value in few characters: 'int64[2, 16]' for a tensor or an array, '<200 items>' for a long list."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, Brief):
        return repr(value)
    if isinstance(value, str):
        return repr(value if len(value) <= LONGEST else f"{value[: LONGEST - 1]}…")
    if isinstance(value, float):
        return format(value, ".6g")
    if isinstance(value, bool | int | Path | None):
        return repr(value)
    if isinstance(value, Mapping):
        return _all(value, (f"{key!r}: {brief(one)}" for key, one in value.items()), "{}")
    if isinstance(value, list | tuple):
        return _all(value, map(brief, value), "[]" if isinstance(value, list) else "()")
    name = getattr(value, "__qualname__", None) or type(value).__name__
    text = repr(value) if dataclasses.is_dataclass(value) else ""
    return text if 0 < len(text) <= LONGEST else name if callable(value) else f"{name}(…)"


def _all(value: Mapping[Any, Any] | list[Any] | tuple[Any, ...], parts: Iterable[str], around: str) -> str:
    """The parts of a collection, or how many there are."""
    text = f"{around[0]}{', '.join(parts)}{around[1]}" if len(value) <= MOST_ITEMS else ""
    return text if 0 < len(text) <= LONGEST else f"<{len(value)} items>"
