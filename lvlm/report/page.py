"""The page itself: `OUT/report.html`, whole in one file, so that no script, font or picture is fetched."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from rich.console import Console
from rich.segment import Segments

from lvlm.arguments import checks_arguments
from lvlm.errors import one_of
from lvlm.report import canvas, steering, tables, verdicts, words
from lvlm.report.canvas import FigureFormat
from lvlm.report.figures import draw
from lvlm.report.files import write_figures
from lvlm.report.folder import read_folder
from lvlm.report.rows import Report, Run
from lvlm.system.files import write_atomically, writing

_INVISIBLE = re.compile("([\x00-\x1f\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff])")
_WIDTH_OF_A_FILE = 150


def visible(text: str) -> Markup:
    """Any text as safe HTML, with control, zero-width and bidirectional characters made visible."""

    def show(character: str) -> str:
        code = ord(character)
        known = {"\n": "↵\n", "\t": "⇥\t"}
        return known.get(character, f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")

    parts = _INVISIBLE.split(text)  # every second part is one invisible character
    control = Markup('<span class="control">{}</span>')
    return Markup("").join(control.format(show(p)) if i % 2 else escape(p) for i, p in enumerate(parts))


def _versions(runs: Sequence[Run]) -> dict[str, str]:
    """Every package with its version, or versions."""
    pairs = sorted({pair for run in runs for pair in run.versions.items()})
    return {name: ", ".join(v for n, v in pairs if n == name) for name, _ in pairs}


def render_report(report: Report) -> Path:
    """Write `OUT/report.html` and return its path."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = visible
    samples = [
        (row, next((r.evaluation.sample for r in row.runs if r.evaluation.sample), None))
        for row in report.rows
    ]
    diagnostics = tables.diagnostics(report)
    page = environment.get_template("report.html.j2").render(
        report=report,
        verdicts=verdicts.verdicts(report),
        banners=words.banners(report),
        comparison=tables.comparison(report),
        cost_notes=tables.cost_notes(report),
        latents=tables.latents(report),
        latent_arms=tables.latent_arms(report),
        diagnostics=diagnostics,
        steering=steering.table(report),
        steering_arms=steering.arms(report),
        steering_notes=steering.notes(report),
        diagnostics_arms=[cells[0].text for cells in diagnostics.rows],
        costs=tables.costs(report),
        styles=canvas.styles(report),
        figures=draw(report),
        samples=samples,
        recipes=[(arm, next(r.recipe for r in report.runs if r.arm == arm)) for arm in report.arms],
        evaluation=report.runs[0].evaluation,
        versions=_versions(report.runs),
        glossary=words.glossary(),
    )
    path = report.out / "report.html"
    with writing(path):
        write_atomically(path, page.encode("utf-8", "backslashreplace"))
    return path


@checks_arguments
def report_folder(
    out: str | Path,
    *,
    controls: Sequence[str] = (),
    figures: str | Path | None = None,
    kind: FigureFormat = "svg",
    console: Console | None = None,
) -> Path:
    """Write the page of a study's folder anew, from the evaluations that its runs have now.

    Args:
        out: the folder that `lvlm study --out` wrote.
        controls: arms to compare with, in place of the study's own; the first gives the verdicts.
        figures: a folder for the figures as files, with the numbers as CSV.
        kind: of the figures, 'svg' or 'pdf'.
        console: where the table goes; quiet unless given.

    Returns:
        The path of the page.

    Raises:
        UserError: no such folder, arm or kind, runs that can't be compared, no evaluated run.
    """
    one_of(kind, FigureFormat, "format of figures")
    report = read_folder(out, controls)
    if figures is not None:  # first: where they can't be written, the page stays as it is
        write_figures(report, figures, kind)
    return report_study(report, console or Console(quiet=True))


def report_study(report: Report, console: Console) -> Path:
    """Write the page of what was read, and print its comparison table; a pipe or file gets it 150 wide at
    least.
    """
    path = render_report(report)
    width = console.width if console.is_terminal else max(console.width, _WIDTH_OF_A_FILE)
    table = tables.comparison_table(report, width)
    console.print(Segments(console.render(table, console.options.update_width(width))), crop=False)
    return path
