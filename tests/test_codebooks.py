"""Codebooks: the KL of a point mass, the grid of FSQ, the penalty of VQ, and all of them in a run."""

from __future__ import annotations

import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import lvlm
from lvlm.errors import Interrupted, MissingLibrary, UserError
from lvlm.interfaces import QuantizerParams
from lvlm.registry.registry import Registry
from lvlm.testing import check_kind, conformance, randomise
from lvlm_codebooks.bsq import BSQParams
from lvlm_codebooks.fsq import FSQ, FSQParams
from lvlm_codebooks.lfq import LFQParams
from lvlm_codebooks.point_mass import PointMass
from lvlm_codebooks.residual_fsq import ResidualFSQParams
from lvlm_codebooks.vq import VQ, VQParams
from tests.tiny import before_step, logged, tiny, weights, write_text

KINDS: dict[str, Any] = {
    "fsq": FSQParams(levels=[5, 4, 3]),
    "fsq_with_2": FSQParams(levels=[3, 2, 2]),
    "residual_fsq": ResidualFSQParams(levels=[2, 2, 2]),
    "lfq": LFQParams(bits=3),
    "bsq": BSQParams(bits=3),
    "vq": VQParams(codes=7, dim=3),
}
every = pytest.mark.parametrize("params", KINDS.values(), ids=KINDS)


def built(params: Any) -> PointMass:
    """With random weights, for embeddings of 6 numbers."""
    quantizer: PointMass = randomise(params.build(embedding_dim=6))
    return quantizer


