"""Base classes of a recipe's entries: one for each role."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

from pydantic import Field

from lvlm.interfaces.data import Slots
from lvlm.interfaces.parts import Backbone, Encoder, Injection, KLForm, Loss, Prior, Quantizer
from lvlm.interfaces.remedy import Case, Remedy
from lvlm.interfaces.section import Section

# ------------------------------------------------------------------------------- params: what a recipe says


class Params(Section):
    """A part's entry in a recipe. Field docstrings are the documentation, `build` makes the module.

    A subclass sets `kind: Literal["name"] = "name"`; its docstring's first line is the kind's help.
    """

    role: ClassVar[str]

    @classmethod
    def kind_name(cls) -> str:
        """The name under which recipes know this kind."""
        return str(cls.model_fields["kind"].default)

    @classmethod
    def example(cls) -> Self:
        """A small instance for tests; override it where a field is required or its default is large."""
        return cls()

    @classmethod
    def upgraded(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values that a run of an older version saved, as this version reads them; unchanged unless
        overridden.
        """
        return dict(values)

    def remedies(self, case: Case) -> Iterable[Remedy]:
        """What to try in this kind's options about a trouble that the doctor found, the most promising first.

        A remedy that the recipe refuses is left out of the advice, so it need not be checked here.
        """
        return ()


PortName = Literal["prefix", "kv", "add", "scale_shift", "memory", "logits"]
"""A way into the stack, by its name; `lvlm.interfaces.Conditioning` holds what enters there."""


class BackboneParams(Params):
    """Base of backbone params: they have at least `layers`, `width` and `context`."""

    role: ClassVar[str] = "backbone"

    ports: ClassVar[frozenset[PortName]] = frozenset({"prefix", "kv", "add"})
    """The ports that the backbone reads. The core serves 'prefix' and 'add', and blocks take 'kv' as a
    source, so that every backbone has these three."""

    layers: int = Field(ge=1)
    """Blocks of the stack."""
    width: int = Field(ge=1)
    """Model width D."""
    context: int = Field(default=1024, ge=1)
    """The longest sequence, in tokens."""

    @classmethod
    def example(cls) -> Self:
        """Two layers of width 16."""
        return cls(layers=2, width=16, context=32)

    def build(self, *, vocab: int) -> Backbone:
        """The module."""
        raise NotImplementedError(f"{type(self).__name__}.build")


class EncoderParams(Params):
    """Base of encoder params: where slots are."""

    role: ClassVar[str] = "encoder"

    per: Literal["token", "sequence"] | Annotated[int, Field(ge=1)] = "token"
    """One slot per 'token', per 'sequence', or per chunk of so many tokens."""

    @property
    def slots(self) -> Slots:
        """`per` as slots."""
        return Slots({"token": 1, "sequence": None}[self.per] if isinstance(self.per, str) else self.per)

    def build(self, *, backbone: Backbone) -> Encoder:
        """The module; `backbone.make_block` gives blocks of the backbone's own shape."""
        raise NotImplementedError(f"{type(self).__name__}.build")


class QuantizerParams(Params):
    """Base of quantizer params."""

    role: ClassVar[str] = "quantizer"

    continuous: ClassVar[bool] = False
    """True where codes are vectors; some priors need that."""
    kl: ClassVar[KLForm] = "closed"
    """As the module's."""
    prior_can_be_learned: ClassVar[bool] = True
    """False where there is one prior, which has no numbers: `prior_dim` is 0."""

    @property
    def scores_codes(self) -> bool:
        """Whether the gradient of codes is the score function's (`Latent.score_BS`), which knows what a code
        does to the text, and not what it does to the prior of later codes.
        """
        return False

    def build(self, *, embedding_dim: int) -> Quantizer:
        """The module; the injection asks for `embedding_dim`."""
        raise NotImplementedError(f"{type(self).__name__}.build")


