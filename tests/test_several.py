"""Several latents in one model: drawn in the order of their seams, charged each by itself, and every estimator
right by enumeration.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lvlm
from lvlm.cli.tables import evaluation_table
from lvlm.errors import Interrupted, UserError
from lvlm.interfaces import IGNORE, Batch
from lvlm.likelihood.estimators import Elbo, Exact, Importance, ParticleFilter, PriorRollout
from lvlm.likelihood.filter import Filter
from lvlm.likelihood.several import SeveralRows, at_first_tokens, rows_of
from lvlm.model.latent_lm import LatentLM
from lvlm.objective import NATS_PER_BIT, cross_entropy_nats
from lvlm.recipe.assemble import assemble, build_loss
from lvlm.recipe.read import read_recipe
from lvlm.report.page import report_folder
from lvlm.runs.folder import read_record
from lvlm.testing import check_model, randomise
from lvlm.training.flops import flops_per_token
from lvlm.training.metrics import read_metrics
from tests.test_parallel import assert_same_training, finish, launch
from tests.tiny import before_step, logged, tiny, weights, write_text

VOCAB, TOKENS = 3, 3

PLAN: dict[str, Any] = {
    "seam": 0,
    "encoder": {"kind": "bidirectional", "per": "sequence", "layers": 1},
    "quantizer": {"kind": "binary", "bits": 1},
    "injection": {"kind": "kv", "layers": "all"},
}
LOCAL: dict[str, Any] = {
    "seam": 1,
    "encoder": {"kind": "learned_query"},
    "quantizer": {"kind": "binary", "bits": 1},
    "injection": {"kind": "add"},
}
HIERARCHIES: dict[str, dict[str, Any]] = {
    "plan above tokens": {"plan": PLAN, "local": LOCAL},
    "learned priors": {"plan": {**PLAN, "prior": "learned"}, "local": {**LOCAL, "prior": "learned"}},
    "a prior that sees codes": {"plan": PLAN, "local": {**LOCAL, "prior": "autoregressive"}},
    "a plan in a prefix": {"plan": {**PLAN, "injection": {"kind": "prefix"}}, "local": LOCAL},
    "a plan in a memory": {
        "plan": {**PLAN, "injection": {"kind": "cross_attention", "layers": "all"}},
        "local": LOCAL,
    },
    "tokens below tokens": {"one": {**LOCAL, "seam": 0}, "two": {**LOCAL, "injection": {"kind": "kv"}}},
    "both at one seam": {"plan": {**PLAN, "seam": 1, "injection": {"kind": "film"}}, "local": LOCAL},
    "three": {
        "plan": {**PLAN, "seam": 0},
        "chunk": {**LOCAL, "encoder": {"kind": "learned_query", "per": 2}, "seam": 1},
        "local": {**LOCAL, "seam": 2, "injection": {"kind": "logits"}},
    },
}


def recipe_of(latents: dict[str, Any], /, **loss: Any) -> dict[str, Any]:
    backbone = {"kind": "decoder", "layers": 2, "width": 8, "heads": 2, "hidden": 16, "context": 8}
    return {
        "name": "several",
        "model": {"backbone": backbone, "vocab": 256, "latents": latents},
        "loss": {"kind": "elbo", **loss},
        "data": {"kind": "python", "window": 8},
    }


def model_of(latents: dict[str, Any], *, std: float = 0.5) -> LatentLM:
    """The model over a vocabulary of three, with every weight drawn, float64."""
    recipe = read_recipe(recipe_of(latents)).recipe
    small = recipe.model.backbone.build(vocab=VOCAB)
    model = randomise(LatentLM(small, assemble(recipe).paths).double().eval(), std=std)
    for path in model.paths.values():  # a posterior that is sure of itself makes weights of no visible mean
        for parameter in path.readout.parameters():
            parameter.data.mul_(0.3)
    return model


def batch_of(rows_BT: Tensor) -> Batch:
    inputs, targets = rows_BT[:, :-1], rows_BT[:, 1:]
    return Batch(inputs, targets, torch.ones_like(inputs, dtype=torch.bool))


def rows_for(
    model: LatentLM, batch: Batch, seeds: Sequence[int], *, at_once: int = 64, prompt: int = 0
) -> Any:
    return rows_of(model, batch, seeds=list(seeds), at_once=at_once, autocast=nullcontext, prompt=prompt)


ROW = torch.tensor([[0, 2, 1, 1]])


QUICK = ("plan above tokens", "a prior that sees codes", "three")
NAMES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow, id=name.replace(" ", "_"))
    for name in HIERARCHIES
]
"""All hierarchies; but for a few they are slow tests."""


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> LatentLM:
    return model_of(HIERARCHIES[request.param])


@torch.no_grad()
def test_probabilities_of_all_texts_sum_to_one(model: LatentLM) -> None:
    rest = torch.tensor(list(itertools.product(range(VOCAB), repeat=TOKENS)))
    rows_BT = torch.cat((torch.zeros(len(rest), 1, dtype=torch.long), rest), 1)
    nats = Exact()(rows_for(model, batch_of(rows_BT), range(len(rest)))).nats
    torch.testing.assert_close((-nats).exp().sum(), torch.tensor(1.0, dtype=torch.float64))


@torch.no_grad()
def test_bounds_are_in_order_and_weights_have_the_right_mean(model: LatentLM) -> None:
    """With the exact likelihood by enumeration: of 600 estimates the mean of exp(-nats) is p(x), and with
    more codes the mean bound falls towards it.
    """
    many = 600
    batch = batch_of(ROW.expand(many, -1))
    exact = Exact()(rows_for(model, batch_of(ROW), [0])).nats[0]
    rows = rows_for(model, batch, range(many))
    filters = [
        Filter(2, chunk=chunk, proposal=proposal) for chunk in (1, 2) for proposal in ("posterior", "prior")
    ]
    filters += [
        Filter(3, chunk=1, proposal="mixture", resample_below=1.0),
        Filter(2, chunk=1, deferred=True, resample_below=1.0),
        Filter(2, chunk=1, resampling="multinomial", resample_below=1.0),
    ]
    unbiased = [Importance(1), Importance(3), Importance(2, "mixture"), Importance(2, "prior")]
    for estimator in [*unbiased, *map(ParticleFilter, filters)]:
        ratio = (exact - estimator(rows).nats).exp()
        error = ratio.std() / many**0.5
        assert (ratio.mean() - 1).abs() < 4.5 * error + 1e-9, f"{estimator}: {ratio.mean():.4f} ± {error:.4f}"
    elbo, one, three = (of(rows).nats for of in (Elbo(1), Importance(1), Importance(3)))
    assert elbo.mean() >= exact - 4 * elbo.std() / many**0.5
    assert (elbo.mean() - one.mean()).abs() < 4 * (elbo - one).std() / many**0.5, "the same bound, twice"
    assert three.mean() < one.mean()
    assert PriorRollout(2)(rows).nats.mean() > exact


@torch.no_grad()
def test_a_filter_without_resampling_is_importance(model: LatentLM) -> None:
    rows = rows_for(model, batch_of(ROW.expand(5, -1)), range(5), at_once=3)
    whole = ParticleFilter(Filter(4, chunk=1, resample_below=0.0))(rows)
    torch.testing.assert_close(whole.nats, Importance(4)(rows).nats)


@torch.no_grad()
def test_neither_the_micro_batch_nor_other_rows_change_a_number(model: LatentLM) -> None:
    batch = batch_of(torch.tensor([[0, 2, 1, 1], [1, 0, 0, 2], [2, 2, 0, 1]]))
    spec = ParticleFilter(Filter(3, chunk=1, resample_below=1.0))
    for estimator in (Elbo(3), Importance(3), spec):
        together = estimator(rows_for(model, batch, [5, 6, 7])).nats
        small = estimator(rows_for(model, batch, [5, 6, 7], at_once=2)).nats
        alone = torch.cat([estimator(rows_for(model, batch[r : r + 1], [5 + r])).nats for r in range(3)])
        torch.testing.assert_close(together, small)
        torch.testing.assert_close(together, alone)


@torch.no_grad()
def test_padding_is_invisible(model: LatentLM) -> None:
    batch = batch_of(torch.tensor([[0, 2, 1, 1]]))
    junk = Batch(
        torch.cat((batch.inputs_BT, torch.tensor([[2, 1]])), 1),
        torch.cat((batch.targets_BT, torch.full((1, 2), IGNORE)), 1),
        torch.tensor([[True] * TOKENS + [False] * 2]),
    )
    for estimator in (Exact(), Elbo(2), Importance(2)):
        one, other = (estimator(rows_for(model, rows, [3])).nats for rows in (batch, junk))
        torch.testing.assert_close(one, other)


def test_codes_of_a_lower_seam_move_the_numbers_of_an_upper_one() -> None:
    model = model_of(HIERARCHIES["plan above tokens"])
    tokens_BT = ROW[:, :TOKENS]
    zero, one = (model(tokens_BT, z={"plan": torch.tensor([[code]])}).latents["local"] for code in (0, 1))
    assert not torch.allclose(zero.latent.posterior_BSK, one.latent.posterior_BSK)
    zero, one = (
        model(tokens_BT, z={"local": torch.full((1, TOKENS), code)}).latents["plan"] for code in (0, 1)
    )
    assert torch.equal(zero.latent.posterior_BSK, one.latent.posterior_BSK)


def test_given_codes_are_given_by_name() -> None:
    model = model_of(HIERARCHIES["plan above tokens"])
    tokens_BT = ROW[:, :TOKENS]
    with pytest.raises(UserError, match="codes for plan, local are given by name"):
        model(tokens_BT, z=torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(UserError, match="'plam'.*did you mean 'plan'"):
        model(tokens_BT, z={"plam": "prior"})
    codes = {"plan": torch.tensor([[1]]), "local": torch.tensor([[0, 1, 1]])}
    out = model(tokens_BT, z=codes)
    for name, given in codes.items():
        assert torch.equal(out.latents[name].latent.codes, given)


def test_every_latent_is_charged_by_itself_and_logged_by_name() -> None:
    latents = HIERARCHIES["plan above tokens"]
    recipe = read_recipe(recipe_of(latents, budget_bits=1e-4, latents={"plan": {"budget_bits": 50}})).recipe
    model, loss = model_of(latents), build_loss(recipe)
    batch = batch_of(torch.tensor([[0, 2, 1, 1], [1, 0, 0, 2]]))
    output = model(batch.inputs_BT, generator=torch.Generator().manual_seed(0))
    terms = loss(output, batch, num_tokens=batch.num_targets, step=0)
    for name in model.names:
        raw = output.latents[name].latent.kl_BSd.sum()
        torch.testing.assert_close(terms.sums[f"{name}/kl"].double(), raw.detach().double())
    assert terms.sums["plan/kl_hinged"] == 0 < terms.sums["local/kl_hinged"]
    for key in ("kl", "kl_hinged", "kl_priced"):
        parts = sum(terms.sums[f"{name}/{key}"] for name in model.names)
        torch.testing.assert_close(terms.sums[key], parts)
    ce = cross_entropy_nats(output.logits_BTV, batch.targets_BT).sum()
    total = (ce + terms.sums["kl_hinged"]) / batch.num_targets
    torch.testing.assert_close(terms.loss, total)


def test_the_first_token_of_a_slot_pays_for_it() -> None:
    from lvlm.interfaces import Slots

    assert at_first_tokens(torch.tensor([[1.0, 2.0]]), Slots(2), 4).tolist() == [[1, 0, 2, 0]]
    assert at_first_tokens(torch.tensor([[3.0]]), Slots(None), 3).tolist() == [[3, 0, 0]]


def test_one_latent_has_rows_of_its_own() -> None:
    recipe = recipe_of({"plan": PLAN})
    model = assemble(read_recipe(recipe).recipe).eval()
    assert list(model.names) == ["plan"]
    found = rows_for(model, batch_of(ROW), [0])
    assert not isinstance(found, SeveralRows)
    assert model.latent is model.paths["plan"]


# ------------------------------------------------------------------------------------- whole models, decoding


@pytest.mark.parametrize("name", NAMES)
def test_what_holds_for_any_model_holds_for_several_latents(name: str) -> None:
    """Causality, cached as uncached decoding, padding, generation and its rescoring, gradients."""
    latents = HIERARCHIES[name]
    backbone = {"kind": "decoder", "layers": 3, "width": 16, "heads": 4, "hidden": 16, "context": 32}
    recipe = recipe_of(latents)
    recipe["model"] = recipe["model"] | {"backbone": backbone}
    small = read_recipe(recipe).recipe
    paths = assemble(small).paths
    check_model(randomise(LatentLM(small.model.backbone.build(vocab=11), paths).double()))


# --------------------------------------------------------------------------------------------- runs of a shipped one


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


def test_a_hierarchy_is_trained_evaluated_and_resumed_to_the_bit(text: Path, tmp_path: Path) -> None:
    recipe = tiny("hierarchy", text)
    run = lvlm.train(recipe, tmp_path / "run")
    lines = [entry for entry in read_metrics(run) if entry["event"] == "train"]
    for entry in lines:
        for key in ("kl", "kl_hinged"):
            assert entry[key] == pytest.approx(entry[f"plan/{key}"] + entry[f"local/{key}"], abs=1e-6)
    found = lvlm.evaluate(run)
    assert set(found["latents"]) == {"plan", "local"}
    assert found["latent"] is not None
    each = sum(one["kl_nats_per_slot"] * one["slots_per_row"] for one in found["latents"].values())
    per_row = found["estimates"]["kl"]["nats_per_token"] * found["target_tokens"] / found["windows"]
    assert each == pytest.approx(per_row, rel=1e-5)
    assert sum(found["latent"]["kl_by_slot"]) == pytest.approx(per_row, rel=1e-5)
    assert lvlm.evaluate(run) == found, "what is stored is what was found"
    stopped = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            lvlm.train(recipe, stopped)
    lvlm.train(None, stopped, resume=True)
    assert logged(stopped) == logged(run)
    for name, value in weights(stopped).items():
        assert torch.equal(value, weights(run)[name]), name


def test_a_hierarchy_is_trained_alike_by_one_process_and_by_two(text: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    finish(launch(1, tiny("hierarchy", text), one))
    finish(launch(2, tiny("hierarchy", text), two))
    assert_same_training(one, two)


def test_codes_are_encoded_generated_and_held_by_name(text: Path, tmp_path: Path) -> None:
    model = lvlm.load(lvlm.train(tiny("hierarchy", text), tmp_path / "run"))
    made = lvlm.generate(model, "a latent", 6, seed=3)[0]
    for name in ("plan", "local"):
        (read,) = lvlm.encode(model, "a latent", latent=name, seed=3)
        assert torch.equal(read.codes, made.latents[name][: len(read.codes)]), name
    held = lvlm.generate(model, "a latent", 6, codes={"plan": made.latents["plan"]}, seed=8)[0]
    assert torch.equal(held.latents["plan"], made.latents["plan"])
    assert not torch.equal(held.latents["local"], made.latents["local"])
    for wrong, message in (
        ({"plam": 1}, "'plam'.*did you mean 'plan'"),
        (3, "give codes by name"),
        ({"plan": 64}, "0 to 63"),
    ):
        with pytest.raises(UserError, match=message):
            lvlm.generate(model, "a", 2, codes=wrong)
    with pytest.raises(UserError, match="the model has latents plan, local|local, plan"):
        lvlm.encode(model, "a")


def test_another_text_is_read_by_the_plan_and_the_row_by_the_tokens() -> None:
    model = model_of(HIERARCHIES["plan above tokens"])
    tokens_BT, one, other = ROW[:, :TOKENS], torch.tensor([[1, 1]]), torch.tensor([[0, 2]])
    read = [model(tokens_BT, latent_tokens_BU=text).latents for text in (one, other)]
    assert not torch.equal(read[0]["plan"].latent.posterior_BSK, read[1]["plan"].latent.posterior_BSK)
    held = {"plan": torch.tensor([[1]])}
    same = [model(tokens_BT, latent_tokens_BU=text, z=held).latents["local"].latent for text in (one, other)]
    assert torch.equal(same[0].posterior_BSK, same[1].posterior_BSK)


def test_the_report_and_the_terminal_name_each_latent(text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    arms = {"one": {"extends": "free"}, "two": {"extends": "hierarchy"}}
    small = tiny("baseline", text, train={"steps": 4})
    del small["extends"]
    for name, arm in arms.items():
        lvlm.train(small | arm | {"name": name}, folder / name / "seed0")
        lvlm.evaluate(folder / name / "seed0")
    report_folder(folder, controls=["one"])
    page = (folder / "report.html").read_text()
    for name in ("two · plan", "two · local"):
        assert name in page
    assert "one · " not in page
    found = lvlm.evaluate(folder / "two" / "seed0")
    said = "\n".join(str(part) for part in evaluation_table(found))
    assert "  plan: " in said
    assert "1 slots a row" in said


# ------------------------------------------------------------------------------------------- what went wrong once


@torch.no_grad()
def test_one_latent_of_any_name_is_charged_for_its_codes() -> None:
    """Its codes reach the logits by every way, not by `forward` alone."""
    model = randomise(assemble(read_recipe(recipe_of({"plan": PLAN})).recipe).double().eval())
    rows = rows_for(model, batch_of(ROW), [0])
    costs = rows.cost_of(torch.tensor([[[0], [1]]]))[0]
    for code in (0, 1):
        output = model(ROW[:, :-1], z=torch.tensor([[code]]))
        expected = cross_entropy_nats(output.logits_BTV, ROW[:, 1:]).sum()
        torch.testing.assert_close(costs[code], expected)
    assert costs[0] != costs[1]


def test_a_dropped_prefix_shows_in_nothing_beside_another() -> None:
    two = {
        name: {**PLAN, "seam": seam, "injection": {"kind": "prefix"}} for name, seam in (("a", 0), ("b", 1))
    }
    model = model_of(two).train()
    for dropped, kept in (("a", "b"), ("b", "a")):
        model.paths[dropped].dropout, model.paths[kept].dropout = 1.0, 0.0
        held = {kept: torch.tensor([[1]])}
        one, other = (
            model(ROW[:, :-1], z=held | {dropped: torch.tensor([[code]])}).logits_BTV for code in (0, 1)
        )
        assert torch.equal(one, other), dropped


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.prior=linear"], "model.prior: model.latents names the latents, so that prior stands in one"),
        (["model.seam=1"], "model.seam: model.latents names the latents"),
        (["model.latent_dropout=0.5"], "so that dropout stands in one of them: local, plan"),
        (["model.latents.plan.quantizer.estimator=reinforce"], "move the KL of those at higher seams"),
        (
            [
                "model.latents.local.injection={kind: cross_attention}",
                "model.latents.local.encoder.per=sequence",
                "model.latents.plan.injection={kind: cross_attention, layers: all}",
            ],
            "attends to one memory, and",
        ),
        (
            ["added_losses={kl: {weight: 1, loss: {kind: mtp}}}"],
            "the log has a number or a latent called 'kl'",
        ),
        (["added_losses={plan: {weight: 1, loss: {kind: mtp}}}"], "or a latent called 'plan'"),
    ],
)
def test_what_can_not_be_is_told(changes: list[str], message: str) -> None:
    with pytest.raises(UserError) as refused:
        read_recipe(recipe_of(HIERARCHIES["plan above tokens"]), changes)
    assert message in str(refused.value)


def test_names_of_a_module_s_own_are_names_of_latents_too() -> None:
    latents = {"type": PLAN, "values": LOCAL}
    recipe = recipe_of(latents, latents={"type": {"budget_bits": 3}})
    loss = build_loss(read_recipe(recipe).recipe)
    assert loss.budget_nats(1, "type") == pytest.approx(3 * NATS_PER_BIT)
    assert loss.budget_nats(1, "values") == 0


def test_a_plan_of_a_deep_stack_counts_blocks_at_its_top() -> None:
    deep = ("model.backbone.layers=8", "model.backbone.width=16", "model.backbone.heads=2")
    for change in ("{kind: cross_attention}", "{kind: kv}", "{kind: film, layers: all}"):
        recipe = read_recipe("gptvae", [*deep, "model.seam=7", f"model.injection={change}"]).recipe
        assert flops_per_token(recipe) > 0


def test_a_run_names_the_plugin_of_its_prior(text: Path, tmp_path: Path) -> None:
    recipe = tiny("free", text, model={"prior": "autoregressive"}, train={"steps": 2})
    record = read_record(lvlm.train(recipe, tmp_path / "run"))
    assert "baseline" in {plugin["name"] for plugin in record["plugins"]}


def test_an_arm_takes_latents_away() -> None:
    alone = read_recipe(
        "hierarchy", ["model.latents.local=null", "loss.latents={plan: {budget_bits: 3}}"]
    ).recipe
    assert list(alone.model.each_latent) == ["plan"]
    none = ["model.latents=null", "loss={kind: cross_entropy}"]
    assert not read_recipe("hierarchy", none).recipe.model.has_latent
    with pytest.raises(UserError, match="there is no latent 'plan'; the model has local"):
        read_recipe("hierarchy", ["model.latents.plan=null"])
    kept = read_recipe("hierarchy", ["model.latents.plan=null", "loss.latents.plan=null"]).recipe
    assert list(kept.model.each_latent) == ["local"]


def test_rows_without_the_text_that_an_encoder_learns_from_are_told() -> None:
    model = model_of(HIERARCHIES["plan above tokens"]).train()
    model.reads_other_text = True
    with pytest.raises(UserError, match="an encoder reads another text, and these rows have none"):
        model(ROW[:, :TOKENS])
    assert model(ROW[:, :TOKENS], latent_tokens_BU=ROW).latents.keys() == {"plan", "local"}
