"""Names of resampling rules, proposals, and the headline that is chosen."""

from __future__ import annotations

from typing import Literal

Proposal = Literal["posterior", "prior", "mixture"]

Resampling = Literal["systematic", "stratified", "multinomial"]

LOWEST = "lowest"
"""The headline that is whichever declared bound is lowest on validation windows."""

MOST_REPEATS = 10_000
"""The most often that an estimate is drawn anew; its Monte Carlo error is then a hundredth."""
