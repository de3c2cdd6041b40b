"""What an evaluation returns, and what evaluation.json holds."""

from __future__ import annotations

from typing import Any, TypedDict

from lvlm.recipe.sections import Select


class Ends(TypedDict):
    """A mean with its 95 % t interval over the windows of one run, nats per token."""

    value: float
    low: float
    high: float


class Gap(Ends):
    """How far one bound of the run lies above another."""

    higher: str
    lower: str


class Choice(TypedDict):
    """How the headline 'lowest' was chosen: on validation windows, which are no test windows."""

    windows: int
    windows_hash: str
    nats_per_token: dict[str, float]


class Estimated(TypedDict):
    """One estimate over the test windows.

    nats_per_token       the mean over target tokens
    stderr               its standard error over windows
    bits_per_byte        the same in bits per byte of text; None where the data can't say
    bound                whether it is an upper bound on the negative log-likelihood
    noise_stderr         Monte Carlo standard error, nats per token: from the draws of a plain mean, or from
                         repeats of a weighted bound; None without draws, or where nothing was repeated
    ess                  effective sample size of its particles, mean over windows; None without particles
    log_weight_variance  variance of their log-weights, mean over windows; None without particles
    """

    nats_per_token: float
    stderr: float
    bits_per_byte: float | None
    bound: bool
    noise_stderr: float | None
    ess: float | None
    log_weight_variance: float | None


class LatentUsed(TypedDict):
    """What the codes of the test windows cost.

    budget_nats_per_slot  KL that the loss gives away; None without a budget
    slots_per_row         mean over windows
    kl_nats_per_slot      raw KL
    active_units          units whose KL is over 0.01 bit, of `units`
    kl_by_slot            nats, mean over windows, slot by slot
    """

    budget_nats_per_slot: float | None
    slots_per_row: float
    kl_nats_per_slot: float
    active_units: int
    units: int
    kl_by_slot: list[float]


class Evaluation(TypedDict):
    """An evaluation of one checkpoint of a run, as `lvlm.evaluate` returns it: a dict of plain values.

    schema                    version of this format
    step                      of the checkpoint
    newest_step               of the run's newest checkpoint
    steps                     of the whole training
    select                    the rule that chose the checkpoint; None for another that was asked for
    windows_hash              of the test windows, of which there are `windows` with `target_tokens` targets
    codec                     its name
    bytes_per_token           None where the data can't say
    no_bits_per_byte          why bits per byte are left out, in words, where the data are text; else None
    headline                  the name of the estimate that reports compare; None where it wasn't asked for
    chosen_on                 how the headline 'lowest' was chosen; None where the recipe names one
    settings                  of each estimator, by name
    estimates                 by name
    gaps                      how far the bounds lie above each other
    excess_nats_per_sequence  each bound minus the data's own NLL: mean and stderr; empty without it
    ce_by_position            nats per token of the cross-entropy at each position; None without targets there
    latent                    what the codes cost; of several latents together, each slot at its first token;
                              None without
    latents                   the same of each of several latents, by name; empty for one or none
    worth_nats_per_token      ce_prior less ce_posterior: what the right code is worth to the decoder; None
                              without a latent or without ce_prior
    reads                     whether codes are read by that interval, which knows this run alone
    parameters                by part
    tokens_per_second         of the training; None where it wasn't measured
    peak_memory_mib           of the training; None where it wasn't measured
    sample                    a text of the model, to look at; None with options of one's own
    """

    schema: int
    step: int
    newest_step: int
    steps: int
    select: Select | None
    windows_hash: str
    windows: int
    target_tokens: int
    codec: str
    bytes_per_token: float | None
    no_bits_per_byte: str | None
    headline: str | None
    chosen_on: Choice | None
    settings: dict[str, str]
    estimates: dict[str, Estimated]
    gaps: list[Gap]
    excess_nats_per_sequence: dict[str, dict[str, float]]
    ce_by_position: list[float | None] | None
    latent: LatentUsed | None
    latents: dict[str, LatentUsed]
    worth_nats_per_token: Ends | None
    reads: bool | None
    parameters: dict[str, int]
    tokens_per_second: float | None
    peak_memory_mib: float | None
    sample: dict[str, Any] | None
