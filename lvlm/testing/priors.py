"""What holds for every prior, ours and a stranger's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lvlm.errors import MissingLibrary
from lvlm.interfaces import Prior, PriorParams, Quantizer, QuantizerParams, RowGenerator
from lvlm.model.prior import PriorMemory
from lvlm.registry.registry import Registry
from lvlm.testing.cases import assert_learns, generator_of, randomise

WIDTH, EMBEDDING = 16, 6
ROWS, SLOTS = 3, 5
MANY = 4000
MOST_CODES = 4096
ERRORS = 5.0


@dataclass(frozen=True)
class Seen:
    """What a prior may see, random, in float64."""

    hidden_BSD: Tensor
    before_BSC: Tensor


def check_prior(params: PriorParams) -> None:
    """Check a prior beside a quantizer of indices and one of vectors, as far as it goes with them: its start,
    causality, steps, rows, gradients, and that it draws from what its log-probability says.
    """
    quantizers = list(_quantizers(params))
    assert quantizers, "no registered quantizer has codes that this prior could be of"
    for quantizer in quantizers:
        prior = params.build(width=WIDTH, quantizer=quantizer).double()
        seen = _seen()
        _check_words(params, prior)
        numbers_BSJ = prior(seen.hidden_BSD, seen.before_BSC)
        assert numbers_BSJ.shape[:2] == (ROWS, SLOTS), f"numbers {list(numbers_BSJ.shape)} are not [B, S, J]"
        if prior.kl == "closed":
            wanted = quantizer.prior_dim
            assert numbers_BSJ.shape[2] == wanted, f"{numbers_BSJ.shape[2]} numbers, the family has {wanted}"
        assert not numbers_BSJ.any(), "the numbers aren't zero at the start"
        randomise(prior)
        check_causality(prior, seen)
        check_steps(prior, seen, quantizer.embedding_dim)
        check_rows(prior, quantizer, seen)
        _check_gradients(prior, quantizer, seen)
        with torch.no_grad():
            check_distribution(prior, quantizer)


def _quantizers(params: PriorParams) -> Iterator[Quantizer]:
    """One quantizer of indices that can be the prior, and one of vectors, random."""
    kinds: set[bool] = set()
    for kind in Registry.load().kinds["quantizer"].values():
        example = kind.params.example()
        assert isinstance(example, QuantizerParams)
        if example.continuous in kinds or (params.needs_continuous and not example.continuous):
            continue
        try:
            quantizer = example.build(embedding_dim=EMBEDDING)
        except MissingLibrary:
            continue
        if quantizer.can_be_prior:
            kinds.add(example.continuous)
            yield randomise(quantizer.double())


def _seen(slots: int = SLOTS, seed: int = 0) -> Seen:
    generator = generator_of(seed)
    hidden_BSD = torch.randn(ROWS, slots, WIDTH, generator=generator, dtype=torch.float64)
    before_BSC = torch.randn(ROWS, slots, EMBEDDING, generator=generator, dtype=torch.float64)
    before_BSC[:, 0] = 0
    return Seen(hidden_BSD, before_BSC)


def _check_words(params: PriorParams, prior: Prior) -> None:
    """Params and module say the same."""
    for name in ("sees_codes", "kl"):
        theirs, ours = getattr(params, name), getattr(prior, name)
        assert theirs == ours, f"its params say {name}: {theirs}, the module {ours}"
    learned = any(p.requires_grad for p in prior.parameters())
    assert params.learned == learned, f"its params say learned: {params.learned}, the module {learned}"


def check_causality(prior: Prior, seen: Seen) -> None:
    """Neither the hidden nor the code before changes the numbers of an earlier slot; what the prior says that
    it sees changes some, and nothing else does.
    """
    numbers_BSJ = prior(seen.hidden_BSD, seen.before_BSC)
    for what, sees in (("hidden", prior.sees_hidden), ("code before", prior.sees_codes)):
        moved = False
        for slot in range(seen.hidden_BSD.shape[1]):
            hidden_BSD, before_BSC = seen.hidden_BSD.clone(), seen.before_BSC.clone()
            changed = hidden_BSD if what == "hidden" else before_BSC
            changed[:, slot] += 1.0
            after_BSJ = prior(hidden_BSD, before_BSC)
            same = torch.allclose(after_BSJ[:, :slot], numbers_BSJ[:, :slot], atol=1e-12, rtol=0)
            assert same, f"the {what} of slot {slot} is seen in a slot before it"
            moved |= not torch.allclose(after_BSJ, numbers_BSJ, atol=1e-12, rtol=0)
        assert moved or not sees, f"the prior says that it sees the {what}, which changes no numbers"
        assert sees or not moved, f"the prior says that it doesn't see the {what}, which changes its numbers"


def check_steps(prior: Prior, seen: Seen, embedding_dim: int) -> None:
    """Slot after slot the numbers are those of all at once, also of rows in another order and of rows that
    wait for others; what is remembered doesn't grow.
    """
    whole_BSJ = prior(seen.hidden_BSD, seen.before_BSC)
    slots, order = whole_BSJ.shape[1], torch.tensor([2, 0, 0])
    for rows in (torch.arange(ROWS), order):
        memory = PriorMemory(prior, seen.hidden_BSD, embedding_dim)
        shape = memory.state_B.shape[1:]
        taken = torch.arange(ROWS)
        for slot in range(slots):
            if slot == slots // 2:
                memory.take(rows)
                taken = rows
            here = slice(slot, slot + 1)
            waits = torch.tensor([True, False, True])
            memory.take_in(seen.before_BSC[taken, here])
            before = memory.state_B.clone()
            memory.numbers(seen.hidden_BSD[taken, here], ~waits)
            assert torch.equal(memory.state_B[waits], before[waits])
            memory.state_B = before
            numbers_B1J = memory.numbers(seen.hidden_BSD[taken, here])
            assert torch.allclose(numbers_B1J, whole_BSJ[taken, here], atol=1e-12, rtol=1e-9), (
                f"`step` gives other numbers for slot {slot} than `forward`"
            )
            assert memory.state_B.shape == (ROWS, *shape), "what is remembered has another size after a slot"


def check_rows(prior: Prior, quantizer: Quantizer, seen: Seen) -> None:
    """Rows know nothing of each other, what is given isn't written into, and a generator fixes the draws."""
    given = (seen.hidden_BSD.clone(), seen.before_BSC.clone())
    numbers_BSJ = prior(*given)
    for name, ours, theirs in zip(
        ("hidden", "before"), (seen.hidden_BSD, seen.before_BSC), given, strict=True
    ):
        assert torch.equal(ours, theirs), f"the prior writes into {name}"
    alone_1SJ = prior(*(x[1:2] for x in given))
    assert torch.allclose(alone_1SJ, numbers_BSJ[1:2], atol=1e-12, rtol=1e-9), "a row sees the rows beside it"
    state = torch.get_rng_state()
    one, two = (prior.sample(quantizer, numbers_BSJ, generator_of(3)).codes for _ in range(2))
    assert torch.equal(one, two), "a generator's seed doesn't fix the codes"
    assert torch.equal(state, torch.get_rng_state()), (
        "the global random state moved although a generator was given"
    )
    seeds = [11, 12, 13]
    whole = prior.sample(quantizer, numbers_BSJ, RowGenerator(seeds))
    part = prior.sample(quantizer, numbers_BSJ[1:2], RowGenerator(seeds[1:2]))
    assert torch.allclose(whole.codes[1:2].double(), part.codes.double()), (
        "the codes of a row depend on the rows beside it: draw by `uniform`, `normal` or `exponential` "
        "of lvlm.interfaces"
    )
    assert whole.kl_BSd is None, "prior codes have no KL"
    assert whole.prior_BSJ is not None, "prior codes come with the numbers that they were drawn from"
    embedding_BSC = quantizer.given(whole.codes).embedding_BSC
    assert torch.allclose(embedding_BSC, whole.embedding_BSC), "given codes have another embedding"


