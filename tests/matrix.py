"""Crosses of kinds as parameters of tests: as many as have every pair of kinds now, the others slow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from lvlm.testing import Cross, covering


def pairs_now(crosses: Sequence[Cross]) -> list[Any]:
    """Parameters of `pytest.mark.parametrize`."""
    now = covering(crosses)
    return [pytest.param(one, id=str(one), marks=() if one in now else pytest.mark.slow) for one in crosses]
