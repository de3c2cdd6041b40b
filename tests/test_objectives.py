"""Objectives against enumeration: bounds over several draws, what is added to a loss, budgets that move."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

import lvlm
import lvlm_gptvae.gaussian
from lvlm.errors import UserError
from lvlm.interfaces import IGNORE, Batch, Latent, Loss, Output, Ramp, Slots, Terms
from lvlm.likelihood import Rows
from lvlm.likelihood.estimators import Exact, Importance
from lvlm.model.latent_lm import LatentLM
from lvlm.objective import NATS_PER_BIT, HingeParams, TargetParams, cross_entropy_of
from lvlm.recipe.assemble import assemble, build_loss
from lvlm.recipe.read import read_recipe
from lvlm.registry.registry import Registry
from lvlm.testing import batch_of, check_kind, randomise, token_rows
from lvlm.testing.cases import BACKBONE
from lvlm.training.trainer import Trainer
from lvlm_baseline.elbo import ChargeParams, ElboParams
from lvlm_baseline.iwae import IWAE, advantages
from lvlm_baseline.mtp import MultiToken, MultiTokenParams, attention_heads
from lvlm_free.binary import Binary
from tests.test_parallel import assert_same_training, finish, launch
from tests.tiny import before_step, logged, tiny, weights, write_text

REGISTRY = Registry.load()
TOKENS = 2
BITS = {
    "encoder": {"kind": "learned_query"},
    "quantizer": {"kind": "binary", "bits": 1},
    "injection": {"kind": "kv"},
}
NUMBER = {
    "encoder": {"kind": "bidirectional", "per": "sequence"},
    "quantizer": {"kind": "gaussian", "dim": 1},
    "injection": {"kind": "add"},
}


AHEAD = {"ahead": {"weight": 0.3, "loss": {"kind": "mtp", "tokens": 3}}}


def model_of(**model: Any) -> LatentLM:
    """A tiny model in float64, all of whose parameters are random."""
    recipe = {
        "name": "tiny",
        "model": {"backbone": BACKBONE, **model},
        "loss": {"kind": "iwae"},
        "data": {"kind": "python", "window": 8},
    }
    return randomise(assemble(read_recipe(recipe, registry=REGISTRY).recipe).double(), std=0.4)


def of_bits(estimator: str = "exact", prior: str = "learned", **model: Any) -> LatentLM:
    """One bit a token."""
    return model_of(
        **BITS | {"quantizer": BITS["quantizer"] | {"estimator": estimator}}, prior=prior, **model
    )


def rows(count: int = 1) -> Batch:
    """Rows of two targets."""
    return batch_of(token_rows(count, TOKENS + 1, seed=3))


# ------------------------------------------------------------------------- expectations by enumeration

Nodes = Iterator[Callable[[Output], Tensor]]
"""Sets up one outcome of the noise; what it gives is the outcome's probability, from the model's output."""


def all_bits(monkeypatch: pytest.MonkeyPatch, draws: int, slots: int = TOKENS) -> Nodes:
    """Every outcome of so many rows of bits."""
    for signs in itertools.product((-1.0, 1.0), repeat=draws * slots):
        at = torch.tensor(signs, dtype=torch.float64).view(draws, slots, 1)
        monkeypatch.setattr(Binary, "_draw", lambda *_, at=at: at)
        yield (
            lambda output: (
                torch.stack(
                    [
                        one.latent.log_posterior_BS.sum()
                        for one in output.latents.values()
                        if _is_index(one.latent)
                    ]
                )
                .sum()
                .exp()
            )
        )


def _is_index(latent: Any) -> bool:
    return not latent.codes.is_floating_point()


def all_noise(monkeypatch: pytest.MonkeyPatch, draws: int, points: int, latents: int = 1) -> Nodes:
    """Gauss-Hermite points of the noise of one number a row, for each latent."""
    at, weights = np.polynomial.hermite_e.hermegauss(points)
    weights = weights / weights.sum()
    for chosen in itertools.product(range(points), repeat=draws * latents):
        noise = [torch.tensor(at[list(chosen[n::latents])]).view(draws, 1, 1) for n in range(latents)]
        left = list(noise)
        monkeypatch.setattr(lvlm_gptvae.gaussian, "normal", lambda *_, left=left, **__: left.pop(0))
        probability = torch.tensor(float(np.prod(weights[list(chosen)])), dtype=torch.float64)
        yield lambda _, probability=probability: probability


def expected(
    model: LatentLM, loss: Loss, batch: Batch, nodes: Nodes, value: Callable[[Terms], Tensor]
) -> Tensor:
    """The mean of a value over all outcomes."""
    total = torch.zeros((), dtype=torch.float64)
    for probability in nodes:
        output = model(batch.inputs_BT, batch.keep_BT, log_ratios=True)
        total = total + probability(output).detach() * value(loss(output, batch, num_tokens=1, step=0))
    return total


def assert_unbiased(model: LatentLM, batch: Batch, nodes: Callable[[], Nodes], *, atol: float = 1e-8) -> None:
    """The mean gradient of the loss is the slope of its mean, along random directions of all parameters."""
    loss = IWAE()
    mean = expected(model, loss, batch, nodes(), lambda terms: terms.loss)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(mean, parameters, allow_unused=True, materialize_grads=True)
    generator = torch.Generator().manual_seed(0)
    inference = {id(p) for path in model.paths.values() for p in path.inference_parameters()}
    for chosen in (lambda p: id(p) in inference, lambda p: id(p) not in inference):
        direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) * chosen(p) for p in parameters]
        ends = []
        for step in (1e-5, -1e-5):
            _move(parameters, direction, step)
            with torch.no_grad():
                ends.append(expected(model, loss, batch, nodes(), lambda terms: terms.loss))
            _move(parameters, direction, -step)
        slope = (ends[0] - ends[1]) / 2e-5
        found = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
        assert abs(slope) > 1e-4, "the direction does nothing"
        torch.testing.assert_close(found, slope, atol=atol, rtol=1e-6)


def _move(parameters: list[Tensor], direction: list[Tensor], step: float) -> None:
    with torch.no_grad():
        for parameter, along in zip(parameters, direction, strict=True):
            parameter.add_(along, alpha=step)


# --------------------------------------------------------------------------------- the bound of several draws


@pytest.mark.parametrize("draws", [1, 2, 3])
def test_the_mean_of_the_bounds_weight_is_the_probability_and_the_bound_falls(
    draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = of_bits(), rows()
    many = batch.repeated(draws)

    def mean(value: Callable[[Terms], Tensor], of: Batch, k: int) -> float:
        with torch.no_grad():
            return float(expected(model, IWAE(), of, all_bits(monkeypatch, k), value))

    weight = mean(lambda terms: (-terms.loss).exp(), many, draws)
    assert weight == pytest.approx(probability_of(model, batch), rel=1e-10)
    bound = mean(lambda terms: terms.loss, many, draws)
    assert bound >= -math.log(weight)
    if draws > 1:
        fewer = mean(lambda terms: terms.loss, batch.repeated(draws - 1), draws - 1)
        assert bound < fewer


def probability_of(model: LatentLM, batch: Batch) -> float:
    """p(x) of one row, by the likelihood's own enumeration."""
    with torch.no_grad():
        found = Rows(model.eval(), batch, seeds=[0] * len(batch), at_once=8, autocast=nullcontext)
        nats = Exact()(found).nats
    model.train()
    return float((-nats).exp())


