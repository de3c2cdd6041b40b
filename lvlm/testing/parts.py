"""What each role promises, as checks of one kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lvlm.errors import UserError
from lvlm.interfaces import (
    IGNORE,
    Backbone,
    BackboneParams,
    Batch,
    Drawn,
    Encoder,
    EncoderParams,
    Injection,
    InjectionParams,
    Latent,
    Loss,
    LossParams,
    Output,
    Params,
    Quantizer,
    QuantizerParams,
    RowGenerator,
    Slots,
)
from lvlm.model.latent_lm import LatentLM, Stage
from lvlm.model.ports import Ports
from lvlm.registry.registry import Registry
from lvlm.testing.cases import BACKBONE, TOKENS, VOCAB, assert_learns, generator_of, randomise, token_rows
from lvlm.testing.data import check_data
from lvlm.testing.estimators import check_estimator
from lvlm.testing.models import check_cache, check_causal, check_gradients
from lvlm.testing.priors import check_balance, check_prior
from lvlm.testing.terms import check_term

WIDTH = 16


def check_backbone(params: BackboneParams) -> None:
    """Shapes, causality, cached equals uncached, every parameter learns."""
    backbone: Backbone = randomise(params.build(vocab=VOCAB).double())
    assert len(backbone.blocks) == params.layers, "`layers` blocks"
    assert (backbone.width, backbone.vocab, backbone.context) == (params.width, VOCAB, params.context)
    model = LatentLM(backbone).eval()
    check_causal(model)
    check_cache(model)
    check_gradients(model)
    block = backbone.make_block(causal=False)
    positions_T = torch.arange(-2, TOKENS - 2)
    x_BTD = torch.randn(2, TOKENS, backbone.width, dtype=torch.float64)
    keep = torch.ones(2, 1, 1, TOKENS, dtype=torch.bool)
    y_BTD = randomise(block.double())(x_BTD, backbone.locate(positions_T), mask=keep)
    assert y_BTD.shape == x_BTD.shape, "make_block keeps the shape, at negative positions too"
    where = backbone.locate(positions_T)
    one, all_of_them = (
        block(query, where, source_BUD=x_BTD, source_where=where, mask=keep)
        for query in (x_BTD[:1, :1], x_BTD[:1, :1].expand_as(x_BTD))
    )
    assert torch.allclose(one, all_of_them), "one query [1, 1, D] isn't broadcast over rows and places"


def check_encoder(params: EncoderParams) -> None:
    """Shapes for every kind of slot, padding is invisible, posteriors differ between places, all of it
    learns.
    """
    for per in ("token", 3, "sequence"):
        here = params.model_copy(update={"per": per})
        backbone = randomise(_backbone().build(vocab=VOCAB).double())
        encoder: Encoder = randomise(here.build(backbone=backbone).double())
        tokens_BT = token_rows(3)
        hidden_BTD = backbone.embed(tokens_BT).detach()
        keep_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
        given = (tokens_BT.clone(), hidden_BTD.clone(), keep_BT.clone())
        features_BSE = encoder(*given)
        for name, ours, theirs in zip(
            ("tokens_BT", "hidden_BTD", "keep_BT"), (tokens_BT, hidden_BTD, keep_BT), given, strict=True
        ):
            assert torch.equal(ours, theirs), f"the encoder writes into {name}"
        slots = here.slots.count(TOKENS)
        assert encoder.slots == here.slots, f"encoder.slots is {encoder.slots}, its params say {here.slots}"
        assert features_BSE.shape == (3, slots, encoder.width), f"features {list(features_BSE.shape)}"
        if slots > 1:
            spread = (features_BSE - features_BSE.mean(1, keepdim=True)).abs().amax()
            assert spread > 1e-6, "every slot gets the same features: the encoder has no positions"
        other_BT = tokens_BT.clone()
        other_BT[:, -1] = (other_BT[:, -1] + 1) % VOCAB
        seen = encoder(other_BT, backbone.embed(other_BT).detach(), keep_BT)
        assert not torch.equal(seen, features_BSE), "the last token doesn't matter"
        # Tensors of its own: the encoder may have kept those that it was given.
        keep_BT = torch.arange(TOKENS)[None, :] < torch.tensor([4, 1, TOKENS])[:, None]
        real = here.slots.any(keep_BT)
        padded = encoder(tokens_BT, hidden_BTD, keep_BT)
        junk_BT = torch.where(keep_BT, tokens_BT, (tokens_BT + 3) % VOCAB)
        junk_BTD = torch.where(keep_BT[..., None], hidden_BTD, torch.randn_like(hidden_BTD))
        again = encoder(junk_BT, junk_BTD, keep_BT)
        assert torch.allclose(padded[real], again[real], atol=1e-9), "padding is seen"
        assert encoder(tokens_BT, hidden_BTD, torch.zeros_like(keep_BT)).isfinite().all(), (
            "all padding: not finite"
        )
        assert_learns(encoder, features_BSE.square().sum())


def check_quantizer(params: QuantizerParams) -> None:
    """Zero numbers are the prior, KL is what sampling says it is, codes can be given, gradients and
    extremes.
    """
    quantizer: Quantizer = randomise(params.build(embedding_dim=6).double())
    k, j, d = quantizer.posterior_dim, quantizer.prior_dim, quantizer.kl_dim
    learned = params.prior_can_be_learned
    assert (j > 0) == learned, f"prior_dim is {j}, but prior_can_be_learned is {learned}"
    zero_q, zero_p = torch.zeros(4, 5, k, dtype=torch.float64), torch.zeros(4, 5, j, dtype=torch.float64)
    latent = quantizer(zero_q, zero_p)
    assert latent.kl_BSd is not None, "a posterior has a KL"
    assert latent.kl_BSd.shape == (4, 5, d), f"kl_BSd is {list(latent.kl_BSd.shape)}, kl_dim says {d}"
    assert latent.embedding_BSC.shape == (4, 5, 6), "embedding_BSC is [B, S, embedding_dim]"
    if quantizer.can_be_prior:
        assert latent.kl_BSd.abs().max() < 1e-9, "all-zero numbers are not the prior"

    q = torch.randn(4, 5, k, dtype=torch.float64, generator=generator_of())
    p = torch.randn(4, 5, j, dtype=torch.float64, generator=generator_of(1))
    q.requires_grad_()
    latent = quantizer(q, p)
    assert latent.kl_BSd is not None
    assert params.continuous == (quantizer.num_codes is None), "`continuous` is for codes that are vectors"
    assert params.kl == quantizer.kl, f"its params say kl: {params.kl}, the module {quantizer.kl}"
    assert params.continuous or quantizer.kl == "closed", "a KL of drawn indices has no gradient to the draw"
    assert quantizer.kl == "sampled" or (latent.kl_BSd > -1e-9).all(), "negative KL"
    other = p.flip(1)
    divergence = quantizer.divergence(latent, other)
    assert divergence.shape == latent.kl_BSd.shape, f"`divergence` is {list(divergence.shape)}"
    if quantizer.kl == "closed":
        expected = quantizer(q, other).kl_BSd
        assert expected is not None
        assert torch.allclose(divergence, expected), "`divergence` is another KL than that of `forward`"
    _check_kl_by_sampling(quantizer, q.detach(), p)
    gradient = torch.autograd.grad(latent.embedding_BSC.square().sum(), q, allow_unused=True)[0]
    assert gradient is not None, "the embedding has no gradient to the posterior numbers"
    assert gradient.abs().sum() > 0, "the gradient to the posterior numbers is zero"

    again = quantizer.given(latent.codes)
    assert torch.equal(again.embedding_BSC, latent.embedding_BSC), "given codes have another embedding"
    assert again.kl_BSd is None, "given codes have no KL"
    embedding = quantizer.embed(latent.codes)
    assert torch.allclose(embedding, again.embedding_BSC), (
        "`embed` makes something else of codes than `given`"
    )
    drawn = quantizer.sample(p)
    assert drawn.kl_BSd is None, "prior codes have no KL"
    assert drawn.codes.shape == latent.codes.shape, "prior codes have another shape"

    state = torch.get_rng_state()
    one, two = (quantizer(q, p, torch.Generator().manual_seed(3)).codes for _ in range(2))
    assert torch.equal(one, two), "a generator's seed doesn't fix the codes"
    assert torch.equal(state, torch.get_rng_state()), (
        "the global random state moved although a generator was given"
    )

    _check_rows_draw_by_themselves(quantizer, q.detach(), p)

    for size in (1e4, -1e4):
        extreme = torch.full((1, 2, k), size, dtype=torch.float64, requires_grad=True)
        out = quantizer(extreme, torch.zeros(1, 2, j, dtype=torch.float64))
        assert out.kl_BSd is not None
        (gradient,) = torch.autograd.grad(out.kl_BSd.sum() + out.embedding_BSC.sum(), extreme)
        assert out.kl_BSd.isfinite().all(), f"numbers of {size}: KL is not finite"
        assert gradient.isfinite().all(), f"numbers of {size}: the gradient is not finite"
    half = quantizer.float()(q.detach().bfloat16(), p.bfloat16())
    assert half.kl_BSd is not None
    assert half.kl_BSd.dtype == torch.float32, "KL is computed in float32 whatever the input"
    _check_units(quantizer.double(), latent.codes)
    codes = latent.codes
    wrong = torch.full_like(codes, torch.nan if codes.is_floating_point() else -1)
    for bad, fault in ((wrong, "not finite, or out of range"), (codes.flatten(), "of the wrong shape")):
        try:
            quantizer.given(bad)
        except UserError:
            continue
        raise AssertionError(f"codes that are {fault} are accepted: {bad.dtype} {list(bad.shape)}")


def _check_rows_draw_by_themselves(quantizer: Quantizer, q: Tensor, p: Tensor) -> None:
    """The codes of a row are the same, whatever rows stand beside it in a micro-batch."""
    seeds, some = [11, 12, 13, 14], slice(1, 3)

    def drawn(rows: slice) -> tuple[Tensor, Tensor]:
        one, two = (RowGenerator(seeds[rows]) for _ in range(2))
        return quantizer(q[rows], p[rows], one).codes, quantizer.sample(p[rows], two).codes

    for whole, part in zip(drawn(slice(None)), drawn(some), strict=True):
        assert torch.equal(whole[some], part), (
            "the codes of a row depend on the rows beside it: draw by `uniform`, `normal` or `exponential` "
            "of lvlm.interfaces"
        )


def _check_units(quantizer: Quantizer, codes: Tensor) -> None:
    """What the quantizer says of its codes is so: how many numbers or indices they are, and that units
    change one by one.
    """
    if quantizer.num_codes is None:
        assert quantizer.code_dim is not None, "a quantizer sets num_codes (indices) or code_dim (vectors)"
        assert codes.is_floating_point(), (
            f"codes of {quantizer.code_dim} numbers are floats, not {codes.dtype}"
        )
        assert codes.shape[2:] == (quantizer.code_dim,), (
            f"code_dim is {quantizer.code_dim}, the codes are {list(codes.shape)}"
        )
        assert len(quantizer.units) in (0, quantizer.code_dim), "the units of a vector are its coordinates"
    else:
        assert quantizer.code_dim is None, (
            "num_codes is for indices and code_dim for vectors: set one of them"
        )
        assert codes.dtype == torch.int64, f"indices are int64, not {codes.dtype}"
        assert codes.ndim == 2, f"indices are [rows, slots], not {list(codes.shape)}"
        assert 0 <= int(codes.min()) <= int(codes.max()) < quantizer.num_codes, "an index beyond num_codes"
        assert quantizer.num_codes == 2 ** len(quantizer.units) or not quantizer.units, (
            f"{quantizer.num_codes} codes are not those of {len(quantizer.units)} bits"
        )
    assert len(set(quantizer.units)) == len(quantizer.units), (
        f"units have names of their own: {quantizer.units}"
    )
    before = codes.clone()
    embedding = quantizer.given(codes).embedding_BSC
    numbers = codes if quantizer.num_codes is None else _bits(codes, len(quantizer.units))
    for unit, name in enumerate(quantizer.units):
        changed = quantizer.with_unit_changed(codes, unit)
        assert torch.equal(codes, before), (
            f"{name}: with_unit_changed writes into the codes that it was given"
        )
        theirs = changed if quantizer.num_codes is None else _bits(changed, len(quantizer.units))
        moved = (theirs != numbers).flatten(0, 1)
        assert moved[:, unit].all(), f"{name} isn't changed in every slot"
        moved[:, unit] = False
        assert not moved.any(), f"changing {name} changes other units"
        assert torch.allclose(quantizer.with_unit_changed(changed, unit).double(), codes.double()), (
            f"{name} changed twice isn't what it was"
        )
        after = quantizer.given(changed).embedding_BSC
        assert (after != embedding).any(-1).all(), f"changing {name} doesn't show in the embedding"


def _bits(codes: Tensor, count: int) -> Tensor:
    return (codes[..., None] >> torch.arange(count)) & 1


def _check_kl_by_sampling(quantizer: Quantizer, q: Tensor, p: Tensor) -> None:
    """The closed form is the mean of log q - log p over samples, within 5 standard errors. A sampled KL is
    that of its own draw, and the draws are of log q.
    """
    many = 4000
    q, p = q[:1, :1].expand(1, many, -1), p[:1, :1].expand(1, many, -1)
    latent = quantizer(q, p, generator_of())
    assert latent.kl_BSd is not None
    ratio = quantizer.log_prob(latent.codes, q) - quantizer.log_prob(latent.codes, p)
    assert ratio.shape == (1, many), f"log_prob is [B, S], not {list(ratio.shape)}"
    if quantizer.kl == "sampled":
        assert latent.kl_BSd.shape == (1, many, 1), "a sampled KL is [B, S, 1]"
        assert torch.allclose(latent.kl_BSd[..., 0], ratio), "a sampled KL is log q - log p of its draw"
        drawn = quantizer.sample(p, generator_of(1)).codes
        check_balance(ratio, quantizer.log_prob(drawn, p) - quantizer.log_prob(drawn, q))
        return
    exact, error = latent.kl_BSd[0, 0].sum(), ratio.std() / many**0.5
    assert (ratio.mean() - exact).abs() < 5 * error + 1e-9, (
        f"KL {exact:.4f} nats, but log q - log p averages {ratio.mean():.4f} ± {error:.4f} over its samples"
    )


PORT_OF_FIELD = {
    "scale_BTD": "scale_shift",
    "offset_BTD": "scale_shift",
    "memory_BMD": "memory",
    "logits_BTD": "logits",
}
"""Fields of `Conditioning` that not every backbone reads, and the port that each belongs to."""


def check_injection(params: InjectionParams) -> None:
    """It slices, a dropped row leaves no trace, and the code moves the logits of a model."""
    slots = Slots(None) if params.needs_fixed_slots else Slots(2)
    injection: Injection = randomise(params.build(width=16, slots=slots).double())
    embedding = torch.randn(2, slots.count(TOKENS), injection.embedding_dim, dtype=torch.float64)
    whole = injection(embedding, torch.arange(TOKENS))
    part = injection(embedding, torch.arange(2, 5))
    ports = [name for name, value in vars(whole).items() if value is not None]
    assert ports, "no port is used"
    used = {port for field, port in PORT_OF_FIELD.items() if getattr(whole, field) is not None}
    assert used <= {*params.ports}, (
        f"it uses {sorted(used - {*params.ports})}: say so on the params, "
        f"ports: ClassVar[frozenset[PortName]] = frozenset({sorted(used)})"
    )
    for port in ports:
        expected = getattr(whole, port)
        if port.endswith("BTD"):
            expected = expected[:, 2:5]
        assert torch.equal(getattr(part, port), expected), f"{port} doesn't slice"
    if whole.prefix_BPD is not None:
        assert whole.prefix_BPD.shape[1] == injection.prefix_rows, "prefix_rows says how many rows there are"
    keep_B = torch.tensor([False, True])
    one, other = (injection(embedding * scale, torch.arange(TOKENS), keep_B) for scale in (1, -2))
    if one.prefix_BPD is not None:
        assert one.prefix_keep_B is not None, "keep_B must reach prefix_keep_B"
        assert torch.equal(one.prefix_keep_B, keep_B), "keep_B must reach prefix_keep_B"
    for port in ports:
        if port.endswith("BTD"):
            assert torch.equal(getattr(one, port)[0], getattr(other, port)[0]), (
                f"a dropped row shows in {port}"
            )
    if whole.memory_BMD is not None:
        assert whole.memory_BMD.shape[1] == injection.memory_rows, "memory_rows says how many rows there are"
        assert one.memory_keep_B is not None, "keep_B must reach memory_keep_B"
        assert torch.equal(one.memory_keep_B, keep_B), "keep_B must reach memory_keep_B"
    _check_effect(params, injection, embedding)


@torch.no_grad()
def _check_effect(params: InjectionParams, injection: Injection, embedding_BSC: Tensor) -> None:
    """Check in a small random model that another code makes other logits, and a dropped row's code does
    not.
    """
    backbone, seam = _backbone().build(vocab=VOCAB), 1
    blocks = params.blocks(seam, len(backbone.blocks))
    if injection.memory_rows:
        for block in blocks:
            backbone.open_memory(block)
    model = LatentLM(randomise(backbone.double())).eval()
    place, tokens_BT = model.place(torch.arange(TOKENS)), token_rows()
    hidden_BTD = model.through(Stage((), 0, seam), backbone.embed(tokens_BT), place, Ports())

    def logits(embedding_BSC: Tensor, keep_B: Tensor | None = None) -> Tensor:
        ports = Ports()
        for block in blocks:
            ports.enter(block, injection(embedding_BSC, place.positions_T, keep_B))
        stage = Stage((), seam, len(backbone.blocks))
        return model.head(model.last(model.through(stage, hidden_BTD, place, ports), ports))

    other_BSC = embedding_BSC * -2
    difference = (logits(embedding_BSC) - logits(other_BSC)).abs().amax(dim=(1, 2))
    assert (difference > 1e-9).all(), "the code has no effect on the logits: does the core read this port?"
    dropped = torch.zeros(len(tokens_BT), dtype=torch.bool)
    assert torch.equal(logits(embedding_BSC, dropped), logits(other_BSC, dropped)), (
        "a dropped row's code shows in the logits"
    )


def check_loss(params: LossParams) -> None:
    """Micro-batches add up, padding costs nothing, kl_priced is the derivative, and its parameters learn."""
    loss: Loss = randomise(params.build(width=WIDTH, vocab=VOCAB).double())
    batch, output = _loss_case()
    total = loss(output, batch, num_tokens=batch.num_targets, step=10_000)
    assert total.loss.ndim == 0, "the loss is a scalar"
    assert total.loss.isfinite(), "the loss is not finite"
    parts = [
        loss(_rows(output, r), batch[r], num_tokens=batch.num_targets, step=10_000)
        for r in (slice(0, 1), slice(1, 4))
    ]
    summed = torch.stack([part.loss for part in parts]).sum()
    assert torch.allclose(total.loss, summed), "micro-batches don't add up to the batch"
    assert output.latent is not None
    assert output.latent.kl_BSd is not None
    required = {"ce_posterior", "kl", "kl_hinged", "kl_priced"}
    assert required <= total.sums.keys(), (
        f"the loss must log {sorted(required)}; it logs {sorted(total.sums)}"
    )
    assert torch.allclose(total.sums["kl"], output.latent.kl_BSd[output.keep_BS].sum()), "'kl' is raw"
    (slope,) = torch.autograd.grad(total.loss, output.latent.kl_BSd, allow_unused=True, retain_graph=True)
    priced = 0.0 if slope is None else (slope * output.latent.kl_BSd).sum() * batch.num_targets
    assert torch.allclose(total.sums["kl_priced"], torch.as_tensor(priced).to(total.sums["kl_priced"])), (
        "'kl_priced' is the raw KL times the derivative of the loss with respect to it, times num_tokens"
    )
    assert_learns(loss, total.loss)


def _loss_case() -> tuple[Batch, Output]:
    """Rows with padding, hiddens of width `WIDTH` with the logits of a head, and a latent; in float64."""
    generator = generator_of()
    rows_BT = token_rows(4, 6)
    keep_BT = torch.arange(5)[None, :] < torch.tensor([5, 3, 1, 4])[:, None]
    batch = Batch(rows_BT[:, :-1], rows_BT[:, 1:].masked_fill(~keep_BT, IGNORE), keep_BT)
    hidden = torch.randn(4, 5, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(WIDTH, VOCAB, generator=generator, dtype=torch.float64)
    kl = torch.rand(4, 5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    none = torch.zeros(4, 5, 3, dtype=torch.float64)
    latent = Latent(torch.zeros(4, 5, dtype=torch.long), none, kl, none, none)
    latent.log_ratio_BS = latent.log_posterior_BS = torch.zeros(4, 5, dtype=torch.float64)
    drawn = Drawn(latent, keep_BT.clone(), Slots(1))
    return batch, Output(hidden, lambda x_BTD: x_BTD @ head, {"latent": drawn})


def _rows(output: Output, rows: slice) -> Output:
    latent = output.latent
    assert latent is not None
    assert latent.kl_BSd is not None
    assert output.keep_BS is not None
    part = replace(latent, kl_BSd=latent.kl_BSd[rows], embedding_BSC=latent.embedding_BSC[rows])
    if latent.log_ratio_BS is not None and latent.log_posterior_BS is not None:
        part.log_ratio_BS, part.log_posterior_BS = latent.log_ratio_BS[rows], latent.log_posterior_BS[rows]
    drawn = Drawn(part, output.keep_BS[rows], output.slots)
    return Output(output.hidden_BTD[rows], output.head, {"latent": drawn})


def _backbone() -> Any:
    """The small decoder of `BACKBONE`, as params."""
    registry = Registry.load()
    spec = dict(BACKBONE)
    return registry.get("backbone", spec.pop("kind")).params(**spec)


CHECKS: dict[str, Callable[[Any], None]] = {
    "backbone": check_backbone,
    "encoder": check_encoder,
    "quantizer": check_quantizer,
    "prior": check_prior,
    "injection": check_injection,
    "loss": check_loss,
    "data": check_data,
    "term": check_term,
    "estimator": check_estimator,
}


def check_kind(params: Params) -> None:
    """The checks of its role."""
    CHECKS[params.role](params)
