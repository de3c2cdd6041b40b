"""Names of resampling rules and proposals."""

from __future__ import annotations

from typing import Literal

Proposal = Literal["posterior", "prior", "mixture"]

Resampling = Literal["systematic", "stratified", "multinomial"]
