"""Priors: what they see, KLs that depend on draws, and recipes, runs and generation with each kind."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text
from torch import Tensor

import lvlm
from lvlm.cli.texts import reading_tables
from lvlm.errors import UserError
from lvlm.exporting.graphs import trace
from lvlm.generation.kl_by_token import Reading, Span
from lvlm.interfaces import Latent, RowGenerator, Slots
from lvlm.model.latent_path import LatentPath
from lvlm.model.prior import FixedPrior, PriorMemory
from lvlm.objective import gaussian_kl
from lvlm.playground.markup import reading
from lvlm.recipe.read import read_recipe
from lvlm.testing import randomise
from lvlm_baseline.priors import AutoregressivePrior, AutoregressivePriorParams
from lvlm_free.add import Add
from lvlm_free.binary import Binary
from lvlm_gptvae.gaussian import Gaussian
from lvlm_gptvae.mixture import MixturePrior
from tests.test_estimators import model_of
from tests.test_parallel import assert_same_training, finish, launch
from tests.tiny import edit_json, logged, tiny, weights, write_text

WIDTH, EMBEDDING, SLOTS, DIM = 4, 3, 3, 2
PLAIN = {"kind": "elbo", "term": {"kind": "plain"}, "budget_bits": 0.0}
OF_GAUSSIAN: dict[str, Any] = {
    "model": {
        "encoder": {"kind": "bidirectional", "per": 4},
        "injection": {"kind": "add"},
        "quantizer": {"kind": "gaussian", "dim": DIM, "embedding_std": 0.3},
    },
    "loss": PLAIN,
}
PRIORS: dict[str, Any] = {
    "autoregressive": {"kind": "autoregressive", "width": 5},
    "mixture": {"kind": "mixture", "components": 3},
    "learned": "learned",
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


class Numbers(torch.nn.Module):
    """An encoder whose features are whatever it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.slots, self.width = lvlm.interfaces.Slots(1), 2


def gaussian() -> Gaussian:
    made = Gaussian(dim=DIM, embedding_dim=EMBEDDING, embedding_std=0.5, log_variance_bound=10)
    return randomise(made.double())


def binary(bits: int = 1) -> Binary:
    made = Binary(bits=bits, bits_per_group=bits, embedding_dim=EMBEDDING, embedding_std=0)
    return randomise(made.double(), std=1.0)


def autoregressive(prior_dim: int, *, seed: int = 0) -> AutoregressivePrior:
    made = AutoregressivePrior(width=WIDTH, embedding_dim=EMBEDDING, prior_dim=prior_dim, memory=5)
    return randomise(made.double(), seed=seed, std=0.8)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def path_of(quantizer: Any, prior: Any) -> LatentPath:
    return LatentPath(Numbers(), quantizer, Add(WIDTH, Slots(1)), prior).double()  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------- what is seen, and when


@given(st.integers(1, 9), st.integers(0, 8), st.integers(0, 2**16))
def test_a_code_is_heard_by_later_slots_alone_and_steps_hear_what_the_whole_does(
    slots: int, changed: int, seed: int
) -> None:
    prior = autoregressive(2, seed=seed % 7)
    hidden_BSD, embedding_BSC = normal(2, slots, WIDTH, seed=seed), normal(2, slots, EMBEDDING, seed=seed + 1)
    path, changed = path_of(binary(2), prior), changed % slots
    other_BSC = embedding_BSC.clone()
    other_BSC[:, changed] += 1
    one, other = path.prior(hidden_BSD, embedding_BSC), path.prior(hidden_BSD, other_BSC)
    assert torch.equal(one[:, : changed + 1], other[:, : changed + 1])
    moved = (one != other).any(-1).any(0)
    assert bool(moved[changed + 1 :].all())
    memory = PriorMemory(prior, hidden_BSD, EMBEDDING)
    for slot in range(slots):
        here = slice(slot, slot + 1)
        torch.testing.assert_close(memory.numbers(hidden_BSD[:, here]), one[:, here], rtol=1e-9, atol=1e-12)
        memory.take_in(embedding_BSC[:, here])


