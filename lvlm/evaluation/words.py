"""What the gaps between estimates suggest, in sentences."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lvlm.evaluation.result import Evaluation


def gaps(result: Evaluation) -> Iterator[str]:
    """What the differences between the bounds of one model suggest."""
    nats = {name: one["nats_per_token"] for name, one in result["estimates"].items() if one["bound"]}
    error = {name: one["noise_stderr"] or 0.0 for name, one in result["estimates"].items()}
    if len(nats) < 2 or result["latent"] is None:
        return
    best = "nll_exact" if "nll_exact" in nats else min(nats, key=lambda name: nats[name])

    def below(one: str, other: str) -> bool:
        return bool(nats[other] - nats[one] > 2 * math.hypot(error[one], error[other]) + 5e-5)

    def last(kind: str) -> str | None:
        return next((name for name in reversed(nats) if re.fullmatch(kind + r"_\d+", name)), None)

    if best == "nll_exact":
        yield (
            f"All codes were tried: {best} is the likelihood, {nats[best]:.4f} nats/token, and the "
            f"others bound it."
        )
    else:
        yield (
            f"The tightest bound is {best}: {nats[best]:.4f} nats/token. All bound the same number from "
            f"above."
        )
    if "elbo" in nats and below(best, "elbo"):
        yield (
            f"elbo is {nats['elbo'] - nats[best]:.4f} above it: at least so much it loses because the "
            f"posterior isn't "
            "the model's own."
        )
    iwae, smc, deferred = last("nll_iwae"), last("nll_smc"), last("nll_smc_deferred")
    if iwae and smc and below(smc, iwae):
        yield f"{smc} is below {iwae}: weights of whole sequences degenerate with length; trust the filter."
    if iwae and smc and below(iwae, smc):
        yield (
            f"{iwae} is below {smc}: the filter drops codes that pay off later, so they say something of "
            f"the whole text."
        )
    if smc and deferred and below(deferred, smc):
        yield f"{deferred} is below {smc}: codes are paid for early and pay off late."
    if "ce_prior" in nats and not below(best, "ce_prior"):
        yield "ce_prior is as low as any: knowing the codes is worth nothing, or there are none to speak of."
    ess = result["estimates"][best]["ess"]
    if ess is not None and ess < 2:
        yield f"Of {best} hardly one weight counts (ESS {ess:.1f}); more particles would lower it."