def test_the_bound_of_some_draws_is_that_of_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, draws = of_bits().eval(), rows(3), 4
    with torch.no_grad():
        evaluated = Rows(model, batch, seeds=[5, 6, 7], at_once=8, autocast=nullcontext)
        theirs = Importance(draws)(evaluated).nats.sum()
        codes = evaluated.draws("posterior", draws).codes.flatten(0, 1)
        monkeypatch.setattr(Binary, "_draw", lambda *_: 2.0 * codes[..., None] - 1)
        many = batch.repeated(draws)
        output = model(many.inputs_BT, many.keep_BT, log_ratios=True)
    terms = IWAE()(output, many, num_tokens=1, step=0)
    torch.testing.assert_close(terms.loss, theirs)
    torch.testing.assert_close(terms.sums["nll_iwae_4"], theirs)


@pytest.mark.parametrize("estimator", ["exact", "bitwise"])
def test_one_draw_straight_through_has_the_gradient_of_the_elbo(estimator: str) -> None:
    model, batch = of_bits(estimator, prior="fixed"), rows(3)
    found = []
    for loss in (IWAE(), ElboParams().build()):
        generator = torch.Generator().manual_seed(0)
        output = model(batch.inputs_BT, generator=generator, log_ratios=True)
        terms = loss(output, batch, num_tokens=6, step=0)
        found.append(torch.autograd.grad(terms.loss, list(model.parameters()), materialize_grads=True))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("row_count", "draws"), [(1, 1), (2, 1), (1, 2), (1, 3)])
