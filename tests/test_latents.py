"""The mathematics of the latents: KL against enumeration, the mapper against its dense form, the hinges by
hand.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lvlm.errors import UserError
from lvlm.interfaces import IGNORE, Batch, Latent, Output, Ramp, Slots, value_at
from lvlm.objective import (
    NATS_PER_BIT,
    PID,
    Clamp,
    Controller,
    Lagrangian,
    LocalTerm,
    PIDParams,
    bernoulli_kl,
    cross_entropy_nats,
    gaussian_kl,
    gaussian_log_prob,
    per_token,
    reconstruction,
    score_function,
    straight_through,
)
from lvlm.recipe.read import read_recipe
from lvlm.recipe.saved import read_saved_recipe
from lvlm.registry.registry import Registry
from lvlm.testing import Cross, batch_of, build_cross, numbers, token_rows
from lvlm_baseline.elbo import ElboParams
from lvlm_free.binary import Binary, BinaryParams
from lvlm_free.kv import KVParams
from lvlm_free.learned_query import LearnedQueryParams
from lvlm_free.mapper import TILE, code_bits, code_probabilities, group_gradient
from lvlm_gptvae.gaussian import Gaussian, GaussianParams

REGISTRY = Registry.load()

# ---------------------------------------------------------------------------------------------------- KL


@given(numbers((2, 3)), numbers((2, 3)))
def test_bernoulli_kl_is_the_sum_over_all_codes(q: Tensor, p: Tensor) -> None:
    log_q, log_p = (code_probabilities(x).log() for x in (q, p))
    enumerated = (log_q.exp() * (log_q - log_p)).sum(-1)
    torch.testing.assert_close(bernoulli_kl(q, p).sum(-1), enumerated, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(bernoulli_kl(q, p), kl_divergence(Bernoulli(logits=q), Bernoulli(logits=p)))


@given(numbers((3, 4), largest=1e4))
def test_bernoulli_kl_to_the_uniform_prior_is_between_0_and_log_2(q: Tensor) -> None:
    kl = bernoulli_kl(q, torch.zeros_like(q))
    assert (kl >= -1e-12).all()
    assert (kl <= math.log(2) + 1e-12).all()
    entropy = Independent(Bernoulli(logits=q), 1).entropy()
    torch.testing.assert_close(kl.sum(-1), 4 * math.log(2) - entropy, atol=1e-9, rtol=1e-9)


@given(numbers((4, 3), largest=5.0))
def test_gaussian_kl_is_that_of_torch_distributions(x: Tensor) -> None:
    q_mean, q_log_variance, p_mean, p_log_variance = x
    q, p = (Normal(m, (v / 2).exp()) for m, v in ((q_mean, q_log_variance), (p_mean, p_log_variance)))
    torch.testing.assert_close(
        gaussian_kl(q_mean, q_log_variance, p_mean, p_log_variance), kl_divergence(q, p), atol=1e-9, rtol=1e-7
    )
    torch.testing.assert_close(gaussian_log_prob(p_mean, q_mean, q_log_variance), q.log_prob(p_mean))


def test_gaussian_kl_to_the_standard_normal_by_hand() -> None:
    mean, log_variance = torch.tensor(1.5), torch.tensor(0.7)
    by_hand = (1.5**2 + math.exp(0.7) - 0.7 - 1) / 2
    zero = torch.zeros(())
    assert gaussian_kl(mean, log_variance, zero, zero).item() == pytest.approx(by_hand)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_kl_is_never_negative_near_the_prior_whatever_the_precision(dtype: torch.dtype) -> None:
    near = (torch.randn(1, 4000, 8, generator=torch.Generator().manual_seed(0)) * 1e-2).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for quantizer in (
            Binary(bits=8, bits_per_group=8, embedding_dim=4, embedding_std=0.1),
            Gaussian(dim=4, embedding_dim=4, embedding_std=0.1, log_variance_bound=10),
        ):
            kl = quantizer(near, torch.zeros_like(near)).kl_BSd
            assert kl.dtype == torch.float32
            assert kl.min() > -1e-7


# ------------------------------------------------------------------------------------------- straight-through


@given(numbers((64,)), numbers((64,)))
def test_straight_through_has_the_hard_value_to_the_last_bit_and_the_soft_gradient(
    hard: Tensor, soft: Tensor
) -> None:
    hard, soft = hard.float(), soft.float().requires_grad_()
    out = straight_through(hard, soft)
    assert torch.equal(out, hard)
    weight = torch.arange(64.0)
    (gradient,) = torch.autograd.grad((out * weight).sum(), soft)
    assert torch.equal(gradient, weight)


def dense(logits_NH: Tensor, table_RC: Tensor, codes_N: Tensor, bits_per_group: int) -> Tensor:
    """The paper's form, group by group: (one-hot + G - detach(G)) W."""
    out, row = torch.zeros(len(logits_NH), table_RC.shape[1], dtype=table_RC.dtype), 0
    for start in range(0, logits_NH.shape[1], bits_per_group):
        part = logits_NH[:, start : start + bits_per_group]
        size = 2 ** part.shape[1]
        one_hot = F.one_hot((codes_N >> start) % size, size).to(table_RC.dtype)
        one = part.sigmoid()[:, None, :]
        bits = code_bits(part.shape[1], part.device)
        probabilities = torch.where(bits.bool(), one, 1 - one).prod(-1)
        out = out + straight_through(one_hot, probabilities) @ table_RC[row : row + size]
        row += size
    return out


