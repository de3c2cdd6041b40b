"""What to try when a latent does not live, as options of the run's own recipe."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lvlm.errors import UserError

if TYPE_CHECKING:
    from lvlm.recipe.recipe import Resolved


SHORT_RUN_STEPS = 1000  # in which what starts at zero hasn't got far

PULLING_TERMS = ("target", "lagrangian")  # what is short of its budget is pulled up


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

    def take(self, overrides: tuple[str, ...]) -> bool:
        """Whether the recipe is one with these overrides too."""
        from lvlm.recipe.read import read_recipe

        try:
            read_recipe(self.recipe, overrides, registry=self.registry)
        except UserError:
            return False
        return True


# ---- what to try, in the order of promise; what the recipe refuses is dropped later -----------------------------


def to_revive(options: Options) -> Iterator[Try]:
    """A latent that the encoder says nothing with."""
    bits, term = options.number("loss.budget_bits"), options.value("loss.term.kind")
    free = bits > 0
    if term is not None and term not in PULLING_TERMS:
        per = ("loss.per=slot",) if options.value("loss.per") == "sequence" else ()
        usual = 0.1 if options.value("loss.per") == "unit" else 0.5
        budget = bits if 0 < bits < math.inf else usual
        pull = ("loss.term.kind=lagrangian", f"loss.budget_bits={budget:g}", *per)
        yield Try(pull, "the price falls below zero until the KL has reached its budget, and stays there")
    if term == "lagrangian":
        rate = f"loss.term.rate={10 * options.number('loss.term.rate'):g}"
        yield Try((rate,), "the multiplier grows faster")
    steps, beta = int(options.number("train.steps")), options.number("loss.beta")
    if beta > 0 and not free:
        ramp = f"loss.beta={{start: 0, end: {beta:g}, steps: {max(1, steps // 2)}}}"
        yield Try((ramp,), "codes become useful before they are charged for")
    if options.number("loss.autoencoder_steps") == 0 and not free:
        yield Try(
            (f"loss.autoencoder_steps={max(1, steps // 4)}",), "the same, with no charge at all at first"
        )
    yield from _less_context(options)
    yield from _from_the_start(options)
    factor = options.number("train.encoder_learning_rate_factor")
    if factor < 3:
        faster = f"train.encoder_learning_rate_factor={3 if factor else 1}"
        yield Try(
            (faster,),
            "the encoder keeps up with the decoder" if factor else "it is 0: the encoder stands still",
        )


def to_connect(options: Options) -> Iterator[Try]:
    """A decoder that doesn't listen."""
    assert options.recipe.model.injection is not None
    yield from _from_the_start(options)
    seam, present = options.recipe.model.seam_index, options.recipe.model.injection.kind_name()
    if seam > 0:
        yield Try((f"model.seam={seam // 2}",), "more blocks above the seam can make use of the code")
    others = (
        f"model.injection.kind={name}" for name in options.registry.kinds["injection"] if name != present
    )
    if other := next((other for other in others if options.take((other,))), None):
        yield Try((other,), "another way into the stack; for more: lvlm kinds injection")
    yield from _less_context(options)
    yield from to_save(options)
    steps = options.number("train.steps")
    if steps < SHORT_RUN_STEPS:
        yield Try((f"train.steps={SHORT_RUN_STEPS}",), f"{steps:.0f} steps are few to learn a code in")


def to_vary(options: Options) -> Iterator[Try]:
    """Codes that are all alike."""
    if options.recipe.model.prior == "fixed":
        yield Try(
            ("model.prior=learned",), "what all rows have in common costs nothing, and the KL shows the rest"
        )
    yield from to_save(options)
    yield from to_settle_later(options)


def to_settle_later(options: Options) -> Iterator[Try]:
    """An encoder that was sure of its codes too soon: no change of a sure code is felt."""
    if options.number("train.encoder_learning_rate_factor") > 0.3:
        slower = ("train.encoder_learning_rate_factor=0.3",)
        yield Try(slower, "the encoder isn't sure before the decoder listens")


def to_save(options: Options) -> Iterator[Try]:
    """KL that brings nothing."""
    bits, asks = options.number("loss.budget_bits"), options.value("loss.term.kind") in PULLING_TERMS
    if 0 < bits < math.inf:
        why = "less KL is asked for" if asks else "less KL is free"
        yield Try((f"loss.budget_bits={bits / 2:g}",), why)


def to_charge(options: Options) -> Iterator[Try]:
    """KL without a price."""
    if options.number("loss.beta") == 0:
        yield Try(("loss.beta=1",), "the objective is the elbo")
    elif options.number("loss.budget_bits") == math.inf:
        yield Try(("loss.budget_bits=0.5",), "a budget with an end")
    elif options.value("loss.beta") is None and options.value("loss.beta.end") is None:
        yield Try(("loss.kind=elbo",), "the objective is the elbo")


def _less_context(options: Options) -> Iterator[Try]:
    if options.number("model.token_dropout") == 0:
        yield Try(("model.token_dropout=0.3",), "where the last tokens don't tell, the code is worth reading")


def _from_the_start(options: Options) -> Iterator[Try]:
    std, steps = options.number("model.quantizer.embedding_std"), options.number("train.steps")
    if std == 0 and steps < SHORT_RUN_STEPS:
        yield Try(
            ("model.quantizer.embedding_std=0.1",),
            "codes matter from the first step, and a short run has few",
        )
