"""What the numbers of a latent mean, in sentences, and what to try about them.

A try is overrides as the command line takes them. One that the run's own recipe refuses is not given, so no
try names an option that this run hasn't got, and the values shown can be used as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from lvlm.diagnosis.remedies import (
    Options,
    Try,
    from_kind,
    to_charge,
    to_connect,
    to_revive,
    to_save,
    to_settle_later,
    to_vary,
)
from lvlm.likelihood.life import ALIVE_NATS_PER_SLOT, ALIVE_SHARE_OF_BUDGET, IGNORED_SHARE_OF_KL, is_ignored

if TYPE_CHECKING:
    from lvlm.diagnosis.measured import Measured
    from lvlm.recipe.recipe import Resolved


FAR_ABOVE_BUDGET = 3.0  # times the budget

ONE_CODE_PERPLEXITY = 1.05

SAME_OUTPUT_NATS_PER_TOKEN = 1e-5  # logits that differ by less than a hundredth

NO_GRADIENT_SHARE = 1e-6


@dataclass(frozen=True)
class Finding:
    """A sentence, and what to try; a 'good' finding needs nothing."""

    tone: Literal["good", "bad", "note"]
    what: str
    tries: tuple[Try, ...] = ()


NO_LATENT = Finding("note", "The model has no latent: there is nothing to examine.")


def findings_of(measured: Measured | None, resolved: Resolved) -> list[Finding]:
    """All that is to be said, the gravest question first; each try once, where it is first given."""
    if measured is None:
        return [NO_LATENT]
    options, given = Options(resolved), set[tuple[str, ...]]()
    found = []
    for rule in (_life, _price, _variety, _reading, _learning):
        for finding in rule(measured, options):
            tries = [t for t in finding.tries if t.overrides not in given and options.take(t.overrides)]
            given |= {t.overrides for t in tries}
            found.append(replace(finding, tries=tuple(tries)))
    return found


# ---- the rules
# ----------------------------------------------------------------------------------------------


def _life(m: Measured, options: Options) -> Iterator[Finding]:
    """Whether the posterior says anything."""
    kl = f"raw KL is {m.kl_nats_per_slot:.4f} nats per slot"
    budget = m.budget_nats_per_slot
    if m.kl_has_floor:
        say = (
            f"The {kl}. No posterior of this family is its prior, so the KL can't show whether the "
            f"latent lives; "
        )
        say += "how its codes vary can."
        yield Finding("note", say)
    elif not m.alive and budget:
        say = f"The latent is dead: its {kl}, {_percent(m.kl_nats_per_slot / budget)} of the budget of "
        say += f"{budget:.4f}; it lives from {_percent(ALIVE_SHARE_OF_BUDGET)}."
        yield Finding("bad", say, tuple(to_revive(options, m)))
    elif not m.alive:
        say = (
            f"The latent is dead: its {kl}; it lives from {ALIVE_NATS_PER_SLOT:g}. The codes say nothing "
            f"of their text."
        )
        yield Finding("bad", say, tuple(to_revive(options, m)))
    elif budget:
        say = (
            f"The latent lives: its {kl}, {_percent(m.kl_nats_per_slot / budget)} of the budget of "
            f"{budget:.4f}."
        )
        yield Finding("good", say)
    else:
        yield Finding("good", f"The latent lives: its {kl}, and no budget is free.")


def _price(m: Measured, options: Options) -> Iterator[Finding]:
    """Whether what the KL costs is what was meant."""
    if not m.alive:
        return
    budget = m.budget_nats_per_slot
    if not budget and m.beta_effective == 0:
        say = "At this step the loss charges nothing for the KL, however large, and elbo pays for all of it: "
        say += f"{m.kl_nats_per_token:.4f} nats/token."
        yield Finding("note", say, tuple(to_charge(options, m)))
    elif budget and m.kl_nats_per_slot > FAR_ABOVE_BUDGET * budget:
        say = f"The raw KL is {m.kl_nats_per_slot / budget:.1f} times its budget"
        say += "" if m.beta_effective is None else f"; a nat of it costs {m.beta_effective:.3g} on average"
        tries = from_kind(options, m, "over_budget", "loss")
        yield Finding("note", f"{say}.", tuple(tries))


def _variety(m: Measured, options: Options) -> Iterator[Finding]:
    """Whether codes differ from each other, and from row to row."""
    seen, cost = m.code_perplexity_at_most, m.shuffling_cost_nats_per_token
    if not (m.alive or m.kl_has_floor):
        return
    if seen and seen > 1 and (m.code_perplexity or 0) < ONE_CODE_PERPLEXITY:
        say = (
            f"One code is all there is: the codes' perplexity is {m.code_perplexity:.2f} over {seen} "
            f"slots, so the "
        )
        say += "KL is what it costs to name the same code every time."
        yield Finding("bad", say, tuple(to_vary(options, m)))
    elif cost is not None and not _unread(m) and is_ignored(cost, m.worth_nats_per_token):
        say = "The codes tell no row from another: those of another row cost the decoder only "
        say += f"{cost:.4f} nats/token more, where codes from the prior cost {m.worth_nats_per_token:.4f}."
        yield Finding("bad", say, tuple(to_vary(options, m)))


def _reading(m: Measured, options: Options) -> Iterator[Finding]:
    """Whether the decoder listens, and what it makes of it."""
    change, worth, cost = m.output_change_nats_per_token, m.worth_nats_per_token, m.kl_nats_per_token
    if m.alive and not _unread(m):
        yield _exchange(worth / cost, m, options)
    elif change < SAME_OUTPUT_NATS_PER_TOKEN:
        say = (
            "The output is all but the same for any code: between two codes drawn from the prior the "
            "next-token "
        )
        say += f"distributions differ by {change:.1e} nats/token"
        say += f", while {cost:.4f} nats/token of KL are paid." if m.alive else "."
        yield Finding("bad", say, tuple(to_connect(options, m)))
    elif not m.alive:
        say = (
            "The decoder isn't deaf: between two codes drawn from the prior its next-token distributions "
            "differ "
        )
        say += f"by {change:.1e} nats/token. What is missing is an encoder that says something."
        yield Finding("note", say)
    else:
        say = (
            f"The latent is ignored: it pays {cost:.4f} nats/token of KL, and codes from the posterior "
            f"predict only "
        )
        say += f"{worth:z.4f} ± {m.worth_stderr:.4f} nats/token better than codes from the prior; "
        say += f"it is read from {_percent(IGNORED_SHARE_OF_KL)} of the KL."
        yield Finding("bad", say, tuple(to_connect(options, m)))


def _exchange(saved: float, m: Measured, options: Options) -> Finding:
    """What comes of codes that are read; `saved` is nats of cross-entropy per nat of KL."""
    if saved >= 1:
        say = "The decoder reads the codes, and they pay off: "
        return Finding("good", f"{say}a nat of KL saves {saved:.2f} nats of cross-entropy.")
    say = (
        f"The decoder reads the codes, yet they cost more than they bring: a nat of KL saves {saved:.2f} "
        f"nats of "
    )
    say += (
        "cross-entropy, so elbo is above ce_prior. Where a budget makes the KL free, nothing in the "
        "training asks "
    )
    say += "it to pay off; as a bound it is worse than not encoding at all."
    return Finding("note", say, tuple(to_save(options, m)))


def _unread(m: Measured) -> bool:
    return is_ignored(m.worth_nats_per_token, m.kl_nats_per_token)


def _learning(m: Measured, options: Options) -> Iterator[Finding]:
    """Whether training reaches every parameter."""
    if m.encoder_share < NO_GRADIENT_SHARE:
        say = (
            f"The encoder gets no gradient: its norm is {m.encoder_gradient_norm:.1e} of "
            f"{m.gradient_norm:.1e} in all, "
        )
        say += "so it doesn't learn."
        yield Finding("bad", say, tuple(to_connect(options, m) if _unread(m) else to_settle_later(options)))
    if m.never_updated:
        shown = ", ".join(m.never_updated[:3]) + (", …" if len(m.never_updated) > 3 else "")
        say = (
            f"{len(m.never_updated)} of {m.trainable} tensors never got a gradient in training, nor "
            f"changed: {shown}."
        )
        yield Finding("bad", say)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
