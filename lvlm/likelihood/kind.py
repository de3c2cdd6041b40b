"""The contract of an estimator's kind."""

from __future__ import annotations

from typing import Any, ClassVar

from lvlm.interfaces import Params


class EstimatorParams(Params):
    """Base of estimator params."""

    role: ClassVar[str] = "estimator"

    def build(self) -> Any:
        """The estimator."""
        raise NotImplementedError(f"{type(self).__name__}.build")
