"""The loop and the backbone: equal to Llama, equal to the baseline at step 0, refusals, padding, dropout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lvlm.errors import UserError
from lvlm.generation.generate import generate
from lvlm.interfaces import Batch, Conditioning
from lvlm.likelihood.estimate import estimate
from lvlm.likelihood.estimators import Estimator, make_estimators
from lvlm.model.latent_lm import LatentLM
from lvlm.model.ports import Ports
from lvlm.objective import cross_entropy_nats
from lvlm.recipe.assemble import assemble, count_parameters
from lvlm.recipe.read import read_recipe
from lvlm.registry.registry import Registry
from lvlm.testing import Cross, batch_of, build_cross, crosses, padded_batches, randomise, token_rows
from lvlm_baseline import DecoderParams
from lvlm_free import AddParams, BinaryParams, KVParams, LearnedQueryParams
from lvlm_gptvae import BidirectionalParams, GaussianParams, PrefixParams
from tests.matrix import pairs_now

REGISTRY = Registry.load(strict=True)
LEGAL, REFUSED = crosses(REGISTRY)
GPTVAE = Cross(BidirectionalParams(), GaussianParams(dim=3), PrefixParams(length=2), seam=0)
FREE = Cross(LearnedQueryParams(), BinaryParams(bits=3), KVParams())


@pytest.mark.parametrize("tied", [False, True])
def test_the_decoder_with_copied_weights_equals_llama(tied: bool) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=37,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            rms_norm_eps=1e-5,
            tie_word_embeddings=tied,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        )
    ).eval()
    randomise(theirs, std=0.2)
    ours = DecoderParams(layers=3, width=32, heads=4, kv_heads=2, hidden=48, context=64, tied=tied).build(
        vocab=37
    )
    if tied:
        theirs.tie_weights()
    weights = theirs.state_dict()
    mapped = {
        "embedding.weight": weights["model.embed_tokens.weight"],
        "unembedding.weight": weights["lm_head.weight"],
        "norm.weight": weights["model.norm.weight"],
    }
    for n in range(3):
        layer = f"model.layers.{n}."
        for mine, part in {
            "attention_norm": "input_layernorm",
            "attention.q": "self_attn.q_proj",
            "attention.k": "self_attn.k_proj",
            "attention.v": "self_attn.v_proj",
            "attention.out": "self_attn.o_proj",
            "mlp_norm": "post_attention_layernorm",
            "mlp.gate": "mlp.gate_proj",
            "mlp.up": "mlp.up_proj",
            "mlp.down": "mlp.down_proj",
        }.items():
            mapped[f"blocks.{n}.{mine}.weight"] = weights[f"{layer}{part}.weight"]
    ours.load_state_dict(mapped)
    tokens_BT = token_rows(2, 20, vocab=37)
    with torch.no_grad():
        expected, actual = theirs(tokens_BT).logits, LatentLM(ours).eval()(tokens_BT).logits_BTV
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.1


@pytest.mark.parametrize("cross", pairs_now([c for c in LEGAL if not isinstance(c.injection, PrefixParams)]))
def test_at_step_0_a_latent_equals_the_baseline_bit_for_bit(cross: Cross) -> None:
    recipe = read_recipe(cross.recipe(), registry=REGISTRY).recipe
    model, baseline = assemble(recipe), LatentLM(assemble(recipe).backbone)
    tokens_BT = token_rows()
    for z in ("posterior", "prior"):
        assert torch.equal(model(tokens_BT, z=z).logits_BTV, baseline(tokens_BT).logits_BTV)


@pytest.mark.parametrize("cross", pairs_now([cross for cross in LEGAL if cross.prior == "learned"]))
def test_all_zero_numbers_start_a_learned_prior_like_the_fixed_one(cross: Cross) -> None:
    fixed, learned = (
        assemble(read_recipe(replace(cross, prior=prior).recipe(), registry=REGISTRY).recipe)
        for prior in ("fixed", "learned")
    )
    tokens_BT = token_rows()
    one, two = (m(tokens_BT, generator=torch.Generator().manual_seed(0)) for m in (fixed, learned))
    assert torch.equal(one.logits_BTV, two.logits_BTV)
    assert torch.equal(one.latent.kl_BSd, two.latent.kl_BSd)


@pytest.mark.parametrize("cross", REFUSED, ids=str)
def test_illegal_crosses_are_refused_in_words(cross: Cross) -> None:
    told = r"needs a fixed number of slots, but .* set encoder\.per: sequence"
    if cross.prior == "learned" and not cross.quantizer.prior_can_be_learned:  # type: ignore[attr-defined]
        told = r"has one prior, without numbers that could be learned; set prior: fixed"
    with pytest.raises(UserError, match=told):
        read_recipe(cross.recipe(), registry=REGISTRY)


def test_there_are_crosses_of_every_kind() -> None:
    for role in ("encoder", "quantizer", "injection"):
        assert {getattr(c, role).kind_name() for c in LEGAL} == REGISTRY.kinds[role].keys()
    encoders, injections = (len(REGISTRY.kinds[role]) for role in ("encoder", "injection"))
    families = [kind.params for kind in REGISTRY.kinds["quantizer"].values()]
    with_priors = sum(1 + family.prior_can_be_learned for family in families)  # type: ignore[attr-defined]
    of_one_sequence = sum(kind.params.needs_fixed_slots for kind in REGISTRY.kinds["injection"].values())
    legal = encoders * with_priors * (3 * (injections - of_one_sequence) + of_one_sequence)  # slots that fit
    assert len([c for c in LEGAL if c.backbone is None and c.prior in ("fixed", "learned")]) == legal
    assert len(REFUSED) == encoders * 2 * len(families) * 3 * injections - legal
    assert of_one_sequence


@given(padded_batches())
def test_padding_changes_no_loss(batch: Batch) -> None:
    model = build_cross(FREE, REGISTRY).eval()
    out = model(batch.inputs_BT, batch.keep_BT, z="prior", generator=torch.Generator().manual_seed(0))
    nats = cross_entropy_nats(out.logits_BTV, batch.targets_BT)
    assert (nats[~batch.keep_BT] == 0).all()
    for row, length in enumerate(batch.keep_BT.sum(-1).tolist()):
        alone = model(batch.inputs_BT[row : row + 1, :length], z=out.latent.codes[row : row + 1]).logits_BTV
        expected = cross_entropy_nats(alone, batch.targets_BT[row : row + 1, :length])
        torch.testing.assert_close(nats[row, :length], expected[0], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("cross", [FREE, GPTVAE, replace(FREE, injection=AddParams())], ids=str)
def test_dropped_rows_do_not_see_their_code_and_cost_no_kl(cross: Cross) -> None:
    model = build_cross(cross, REGISTRY).train()
    model.latent.dropout = 0.5
    tokens_BT = token_rows(16)
    torch.manual_seed(1)
    one = model(tokens_BT, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(1)
    two = model(tokens_BT, generator=torch.Generator().manual_seed(2))
    dropped = ~one.keep_BS.any(-1)
    assert 0 < dropped.sum() < 16
    torch.testing.assert_close(one.logits_BTV[dropped], two.logits_BTV[dropped])
    assert not torch.allclose(one.logits_BTV[~dropped], two.logits_BTV[~dropped])
    baseline = LatentLM(model.backbone)(tokens_BT).logits_BTV
    torch.testing.assert_close(one.logits_BTV[dropped], baseline[dropped])
    assert model.eval()(tokens_BT).keep_BS.all()


@pytest.mark.parametrize("cross", [None, FREE, GPTVAE], ids=["baseline", "free", "gptvae"])
def test_a_dropped_token_is_not_seen_by_the_decoder(cross: Cross | None) -> None:
    """All are dropped here but the first; an encoder of its own over the tokens sees them all the same."""
    model = LatentLM(build_cross(FREE, REGISTRY).backbone) if cross is None else build_cross(cross, REGISTRY)
    model.token_dropout = 1 - 1e-9
    tokens_BT = token_rows(1)
    last, first = tokens_BT.clone(), tokens_BT.clone()
    last[:, 1:] = (last[:, 1:] + 1) % 11
    first[:, 0] = (first[:, 0] + 1) % 11
    codes: Any = "prior" if model.latent is None else model(tokens_BT).latent.codes
    seen, of_last, of_first = (model.train()(rows, z=codes).logits_BTV for rows in (tokens_BT, last, first))
    assert torch.equal(seen, of_last)
    assert not torch.allclose(seen, of_first)
    assert not torch.allclose(model.eval()(tokens_BT, z=codes).logits_BTV, model(last, z=codes).logits_BTV)
    if cross is not None and model.latent is not None:
        one, other = (model.train()(rows).latent.posterior_BSK for rows in (tokens_BT, last))
        assert torch.equal(one, other) == (cross is FREE)


def test_the_prefix_mask_hides_and_never_masks_a_whole_row() -> None:
    ports = Ports()
    prefix_BPD, keep_B = torch.zeros(2, 2, 4), torch.tensor([True, False])
    ports.enter(0, Conditioning(prefix_BPD=prefix_BPD, prefix_keep_B=keep_B))
    assert ports.prefixed(torch.zeros(2, 3, 4), 0).shape == (2, 5, 4)
    mask = ports.mask(3)
    assert mask is not None
    assert torch.equal(mask[0, 0], torch.ones(5, 5).tril().bool())
    assert not mask[1, 0, 2:, :2].any()
    assert mask.any(-1).all()


@pytest.mark.parametrize("cross", [None, FREE, GPTVAE], ids=["baseline", "free", "gptvae"])
def test_lengths_and_codes_that_do_not_fit_are_told(cross: Cross | None) -> None:
    model = (
        LatentLM(DecoderParams.example().build(vocab=11)) if cross is None else build_cross(cross, REGISTRY)
    )
    with pytest.raises(UserError, match="sequence of 33 tokens is longer than the model allows"):
        model(token_rows(1, 33))
    with pytest.raises(UserError, match="at least one"):
        model(token_rows(1, 0))
    with pytest.raises(UserError, match="context is 32"):
        generate(model, token_rows(1, 20), 14)
    with pytest.raises(UserError, match="the vocabulary is 0 to"):
        generate(model, torch.tensor([[0, 256]]), 3)
    if cross is not None:
        with pytest.raises(UserError, match="a code per slot"):
            model(token_rows(2), z=torch.zeros(2, 0, dtype=torch.long))
        with pytest.raises(UserError, match="a code per slot"):
            model(token_rows(2), z=torch.zeros(1, 7, dtype=torch.long))


def test_greedy_and_top_k_1_agree_and_seeds_reproduce() -> None:
    model = build_cross(FREE, REGISTRY)
    codes = torch.zeros(2, 12, dtype=torch.long)
    prompt = token_rows(2, 3)
    greedy, likeliest = (
        [sample.tokens for sample in generate(model, prompt, 8, codes=codes, **how)]
        for how in ({"temperature": 0}, {"top_k": 1})
    )
    assert greedy == likeliest
    draws = [[sample.tokens for sample in generate(model, prompt, 8, seed=seed)] for seed in (0, 0, 1)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


def test_one_more_layer_matches_frees_parameters() -> None:
    def total(name: str, *overrides: str) -> int:
        return count_parameters(assemble(read_recipe(name, overrides).recipe)).total

    wide = ("model.backbone.width=1536", "model.backbone.heads=12", "model.backbone.kv_heads=2")
    free, control = (
        total("free", *wide, "model.quantizer.bits_per_group=1"),
        total("baseline", *wide, "model.backbone.layers=5"),
    )
    # The rest is the learned query, the readout and the small tables.
    assert abs(free - control) / control < 2e-3


# ---------------------------------------------------------------------------------------------------
# evaluation


def battery(k: int) -> list[Estimator]:
    return make_estimators(
        [
            kind
            for kind in (k_.params() for k_ in REGISTRY.kinds["estimator"].values())
            if kind.status == "upper bound"
        ],
        [k],
        has_latent=True,
    )


def test_every_bound_of_a_dead_latent_is_the_same_number() -> None:
    model = assemble(read_recipe(FREE.recipe(), registry=REGISTRY).recipe)  # the table is zero
    assert model.latent is not None
    torch.nn.init.zeros_(model.latent.readout.weight)  # and so is the KL
    got = estimate(model, batch_of(token_rows(6, 8)), battery(3), rows=4, seed=0)
    for name in ("elbo", "ce_prior", "nll_iwae_3", "nll_smc_3", "nll_smc_deferred_3", "ce_posterior"):
        assert got.nats[name] == pytest.approx(got.nats["elbo"], rel=1e-6)
    assert got.latent is not None
    assert got.latent.active_units == 0


def exact_nll(model: LatentLM, batch: Batch) -> torch.Tensor:
    """-log p of each row by enumerating every code of every slot (fixed prior)."""
    assert model.latent is not None
    slots, codes = model.latent.slots.count(batch.inputs_BT.shape[1]), 2**model.latent.quantizer.kl_dim
    all_codes = torch.cartesian_prod(*[torch.arange(codes)] * slots).view(-1, slots)
    joint = []
    for z in all_codes:
        out = model(batch.inputs_BT, z=z.expand(len(batch), slots))
        joint.append(-cross_entropy_nats(out.logits_BTV, batch.targets_BT).sum(-1))
    return -torch.stack(joint).logsumexp(0) + slots * torch.tensor(float(codes)).log()


@pytest.mark.parametrize("per", ["token", 2, "sequence"])
def test_the_bounds_lie_above_the_exact_likelihood_and_iwae_closes_the_gap(per: str | int) -> None:
    cross = Cross(LearnedQueryParams(per=per), BinaryParams(bits=2), KVParams())
    model = build_cross(cross, REGISTRY).eval()
    assert model.latent is not None
    with torch.no_grad():  # a posterior not too far from the prior, else 1000 samples are no limit
        model.latent.readout.weight *= 0.3
    batch = batch_of(token_rows(3, 5))
    with torch.no_grad():
        exact = exact_nll(model, batch).mean().item()
    means = {}
    for samples in (1, 1000):
        got = estimate(model, batch, battery(samples), rows=3, seed=0)
        means |= {name: got.nats[name].mean() for name in got.nats}
    assert means["nll_iwae_1000"] == pytest.approx(exact, abs=0.05)
    assert means["elbo"] > exact - 0.05
    assert means["ce_prior"] > exact - 0.05
    assert means["elbo"] > means["nll_iwae_1000"] - 0.02


@given(st.integers(1, 5))
def test_estimates_do_not_touch_the_global_random_state(samples: int) -> None:
    model = build_cross(GPTVAE, REGISTRY)
    before = torch.get_rng_state()
    one, two = (
        estimate(model, batch_of(token_rows(3, 6)), battery(samples), rows=2, seed=5) for _ in range(2)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert all((one.nats[name] == two.nats[name]).all() for name in one.nats)
    assert model.training
