"""Texts, readings and planes as HTML. Whatever a model or a person wrote is escaped."""

from __future__ import annotations

import itertools
from pathlib import Path

from markupsafe import Markup

from lvlm.errors import UserError
from lvlm.generation.kl_by_token import ACTIVE_NATS_PER_SLOT, Reading
from lvlm.playground.writing import Row, Written
from lvlm.report.figures import draw_plane
from lvlm.report.folder import read_folder
from lvlm.report.page import visible

MOST_UNITS = 48

STYLE = """
.gradio-container { max-width: 76rem !important; }
.lv { font-size: .95rem; line-height: 1.5; }
.lv h3 { font-size: 1rem; font-weight: 600; margin: 1rem 0 .4rem; }
.lv p { margin: .3rem 0; max-width: 52rem; }
.lv .soft { opacity: .72; }
.lv .note { border: 1px solid var(--border-color-primary); border-left: 4px solid #c98a00; border-radius: 6px;
  padding: .4rem .8rem; margin: .5rem 0; }
.lv .mistake { border-left-color: #b34a00; }
.lv .cards { display: grid; gap: .75rem; grid-template-columns: repeat(var(--columns), minmax(0, 1fr)); }
.lv .card { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .6rem .8rem; min-width: 0; }
.lv .card footer { opacity: .72; font-size: .8rem; margin-top: .5rem; overflow-wrap: anywhere; }
.lv pre { white-space: pre-wrap; overflow-wrap: anywhere; font-family: var(--font-mono); font-size: .85rem; margin: 0;
  background: none; padding: 0; border: 0; color: inherit; }
.lv .prompt { opacity: .72; }
.lv mark { background: #0080c833; color: inherit; border-radius: 2px; }
.lv .control { opacity: .45; }
.lv .kl { border-radius: 2px; }
.lv .scale { display: flex; align-items: center; gap: .6rem; margin: .6rem 0; font-size: .85rem; }
.lv .scale i { display: inline-block; width: 12rem; height: .8rem; border-radius: 3px;
  background: linear-gradient(to right, rgb(0 128 200 / 0), rgb(0 128 200 / .85)); border: 1px solid var(--border-color-primary); }
.lv table, .lv thead, .lv tbody, .lv tr, .lv th, .lv td { border: 0 !important; background: none; }
.lv table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
.lv th, .lv td { padding: .15rem .8rem .15rem 0; text-align: left; font-weight: 400; }
.lv td.bar { width: 18rem; }
.lv td.bar i { display: block; height: .7rem; border-radius: 2px; background: #0080c8; }
.lv tr.idle { opacity: .72; }
.lv tr.idle td.bar i { background: #808080; }
.lv figure { margin: 0; max-width: 52rem; }
.lv figure svg { width: 100%; height: auto; }
@media (max-width: 48rem) { .lv .cards { grid-template-columns: 1fr; } }
"""


def _whole(*parts: Markup) -> str:
    return str(Markup('<div class="lv">{}</div>').format(Markup("").join(parts)))


def note(message: str, *, mistake: bool = False) -> Markup:
    """A sentence in a box."""
    kind = Markup(' mistake" role="alert') if mistake else Markup("")
    return Markup('<p class="note{}">{}</p>').format(kind, message)


def plain(message: str) -> str:
    """A line of text."""
    return _whole(Markup('<p class="soft">{}</p>').format(message))


def told(message: str) -> str:
    """What went wrong, alone."""
    return _whole(note(message, mistake=True))


def written(found: Written) -> str:
    """Rows of texts; what row 1 says otherwise than row 2 at the same place is marked when both are whole."""
    parts = [note(message) for message in found.notes]
    below = found.rows[1] if len(found.rows) > 1 and found.done else None
    for number, row in enumerate(found.rows):
        parts.append(_row(found.prompt, row, below if number == 0 else None))
    if below is not None:
        parts.append(
            Markup(
                '<p class="soft">Marked: characters that differ from those below at the same place. Texts '
                "below each other "
                "have the same token noise, so the codes made the difference.</p>"
            )
        )
    return _whole(*parts)


