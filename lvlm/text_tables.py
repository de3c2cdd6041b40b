"""Texts on a terminal: coloured by KL, and side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from lvlm.codes import Encoded

NATS_PER_BIT = math.log(2)
SHADES = ("#f7fbff", "#d0e1f2", "#94c4df", "#4a98c9", "#1764ab", "#08306b")  # of ColorBrewer's Blues
MOST_UNITS = 8


def encoded_tables(found: Sequence[Encoded]) -> Iterator[Table | Text]:
    """A text whose tokens are the darker the more KL they have, what the shades mean, and the units with the most KL."""
    from lvlm.evaluation import ACTIVE_UNIT_BITS

    kl_T = torch.cat([one.kl_T for one in found])
    kl_Sd = torch.cat([one.kl_Sd for one in found])
    most = max(float(kl_T.max()), 1e-12)
    text = Text()
    for one in found:
        pieces = one.texts or [f"{token} " for token in one.tokens]
        for piece, kl in zip(pieces, one.kl_T.tolist(), strict=True):
            text.append(piece, style=_style(min(int(kl / most * len(SHADES)), len(SHADES) - 1)))
    yield text
    legend = Text("\nKL, nats/token: ")
    for number in range(len(SHADES)):
        legend.append(f" {most * number / len(SHADES):.3g}+ ", style=_style(number))
    yield legend
    total, tokens, slots = float(kl_Sd.sum()), len(kl_T), len(kl_Sd)
    yield Text(
        f"{tokens} tokens, {slots} slots; KL {total:.2f} nats ({total / NATS_PER_BIT:.2f} bits), "
        f"{total / tokens:.4f} nats/token"
    )
    by_unit_d = kl_Sd.mean(0)
    active = int((by_unit_d > ACTIVE_UNIT_BITS * NATS_PER_BIT).sum())
    table = Table(box=None, header_style="dim", pad_edge=False)
    for column in ("unit", "KL, nats/slot"):
        table.add_column(column, justify="right")
    for unit in by_unit_d.argsort(descending=True)[:MOST_UNITS].tolist():
        table.add_row(str(unit), f"{float(by_unit_d[unit]):.4f}")
    yield table
    yield Text(
        f"{active} of {len(by_unit_d)} units are active in this text (over {ACTIVE_UNIT_BITS} bit a slot)"
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
