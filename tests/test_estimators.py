"""Every estimator against exact answers: all texts and all codes of tiny models, enumerated."""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from lvlm.errors import UserError
from lvlm.interfaces import IGNORE, Batch, PriorParams
from lvlm.likelihood import EstimatorParams
from lvlm.likelihood.estimate import estimate
from lvlm.likelihood.estimators import (
    Elbo,
    Exact,
    Importance,
    ParticleFilter,
    PriorRollout,
    make_estimators,
    status_of,
)
from lvlm.likelihood.filter import Filter, ancestors
from lvlm.likelihood.particles import Rows
from lvlm.likelihood.score import score
from lvlm.model.latent_lm import LatentLM
from lvlm.model.latent_path import LatentPath
from lvlm.model.prior import FixedPriorParams, LinearPriorParams
from lvlm.registry.registry import Registry
from lvlm.testing import randomise
from lvlm_baseline.decoder import DecoderParams
from lvlm_baseline.priors import AutoregressivePriorParams
from lvlm_codebooks.fsq import FSQParams
from lvlm_free.add import AddParams
from lvlm_free.binary import BinaryParams
from lvlm_free.kv import KVParams
from lvlm_free.learned_query import LearnedQueryParams
from lvlm_gptvae.bidirectional import BidirectionalParams
from lvlm_gptvae.gaussian import GaussianParams
from lvlm_gptvae.mixture import MixturePriorParams
from lvlm_gptvae.prefix import PrefixParams

VOCAB, TOKENS = 3, 4
KINDS = [kind.params() for kind in Registry.load().kinds["estimator"].values()]
BOUNDS = [kind for kind in KINDS if isinstance(kind, EstimatorParams) and kind.status == "upper bound"]
BINARY = BinaryParams(bits=1)
PRIORS: dict[str, PriorParams] = {
    "fixed": FixedPriorParams(),
    "learned": LinearPriorParams(),
    "autoregressive": AutoregressivePriorParams(width=5),
    "mixture": MixturePriorParams(components=3),
}


def model_of(
    per: Any = "token",
    *,
    encoder: Any = LearnedQueryParams,
    quantizer: Any = BINARY,
    injection: Any = KVParams(),  # noqa: B008  frozen
    prior: Any = "fixed",
    std: float = 0.4,
    sure: float = 1.0,
    seed: int = 0,
) -> LatentLM:
    """Two layers of width 8 around a seam, all weights random, float64; `sure` scales the numbers of
    posterior and prior: an untrained posterior that is sure of itself makes weights whose mean no sample
    shows.
    """
    torch.manual_seed(seed)
    backbone = DecoderParams(layers=2, width=8, heads=2, hidden=16, context=8).build(vocab=VOCAB)
    encodes = encoder(per=per).build(backbone=backbone)
    injects = injection.build(width=8, slots=encodes.slots)
    quantizes = quantizer.build(embedding_dim=injects.embedding_dim)
    prior_of = PRIORS[prior].build(width=8, quantizer=quantizes)
    latent = LatentPath(encodes, quantizes, injects, prior_of, seam=1)
    model = randomise(LatentLM(backbone, latent).double().eval(), seed=seed, std=std)
    for numbers in (latent.readout, latent.prior_head):
        for parameter in numbers.parameters():
            parameter.mul_(sure)
    return model


def matters(model: LatentLM) -> None:
    """Make codes move the text a lot."""
    assert model.latent is not None
    for table in model.latent.quantizer.table_parameters():
        table.mul_(20)


def batch_of(texts_BT: Tensor) -> Batch:
    """Rows that begin with token 0, which isn't predicted."""
    first_B1 = torch.zeros(len(texts_BT), 1, dtype=torch.long)
    inputs_BT = torch.cat((first_B1, texts_BT[:, :-1]), 1)
    return Batch(inputs_BT, texts_BT, torch.ones_like(inputs_BT, dtype=torch.bool))


def rows_of(model: LatentLM, batch: Batch, *, seed: int = 0, at_once: int = 512, prompt: int = 0) -> Rows:
    seeds = range(seed, seed + len(batch))
    return Rows(model, batch, seeds=list(seeds), at_once=at_once, autocast=nullcontext, prompt=prompt)


def repeated(batch: Batch, times: int) -> Batch:
    """One row again and again, for independent estimates."""
    return Batch(*(x.expand(times, -1) for x in (batch.inputs_BT, batch.targets_BT, batch.keep_BT)))


