"""Tensors that parts pass to each other: batch, latent, conditioning, output, terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from lvlm.interfaces.brief import Brief

IGNORE = -100  # a target that costs nothing; torch's own ignore_index


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


@dataclass(frozen=True, repr=False)
class Batch(Brief):
    """Rows of tokens; padding stands on the right.

    inputs_BT         int64 token ids, any valid id where padded
    targets_BT        int64, the next token, or IGNORE where nothing is to be predicted
    keep_BT           bool, False where the input is padding
    latent_inputs_BU  int64 ids of another text of each row, which the encoder reads in place of the row; None
                      where it reads the row itself
    latent_keep_BU    bool, False where the other text is padding; all real unless given
    draws             rows beside each other that are one row of data, each with codes of its own
    """

    inputs_BT: Tensor
    targets_BT: Tensor
    keep_BT: Tensor
    latent_inputs_BU: Tensor | None = None
    latent_keep_BU: Tensor | None = None
    draws: int = field(default=1, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        if self.latent_inputs_BU is None:
            assert self.latent_keep_BU is None, "latent_keep_BU without latent_inputs_BU"
        elif self.latent_keep_BU is None:
            every = torch.ones_like(self.latent_inputs_BU, dtype=torch.bool)
            object.__setattr__(self, "latent_keep_BU", every)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, in the order of the fields: three, and five with another text."""
        if self.latent_inputs_BU is None or self.latent_keep_BU is None:
            return self.inputs_BT, self.targets_BT, self.keep_BT
        return self.inputs_BT, self.targets_BT, self.keep_BT, self.latent_inputs_BU, self.latent_keep_BU

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor changed in one way: rows picked, repeated, moved to a device."""
        return Batch(*map(change, self.tensors), draws=self.draws)

    @property
    def read(self) -> dict[str, Tensor | None]:
        """All that a model reads of the rows, as arguments of `LatentLM.forward`: `model(**batch.read)`. The
        other text is among them, so that no caller forgets it.
        """
        return {
            "tokens_BT": self.inputs_BT,
            "keep_BT": self.keep_BT,
            "latent_tokens_BU": self.latent_inputs_BU,
            "latent_keep_BU": self.latent_keep_BU,
        }

    @property
    def num_targets(self) -> int:
        """Target tokens in these rows; what a loss is divided by."""
        return int((self.targets_BT != IGNORE).sum())

    def to(self, device: torch.device | str) -> Batch:
        """The same rows on another device."""
        return self.each(lambda x: x.to(device, non_blocking=True))

    def repeated(self, draws: int) -> Batch:
        """Each row so many times, one after the other, for as many draws of its codes."""
        assert self.draws == 1, f"rows are repeated {self.draws} times already"
        if draws == 1:
            return self
        return replace(self.each(lambda x: x.repeat_interleave(draws, 0)), draws=draws)

    def __getitem__(self, rows: slice) -> Batch:
        return self.each(lambda x: x[rows])

    def __len__(self) -> int:
        return self.inputs_BT.shape[0]


@dataclass(repr=False)
class Latent(Brief):
    """What a quantizer returns: a differentiable sample and, from a posterior, its KL.

    codes         the sampled values: int64 [B, S] for discrete families, float [B, S, Z] for continuous ones
    embedding_BSC what the codes become; gradients flow through it to the posterior numbers
    kl_BSd        KL(q || p) in nats, float32, never reduced; None when the code was drawn from the prior or
                  given
    posterior_BSK, prior_BSJ   the numbers behind it, for likelihood bounds; None where there were none
    score_BS      log-probability of the drawn codes, differentiable, when their gradient is to be estimated
                  by the score function (REINFORCE) instead of flowing through the embedding
    penalty_BS    what the family adds to the objective, nats (a codebook's commitment); None for nothing

    A latent path adds, where it is asked for `log_ratios`, and `kl_BSd` then has no gradient to the prior:
    log_ratio_BS      log p(z) - log q(z given x) of the drawn codes, nats. Its gradient reaches the prior's
                      numbers, and the posterior only through codes that are differentiable
    log_posterior_BS  log q(z given x), nats, with the codes held: its gradient is the score
    """

    codes: Tensor
    embedding_BSC: Tensor
    kl_BSd: Tensor | None = None
    posterior_BSK: Tensor | None = None
    prior_BSJ: Tensor | None = None
    score_BS: Tensor | None = None
    penalty_BS: Tensor | None = None
    log_ratio_BS: Tensor | None = None
    log_posterior_BS: Tensor | None = None


@dataclass(repr=False)
class Conditioning(Brief):
    """What a code does to the stack. A backbone knows these ports and no latents.

    prefix_BPD     rows put in front of the stack at the seam, at positions -P..-1
    prefix_keep_B  bool; False hides the prefix from the tokens of that row
    kv_BTD         added to what the keys and values of a block are made from, before its norm
    kv_normed_BTD  the same, added after the norm
    add_BTD        added to the hidden in front of a block
    scale_BTD      with `offset_BTD`: the outputs of a block's norms times 1 + scale, plus offset
    memory_BMD     rows that a block attends to beside its own, by a layer of its own (cross-attention)
    memory_key_MD  added to what the keys of these rows are made from, so that they can be told apart
    memory_keep_B  bool; False hides the memory from that row
    logits_BTD     added to the last hidden after its norm: a bias on the logits, through the head's matrix
    """

    prefix_BPD: Tensor | None = None
    prefix_keep_B: Tensor | None = None
    kv_BTD: Tensor | None = None
    kv_normed_BTD: Tensor | None = None
    add_BTD: Tensor | None = None
    scale_BTD: Tensor | None = None
    offset_BTD: Tensor | None = None
    memory_BMD: Tensor | None = None
    memory_key_MD: Tensor | None = None
    memory_keep_B: Tensor | None = None
    logits_BTD: Tensor | None = None


@dataclass(repr=False)
class Drawn(Brief):
    """A latent as one forward drew it.

    latent   codes, their embeddings and their KL
    keep_BS  bool, the slots whose KL counts: not padding, not dropped; None behind a cache
    slots    where the latent variables are
    """

    latent: Latent
    keep_BS: Tensor | None
    slots: Slots | None


@dataclass(repr=False)
class Output(Brief):
    """What `LatentLM.forward` returns, always.

    hidden_BTD    the last hidden, before the head; twice as wide where a code adds to the logits
    head          hidden [..., T, D] -> logits [..., T, V], of these or of fewer positions
    latents       the latents by name, as they were drawn; empty for a model without
    chunk_tokens  how many rows of logits a loss makes at a time, and again in its backward pass, so that it
                  never holds them all; None for all at once
    """

    hidden_BTD: Tensor
    head: Callable[[Tensor], Tensor]
    latents: Mapping[str, Drawn] = field(default_factory=dict)
    chunk_tokens: int | None = None

    @classmethod
    def of_logits(
        cls,
        logits_BTV: Tensor,
        latent: Latent | None = None,
        keep_BS: Tensor | None = None,
        slots: Slots | None = None,
    ) -> Output:
        """An output of logits that are made already, with one latent or none."""
        latents = {} if latent is None else {"latent": Drawn(latent, keep_BS, slots)}
        return cls(logits_BTV, lambda x: x, latents)

    @property
    def drawn(self) -> Drawn | None:
        """The only latent; None without one, and an error where there are several."""
        assert len(self.latents) < 2, f"an output with latents {', '.join(self.latents)}: look into `latents`"
        return next(iter(self.latents.values()), None)

    @property
    def latent(self) -> Latent | None:
        """Codes, embeddings and KL of the only latent; None without one."""
        return None if self.drawn is None else self.drawn.latent

    @property
    def keep_BS(self) -> Tensor | None:  # noqa: N802  as tensors are named
        """The slots of the only latent whose KL counts, bool; None without a latent."""
        return None if self.drawn is None else self.drawn.keep_BS

    @property
    def slots(self) -> Slots | None:
        """Places of the only latent's variables; None without a latent."""
        return None if self.drawn is None else self.drawn.slots

    @cached_property
    def logits_BTV(self) -> Tensor:  # noqa: N802  as tensors are named
        """Next-token logits, all of them; `lvlm.objective.cross_entropy_nats` may need but a part at a
        time.
        """
        return self.head(self.hidden_BTD)


@dataclass(frozen=True, repr=False)
class Terms(Brief):
    """A loss and what is logged beside it.

    loss  what is differentiated: the objective in nats, divided by `num_tokens`
    sums  name -> detached scalar, a sum in nats over this batch, so that micro-batches and ranks add up.
          With a latent: the cross-entropy, 'kl' (raw), 'kl_hinged' (what the term charges, before beta) and
          'kl_priced' (raw KL times the price of a further nat of it, from which beta_effective follows)
    """

    loss: Tensor
    sums: dict[str, Tensor] = field(default_factory=dict)
