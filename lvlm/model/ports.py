"""What codes do to each block of a stack, gathered while their latents are drawn.

Shape legend: see `lvlm.interfaces`; F rows in front of the tokens.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lvlm.interfaces import Conditioning


class Ports:
    """Conditionings by the block in front of which they enter; the number after the last is the head's."""

    def __init__(self) -> None:
        self._at: defaultdict[int, list[Conditioning]] = defaultdict(list)
        self._keeps: list[tuple[int, Tensor | None]] = []
        self.front = 0
        """F: rows that stand in front of the tokens by now."""

    def enter(self, block: int, conditioning: Conditioning) -> None:
        """Let a conditioning act on a block, beside those that do already."""
        self._at[block].append(conditioning)

    def prefixed(self, x_BTD: Tensor, block: int) -> Tensor:
        """The stream with the prefixes of a block in front, the newest first."""
        for port in self._at.get(block, ()):
            if port.prefix_BPD is not None:
                self.front += port.prefix_BPD.shape[1]
                self._keeps.insert(0, (port.prefix_BPD.shape[1], port.prefix_keep_B))
                x_BTD = torch.cat((port.prefix_BPD.to(x_BTD.dtype), x_BTD), dim=1)
        return x_BTD

    def of_tokens(self, x_BTD: Tensor) -> Tensor:
        """The stream of the tokens, without the rows in front."""
        return x_BTD[:, self.front :] if self.front else x_BTD

    def mask(self, tokens: int) -> Tensor | None:
        """Causal mask over prefixes and tokens, bool [B, 1, F + T, F + T]; None when nothing is hidden.

        A prefix that a row dropped is seen by its own places alone: no place is fully masked, and neither
        tokens nor other prefixes see it.
        """
        keep_B = next((keep for _, keep in self._keeps if keep is not None), None)
        if keep_B is None:
            return None
        place = torch.arange(self.front + tokens, device=keep_B.device)
        causal = place[:, None] >= place[None, :]
        sizes = torch.tensor([*(rows for rows, _ in self._keeps), tokens], device=keep_B.device)
        part = torch.arange(len(sizes), device=keep_B.device).repeat_interleave(sizes)
        seen_BF = torch.cat(
            [
                torch.ones_like(keep_B)[:, None].expand(-1, rows)
                if keep is None
                else keep[:, None].expand(-1, rows)
                for rows, keep in self._keeps
            ],
            dim=1,
        )
        seen_BU = F.pad(seen_BF, (0, tokens), value=True)
        return causal & (seen_BU[:, None, None, :] | (part[:, None] == part[None, :]))

    def added(self, x_BTD: Tensor, block: int) -> Tensor:
        """The stream with what is added to it in front of a block."""
        added_BTD = self._sum("add_BTD", block, x_BTD)
        return x_BTD if added_BTD is None else x_BTD + added_BTD

    def of_block(self, x_BTD: Tensor, block: int) -> dict[str, Any]:
        """Arguments of a block, as `lvlm.interfaces.Block` describes them."""
        kv_BUD = self._sum("kv_BTD", block, x_BTD)
        found: dict[str, Any] = {
            "source_BUD": None if kv_BUD is None else x_BTD + kv_BUD,
            "shift_BUD": self._sum("kv_normed_BTD", block, x_BTD),
        }
        for name in ("scale_BTD", "offset_BTD"):
            if (value := self._sum(name, block, x_BTD)) is not None:
                found[name] = value
        return found | self._memory(block)

    def logits(self, block: int) -> Tensor | None:
        """What is added to the last hidden after its norm, [B, T, D]."""
        found = [port.logits_BTD for port in self._at.get(block, ()) if port.logits_BTD is not None]
        return sum(found[1:], found[0]) if found else None

    def _sum(self, name: str, block: int, x_BTD: Tensor) -> Tensor | None:
        """The sum of a port's tensors, with zeros for the rows in front."""
        total: Tensor | None = None
        for port in self._at.get(block, ()):
            if (value := getattr(port, name)) is not None:
                missing = x_BTD.shape[1] - value.shape[1]
                value = F.pad(value, (0, 0, missing, 0)) if missing else value
                total = value if total is None else total + value
        return total

    def _memory(self, block: int) -> dict[str, Tensor]:
        found = [port for port in self._at.get(block, ()) if port.memory_BMD is not None]
        if not found:
            return {}
        (port,) = found  # a recipe with two memories in a block is refused
        names = ("memory_BMD", "memory_key_MD", "memory_keep_B")
        return {name: value for name in names if (value := getattr(port, name)) is not None}
