"""Families of codes: categorical, signs (LFQ, BSQ), residual FSQ and directions on a sphere."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from pydantic import ValidationError
from scipy.integrate import quad
from scipy.special import ive
from scipy.stats import kstest, vonmises_fisher
from torch import Tensor

import lvlm
from lvlm.errors import UserError
from lvlm.interfaces import Case, QuantizerParams, Ramp, RowGenerator, exponential
from lvlm.likelihood import EstimatorParams
from lvlm.model.latent_lm import LatentLM
from lvlm.model.precision import convert
from lvlm.registry.registry import Registry
from lvlm.testing import Cross, build_cross, check_kind, numbers, randomise
from lvlm.testing.estimators import check_bound, check_rows
from lvlm_codebooks.bsq import BSQParams
from lvlm_codebooks.categorical import Categorical, CategoricalParams
from lvlm_codebooks.lfq import LFQParams
from lvlm_codebooks.residual_fsq import ResidualFSQ, ResidualFSQParams
from lvlm_codebooks.signs import Signs
from lvlm_free.add import AddParams
from lvlm_free.learned_query import LearnedQueryParams
from lvlm_gptvae.vmf import VMF, VMFParams, angle_of
from tests.tiny import logged, tiny, write_text

REGISTRY = Registry.load(strict=True)
KINDS: dict[str, QuantizerParams] = {
    "categorical": CategoricalParams(codes=5),
    "categorical exact": CategoricalParams(codes=5, estimator="exact"),
    "categorical cold": CategoricalParams(codes=5, temperature=0.3),
    "lfq": LFQParams(bits=3),
    "lfq of one bit": LFQParams(bits=1),
    "lfq without entropy": LFQParams(bits=3, entropy=0.0),
    "lfq without diversity": LFQParams(bits=3, diversity=0.0),
    "bsq": BSQParams(bits=4, sharpness=3.0, commitment=0.1),
    "residual_fsq": ResidualFSQParams(levels=[3, 2]),
    "residual_fsq of three stages": ResidualFSQParams(levels=[4], stages=3),
    "vmf": VMFParams(dim=3, kappa=4.0),
    "vmf on a circle": VMFParams(dim=2, kappa=0.5),
    "vmf, sure": VMFParams(dim=17, kappa=2000.0),
}


@pytest.mark.parametrize("params", KINDS.values(), ids=KINDS)
def test_kinds_conform(params: QuantizerParams) -> None:
    if not isinstance(params, CategoricalParams | VMFParams):
        pytest.importorskip("vector_quantize_pytorch")
    check_kind(params)


def draws(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------- categorical


def categorical(codes: int = 4, **options: Any) -> Categorical:
    """With a random table, for embeddings of 3 numbers, in float64."""
    return randomise(Categorical(codes=codes, embedding_dim=3, embedding_std=0.0, **options).double())


@given(numbers((1, 2, 4)), numbers((1, 2, 4)))
def test_the_kl_of_a_categorical_is_that_of_torch(q: Tensor, p: Tensor) -> None:
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=q), torch.distributions.Categorical(logits=p)
    )
    torch.testing.assert_close(categorical()(q, p).kl_BSd[..., 0], theirs, atol=1e-9, rtol=1e-9)


@given(numbers((1, 1, 4)), numbers((1, 1, 4)))
def test_the_kl_of_a_categorical_is_the_sum_over_its_codes(q: Tensor, p: Tensor) -> None:
    quantizer, codes = categorical(), torch.arange(4)[:, None]
    log_q, log_p = (quantizer.log_prob(codes, x.expand(4, 1, 4))[:, 0] for x in (q, p))
    assert log_q.exp().sum().item() == pytest.approx(1)
    by_hand = (log_q.exp() * (log_q - log_p)).sum()
    torch.testing.assert_close(quantizer(q, p).kl_BSd.sum(), by_hand, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("what", ["forward", "sample"])
def test_a_categorical_draws_its_codes_as_often_as_it_says(what: str) -> None:
    quantizer, many = categorical(), 40_000
    numbers_BSN = torch.tensor([0.0, 1.0, -1.0, 2.0]).double().expand(1, many, 4)
    generator = torch.Generator().manual_seed(0)
    drawn = (
        quantizer(numbers_BSN, numbers_BSN, generator)
        if what == "forward"
        else quantizer.sample(numbers_BSN, generator)
    )
    share = drawn.codes.flatten().bincount(minlength=4) / many
    expected = numbers_BSN[0, 0].softmax(-1)
    assert ((share - expected).abs() < 5 * (expected / many).sqrt()).all()


@pytest.mark.parametrize("estimator", ["gumbel", "exact"])
def test_straight_through_equals_the_dense_formula(estimator: str) -> None:
    """(Y + y - detach(y)) W, with Y the one-hot of the code, and the same noise."""
    temperature = 0.7 if estimator == "gumbel" else 1.0
    quantizer = categorical(estimator=estimator, temperature=temperature)
    logits_BSN, prior_BSN, weight_BSC = (
        draws(2, 5, 4).requires_grad_(),
        draws(2, 5, 4, seed=1),
        draws(2, 5, 3),
    )
    latent = quantizer(logits_BSN, prior_BSN, RowGenerator([7, 8]))
    wanted = (logits_BSN, quantizer.table_NC)
    ours = torch.autograd.grad((latent.embedding_BSC * weight_BSC).sum(), wanted)

    race = exponential((2, 5, 4), RowGenerator([7, 8]), device=logits_BSN.device, dtype=torch.float64)
    noisy_BSN = logits_BSN - race.log()
    hard_BSN = F.one_hot(noisy_BSN.argmax(-1), 4).double()
    soft_BSN = (noisy_BSN / temperature if estimator == "gumbel" else logits_BSN).softmax(-1)
    embedding_BSC = (hard_BSN + soft_BSN - soft_BSN.detach()) @ quantizer.table_NC
    theirs = torch.autograd.grad((embedding_BSC * weight_BSC).sum(), logits_BSN, retain_graph=True)
    of_table = torch.autograd.grad((hard_BSN @ quantizer.table_NC * weight_BSC).sum(), quantizer.table_NC)
    assert torch.equal(latent.codes, noisy_BSN.argmax(-1))
    assert torch.equal(latent.embedding_BSC, quantizer.table_NC[latent.codes]), "not a row to the last bit"
    for one, other in zip(ours, (*theirs, *of_table), strict=True):
        torch.testing.assert_close(one, other)


def gradients_of(estimator: str, many: int, bend: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean gradient to the logits and its standard error over draws, and the gradient of the expectation, of
    the loss w·e + bend · |e|^2.
    """
    quantizer = categorical(estimator=estimator)
    logits_N, weight_C = draws(4, seed=2), draws(3, seed=3)

    def loss(embedding: Tensor) -> Tensor:
        return embedding @ weight_C + bend * embedding.square().sum(-1)

    exact_N = logits_N.clone().requires_grad_()
    (truth,) = torch.autograd.grad((exact_N.softmax(-1) * loss(quantizer.table_NC.detach())).sum(), exact_N)
    logits_BSN = logits_N.expand(many, 1, 4).clone().requires_grad_()
    latent = quantizer(logits_BSN, torch.zeros(many, 1, 4).double(), torch.Generator().manual_seed(0))
    total = loss(latent.embedding_BSC).sum()
    if latent.score_BS is not None:
        total = (loss(latent.embedding_BSC).detach() * latent.score_BS).sum()
    (found,) = torch.autograd.grad(total, logits_BSN)
    return found.mean((0, 1)), found.std((0, 1)) / many**0.5, truth


