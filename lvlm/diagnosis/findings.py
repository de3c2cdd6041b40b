"""What the numbers of a latent mean, in sentences, and what to try about them.

There is one verdict, which comes first: read, not read, or can't tell (`verdict.py`). All that follows are
notes, and faults of the training.

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
    to_charge,
    to_connect,
    to_lower,
    to_save,
    to_say_something,
    to_settle_later,
    to_train_longer,
    to_vary,
)
from lvlm.diagnosis.verdict import Reading, has_one_code, is_alike, is_silent, is_slight, reading_of
from lvlm.likelihood.reading import LEAST_WORTH_NATS_PER_TOKEN

if TYPE_CHECKING:
    from lvlm.diagnosis.measured import Measured
    from lvlm.recipe.recipe import Resolved


FAR_ABOVE_BUDGET = 3.0  # times the budget

SAME_OUTPUT_NATS_PER_TOKEN = 1e-5  # logits that differ by less than a hundredth

NO_GRADIENT_SHARE = 1e-6


@dataclass(frozen=True)
class Finding:
    """A sentence, and what to try. Its tone is the verdict in the first one; 'fault' is of the training."""

    tone: Reading | Literal["fault", "note"]
    what: str
    tries: tuple[Try, ...] = ()


NO_LATENT = Finding("note", "The model has no latent: there is nothing to examine.")

ONE_CHECKPOINT = Finding(
    "note",
    "This holds for one checkpoint of one seed. Whether reading begins, and at which step, differs from seed "
    "to seed.",
)


def findings_of(measured: Measured | None, resolved: Resolved) -> list[Finding]:
    """All that is to be said, the verdict first; each try once, where it is first given."""
    if measured is None:
        return [NO_LATENT]
    options, given = Options(resolved), set[tuple[str, ...]]()
    found = []
    for rule in (_verdict, _price, _learning):
        for finding in rule(measured, options):
            tries = []
            for one in finding.tries:
                if one.overrides not in given and options.take(one.overrides):
                    tries.append(one)
                    given.add(one.overrides)
            found.append(replace(finding, tries=tuple(tries)))
    return found


# ---- the rules
# ----------------------------------------------------------------------------------------------


def _verdict(m: Measured, options: Options) -> Iterator[Finding]:
    """Whether the decoder reads the codes."""
    reading = reading_of(m)
    if reading == "read":
        yield _read(m, options)
    elif reading == "not read":
        yield _not_read(m, options)
    else:
        yield _open(m)
    yield ONE_CHECKPOINT


def _read(m: Measured, options: Options) -> Finding:
    say = f"The decoder reads the codes: the right code is worth {_worth(m)} to it, "
    say += f"{m.worth_nats_per_row:.3g} nats a window."
    if has_one_code(m):
        say += f" Yet one code is all there is: {_perplexity(m)}, so the codes tell no row from another."
        return Finding("read", say, tuple(to_vary(options, m)))
    if is_alike(m):
        say += " Yet the codes tell no row from another: those of another row cost the decoder only "
        say += f"{m.shuffling_cost_nats_per_token:z.4f} nats/token more."
        return Finding("read", say, tuple(to_vary(options, m)))
    if is_slight(m):
        say += f" That is little beside the raw KL of {m.kl_nats_per_token:.4f} nats/token: reading may just "
        say += "have begun."
        return Finding("read", say, (*to_train_longer(options), *to_connect(options, m)))
    return Finding("read", say)


def _not_read(m: Measured, options: Options) -> Finding:
    worth = f"The right code is worth {_worth(m)}."
    if has_one_code(m):
        say = f"There is nothing to read: one code is all there is; {_perplexity(m)}. {worth}"
        return Finding("not read", say, tuple(to_vary(options, m)))
    if is_silent(m):
        say = (
            f"There is nothing to read: the raw KL is {m.kl_nats_per_slot:.4f} nats per slot, and codes tell "
        )
        say += f"no more of their text than that. {worth}"
        return Finding("not read", say, tuple(to_say_something(options, m)))
    say = f"The decoder doesn't read the codes: the right code is worth {_worth(m)} to it, an interval that "
    say += f"doesn't lie above {LEAST_WORTH_NATS_PER_TOKEN:.4f}."
    if m.worth_high_nats_per_token is not None and m.worth_high_nats_per_token < 0:
        say += " Codes of the posterior mislead it: those of the prior predict better."
    if m.output_change_nats_per_token < SAME_OUTPUT_NATS_PER_TOKEN:
        say += " The output is all but the same for any code: between two codes drawn from the prior the "
        say += f"next-token distributions differ by {m.output_change_nats_per_token:.1e} nats/token."
    return Finding("not read", say, tuple(to_connect(options, m)))


def _open(m: Measured) -> Finding:
    """More windows are all that can be tried."""
    who = "One window" if m.windows == 1 else f"{m.windows} windows"
    say = f"{who} can't tell whether the decoder reads the codes: the right code is worth {_worth(m)} to it. "
    say += f"More windows make the interval narrower: lvlm doctor RUN --windows {4 * m.windows}."
    return Finding("can't tell", say)


def _price(m: Measured, options: Options) -> Iterator[Finding]:
    """Whether what the KL costs is what was meant, and whether it pays off."""
    if is_silent(m):
        return
    read, left_over = reading_of(m) == "read", m.kl_nats_per_token - m.worth_nats_per_token
    if left_over > 0 and read:
        saved = m.exchange_efficiency or 0.0
        say = (
            f"As a bound, codes cost more than they bring: elbo is {left_over:.4f} nats/token above "
            f"ce_prior, since a nat of KL saves {saved:.2f} nats of cross-entropy. Where a budget makes the "
            f"KL free, nothing in the training asks it to pay off."
        )
        yield Finding("note", say, tuple(to_save(options, m)))
    elif left_over > 0 and reading_of(m) == "not read":
        yield Finding(
            "note", f"elbo is {left_over:.4f} nats/token above ce_prior, for KL that nothing is read of."
        )
    budget = m.budget_nats_per_slot
    if not budget and m.beta_effective == 0:
        say = "At this step the loss charges nothing for the KL, however large, and elbo pays for all of it: "
        say += f"{m.kl_nats_per_token:.4f} nats/token."
        yield Finding("note", say, tuple(to_charge(options, m)))
    elif budget and m.kl_nats_per_slot > FAR_ABOVE_BUDGET * budget:
        say = f"The raw KL is {m.kl_nats_per_slot / budget:.1f} times its budget"
        say += "" if m.beta_effective is None else f"; a nat of it costs {m.beta_effective:.3g} on average"
        tries = to_lower(options, m, "over_budget")
        yield Finding("note", f"{say}.", tuple(tries))


def _learning(m: Measured, options: Options) -> Iterator[Finding]:
    """Whether training reaches every parameter."""
    if m.encoder_share < NO_GRADIENT_SHARE:
        say = (
            f"The encoder gets no gradient: its norm is {m.encoder_gradient_norm:.1e} of "
            f"{m.gradient_norm:.1e} in all, so it doesn't learn."
        )
        settled = reading_of(m) == "read" or has_one_code(m)
        yield Finding("fault", say, tuple(to_settle_later(options) if settled else to_connect(options, m)))
    if m.never_updated:
        shown = ", ".join(m.never_updated[:3]) + (", …" if len(m.never_updated) > 3 else "")
        say = (
            f"{len(m.never_updated)} of {m.trainable} tensors never got a gradient in training, nor "
            f"changed: {shown}."
        )
        yield Finding("fault", say)


def _worth(m: Measured) -> str:
    """The worth and its interval over windows."""
    low, high = m.worth_low_nats_per_token, m.worth_high_nats_per_token
    ends = "" if low is None or high is None else f" [{low:z.5f}, {high:z.5f}]"
    return f"{m.worth_nats_per_token:z.5f}{ends} nats/token"


def _perplexity(m: Measured) -> str:
    return f"the codes' perplexity is {m.code_perplexity:.2f} over {m.code_perplexity_at_most} slots"