def _row(prompt: str, row: Row, below: Row | None) -> Markup:
    cards = [
        Markup(
            '<div class="card"><pre><span class="prompt">{}</span>{}</pre><footer>seed {}{}</footer></div>'
        ).format(
            visible(prompt if card.prompt is None else card.prompt),
            visible(card.text) if below is None else _marked(card.text, below.cards[column].text),
            card.seed,
            Markup(" · code {}").format(card.codes) if card.codes else "",
        )
        for column, card in enumerate(row.cards)
    ]
    return Markup('<section><h3>{}</h3><div class="cards" style="--columns: {}">{}</div></section>').format(
        row.title, len(cards), Markup("").join(cards)
    )


def _marked(text: str, other: str) -> Markup:
    """A text whose characters are marked where the other has different ones, or has ended."""
    pairs = itertools.zip_longest(text, other[: len(text)])
    runs = itertools.groupby(pairs, key=lambda pair: pair[0] == pair[1])
    return Markup("").join(
        visible(run) if same else Markup("<mark>{}</mark>").format(visible(run))
        for same, run in ((same, "".join(a for a, _ in group)) for same, group in runs)
    )


def reading(found: Reading) -> str:
    """The text, the darker the more KL a token has; its scale; the units."""
    most = max((span.kl_nats_per_token for span in found.spans), default=0.0)
    text = Markup("").join(
        Markup(
            '<span class="kl" style="background: rgb(0 128 200 / {:.3f})" title="{:.4f} nats, slot '
            '{}">{}</span>'
        ).format(
            max(0.0, 0.85 * span.kl_nats_per_token / most) if most > 0 else 0.0,
            span.kl_nats,
            span.slot,
            visible(span.text),
        )
        for span in found.spans
    )
    windows = f" in {found.windows} windows, each read by itself" if found.windows > 1 else ""
    facts = (
        f"{found.tokens} tokens, {found.slots} slot{'s' * (found.slots != 1)}{windows}. KL of posterior to "
        f"prior: {found.kl_nats:.2f} nats "
        f"({found.kl_nats / found.tokens:.4f} a token, {found.kl_nats / found.slots:.4f} a slot). "
        "Tokens that share a slot share its KL evenly."
    )
    return _whole(
        Markup('<div class="card"><pre>{}</pre></div>').format(text),
        Markup('<div class="scale">KL, nats per token: 0 <i></i> {:.4f}</div>').format(most),
        Markup("<p>{}</p>").format(facts),
        _units(found),
    )


def _units(found: Reading) -> Markup:
    order = sorted(range(len(found.active)), key=lambda unit: -found.kl_nats_per_slot[unit])
    most = max(*found.kl_nats_per_slot, ACTIVE_NATS_PER_SLOT)
    rows = [
        Markup(
            '<tr{}><td>{}</td><td>{:.4f}</td><td class="bar"><i style="width: '
            '{:.1f}%"></i></td><td>{}</td></tr>'
        ).format(
            Markup("") if found.active[unit] else Markup(' class="idle"'),
            unit,
            found.kl_nats_per_slot[unit],
            100 * found.kl_nats_per_slot[unit] / most,
            "active" if found.active[unit] else "",
        )
        for unit in order[:MOST_UNITS]
    ]
    more = f" The {MOST_UNITS} with the most KL are shown." if len(order) > MOST_UNITS else ""
    return Markup(
        "<h3>{} of {} units are active in this text</h3>"
        '<p class="soft">A unit is active when its KL, averaged over slots, is over {:.4f} nats (0.01 '
        "bit).{}</p>"
        "<table><thead><tr><th>unit</th><th>KL, nats per "
        "slot</th><th></th><th></th></tr></thead><tbody>{}</tbody></table>"
    ).format(sum(found.active), len(found.active), ACTIVE_NATS_PER_SLOT, more, Markup("").join(rows))


def plane(study: Path | None) -> str:
    """The report's rate-distortion plane of a study's folder, or why there is none."""
    if study is None:
        return _whole(
            note("No study is named. Start the page with a study's folder: lvlm play RUN --study FOLDER")
        )
    try:
        picture = draw_plane(read_folder(study))
    except UserError as error:
        return told(str(error))
    if picture is None:
        return _whole(note(f"{study}: no arm has a latent, so there is no plane."))
    return _whole(
        Markup("<h3>{}: {}</h3><figure>{}</figure>").format(picture.title, study.name, Markup(picture.svg)),
        Markup('<p class="soft">{}</p>').format(picture.note),
    )