@pytest.mark.parametrize(("estimator", "bend"), [("exact", 0.0), ("reinforce", 0.0), ("reinforce", 2.0)])
def test_gradients_that_are_said_to_be_unbiased_are(estimator: str, bend: float) -> None:
    mean, error, truth = gradients_of(estimator, 40_000, bend)
    assert ((mean - truth).abs() <= 5 * error + 1e-9).all()
    assert truth.abs().max() > 0.05


def test_gumbel_is_biased_and_less_so_when_cold() -> None:
    off = []
    for temperature in (2.0, 0.2):
        quantizer = categorical(temperature=temperature)
        logits_BSN = draws(4, seed=2).expand(40_000, 1, 4).clone().requires_grad_()
        weight_C = draws(3, seed=3)
        embedding = quantizer(logits_BSN, torch.zeros_like(logits_BSN), torch.Generator().manual_seed(0))
        (found,) = torch.autograd.grad((embedding.embedding_BSC @ weight_C).sum(), logits_BSN)
        exact_N = draws(4, seed=2).requires_grad_()
        (truth,) = torch.autograd.grad(
            (exact_N.softmax(-1) @ quantizer.table_NC.detach()) @ weight_C, exact_N
        )
        off.append((found.mean((0, 1)) - truth).norm() / truth.norm())
    assert off[1] < off[0] / 2


