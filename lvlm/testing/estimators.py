"""What holds for every estimator, ours and a stranger's: checked on tiny models all of whose codes are
enumerated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from lvlm.interfaces import Batch, PriorParams
from lvlm.likelihood import Effort, EstimatorParams, Rows
from lvlm.likelihood.estimators import Exact
from lvlm.model.latent_lm import LatentLM
from lvlm.registry.registry import Registry
from lvlm.testing.cases import batch_of, build_cross, crosses, token_rows

MOST_CODES = 4096
"""Code sequences of a row that are enumerated."""
TOKENS = 3
DRAWS = 1000
ERRORS = 5.0
"""Standard errors by which a mean may be off."""


def check_estimator(params: EstimatorParams) -> None:
    """Check an estimator: its name, its rows, and against enumeration that it bounds what it says it
    bounds.
    """
    check_name(params)
    models = list(enumerable_models())
    assert models, "no registered quantizer has codes that can be enumerated"
    for model in models:
        check_rows(params, model)
        for k in (1, 4) if params.has_k else (1,):
            check_bound(params, model, k)


def check_name(params: EstimatorParams) -> None:
    """The number has the kind's name, which is nobody else's."""
    for k in (1, 16):
        estimator = params.build(Effort(k))
        label = params.label(k)
        assert estimator.label == label, (
            f"the estimator is labelled {estimator.label!r}, its kind says {label!r}"
        )
        assert params.names(label)
        assert repr(params.build(Effort(k))) == repr(estimator), (
            "two equal estimators have different settings"
        )
        for kind in Registry.load().kinds["estimator"].values():
            other = kind.params
            assert issubclass(other, EstimatorParams)
            same = other.kind_name() == params.kind_name()
            assert same or not other.names(label), f"{label!r} is a number of {kind.name!r} already"


def enumerable_models() -> Iterator[LatentLM]:
    """A tiny random model for each way of having slots, each family, and each prior that sees codes; all
    codes can be tried.
    """
    registry, seen = Registry.load(), set[object]()
    for cross in crosses(registry, priors=["learned"])[0]:
        has = {getattr(cross.encoder, "per", ""), cross.quantizer.kind_name()}
        if isinstance(cross.prior, PriorParams):
            if not cross.prior.sees_codes:
                continue
            has = {cross.prior_name}
        if has <= seen:
            continue
        model = build_cross(cross, registry).eval()
        assert model.latent is not None
        codes = model.latent.quantizer.num_codes
        if not model.latent.quantizer.can_be_prior:  # a point mass proposes one code alone
            continue
        if codes is None or codes ** model.latent.slots.count(TOKENS) > MOST_CODES:
            continue
        seen |= has
        with torch.no_grad():  # an encoder that is too sure makes weights whose mean no sample shows
            for number in (model.latent.readout, model.latent.prior_head):
                for parameter in number.parameters():
                    parameter.mul_(0.2)
        yield model


def check_rows(params: EstimatorParams, model: LatentLM) -> None:
    """The number of a row depends on no other row, nor on how many go through at once."""
    estimator, batch = params.build(Effort(3, chunk=2)), batch_of(token_rows(3, TOKENS + 1))
    whole = estimator(rows_of(model, batch)).nats
    assert whole.shape == (3,), f"{list(whole.shape)} numbers for 3 rows"
    pieces = estimator(rows_of(model, batch, at_once=2)).nats
    torch.testing.assert_close(pieces, whole, msg="a number depends on how many rows go through at once")
    alone = estimator(rows_of(model, batch[1:2], first=1)).nats
    torch.testing.assert_close(alone, whole[1:2], msg="a number depends on the rows beside it")


def check_bound(params: EstimatorParams, model: LatentLM, k: int) -> None:
    """Check that in the mean over its draws the number is what it says: the likelihood, or above its negative
    logarithm.
    """
    one = batch_of(token_rows(1, TOKENS + 1))
    truth = Exact()(rows_of(model, one)).nats
    many = one.each(lambda x: x.expand(DRAWS, -1))
    found = params.build(Effort(k, chunk=1))(rows_of(model, many)).nats
    assert bool(found.isfinite().all()), "a number is not finite"
    if params.status == "exact":
        torch.testing.assert_close(found, truth.expand_as(found), msg="the likelihood is another")
    if params.status == "upper bound":
        low = _mean_and_error(found - truth)
        assert low[0] >= -ERRORS * low[1] - 1e-9, (
            f"{low[0]:.4f} ± {low[1]:.4f} nats above the likelihood at K = {k}"
        )
    if params.unbiased:
        mean, error = _mean_and_error((truth - found).exp())
        assert abs(mean - 1) <= ERRORS * error + 1e-9, (
            f"the mean of exp(-number) is {mean:.4f} ± {error:.4f} of p(x)"
        )


def rows_of(model: LatentLM, batch: Batch, *, first: int = 0, at_once: int = 512) -> Rows:
    """Rows whose seeds count from `first`."""
    seeds = list(range(first, first + len(batch)))
    return Rows(model, batch, seeds=seeds, at_once=at_once, autocast=nullcontext)


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    return values.mean().item(), values.std().item() / len(values) ** 0.5
