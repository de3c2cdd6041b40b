"""The contracts between the core and its parts. Read this file to write a plugin.

One picture: every latent-variable language model here is a decoder cut at one seam.

    tokens ─ embed ─ blocks[:seam] ─┬───────────────────────────► blocks[seam:] ─ head ─ logits
                                    │ hidden at the seam                ▲
                                    ▼                                   │ Conditioning (prefix | kv | add)
                 tokens ───► Encoder ─ readout ─ Quantizer ─ embedding ─ Injection
                                (posterior numbers)  ▲ prior numbers (zeros, or a causal head on the hidden)

Shape legend, used as suffixes everywhere:
    B batch rows            T tokens               S slots (latent variables of a row)
    D model width           E encoder width        K posterior numbers per slot
    J prior numbers         C embedding width      d parts that the KL of a slot splits into
    P prefix length         V vocabulary           Z numbers of one continuous code
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from lvlm.section import Section

if TYPE_CHECKING:
    from lvlm.nn.cache import LayerCache

ROLES = ("backbone", "encoder", "quantizer", "injection", "loss")
IGNORE = -100  # a target that costs nothing; torch's own ignore_index


# ---------------------------------------------------------------------------------------------- data that flows


@dataclass(frozen=True)
class Slots:
    """How many latent variables a row has and which one a position uses.

    `tokens` is the number of tokens that share a slot: 1 is a slot per token, n a slot per chunk of n,
    None one slot for the whole sequence.
    """

    tokens: int | None

    def count(self, tokens: int) -> int:
        """Slots of a row of `tokens` tokens."""
        return 1 if self.tokens is None else -(-tokens // self.tokens)

    def of(self, positions_T: Tensor) -> Tensor:
        """The slot that each position uses, [T]."""
        return torch.zeros_like(positions_T) if self.tokens is None else positions_T // self.tokens

    def first_positions(self, tokens: int, device: torch.device | None = None) -> Tensor:
        """The first position of each slot, [S]: the last place from which a causal prior may look."""
        return torch.arange(self.count(tokens), device=device) * (self.tokens or 0)

    def any(self, keep_BT: Tensor) -> Tensor:
        """Whether a slot holds at least one real token, [B, S]."""
        batch, tokens = keep_BT.shape
        slot_T = self.of(torch.arange(tokens, device=keep_BT.device))
        keep_BS = torch.zeros(batch, self.count(tokens), dtype=torch.int32, device=keep_BT.device)
        return keep_BS.index_add(1, slot_T, keep_BT.to(torch.int32)) > 0


@dataclass(frozen=True)
class Batch:
    """Rows of tokens; padding stands on the right.

    inputs_BT   int64 token ids, any valid id where padded
    targets_BT  int64, the next token, or IGNORE where nothing is to be predicted
    keep_BT     bool, False where the input is padding
    """

    inputs_BT: Tensor
    targets_BT: Tensor
    keep_BT: Tensor

    @property
    def num_targets(self) -> int:
        """Target tokens in these rows; what a loss is divided by."""
        return int((self.targets_BT != IGNORE).sum())

    def to(self, device: torch.device | str) -> Batch:
        """The same rows on another device."""
        return Batch(
            *(x.to(device, non_blocking=True) for x in (self.inputs_BT, self.targets_BT, self.keep_BT))
        )

    def __getitem__(self, rows: slice) -> Batch:
        return Batch(self.inputs_BT[rows], self.targets_BT[rows], self.keep_BT[rows])

    def __len__(self) -> int:
        return self.inputs_BT.shape[0]


@dataclass
class Latent:
    """What a quantizer returns: a differentiable sample and, from a posterior, its KL.

    codes         the sampled values: int64 [B, S] for discrete families, float [B, S, Z] for continuous ones
    embedding_BSC what the codes become; gradients flow through it to the posterior numbers
    kl_BSd        KL(q || p) in nats, float32, never reduced; None when the code was drawn from the prior or given
    posterior_BSK, prior_BSJ   the numbers behind it, for likelihood bounds; None where there were none
    score_BS      log-probability of the drawn codes, differentiable, when their gradient is to be estimated by the
                  score function (REINFORCE) instead of flowing through the embedding
    penalty_BS    what the family adds to the objective, nats (a codebook's commitment); None for nothing
    """

    codes: Tensor
    embedding_BSC: Tensor
    kl_BSd: Tensor | None = None
    posterior_BSK: Tensor | None = None
    prior_BSJ: Tensor | None = None
    score_BS: Tensor | None = None
    penalty_BS: Tensor | None = None


@dataclass
class Conditioning:
    """What a code does to the stack. A backbone knows these ports and no latents.

    prefix_BPD     rows put in front of the stack at the seam, at positions -P..-1
    prefix_keep_B  bool; False hides the prefix from the tokens of that row
    kv_BTD         added to what the keys and values of block `seam` are made from, before its norm
    kv_normed_BTD  the same, added after the norm
    add_BTD        added to the hidden at the seam
    """

    prefix_BPD: Tensor | None = None
    prefix_keep_B: Tensor | None = None
    kv_BTD: Tensor | None = None
    kv_normed_BTD: Tensor | None = None
    add_BTD: Tensor | None = None


@dataclass
class Output:
    """What `LatentLM.forward` returns, always.

    hidden_BTD    the last hidden, before the head
    head          hidden [..., T, D] -> logits [..., T, V], of these or of fewer positions
    latent        None for a model without a latent
    keep_BS       bool, the slots whose KL counts: not padding, not dropped; None without a latent, and behind a cache
    slots         where the latent variables are; None without a latent
    chunk_tokens  how many rows of logits a loss makes at a time, and again in its backward pass, so that it never holds
                  them all; None for all at once
    """

    hidden_BTD: Tensor
    head: Callable[[Tensor], Tensor]
    latent: Latent | None = None
    keep_BS: Tensor | None = None
    slots: Slots | None = None
    chunk_tokens: int | None = None

    @classmethod
    def of_logits(
        cls,
        logits_BTV: Tensor,
        latent: Latent | None = None,
        keep_BS: Tensor | None = None,
        slots: Slots | None = None,
    ) -> Output:
        """Of logits that are there already."""
        return cls(logits_BTV, lambda x: x, latent, keep_BS, slots)

    @cached_property
    def logits_BTV(self) -> Tensor:  # noqa: N802  as tensors are named
        """Next-token logits, all of them; `lvlm.objective.cross_entropy_nats` may need but a part at a time."""
        return self.head(self.hidden_BTD)


@dataclass(frozen=True)
class Terms:
    """A loss and what is logged beside it.

    loss  what is differentiated: the objective in nats, divided by `num_tokens`
    sums  name -> detached scalar, a sum in nats over this batch, so that micro-batches and ranks add up.
          With a latent: the cross-entropy, 'kl' (raw), 'kl_hinged' (what the term charges, before beta) and
          'kl_priced' (raw KL times the price of a further nat of it, from which beta_effective follows)
    """

    loss: Tensor
    sums: dict[str, Tensor] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------- parts


class Block(Protocol):
    """One layer of a backbone, called by the core loop."""

    def __call__(
        self,
        x_BTD: Tensor,
        where: Any,
        *,
        source_BUD: Tensor | None = None,
        source_where: Any = None,
        shift_BUD: Tensor | None = None,
        mask: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """x_BTD -> x_BTD.

        Keys and values are made from norm(source) + shift, at the places `source_where`; the source is x at
        `where` unless given. With a source, x may be [1, 1, D]: one query for all rows and places. `mask` is
        bool, True where a query may look, broadcast to [B, heads, T, keys]; without a mask a causal block looks
        at its own place and before, and at all that is in the cache.
        """
        ...


class Backbone(nn.Module, abc.ABC):
    """Embedding, blocks and head of a causal decoder. The core drives it; it knows no latent.

    A subclass sets `width`, `vocab`, `context` (the longest sequence, in tokens) and `blocks`.
    """

    width: int
    vocab: int
    context: int
    blocks: nn.ModuleList

    @abc.abstractmethod
    def embed(self, tokens_BT: Tensor) -> Tensor:
        """Token ids [B, T] -> hidden [B, T, D]."""

    @abc.abstractmethod
    def locate(self, positions_T: Tensor) -> Any:
        """What blocks need to know of positions (rotary tables, say), made once per forward.

        Positions may be negative: a prefix stands at -P..-1. Shape [T], or [B, T] when rows differ.
        """

    @abc.abstractmethod
    def head(self, x_BTD: Tensor) -> Tensor:
        """Hidden [B, T, D] -> logits [B, T, V]."""

    @abc.abstractmethod
    def make_block(self, *, causal: bool) -> nn.Module:
        """One more block of this backbone's shape, for encoders; see `Block`."""

    @abc.abstractmethod
    def make_cache(self, rows: int, capacity: int) -> LayerCache:
        """An empty key/value cache of one block for `rows` rows and `capacity` positions."""


class Encoder(nn.Module, abc.ABC):
    """Looks at a whole row, both ways, and says something about each slot. Must not see padding.

    A subclass sets `width` (E) and `slots`.
    """

    width: int
    slots: Slots

    @abc.abstractmethod
    def forward(self, tokens_BT: Tensor, hidden_BTD: Tensor, keep_BT: Tensor) -> Tensor:
        """Tokens, the hidden at the seam and the padding mask -> features [B, S, E]."""


class Quantizer(nn.Module, abc.ABC):
    """A distribution family with its sampling, its KL and the embedding of its codes.

    The name covers the Gaussian too. All-zero prior numbers are the fixed prior; all-zero posterior numbers are it
    too, unless `can_be_prior` is False. KL and log-probabilities are computed in float32 or wider whatever the
    input, with autocast off.

    A subclass sets `posterior_dim` (K), `prior_dim` (J), `kl_dim` (d) and `embedding_dim` (C).
    """

    can_be_prior: bool = True
    """False where no posterior is the fixed prior, and the KL to it has a floor: a point mass, a fixed variance."""
    num_codes: int | None = None
    """How many codes a slot can hold, the indices 0 to num_codes - 1; None for continuous codes."""
    prior_words: str = "as its `sample` does"
    """How codes are drawn from prior numbers, for those who do it outside of PyTorch: exports say it."""

    posterior_dim: int
    prior_dim: int
    kl_dim: int
    embedding_dim: int

    @abc.abstractmethod
    def forward(
        self, posterior_BSK: Tensor, prior_BSJ: Tensor, generator: torch.Generator | None = None
    ) -> Latent:
        """A differentiable sample of the posterior and its KL to the prior."""

    @abc.abstractmethod
    def sample(self, prior_BSJ: Tensor, generator: torch.Generator | None = None) -> Latent:
        """A sample of the prior, without KL."""

    @abc.abstractmethod
    def given(self, codes: Tensor) -> Latent:
        """Codes that somebody chose, without KL.

        Raises:
            UserError: when a code is out of range, not finite, or of the wrong shape or type.
        """

    def embed(self, codes: Tensor) -> Tensor:
        """The embedding [B, S, C] that `given` makes of codes which are known to be right. Exported graphs call it: a
        `given` that looks at the values of codes can't become one, so override this beside it.
        """
        return self.given(codes).embedding_BSC

    @abc.abstractmethod
    def log_prob(self, codes: Tensor, numbers: Tensor) -> Tensor:
        """log-probability of codes under numbers, [B, S], nats; `numbers` is [B, S, K] or [B, S, J]."""

    def with_unit_changed(self, codes: Tensor, unit: int) -> Tensor | None:
        """Codes with one of the d units changed in every slot and all others as they were: a bit flipped, a
        coordinate mirrored. None where units can't be changed one by one.
        """
        return None

    def table_parameters(self) -> Iterable[nn.Parameter]:
        """Parameters that hold a row per code, listed by themselves in every parameter count."""
        return ()

    def at_step(self, step: int) -> None:
        """Called before every training step with the number of steps done, for what follows a schedule (a
        temperature). It must depend on nothing else, so that a resumed run is the same run.
        """


class Injection(nn.Module, abc.ABC):
    """Turns embeddings of codes into a conditioning. It has no layers of the stack and knows none.

    A subclass sets `embedding_dim`, the width that it wants from the quantizer, and `prefix_rows` when it
    makes a prefix (P; the key/value cache grows by as many).
    """

    embedding_dim: int
    prefix_rows: int = 0

    @abc.abstractmethod
    def forward(
        self, embedding_BSC: Tensor, positions_T: Tensor, keep_B: Tensor | None = None
    ) -> Conditioning:
        """The conditioning of the given positions, which start anywhere: it must slice,
        f(e, positions[a:b]) == f(e, positions)[a:b]. They are [T], or [B, T] where rows differ. Where `keep_B` is False, the row's latent was dropped
        and must leave no trace.
        """


class Loss(nn.Module, abc.ABC):
    """One objective: sums over the batch in nats, divided by the step's global number of target tokens."""

    @abc.abstractmethod
    def forward(self, output: Output, batch: Batch, *, num_tokens: int, step: int) -> Terms:
        """The terms of this batch; `num_tokens` counts targets over all micro-batches and ranks."""

    def after_step(self) -> None:
        """Called once after every optimiser step, for what follows the KL of the whole step (a controller). State
        belongs in buffers or the extra state: they are saved with the trainer. What was seen is this process's: reduce it over ranks.
        """

    def budget_nats(self, units: int) -> float | None:
        """KL per slot of so many units that costs nothing; None where there is no budget."""
        return None


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


class BackboneParams(Params):
    """Base of backbone params: they have at least `layers`, `width` and `context`."""

    role: ClassVar[str] = "backbone"

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

    def build(self, *, embedding_dim: int) -> Quantizer:
        """The module; the injection asks for `embedding_dim`."""
        raise NotImplementedError(f"{type(self).__name__}.build")


class InjectionParams(Params):
    """Base of injection params."""

    role: ClassVar[str] = "injection"

    needs_fixed_slots: ClassVar[bool] = False
    """True when the number of slots may not grow with the sequence."""
    needs_block: ClassVar[bool] = False
    """True when there must be a block at the seam."""

    def build(self, *, width: int, slots: Slots) -> Injection:
        """The module for a stack of that width."""
        raise NotImplementedError(f"{type(self).__name__}.build")


class LossParams(Params):
    """Base of loss params."""

    role: ClassVar[str] = "loss"

    needs_latent: ClassVar[bool] = False
    """True when the loss makes no sense without a latent."""

    @property
    def pays_for_kl(self) -> bool:
        """Whether a nat of KL may have a negative price; a learned prior would then flee from the codes."""
        return False

    def build(self) -> Loss:
        """The module."""
        raise NotImplementedError(f"{type(self).__name__}.build")


PARAMS_OF_ROLE: dict[str, type[Params]] = {
    cls.role: cls for cls in (BackboneParams, EncoderParams, QuantizerParams, InjectionParams, LossParams)
}


class Register(Protocol):
    """What a hook receives: call it with a params class to supply a kind."""

    def __call__(self, params: type[Params], /) -> None:
        """Supply one kind."""
        ...


__all__: Sequence[str] = [name for name in dir() if name[0].isupper()]