def test_the_temperature_follows_its_schedule() -> None:
    quantizer = CategoricalParams(codes=4, temperature=Ramp(start=2.0, end=0.5, steps=10)).build(
        embedding_dim=3
    )
    found = []
    for step in (0, 5, 10, 100):
        quantizer.at_step(step)
        found.append(quantizer.temperature_now)
    assert found == [2.0, 1.25, 0.5, 0.5]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"temperature": 0.0}, "temperature must stay above 0"),
        ({"temperature": Ramp(start=1.0, end=0.0, steps=3)}, "temperature must stay above 0"),
        ({"temperature": 0.5, "estimator": "exact"}, "temperature does nothing with estimator 'exact'"),
        ({"codes": 1}, "greater than or equal to 2"),
    ],
)
def test_options_of_a_categorical_that_say_nothing_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        CategoricalParams(**options)


def estimated(per: object) -> LatentLM:
    """A tiny random model with categorical codes, not too sure of them."""
    encoder = LearnedQueryParams().model_copy(update={"per": per})
    model = build_cross(Cross(encoder, CategoricalParams(codes=3), AddParams(), prior="learned"), REGISTRY)
    assert model.latent is not None
    assert model.latent.prior_head is not None
    with torch.no_grad():
        for head in (model.latent.readout, model.latent.prior_head):
            for parameter in head.parameters():
                parameter.mul_(0.2)
    return model.eval()


ESTIMATORS: dict[str, Any] = {
    name: kind.params.example()
    for name, kind in REGISTRY.kinds["estimator"].items()
    if issubclass(kind.params, EstimatorParams)
}