def numbers(quantizer: PointMass, *, rows: int = 2, slots: int = 50, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Posterior and prior numbers at random."""
    generator = torch.Generator().manual_seed(seed)
    posterior_BSK = torch.randn(rows, slots, quantizer.posterior_dim, generator=generator)
    return posterior_BSK, torch.randn(rows, slots, quantizer.prior_dim, generator=generator)


def grid(dimensions: int) -> Tensor:
    """Numbers from every corner of what counts, [1, S, K]."""
    return torch.cartesian_prod(*[torch.linspace(-4, 4, 33)] * dimensions).view(1, -1, dimensions)


# --------------------------------------------------------------------------------------------------- point
# masses


@every
def test_kinds_conform(params: QuantizerParams) -> None:
    check_kind(params)


@every
def test_kl_is_minus_the_log_probability_of_the_code(params: Any) -> None:
    quantizer = built(params)
    posterior_BSK, prior_BSJ = numbers(quantizer)
    latent = quantizer(posterior_BSK, prior_BSJ)
    for row in range(2):
        for slot in range(50):
            logits, code = prior_BSJ[row, slot].double(), int(latent.codes[row, slot])
            by_hand = math.log(logits.exp().sum()) - float(logits[code])
            assert latent.kl_BSd[row, slot].tolist() == pytest.approx([by_hand], rel=1e-5)


@every
def test_kl_to_the_fixed_prior_is_constant(params: Any) -> None:
    quantizer = built(params)
    posterior_BSK, prior_BSJ = numbers(quantizer)
    kl_BSd = quantizer(posterior_BSK, torch.zeros_like(prior_BSJ)).kl_BSd
    torch.testing.assert_close(kl_BSd, torch.full_like(kl_BSd, math.log(quantizer.prior_dim)))


@every
def test_the_probabilities_of_all_codes_sum_to_1(params: Any) -> None:
    quantizer = built(params).double()
    posterior_BSK, prior_BSJ = (x.double()[:1, :1] for x in numbers(quantizer))
    codes = torch.arange(quantizer.prior_dim)[:, None]
    for x in (posterior_BSK, prior_BSJ):
        log_p = quantizer.log_prob(codes, x.expand(len(codes), 1, -1))
        assert log_p.exp().sum().item() == pytest.approx(1)
    one = quantizer.log_prob(codes, posterior_BSK.expand(len(codes), 1, -1))[:, 0]
    assert one.argmax() == quantizer(posterior_BSK, prior_BSJ).codes.item()
    assert sorted(one.tolist()) == [-math.inf] * (len(codes) - 1) + [0.0]


@every
def test_the_value_is_the_vector_of_the_code_to_the_last_bit_and_its_gradient_reaches_the_numbers(
    params: Any,
) -> None:
    quantizer = built(params)
    posterior_BSK, prior_BSJ = numbers(quantizer)
    posterior_BSK.requires_grad_()
    latent = quantizer(posterior_BSK, prior_BSJ)
    vectors_BSK = quantizer.vectors(latent.codes)
    assert torch.equal(latent.embedding_BSC, quantizer.embedding(vectors_BSK))
    assert torch.equal(latent.embedding_BSC, quantizer.given(latent.codes).embedding_BSC)
    weight_BSC = torch.randn_like(latent.embedding_BSC)
    (gradient,) = torch.autograd.grad((latent.embedding_BSC * weight_BSC).sum(), posterior_BSK)
    pull_BSK = weight_BSC @ quantizer.embedding.weight
    _, soft_BSK = quantizer.find(posterior_BSK)
    (expected,) = torch.autograd.grad((soft_BSK * pull_BSK).sum(), posterior_BSK)
    torch.testing.assert_close(gradient, expected)
    assert (gradient != 0).all()


@every
def test_eval_and_autocast_change_nothing(params: Any) -> None:
    quantizer = built(params)
    posterior_BSK, prior_BSJ = numbers(quantizer)
    state = {name: value.clone() for name, value in quantizer.state_dict().items()}

    def everything() -> list[Tensor]:
        latent = quantizer(posterior_BSK, prior_BSJ)
        drawn = quantizer.sample(prior_BSJ, torch.Generator().manual_seed(0))
        again = quantizer.given(latent.codes)
        return [latent.codes, latent.embedding_BSC, latent.kl_BSd, drawn.embedding_BSC, again.embedding_BSC]

    training = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = everything()
    quantizer.eval()
    for one, two, three in zip(training, everything(), inside, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
    assert all(torch.equal(value, state[name]) for name, value in quantizer.state_dict().items())
    assert state.keys() == dict(quantizer.named_parameters()).keys(), "checkpoints hold more than parameters"


@every
def test_prior_codes_follow_the_prior(params: Any) -> None:
    quantizer = built(params)
    size, many = quantizer.prior_dim, 40_000
    prior_BSJ = torch.linspace(-2, 0, size).expand(1, many, size)
    codes = quantizer.sample(prior_BSJ, torch.Generator().manual_seed(0)).codes
    share = codes.flatten().bincount(minlength=size) / many
    expected = prior_BSJ[0, 0].softmax(-1)
    assert ((share - expected).abs() < 5 * (expected / many).sqrt()).all()


@every
def test_a_learned_prior_brings_the_kl_down_to_the_entropy_of_the_codes(params: Any) -> None:
    quantizer = built(params)
    posterior_BSK = grid(3)[:, torch.randperm(33**3, generator=torch.Generator().manual_seed(0))[:200]]
    codes, counts = quantizer.find(posterior_BSK)[0].unique(return_counts=True)
    shares = counts / counts.sum()
    entropy = -(shares * shares.log()).sum().item()
    assert len(codes) > 2
    prior_J = torch.zeros(quantizer.prior_dim, requires_grad=True)
    optimiser = torch.optim.Adam([prior_J], lr=0.3)
    for _ in range(100):
        kl = quantizer(posterior_BSK, prior_J.expand(1, 200, -1)).kl_BSd.mean()
        optimiser.zero_grad()
        kl.backward()
        optimiser.step()
    assert kl.item() == pytest.approx(entropy, abs=0.02)


@every
@pytest.mark.parametrize(
    ("codes", "told"),
    [
        (torch.tensor([[64]]), r"is an index from 0 to \d+; got 64 to 64"),
        (torch.tensor([[-1, 0]]), "got -1 to 0"),
        (torch.tensor([[0.5]]), "integer indices"),
        (torch.tensor([1]), r"of shape \[rows, slots\], not torch.int64 of shape \[1\]"),
        (torch.tensor([[True]]), "integer indices"),
    ],
)
def test_codes_that_do_not_fit_are_refused(params: Any, codes: Tensor, told: str) -> None:
    with pytest.raises(UserError, match=told):
        built(params).given(codes)


# ------------------------------------------------------------------------------------------------------------
# fsq


@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [5, 4, 3], [3, 2], [2], [1000]])
def test_every_code_of_a_grid_decodes_and_encodes_to_itself(levels: list[int]) -> None:
    quantizer = FSQ(levels=levels, embedding_dim=6, embedding_std=1.0)
    codes = torch.arange(math.prod(levels))[None]
    vectors = quantizer.vectors(codes)
    assert torch.equal(quantizer.fsq.codes_to_indices(vectors).long(), codes)
    assert len(vectors[0].unique(dim=0)) == math.prod(levels)


def test_every_code_of_a_grid_is_that_of_some_numbers() -> None:
    for levels in ([8, 5], [5, 4, 3], [3, 2, 2]):
        quantizer = FSQ(levels=levels, embedding_dim=6, embedding_std=1.0)
        codes, _ = quantizer.find(grid(len(levels)))
        assert codes.unique().tolist() == list(range(math.prod(levels)))


def test_rounding_by_hand() -> None:
    quantizer = FSQ(levels=[5, 3], embedding_dim=6, embedding_std=1.0)
    codes, soft = quantizer.find(torch.tensor([[[0.5, -2.0], [0.0, 0.0], [9.0, 9.0]]]))
    # 2 tanh(.5) = .92 is the fourth of -2 to 2, tanh(-2) = -.96 the first of -1 to 1
    assert codes.tolist() == [[3 + 5 * 0, 2 + 5 * 1, 4 + 5 * 2]]
    torch.testing.assert_close(soft, torch.tensor([[[0.5, -1.0], [0.0, 0.0], [1.0, 1.0]]]))


def test_levels_are_bounded() -> None:
    for levels in ([], [1], [1001], [256, 257], [3, 0]):
        with pytest.raises(ValidationError):
            FSQParams(levels=levels)
    with pytest.raises(ValidationError, match="levels multiply to 65792 codes; at most 65536"):
        FSQParams(levels=[256, 257])


# ------------------------------------------------------------------------------------------------------------- vq


def test_the_penalty_by_hand() -> None:
    quantizer = VQ(codes=2, dim=3, commitment=0.25, embedding_dim=6, embedding_std=1.0)
    (table,) = quantizer.table_parameters()
    with torch.no_grad():
        table.view(2, 3).copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]))
    z = torch.tensor([[[2.0, 0.0, 1.0], [0.0, 2.0, 0.5]]], requires_grad=True)
    latent = quantizer(z, torch.zeros(1, 2, 2))
    assert latent.codes.tolist() == [[0, 1]]
    assert latent.penalty_BS.tolist() == [[1.25 * 2.0, 1.25 * 0.25]]
    to_z, to_table = torch.autograd.grad(latent.penalty_BS.sum(), [z, table], retain_graph=True)
    difference = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.5]])
    torch.testing.assert_close(to_z[0], 0.25 * 2 * difference)
    torch.testing.assert_close(to_table.view(2, 3), -2 * difference)
    reconstruction = torch.autograd.grad(latent.embedding_BSC.sum(), table, allow_unused=True)
    assert reconstruction == (None,), "the reconstruction moves the codebook"


def test_the_penalty_trains_the_codebook() -> None:
    """Two clusters of numbers, two codes: each goes to the mean of its own."""
    quantizer = VQ(codes=2, dim=3, commitment=0.25, embedding_dim=6, embedding_std=1.0)
    (table,) = quantizer.table_parameters()
    randomise(quantizer)
    noise = 0.1 * torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(0))
    z = table.detach().view(2, 1, 3) * 3 + noise
    optimiser = torch.optim.Adam([table], lr=0.05)
    for _ in range(200):
        latent = quantizer(z, torch.zeros(2, 20, 2))
        optimiser.zero_grad()
        latent.penalty_BS.sum().backward()
        optimiser.step()
    assert latent.codes.tolist() == [[0] * 20, [1] * 20]
    torch.testing.assert_close(table.detach().view(2, 3), z.mean(1), atol=1e-3, rtol=0)


def test_the_penalty_is_that_of_the_slot_alone() -> None:
    """So what the loss leaves out, padding and dropped rows, has no part in it."""
    quantizer = built(VQParams(codes=7, dim=3))
    posterior_BSK, prior_BSJ = numbers(quantizer)
    whole, part = quantizer(posterior_BSK, prior_BSJ), quantizer(posterior_BSK[:1, :20], prior_BSJ[:1, :20])
    assert torch.equal(whole.codes[:1, :20], part.codes)
    assert torch.equal(whole.penalty_BS[:1, :20], part.penalty_BS)


def test_codes_and_dim_differ() -> None:
    with pytest.raises(ValidationError, match="codes and dim are both 16"):
        VQParams(codes=16, dim=16)


# ----------------------------------------------------------------------------------------------------------
# in use


CODEBOOKS: dict[str, Any] = {
    name: kind.params.example()
    for name, kind in Registry.load(strict=True).kinds["quantizer"].items()
    if kind.plugin == "codebooks" and name != "categorical"  # which draws its codes, without the library
}


def test_without_the_library_kinds_are_known_and_told_in_words(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    for kind in CODEBOOKS:
        params = registry.get("quantizer", kind).params.example()
        with pytest.raises(
            MissingLibrary,
            match=rf"^kind '{kind}': vector-quantize-pytorch isn't installed: .*pip install -e '\.\[codebooks\]'$",
        ):
            params.build(embedding_dim=4)


def test_conformance_skips_what_lacks_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's encoder is crossed with every quantizer that is known, whatever else is installed."""
    check = conformance(plugin="codebooks")
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(pytest.skip.Exception, match="vector-quantize-pytorch isn't installed"):
        check(lambda: check_kind(FSQParams.example()))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.mark.parametrize("kind", CODEBOOKS)
def test_a_run_with_a_learned_prior(kind: str, text: Path, tmp_path: Path) -> None:
    params = CODEBOOKS[kind]
    quantizer = params.model_dump()
    recipe = tiny("free", text, model={"quantizer": quantizer, "prior": "learned"}, train={"steps": 4})
    run = lvlm.train(recipe, tmp_path / "run")
    first, *_, last = logged(run)
    assert first["kl"] == pytest.approx(
        math.log(params.build(embedding_dim=4).num_codes), rel=1e-4
    )  # the head of the prior starts at zero
    assert last["kl"] != first["kl"]
    assert weights(run)["latent.prior_head.weight"].abs().sum() > 0

    # One code is all that the posterior can draw, so more samples say nothing new.
    estimates = lvlm.evaluate(run)["estimates"]
    bounds = [estimates[name]["nats_per_token"] for name in ("nll_iwae_2", "elbo")]
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-5)
    assert math.isfinite(estimates["ce_prior"]["nats_per_token"])

    other = tmp_path / "other"
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(Interrupted):
            lvlm.train(recipe, other)
    lvlm.train(None, other, resume=True)
    assert logged(other) == logged(run)
    ours, theirs = weights(other), weights(run)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("kind", CODEBOOKS)
def test_a_check_builds_it_without_memory(kind: str) -> None:
    shapes = lvlm.check("free", f"model.quantizer={{kind: {kind}}}").shapes
    usual = type(CODEBOOKS[kind])().build(embedding_dim=4)
    assert shapes["prior_BSJ"] == (16, 128, usual.num_codes)
    assert usual.num_codes > 100