def test_codes_that_the_prior_draws_are_of_the_numbers_that_it_gives_for_them() -> None:
    for quantizer in (binary(3), gaussian()):
        path = path_of(quantizer, autoregressive(quantizer.prior_dim))
        hidden_BSD = normal(3, SLOTS, WIDTH)
        drawn = path.from_prior(hidden_BSD, RowGenerator([4, 5, 6]))
        torch.testing.assert_close(drawn.prior_BSJ, path.prior(hidden_BSD, drawn.embedding_BSC))
        alone = path.from_prior(hidden_BSD[1:2], RowGenerator([5]))
        torch.testing.assert_close(alone.codes, drawn.codes[1:2])


def test_probabilities_of_all_codes_sum_to_one() -> None:
    path = path_of(binary(2), autoregressive(2))
    codes_NS = torch.cartesian_prod(*[torch.arange(4)] * SLOTS)
    hidden_NSD = normal(1, SLOTS, WIDTH).expand(len(codes_NS), -1, -1)
    numbers_NSJ = path.prior(hidden_NSD, path.quantizer.given(codes_NS).embedding_BSC)
    total = path.log_prior(codes_NS, numbers_NSJ).sum(-1).exp().sum()
    assert float(total.detach()) == pytest.approx(1, abs=1e-12)


# ------------------------------------------------------------------------------------------------------------- KL


def test_the_mean_kl_to_an_autoregressive_prior_is_that_of_enumeration() -> None:
    quantizer = binary(1)
    path = path_of(quantizer, autoregressive(1))
    hidden_1SD, posterior_1SK = normal(1, SLOTS, WIDTH), normal(1, SLOTS, 1, seed=1)
    codes_NS = torch.tensor(list(itertools.product((0, 1), repeat=SLOTS)))
    many = (len(codes_NS), -1, -1)
    log_q_N = quantizer.log_prob(codes_NS, posterior_1SK.expand(many)).sum(-1)
    numbers = path.prior(hidden_1SD.expand(many), quantizer.given(codes_NS).embedding_BSC)
    log_p_N = path.log_prior(codes_NS, numbers).sum(-1)
    exact = (log_q_N.exp() * (log_q_N - log_p_N)).sum()
    # Each draw's KL is closed under the codes that it drew before; their mean, weighed exactly.
    drawn = quantizer.given(codes_NS)
    drawn.posterior_BSK = posterior_1SK.expand(many)
    by_draw_N = path.kl(drawn, numbers).sum((1, 2))
    assert by_draw_N.std() > 0.01
    torch.testing.assert_close((log_q_N.exp() * by_draw_N).sum(), exact)
    rows = 4000
    latent = path.from_posterior(posterior_1SK.expand(rows, -1, -1), hidden_1SD.expand(rows, -1, -1))
    assert latent.kl_BSd is not None
    found, exact = latent.kl_BSd.sum((1, 2)).detach(), exact.detach()
    assert abs(float(found.mean() - exact)) < 5 * float(found.std()) / math.sqrt(rows)


def test_the_gradient_of_a_later_kl_reaches_an_earlier_gaussian_code() -> None:
    quantizer = gaussian()
    path = path_of(quantizer, autoregressive(quantizer.prior_dim))
    hidden_1SD = normal(1, SLOTS, WIDTH)

    def kl_of_last(posterior_1SK: Tensor) -> Tensor:
        latent = path.from_posterior(posterior_1SK, hidden_1SD, torch.Generator().manual_seed(2))
        assert latent.kl_BSd is not None
        return latent.kl_BSd[0, -1].sum()

    posterior_1SK = normal(1, SLOTS, 2 * DIM, seed=3).requires_grad_()
    (slope,) = torch.autograd.grad(kl_of_last(posterior_1SK), posterior_1SK)
    assert bool((slope[0, :-1].abs() > 0).all())
    assert torch.autograd.gradcheck(kl_of_last, posterior_1SK)