@pytest.mark.parametrize("per", ["token", 2, "sequence"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_are_right_for_categorical_codes_by_enumeration(name: str, per: object) -> None:
    model = estimated(per)
    with torch.no_grad():
        check_rows(ESTIMATORS[name], model)
        check_bound(ESTIMATORS[name], model, 3 if ESTIMATORS[name].has_k else 1)


# ------------------------------------------------------------------------------------------------- signs

SIGNS: dict[str, Any] = {
    "lfq": LFQParams(bits=3),
    "bsq": BSQParams(bits=3, sharpness=2.0, commitment=0.5),
    "one bit": LFQParams(bits=1, sharpness=0.5, entropy=0.7, diversity=0.4),
}
signs = pytest.mark.parametrize("params", SIGNS.values(), ids=SIGNS)


def signed(params: Any) -> Signs:
    """The quantizer in float64, with random weights and usage."""
    pytest.importorskip("vector_quantize_pytorch")
    quantizer: Signs = randomise(params.build(embedding_dim=4).double())
    return quantizer


@signs
def test_number_h_gives_bit_h_and_the_corner_has_its_sign(params: Any) -> None:
    quantizer = signed(params)
    z_BSH = draws(2, 30, params.bits)
    latent = quantizer(z_BSH, torch.zeros(2, 30, 2**params.bits).double())
    for row, slot in itertools.product(range(2), range(30)):
        by_hand = sum(2**h for h in range(params.bits) if z_BSH[row, slot, h] > 0)
        assert latent.codes[row, slot] == by_hand
    vectors_BSH = quantizer.vectors(latent.codes)
    assert torch.equal(vectors_BSH.sign(), z_BSH.sign())
    length = 1.0 if params.kind == "bsq" else params.bits**0.5
    torch.testing.assert_close(vectors_BSH.norm(dim=-1), torch.full((2, 30), length).double())
    assert len(quantizer.units) == params.bits
    for bit in range(params.bits):
        changed = quantizer.vectors(quantizer.with_unit_changed(latent.codes, bit))
        assert (changed != vectors_BSH).nonzero()[:, -1].unique().tolist() == [bit]


@signs
def test_the_kl_of_signs_is_the_code_s_length_under_the_fixed_prior(params: Any) -> None:
    quantizer = signed(params)
    latent = quantizer(draws(2, 5, params.bits), torch.zeros(2, 5, 2**params.bits).double())
    torch.testing.assert_close(latent.kl_BSd, torch.full((2, 5, 1), params.bits * math.log(2)).double())


def penalty_by_hand(params: Any, z_BSH: Tensor, usage_H: Tensor) -> Tensor:
    """The penalty of each slot by enumeration of all corners, with the usage held."""
    bits, size = params.bits, params.bits**-0.5 if params.kind == "bsq" else 1.0
    if params.kind == "bsq":
        z_BSH = z_BSH / z_BSH.norm(dim=-1, keepdim=True)
    corners_NH = torch.tensor(list(itertools.product((-size, size), repeat=bits))).double()
    distance_BSN = (z_BSH[..., None, :] - corners_NH).square().sum(-1)
    q_BSN = (-params.sharpness * distance_BSN).softmax(-1)
    entropy_BS = -(q_BSN * q_BSN.log()).sum(-1)
    used_N = torch.where(corners_NH > 0, usage_H, 1 - usage_H).log().sum(-1)
    diversity_BS = -(q_BSN * used_N).sum(-1)
    entropies_BS = entropy_BS - params.diversity * diversity_BS
    return params.entropy / params.sharpness * entropies_BS + params.commitment * distance_BSN.amin(-1)


@signs
def test_the_penalty_is_that_of_all_corners(params: Any) -> None:
    quantizer = signed(params)
    assert quantizer.usage_H is not None
    z_BSH = draws(2, 5, params.bits).requires_grad_()
    latent = quantizer(z_BSH, torch.zeros(2, 5, 2**params.bits).double())
    by_hand = penalty_by_hand(params, z_BSH, quantizer.usage_H.detach().sigmoid())
    torch.testing.assert_close(latent.penalty_BS, by_hand)
    one, other = (torch.autograd.grad(x.sum(), z_BSH)[0] for x in (latent.penalty_BS, by_hand))
    torch.testing.assert_close(one, other)


@signs
def test_at_the_mean_usage_the_diversity_is_the_papers(params: Any) -> None:
    """The mean over slots and its gradient are those of h(mean q), and the usage has come to rest."""
    quantizer = signed(params.model_copy(update={"commitment": 0.0}))
    assert quantizer.usage_H is not None
    z_BSH = draws(4, 6, params.bits).requires_grad_()
    q_BSH = (4 * params.sharpness * quantizer.size * quantizer.bounded(z_BSH)).sigmoid()
    with torch.no_grad():
        quantizer.usage_H.copy_(q_BSH.mean((0, 1)).logit())
    latent = quantizer(z_BSH, torch.zeros(4, 6, 2**params.bits).double())

    def entropy(q: Tensor) -> Tensor:
        return -(q * q.log() + (1 - q) * (1 - q).log())

    mean = entropy(q_BSH).sum(-1).mean() - params.diversity * entropy(q_BSH.mean((0, 1))).sum()
    papers = params.entropy / params.sharpness * mean
    torch.testing.assert_close(latent.penalty_BS.mean(), papers)
    of_z, of_usage = torch.autograd.grad(latent.penalty_BS.mean(), (z_BSH, quantizer.usage_H))
    torch.testing.assert_close(of_z, torch.autograd.grad(papers, z_BSH)[0])
    assert of_usage.abs().max() < 1e-9


def test_the_entropies_are_the_library_s() -> None:
    """With one bit, whose joint entropy is that of the bit; the library adds 1e-5 to what it takes logs of."""
    vq = pytest.importorskip("vector_quantize_pytorch")
    for params in (
        LFQParams(bits=1, sharpness=0.3, commitment=0.0),
        LFQParams(bits=3, sharpness=0.3, diversity=0),
    ):
        theirs = vq.LFQ(dim=params.bits).train()
        z_BSH = draws(4, 50, params.bits).float()
        _, found = theirs(z_BSH, inv_temperature=params.sharpness, return_loss_breakdown=True)
        quantizer = signed(params)
        of_library = found.per_sample_entropy
        if quantizer.usage_H is not None:
            q_BSH = (4 * params.sharpness * z_BSH.double()).sigmoid()
            with torch.no_grad():
                quantizer.usage_H.copy_(q_BSH.mean((0, 1)).logit())
            of_library = of_library - found.batch_entropy
        ours = quantizer.penalty(z_BSH.double(), z_BSH.double()).mean() * params.sharpness / params.entropy
        assert ours.item() == pytest.approx(of_library.item(), abs=1e-4)


def test_usage_follows_the_bits_and_padding_has_no_part_in_it() -> None:
    quantizer = signed(LFQParams(bits=2, sharpness=0.5))
    assert quantizer.usage_H is not None
    optimiser = torch.optim.Adam([quantizer.usage_H], lr=0.05)
    z_BSH, keep_BS = draws(8, 10, 2) + 1, torch.rand(8, 10, generator=torch.Generator().manual_seed(1)) < 0.5
    z_BSH[~keep_BS] = -50.0
    for _ in range(400):
        optimiser.zero_grad()
        (quantizer.penalty(z_BSH, z_BSH) * keep_BS).sum().backward()
        optimiser.step()
    wanted = (4 * 0.5 * z_BSH[keep_BS]).sigmoid().mean(0)
    torch.testing.assert_close(quantizer.usage_H.detach().sigmoid(), wanted, atol=1e-3, rtol=0)


def test_the_diversity_spreads_codes() -> None:
    """Numbers that all have the same signs come apart where it is on, and don't where it is off."""
    shares = {}
    for diversity in (0.0, 2.0):
        quantizer = signed(LFQParams(bits=1, sharpness=0.5, entropy=1.0, diversity=diversity, commitment=0.0))
        z_BSH = (0.2 * draws(1, 64, 1) + 1).requires_grad_()
        optimiser = torch.optim.Adam([z_BSH, *quantizer.parameters()], lr=0.05)
        for _ in range(300):
            optimiser.zero_grad()
            quantizer.penalty(z_BSH, z_BSH.detach()).sum().backward()
            optimiser.step()
        shares[diversity] = (z_BSH > 0).double().mean().item()
    assert shares[0.0] == 1
    assert 0.1 < shares[2.0] < 0.9


def test_a_bsq_slot_at_zero_has_a_finite_gradient() -> None:
    quantizer = signed(BSQParams(bits=3))
    z_BSH = torch.zeros(1, 1, 3, dtype=torch.float64, requires_grad=True)
    latent = quantizer(z_BSH, torch.zeros(1, 1, 8).double())
    (gradient,) = torch.autograd.grad(latent.embedding_BSC.sum() + latent.penalty_BS.sum(), z_BSH)
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 1e4


# ----------------------------------------------------------------------------------------- residual fsq

STAGED = [([3, 2], 2), ([4], 3), ([5, 5], 2), ([2, 2, 2], 3), ([16], 2)]
staged = pytest.mark.parametrize(("levels", "stages"), STAGED)


def residual(levels: list[int], stages: int) -> ResidualFSQ:
    """For embeddings of 4 numbers, in float64."""
    pytest.importorskip("vector_quantize_pytorch")
    return ResidualFSQ(levels=levels, stages=stages, embedding_dim=4, embedding_std=1.0).double()


@staged
def test_codes_of_stages_are_vectors_of_their_own_and_are_found_again(levels: list[int], stages: int) -> None:
    quantizer = residual(levels, stages)
    count = math.prod(levels) ** stages
    assert quantizer.num_codes == count
    vectors_1NK = quantizer.vectors(torch.arange(count)[None])
    assert len(vectors_1NK[0].unique(dim=0)) == count
    bound_K = 1 + 1 / (torch.tensor(levels).double() - 1)
    numbers_1NK = bound_K * torch.atanh(vectors_1NK / bound_K)
    assert torch.equal(quantizer.find(numbers_1NK)[0], torch.arange(count)[None])


@staged
def test_a_code_is_the_product_index_of_the_library_s_stages(levels: list[int], stages: int) -> None:
    quantizer, points = residual(levels, stages), math.prod(levels)
    z_BSK = 2 * draws(3, 40, len(levels))
    values_BSK, indices_BSQ = quantizer.rfsq(z_BSK)
    codes_BS, _ = quantizer.find(z_BSK)
    for row, slot in itertools.product(range(3), range(40)):
        parts = indices_BSQ[row, slot].tolist()
        assert codes_BS[row, slot] == sum(part * points**stage for stage, part in enumerate(parts))
    torch.testing.assert_close(quantizer.vectors(codes_BS), values_BSK, atol=1e-6, rtol=1e-6)


@staged
def test_a_stage_more_is_as_much_nearer_as_its_grid_is_finer(levels: list[int], stages: int) -> None:
    quantizer = residual(levels, stages)
    bound_K = 1 + 1 / (torch.tensor(levels).double() - 1)
    z_BSK = draws(3, 100, len(levels))
    codes_BS, bounded_BSK = quantizer.find(z_BSK)
    torch.testing.assert_close(bounded_BSK, bound_K * torch.tanh(z_BSK / bound_K))
    off = (quantizer.vectors(codes_BS) - bounded_BSK).abs().amax((0, 1))
    finest = torch.tensor(levels).double() ** (1 - stages) / (torch.tensor(levels) - 1)
    assert (off <= finest + 1e-6).all()


def test_the_gradient_is_that_of_the_bound_once_and_not_of_every_stage() -> None:
    quantizer = residual([5, 5], 3)
    z_BSK = (0.3 * draws(2, 9, 2)).requires_grad_()
    value = quantizer(z_BSK, torch.zeros(2, 9, quantizer.prior_dim).double()).embedding_BSC
    _, bounded_BSK = quantizer.find(z_BSK)
    ours, bound, library = (
        torch.autograd.grad(x, z_BSK)[0]
        for x in (value.sum(), quantizer.embedding(bounded_BSK).sum(), quantizer.rfsq(z_BSK)[0].sum())
    )
    torch.testing.assert_close(ours, bound)
    (once,) = torch.autograd.grad(quantizer.find(z_BSK)[1].sum(), z_BSK)
    counts = library / once  # the stages that aren't at the end of their grid
    torch.testing.assert_close(counts, counts.round())
    assert counts.round().unique().tolist() == [1, 2, 3]


def test_codes_of_stages_are_bounded() -> None:
    with pytest.raises(ValidationError, match="3 stages of 64 points are 262144 codes; at most 65536"):
        ResidualFSQParams(levels=[4, 4, 4], stages=3)
    for options in ({"levels": []}, {"stages": 1}, {"levels": [1]}):
        with pytest.raises(ValidationError):
            ResidualFSQParams(**options)


# ------------------------------------------------------------------------------------------------- sphere

SPHERES = [(2, 0.5), (2, 300.0), (3, 4.0), (4, 1e-3), (16, 32.0), (65, 200.0), (5, 10_000.0)]
spheres = pytest.mark.parametrize(("dim", "kappa"), SPHERES)


def sphere(dim: int, kappa: float) -> VMF:
    """For embeddings of 4 numbers, in float64."""
    return randomise(VMF(dim=dim, kappa=kappa, embedding_dim=4, embedding_std=0.0).double())


def none(rows: int, slots: int) -> Tensor:
    """The numbers of its prior, of which there are none."""
    return torch.zeros(rows, slots, 0, dtype=torch.float64)


@spheres
def test_the_kl_of_a_direction_is_the_closed_form_of_bessel_functions(dim: int, kappa: float) -> None:
    order = dim / 2 - 1
    log_bessel = math.log(ive(order, kappa)) + kappa
    log_normaliser = order * math.log(kappa) - dim / 2 * math.log(2 * math.pi) - log_bessel
    log_area = math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)
    closed = kappa * ive(dim / 2, kappa) / ive(order, kappa) + log_normaliser + log_area
    quantizer = sphere(dim, kappa)
    assert quantizer.kl_nats == pytest.approx(closed, rel=1e-9, abs=1e-10)
    latent = quantizer(draws(2, 3, dim), none(2, 3))
    assert latent.kl_BSd.tolist() == [[[quantizer.kl_nats]] * 3] * 2, (
        "it is the same whatever the numbers are"
    )


@spheres
def test_log_densities_are_scipy_s(dim: int, kappa: float) -> None:
    quantizer = sphere(dim, kappa)
    numbers_BSZ = draws(1, 5, dim)
    latent = quantizer(numbers_BSZ, none(1, 5), torch.Generator().manual_seed(0))
    ours = quantizer.log_prob(latent.codes, numbers_BSZ)[0]
    prior = quantizer.log_prob(latent.codes, none(1, 5))[0]
    log_area = math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)
    torch.testing.assert_close(prior, torch.full((5,), -log_area).double())
    for slot in range(5):
        mean = F.normalize(numbers_BSZ[0, slot], dim=-1).numpy()
        theirs = vonmises_fisher(mean, kappa).logpdf(latent.codes[0, slot].detach().numpy())
        assert ours[slot].item() == pytest.approx(float(theirs), rel=1e-6, abs=1e-6)