def test_the_score_function_is_unbiased_for_any_number_of_draws(
    row_count: int, draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = rows(row_count).repeated(draws)
    assert_unbiased(of_bits("reinforce"), batch, lambda: all_bits(monkeypatch, row_count * draws))


@pytest.mark.parametrize(("draws", "variance"), [(1, "own"), (2, "own"), (2, "shared")])
def test_the_doubly_reparameterised_gradient_is_unbiased(
    draws: int, variance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(**NUMBER | {"quantizer": NUMBER["quantizer"] | {"variance": variance}}, prior="learned")
    assert model.latent is not None
    assert model.latent.prior_head is not None
    parts = (model.latent.readout, model.latent.prior_head, model.latent.quantizer)
    with torch.no_grad():  # weights that few points of a quadrature can integrate
        for parameter in itertools.chain.from_iterable(part.parameters() for part in parts):
            parameter.mul_(0.1)
    assert_unbiased(model, rows().repeated(draws), lambda: all_noise(monkeypatch, draws, 14), atol=1e-5)


@pytest.mark.parametrize("lower", [NUMBER | {"seam": 1}, BITS | {"seam": 1}])
def test_the_gradient_of_two_latents_one_upon_the_other_is_unbiased(
    lower: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Doubling the gradient of a code that another posterior reads would be wrong."""
    discrete = lower["quantizer"]["kind"] == "binary"
    if discrete:
        quantizer = lower["quantizer"] | {"estimator": "reinforce"}
        lower = lower | {"encoder": {"kind": "learned_query", "per": "sequence"}, "quantizer": quantizer}
    model = model_of(latents={"lower": lower, "upper": NUMBER | {"seam": 2}})

    def nodes() -> Nodes:
        if not discrete:
            yield from all_noise(monkeypatch, 2, 3, latents=2)
            return
        for of_bits in all_bits(monkeypatch, 2, slots=1):
            for of_number in all_noise(monkeypatch, 2, 3):
                yield lambda output, a=of_bits, b=of_number: a(output) * b(output)

    assert_unbiased(model, rows().repeated(2), nodes)


@pytest.mark.parametrize(("draws", "off_by"), [(1, 0.01), (2, 0.15), (4, 0.99)])
def test_straight_through_is_biased_by_what_the_docs_say(
    draws: int, off_by: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for estimator in ("reinforce", "exact"):  # the first is the bound's gradient
        model, many = of_bits(estimator), rows().repeated(draws)
        assert model.latent is not None
        mean = expected(model, IWAE(), many, all_bits(monkeypatch, draws), lambda terms: terms.loss)
        inference = list(model.latent.inference_parameters())
        slopes = torch.autograd.grad(mean, inference, materialize_grads=True, allow_unused=True)
        found.append(torch.cat([slope.flatten() for slope in slopes]))
    right, ours = found
    assert (ours - right).norm() / right.norm() == pytest.approx(off_by, abs=0.006)
    assert torch.cosine_similarity(ours, right, dim=0) > 0.99


def test_the_advantage_of_a_draw_by_hand() -> None:
    weights = torch.tensor([[0.0, math.log(3.0)], [1.0, 1.0]])
    wanted = [[math.log(6 / 4), math.log(2 / 4)], [0.0, 0.0]]  # the other of two stands in for a draw
    torch.testing.assert_close(advantages(weights), torch.tensor(wanted))
    alone = advantages(torch.tensor([[2.0], [5.0], [8.0]]))
    torch.testing.assert_close(alone, torch.tensor([[4.5], [0.0], [-4.5]]))
    torch.testing.assert_close(advantages(torch.tensor([[2.0]])), torch.tensor([[-2.0]]))


# ----------------------------------------------------------------------------------------- draws in training


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


def of_draws(arm: str, text: Path, draws: int = 3, **train: Any) -> dict[str, Any]:
    return tiny(arm, text, train={"draws": draws, "steps": 3, **train}) | {"loss": {"kind": "iwae"}}


@pytest.mark.parametrize("arm", ["free", "gptvae"])
def test_draws_train_alike_in_any_micro_batches(arm: str, text: Path, tmp_path: Path) -> None:
    whole, parts = (lvlm.train(of_draws(arm, text, micro_rows=size), tmp_path / str(size)) for size in (4, 1))
    for ours, theirs in zip(weights(whole).values(), weights(parts).values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    first = logged(whole)[0]
    assert first["loss"] == pytest.approx(first["nll_iwae_3"])
    assert first["nll_iwae_3"] <= first["ce_posterior"] + first["kl"] + 0.1
    assert {"kl_hinged", "beta_effective"} < first.keys()


@pytest.mark.parametrize("what", ["draws", "an added loss"])
@pytest.mark.slow
def test_two_processes_train_as_one(what: str, text: Path, tmp_path: Path) -> None:
    added = tiny("free", text, added_losses=AHEAD, train={"steps": 3})
    recipe = of_draws("gptvae", text) if what == "draws" else added
    one, two = tmp_path / "one", tmp_path / "two"
    finish(launch(1, recipe, one))
    finish(launch(2, recipe, two))
    assert_same_training(one, two)


def test_the_first_draw_has_the_noise_of_a_single_one(text: Path, tmp_path: Path) -> None:
    seen = {}
    for draws in (1, 3):
        trainer = Trainer(read_recipe(of_draws("free", text, draws)), tmp_path / str(draws))
        (micro, noise, _), *_ = trainer._micro_batches(trainer._batch())
        with torch.no_grad():
            seen[draws] = trainer.model(micro.inputs_BT, generator=noise).latent.codes
    assert torch.equal(seen[3][::3], seen[1])
    assert not torch.equal(seen[3][1::3], seen[1])
    assert not torch.equal(seen[3][1::3], seen[3][2::3])


def test_draws_cost_flops_and_memory_and_no_tokens(text: Path) -> None:
    one, three = (lvlm.plan(of_draws("free", text, draws)) for draws in (1, 3))
    assert three.flops_per_token == pytest.approx(3 * one.flops_per_token, rel=0.01)
    assert three.tokens_per_step == one.tokens_per_step
    activations = "activations"
    assert three.bytes_by_holder[activations] > 2 * one.bytes_by_holder[activations]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train": {"draws": 2}}, "train.draws: loss 'elbo' doesn't weigh draws of codes"),
        (
            {"loss": {"kind": "iwae"}, "train": {"codes": "prior"}},
            "train.codes: loss 'iwae' weighs codes that",
        ),
        ({"loss": {"kind": "iwae"}, "train": {"codes": "shuffled"}}, "codes: shuffled are none"),
        ({"loss": {"kind": "iwae"}, "train": {"draws": 0}}, "train.draws: Input should be greater"),
    ],
)
def test_draws_that_nobody_weighs_are_refused(change: dict[str, Any], says: str, text: Path) -> None:
    with pytest.raises(UserError) as told:
        read_recipe(tiny("free", text, **change))
    assert says in str(told.value)


# ------------------------------------------------------------------------------------------ budgets that move


SHRINKING = Ramp(start=8, end=2, steps=10, after=5)


def charged_at(loss: Loss, step: int, kl_nats: float) -> float:
    """What one row pays whose only slot has so much KL."""
    kl_BSd = torch.full((1, 1, 1), kl_nats, dtype=torch.float64)
    latent = Latent(torch.zeros(1, 1), torch.zeros(1, 1, 1), kl_BSd, kl_BSd, kl_BSd)
    keep_BS = torch.ones(1, 1, dtype=torch.bool)
    output = Output.of_logits(torch.zeros(1, 1, 5, dtype=torch.float64), latent, keep_BS, Slots(1))
    terms = loss(output, Batch(*torch.zeros(3, 1, 1).long()), num_tokens=1, step=step)
    return float(terms.sums["kl_hinged"])


@pytest.mark.parametrize(
    ("step", "bits"), [(0, 8), (5, 8), (10, 5), (15, 2), (10_000, 2)], ids=lambda value: str(value)
)
def test_a_budget_follows_its_schedule(step: int, bits: float) -> None:
    loss = ElboParams(budget_bits=SHRINKING).build()
    later = ElboParams(budget_bits=SHRINKING, autoencoder_steps=7).build()
    over = 9 * NATS_PER_BIT
    assert charged_at(loss, step, over) == pytest.approx((9 - bits) * NATS_PER_BIT)
    assert charged_at(later, step + 7, over) == pytest.approx((9 - bits) * NATS_PER_BIT)
    assert charged_at(later, 6, over) == pytest.approx(NATS_PER_BIT)


def test_the_budget_of_each_latent_may_follow_its_own_schedule() -> None:
    loss = ElboParams(
        budget_bits=1, latents={"plan": ChargeParams(budget_bits=SHRINKING), "local": ChargeParams()}
    ).build()
    loss.for_latents(["plan", "local"])
    kl_BSd, keep_BS = torch.full((1, 1, 1), 9 * NATS_PER_BIT), torch.ones(1, 1, dtype=torch.bool)
    charged = {
        name: float(charge(kl_BSd, keep_BS, 10)[1]["kl_hinged"]) / NATS_PER_BIT
        for name, charge in loss.charges.items()
    }
    assert charged == pytest.approx({"latent_plan": 4, "latent_local": 8})
    assert loss.budget_nats(3, "plan") == pytest.approx(2 * NATS_PER_BIT), "the budget at the end"
    assert loss.budget_nats(3, "local") == pytest.approx(NATS_PER_BIT)


@pytest.mark.parametrize("kind", ["pid", "lagrangian", "clamp"])
def test_a_controller_steers_to_the_budget_of_the_step(kind: str) -> None:
    """With a budget of 1 bit from the start it charges as with one that comes down to 1 bit at once."""
    term = REGISTRY.get("term", kind).params()
    moved = ElboParams(term=term, budget_bits=Ramp(start=8, end=1, steps=1)).build()
    fixed = ElboParams(term=term, budget_bits=1).build()
    for loss in (moved, fixed):
        charged_at(loss, 1, 3.0)
        loss.after_step()
    assert charged_at(moved, 2, 3.0) == charged_at(fixed, 2, 3.0)
    loose = ElboParams(term=term, budget_bits=8).build()
    charged_at(loose, 1, 3.0)
    loose.after_step()
    assert charged_at(loose, 2, 3.0) != charged_at(fixed, 2, 3.0)


class OnceParams(HingeParams):
    """A stranger's term that takes its budget when it is built."""

    takes_schedule: ClassVar[bool] = False


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"term": OnceParams(), "budget_bits": SHRINKING}, "takes its budget once"),
        ({"term": TargetParams(), "budget_bits": Ramp(start=8, end=0, steps=1)}, "from 8.0 to 0.0 must be"),
        ({"latents": {"a": ChargeParams(budget_bits=SHRINKING)}, "term": OnceParams()}, "latent 'a': term"),
        ({"budget_bits": {"start": math.inf, "end": 1, "steps": 3}}, "finite"),
        ({"budget_bits": -1.0}, "greater than or equal to 0"),
        ({"budget_bits": math.nan}, "greater than or equal to 0"),
    ],
)
def test_budgets_that_no_term_can_follow_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ElboParams(**values)


