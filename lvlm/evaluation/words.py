"""What the gaps between the bounds of one model suggest, in sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lvlm.evaluation.result import Evaluation, Gap


def suggestions(result: Evaluation) -> Iterator[str]:
    """What the differences between the bounds of one model suggest, by their intervals over its windows."""
    nats = {name: one["nats_per_token"] for name, one in result["estimates"].items() if one["bound"]}
    if len(nats) < 2 or result["latent"] is None:
        return
    best = "nll_exact" if "nll_exact" in nats else min(nats, key=lambda name: nats[name])
    apart = [gap for gap in result["gaps"] if gap["low"] > 0]

    def between(higher: str, lower: str) -> Gap | None:
        """The gap between two kinds of bounds, where it is sure; of several K the last one's."""
        found = [gap for gap in apart if _is(higher, gap["higher"]) and _is(lower, gap["lower"])]
        return found[-1] if found else None

    if best == "nll_exact":
        yield (
            f"All codes were tried: {best} is the likelihood, {nats[best]:.4f} nats/token, and the "
            f"others bound it."
        )
    else:
        yield (
            f"The lowest bound is {best}: {nats[best]:.4f} nats/token. All bound the same number from above."
        )
    if loss := between("elbo", re.escape(best)):
        yield (
            f"elbo is {loss['value']:.4f} above it: at least so much it loses because the posterior isn't "
            "the model's own."
        )
    if gap := between("nll_iwae", "nll_smc"):
        yield (
            f"{gap['lower']} is below {gap['higher']}: weights of whole sequences degenerate with length; "
            "trust the filter."
        )
    if gap := between("nll_smc", "nll_iwae"):
        yield (
            f"{gap['lower']} is below {gap['higher']}: the filter drops codes that pay off later, so they "
            "say something of the whole text."
        )
    if gap := between("nll_smc", "nll_smc_deferred"):
        yield f"{gap['lower']} is below {gap['higher']}: codes are paid for early and pay off late."
    if "ce_prior" in nats and (best == "ce_prior" or not between("ce_prior", re.escape(best))):
        yield "No bound is surely below ce_prior: knowing the codes is worth nothing, or too little to see."
    ess = result["estimates"][best]["ess"]
    if ess is not None and ess < 2:
        yield f"Of {best} hardly one weight counts (ESS {ess:.1f}); more particles would lower it."


def _is(kind: str, label: str) -> bool:
    """Whether a number is of this kind, whatever its K."""
    return re.fullmatch(kind + r"(_\d+)?", label) is not None