@spheres
def test_the_table_of_angles_is_the_integral_of_their_density(dim: int, kappa: float) -> None:
    angle = angle_of(dim, kappa)
    likeliest = angle.edges[1:-1][angle.density[1:-1].argmax()]

    def density(t: float) -> float:
        along = 2 * kappa * (math.sin(likeliest / 2) ** 2 - math.sin(t / 2) ** 2)
        return math.exp(along + (dim - 2) * math.log(math.sin(t) / math.sin(likeliest)))

    places = [int(place) for place in np.searchsorted(angle.cumulative, [0.0, 0.01, 0.2, 0.5, 0.9, 0.999])]
    pieces = [
        quad(density, angle.edges[a], angle.edges[b], epsabs=0, epsrel=1e-11, limit=200)[0]
        for a, b in itertools.pairwise([*places, len(angle.edges) - 1])
    ]
    assert np.diff(angle.cumulative[[*places, -1]]) == pytest.approx(np.array(pieces) / sum(pieces), rel=1e-8)


@spheres
def test_draws_lie_on_the_sphere_at_the_angles_of_the_table(dim: int, kappa: float) -> None:
    quantizer, many = sphere(dim, kappa), 20_000
    numbers_BSZ = draws(1, 1, dim).expand(1, many, dim)
    codes = quantizer(numbers_BSZ, none(1, many), torch.Generator().manual_seed(1)).codes[0]
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones(many).double(), rtol=0, atol=1e-12)
    chord = (codes - F.normalize(numbers_BSZ[0], dim=-1)).norm(dim=-1)
    angles, angle = 2 * torch.arcsin((chord / 2).clamp(max=1)), angle_of(dim, kappa)
    found = kstest(angles.numpy(), lambda t: np.interp(t, angle.edges, angle.cumulative))
    assert found.pvalue > 1e-3
    assert (1 - angles.cos()).mean().item() == pytest.approx(angle.mean_gap, rel=0.05)