@pytest.mark.parametrize(
    ("bits", "group"), [(1, 1), (2, 1), (3, 3), (5, 2), (7, 3), (8, 8), (9, 4), (12, 12), (16, 1), (16, 8)]
)
def test_the_mapper_equals_its_dense_form_in_value_and_all_gradients(
    bits: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # several tiles both ways, the last ones short
    monkeypatch.setitem(TILE, "cpu", (3, 3 * 2 ** (group // 2)))
    torch.manual_seed(bits * 100 + group)
    mapper = Binary(bits=bits, bits_per_group=group, embedding_dim=6, embedding_std=1.0).double()
    logits = (2 * torch.randn(2, 5, bits, dtype=torch.float64)).requires_grad_()
    latent = mapper(logits, torch.zeros_like(logits))
    weight = torch.randn(2, 5, 6, dtype=torch.float64)
    ours = torch.autograd.grad((latent.embedding_BSC.tanh() * weight).sum(), [logits, mapper.table_RC])
    other = dense(logits.reshape(10, bits), mapper.table_RC, latent.codes.flatten(), group).view(2, 5, 6)
    torch.testing.assert_close(latent.embedding_BSC, other, atol=1e-12, rtol=1e-12)
    theirs = torch.autograd.grad((other.tanh() * weight).sum(), [logits, mapper.table_RC])
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-11, rtol=1e-9)


def test_under_autocast_the_mapper_multiplies_as_the_dense_form_would() -> None:
    torch.manual_seed(0)
    mapper = Binary(bits=8, bits_per_group=8, embedding_dim=32, embedding_std=1.0)
    half = torch.randn(2, 9, 8, dtype=torch.bfloat16).requires_grad_()
    wide = half.detach().float().requires_grad_()
    pull = torch.randn(2, 9, 32)

    def gradient(logits: Tensor) -> Tensor:
        latent = mapper(logits, torch.zeros(2, 9, 8), torch.Generator().manual_seed(0))
        assert latent.embedding_BSC.dtype == torch.float32
        return torch.autograd.grad((latent.embedding_BSC * pull).sum(), logits)[0].float()

    error = (gradient(half) - gradient(wide)).norm() / gradient(wide).norm()
    assert 0 < error < 0.01  # bfloat16 has 8 bits; 0 would be products in float32


def test_the_joint_mapper_returns_a_row_of_its_table_to_the_last_bit() -> None:
    mapper = Binary(bits=6, bits_per_group=6, embedding_dim=5, embedding_std=1.0)
    latent = mapper(torch.randn(3, 7, 6), torch.zeros(3, 7, 6))
    assert torch.equal(latent.embedding_BSC, mapper.table_RC[latent.codes])


@given(numbers((2, 4)), numbers((2, 16)))
def test_the_gradient_is_that_of_the_exact_expectation_for_a_linear_decoder(
    logits: Tensor, pull: Tensor
) -> None:
    logits.requires_grad_()
    (expected,) = torch.autograd.grad((code_probabilities(logits) * pull).sum(), logits)
    eye = torch.eye(16, dtype=torch.float64)
    torch.testing.assert_close(group_gradient(pull, logits.detach(), eye), expected, atol=1e-9, rtol=1e-9)


ESTIMATORS = ("exact", "bitwise", "gumbel", "reinforce")


def gradients(
    estimator: Any, decoder: Callable[[Tensor], Tensor], draws: int, **options: Any
) -> tuple[Tensor, Tensor]:
    """One gradient to the logits for each of many draws, [draws, 3]; and the exact one, by enumeration,
    [3].
    """
    torch.manual_seed(4)
    mapper = Binary(
        bits=3, bits_per_group=3, embedding_dim=4, embedding_std=1.0, estimator=estimator, **options
    ).double()
    logits = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64, requires_grad=True)
    many = logits.detach().expand(draws, 1, 3).clone().requires_grad_()
    latent = mapper(many, torch.zeros_like(many), torch.Generator().manual_seed(0))
    cost_BT = decoder(latent.embedding_BSC)
    total = cost_BT.sum()
    if latent.score_BS is not None:
        keep = torch.ones(draws, 1, dtype=torch.bool)
        total = total + score_function(
            cost_BT.detach(), latent.score_BS, Output.of_logits(cost_BT, latent, keep, Slots(1))
        )
    (each,) = torch.autograd.grad(total, many)
    every_code = mapper.given(torch.arange(8)[:, None]).embedding_BSC
    expected = (code_probabilities(logits[None])[0] * decoder(every_code)[:, 0]).sum()
    (exact,) = torch.autograd.grad(expected, logits)
    return each[:, 0], exact


def linear(embedding_BSC: Tensor) -> Tensor:
    return embedding_BSC @ torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)


def curved(embedding_BSC: Tensor) -> Tensor:
    return (2 * linear(embedding_BSC)).sin() * 3


@pytest.mark.parametrize(
    ("estimator", "decoder", "unbiased"),
    [
        ("exact", linear, True),
        ("bitwise", linear, True),
        ("gumbel", linear, False),
        ("reinforce", linear, True),
        ("exact", curved, False),
        ("bitwise", curved, False),
        ("gumbel", curved, False),
        ("reinforce", curved, True),
    ],
)
def test_the_bias_of_each_estimator_is_what_the_docs_say(
    estimator: str, decoder: Any, unbiased: bool
) -> None:
    each, exact = gradients(estimator, decoder, 40_000)
    bias, error = each.mean(0) - exact, each.std(0) / len(each) ** 0.5
    if unbiased:
        assert (bias.abs() <= 4.5 * error + 1e-12).all(), f"{bias} ± {error}"
    else:
        assert (bias.abs() > 6 * error).any(), f"{bias} ± {error}: no bias to be seen"


def test_the_noise_of_the_estimators() -> None:
    """For a linear decoder the paper's has none, one bit at a time has some, the score function more."""
    variance = {e: gradients(e, linear, 20_000)[0].var(0).sum().item() for e in ESTIMATORS}
    assert variance["exact"] < 1e-20
    assert 0.01 < variance["bitwise"] < variance["reinforce"]
    cold, hot = (gradients("gumbel", linear, 20_000, temperature=t)[0].var(0).sum() for t in (0.2, 2.0))
    assert hot < cold


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_all_estimators_give_the_same_value_and_train_the_table(estimator: Any) -> None:
    mapper = Binary(
        bits=5, bits_per_group=2, embedding_dim=3, embedding_std=1.0, estimator=estimator
    ).double()
    logits = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    latent = mapper(logits, torch.zeros_like(logits))
    assert torch.equal(latent.embedding_BSC, mapper.given(latent.codes).embedding_BSC)
    to_logits, to_table = torch.autograd.grad(
        latent.embedding_BSC.square().sum(), [logits, mapper.table_RC], allow_unused=True
    )
    assert to_table.abs().sum() > 0
    assert (to_logits is None or not to_logits.any()) == (estimator == "reinforce")


def test_the_temperature_follows_its_schedule() -> None:
    params = BinaryParams(bits=2, estimator="gumbel", temperature=Ramp(start=2.0, end=0.5, steps=10))
    mapper = params.build(embedding_dim=2)
    seen = []
    for step in (0, 5, 10, 99):
        mapper.at_step(step)
        seen.append(mapper.temperature_now)
    assert seen == [2.0, 1.25, 0.5, 0.5]


@pytest.mark.parametrize("per", [1, 2, None])
def test_the_score_function_charges_a_code_what_it_can_move(per: int | None) -> None:
    """The whole model: the mean over many draws is the gradient of the enumerated expectation."""
    recipe = Cross(
        LearnedQueryParams(per={1: "token", 2: 2, None: "sequence"}[per]),  # type: ignore[arg-type]
        BinaryParams(bits=1, estimator="reinforce"),
        KVParams(),
    )
    model = build_cross(recipe, REGISTRY, seed=1)
    assert model.latent is not None
    tokens = token_rows(1, 5, seed=2)
    batch = batch_of(tokens)
    weight = model.latent.readout.bias
    draws = 6000
    many = batch_of(tokens.expand(draws, -1))
    output = model(many.inputs_BT, generator=torch.Generator().manual_seed(0))
    assert output.latent is not None
    score_BS = output.latent.score_BS
    assert score_BS is not None
    ce_BT = cross_entropy_nats(output.logits_BTV, many.targets_BT).detach()
    rows = torch.stack([score_function(ce_BT, score_BS, output), reconstruction(output, many)[0]])
    estimated = [torch.autograd.grad(row, weight, retain_graph=True)[0].item() / draws for row in rows]
    assert estimated[0] == pytest.approx(estimated[1]), "nothing else may reach the posterior"

    latent = model(batch.inputs_BT).latent
    assert latent is not None
    assert latent.posterior_BSK is not None
    slots = latent.codes.shape[1]
    expected = torch.zeros((), dtype=torch.float64)
    for bits in itertools.product((0, 1), repeat=slots):
        codes = torch.tensor([bits])
        ce = cross_entropy_nats(model(batch.inputs_BT, z=codes).logits_BTV, batch.targets_BT).sum()
        expected = (
            expected + model.latent.quantizer.log_prob(codes, latent.posterior_BSK).sum().exp() * ce.detach()
        )
    (exact,) = torch.autograd.grad(expected, weight)
    # The spread of a draw's gradient is at most that of its cost times its score's.
    error = ce_BT.sum(-1).std() * slots**0.5 / draws**0.5
    assert abs(estimated[0] - exact.item()) < 4.5 * error.item()
    assert abs(exact.item()) > 3 * error.item(), "the test could not fail"


@pytest.mark.parametrize("estimator", ["exact", "bitwise", "gumbel"])
@pytest.mark.parametrize("how", ["checkpoint", "compile", "autocast"])
@pytest.mark.filterwarnings("ignore")  # torch's compiler has warnings of its own
def test_the_mapper_under_other_regimes(estimator: Any, how: str) -> None:
    """Activation checkpointing, torch.compile and autocast change no value and no gradient."""
    mapper = Binary(bits=6, bits_per_group=6, embedding_dim=5, embedding_std=1.0, estimator=estimator)

    def embed(logits: Tensor) -> Tensor:
        return mapper(logits, torch.zeros_like(logits), torch.Generator().manual_seed(0)).embedding_BSC

    def run(through: Callable[[Tensor], Tensor]) -> list[Tensor]:
        logits = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
        out = through(logits)
        return [out, *torch.autograd.grad(out.square().sum(), [logits, mapper.table_RC])]

    def autocast(logits: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return embed(logits)

    regimes: dict[str, Callable[[Tensor], Tensor]] = {
        "checkpoint": lambda logits: checkpoint(embed, logits, use_reentrant=False),
        "compile": torch.compile(embed, backend="aot_eager"),
        "autocast": autocast,
    }
    for one, other in zip(run(embed), run(regimes[how]), strict=True):
        torch.testing.assert_close(one, other)


def test_double_backward_is_refused_rather_than_wrong() -> None:
    mapper = Binary(bits=3, bits_per_group=3, embedding_dim=2, embedding_std=1.0)
    logits = torch.randn(1, 2, 3, requires_grad=True)
    out = mapper(logits, torch.zeros_like(logits)).embedding_BSC.square().sum()
    (gradient,) = torch.autograd.grad(out, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_prior_codes_are_uniform() -> None:
    mapper = Binary(bits=3, bits_per_group=3, embedding_dim=2, embedding_std=1.0)
    codes = mapper.sample(torch.zeros(1, 80_000, 3), torch.Generator().manual_seed(0)).codes
    counts = codes.flatten().bincount(minlength=8).double()
    chi_square = ((counts - 10_000).square() / 10_000).sum()
    assert chi_square < 24.3  # 0.999 quantile for 7 degrees of freedom


@pytest.mark.parametrize(
    "codes",
    [
        torch.tensor([[8]]),
        torch.tensor([[-1]]),
        torch.tensor([[0.5]]),
        torch.tensor([1]),
        torch.tensor([[True]]),
    ],
)
def test_binary_codes_that_do_not_fit_are_refused(codes: Tensor) -> None:
    with pytest.raises(UserError, match="code"):
        Binary(bits=3, bits_per_group=3, embedding_dim=2, embedding_std=1.0).given(codes)


@pytest.mark.parametrize("codes", [torch.zeros(1, 1, 3), torch.zeros(1, 2), torch.full((1, 1, 2), math.nan)])
def test_gaussian_codes_that_do_not_fit_are_refused(codes: Tensor) -> None:
    with pytest.raises(UserError, match="code"):
        Gaussian(dim=2, embedding_dim=2, embedding_std=1.0, log_variance_bound=10).given(codes)


@pytest.mark.parametrize("variance", ["own", "shared", 0.25])
def test_the_variance_of_a_gaussian(variance: Any) -> None:
    params = GaussianParams(dim=2, variance=variance, embedding_std=1.0)
    gaussian = params.build(embedding_dim=3).double()
    if variance == "shared":
        with torch.no_grad():
            gaussian.raw_log_variance_Z.copy_(torch.tensor([0.3, -1.0]))
    numbers = torch.randn(
        1, 1, gaussian.posterior_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    prior = torch.randn(1, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    many = numbers.expand(1, 50_000, -1)
    latent = gaussian(many, prior.expand(1, 50_000, -1), torch.Generator().manual_seed(0))
    assert latent.kl_BSd is not None
    bounded = lambda raw: 10 * (raw / 10).tanh()  # noqa: E731
    expected = {
        "own": lambda: bounded(numbers[0, 0, 2:]).exp(),
        "shared": lambda: bounded(torch.tensor([0.3, -1.0], dtype=torch.float64)).exp(),
        0.25: lambda: torch.tensor([0.25, 0.25], dtype=torch.float64),
    }[variance]()
    torch.testing.assert_close(latent.codes[0].var(0), expected, rtol=0.04, atol=0)
    q = Normal(numbers[0, 0, :2], expected.sqrt())
    p = Normal(prior[0, 0, :2], (bounded(prior[0, 0, 2:]) / 2).exp())
    torch.testing.assert_close(latent.kl_BSd[0, 0], kl_divergence(q, p), atol=1e-7, rtol=1e-7)
    log_prob = gaussian.log_prob(latent.codes, many)[0, 0]
    torch.testing.assert_close(log_prob, q.log_prob(latent.codes[0, 0]).sum(), atol=1e-6, rtol=1e-6)
    if variance == 0.25:
        floor = gaussian(torch.zeros(1, 1, 2), torch.zeros(1, 1, 4)).kl_BSd
        torch.testing.assert_close(floor, torch.full_like(floor, (0.25 - math.log(0.25) - 1) / 2))


# ------------------------------------------------------------------------------------------------ the
# objective

KL = torch.tensor([[[0.5, 0.3], [0.1, 0.0]], [[2.0, 1.0], [0.0, 0.0]]], dtype=torch.float64)
KEEP = torch.tensor([[True, True], [True, False]])


@pytest.mark.parametrize(
    ("shape", "per", "budget", "charged", "priced"),
    [
        ("hinge", "unit", 0.4, 0.1 + 1.6 + 0.6, 0.5 + 2.0 + 1.0),
        ("hinge", "slot", 0.5, 0.3 + 2.5, 0.8 + 3.0),
        ("hinge", "sequence", 0.6, 0.0 + 2.4, 3.0),
        ("hinge", "slot", 0.0, 3.9, 3.9),
        ("hinge", "slot", math.inf, 0.0, 0.0),
        ("hinge", "sequence", math.inf, 0.0, 0.0),
        ("mask", "unit", 0.4, 0.5 + 2.0 + 1.0, 0.5 + 2.0 + 1.0),
        ("mask", "slot", 0.5, 0.8 + 3.0, 0.8 + 3.0),
        ("target", "slot", 0.5, 0.3 + 0.4 + 2.5, 0.8 - 0.1 + 3.0),
        ("target", "unit", 0.4, 0.1 + 0.1 + 0.3 + 0.4 + 1.6 + 0.6, 0.5 - 0.3 - 0.1 - 0.0 + 2.0 + 1.0),
        ("target", "sequence", 0.6, 0.3 + 2.4, -0.9 + 3.0),
    ],
)
def test_local_terms_by_hand(shape: Any, per: Any, budget: float, charged: float, priced: float) -> None:
    kl = KL.clone().requires_grad_()
    term, raw_times_price = LocalTerm(shape, budget, per)(kl * KEEP[..., None], KEEP)
    assert term.item() == pytest.approx(charged)
    assert raw_times_price.item() == pytest.approx(priced)
    (gradient,) = torch.autograd.grad(term, kl)
    assert (gradient * kl).sum().item() == pytest.approx(priced)
    assert set(gradient.unique().tolist()) <= ({-1.0, 0.0, 1.0} if shape == "target" else {0.0, 1.0})
    assert gradient[1, 1].abs().sum() == 0, "padding is charged"


CONTROLLERS: dict[str, Callable[[float, Any], Controller]] = {
    "clamp": Clamp,
    "pid": lambda k, per: PID(k, per, proportional=0.2, integral=0.1),
    "lagrangian": lambda k, per: Lagrangian(k, per, rate=0.5, largest=2.0),
}


@pytest.mark.parametrize(
    ("name", "per", "prices"),
    [  # KL 1.3 a slot, or 0.7 and 0.6 a unit, against 1: then three times nothing
        ("clamp", "slot", [[1.0], [0.0], [0.0], [0.0]]),
        ("clamp", "unit", [[0.0, 0.0]] * 4),
        ("lagrangian", "slot", [[1.0], [1 - 0.5 - 1], [1 - 1.0 - 1], [1 - 1.5 - 1]]),
        (
            "lagrangian",
            "unit",
            [[1 - 0.15 - 0.3, 1 - 0.2 - 0.4], [-0.65, -0.7], [-1.15, -1.2], [-1.65, -1.7]],
        ),
        (
            "pid",
            "slot",
            [[0.2 * torch.sigmoid(torch.tensor(0.3)).item() + 0.03], *[[0.2 / (1 + math.e)]] * 3],
        ),
    ],
)
def test_controllers_by_hand(name: str, per: str, prices: list[list[float]]) -> None:
    mean = KL.sum((0, 1)) / 3
    budget = 1.0
    term = CONTROLLERS[name](budget, per)
    kl = (KL * KEEP[..., None] / mean * torch.tensor([0.7, 0.6], dtype=torch.float64)).requires_grad_()
    for number, price in enumerate(prices):
        seen = kl if number == 0 else kl * 0
        before = term.price_u
        charged, priced = term(seen, KEEP)
        slope = torch.autograd.grad(charged, kl)[0] if number == 0 else None
        if slope is not None:  # linear in the KL, at the price of the step before
            torch.testing.assert_close(slope, before.expand_as(kl))
        assert priced == charged
        term.after_step()
        assert term.price_u.tolist() == pytest.approx(price)


@pytest.mark.parametrize("name", CONTROLLERS)
@pytest.mark.parametrize("per", ["unit", "slot"])
def test_controllers_see_the_whole_step_whatever_its_pieces(name: str, per: str) -> None:
    whole, pieces, looking = (CONTROLLERS[name](0.4, per) for _ in range(3))
    looking.eval()
    kl = KL * KEEP[..., None]
    for _ in range(3):
        whole(kl, KEEP)
        for row in range(2):
            pieces(kl[row : row + 1], KEEP[row : row + 1])
        looking(kl, KEEP)
        for term in (whole, pieces, looking):
            term.after_step()
    torch.testing.assert_close(whole.price_u, pieces.price_u)
    assert looking.price_u.tolist() == [0.0], "a controller learns from an evaluation"
    resumed = CONTROLLERS[name](0.4, per)
    resumed.load_state_dict(whole.state_dict())
    for term in (whole, resumed):
        term(kl * 0.1, KEEP)
        term.after_step()
    torch.testing.assert_close(whole.price_u, resumed.price_u)


def two_ranks(rank: int, folder: str) -> None:
    """One of two processes, with one row each; rank 0 writes down the price."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    term = CONTROLLERS["lagrangian"](0.4, "unit")
    for _ in range(3):
        term((KL * KEEP[..., None])[rank : rank + 1], KEEP[rank : rank + 1])
        term.after_step()
    torch.save(term.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_controllers_agree_over_two_processes(tmp_path: Path) -> None:
    whole = CONTROLLERS["lagrangian"](0.4, "unit")
    for _ in range(3):
        whole(KL * KEEP[..., None], KEEP)
        whole.after_step()
    torch.multiprocessing.spawn(two_ranks, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)["_extra_state"]
        torch.testing.assert_close(state["price_u"], whole.price_u)


def test_a_pid_that_has_no_say_does_not_wind_up() -> None:
    batch, logits, kl = case()
    loss = ElboParams(term=PIDParams(), budget_bits=0.1, autoencoder_steps=50).build()
    term = loss.charge.term
    assert isinstance(term, PID)
    prices = []
    for step in range(60):
        loss(output_of(logits, kl, KEEP), batch, num_tokens=3, step=step)
        loss.after_step()
        prices.append(term.price_u.item())
    assert prices[:50] == [0.0] * 50
    assert 0 < prices[50] < prices[59]
    pace = PID(1.0, "slot", proportional=0.0, integral=0.01)
    pace.steer(torch.tensor([60.0], dtype=torch.float64))
    assert pace.price_u.item() == pytest.approx(0.01), (
        "one step far above its budget weighs like one far below"
    )


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["loss.term.kind=lagrangian", "model.prior=learned"], "this loss pays for KL that is missing"),
        (["loss.term.kind=lagrangian", "loss.budget_bits=0"], "steers to its budget"),
        (["loss.term.kind=target", "loss.budget_bits=.inf"], "steers to its budget"),
        (["loss.term.kind=pid", "loss.per=sequence"], "follows a mean over the batch"),
        (["loss.term.integral=0.5"], "loss.term.integral: unknown key 'integral'; known: kind"),
        (["loss.term=pid"], "loss.term: needs 'kind'; known: clamp, hinge, lagrangian"),
        (["loss.term.kind=pdi"], "unknown term 'pdi'; known: .*did you mean 'pid'"),
        (["loss.term={kind: pid, integral: 0, proportional: 0}"], "never charges anything"),
        (["loss.beta={start: 0, end: 1, steps: 9, cycle_steps: 5}"], "cycle_steps 5 are fewer"),
        (["loss.beta=.inf"], "finite"),
        (["model.quantizer.temperature=0.5"], "temperature does nothing with estimator 'exact'"),
        (["model.quantizer={estimator: gumbel, temperature: 0}"], "temperature must stay above 0"),
        (["model.quantizer={kind: gaussian, variance: 1e9}"], "lies outside log_variance_bound"),
        (["model.quantizer={kind: gaussian, log_variance_bound: .inf}"], "finite"),
        (
            [
                "model.quantizer=null",
                "model.encoder=null",
                "model.injection=null",
                "loss.kind=cross_entropy",
                "train.encoder_learning_rate_factor=3",
            ],
            "a learning rate of the encoder needs a latent",
        ),
    ],
)
def test_options_that_cannot_work_are_refused_in_words(overrides: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        read_recipe("free", overrides, registry=REGISTRY)


@pytest.mark.parametrize("name", ["lagrangian", "target"])
def test_a_two_sided_term_pulls_a_dead_latent_up(name: Any) -> None:
    """Nothing reads the code, so the ELBO alone would leave its KL at zero; a one-sided hinge does."""
    ends: dict[str, float] = {}
    for label in (name, "hinge"):
        loss = ElboParams(term=REGISTRY.get("term", label).params(), budget_bits=0.5).build()
        logits = torch.full((1, 1, 4), 0.01, requires_grad=True)
        optimiser = torch.optim.Adam([logits], lr=0.03)
        batch, ce, _ = case()
        batch, ce = (
            Batch(*(x[:1, :1] for x in (batch.inputs_BT, batch.targets_BT, batch.keep_BT))),
            ce[:1, :1],
        )
        for step in range(500):
            kl = bernoulli_kl(logits, torch.zeros_like(logits))
            optimiser.zero_grad()
            loss(output_of(ce, kl, KEEP[:1, :1]), batch, num_tokens=1, step=step).loss.backward()
            optimiser.step()
            loss.after_step()
        ends[label] = bernoulli_kl(logits, torch.zeros_like(logits)).sum().item()
    assert ends["hinge"] < 0.01 * NATS_PER_BIT
    assert ends[name] == pytest.approx(0.5 * NATS_PER_BIT, rel=0.1)


def case(*, vocab: int = 5) -> tuple[Batch, Tensor, Tensor]:
    torch.manual_seed(0)
    rows = torch.randint(vocab, (2, 3))
    batch = Batch(rows[:, :-1], rows[:, 1:].masked_fill(~KEEP, IGNORE), KEEP)
    return batch, torch.randn(2, 2, vocab, dtype=torch.float64), KL.clone().requires_grad_()


def output_of(logits: Tensor, kl: Tensor, keep: Tensor) -> Output:
    zeros = torch.zeros_like(kl)
    return Output.of_logits(logits, Latent(zeros[..., 0].long(), zeros, kl, zeros, zeros), keep, Slots(1))


@given(st.sampled_from(["unit", "slot", "sequence"]), st.floats(0, 3), st.floats(0, 2))
def test_one_nat_of_kl_costs_beta_over_the_number_of_targets(per: Any, budget: float, beta: float) -> None:
    batch, logits, kl = case()
    loss = ElboParams(budget_bits=budget, per=per, beta=beta).build()
    terms = loss(output_of(logits, kl, KEEP), batch, num_tokens=batch.num_targets, step=0)
    (slope,) = torch.autograd.grad(terms.loss, kl)
    prices = slope * batch.num_targets
    assert all(
        price == pytest.approx(0) or price == pytest.approx(beta) for price in prices.flatten().tolist()
    )
    logged = per_token({k: float(v) for k, v in terms.sums.items()}, batch.num_targets)
    raw = KL[KEEP].sum().item()
    assert logged["kl"] == pytest.approx(raw / batch.num_targets)
    assert logged["beta_effective"] == pytest.approx((prices * KL).sum().item() / raw)
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), batch.targets_BT.flatten(), ignore_index=IGNORE)
    assert logged["ce_posterior"] == pytest.approx(cross_entropy.item())
    expected = logged["ce_posterior"] + beta * logged["kl_hinged"]
    assert terms.loss.item() == pytest.approx(expected)


def test_beta_follows_its_schedule() -> None:
    batch, logits, kl = case()
    loss = ElboParams(beta=Ramp(start=0.5, end=2.0, steps=3)).build()
    priced = [
        loss(output_of(logits, kl, KEEP), batch, num_tokens=3, step=step).sums["kl_priced"].item()
        for step in range(6)
    ]
    raw = KL[KEEP].sum().item()
    assert priced == pytest.approx([raw * beta for beta in (0.5, 1.0, 1.5, 2.0, 2.0, 2.0)])
    again = ElboParams(beta=Ramp(end=1.0, steps=2, cycle_steps=4), autoencoder_steps=3).build()
    priced = [
        again(output_of(logits, kl, KEEP), batch, num_tokens=3, step=step).sums["kl_priced"].item()
        for step in range(9)
    ]
    assert priced == pytest.approx([raw * beta for beta in (0, 0, 0, 0, 0.5, 1, 1, 0, 0.5)])


def test_a_ramp_may_begin_later() -> None:
    ramp = Ramp(start=8, end=64, steps=2, after=3)
    assert [value_at(ramp, step) for step in range(7)] == [8, 8, 8, 8, 36, 64, 64]
    ramp = Ramp(end=1, steps=2, after=1, cycle_steps=2)
    assert [value_at(ramp, step) for step in range(6)] == [0, 0, 0.5, 0, 0.5, 0]


@pytest.mark.parametrize("duplicated", [False, True])
@pytest.mark.parametrize("term", ["hinge", "mask", "target"])
@pytest.mark.parametrize("per", ["unit", "slot", "sequence"])
def test_padding_and_duplicating_leave_the_loss_unchanged(term: Any, per: Any, duplicated: bool) -> None:
    batch, logits, kl = case()
    loss = ElboParams(term=REGISTRY.get("term", term).params(), per=per, budget_bits=0.5).build()
    whole = loss(output_of(logits, kl, KEEP), batch, num_tokens=batch.num_targets, step=0).loss
    if duplicated:
        twice = Batch(*(x.repeat(2, 1) for x in (batch.inputs_BT, batch.targets_BT, batch.keep_BT)))
        out = output_of(logits.repeat(2, 1, 1), kl.repeat(2, 1, 1), KEEP.repeat(2, 1))
        again = loss(out, twice, num_tokens=twice.num_targets, step=0).loss
    else:
        longer = Batch(
            F.pad(batch.inputs_BT, (0, 3)), F.pad(batch.targets_BT, (0, 3), value=IGNORE), F.pad(KEEP, (0, 3))
        )
        out = output_of(F.pad(logits, (0, 0, 0, 3)), F.pad(kl, (0, 0, 0, 3), value=7.0), F.pad(KEEP, (0, 3)))
        again = loss(out, longer, num_tokens=longer.num_targets, step=0).loss
    torch.testing.assert_close(again, whole)


def test_all_codes_of_a_few_bits_are_told_apart() -> None:
    bits = code_bits(3, torch.device("cpu"))
    assert [tuple(row) for row in bits.tolist()] == [
        tuple(reversed(b)) for b in itertools.product((0, 1), repeat=3)
    ]


def test_a_recipe_of_an_older_run_has_its_term_as_a_word() -> None:
    """Lvlm 0.1 saved `term: pid` with the options of every term beside it."""
    old = {
        "kind": "elbo",
        "term": "pid",
        "per": "slot",
        "budget_bits": 0.5,
        "pid_proportional": 0.2,
        "pid_integral": 0.1,
        "lagrangian_rate": 0.01,
        "lagrangian_largest": 10.0,
    }
    with pytest.raises(UserError, match="loss.term: needs 'kind'"):
        read_recipe({"extends": "free", "loss": old}, registry=REGISTRY)
    whole = read_recipe("free", registry=REGISTRY).recipe.model_dump(mode="json")

    def saved(loss: dict[str, Any]) -> Any:
        content = json.dumps(whole | {"loss": loss}).encode()  # JSON is YAML
        return read_saved_recipe(content, "recipe.yaml", registry=REGISTRY).recipe.loss

    loss = saved(old)
    assert loss.model_dump()["term"] == {"kind": "pid", "proportional": 0.2, "integral": 0.1}
    assert saved(loss.model_dump(mode="json")) == loss
