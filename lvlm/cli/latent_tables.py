"""Tables of what a latent does: steering, and the doctor's examination."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from lvlm.cli.tables import heading, new_table
from lvlm.steering.control import HIDDEN, WHY_HIDDEN

if TYPE_CHECKING:
    from lvlm.diagnosis.examine import Examination
    from lvlm.diagnosis.measured import Measured
    from lvlm.statistics.interval import Interval
    from lvlm.steering.control import Gate
    from lvlm.steering.record import Steering, Units


def steering_tables(found: Steering, gate: Gate) -> Iterator[Table | Text]:
    """What codes steer; what may not be shown is named as such."""
    yield heading(
        f"step {found.step}, {found.settings['groups']} prompts x {found.settings['samples']} samples"
    )
    columns = ("measure", "shared codes", "codes apart", "difference [95 %]", "what it is")
    table = new_table(*columns, numbers=columns[1:4])
    hidden = with_interval = False

    def add(
        name: str, one: Interval | None, other: Interval | None, difference: Interval | None, what: str
    ) -> None:
        nonlocal hidden, with_interval
        if gate.shows(difference):
            with_interval |= difference is not None
            cells = ["-" if found is None else f"{found.value:.3f}" for found in (one, other)]
            cells.append(_difference(difference))
        else:
            hidden, cells = True, [HIDDEN] * 3
        table.add_row(name, *cells, what)

    for number in found.numbers:
        icc, transfer = number.icc, number.transfer
        what = f"share of the variance ({number.unit}) between groups"
        add(f"ICC(1) of {number.name}", icc.shared, icc.apart, icc.difference, what)
        if transfer is not None:
            what = f"the source's, within {number.tolerance:g}; apart: codes of the prior"
            add(
                f"transfer of {number.name}", transfer.success, transfer.prior_rate, transfer.difference, what
            )
    for flags in found.flags:
        agreement = flags.kappa
        what = f"agreement of two samples, beyond chance; set in {flags.rate:.3f} of prior places"
        add(f"kappa of {flags.name}", agreement.shared, agreement.apart, agreement.difference, what)
    yield table
    if with_interval:
        yield Text("intervals are over prompts or sources, of this one run; other seeds may differ by more")
    if hidden:
        yield Text(f"{HIDDEN}: {WHY_HIDDEN}")
    if not found.has_latent:
        yield Text("no latent: there are no codes to share")
    for check in found.checks:
        share = check.share
        yield Text(f"{check.name}: {share.value:.3f} of prior texts [{share.low:.3f}, {share.high:.3f}]")
    for number in found.numbers:
        if number.spread is not None:
            spread = number.spread
            yield Text(
                f"{number.name} against uniform: chi-square {spread.chi_square:.1f} with "
                f"{len(spread.counts) - 1} degrees of "
                f"freedom, p = {spread.p_value:.2g}; {spread.left_out} texts without"
            )
    diversity = found.diversity
    several = ", ".join(f"distinct-{n} {share:.3f}" for n, share in diversity.distinct.items())
    yield Text(
        f"diversity: {several}, self-BLEU {diversity.self_bleu:.3f} at temperature "
        f"{diversity.temperature:.3g} "
        f"({diversity.entropy_nats_per_token:.4f} nats of entropy per token)"
    )
    if found.units is not None and gate.open:
        yield from _units_table(found.units)


def _difference(found: Interval | None) -> str:
    if found is None:
        return "-"
    if not found.bounded:
        return f"{found.value:+.3f}"
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def _units_table(units: Units) -> Iterator[Table | Text]:
    names = list(units.all_redrawn.numbers)
    columns = ("change", "tokens that differ", *(f"{name} differs" for name in names))
    table = new_table(*columns, numbers=columns[1:])
    names_of_units = units.names or [f"unit {number}" for number in range(len(units.units))]
    for name, change in [
        *zip(names_of_units, units.units, strict=True),
        ("all codes redrawn", units.all_redrawn),
        ("other noise, same codes", units.other_noise),
    ]:
        table.add_row(name, f"{change.tokens:.4f}", *(f"{change.numbers[one]:.3f}" for one in names))
    yield Text("single units of the codes, changed in all slots under the same noise: shares")
    yield table


def examination_tables(examination: Examination) -> Iterator[Table | Text]:
    """The numbers of a latent, then what they mean and what to try, one finding after another."""
    newest = examination.newest_step
    which = f"step {examination.step}" + (f" (newest: {newest})" if newest != examination.step else "")
    measured = examination.measured
    if measured is not None:
        yield heading(f"{which}, {measured.windows} validation windows ({measured.windows_hash[:12]})")
        yield _measured_table(measured)
        yield Text()
    findings = Table(box=None, show_header=False, pad_edge=False)
    findings.add_column(style="bold", no_wrap=True)
    findings.add_column(overflow="fold")
    for finding in examination.findings:
        findings.add_row(finding.tone, Text(finding.what))
        for one in finding.tries:
            findings.add_row("", Text(f"try {shlex.join(one.overrides)}: {one.why}"))
    yield findings


def _measured_table(m: Measured) -> Table:
    table = new_table("number", "value", "unit", "what it is", numbers=("value",))

    def row(name: str, value: str, unit: str, meaning: str) -> None:
        table.add_row(name, value, unit, Text(meaning))

    def nats(name: str, value: float | None, meaning: str, *ends: float | None) -> None:
        if value is not None:
            low, high = ends or (None, None)
            shown = f"{value:z.4f}"
            if low is not None and high is not None:
                shown = f"{value:z.5f} [{low:z.5f}, {high:z.5f}]"
            row(name, shown, "nats/token", meaning)

    nats("ce_posterior", m.ce_posterior_nats_per_token, "no bound: the codes have seen the answer")
    nats("ce_prior", m.ce_prior_nats_per_token, "codes from the prior, as in generation")
    nats("ce_shuffled", m.ce_shuffled_nats_per_token, "codes of another row")
    worth, ends = m.worth_nats_per_token, (m.worth_low_nats_per_token, m.worth_high_nats_per_token)
    nats("worth [95 %]", worth, "ce_prior − ce_posterior: of the right code", *ends)
    row("", f"{m.worth_nats_per_row:z.3f}", "nats/window", "the same, of all tokens of a window")
    cost = m.shuffling_cost_nats_per_token
    ends = m.shuffling_cost_low_nats_per_token, m.shuffling_cost_high_nats_per_token
    nats("cost of shuffling [95 %]", cost, "ce_shuffled − ce_posterior", *ends)
    budget = m.budget_nats_per_slot
    row(
        "raw KL",
        f"{m.kl_nats_per_slot:.4f}",
        "nats/slot",
        "without a budget" if budget is None else f"budget {budget:.4f}",
    )
    nats("", m.kl_nats_per_token, "what the codes cost")
    row("active units", f"{m.active_units}", f"of {m.units}", "whose KL is over 0.01 bit")
    if m.code_perplexity is not None:
        most = f"codes in use: at most {m.code_perplexity_at_most}, the slots seen"
        row("code perplexity", f"{m.code_perplexity:.2f}", "codes", most)
    change = f"{m.output_change_nats_per_token:.3g}"
    row("change of output", change, "nats/token", "KL between what two codes of the prior predict")
    if m.exchange_efficiency is not None:
        row("exchange efficiency", f"{m.exchange_efficiency:z.3f}", "nats/nat", "worth of a nat of KL")
    if m.beta_effective is not None:
        row(
            "effective beta",
            f"{m.beta_effective:z.3f}",
            "nats/nat",
            "what the loss charges for a nat of KL",
        )
    share = f"of the loss; the encoder's is {m.encoder_gradient_norm:.3g}, {100 * m.encoder_share:.2g} %"
    row("gradient norm", f"{m.gradient_norm:.3g}", "", share)
    trained = m.trainable - len(m.never_updated)
    row("trained", f"{trained}", f"of {m.trainable}", "tensors that the optimiser has a state of")
    return table