def mixture(components: int = 3) -> MixturePrior:
    return randomise(MixturePrior(dim=DIM, components=components, spread=0.1).double(), std=0.5)


def test_a_sampled_kl_to_one_gaussian_has_the_mean_and_the_gradient_of_the_closed_form() -> None:
    quantizer, prior, rows = gaussian(), mixture(1), 20_000
    path = path_of(quantizer, prior)
    assert path.kl_dim == 1
    posterior_11K = normal(1, 1, 2 * DIM, seed=5).requires_grad_()
    hidden = torch.zeros(rows, 1, WIDTH, dtype=torch.float64)
    posterior_N1K = posterior_11K.expand(rows, -1, -1)
    latent = path.from_posterior(posterior_N1K, hidden, torch.Generator().manual_seed(0))
    kl_N = latent.kl_BSd
    assert kl_N is not None
    assert kl_N.shape == (rows, 1, 1)
    assert bool((kl_N < 0).any()), "a draw's may be negative"
    closed = gaussian_kl(*quantizer._moments(posterior_11K), prior.mean_MZ, 2 * prior.log_scale_MZ).sum()
    assert abs(float((kl_N.mean() - closed).detach())) < 5 * float(kl_N.std().detach()) / math.sqrt(rows)
    wanted = torch.autograd.grad(
        closed, (posterior_11K, prior.mean_MZ, prior.log_scale_MZ), retain_graph=True
    )
    found = torch.autograd.grad(kl_N.mean(), (posterior_11K, prior.mean_MZ, prior.log_scale_MZ))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=0.05, rtol=0.05)


def test_the_path_derivative_has_no_noise_where_posterior_and_prior_agree() -> None:
    quantizer, prior = gaussian(), mixture(1)
    path = path_of(quantizer, prior)
    with torch.no_grad():
        prior.mean_MZ.zero_()
        prior.log_scale_MZ.zero_()
    posterior_BSK = torch.zeros(5, 2, 2 * DIM, dtype=torch.float64, requires_grad=True)
    latent = path.from_posterior(posterior_BSK, torch.zeros(5, 2, WIDTH, dtype=torch.float64))
    assert latent.kl_BSd is not None
    assert latent.kl_BSd.abs().max() < 1e-12
    (slope,) = torch.autograd.grad(latent.kl_BSd.square().sum() + latent.kl_BSd.sum(), posterior_BSK)
    assert slope.abs().max() < 1e-12


@torch.no_grad()
def test_a_mixture_integrates_to_one_and_starts_near_the_standard_normal() -> None:
    prior, quantizer = MixturePrior(dim=1, components=8, spread=0.1).double(), gaussian()
    z_N11 = torch.linspace(-9, 9, 4001, dtype=torch.float64)[:, None, None]
    numbers = prior(torch.zeros(len(z_N11), 1, WIDTH, dtype=torch.float64))
    assert not numbers.any()
    log_p = prior.log_prob(quantizer, z_N11, numbers)[:, 0]
    assert float(torch.trapezoid(log_p.exp(), z_N11[:, 0, 0])) == pytest.approx(1, abs=1e-6)
    standard = torch.distributions.Normal(0.0, 1.0).log_prob(z_N11[:, 0, 0])
    assert float(torch.trapezoid(standard.exp() * (standard - log_p), z_N11[:, 0, 0])) < 0.02
    assert len(prior.mean_MZ.unique()) == 8, "components that are all alike would stay so"


def test_a_sampled_kl_of_indices_is_refused() -> None:
    with pytest.raises(UserError, match="no gradient flows through draws of indices"):
        path_of(binary(), mixture())


# -------------------------------------------------------------------------------------------------- recipes, runs