def test_a_run_whose_budget_shrinks_trains_and_says_its_last_budget(text: Path, tmp_path: Path) -> None:
    budget = {"start": 64, "end": 0, "steps": 2, "after": 2}
    recipe = tiny("free", text, loss={"budget_bits": budget}, train={"steps": 6})
    run = lvlm.train(recipe, tmp_path / "run")
    charged = [entry["kl_hinged"] for entry in logged(run)]
    assert charged[:3] == [0.0] * 3
    assert charged[4] == pytest.approx(logged(run)[4]["kl"])
    assert build_loss(read_recipe(recipe).recipe).budget_nats(8) == 0


# -------------------------------------------------------------------------------------------- what is added


def case_of(tokens: int, head: Any) -> tuple[MultiToken, Output, Batch, Tensor]:
    loss = randomise(MultiToken(tokens, head, width=16).double())
    batch = batch_of(token_rows(3, 7, vocab=5))
    targets_BT = batch.targets_BT.clone()
    targets_BT[1, 3:] = IGNORE
    batch = Batch(batch.inputs_BT, targets_BT, batch.keep_BT)
    hidden_BTD = torch.randn(3, 6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    matrix = torch.randn(16, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return loss, Output(hidden_BTD, lambda x: x @ matrix), batch, matrix


@pytest.mark.parametrize("head", ["block", "linear"])
def test_the_heads_of_mtp_predict_the_tokens_further_ahead(head: Any) -> None:
    loss, output, batch, matrix = case_of(3, head)
    nats, sums = loss.addition(output, batch, step=0)
    by_hand = []
    for further, one in enumerate(loss.heads, start=1):
        log_p = (one(output.hidden_BTD) @ matrix).log_softmax(-1).detach()
        cost = 0.0
        for row, place in itertools.product(range(3), range(6 - further)):
            if (target := int(batch.targets_BT[row, place + further])) != IGNORE:
                cost -= float(log_p[row, place, target])
        by_hand.append(cost)
    assert nats.item() == pytest.approx(sum(by_hand))
    assert [float(sums["mtp_2"]), float(sums["mtp_3"])] == pytest.approx(by_hand)


@pytest.mark.parametrize("head", ["block", "linear"])
def test_a_head_of_mtp_sees_no_later_token(head: Any) -> None:
    loss, output, _, _ = case_of(2, head)
    before = loss.heads[0](output.hidden_BTD)
    changed = output.hidden_BTD.clone()
    changed[:, 3] += 1
    after = loss.heads[0](changed)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3], after[:, 3])