def texts(tokens: int = TOKENS) -> Tensor:
    return torch.tensor(list(itertools.product(range(VOCAB), repeat=tokens)))


ONE = batch_of(torch.tensor([[2, 0, 1, 1]]))
CROSSES: dict[str, dict[str, Any]] = {
    "binary, token, kv": {},
    "binary, token, kv, learned prior": {"prior": "learned"},
    "two bits, chunk, add": {"per": 2, "quantizer": BinaryParams(bits=2), "injection": AddParams()},
    "binary, sequence, prefix, learned prior": {
        "per": "sequence",
        "encoder": BidirectionalParams,
        "injection": PrefixParams(length=2),
        "prior": "learned",
    },
    "binary, token, kv, autoregressive prior": {"prior": "autoregressive"},
    "two bits, chunk, add, autoregressive prior": {
        "per": 2,
        "quantizer": BinaryParams(bits=2),
        "injection": AddParams(),
        "prior": "autoregressive",
    },
    "fsq, chunk, kv, learned prior": {"per": 2, "quantizer": FSQParams(levels=[3, 2]), "prior": "learned"},
}
anywhere = pytest.mark.parametrize("options", CROSSES.values(), ids=CROSSES)


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def build(options: dict[str, Any]) -> LatentLM:
    if isinstance(options.get("quantizer"), FSQParams):
        pytest.importorskip("vector_quantize_pytorch")
    return model_of(**options)


