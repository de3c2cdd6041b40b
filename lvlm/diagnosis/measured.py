"""What an examination measured: the numbers that findings are made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """The numbers of a latent, on validation windows.

    windows, windows_hash          rows, and the digest of their bytes
    kl_nats_per_slot, _per_token   raw KL
    kl_has_floor                   no posterior of the family is the fixed prior, so the KL can't show whether
                                   the codes say anything
    budget_nats_per_slot           KL that costs nothing; None without a budget, or with one that has no end
    code_perplexity                exp of the entropy of the codes' frequencies, pooled over slots, one draw;
                                   None for continuous codes. It can't exceed `code_perplexity_at_most`, the
                                   slots seen
    worth                          ce_prior - ce_posterior: what the right code is worth to the decoder;
                                   `_low` and `_high` are the ends of its 95 % t interval over windows, None
                                   with one window
    shuffling_cost                 ce_shuffled - ce_posterior: what another row's codes cost, with its
                                   interval; None with one window
    output_change                  KL between the next-token distributions under two codes drawn from the
                                   prior
    exchange_efficiency            worth / KL: what a nat paid brings; None unless the codes are read
    beta_effective                 the price that the run's loss puts on a nat of KL here; None where it
                                   doesn't tell
    encoder_share                  of the norm of the loss's gradient
    trainable                      tensors that want training
    never_updated                  names of those of which the checkpoint's optimiser has no state: they had
                                   no gradient
    """

    windows: int
    windows_hash: str
    kl_nats_per_slot: float
    kl_nats_per_token: float
    kl_has_floor: bool
    budget_nats_per_slot: float | None
    active_units: int
    units: int
    code_perplexity: float | None
    code_perplexity_at_most: int | None
    ce_posterior_nats_per_token: float
    ce_prior_nats_per_token: float
    ce_shuffled_nats_per_token: float | None
    worth_nats_per_token: float
    worth_low_nats_per_token: float | None
    worth_high_nats_per_token: float | None
    worth_nats_per_row: float
    shuffling_cost_nats_per_token: float | None
    shuffling_cost_low_nats_per_token: float | None
    shuffling_cost_high_nats_per_token: float | None
    output_change_nats_per_token: float
    exchange_efficiency: float | None
    beta_effective: float | None
    encoder_gradient_norm: float
    gradient_norm: float
    encoder_share: float
    trainable: int
    never_updated: list[str]