def test_mtp_of_rows_shorter_than_it_looks_ahead_costs_nothing_and_chunks_change_nothing() -> None:
    loss, output, batch, _ = case_of(4, "block")
    short = Output(output.hidden_BTD[:, :2], output.head)
    nats, sums = loss.addition(short, Batch(*(x[:, :2] for x in three(batch))), step=0)
    assert float(sums["mtp_3"]) == float(sums["mtp_4"]) == 0
    assert nats.item() == pytest.approx(float(sums["mtp_2"]))
    whole = loss.addition(output, batch, step=0)[0]
    output.chunk_tokens = 4
    torch.testing.assert_close(loss.addition(output, batch, step=0)[0], whole)


def three(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    return batch.inputs_BT, batch.targets_BT, batch.keep_BT


def test_what_codes_say_to_the_logits_stays_beside_the_head_of_mtp() -> None:
    loss, output, batch, matrix = case_of(2, "linear")
    code = torch.randn(3, 6, 16, dtype=torch.float64)
    both = Output(torch.cat((output.hidden_BTD, code), -1), lambda x: (x[..., :16] + x[..., 16:]) @ matrix)
    by_hand = Output(loss.heads[0](output.hidden_BTD) + code, output.head)
    targets_BT = F.pad(batch.targets_BT[:, 1:], (0, 1), value=IGNORE)
    nats, _ = loss.addition(both, batch, step=0)
    torch.testing.assert_close(nats, cross_entropy_of(by_hand, targets_BT).sum())


@pytest.mark.parametrize("arm", ["baseline", "free"])
def test_an_added_loss_is_added_with_its_weight_and_logged_by_name(
    arm: str, text: Path, tmp_path: Path
) -> None:
    plain = logged(lvlm.train(tiny(arm, text, train={"steps": 3}), tmp_path / "plain"))
    run = lvlm.train(tiny(arm, text, train={"steps": 3}, added_losses=AHEAD), tmp_path / "run")
    more = logged(run)
    assert more[0]["ahead"] == pytest.approx(more[0]["ahead/mtp_2"] + more[0]["ahead/mtp_3"])
    assert more[0]["loss"] == pytest.approx(plain[0]["loss"] + 0.3 * more[0]["ahead"], rel=1e-6)
    for name in plain[0].keys() - {"loss", "gradient_norm"}:
        assert more[0][name] == plain[0][name], "the loss that it is added to is what it was"
    assert more[-1]["ahead"] < more[0]["ahead"]
    assert lvlm.load(run).state_dict().keys() == lvlm.build(tiny(arm, text)).state_dict().keys()


def test_an_addition_without_weight_changes_no_weight_of_the_model(text: Path, tmp_path: Path) -> None:
    nothing = {"ahead": AHEAD["ahead"] | {"weight": {"start": 0, "end": 1, "steps": 1, "after": 5}}}
    plain = lvlm.train(tiny("free", text, train={"steps": 3}), tmp_path / "plain")
    run = lvlm.train(tiny("free", text, train={"steps": 3}, added_losses=nothing), tmp_path / "run")
    for name, value in weights(plain).items():
        assert torch.equal(weights(run)[name], value), name


def test_a_run_with_an_added_loss_resumes_to_the_bit(text: Path, tmp_path: Path) -> None:
    recipe = tiny("free", text, added_losses=AHEAD, train={"steps": 3, "checkpoint_every": 1})
    whole, other = lvlm.train(recipe, tmp_path / "whole"), tmp_path / "other"

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 2, stop)
        with pytest.raises(KeyboardInterrupt):
            lvlm.train(recipe, other)
    lvlm.train(None, other, resume=True)
    assert logged(other) == logged(whole)
    for name, value in weights(whole).items():
        assert torch.equal(weights(other)[name], value), name