def all_weights(model: LatentLM, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log w and log q of every sequence of codes of one row, by plain forwards of the model: [N] each."""
    rows = rows_of(model, batch)
    codes_NS = rows.code_sequences()
    assert model.latent is not None
    many = repeated(batch, len(codes_NS))
    logits = model(many.inputs_BT, z=codes_NS).logits_BTV.log_softmax(-1)
    log_x = logits.gather(-1, many.targets_BT[..., None])[..., 0].sum(-1)
    latent = model(batch.inputs_BT).latent
    assert latent is not None
    assert latent.posterior_BSK is not None
    log_p = log_prior(model, rows, codes_NS)
    log_q = model.latent.quantizer.log_prob(codes_NS, latent.posterior_BSK.expand(len(codes_NS), -1, -1)).sum(
        -1
    )
    return log_x + log_p - log_q, log_q


def log_prior(model: LatentLM, rows: Rows, codes_NS: Tensor) -> Tensor:
    """Log p of sequences of codes of the first row, [N], by the prior's and the family's own functions, each slot
    by itself under what stands before it.
    """
    assert model.latent is not None
    quantizer, prior = model.latent.quantizer, model.latent.prior_head
    hidden_NSD = rows.hidden_BTD[:1, model.latent.slots.first_positions(rows.hidden_BTD.shape[1])]
    hidden_NSD = hidden_NSD.expand(len(codes_NS), -1, -1)
    before_NSC = torch.zeros(*codes_NS.shape, quantizer.embedding_dim, dtype=torch.float64)
    before_NSC[:, 1:] = quantizer.given(codes_NS).embedding_BSC[:, :-1]
    total_N = torch.zeros(len(codes_NS), dtype=torch.float64)
    for slot in range(codes_NS.shape[1]):
        numbers = prior(hidden_NSD[:, : slot + 1], before_NSC[:, : slot + 1])[:, slot:]
        total_N += quantizer.log_prob(codes_NS[:, slot : slot + 1], numbers)[:, 0]
    return total_N


@anywhere
def test_the_probabilities_of_all_texts_sum_to_one(options: dict[str, Any]) -> None:
    nats = Exact()(rows_of(build(options), batch_of(texts()))).nats
    assert torch.logsumexp(-nats, 0).item() == pytest.approx(0.0, abs=1e-12)


@anywhere
def test_importance_weighting_falls_from_the_elbo_to_the_likelihood(options: dict[str, Any]) -> None:
    model = build(options)
    log_w, log_q = all_weights(model, ONE)
    q, nll = log_q.exp(), Exact()(rows_of(model, ONE)).nats.item()
    possible = q > 0
    log_w, q = log_w[possible], q[possible]
    assert q.sum().item() == pytest.approx(1.0)
    expected = {}
    for k in (1, 2, 3):
        if len(q) ** k > 5_000:
            continue
        mean = torch.zeros(len(q), dtype=torch.float64).logsumexp(0) * 0
        log_w_of_all, q_of_all = log_w[:, None], q
        for _ in range(k - 1):
            log_w_of_all = torch.cat(
                (
                    log_w_of_all.repeat_interleave(len(q), 0),
                    log_w.repeat(len(log_w_of_all))[:, None],
                ),
                1,
            )
            q_of_all = (q_of_all[:, None] * q).flatten()
        expected[k] = (mean - (q_of_all * (log_w_of_all.logsumexp(1) - math.log(k))).sum()).item()
    elbo = -(q * log_w).sum().item()
    assert expected[1] == pytest.approx(elbo)
    values = [*expected.values(), nll]
    assert all(late <= early + 1e-12 for early, late in itertools.pairwise(values))
    if possible.all():  # a point mass has no density against the true posterior
        posterior = (log_w + log_q).log_softmax(0)
        assert elbo - (q * (log_q - posterior)).sum().item() == pytest.approx(nll)
    many = repeated(ONE, 2_000)
    rows = rows_of(model, many)
    for k, value in expected.items():
        assert_mean(Importance(k)(rows).nats, value)
        assert_mean(Elbo(k)(rows).nats, elbo)


def assert_mean(values: Tensor, expected: float, errors: float = 4.0) -> None:
    """The mean of independent values is the expected one."""
    error = values.std().item() / math.sqrt(len(values))
    assert abs(values.mean().item() - expected) <= errors * error + 1e-9, (
        values.mean().item(),
        expected,
        error,
    )


@pytest.mark.parametrize("prior", ["learned", "autoregressive"])
def test_the_elbo_and_the_prior_rollout_meet_their_exact_expectations(prior: str) -> None:
    model = model_of(prior=prior)
    log_w, log_q = all_weights(model, ONE)
    rows = rows_of(model, repeated(ONE, 2_000))
    assert_mean(Elbo(2)(rows).nats, -(log_q.exp() * log_w).sum().item())
    log_p = log_prior(model, rows, rows.code_sequences())
    costs = log_p - log_w - log_q  # -log p(x given z)
    assert_mean(PriorRollout(2)(rows).nats, (log_p.exp() * costs).sum().item())


def test_the_exact_posterior_as_a_proposal_needs_one_draw() -> None:
    model = model_of("sequence")
    rows = rows_of(model, repeated(ONE, 20))
    nll = Exact()(rows).nats
    cost_N = rows.cost_of(torch.tensor([[[0], [1]]]).expand(20, -1, -1))
    rows.posterior_BSK = (cost_N[:, 0] - cost_N[:, 1]).view(20, 1, 1)  # the prior is even
    for chunk in (TOKENS, 8):
        torch.testing.assert_close(ParticleFilter(Filter(1, chunk))(rows).nats, nll, atol=1e-10, rtol=0)
    for estimator in (Importance(1), Importance(5)):
        found = estimator(rows)
        torch.testing.assert_close(found.nats, nll, atol=1e-10, rtol=0)
        assert found.log_weight_variance is not None
        assert found.log_weight_variance.max() < 1e-20


@anywhere
@pytest.mark.parametrize("proposal", ["posterior", "prior", "mixture"])
@pytest.mark.parametrize("deferred", [False, True])
def test_a_filter_is_an_unbiased_estimate_of_the_probability(
    options: dict[str, Any], proposal: Any, deferred: bool
) -> None:
    model = build(options | {"sure": 0.3})
    if isinstance(options.get("quantizer"), FSQParams) and proposal == "posterior":
        pytest.skip("a point mass does not cover the codes that p can draw: only a bound, and not unbiased")
    nll = Exact()(rows_of(model, ONE)).nats
    rows = rows_of(model, repeated(ONE, 800))
    for k, chunk, rule, below in (
        (1, 1, "systematic", 0.5),
        (2, 1, "multinomial", 1.0),
        (4, 1, "systematic", 0.9),
        (4, 3, "stratified", 1.0),
        (4, 2, "multinomial", 0.9),
    ):
        spec = Filter(k, chunk, rule, below, proposal, deferred)  # type: ignore[arg-type]
        assert_mean((nll - ParticleFilter(spec)(rows).nats).exp(), 1.0)


def test_a_filter_of_a_gaussian_is_unbiased_against_quadrature() -> None:
    for options in (
        {"injection": AddParams()},
        {"encoder": BidirectionalParams, "injection": PrefixParams(), "prior": "learned"},
        {"encoder": BidirectionalParams, "injection": PrefixParams(), "prior": "mixture"},
    ):
        model = model_of("sequence", quantizer=GaussianParams(dim=1), sure=0.2, **options)
        rows = rows_of(model, repeated(ONE, 1_000))
        assert model.latent is not None
        z_N = torch.linspace(-40, 40, 20_001, dtype=torch.float64)
        one = rows_of(model, ONE)
        log_p = model.latent.log_prior(z_N.view(-1, 1, 1), one.prior_BSJ.expand(len(z_N), -1, -1))
        log_joint = log_p[:, 0] - one.cost_of(z_N.view(1, -1, 1, 1))[0]
        nll = -(log_joint.logsumexp(0) + math.log(z_N[1] - z_N[0]))
        for estimator in (
            Importance(4),
            Importance(8, "prior"),
            ParticleFilter(Filter(4, 2)),
            ParticleFilter(Filter(4, 1, proposal="prior")),
            ParticleFilter(Filter(4, 1, deferred=True)),
        ):
            assert_mean((nll - estimator(rows).nats).exp(), 1.0, errors=4.5)


def test_a_filter_of_gaussians_whose_prior_sees_codes_is_unbiased_against_quadrature() -> None:
    model = model_of(
        2, quantizer=GaussianParams(dim=1), injection=AddParams(), prior="autoregressive", sure=0.4
    )
    z_n = torch.linspace(-9, 9, 181, dtype=torch.float64)
    codes_1NSZ = torch.cartesian_prod(z_n, z_n)[None, :, :, None]
    one = rows_of(model, ONE)
    log_joint = one.log_prior(codes_1NSZ).sum(-1) - one.cost_of(codes_1NSZ)
    nll = -(log_joint.logsumexp(1) + 2 * math.log(z_n[1] - z_n[0]))
    rows = rows_of(model, repeated(ONE, 1_000))
    for estimator in (
        Importance(4),
        Importance(4, "mixture"),
        ParticleFilter(Filter(4, 1, "multinomial", 1.0)),
        ParticleFilter(Filter(4, 2, "multinomial", 1.0, proposal="prior")),
        ParticleFilter(Filter(4, 2, "systematic", 1.0, deferred=True)),
    ):
        assert_mean((nll - estimator(rows).nats).exp(), 1.0, errors=4.5)


def test_one_chunk_is_importance_weighting_with_the_same_noise() -> None:
    for options in CROSSES.values():
        rows = rows_of(build(options), batch_of(texts()[::7]))
        for deferred in (False, True):
            spec = Filter(5, TOKENS, deferred=deferred)
            mine, other = ParticleFilter(spec)(rows), Importance(5)(rows)
            for one, two in zip(vars(mine).values(), vars(other).values(), strict=True):
                if not deferred or one is not mine.log_weight_variance:
                    torch.testing.assert_close(one, two, atol=1e-10, rtol=1e-10)


def test_without_resampling_the_filter_is_importance_weighting_too() -> None:
    rows = rows_of(model_of(), batch_of(texts()[::7]))
    never = ParticleFilter(Filter(5, 1, resample_below=0.0))(rows).nats
    torch.testing.assert_close(never, Importance(5)(rows).nats, atol=1e-10, rtol=0)


@anywhere
def test_neither_the_micro_batch_nor_the_other_rows_change_a_value(options: dict[str, Any]) -> None:
    model, batch = build(options), batch_of(texts()[::9])
    estimators = [Exact(), *make_estimators(BOUNDS, [5], has_latent=True, chunk=1)]
    for estimator in estimators:
        whole = estimator(rows_of(model, batch)).nats
        for at_once in (1, 3, 7):
            pieces = estimator(rows_of(model, batch, at_once=at_once)).nats
            torch.testing.assert_close(pieces, whole, atol=1e-10, rtol=0)
        alone = estimator(rows_of(model, batch[4:5], seed=4)).nats
        torch.testing.assert_close(alone, whole[4:5], atol=1e-10, rtol=0)


def test_padding_costs_nothing_and_changes_nothing() -> None:
    model, full = model_of(prior="learned"), batch_of(torch.tensor([[2, 0, 1, 1, 0, 2]]))
    keep_BT = torch.tensor([[True] * 4 + [False] * 2])
    padded = Batch(full.inputs_BT, full.targets_BT.where(keep_BT, IGNORE), keep_BT)
    short = batch_of(torch.tensor([[2, 0, 1, 1]]))
    for estimator in make_estimators(BOUNDS, [6], has_latent=True, chunk=1):
        one, two = (estimator(rows_of(model, rows)).nats for rows in (padded, short))
        torch.testing.assert_close(one, two, atol=1e-10, rtol=0)


def test_many_particles_come_to_the_likelihood() -> None:
    for options in CROSSES.values():
        if isinstance(options.get("quantizer"), FSQParams):
            continue
        changes: Any = options | {"sure": 0.1}
        model = model_of(**changes)
        nll = Exact()(rows_of(model, ONE)).nats
        excess = ParticleFilter(Filter(64, 1))(rows_of(model, repeated(ONE, 1_000))).nats - nll
        error = excess.std().item() / math.sqrt(1_000)
        assert abs(excess.mean().item()) < 0.01 + 2 * error
        assert error < 0.01


def test_the_stated_noise_of_a_plain_mean_is_the_spread_of_the_estimates() -> None:
    rows = rows_of(model_of(sure=0.3), repeated(ONE, 2_000))
    for estimator in (Elbo(16), PriorRollout(16)):
        found = estimator(rows)
        assert found.noise is not None
        assert 0.7 < found.noise.mean() / found.nats.var() < 1.4, estimator


def test_weights_that_were_drawn_once_state_no_noise() -> None:
    """They can't tell: where one of them outweighs all others, it looks sure."""
    for estimator in (ParticleFilter(Filter(4, 1)), Importance(4)):
        assert estimator(rows_of(model_of(sure=0.3), ONE)).noise is None


def test_repeats_state_the_spread_of_their_mean() -> None:
    """Also where the weights are bad: two particles, resampled at every token."""
    model, rows = model_of(sure=0.3), repeated(ONE, 1_000)
    bad = (ParticleFilter(Filter(2, 1, "multinomial", 1.0)), Importance(2), Elbo(2), Exact())
    found = estimate(model, rows, bad, rows=64, seed=3, describe=0, repeats=3)
    for one in bad[:3]:
        noise = found.quality[one.label].noise
        assert noise is not None
        assert 0.8 < noise.mean() / found.nats[one.label].var() < 1.25, one
    assert found.noise_error("nll_exact") is None
    once = estimate(model, rows, bad, rows=64, seed=3, describe=0)
    assert once.noise_error("nll_iwae_2") is None
    assert found.nats["nll_exact"] == pytest.approx(once.nats["nll_exact"])
    spread = found.nats["nll_iwae_2"].var() / once.nats["nll_iwae_2"].var()
    assert 0.25 < spread < 0.45, "the mean of three varies a third as much"


def test_ancestors_are_drawn_in_proportion_to_their_weight() -> None:
    weight = torch.tensor([0.5, 0.25, 0.2, 0.05, 0.0], dtype=torch.float64)
    for rule in ("systematic", "stratified", "multinomial"):
        generator = torch.Generator().manual_seed(1)
        drawn = torch.stack([ancestors(weight, rule, generator) for _ in range(20_000)])
        counts = torch.stack([(drawn == i).sum(1) for i in range(5)], 1).double()
        error = counts.std(0) / math.sqrt(len(counts))
        assert ((counts.mean(0) - 5 * weight).abs() <= 4 * error + 1e-12).all(), rule
        if rule == "systematic":
            assert ((counts - 5 * weight).abs() < 1).all()


def test_an_encoder_that_sees_the_answer_is_caught() -> None:
    """Codes that the whole text gave, free of charge, score more than probabilities allow."""
    model, batch = model_of("sequence", std=0.7), batch_of(texts())
    matters(model)
    rows = rows_of(model, batch)
    cost_BN = rows.cost_of(torch.tensor([[[0], [1]]]).expand(len(batch), -1, -1))
    rows.posterior_BSK = (cost_BN[:, 0] - cost_BN[:, 1]).view(-1, 1, 1)  # the best that an encoder can say
    honest = ParticleFilter(Filter(32, 1))(rows).nats
    assert torch.logsumexp(-honest, 0).item() == pytest.approx(0.0, abs=0.05)
    leaking = rows_of(model, batch)
    leaking.posterior_BSK, leaking.prompt = rows.posterior_BSK, TOKENS
    leaked = ParticleFilter(Filter(32, 1, proposal="prior"))(leaking).nats
    assert torch.logsumexp(-leaked, 0).item() > 0.1


# --------------------------------------------------------------------------------------------------
# continuations

PROMPT = [0, 2, 1]


def total_probability(model: LatentLM, length: int, **options: Any) -> float:
    """Of all continuations of a length; 1 to rounding while all are weighed with the same codes."""
    return sum(
        math.exp(score(model, PROMPT, text, **options).log_prob_nats) for text in texts(length).tolist()
    )


@anywhere
def test_all_continuations_share_one_probability(options: dict[str, Any]) -> None:
    model = build(options)
    for length in (1, 3):
        assert total_probability(model, length, k=3, chunk=8) == pytest.approx(1.0, abs=1e-9)
    assert total_probability(model, 2, k=64, chunk=1) == pytest.approx(1.0, abs=0.1)


def test_an_encoder_that_sees_the_continuation_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("sequence", std=0.7)
    matters(model)
    assert total_probability(model, 3, k=3, chunk=8) == pytest.approx(1.0, abs=1e-9)

    class Leaking(Rows):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **(options | {"prompt": 100}))  # the encoder sees the whole row

    monkeypatch.setattr("lvlm.likelihood.score.rows_of", Leaking)
    assert abs(total_probability(model, 3, k=3, chunk=8) - 1) > 1e-3


