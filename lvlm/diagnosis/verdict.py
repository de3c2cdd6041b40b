"""The verdict on a latent: whether the decoder reads its codes. The KL has no part in a verdict of 'read'."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from lvlm.likelihood.reading import is_read

if TYPE_CHECKING:
    from lvlm.diagnosis.measured import Measured

Reading = Literal["read", "not read", "can't tell"]
"""What the windows say of a latent.

read         the interval of the worth lies above 0.0001 nats/token
not read     it doesn't, and either its upper end is negligible or the codes say nothing that could be read
can't tell   it reaches from next to nothing or below to a worth that would matter: more windows are needed
"""

NEGLIGIBLE_SHARE_OF_KL = 0.05

NEGLIGIBLE_NATS_PER_TOKEN = 0.01

SILENT_NATS_PER_SLOT = 0.01

SILENT_SHARE_OF_BUDGET = 0.05

ONE_CODE_PERPLEXITY = 1.05


def reading_of(m: Measured) -> Reading:
    """Whether the decoder reads the codes, as far as these windows can tell."""
    if is_read(m.worth_low_nats_per_token):
        return "read"
    if is_silent(m) or has_one_code(m):
        return "not read"
    most = m.worth_high_nats_per_token
    negligible = min(NEGLIGIBLE_NATS_PER_TOKEN, NEGLIGIBLE_SHARE_OF_KL * m.kl_nats_per_token)
    return "not read" if most is not None and most <= negligible else "can't tell"


def is_silent(m: Measured) -> bool:
    """Whether the codes say next to nothing: they tell no more of their text than their raw KL.

    That is so below 0.01 nats per slot, and below 5 % of the budget where that is less. A family whose KL has
    a floor never counts as silent.
    """
    least = SILENT_NATS_PER_SLOT
    if m.budget_nats_per_slot:
        least = min(least, SILENT_SHARE_OF_BUDGET * m.budget_nats_per_slot)
    return not m.kl_has_floor and m.kl_nats_per_slot < least


def has_one_code(m: Measured) -> bool:
    """Whether one and the same code was drawn all but always, in more than one slot."""
    seen = m.code_perplexity_at_most or 0
    return seen > 1 and (m.code_perplexity or 0) < ONE_CODE_PERPLEXITY


def is_alike(m: Measured) -> bool:
    """Whether another row's codes serve as well as a row's own: the interval of what they cost ends at 5 % of
    the worth, or below.
    """
    most = m.shuffling_cost_high_nats_per_token
    return most is not None and most <= NEGLIGIBLE_SHARE_OF_KL * m.worth_nats_per_token


def is_slight(m: Measured) -> bool:
    """Whether the worth is at most 5 % of the KL."""
    return m.worth_nats_per_token <= NEGLIGIBLE_SHARE_OF_KL * m.kl_nats_per_token