def _check_gradients(prior: Prior, quantizer: Quantizer, seen: Seen) -> None:
    """The log-probability of codes reaches every parameter, and the codes before, if it sees them."""
    before_BSC = seen.before_BSC.clone().requires_grad_()
    numbers_BSJ = prior(seen.hidden_BSD, before_BSC)
    codes = quantizer.sample(torch.zeros(ROWS, SLOTS, quantizer.prior_dim).double(), generator_of()).codes
    log_p_BS = prior.log_prob(quantizer, codes, numbers_BSJ)
    assert log_p_BS.shape == (ROWS, SLOTS), f"log_prob is [B, S], not {list(log_p_BS.shape)}"
    assert_learns(prior, log_p_BS.sum())
    if prior.sees_codes:
        (slope,) = torch.autograd.grad(log_p_BS.sum(), before_BSC, allow_unused=True)
        assert slope is not None, "no gradient reaches the codes before"
        assert slope.abs().sum() > 0, "no gradient reaches the codes before"


def check_distribution(prior: Prior, quantizer: Quantizer) -> None:
    """Probabilities of all codes sum to 1 where they can be counted, and draws are of these probabilities."""
    seen = _seen(slots=2)
    numbers_11J = prior(seen.hidden_BSD, seen.before_BSC)[:1, 1:]
    count = quantizer.num_codes
    if count is not None and count <= MOST_CODES:
        log_p = prior.log_prob(quantizer, torch.arange(count)[:, None], numbers_11J.expand(count, -1, -1))
        total = float(log_p.exp().sum())
        assert abs(total - 1) < 1e-9, f"the probabilities of all codes sum to {total:.6f}"
    many_1NJ = numbers_11J.expand(1, MANY, -1)
    zeros_1NJ = torch.zeros(1, MANY, quantizer.prior_dim, dtype=torch.float64)
    of_prior = prior.sample(quantizer, many_1NJ, generator_of()).codes
    of_other = quantizer.sample(zeros_1NJ, generator_of(1)).codes

    def log_ratio(codes: Tensor) -> Tensor:
        return prior.log_prob(quantizer, codes, many_1NJ) - quantizer.log_prob(codes, zeros_1NJ)

    check_balance(log_ratio(of_prior), -log_ratio(of_other))


def check_balance(log_ratio_of_p: Tensor, log_ratio_of_q: Tensor) -> None:
    """Check that draws of p and q are of the densities that their log-ratios say.

    Where both are right, q / (p + q) has the same mean over draws of p as p / (p + q) over draws of q: both
    are the integral of p q / (p + q). They lie between 0 and 1, so that no draw outweighs the others.

    Args:
        log_ratio_of_p: log p - log q of draws of p.
        log_ratio_of_q: log q - log p of draws of q.
    """
    one, other = ((-ratio).sigmoid().flatten() for ratio in (log_ratio_of_p, log_ratio_of_q))
    error = (one.var() / len(one) + other.var() / len(other)).sqrt()
    difference = one.mean() - other.mean()
    assert difference.abs() <= ERRORS * error + 1e-9, (
        f"draws and log-probabilities disagree: balance is off by {difference:.4f} ± {error:.4f}"
    )