def test_a_score_is_the_mean_of_what_generation_says() -> None:
    model, text = model_of(prior="learned"), [1, 0, 2]
    row = torch.tensor([PROMPT + text])
    prompt = model(row[:, :3].expand(5_000, -1), generator=torch.Generator().manual_seed(0)).latent
    rest = model(row.expand(5_000, -1), z="prior", generator=torch.Generator().manual_seed(1)).latent
    codes = torch.cat((prompt.codes, rest.codes[:, 3:]), 1)
    logits = model(row[:, :-1].expand(5_000, -1), z=codes).logits_BTV[:, 2:].log_softmax(-1)
    log_p = logits.gather(-1, row[:, 3:].expand(5_000, -1)[..., None]).sum((1, 2))
    expected = log_p.exp().mean().log().item()
    for chunk in (4, 1):
        found = score(model, PROMPT, text, k=3_000, chunk=chunk)
        assert found.log_prob_nats == pytest.approx(expected, abs=0.05)


def test_choices_share_their_noise_and_a_longer_one_begins_like_a_shorter() -> None:
    model = model_of(prior="learned")
    one = score(model, PROMPT, [1, 0], k=2, chunk=8)
    assert one == score(model, PROMPT, [1, 0], k=2, chunk=8, rows=1)
    both = [score(model, PROMPT, [1, 0, last], k=2, chunk=8).log_prob_nats for last in range(VOCAB)]
    assert sum(map(math.exp, both)) == pytest.approx(math.exp(one.log_prob_nats))
    assert one != score(model, PROMPT, [1, 0], k=2, chunk=8, seed=1)


