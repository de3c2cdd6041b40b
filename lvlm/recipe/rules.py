"""Rules across parts of a recipe. Each yields the path of the offending value and a message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from lvlm.errors import listing, nearest
from lvlm.likelihood.names import LOWEST
from lvlm.recipe.sections import ModelParams
from lvlm.recipe.sizes import MOST_LAYERS
from lvlm.recipe.tree import Keys
from lvlm.registry.trackers import unknown_tracker

if TYPE_CHECKING:
    from lvlm.interfaces import LossParams
    from lvlm.recipe.recipe import Recipe
    from lvlm.recipe.sections import LatentParams


Broken = tuple[Keys, str]


def broken_rules(recipe: Recipe, said: Callable[[Keys], object]) -> Iterator[Broken]:
    """Rules broken by a recipe whose values are each valid; `said` gives the origin of a value."""
    yield from _layers(recipe)
    yield from _trio(recipe)
    yield from _seam(recipe)
    yield from _ports(recipe)
    yield from _slots(recipe)
    yield from _without_latent(recipe)
    yield from _prior(recipe)
    yield from _latents_named(recipe)
    yield from _added_losses(recipe)
    yield from _context(recipe)
    yield from ((("data", *path), message) for path, message in recipe.data.faults())
    yield from _vocab(recipe)
    yield from _train(recipe, said)
    yield from _evaluate(recipe)


def _latents(recipe: Recipe) -> Iterator[tuple[Keys, LatentParams]]:
    """Each latent, and the path of its parts."""
    for name, latent in recipe.model.each_latent.items():
        yield ("model", "latents", name) if recipe.model.latents else ("model",), latent


def _layers(recipe: Recipe) -> Iterator[Broken]:
    encoders = [((*path, "encoder"), latent.encoder) for path, latent in _latents(recipe)]
    for path, part in [(("model", "backbone"), recipe.model.backbone), *encoders]:
        layers = getattr(part, "layers", 0)
        if isinstance(layers, int) and layers > MOST_LAYERS:
            yield (*path, "layers"), f"{layers} layers are more than are built; set at most {MOST_LAYERS}"


def _trio(recipe: Recipe) -> Iterator[Broken]:
    names = ("encoder", "quantizer", "injection")
    missing = [name for name in names if getattr(recipe.model, name) is None]
    if recipe.model.latents:
        said = {name: getattr(recipe.model, name) for name in (*names, "prior", "seam", "latent_dropout")}
        for name, value in said.items():
            if value != ModelParams.model_fields[name].default:
                yield (
                    ("model", name),
                    f"model.latents names the latents, so that {name.removeprefix('latent_')} stands in one "
                    f"of them: {listing(recipe.model.latents)}; leave it out here, or extend base",
                )
    elif 0 < len(missing) < len(names):
        verb = "is" if len(missing) == 1 else "are"
        message = "encoder, quantizer and injection come all three or none"
        yield ("model", missing[0]), f"{message}; {' and '.join(missing)} {verb} missing"


def _seam(recipe: Recipe) -> Iterator[Broken]:
    model, layers = recipe.model, recipe.model.backbone.layers
    if not model.has_latent and model.seam_index > layers:
        yield ("model", "seam"), f"seam {model.seam_index} lies outside the stack, whose layers are {layers}"
    for path, latent in _latents(recipe):
        seam, injection = model.seam_of(latent), latent.injection
        if seam > layers:
            yield (*path, "seam"), f"seam {seam} lies outside the stack, whose layers are {layers}"
        elif injection.needs_block and seam == layers:
            needs = f"injection {injection.kind_name()!r} needs a block at the seam"
            yield (
                (*path, "seam"),
                f"{needs}, but seam {layers} is the end of the stack; set seam below {layers}",
            )


def _ports(recipe: Recipe) -> Iterator[Broken]:
    backbone = recipe.model.backbone
    end = backbone.layers
    remembering: dict[int, str] = {}  # the latent whose memory a block attends to
    for path, latent in _latents(recipe):
        injection, seam = latent.injection, recipe.model.seam_of(latent)
        if unread := sorted(injection.ports - backbone.ports):
            name = injection.kind_name()
            reads = f"backbone {backbone.kind_name()!r} reads {listing(sorted(backbone.ports))}"
            yield (
                (*path, "injection", "kind"),
                f"injection {name!r} uses the port {listing(unread)}, but {reads}",
            )
        layers, said = getattr(injection, "layers", "seam"), (*path, "injection", "layers")
        chosen = layers if isinstance(layers, list) else []
        if len({*chosen}) < len(chosen):
            yield said, f"a block is named twice in {layers}; name each once"
        for block in chosen:
            if not seam <= block < end:
                span = f"the seam is {seam}, and the last block is {end - 1}"
                yield said, f"block {block} can't be entered: {span}; name blocks from {seam} to {end - 1}"
        if "memory" in injection.ports:
            for block in injection.blocks(seam, end):
                if (other := remembering.setdefault(block, str(path[-1]))) != path[-1]:
                    yield said, f"block {block} attends to one memory, and {other} has it; name other layers"
                    break


def _slots(recipe: Recipe) -> Iterator[Broken]:
    fixed = []
    for path, latent in _latents(recipe):
        encoder, injection = latent.encoder, latent.injection
        if encoder.slots.tokens is None:
            fixed.append(path)
            continue
        per = "token" if encoder.slots.tokens == 1 else f"chunk of {encoder.slots.tokens} tokens"
        yields = f"but encoder {encoder.kind_name()!r} yields one per {per}; set encoder.per: sequence"
        if injection.needs_fixed_slots:
            name = injection.kind_name()
            yield (*path, "encoder", "per"), f"injection {name!r} needs a fixed number of slots, {yields}"
        if recipe.data.latent_tokens is not None and len(recipe.model.each_latent) == 1:
            reads = "the encoder reads another text, of another length, and needs a fixed number of slots"
            yield (*path, "encoder", "per"), f"{reads}, {yields}"
    if recipe.data.latent_tokens is not None and len(recipe.model.latents) > 1 and not fixed:
        yield (
            ("model", "latents"),
            "the data have another text for an encoder, which needs a fixed number of slots; set "
            "encoder.per: sequence for the latent that is to read it",
        )


def _without_latent(recipe: Recipe) -> Iterator[Broken]:
    model = recipe.model
    if model.has_latent or model.encoder or model.quantizer or model.injection:
        return
    mend = "the model has none; give it encoder, quantizer and injection"
    if recipe.loss.needs_latent:
        yield ("loss", "kind"), f"loss {recipe.loss.kind_name()!r} needs a latent, but {mend}"
    if model.prior.learned:
        yield ("model", "prior"), f"a learned prior needs a latent, but {mend}, or set prior: fixed"
    if model.latent_dropout > 0:
        yield ("model", "latent_dropout"), f"dropout of the latent needs a latent, but {mend}, or set it to 0"
    if recipe.train.codes != "posterior":
        yield ("train", "codes"), f"codes to train on need a latent, but {mend}, or set codes: posterior"
    if recipe.train.encoder_learning_rate_factor != 1:
        path = ("train", "encoder_learning_rate_factor")
        yield path, f"a learning rate of the encoder needs a latent, but {mend}, or set it to 1"


def _prior(recipe: Recipe) -> Iterator[Broken]:
    for path, latent in _latents(recipe):
        seams = [recipe.model.seam_of(one) for one in recipe.model.each_latent.values()]
        below = recipe.model.seam_of(latent) < max(seams)
        yield from _prior_of((*path, "prior"), latent, recipe.loss, below=below)


def _prior_of(path: Keys, latent: LatentParams, loss: LossParams, *, below: bool) -> Iterator[Broken]:
    prior, quantizer, encoder = latent.prior, latent.quantizer, latent.encoder
    name = prior.kind_name()
    if prior.sees_codes and encoder.slots.tokens is None:
        yield (
            path,
            f"prior {name!r} sees the codes of the slots before, and a sequence has one slot; set prior: "
            f"linear, or another encoder.per",
        )
    if prior.sees_codes and quantizer.scores_codes:
        yield (
            path,
            f"prior {name!r} makes the KL of a slot depend on the codes before it, and the score function "
            f"that quantizer {quantizer.kind_name()!r} learns by knows only what a code does to the text; "
            f"take another estimator of its gradient, or prior: linear",
        )
    if quantizer.scores_codes and below and not loss.takes_draws:  # which weighs all that a code moves
        yield (
            (*path[:-1], "quantizer"),
            f"the codes of this latent move the KL of those at higher seams, and the score function that "
            f"quantizer {quantizer.kind_name()!r} learns by knows only what a code does to the text; take "
            f"another estimator of its gradient, or the highest seam",
        )
    if prior.needs_continuous and not quantizer.continuous:
        yield (
            path,
            f"prior {name!r} is one of vectors, and quantizer {quantizer.kind_name()!r} doesn't say that its "
            f"codes are (`continuous`); take a quantizer of vectors, or prior: linear",
        )
    if "sampled" in (prior.kl, quantizer.kl) and not loss.takes_sampled_kl:
        whose = f"prior {name!r}" if prior.kl == "sampled" else f"quantizer {quantizer.kind_name()!r}"
        yield (
            ("loss",),
            f"the KL of {whose} is sampled: log q - log p of a draw, which may be negative, and what a "
            f"budget of each slot would cut off is its noise; set loss elbo with a term that is linear in "
            f"the KL of a step: plain, or, for a budget of the mean, clamp, pid or lagrangian",
        )
    if prior.learned and not quantizer.prior_can_be_learned:
        yield (
            path,
            f"quantizer {quantizer.kind_name()!r} has one prior, without numbers that could be learned; "
            f"set prior: fixed",
        )
    if prior.learned and loss.pays_for_kl:
        says = (
            "this loss pays for KL that is missing, and a learned prior would earn that by fleeing from "
            "the codes"
        )
        yield path, f"{says}; set prior: fixed, or a one-sided loss.term"


def _latents_named(recipe: Recipe) -> Iterator[Broken]:
    known = list(recipe.model.each_latent)
    losses: list[tuple[Keys, LossParams]] = [(("loss",), recipe.loss)]
    losses += [(("added_losses", name, "loss"), one.loss) for name, one in recipe.added_losses.items()]
    for path, loss in losses:
        if len(known) > 1 and not loss.takes_several_latents:
            says = f"loss {loss.kind_name()!r} knows one latent (takes_several_latents), and the model has"
            yield (*path, "kind"), f"{says} {listing(known)}"
    for name in recipe.loss.latents_named:
        if name not in known:
            has = f"the model has {listing(known) or 'none'}{nearest(name, known)}"
            yield ("loss", "latents", name), f"there is no latent {name!r}; {has}"


LOGGED = {
    "loss",
    "kl",
    "kl_hinged",
    "kl_priced",
    "beta_effective",
    "penalty",
    "elbo",
    "worth",
    "step",
    "event",
    "learning_rate",
    "gradient_norm",
    "spikes",
    "loss_scale",
    "tokens_per_second",
    "peak_memory_mib",
    "mfu",
}
"""Names that the log of a training has for itself."""


def _added_losses(recipe: Recipe) -> Iterator[Broken]:
    for name, added in recipe.added_losses.items():
        if name in LOGGED or name in recipe.model.each_latent or name.startswith(("ce_", "nll_")):
            yield (
                ("added_losses", name),
                f"the log has a number or a latent called {name!r}; name it otherwise",
            )
        path, kind = ("added_losses", name, "loss", "kind"), added.loss.kind_name()
        if not added.loss.may_be_added:
            yield (
                path,
                f"loss {kind!r} is a whole objective and can't be added to another; name it as the "
                f"recipe's loss",
            )
        elif added.loss.needs_latent and not recipe.model.has_latent:
            yield path, f"loss {kind!r} needs a latent, but the model has none"
    if recipe.added_losses and recipe.train.draws > 1:
        yield (
            ("added_losses",),
            f"an added loss has no weights for several draws of a row; set train.draws: 1, which is "
            f"{recipe.train.draws}, or add none",
        )


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
    loss = f"loss {recipe.loss.kind_name()!r}"
    if train.draws > 1 and not recipe.loss.takes_draws:
        yield (
            ("train", "draws"),
            f"{loss} doesn't weigh draws of codes; set train.draws: 1, or a loss that does, such as iwae",
        )
    if recipe.loss.takes_draws and train.codes != "posterior":
        yield (
            ("train", "codes"),
            f"{loss} weighs codes that the posterior drew, and codes: {train.codes} are none; set codes: "
            f"posterior, or another loss",
        )
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
