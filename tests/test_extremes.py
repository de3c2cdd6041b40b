"""Every quantizer with every KL term at the edges: no rows, one token, padding, huge numbers, other dtypes,
NaN.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lvlm.errors import NotFinite
from lvlm.interfaces import IGNORE, Batch, Output, QuantizerParams, Slots, Terms
from lvlm.model.latent_lm import LatentLM
from lvlm.objective import per_token
from lvlm.registry.registry import Registry
from lvlm.testing import build_cross, crosses, randomise
from lvlm_baseline.elbo import ElboParams
from lvlm_free.binary import BinaryParams
from lvlm_gptvae.gaussian import GaussianParams
from tests.matrix import pairs_now

REGISTRY = Registry.load(strict=True)
QUANTIZERS: dict[str, QuantizerParams] = {
    name: kind.params.example()  # type: ignore[misc]
    for name, kind in REGISTRY.kinds["quantizer"].items()
} | {
    "binary, one bit": BinaryParams(bits=1),
    "binary, bitwise": BinaryParams(bits=5, bits_per_group=2, estimator="bitwise"),
    "binary, gumbel": BinaryParams(bits=3, estimator="gumbel", temperature=0.1),
    "binary, reinforce": BinaryParams(bits=3, estimator="reinforce"),
    "gaussian, shared": GaussianParams(dim=3, variance="shared"),
    "gaussian, fixed": GaussianParams(dim=3, variance=0.5),
}
TERMS = sorted(REGISTRY.kinds["term"])
quantizers = pytest.mark.parametrize("params", QUANTIZERS.values(), ids=list(QUANTIZERS))
terms = pytest.mark.parametrize("term", TERMS)


def elbo(term: Any, **options: Any) -> ElboParams:
    """A loss with that term; two-sided ones need a budget, and a term without one has none."""
    params: Any = REGISTRY.get("term", term).params.example()
    chosen = {"budget_bits": 0.5} | options
    return ElboParams(term=params, **(chosen if params.takes_budget else chosen | {"budget_bits": 0.0}))


def step(
    params: QuantizerParams, loss: Any, numbers: torch.Tensor, keep_BT: torch.Tensor
) -> tuple[Terms, torch.Tensor]:
    """The loss of some posterior numbers [B, T, K], and its gradient to them."""
    weights = torch.float64 if numbers.dtype == torch.float64 else torch.float32  # as under autocast
    quantizer = randomise(params.build(embedding_dim=4).to(weights))
    numbers = numbers.clone().requires_grad_()
    prior = numbers.new_zeros(*numbers.shape[:2], quantizer.prior_dim)
    latent = quantizer(numbers, prior, torch.Generator().manual_seed(0))
    logits = latent.embedding_BSC.tanh()
    targets = torch.zeros(keep_BT.shape, dtype=torch.long).masked_fill(~keep_BT, IGNORE)
    batch = Batch(targets.clamp(min=0), targets, keep_BT)
    terms_ = loss(
        Output.of_logits(logits, latent, keep_BT, Slots(1)),
        batch,
        num_tokens=max(1, batch.num_targets),
        step=10_000,
    )
    loss.after_step()
    (gradient,) = torch.autograd.grad(terms_.loss, numbers, allow_unused=True, materialize_grads=True)
    return terms_, gradient


@quantizers
@terms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1.0, 1e4, -1e4])
def test_values_and_gradients_are_finite(params: Any, term: str, dtype: torch.dtype, size: float) -> None:
    loss = elbo(term).build()
    keep = torch.tensor([[True, True], [True, False]])
    width = params.build(embedding_dim=4).posterior_dim
    for _ in range(2):  # a controller's price is set after the first
        out, gradient = step(params, loss, torch.full((2, 2, width), size, dtype=dtype), keep)
        assert out.loss.isfinite()
        assert gradient.isfinite().all()
        assert out.loss.dtype in (torch.float32, torch.float64), "the loss is computed in bf16"
        numbers = per_token({name: float(value) for name, value in out.sums.items()}, 3)
        assert all(math.isfinite(value) for value in numbers.values()), numbers
    assert gradient[1, 1].abs().sum() == 0, "padding has a gradient"


@quantizers
@terms
@pytest.mark.parametrize(
    ("rows", "tokens"), [(0, 3), (1, 1), (2, 4)], ids=["no rows", "one token", "padding"]
)
def test_small_batches(params: Any, term: str, rows: int, tokens: int) -> None:
    """No rows at all; one token; all padding but one."""
    loss = elbo(term).build()
    width = params.build(embedding_dim=4).posterior_dim
    keep = torch.zeros(rows, tokens, dtype=torch.bool)
    keep[:1, :1] = True
    for _ in range(2):
        out, gradient = step(params, loss, torch.randn(rows, tokens, width), keep)
        assert out.loss.isfinite()
        assert gradient.isfinite().all()
        assert gradient.flatten(0, 1)[1:].abs().sum() == 0, "padding has a gradient"
    if rows == 0:
        assert out.loss == 0


@quantizers
@pytest.mark.parametrize(
    "term", [n for n in TERMS if (p := REGISTRY.get("term", n).params).takes_budget and not p.steers]
)
@pytest.mark.parametrize("per", ["unit", "slot", "sequence"])
def test_budgets_of_nothing_and_without_end(params: Any, term: str, per: str) -> None:
    if REGISTRY.get("term", term).params.follows_mean and per == "sequence":
        return
    keep = torch.tensor([[True, True], [True, False]])
    numbers = torch.randn(2, 2, params.build(embedding_dim=4).posterior_dim, dtype=torch.float64)
    charged = {}
    for budget in (0.0, math.inf):
        loss = elbo(term, budget_bits=budget, per=per).build()
        for _ in range(2):
            out, _ = step(params, loss, numbers, keep)
        charged[budget] = out.sums["kl_hinged"].item()
        assert out.loss.isfinite()
    assert charged[0.0] == pytest.approx(out.sums["kl"].item())
    assert charged[math.inf] == 0


@given(st.sampled_from(sorted(QUANTIZERS)), st.sampled_from(TERMS), st.floats(0.01, 8), st.integers(0, 2**16))
def test_splitting_a_batch_leaves_its_loss_and_gradient_unchanged(
    name: str, term: str, budget: float, seed: int
) -> None:
    """Over micro-batches: every term, every family; the score function compares rows, so it stands aside."""
    params = QUANTIZERS[name]
    if name == "binary, reinforce":
        return
    quantizer = randomise(params.build(embedding_dim=4).double(), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(3, 4, quantizer.posterior_dim, generator=generator, dtype=torch.float64).requires_grad_()
    p = torch.randn(3, 4, quantizer.prior_dim, generator=generator, dtype=torch.float64)
    latent = quantizer(q, p, generator)
    keep = torch.arange(4)[None, :] < torch.tensor([4, 2, 1])[:, None]
    targets = torch.zeros(3, 4, dtype=torch.long).masked_fill(~keep, IGNORE)
    batch = Batch(targets.clamp(min=0), targets, keep)
    whole, pieces = (elbo(term, budget_bits=budget).build() for _ in range(2))
    for _ in range(2):
        outs = []
        for loss, cuts in ((whole, [slice(0, 3)]), (pieces, [slice(0, 1), slice(1, 3)])):
            parts = []
            for rows in cuts:
                some = {k: v[rows] for k, v in vars(latent).items() if v is not None}
                output = Output.of_logits(
                    latent.embedding_BSC[rows], replace(latent, **some), keep[rows], Slots(1)
                )
                parts.append(loss(output, batch[rows], num_tokens=7, step=10).loss)
            total = torch.stack(parts).sum()
            outs.append((total, *torch.autograd.grad(total, q, retain_graph=True)))
            loss.after_step()
        for one, other in zip(*outs, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("cross", pairs_now([c for c in crosses(REGISTRY)[0] if c.prior == "fixed"]))
@pytest.mark.parametrize("what", [math.nan, math.inf])
def test_nan_in_is_an_error_and_not_a_code(cross: Any, what: float) -> None:
    model: LatentLM = build_cross(cross, REGISTRY)
    assert model.latent is not None
    with torch.no_grad():
        model.latent.readout.bias[0] = what
    tokens_BT = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(NotFinite, match="the numbers of the posterior hold NaN or infinity"):
        model.eval()(tokens_BT)
    assert model.train()(tokens_BT).logits_BTV.isnan().any(), "in training it reaches what all processes see"
    model.eval()
    assert model(torch.zeros(1, 4, dtype=torch.long), z="prior").logits_BTV.isfinite().all()