def test_mtp_by_itself_is_the_cross_entropy_and_what_is_ahead(text: Path, tmp_path: Path) -> None:
    recipe = tiny("baseline", text, train={"steps": 2}) | {"loss": {"kind": "mtp"}}
    first = logged(lvlm.train(recipe, tmp_path / "run"))[0]
    assert first["loss"] == pytest.approx(first["nll_exact"] + first["mtp_2"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"a": {"loss": {"kind": "elbo"}}}, "added_losses.a.loss.kind: loss 'elbo' is a whole objective"),
        ({"a": {"loss": {"kind": "mpt"}}}, "unknown loss 'mpt'; known: "),
        (
            {"a": {"loss": {"kind": "mtp", "tokens": 1}}},
            "added_losses.a.loss.tokens: Input should be greater",
        ),
        ({"a": {"loss": {"kind": "mtp", "heads": 1}}}, "unknown key 'heads'; did you mean 'head'"),
        ({"a": {"weight": 1}}, "missing required key 'loss'"),
        ({"a": {"loss": {"kind": "mtp"}, "weight": -1}}, "added_losses.a.weight: "),
        ({"A b": {"loss": {"kind": "mtp"}}}, "added_losses.A b"),
        ({"a": {"kind": "mtp"}}, "added_losses.a.kind: unknown key 'kind'; known: loss, weight"),
        ({"a": None}, "added_losses.a: Input should be a mapping"),
    ],
)
def test_additions_that_cannot_be_are_refused_in_words(change: Any, says: str, text: Path) -> None:
    with pytest.raises(UserError) as told:
        read_recipe(tiny("free", text, added_losses=change))
    assert says in str(told.value)