@pytest.mark.parametrize("what", ["forward", "sample"])
def test_draws_favour_no_direction_but_their_mean(what: str) -> None:
    """Around the mean for the posterior, at all for the prior: first and second moments."""
    quantizer, many, dim = sphere(4, 6.0), 40_000, 4
    numbers_BSZ = torch.tensor([0.3, -1.0, 0.5, 2.0]).double().expand(1, many, dim)
    generator = torch.Generator().manual_seed(2)
    if what == "sample":
        codes = quantizer.sample(none(1, many), generator).codes[0]
        along, across = torch.zeros(dim).double(), torch.eye(dim).double() / dim
    else:
        codes = quantizer(numbers_BSZ, none(1, many), generator).codes[0]
        mean = F.normalize(numbers_BSZ[0, 0], dim=-1)
        along = (1 - angle_of(dim, 6.0).mean_gap) * mean
        second = ((codes @ mean) ** 2).mean()
        outer = mean[:, None] * mean
        across = second * outer + (1 - second) / (dim - 1) * (torch.eye(dim) - outer)
    assert (codes.mean(0) - along).abs().max() < 5 / many**0.5
    assert (codes.mT @ codes / many - across).abs().max() < 5 / many**0.5


def test_the_gradient_comes_through_the_direction() -> None:
    """Against finite differences, with the noise held; the length of the numbers has none."""
    quantizer = sphere(3, 4.0)
    numbers_BSZ = draws(2, 4, 3).requires_grad_()

    def codes(x: Tensor) -> Tensor:
        return quantizer(x, none(2, 4), RowGenerator([3, 4])).codes

    assert torch.autograd.gradcheck(codes, (numbers_BSZ,))
    (gradient,) = torch.autograd.grad((codes(numbers_BSZ) * draws(2, 4, 3, seed=5)).sum(), numbers_BSZ)
    assert (gradient.norm(dim=-1) > 0.01).all()
    torch.testing.assert_close((gradient * numbers_BSZ).sum(-1), torch.zeros(2, 4).double())


