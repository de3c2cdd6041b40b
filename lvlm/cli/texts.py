"""Texts on a terminal: coloured by KL, and side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from lvlm.generation.kl_by_token import Reading
from lvlm.likelihood.estimate import ACTIVE_UNIT_BITS
from lvlm.objective import NATS_PER_BIT

SHADES = ("#f7fbff", "#d0e1f2", "#94c4df", "#4a98c9", "#1764ab", "#08306b")  # of ColorBrewer's Blues

MOST_UNITS = 8


def reading_tables(found: Reading) -> Iterator[Table | Text]:
    """A text whose tokens are the darker the more KL they have, what the shades mean, and the units with the
    most KL.
    """
    most = max(max((span.kl_nats_per_token for span in found.spans), default=0.0), 1e-12)
    text = Text()
    for span in found.spans:
        share = max(0.0, span.kl_nats_per_token / most)  # a sampled KL may be negative
        shade = min(int(share * len(SHADES)), len(SHADES) - 1)
        text.append(span.text, style=_style(shade))
    yield text
    legend = Text("\nKL, nats/token: ")
    for number in range(len(SHADES)):
        legend.append(f" {most * number / len(SHADES):.3g}+ ", style=_style(number))
    yield legend
    yield Text(
        f"{found.tokens} tokens, {found.slots} slots; KL {found.kl_nats:.2f} nats "
        f"({found.kl_nats / NATS_PER_BIT:.2f} bits), {found.kl_nats / found.tokens:.4f} nats/token"
    )
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in ("unit", "KL, nats/slot"):
        table.add_column(column, justify="right")
    by_kl = sorted(enumerate(found.kl_nats_per_slot), key=lambda unit: -unit[1])
    for unit, kl in by_kl[:MOST_UNITS]:
        table.add_row(str(unit), f"{kl:.4f}")
    yield table
    yield Text(
        f"{sum(found.active)} of {len(found.active)} units are active in this text (over "
        f"{ACTIVE_UNIT_BITS} bit a slot)"
    )


def _style(shade: int) -> str:
    return f"{'black' if shade < len(SHADES) // 2 else 'white'} on {SHADES[shade]}"


def columns(texts: Sequence[tuple[str, str]]) -> Table:
    """Named texts side by side."""
    table = Table(header_style="dim", show_lines=False, expand=True)
    for name, _ in texts:
        table.add_column(name, overflow="fold", ratio=1)
    table.add_row(*(Text(text) for _, text in texts))
    return table
