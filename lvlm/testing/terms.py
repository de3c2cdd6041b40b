"""What holds for every KL term, ours and a stranger's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lvlm.objective import Granularity, KLTerm, TermParams

BUDGET_NATS = 0.4


def check_term(params: TermParams) -> None:
    """Check a KL term: charges, prices, padding, parts of a batch, edges, state, and a budget that moves."""
    granted: list[Granularity] = ["unit", "slot"] if params.follows_mean else ["unit", "slot", "sequence"]
    for per in granted:
        term = params.build(budget_nats=BUDGET_NATS, per=per)
        for size in (0.0, 0.1, 1.0, 20.0):
            for _ in range(2):  # a price that follows the KL is set after the first step
                check_charge(term, *kl_and_keep(size), pays_for_kl=params.pays_for_kl)
                term.after_step()
        if params.free_within_budget:
            check_free_within_budget(params, per)
        check_parts_add_up(params, per)
        check_edges(params, per)
        check_linear(params, per)
        check_state(params, per)
        if params.takes_schedule:
            check_schedule(params, per)


def kl_and_keep(size: float, *, rows: int = 3) -> tuple[Tensor, Tensor]:
    """Random KL [rows, 4, 2] in nats, zero where the mask [rows, 4] is false."""
    generator = torch.Generator().manual_seed(0)
    kl_BSd = size * torch.rand(rows, 4, 2, generator=generator, dtype=torch.float64)
    keep_BS = torch.arange(4) < torch.tensor([4, 2, 1])[:rows, None]
    return kl_BSd * keep_BS[..., None], keep_BS


def check_charge(term: KLTerm, kl_BSd: Tensor, keep_BS: Tensor, *, pays_for_kl: bool) -> None:
    """The charge is a finite scalar, its price is its derivative, and padding costs nothing."""
    kl_BSd = kl_BSd.clone().requires_grad_()
    charged, priced = term(kl_BSd, keep_BS)
    for name, value in (("charged", charged), ("priced", priced)):
        assert value.shape == (), f"{name} has the shape {list(value.shape)}; it is a sum over the batch"
        assert bool(value.isfinite()), f"{name} is {value.item()}"
    assert pays_for_kl or charged >= 0, f"{charged.item()} is charged, and pays_for_kl is false"
    price_BSd = _gradient(charged, kl_BSd)
    assert bool(price_BSd.isfinite().all()), "a price is not finite"
    longer = term(F.pad(kl_BSd.detach(), (0, 0, 0, 2)), F.pad(keep_BS, (0, 2)))[0]
    torch.testing.assert_close(longer, charged.detach(), msg="padding costs something")
    torch.testing.assert_close(
        priced.detach(), (price_BSd * kl_BSd.detach()).sum(), msg="priced is not the raw KL times its price"
    )


def check_free_within_budget(params: TermParams, per: Granularity) -> None:
    """KL within its budget costs nothing and has no gradient; above it, it does."""
    term = params.build(budget_nats=BUDGET_NATS, per=per)
    for size, free in ((BUDGET_NATS / 4, True), (20.0, False)):
        kl_BSd, keep_BS = kl_and_keep(size)
        kl_BSd = kl_BSd.requires_grad_()
        charged, _ = term(kl_BSd, keep_BS)
        nothing = charged == 0 and not _gradient(charged, kl_BSd).any()
        assert bool(nothing) == free, (
            f"{charged.item():.4f} nats are charged {'within' if free else 'above'} the budget"
        )


def check_parts_add_up(params: TermParams, per: Granularity) -> None:
    """Micro-batches charge what the whole batch does, also after a step over them."""
    whole, parts = (params.build(budget_nats=BUDGET_NATS, per=per) for _ in range(2))
    kl_BSd, keep_BS = kl_and_keep(1.0)
    for _ in range(3):
        wanted, _ = whole(kl_BSd, keep_BS)
        found = [parts(kl_BSd[row : row + 1], keep_BS[row : row + 1])[0] for row in range(len(kl_BSd))]
        torch.testing.assert_close(torch.stack(found).sum(), wanted, msg="rows don't add up to their batch")
        for term in (whole, parts):
            term.after_step()


def check_edges(params: TermParams, per: Granularity) -> None:
    """No slots, and budgets of nothing and without end, charge finite amounts."""
    budgets = [BUDGET_NATS] if params.steers else [0.0, BUDGET_NATS, math.inf]
    for budget_nats in budgets:
        term = params.build(budget_nats=budget_nats, per=per)
        for _ in range(2):
            kl_BSd, keep_BS = kl_and_keep(1.0)
            check_charge(term, kl_BSd, keep_BS, pays_for_kl=params.pays_for_kl)
            nothing, _ = term(torch.zeros_like(kl_BSd), torch.zeros_like(keep_BS))
            assert nothing == 0, f"{nothing.item()} is charged where there are no slots"
            term.after_step()


def check_linear(params: TermParams, per: Granularity) -> None:
    """Where the term says that it is linear: a KL of the other sign costs so much with that sign."""
    term = params.build(budget_nats=BUDGET_NATS, per=per)
    for _ in range(2 if params.linear else 0):
        kl_BSd, keep_BS = kl_and_keep(3.0)
        one, other = (term(kl, keep_BS)[0] for kl in (kl_BSd, -0.5 * kl_BSd))
        torch.testing.assert_close(other, -0.5 * one, msg="the charge isn't linear in the KL of a step")
        term.after_step()


def check_state(params: TermParams, per: Granularity) -> None:
    """A restored term charges what the saved one does, and evaluation teaches it nothing."""
    term, restored = (params.build(budget_nats=BUDGET_NATS, per=per) for _ in range(2))
    for size in (0.2, 3.0):
        _step(term, size)
    restored.load_state_dict(term.state_dict())
    term.eval()
    _step(term, 20.0)
    term.train()
    for size in (3.0, 0.2):
        assert _step(term, size) == _step(restored, size), "the state is not all that the charge depends on"


def check_schedule(params: TermParams, per: Granularity) -> None:
    """A term whose budget was changed charges what one that was built with that budget does."""
    moved, built = (params.build(budget_nats=nats, per=per) for nats in (4 * BUDGET_NATS, BUDGET_NATS))
    moved.at_budget(BUDGET_NATS)
    for size in (0.2, 3.0, 0.2):
        assert _step(moved, size) == _step(built, size), "`at_budget` doesn't change all that has the budget"


def _step(term: KLTerm, size: float) -> Sequence[float]:
    charged, priced = term(*kl_and_keep(size))
    term.after_step()
    return [charged.item(), priced.item()]


def _gradient(charged: Tensor, kl_BSd: Tensor) -> Tensor:
    if not charged.requires_grad:
        return torch.zeros_like(kl_BSd)
    (found,) = torch.autograd.grad(charged, kl_BSd, allow_unused=True, materialize_grads=True)
    return found