def test_scores_of_a_model_without_a_latent_are_exact() -> None:
    backbone = DecoderParams(layers=2, width=8, heads=2, hidden=16, context=8).build(vocab=VOCAB)
    model = randomise(LatentLM(backbone).double())
    assert total_probability(model, 3) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("prompt", "text", "options", "words"),
    [
        ([], [1], {}, "the prompt is empty"),
        ([1], [], {}, "the continuation is empty"),
        ([0] * 5, [1] * 5, {}, "make 10; the model scores at most 9"),
        ([0], [3], {}, "the vocabulary is 0 to 2"),
        ([0], [1], {"k": 0}, "k is 0"),
    ],
)
def test_what_can_not_be_scored_is_told(prompt: Any, text: Any, options: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        score(model_of(), prompt, text, **options)


# -------------------------------------------------------------------------------------------------- refusals


def test_what_can_not_be_enumerated_is_refused() -> None:
    with pytest.raises(UserError, match="continuous"):
        Exact()(rows_of(model_of(quantizer=GaussianParams(dim=1)), ONE))
    with pytest.raises(UserError, match="try 65536 codes in each of 4 slots"):
        Exact()(rows_of(model_of(quantizer=BinaryParams(bits=16)), ONE))


def test_names_say_what_bounds() -> None:
    kinds = [type(kind) for kind in KINDS]
    for estimator in make_estimators(KINDS, [1, 16], has_latent=True):
        assert status_of(estimator.label, kinds) == (
            "exact" if estimator.label == "nll_exact" else "upper bound"
        )
    for name in ("kl", "ce_posterior", "nll_oracle", "nll", "ppl", "nll_iwae", "ce_shuffled"):
        assert status_of(name, kinds) == "no bound"