@pytest.mark.parametrize(
    "one",
    [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1e-7, 0.0], [1.0, 1e-5, 0.0], [-1.0, 0.0, 0.0], [0, 1e-9, 0]],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_breaks_at_zero_nor_at_the_pole(one: list[float], dtype: torch.dtype) -> None:
    quantizer = sphere(3, 4.0).to(dtype)
    numbers_BSZ = torch.tensor(one, dtype=dtype).expand(1, 50, 3).clone().requires_grad_()
    latent = quantizer(numbers_BSZ, none(1, 50).to(dtype), torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(latent.codes.sum(), numbers_BSZ)
    assert gradient.isfinite().all()
    torch.testing.assert_close(latent.codes.norm(dim=-1), torch.ones(1, 50, dtype=dtype))
    assert quantizer.log_prob(latent.codes, numbers_BSZ).isfinite().all()
    if not 1e-9 <= abs(one[1]) < 1e-6:  # there the mirror is left out
        wanted = F.normalize(numbers_BSZ, dim=-1) if any(one) else torch.tensor([1.0, 0.0, 0.0], dtype=dtype)
        assert ((latent.codes * wanted).sum(-1).mean() - (1 - angle_of(3, 4.0).mean_gap)).abs() < 0.2


def test_kl_does_not_move_and_cannot_collapse() -> None:
    quantizer = sphere(4, 10.0)
    for size in (0.0, 1e-6, 1.0, 1e6):
        latent = quantizer(size * draws(1, 2, 4), none(1, 2))
        assert latent.kl_BSd.tolist() == [[[quantizer.kl_nats]] * 2]
        assert not latent.kl_BSd.requires_grad
    assert quantizer.kl_nats > 1


def test_the_doctor_is_told_what_moves_the_kl() -> None:
    (remedy,) = VMFParams(kappa=32.0).remedies(Case("over_budget", 100, 7.6, 1))
    assert remedy.options == ("kappa=16",)
    lower, usual = (VMFParams(kappa=kappa).build(embedding_dim=4).kl_nats for kappa in (16.0, 32.0))
    assert lower < usual
    assert not list(VMFParams().remedies(Case("unread", 100, 7.6, 1)))


def test_directions_that_somebody_gives_are_taken_at_length_1() -> None:
    quantizer = sphere(3, 4.0)
    latent = quantizer.given(
        torch.tensor([[[3.0, 0.0, 4.0], [0.6, 0.0, 0.8], [1e200, 0.0, 0.0]]], dtype=torch.float64)
    )
    wanted = torch.tensor([[[0.6, 0.0, 0.8], [0.6, 0.0, 0.8], [1.0, 0.0, 0.0]]]).double()
    torch.testing.assert_close(latent.codes, wanted)
    drawn = quantizer(draws(1, 9, 3), none(1, 9)).codes
    assert torch.equal(quantizer.given(drawn).codes, drawn)


@pytest.mark.parametrize(
    ("codes", "told"),
    [
        (torch.zeros(1, 2, 3), "a vmf code is a direction, and a vector of zeros has none"),
        (torch.full((1, 2, 3), torch.inf), "holds NaN or infinity"),
        (torch.ones(1, 2, 4), r"floats of shape \[rows, slots, 3\], not torch.float32 of shape \[1, 2, 4\]"),
        (torch.ones(1, 2, 3).long(), "are floats"),
    ],
)
def test_directions_that_are_none_are_refused(codes: Tensor, told: str) -> None:
    with pytest.raises(UserError, match=told):
        sphere(3, 4.0).given(codes)


def test_its_prior_cannot_be_learned() -> None:
    with pytest.raises(
        UserError, match=r"prior: quantizer 'vmf' has one prior, without numbers that could be"
    ):
        lvlm.check("gptvae", "model.quantizer={kind: vmf}", "model.prior=learned")


def test_bfloat16_weights_leave_the_digits_of_tables_alone() -> None:
    """A quantizer computes in float32: constants that went through bfloat16 would make other codes."""
    for kind in ("vmf", "gaussian"):
        model = build_cross(
            Cross(
                LearnedQueryParams(per="token"), REGISTRY.get("quantizer", kind).params.example(), AddParams()
            ),
            REGISTRY,
        ).float()
        assert model.latent is not None
        before = {name: value.clone() for name, value in vars_of(model.latent.quantizer)}
        convert(model, "bf16")
        after = dict(vars_of(model.latent.quantizer))
        assert all(torch.equal(value, after[name]) for name, value in before.items())
        assert model.latent.readout.weight.dtype == torch.bfloat16
        assert model.backbone.embed(torch.zeros(1, 1, dtype=torch.long)).dtype == torch.bfloat16


def vars_of(module: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name."""
    yield from module.named_parameters()
    yield from module.named_buffers()


# ----------------------------------------------------------------------------------------------- in runs

RUNS: dict[str, dict[str, Any]] = {
    "categorical": {"kind": "categorical", "codes": 6, "temperature": {"start": 1.0, "end": 0.5, "steps": 3}},
    "lfq": {"kind": "lfq", "bits": 3},
    "bsq": {"kind": "bsq", "bits": 3},
    "residual_fsq": {"kind": "residual_fsq", "levels": [3, 2]},
    "vmf": {"kind": "vmf", "dim": 3, "kappa": 5.0},
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.mark.parametrize("arm", ["free", "gptvae"])
@pytest.mark.parametrize(
    ("name", "prior"), [(n, p) for n in RUNS for p in ("fixed", "learned") if (n, p) != ("vmf", "learned")]
)
def test_a_run_per_token_and_per_sequence(
    name: str, prior: str, arm: str, text: Path, tmp_path: Path
) -> None:
    if name not in ("vmf", "categorical"):
        pytest.importorskip("vector_quantize_pytorch")
    model = {"quantizer": RUNS[name] | {"embedding_std": 0.1}, "prior": prior, "latent_dropout": 0.0}
    run = lvlm.train(tiny(arm, text, model=model, train={"steps": 4}), tmp_path / "run")
    steps = logged(run)
    assert all(math.isfinite(step["loss"]) for step in steps)
    estimates = lvlm.evaluate(run)["estimates"]
    assert {"elbo", "ce_prior", "nll_iwae_2"} <= estimates.keys()
    assert all(math.isfinite(found["nats_per_token"]) for found in estimates.values() if found)
    first = steps[0]["kl"] * (12 if arm == "gptvae" else 1)  # per target token, of 12 in a window
    codes = lvlm.load(run).latent.quantizer.num_codes
    if name == "vmf":
        assert all(step["kl"] == pytest.approx(steps[0]["kl"]) for step in steps)
        assert first == pytest.approx(sphere(3, 5.0).kl_nats, rel=1e-4)
    elif name == "categorical":
        assert 0 <= first < 0.1
    else:
        assert first == pytest.approx(math.log(codes), rel=1e-4)
    if name in ("lfq", "bsq"):
        assert all(math.isfinite(step["penalty"]) for step in steps)
    model_of_run = lvlm.load(run)
    (sample,) = lvlm.generate(model_of_run, "12 lines", 6, seed=1)
    again = lvlm.generate(model_of_run, "12 lines", 6, seed=1, codes=sample.codes)[0]
    assert torch.equal(again.codes, sample.codes)
    (encoded,) = lvlm.encode(model_of_run, "12 lines of a")
    assert encoded.kl_T.isfinite().all()
