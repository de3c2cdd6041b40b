"""Spikes: steps whose loss or gradient is not finite, or whose gradient norm stands out from those before."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

MOST_IN_A_ROW = 10
"""So many spikes in a row stop a run, whatever its recipe says."""

REMEMBERED_STEPS = 100
"""Steps whose median norm a spike is measured against."""


class Spikes:
    """The count of spikes, and the norms that tell one.

    Args:
        factor: a norm above so many times the median of the last steps is a spike; None for none but NaN and
            infinity.
    """

    def __init__(self, factor: float | None) -> None:
        self.factor = factor
        self.count = 0
        self.in_a_row = 0
        self.norms: deque[float] = deque(maxlen=REMEMBERED_STEPS)

    def take(self, loss: float, norm: float, *, loss_scale: float | None) -> bool:
        """Take in the loss and gradient norm of a step, and return whether the step is a spike.

        Args:
            loss: nats per token.
            norm: of the whole gradient, before it is clipped.
            loss_scale: of fp16, else None. A gradient that overflows is no spike while the scaler looks for
                its scale, which it does above 1; the scaler skips the step.
        """
        if self._is_spike(loss, norm, loss_scale):
            self.count += 1
            self.in_a_row += 1
            return True
        self.in_a_row = 0
        if math.isfinite(norm):
            self.norms.append(norm)
        return False

    def _is_spike(self, loss: float, norm: float, loss_scale: float | None) -> bool:
        if not math.isfinite(loss):
            return True
        if not math.isfinite(norm):
            return loss_scale is None or loss_scale < 1
        if self.factor is None or len(self.norms) < REMEMBERED_STEPS // 5:
            return False
        return norm > self.factor * statistics.median(self.norms)

    @property
    def too_many(self) -> bool:
        """Whether there were so many in a row that the run must stop."""
        return self.in_a_row >= MOST_IN_A_ROW

    def describe(self, loss: float, norm: float) -> str:
        """Describe the newest spike."""
        finite = math.isfinite(loss) and math.isfinite(norm)
        what = "the gradient spiked" if finite else "the loss or its gradient is not finite"
        return what + (f", {self.in_a_row} steps in a row" if self.in_a_row > 1 else "")

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {"spikes": self.count, "norms": list(self.norms)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint.

        Raises:
            KeyError: a value is missing.
            TypeError: a value has another type.
            ValueError: a value is no number.
        """
        self.count, self.in_a_row = int(state["spikes"]), 0
        self.norms = deque(map(float, state["norms"]), maxlen=REMEMBERED_STEPS)