def test_words_of_a_recipe_stand_for_kinds() -> None:
    for word, kind in (("fixed", "fixed"), ("learned", "linear"), ("linear", "linear")):
        for said in (f"model.prior={word}", f"model.prior={{kind: {word}}}"):
            resolved = read_recipe("free", [said])
            assert resolved.recipe.model.prior.kind_name() == kind
    origins = {path: origin for path, _, origin in read_recipe("free", ["model.prior=learned"]).describe()}
    assert origins["model.prior.kind"] == "override 'model.prior=learned'"
    assert read_recipe("free").recipe == read_recipe("free", ["model.prior=fixed"]).recipe
    said = "model.prior={kind: autoregressive, width: 7}"
    prior = read_recipe("free", [said]).recipe.model.prior
    assert isinstance(prior, AutoregressivePriorParams)
    assert prior.width == 7
    built = lvlm.build("free").latent
    assert built is not None
    assert isinstance(built.prior_head, FixedPrior)


REFUSED = {
    "one slot": ("gptvae", ["model.prior=autoregressive"], "a sequence has one slot"),
    "score function": (
        "free",
        ["model.prior=autoregressive", "model.quantizer.estimator=reinforce"],
        "knows only what a code does to the text",
    ),
    "indices": ("free", ["model.prior=mixture"], "is one of vectors"),
    "hinge": ("gptvae", ["model.prior=mixture"], "a term that is linear"),
    "budget": ("gptvae", ["loss.term.kind=plain", "loss.budget_bits=1"], "term 'plain' has no budget"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused_in_words(case: str) -> None:
    recipe, overrides, words = REFUSED[case]
    with pytest.raises(UserError, match=words):
        read_recipe(recipe, overrides)


def recipe_of(text: Path, prior: str, **train: Any) -> dict[str, Any]:
    changes = {name: dict(section) for name, section in OF_GAUSSIAN.items()}
    changes["model"]["prior"] = PRIORS[prior]
    evaluate = {"windows": 4, "k": 2}
    return tiny("gptvae", text, **changes, train={"steps": 4, **train}, evaluate=evaluate)


@pytest.mark.parametrize("prior", ["autoregressive", "mixture"])
def test_a_run_learns_the_prior_whatever_the_micro_batch_and_is_evaluated_and_written_from(
    text: Path, tmp_path: Path, prior: str
) -> None:
    run = lvlm.train(recipe_of(text, prior), tmp_path / "run")
    in_parts = lvlm.train(recipe_of(text, prior, micro_rows=1), tmp_path / "parts")
    before = lvlm.build(recipe_of(text, prior)).state_dict()
    one, other = weights(run), weights(in_parts)
    of_prior = [name for name in one if name.startswith("latent.prior_head.")]
    assert of_prior
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=2e-5, rtol=0)
    assert all(not torch.equal(one[name], before[name]) for name in of_prior)
    assert all(math.isfinite(line["kl"]) for line in logged(run) if "kl" in line)
    found = lvlm.evaluate(run)["estimates"]
    assert {"nll_iwae_2", "nll_smc_2", "elbo"} <= found.keys()
    model = lvlm.load(run)
    sample = lvlm.generate(model, b"abcdef", 9, prompt_codes="prior")[0]
    assert sample.codes is not None
    assert sample.codes.shape == (4, DIM)
    assert math.isfinite(lvlm.score(model, [97, 98], [99, 100, 101, 97]).log_prob_nats)
    kl_Sd = lvlm.encode(model, b"abcdefgh")[0].kl_Sd
    assert kl_Sd.shape == (2, 1 if prior == "mixture" else DIM)


@pytest.mark.slow
def test_an_autoregressive_prior_is_trained_alike_by_one_process_and_by_two(
    text: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    recipe = recipe_of(text, "autoregressive")
    finish(launch(1, recipe, one))
    finish(launch(2, recipe, two))
    assert_same_training(one, two)


def test_arms_that_differ_in_the_prior_start_from_the_same_posterior(text: Path) -> None:
    first = lvlm.build(recipe_of(text, "learned")).state_dict()
    for prior in ("autoregressive", "mixture"):
        other = lvlm.build(recipe_of(text, prior)).state_dict()
        shared = [name for name in first if not name.startswith("latent.prior_head.")]
        assert all(torch.equal(first[name], other[name]) for name in shared)


def test_texts_that_share_codes_and_codes_that_are_held_go_on_under_what_the_prior_heard() -> None:
    with torch.no_grad():
        model = model_of(prior="autoregressive", quantizer=_bits(2))
        shared = lvlm.generate(model, [[1]], 6, samples=3, share_codes=True, prompt_codes="prior", seed=3)
        assert all(torch.equal(one.codes, shared[0].codes) for one in shared[1:])
        # Another code held in the first slot changes what is drawn after it, in some of many texts.
        one, other = (
            lvlm.generate(
                model, [[1]] * 40, 6, codes=torch.full((40, 1), held), prompt_codes="prior", temperature=0
            )
            for held in (0, 3)
        )
        assert all(sample.codes is not None and sample.codes[0] == 0 for sample in one)
        later = [(a.codes[1:] != b.codes[1:]).any() for a, b in zip(one, other, strict=True)]
        assert any(later)


def _bits(bits: int) -> Any:
    from lvlm_free.binary import BinaryParams

    return BinaryParams(bits=bits, embedding_std=1.0)


def test_a_graph_refuses_what_it_cannot_say() -> None:
    with torch.no_grad(), pytest.raises(UserError, match="depend on the codes before"):
        trace(model_of(prior="autoregressive").float())


def test_a_filter_hands_a_particle_the_memory_of_its_ancestor() -> None:
    """Two particles, one of which is killed: the other's codes alone shape what follows."""
    prior = autoregressive(1)
    memory = PriorMemory(prior, normal(2, 1, WIDTH), EMBEDDING)
    hidden_B1D = normal(2, 1, WIDTH)
    memory.numbers(hidden_B1D)
    memory.take_in(normal(2, 1, EMBEDDING, seed=1))
    memory.take(torch.tensor([1, 1]))
    numbers = memory.numbers(hidden_B1D[1:2].expand(2, -1, -1))
    torch.testing.assert_close(numbers[0], numbers[1])


def test_kl_of_a_latent_is_the_divergence_of_its_family() -> None:
    for quantizer in (binary(3), gaussian()):
        posterior, prior = (
            normal(2, SLOTS, k, seed=k) for k in (quantizer.posterior_dim, quantizer.prior_dim)
        )
        latent: Latent = quantizer(posterior, torch.zeros_like(prior))
        torch.testing.assert_close(quantizer.divergence(latent, prior), quantizer(posterior, prior).kl_BSd)


def test_a_run_that_an_older_version_saved_with_a_word_opens_with_its_weights(
    text: Path, tmp_path: Path
) -> None:
    recipe = tiny("free", text, model={"prior": "learned"}, train={"steps": 2})
    run = lvlm.train(recipe, tmp_path / "run")
    saved = run / "recipe.yaml"
    now = saved.read_text()
    assert "  prior:\n    kind: linear\n" in now
    saved.write_text(now.replace("  prior:\n    kind: linear\n", "  prior: learned\n"))
    edit_json(run / "run.json", lambda record: record.pop("recipe_sha256"))
    latent = lvlm.load(run).latent
    assert latent is not None
    assert [*dict(latent.prior_head.named_parameters())] == ["weight", "bias"]
    assert torch.equal(latent.prior_head.weight.detach(), weights(run)["latent.prior_head.weight"])  # type: ignore[union-attr, operator]


def test_a_negative_kl_of_a_token_is_as_light_as_none() -> None:
    spans = tuple(
        Span(text, kl, 1, slot) for slot, (text, kl) in enumerate([("a", -2.0), ("b", 0.0), ("c", 3.0)])
    )
    found = Reading(spans, windows=1, tokens=3, slots=3, kl_nats=1.0, kl_nats_per_slot=(1 / 3,))
    shown = next(iter(reading_tables(found)))
    assert isinstance(shown, Text)
    styles = {shown.plain[part.start : part.end]: part.style for part in shown.spans}
    assert styles.get("a") == styles.get("b") != styles.get("c")
    assert "/ -0" not in reading(found)
