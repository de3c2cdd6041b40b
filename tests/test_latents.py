"""The mathematics of the latents: KL against enumeration, the mapper against its dense form, the hinges by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence
from torch.nn import functional as F

from lvlm.errors import UserError
from lvlm.interfaces import IGNORE, Batch, Latent, Output
from lvlm.kl import bernoulli_kl, gaussian_kl, gaussian_log_prob
from lvlm.objective import HingedELBO, hinge, per_token
from lvlm.straight_through import straight_through
from lvlm.testing import numbers
from lvlm_free.binary import Binary, code_bits, code_probabilities, logit_gradient
from lvlm_gptvae.gaussian import Gaussian

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
    monkeypatch.setattr("lvlm_free.binary.CHUNK_NUMBERS", 3 * 2**group)  # several chunks, the last one short
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
    torch.testing.assert_close(logit_gradient(pull, logits.detach()), expected, atol=1e-9, rtol=1e-9)


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


# ------------------------------------------------------------------------------------------------ the objective

KL = torch.tensor([[[0.5, 0.3], [0.1, 0.0]], [[2.0, 1.0], [0.0, 0.0]]], dtype=torch.float64)
KEEP = torch.tensor([[True, True], [True, False]])


@pytest.mark.parametrize(
    ("per", "budget", "charged", "over"),
    [
        ("unit", 0.4, 0.1 + 1.6 + 0.6, 0.5 + 2.0 + 1.0),
        ("slot", 0.5, 0.3 + 2.5, 0.8 + 3.0),
        ("sequence", 0.6, 0.0 + 2.4, 3.0),
        ("slot", 0.0, 3.9, 3.9),
        ("slot", math.inf, 0.0, 0.0),
    ],
)
def test_hinges_by_hand(per: str, budget: float, charged: float, over: float) -> None:
    kl = KL.clone().requires_grad_()
    term, raw_over = hinge(kl * KEEP[..., None], KEEP, budget, per)  # type: ignore[arg-type]
    assert term.item() == pytest.approx(charged)
    assert raw_over.item() == pytest.approx(over)
    (gradient,) = torch.autograd.grad(term, kl)
    assert (gradient * kl).sum().item() == pytest.approx(over)  # zero inside the budget, one above it
    assert gradient[1, 1].abs().sum() == 0


def case(*, vocab: int = 5) -> tuple[Batch, Tensor, Tensor]:
    torch.manual_seed(0)
    rows = torch.randint(vocab, (2, 3))
    batch = Batch(rows[:, :-1], rows[:, 1:].masked_fill(~KEEP, IGNORE), KEEP)
    return batch, torch.randn(2, 2, vocab, dtype=torch.float64), KL.clone().requires_grad_()


def output_of(logits: Tensor, kl: Tensor, keep: Tensor) -> Output:
    zeros = torch.zeros_like(kl)
    return Output(logits, Latent(zeros[..., 0].long(), zeros, kl, zeros, zeros), keep)


@given(st.sampled_from(["unit", "slot", "sequence"]), st.floats(0, 3), st.floats(0, 2))
def test_one_nat_of_kl_costs_beta_over_the_number_of_targets(per: str, budget: float, beta: float) -> None:
    batch, logits, kl = case()
    loss = HingedELBO(budget_bits=budget, per=per, beta=beta, beta_warmup_steps=0)  # type: ignore[arg-type]
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


def test_beta_warms_up_linearly() -> None:
    batch, logits, kl = case()
    loss = HingedELBO(budget_bits=0, per="slot", beta=2.0, beta_warmup_steps=4)
    priced = [
        loss(output_of(logits, kl, KEEP), batch, num_tokens=3, step=step).sums["kl_priced"].item()
        for step in range(6)
    ]
    raw = KL[KEEP].sum().item()
    assert priced == pytest.approx([raw * beta for beta in (0.5, 1.0, 1.5, 2.0, 2.0, 2.0)])


@pytest.mark.parametrize("duplicated", [False, True])
def test_padding_and_duplicating_and_splitting_leave_the_loss_unchanged(duplicated: bool) -> None:
    batch, logits, kl = case()
    loss = HingedELBO(budget_bits=0.5, per="slot", beta=1.0, beta_warmup_steps=0)
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
