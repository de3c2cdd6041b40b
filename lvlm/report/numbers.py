"""Numbers in words: as many digits as an interval needs."""

from __future__ import annotations

import math

from lvlm.statistics import Interval

MOST_DIGITS = 7


def in_digits(found: Interval, *, sign: str = "", digits: int = 4) -> tuple[str, str]:
    """The value and its brackets, with so many decimals, or more where the interval is too narrow for them.

    Args:
        found: the interval; without ends it has no brackets.
        sign: '+' to show one.
        digits: decimals, at least.
    """
    width = found.high - found.low if found.has_ends else 0.0
    if width > 10.0**-MOST_DIGITS:  # else it is rounding
        digits = max(digits, min(MOST_DIGITS, 1 - math.floor(math.log10(width / 2))))
    form = f"{sign}z.{digits}f"
    ends = f"[{found.low:{form}}, {found.high:{form}}]" if found.has_ends else ""
    return f"{found.value:{form}}", ends
