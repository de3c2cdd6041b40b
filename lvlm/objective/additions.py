"""Losses that are added to another: a term of its own beside the cross-entropy, with a weight and a name.

loss ─────────────────────────────────────────┐
addition 'ahead' ─ nats ─ weight of the step ─ + ─► loss of the step; the log has 'ahead', unweighted
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from lvlm.interfaces import Batch, Loss, Output, Schedule, Terms, value_at
from lvlm.objective.losses import costless, reconstruction


class Addition(Loss):
    """Base of a loss that is the cross-entropy plus a term, which may also be added to another loss.

    As a recipe's `loss` it charges nothing for the KL of a latent. Its params say `may_be_added`.
    """

    @abc.abstractmethod
    def addition(self, output: Output, batch: Batch, *, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The term, summed over the batch, nats, and its parts for the log, detached."""

    def forward(self, output: Output, batch: Batch, *, num_tokens: int, step: int) -> Terms:
        """Terms of a batch, in nats per target token of the whole step."""
        total, sums = reconstruction(output, batch)
        nats, parts = self.addition(output, batch, step=step)
        return Terms((total + nats) / num_tokens, sums | costless(output) | parts)


class WithAdditions(Loss):
    """A loss with others added to it, of rows with one draw each.

    Args:
        loss: what they are added to.
        additions: by name.
        weights: of each, by name.
    """

    def __init__(
        self, loss: Loss, additions: Mapping[str, Addition], weights: Mapping[str, Schedule]
    ) -> None:
        super().__init__()
        assert additions.keys() == weights.keys(), (additions.keys(), weights.keys())
        self.loss, self.names, self.weights = loss, tuple(additions), dict(weights)
        self.additions = nn.ModuleList(additions.values())
        self.weighs_draws = loss.weighs_draws

    def forward(self, output: Output, batch: Batch, *, num_tokens: int, step: int) -> Terms:
        """Terms of a batch; the log has each addition under its name, and its parts as 'name/part'."""
        assert batch.draws == 1, f"additions have no weights for {batch.draws} draws of a row"
        terms: Terms = self.loss(output, batch, num_tokens=num_tokens, step=step)
        total, sums = terms.loss, dict(terms.sums)
        for name, one in zip(self.names, self.additions, strict=True):
            assert isinstance(one, Addition)
            nats, parts = one.addition(output, batch, step=step)
            total = total + value_at(self.weights[name], step) * nats / num_tokens
            sums[name] = nats.detach()
            sums |= {f"{name}/{part}": value for part, value in parts.items()}
        return Terms(total, sums)

    def after_step(self) -> None:
        """Let all of them take in the whole step."""
        for one in (self.loss, *self.additions):
            assert isinstance(one, Loss)
            one.after_step()

    def for_latents(self, names: Sequence[str]) -> None:
        """Tell all of them the latents' names."""
        for one in (self.loss, *self.additions):
            assert isinstance(one, Loss)
            one.for_latents(names)

    def budget_nats(self, units: int, latent: str = "") -> float | None:
        """The budget of the loss that they are added to."""
        return self.loss.budget_nats(units, latent)
