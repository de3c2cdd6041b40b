"""What to try when codes aren't read: the kinds' own remedies, and the options that every recipe has.

Tries come in the order of their measured success: codes of 8 bits a token, one of them free, on 1 MB of text
as bytes, three seeds each. No option was a switch: reading begins at a step that chance decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lvlm.errors import UserError
from lvlm.interfaces import Case, LossParams, Params, Trouble
from lvlm.registry.roles import nested_roles

if TYPE_CHECKING:
    from lvlm.diagnosis.measured import Measured
    from lvlm.recipe.recipe import Resolved


FEW_STEPS = 1000  # twice those of the latest onset that was seen

LONG_RUN_STEPS = 3000  # twice those of the longest run that was seen not to read


@dataclass(frozen=True)
class Try:
    """Overrides for the next run, 'key=value', to be given together."""

    overrides: tuple[str, ...]
    why: str


class Options:
    """What a recipe says, by dotted path, and what it would take instead."""

    def __init__(self, resolved: Resolved) -> None:
        self.recipe, self.registry = resolved.recipe, resolved.registry
        self._values = {path: value for path, value, _ in resolved.describe()}

    def value(self, path: str) -> Any:
        """The value there; None where the recipe has no such option."""
        return self._values.get(path)

    def number(self, path: str) -> float:
        """The number there; not a number where there is none, which no comparison likes."""
        value = self.value(path)
        return float(value) if isinstance(value, int | float) else math.nan

    def another(self, path: str, role: str, present: str, names: Iterable[str] | None = None) -> str | None:
        """The override to the first other kind of a role that the recipe takes; None where it takes none."""
        choices = self.registry.kinds[role] if names is None else names
        overrides = (f"{path}.kind={name}" for name in choices if name != present)
        return next((one for one in overrides if self.take((one,))), None)

    def take(self, overrides: tuple[str, ...]) -> bool:
        """Whether the recipe is one with these overrides too."""
        from lvlm.recipe.read import read_recipe

        try:
            read_recipe(self.recipe, overrides, registry=self.registry)
        except UserError:
            return False
        return True


# ---- what to try, in the order of promise; what the recipe refuses is dropped later ----


def from_kind(options: Options, measured: Measured, trouble: Trouble, *path: str) -> Iterator[Try]:
    """Remedies of the kind at a place of the recipe, and of the kinds among its options."""
    found: Any = options.recipe
    for key in path:
        found = getattr(found, key)
    if not isinstance(found, Params):
        return
    steps = options.recipe.train.steps
    for remedy in found.remedies(Case(trouble, steps, measured.kl_nats_per_slot, measured.units)):
        yield Try(tuple(f"{'.'.join(path)}.{option}" for option in remedy.options), remedy.why)
    for option in nested_roles(type(found)):
        yield from from_kind(options, measured, trouble, *path, option)


def to_say_something(options: Options, measured: Measured) -> Iterator[Try]:
    """An encoder that says nothing with its codes."""
    yield from from_kind(options, measured, "silent", "loss")
    yield from _less_context(options)
    yield from _from_the_parts(options, measured, "silent")
    factor = options.number("train.encoder_learning_rate_factor")
    if factor < 3:
        faster = f"train.encoder_learning_rate_factor={3 if factor else 1}"
        why = (
            "the encoder keeps up with the decoder; a single run on letters didn't gain by it"
            if factor
            else "it is 0: the encoder stands still"
        )
        yield Try((faster,), why)


def to_connect(options: Options, measured: Measured) -> Iterator[Try]:
    """A decoder that doesn't read."""
    assert options.recipe.model.injection is not None
    yield from _from_the_parts(options, measured, "unread")
    yield from to_train_longer(options)
    yield from _another_seed(options)
    yield from from_kind(options, measured, "unread", "loss")
    seam, present = options.recipe.model.seam_index, options.recipe.model.injection.kind_name()
    if other := options.another("model.injection", "injection", present):
        yield Try((other,), "another way into the stack; for more: lvlm kinds injection")
    yield from _less_context(options)
    if seam > 0:
        yield Try(
            (f"model.seam={seam // 2}",),
            "more blocks above can use the code; single runs on letters didn't gain by it",
        )


def to_train_longer(options: Options) -> Iterator[Try]:
    """A training that may have ended before reading begins."""
    steps = options.recipe.train.steps
    if steps < LONG_RUN_STEPS:
        why = (
            "reading began at steps 110 to 500 at width 64, and not within 1,500 at width 128 (1 MB of text)"
        )
        yield Try((f"train.steps={max(2 * steps, FEW_STEPS)}",), why)


def _another_seed(options: Options) -> Iterator[Try]:
    why = "of three seeds of one recipe two or three read their codes (1 MB of text, width 64)"
    yield Try((f"seed={options.recipe.seed + 1}",), why)


def to_vary(options: Options, measured: Measured) -> Iterator[Try]:
    """Codes that are all alike."""
    if not options.recipe.model.prior.learned:
        yield Try(
            ("model.prior=learned",), "what all rows have in common costs nothing, and the KL shows the rest"
        )
    yield from to_save(options, measured)
    yield from _from_the_parts(options, measured, "alike")
    yield from to_settle_later(options)


def to_settle_later(options: Options) -> Iterator[Try]:
    """An encoder that was sure of its codes too soon: no change of a sure code is felt."""
    if options.number("train.encoder_learning_rate_factor") > 0.3:
        slower = ("train.encoder_learning_rate_factor=0.3",)
        yield Try(slower, "the encoder isn't sure before the decoder listens; not measured")


def to_save(options: Options, measured: Measured) -> Iterator[Try]:
    """KL that brings nothing."""
    yield from to_lower(options, measured, "costly")


def to_lower(options: Options, measured: Measured, trouble: Trouble) -> Iterator[Try]:
    """KL that is too much: the family's own remedies, for no loss may move its KL, then the loss's."""
    yield from from_kind(options, measured, trouble, "model", "quantizer")
    yield from from_kind(options, measured, trouble, "loss")


def to_charge(options: Options, measured: Measured) -> Iterator[Try]:
    """KL without a price: the loss's own remedies, or else a loss that has a price."""
    own = list(from_kind(options, measured, "uncharged", "loss"))
    yield from own
    losses = options.registry.kinds["loss"].values()
    pricing = [
        kind.name for kind in losses if issubclass(kind.params, LossParams) and kind.params.needs_latent
    ]
    present = options.recipe.loss.kind_name()
    if not own and present not in pricing and (other := options.another("loss", "loss", present, pricing)):
        yield Try((other,), "an objective that charges for the KL")


def _less_context(options: Options) -> Iterator[Try]:
    if options.number("model.token_dropout") == 0:
        yield Try(
            ("model.token_dropout=0.3",),
            "where the last tokens don't tell, the code is worth reading; not measured",
        )


def _from_the_parts(options: Options, measured: Measured, trouble: Trouble) -> Iterator[Try]:
    for part in ("injection", "quantizer", "encoder"):
        yield from from_kind(options, measured, trouble, "model", part)
