"""Rules across parts of a recipe. Each yields the path of the offending value and a message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from lvlm.likelihood.names import LOWEST
from lvlm.recipe.sizes import MOST_LAYERS
from lvlm.recipe.tree import Keys
from lvlm.registry.trackers import unknown_tracker

if TYPE_CHECKING:
    from lvlm.recipe.recipe import Recipe


Broken = tuple[Keys, str]


def broken_rules(recipe: Recipe, said: Callable[[Keys], object]) -> Iterator[Broken]:
    """Rules broken by a recipe whose values are each valid; `said` gives the origin of a value."""
    yield from _layers(recipe)
    yield from _trio(recipe)
    yield from _seam(recipe)
    yield from _slots(recipe)
    yield from _without_latent(recipe)
    yield from _learned_prior(recipe)
    yield from _context(recipe)
    yield from ((("data", *path), message) for path, message in recipe.data.faults())
    yield from _vocab(recipe)
    yield from _train(recipe, said)
    yield from _evaluate(recipe)


def _layers(recipe: Recipe) -> Iterator[Broken]:
    for name in ("backbone", "encoder"):
        layers = getattr(getattr(recipe.model, name), "layers", 0)
        if isinstance(layers, int) and layers > MOST_LAYERS:
            yield (
                ("model", name, "layers"),
                f"{layers} layers are more than are built; set at most {MOST_LAYERS}",
            )


def _trio(recipe: Recipe) -> Iterator[Broken]:
    names = ("encoder", "quantizer", "injection")
    missing = [name for name in names if getattr(recipe.model, name) is None]
    if 0 < len(missing) < len(names):
        verb = "is" if len(missing) == 1 else "are"
        message = "encoder, quantizer and injection come all three or none"
        yield ("model", missing[0]), f"{message}; {' and '.join(missing)} {verb} missing"


def _seam(recipe: Recipe) -> Iterator[Broken]:
    model = recipe.model
    layers, injection = model.backbone.layers, model.injection
    if model.seam_index > layers:
        yield ("model", "seam"), f"seam {model.seam_index} lies outside the stack, whose layers are {layers}"
    elif injection and injection.needs_block and model.seam_index == layers:
        needs = f"injection {injection.kind_name()!r} needs a block at the seam"
        yield (
            ("model", "seam"),
            f"{needs}, but seam {layers} is the end of the stack; set seam below {layers}",
        )


def _slots(recipe: Recipe) -> Iterator[Broken]:
    encoder, injection = recipe.model.encoder, recipe.model.injection
    if encoder is None:
        return
    if encoder.slots.tokens is None:
        return
    per = "token" if encoder.slots.tokens == 1 else f"chunk of {encoder.slots.tokens} tokens"
    yields = f"but encoder {encoder.kind_name()!r} yields one per {per}; set encoder.per: sequence"
    path = ("model", "encoder", "per")
    if injection and injection.needs_fixed_slots:
        yield path, f"injection {injection.kind_name()!r} needs a fixed number of slots, {yields}"
    if recipe.data.latent_tokens is not None:
        reads = "the encoder reads another text, of another length, and needs a fixed number of slots"
        yield path, f"{reads}, {yields}"


def _without_latent(recipe: Recipe) -> Iterator[Broken]:
    model = recipe.model
    if model.encoder or model.quantizer or model.injection:
        return
    mend = "the model has none; give it encoder, quantizer and injection"
    if recipe.loss.needs_latent:
        yield ("loss", "kind"), f"loss {recipe.loss.kind_name()!r} needs a latent, but {mend}"
    if model.prior == "learned":
        yield ("model", "prior"), f"a learned prior needs a latent, but {mend}, or set prior: fixed"
    if model.latent_dropout > 0:
        yield ("model", "latent_dropout"), f"dropout of the latent needs a latent, but {mend}, or set it to 0"
    if recipe.train.codes != "posterior":
        yield ("train", "codes"), f"codes to train on need a latent, but {mend}, or set codes: posterior"
    if recipe.train.encoder_learning_rate_factor != 1:
        path = ("train", "encoder_learning_rate_factor")
        yield path, f"a learning rate of the encoder needs a latent, but {mend}, or set it to 1"


def _learned_prior(recipe: Recipe) -> Iterator[Broken]:
    if recipe.model.prior == "learned" and recipe.loss.pays_for_kl:
        says = (
            "this loss pays for KL that is missing, and a learned prior would earn that by fleeing from "
            "the codes"
        )
        yield ("model", "prior"), f"{says}; set prior: fixed, or a one-sided loss.term"


def _context(recipe: Recipe) -> Iterator[Broken]:
    context, tokens = recipe.model.backbone.context, recipe.data.tokens
    if tokens > context:
        path = ("data", "window") if "window" in type(recipe.data).model_fields else ("data",)
        yield path, f"rows of {tokens} tokens are longer than the backbone's context of {context}"
    latent_tokens = recipe.data.latent_tokens
    given = getattr(recipe.data, "latent_window", None) is not None
    if latent_tokens is not None and latent_tokens > context and (given or tokens <= context):
        says = f"other texts of {latent_tokens} tokens are longer than the backbone's context of {context}"
        yield ("data", "latent_window") if given else ("data",), says


def _vocab(recipe: Recipe) -> Iterator[Broken]:
    if recipe.model.vocab is not None and recipe.model.vocab < recipe.data.vocab:
        has = f"the data has {recipe.data.vocab} tokens"
        yield ("model", "vocab"), f"vocab {recipe.model.vocab} is too small: {has}; leave it out, or say more"


def _train(recipe: Recipe, said: Callable[[Keys], object]) -> Iterator[Broken]:
    train = recipe.train

    def other(name: str) -> str:  # with its origin: either value may be the one to change
        return f"{name} {getattr(train, name)} ({said(('train', name))})"

    if train.micro_rows is not None and train.rows % train.micro_rows:
        yield ("train", "micro_rows"), f"micro_rows {train.micro_rows} must divide {other('rows')}"
    for number, name in enumerate(train.trackers):
        if unknown := unknown_tracker(name):
            yield ("train", "trackers", number), unknown
    if train.codes == "shuffled" and (train.micro_rows or train.rows) < 2:
        yield ("train", "codes"), "codes: shuffled needs at least 2 rows per forward, to take another's"
    elif train.codes == "shuffled" and train.micro_rows not in (None, train.rows) and train.micro_rows % 2:
        yield (
            ("train", "micro_rows"),
            f"micro_rows {train.micro_rows} is odd, and codes: shuffled exchanges the codes of rows in "
            f"pairs; set an even number",
        )
    if train.warmup_steps > train.steps:
        yield (
            ("train", "warmup_steps"),
            f"warmup_steps {train.warmup_steps} exceed {other('steps')}; set train.warmup_steps to at most"
            f" {train.steps}, or more train.steps",
        )
    if train.final_learning_rate > train.learning_rate:
        yield (
            ("train", "final_learning_rate"),
            f"final_learning_rate {train.final_learning_rate} exceeds {other('learning_rate')}, which the "
            f"cosine"
            " comes down from; set train.final_learning_rate to at most that",
        )


def _evaluate(recipe: Recipe) -> Iterator[Broken]:
    evaluate = recipe.evaluate
    chosen = {*evaluate.estimators, LOWEST}
    if recipe.model.has_latent and evaluate.headline not in chosen:
        named = ", ".join(evaluate.estimators)
        yield (
            ("evaluate", "headline"),
            f"headline {evaluate.headline!r} is not among evaluate.estimators: {named}",
        )
    compared = {*evaluate.estimators} if evaluate.headline == LOWEST else {evaluate.headline}
    if recipe.model.has_latent and recipe.train.select == "headline" and compared == {"elbo"}:
        yield (
            ("train", "select"),
            "a checkpoint chosen by the elbo alone is often an early one, since the elbo of a hinged "
            "objective grows worse while the model grows better; set select: bound, select: last, or another "
            "evaluate.headline",
        )