class PriorParams(Params):
    """Base of prior params. In a recipe a kind's name alone stands for the kind with its defaults."""

    role: ClassVar[str] = "prior"

    learned: ClassVar[bool] = True
    """False where nothing of it is trained."""
    sees_codes: ClassVar[bool] = False
    """As the module's; a recipe with one slot a sequence is then refused."""
    kl: ClassVar[KLForm] = "closed"
    """As the module's; a recipe whose loss needs a KL that is never negative is then refused."""
    needs_continuous: ClassVar[bool] = False
    """True where codes must be vectors."""

    def build(self, *, width: int, quantizer: Quantizer) -> Prior:
        """The module.

        Args:
            width: D of the hidden.
            quantizer: whose numbers (`prior_dim`), codes and embeddings (`embedding_dim`) they are.
        """
        raise NotImplementedError(f"{type(self).__name__}.build")


class InjectionParams(Params):
    """Base of injection params."""

    role: ClassVar[str] = "injection"

    ports: ClassVar[frozenset[PortName]] = frozenset()
    """The ports that it uses; a recipe refuses a backbone that doesn't read them."""
    needs_fixed_slots: ClassVar[bool] = False
    """True when the number of slots may not grow with the sequence."""
    needs_block: ClassVar[bool] = False
    """True when there must be a block at the seam."""

    def blocks(self, seam: int, layers: int) -> tuple[int, ...]:
        """Numbers of the blocks that the code enters, of a stack of so many layers."""
        return (seam,)

    @property
    def shared_by_blocks(self) -> bool:
        """Whether these blocks get the same embedding of a code, or each a part of its own."""
        return True

    def build(self, *, width: int, slots: Slots) -> Injection:
        """The module for a stack of that width."""
        raise NotImplementedError(f"{type(self).__name__}.build")


class BlockInjectionParams(InjectionParams):
    """Base of params of injections into blocks: into that at the seam, all above it, or chosen ones."""

    needs_block: ClassVar[bool] = True

    layers: Literal["seam", "all"] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = (
        "seam"
    )
    """The blocks that the code enters: that at the 'seam', 'all' from the seam up, or a list of block numbers
    that begin with 0."""
    shared: bool = True
    """Whether these blocks get the same embedding of a code; if false, each has its own."""

    def blocks(self, seam: int, layers: int) -> tuple[int, ...]:
        """Numbers of the blocks that the code enters, of a stack of so many layers."""
        if self.layers == "seam":
            return (seam,)
        return tuple(range(seam, layers)) if self.layers == "all" else tuple(self.layers)

    @property
    def shared_by_blocks(self) -> bool:
        """Whether these blocks get the same embedding of a code, or each a part of its own."""
        return self.shared


class LossParams(Params):
    """Base of loss params."""

    role: ClassVar[str] = "loss"

    needs_latent: ClassVar[bool] = False
    """True when the loss makes no sense without a latent."""
    takes_several_latents: ClassVar[bool] = False
    """True when it looks into `Output.latents`, and not for the only latent of the output."""
    takes_draws: ClassVar[bool] = False
    """True when its `Loss` weighs several draws of a row's codes (`Loss.weighs_draws`, `Batch.draws`); a
    recipe refuses `train.draws` above 1 with any other."""

    may_be_added: ClassVar[bool] = False
    """True when its `Loss` is a `lvlm.objective.Addition`, which `added_losses` adds to another."""

    @property
    def pays_for_kl(self) -> bool:
        """Whether a nat of KL may have a negative price; a learned prior would then flee from the codes."""
        return False

    @property
    def latents_named(self) -> tuple[str, ...]:
        """Latents that the loss names; a recipe whose model has no such latent is refused."""
        return ()

    @property
    def takes_sampled_kl(self) -> bool:
        """Whether a KL may be that of a draw, and so negative: the loss must be linear in it."""
        return False

    def build(self, *, width: int, vocab: int) -> Loss:
        """The module.

        Args:
            width: D of the hiddens that it gets; a loss with layers of its own needs it.
            vocab: V of the logits.
        """
        raise NotImplementedError(f"{type(self).__name__}.build")


PARAMS_OF_PART: dict[str, type[Params]] = {
    cls.role: cls
    for cls in (BackboneParams, EncoderParams, QuantizerParams, PriorParams, InjectionParams, LossParams)
}
"""The base of each part's params, by its role."""

PART_ROLES = tuple(PARAMS_OF_PART)
"""The roles of the parts that a model is made of."""


class Register(Protocol):
    """What a hook receives: call it with a params class to supply a kind."""

    def __call__(self, params: type[Params], /) -> None:
        """Supply one kind."""
        ...
