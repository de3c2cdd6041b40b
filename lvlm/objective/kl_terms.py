"""The contract of KL terms: a module that charges for the KL of a step, and its entry in a recipe.

    kl_BSd, keep_BS ─ KLTerm ─► charged, raw KL times its price ─ ELBO ─► loss, beta_effective

Terms in use are in two families. Local terms (`kl_hinges.py`) look at each unit, slot or sequence by
itself; k is its budget in nats.

    plain       KL                  linear: no budget at all
    hinge       relu(KL - k)        one-sided (Kingma et al. 2016, arXiv 1606.04934; F25 eq. 5)
    mask        KL where KL > k     one-sided, the gradient of the hinge (Li et al. 2020, Optimus, 2004.04092)
    target      |KL - k|            two-sided: below its budget a latent is pulled up

Controllers (`kl_controllers.py`) set one price per nat, or one per unit, from the mean KL of the whole step
before: the price is then the same for all micro-batches and ranks, and the loss is linear in the KL.

    clamp       1 where the mean was above k, else 0           the gradient of max(mean KL, k); one-sided
    pid         P sigmoid(error) + integral, in [0, 1]        ControlVAE (Shao et al. 2020, 2004.05988);
                                                              the price stops at 0, so it pulls nothing up
    lagrangian  1 - lambda - relu(1 - mean / k); lambda >= 0   a minimum rate (after Rezende and Viola 2018,
                grows while mean < k                           1810.00597); two-sided: prices get negative
"""

from __future__ import annotations

import abc
from typing import ClassVar, Literal

from torch import Tensor, nn

from lvlm.interfaces import Params

Granularity = Literal["unit", "slot", "sequence"]


class KLTerm(nn.Module, abc.ABC):
    """A KL term, before beta."""

    def at_budget(self, budget_nats: float) -> None:
        """Take another budget, nats, from here on. It is called in each step where the budget follows a
        schedule, for a term whose params say `takes_schedule`. What a controller has learned stays.
        """
        raise NotImplementedError(f"{type(self).__name__}.at_budget")

    @abc.abstractmethod
    def forward(self, kl_BSd: Tensor, keep_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Charge for the KL of a batch.

        Args:
            kl_BSd: raw KL, nats; zero where `keep_BS` is False.
            keep_BS: bool, the slots that count.

        Returns:
            What is charged, summed over the batch, and the raw KL times its price: both scalars in nats.
            Parts of a batch add up to the batch.
        """

    def after_step(self) -> None:
        """Called once after every optimiser step, for a price that follows the KL of the whole step.

        What a process has seen is its own rows: all-reduce it before use. State belongs in buffers or the
        extra state, which are saved with the trainer.
        """


class TermParams(Params):
    """Base of the params of KL terms: a loss's `term` in a recipe."""

    role: ClassVar[str] = "term"

    steers: ClassVar[bool] = False
    """True where the term brings the KL to its budget, so that the budget must be above 0 and finite."""
    follows_mean: ClassVar[bool] = False
    """True where the term follows a mean over the batch, so that a sequence can have no budget of its own."""
    pays_for_kl: ClassVar[bool] = False
    """True where a nat of KL may have a negative price; a learned prior would then flee from the codes."""

    takes_budget: ClassVar[bool] = True
    """False where there is no budget, and a recipe may set none."""
    linear: ClassVar[bool] = False
    """True where the charge of a step is linear in its KL, whatever its sign. A KL that is sampled needs
    that: what is cut off at each slot's budget would be the noise of its draws.
    """
    free_within_budget: ClassVar[bool] = False
    """True where KL within its budget has no price at all, as under a hinge."""
    takes_schedule: ClassVar[bool] = False
    """True where the term has `at_budget`, so that its budget may follow a schedule."""

    def build(self, *, budget_nats: float, per: Granularity) -> KLTerm:
        """The module.

        Args:
            budget_nats: KL that costs nothing, per unit ('unit') or per slot ('slot', 'sequence'). Of a
                schedule it is that at step 0.
            per: what the budget is granted to; a sequence shares the budgets of its slots.
        """
        raise NotImplementedError(f"{type(self).__name__}.build")