def test_an_addition_is_refused_beside_several_draws(text: Path) -> None:
    recipe = of_draws("free", text) | {"added_losses": AHEAD}
    with pytest.raises(UserError, match="an added loss has no weights for several draws"):
        read_recipe(recipe)


def test_a_block_of_an_odd_width_is_told() -> None:
    with pytest.raises(UserError, match="needs an even width"):
        MultiTokenParams().build(width=15, vocab=3)
    assert MultiTokenParams(head="linear").build(width=15, vocab=3).heads[0].block is None
    assert [attention_heads(width) for width in (16, 100, 192, 200, 768)] == [1, 1, 3, 2, 12]


CALM = str(Path(__file__).parent / "strangers" / "calm.py")


def test_a_strangers_term_is_one_file_and_stands_beside_the_elbo(text: Path, tmp_path: Path) -> None:
    check_kind(Registry.load(files=[CALM]).get("loss", "calm").params.example())
    both = AHEAD | {"calm": {"weight": 0.1, "loss": {"kind": "calm"}}}
    recipe = tiny("free", text, added_losses=both, train={"steps": 2}) | {"plugins": [CALM]}
    first = logged(lvlm.train(recipe, tmp_path / "run"))[0]
    plain = logged(lvlm.train(tiny("free", text, train={"steps": 2}), tmp_path / "plain"))[0]
    assert -math.log(256) < first["calm"] < 0
    wanted = plain["loss"] + 0.3 * first["ahead"] + 0.1 * first["calm"]
    assert first["loss"] == pytest.approx(wanted, rel=1e-6)
    with pytest.raises(UserError, match="--plugin"):
        lvlm.load(tmp_path / "run")
    assert lvlm.doctor(tmp_path / "run", plugin_files=[CALM]).measured.trainable > 0


@pytest.mark.parametrize(
    "quantizer", [{"kind": "vq", "codes": 9, "dim": 3}, {"kind": "fsq", "levels": [4, 3]}]
)
def test_draws_of_a_point_mass_are_all_alike(quantizer: dict[str, Any], text: Path, tmp_path: Path) -> None:
    pytest.importorskip("vector_quantize_pytorch")
    recipe = of_draws("free", text, 2) | {}
    recipe["model"]["quantizer"] = quantizer
    one, two = (
        logged(lvlm.train(recipe | {"train": recipe["train"] | {"draws": k}}, tmp_path / str(k)))[-1]
        for k in (1, 2)
    )
    for name in ("loss", "ce_posterior", "kl", "gradient_norm"):
        assert two[name] == pytest.approx(one[name], rel=1e-5)
    assert two["nll_iwae_2"] == pytest.approx(two["ce_posterior"] + two["kl"], rel=1e-5)
    assert two["loss"] == pytest.approx(two["nll_iwae_2"] + two.get("penalty", 0), rel=1e-5)
