"""The one model: a decoder cut at a seam, with or without a latent. `LatentLM.forward` tells the story.

The shape legend is that of `lvlm.interfaces.parts`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lvlm.arguments import told
from lvlm.errors import NotFinite, UserError, one_of
from lvlm.interfaces import (
    Backbone,
    Conditioning,
    Encoder,
    Injection,
    Latent,
    LayerCache,
    Output,
    Quantizer,
    Slots,
    uniform,
)

if TYPE_CHECKING:
    from lvlm.interfaces import Codec


CodeSource = Literal["posterior", "prior", "shuffled"] | Tensor


class Place(NamedTuple):
    """Positions, [T] or [B, T] where rows differ, and the backbone's tables for them."""

    positions_T: Tensor
    where: Any


class Read(NamedTuple):
    """What the encoder reads in place of the row: tokens of another text, their hidden at the seam, and which
    of them are real.
    """

    tokens_BU: Tensor
    hidden_BUD: Tensor
    keep_BU: Tensor


class LatentPath(nn.Module):
    """The way from the hidden at the seam to the embedding of a code.

    tokens, hidden ─ encoder ─ norm ─ readout ─► posterior numbers ─┐
    hidden at each slot's first position ─ prior head ─► prior numbers ─ quantizer ─► Latent

    All-zero numbers are the prior: a fixed prior is a zero tensor, a learned one starts from a zero head.
    """

    def __init__(
        self, encoder: Encoder, quantizer: Quantizer, *, width: int, prior: Literal["fixed", "learned"]
    ) -> None:
        super().__init__()
        self.encoder, self.quantizer, self.slots = encoder, quantizer, encoder.slots
        self.norm = nn.RMSNorm(encoder.width)
        self.readout = nn.Linear(encoder.width, quantizer.posterior_dim)
        nn.init.normal_(self.readout.weight, std=0.02)
        nn.init.zeros_(self.readout.bias)
        self.prior_head: nn.Linear | None = None
        if one_of(prior, ("fixed", "learned"), "prior") == "learned":
            self.prior_head = nn.Linear(width, quantizer.prior_dim)
            nn.init.zeros_(self.prior_head.weight)
            nn.init.zeros_(self.prior_head.bias)

    def inference_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that make the posterior: encoder, norm and readout."""
        for module in (self.encoder, self.norm, self.readout):
            yield from module.parameters()

    def forward(
        self,
        tokens_BT: Tensor,
        hidden_BTD: Tensor,
        keep_BT: Tensor,
        z: CodeSource,
        generator: torch.Generator | None = None,
        other: Read | None = None,
    ) -> Latent:
        """Latent of whole rows: codes, their embedding, and KL in nats where they come from the posterior.
        The prior looks at the row; so does the encoder, unless there is another text for it.

        Raises:
            UserError: given codes don't fit, or a word for them that isn't known.
            NotFinite: the encoder yields NaN or infinity, outside of training.
        """
        rows, tokens = tokens_BT.shape
        if isinstance(z, Tensor):
            wanted, slots = self.slots.count(tokens), z.shape[1] if z.ndim > 1 else 0
            if z.ndim < 2 or z.shape[0] != rows or slots < wanted:
                raise UserError(
                    f"codes of shape {list(z.shape)} given; {rows} rows of {tokens} tokens "
                    f"need [{rows}, {wanted}, …], a code per slot"
                )
            return self.quantizer.given(z[:, :wanted])
        check_codes(z)
        prior_BSJ = self.prior(hidden_BTD[:, self.slots.first_positions(tokens, hidden_BTD.device)])
        if z == "prior":
            return self.quantizer.sample(prior_BSJ, generator)
        numbers_BSK = self.posterior(*(other or (tokens_BT, hidden_BTD, keep_BT)))
        if not self.training:
            return self._shuffled(self.quantizer(numbers_BSK, prior_BSJ, generator), z)
        # In training NaN must not become a code. It must not raise in one process either, as the others would
        # wait: it goes around the quantizer into the loss, which all of them see.
        latent: Latent = self.quantizer(numbers_BSK.nan_to_num(0.0, 0.0, 0.0), prior_BSJ, generator)
        broken = ~numbers_BSK.isfinite().all()
        latent.embedding_BSC = latent.embedding_BSC.masked_fill(broken, torch.nan)
        return self._shuffled(latent, z)

    def _shuffled(self, latent: Latent, z: CodeSource) -> Latent:
        if z == "shuffled":  # by row, so that the gradient goes where the code came from
            latent.codes, latent.embedding_BSC = exchanged(latent.codes), exchanged(latent.embedding_BSC)
        return latent

    def prior(self, hidden_BSD: Tensor) -> Tensor:
        """Prior numbers [B, S, J] from the hidden at the seam, at each slot's first position."""
        if self.prior_head is not None:
            numbers: Tensor = self.prior_head(hidden_BSD)
            return numbers
        return hidden_BSD.new_zeros(()).expand(*hidden_BSD.shape[:2], self.quantizer.prior_dim)

    def posterior(self, tokens_BT: Tensor, hidden_BTD: Tensor, keep_BT: Tensor) -> Tensor:
        """Posterior numbers [B, S, K] of whole rows.

        Raises:
            NotFinite: they hold NaN or infinity, outside of training.
        """
        numbers_BSK: Tensor = self.readout(self.norm(self.encoder(tokens_BT, hidden_BTD, keep_BT)))
        # A NaN would become a code like any other.
        if not self.training and not bool(numbers_BSK.isfinite().all()):
            raise NotFinite(
                "the numbers of the posterior hold NaN or infinity: the weights or the encoder diverged"
            )
        return numbers_BSK


class LatentLM(nn.Module):
    """A decoder cut at one seam, with a latent path beside it or without.

    Args:
        backbone: embedding, blocks and head.
        latent: encoder, quantizer and prior; None for a baseline.
        injection: what codes do to the stack; None for a baseline.
        seam: the block index at which the encoder reads and the code enters.
        latent_dropout: share of the rows whose latent is hidden during training.
        token_dropout: share of the input tokens, the first excepted, whose embedding is zeroed during
            training (word dropout: Bowman et al. 2016, arXiv 1511.06349). An encoder over the tokens still
            sees them; one over the hidden at the seam sees what the lower blocks made of the rest.
    """

    def __init__(
        self,
        backbone: Backbone,
        latent: LatentPath | None = None,
        injection: Injection | None = None,
        *,
        seam: int = 0,
        latent_dropout: float = 0.0,
        token_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.logits_chunk: int | None = None  # tokens whose logits a loss makes at a time in training
        self.codec: Codec | None = None  # of the data that the model was made for
        self.reads_other_text = False  # whether rows of these data have another text, for the encoder
        assert (latent is None) == (injection is None), "a latent needs an injection"
        self.backbone, self.latent, self.injection = backbone, latent, injection
        self.seam, self.latent_dropout, self.token_dropout = seam, latent_dropout, token_dropout

    @property
    def slots(self) -> Slots | None:
        """Places of the latent variables; None without a latent."""
        return None if self.latent is None else self.latent.slots

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @property
    def prefix_rows(self) -> int:
        """Rows that codes put in front of the tokens, from the seam upwards; 0 for most injections and a
        baseline.
        """
        return 0 if self.injection is None else self.injection.prefix_rows

    def at_step(self, step: int) -> None:
        """Tell the quantizer how many training steps are done, for what follows a schedule."""
        if self.latent is not None:
            self.latent.quantizer.at_step(step)

    def make_cache(self, rows: int, capacity: int) -> list[LayerCache]:
        """One empty cache per block, for `rows` rows of at most `capacity` tokens and the prefix."""
        return [
            self.backbone.make_cache(rows, capacity + (self.prefix_rows if number >= self.seam else 0))
            for number in range(len(self.backbone.blocks))
        ]

    def cache_bytes(self, rows: int, capacity: int) -> int:
        """Memory that `make_cache` takes, without taking it."""
        blocks, above = len(self.backbone.blocks), len(self.backbone.blocks) - self.seam
        if not blocks:
            return 0
        one = self.backbone.make_cache(1, 1)
        places = blocks * capacity + above * self.prefix_rows
        return rows * places * 2 * one.keys.numel() * one.keys.element_size()

    def place(self, positions_T: Tensor) -> Place:
        """Positions of tokens, [T] or [B, T], as `below` and `above` take them."""
        return Place(positions_T, self.backbone.locate(positions_T))

    def forward(
        self,
        tokens_BT: Tensor,
        keep_BT: Tensor | None = None,
        *,
        latent_tokens_BU: Tensor | None = None,
        latent_keep_BU: Tensor | None = None,
        z: CodeSource = "posterior",
        generator: torch.Generator | None = None,
        dropout_generator: torch.Generator | None = None,
    ) -> Output:
        """Logits of every next token of whole rows; `lvlm.generation.decoding` goes token by token.

        Args:
            tokens_BT: int64 token ids, padding on the right.
            keep_BT: bool, False at padding; all real unless given.
            latent_tokens_BU: int64 ids of another text of each row, which the encoder reads in place of the
                row; all else sees the row alone. A baseline has no use for it.
            latent_keep_BU: bool, False at padding of the other text; all real unless given.
            z: codes from the 'posterior' (the encoder sees the whole row), from the 'prior', or given:
                int64 [B, S] or float [B, S, Z], for at least the slots of these tokens; 'shuffled' gives each
                row the code that another row's posterior drew (see `exchanged`), and charges the KL of its
                own.
            generator: the noise of codes, row by row if it is a `lvlm.interfaces.RowGenerator`; torch's
                global one unless given.
            dropout_generator: decides what latent and token dropout drop in training; may be the same.

        Raises:
            UserError: no tokens, more than the backbone's context, ids that are no int64 [B, T] or not in
                the vocabulary (looked at on the CPU), codes that don't fit, or a word for them that isn't
                known, with a latent or without; the same faults of another text, or one for an encoder whose
                number of slots would follow its length.
            NotFinite: the encoder yields NaN or infinity.
        """
        check_codes(z)
        self._check_ids(tokens_BT, keep_BT)
        self._check_other_text(latent_tokens_BU, latent_keep_BU, rows=len(tokens_BT))
        if keep_BT is None:
            keep_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
        place = self.place(torch.arange(tokens_BT.shape[1], device=tokens_BT.device))
        x_BTD = self.below(tokens_BT, place, dropout_generator=dropout_generator)

        latent, keep_BS, embedding_BSC, keep_B = None, None, None, None
        if self.latent is not None:
            encodes = not isinstance(z, Tensor) and z != "prior"
            other = self.read(latent_tokens_BU, latent_keep_BU) if encodes else None
            latent = self.latent(tokens_BT, x_BTD, keep_BT, z, generator, other)
            embedding_BSC = latent.embedding_BSC
            keep_BS = self.latent.slots.any(keep_BT)
            keep_B = self._dropout(tokens_BT, dropout_generator)
            keep_BS = keep_BS if keep_B is None else keep_BS & keep_B[:, None]

        x_BTD = self.above(x_BTD, embedding_BSC, place, keep_B=keep_B)
        chunk_tokens = self.logits_chunk if self.training else None
        output = Output(x_BTD, self.backbone.head, latent, keep_BS, self.slots, chunk_tokens)
        if chunk_tokens is None:
            _ = output.logits_BTV  # now, under the precision and the gradient mode of this call
        return output

    def read(self, latent_tokens_BU: Tensor | None, latent_keep_BU: Tensor | None = None) -> Read | None:
        """Another text as the encoder reads it, no token of it dropped; None without one, or for a baseline.

        Raises:
            UserError: the encoder's number of slots would follow the length of that text.
        """
        if latent_tokens_BU is None or self.latent is None:
            return None
        check_slots(self.latent.slots)
        if latent_keep_BU is None:
            latent_keep_BU = torch.ones_like(latent_tokens_BU, dtype=torch.bool)
        place = self.place(torch.arange(latent_tokens_BU.shape[1], device=latent_tokens_BU.device))
        return Read(latent_tokens_BU, self.below(latent_tokens_BU, place, drop=False), latent_keep_BU)

    def below(
        self,
        tokens_BT: Tensor,
        place: Place,
        *,
        layers: Sequence[LayerCache] | None = None,
        dropout_generator: torch.Generator | None = None,
        drop: bool = True,
    ) -> Tensor:
        """Everything under the seam, where no code has entered: tokens [B, T] -> hidden [B, T, D].

        Args:
            tokens_BT: the next tokens of each row.
            place: where they stand.
            layers: a cache for each block of the stack, with the tokens before these; it takes these in.
            dropout_generator: decides which tokens are dropped in training.
            drop: whether any are.
        """
        x_BTD = self.backbone.embed(tokens_BT)
        if drop and self.training and self.token_dropout:
            x_BTD = x_BTD * self._seen(tokens_BT, dropout_generator)[..., None]
        mask = layers[0].mask(tokens_BT.shape[1]) if layers and self.seam else None
        for number, block in enumerate(self.backbone.blocks[: self.seam]):
            x_BTD = block(x_BTD, place.where, mask=mask, cache=layers[number] if layers else None)
        return x_BTD

    def above(
        self,
        x_BTD: Tensor,
        embedding_BSC: Tensor | None,
        place: Place,
        *,
        layers: Sequence[LayerCache] | None = None,
        keep_B: Tensor | None = None,
    ) -> Tensor:
        """Everything from the seam to the head: hidden and codes -> the last hidden [B, T, D].

        Args:
            x_BTD: the hidden at the seam, from `below`.
            embedding_BSC: embeddings of all slots up to these tokens', or of more; None without a latent.
            place: as for `below`.
            layers: as for `below`; those under the seam are not looked at.
            keep_B: rows that get their code; all unless given.
        """
        where, tokens = place.where, x_BTD.shape[1]
        upper = layers[self.seam :] if layers else []
        mask = upper[0].mask(tokens) if upper else None
        port = Conditioning()
        if self.injection is not None and embedding_BSC is not None:
            # Quantizers stay in float32 where the stack is in less, see `lvlm.model.precision`.
            port = self.injection(embedding_BSC.to(x_BTD.dtype), place.positions_T, keep_B)
        prefix = 0
        if port.add_BTD is not None:
            x_BTD = x_BTD + port.add_BTD
        in_cache = bool(upper and upper[0].length)  # later tokens find the prefix in the cache
        if port.prefix_BPD is not None and not in_cache:
            prefix = port.prefix_BPD.shape[1]
            x_BTD = torch.cat((port.prefix_BPD.to(x_BTD.dtype), x_BTD), dim=1)
            where = self.backbone.locate(torch.arange(-prefix, tokens, device=x_BTD.device))
            mask = prefix_mask(prefix, tokens, port.prefix_keep_B)
        source_BUD = None if port.kv_BTD is None else x_BTD + port.kv_BTD
        shift_BUD = port.kv_normed_BTD
        for number, block in enumerate(self.backbone.blocks[self.seam :]):
            x_BTD = block(
                x_BTD,
                where,
                source_BUD=source_BUD,
                shift_BUD=shift_BUD,
                mask=mask,
                cache=upper[number] if upper else None,
            )
            source_BUD = shift_BUD = None  # the port is the block at the seam alone
        return x_BTD[:, prefix:] if prefix else x_BTD

    def _check_other_text(self, tokens_BU: Any, keep_BU: Any, *, rows: int) -> None:
        if tokens_BU is None:
            if keep_BU is not None:
                raise UserError("latent_keep is given without latent_tokens")
            return
        self._check_ids(tokens_BU, keep_BU, "latent_")
        if len(tokens_BU) != rows:
            raise UserError(f"latent_tokens has {len(tokens_BU)} rows, and tokens {rows}")

    def _check_ids(self, tokens_BT: Tensor, keep_BT: Tensor | None, of: str = "") -> None:
        if not isinstance(tokens_BT, Tensor):
            raise UserError(
                f"{of}tokens is {told(tokens_BT)}; it is a tensor [B, T] of token ids: "
                f"torch.tensor([model.codec.encode(text)])"
            )
        if tokens_BT.ndim != 2:
            one = "; a single row is x[None]" if tokens_BT.ndim == 1 else ""
            raise UserError(f"{of}tokens is {told(tokens_BT)}; token ids are [B, T]{one}")
        if tokens_BT.dtype not in (torch.int64, torch.int32):
            raise UserError(f"{of}tokens is {told(tokens_BT)}; token ids are int64: x.long()")
        if keep_BT is not None and (keep_BT.shape != tokens_BT.shape or keep_BT.dtype != torch.bool):
            says = f"it is bool{list(tokens_BT.shape)}, as the tokens are"
            raise UserError(f"{of}keep is {told(keep_BT)}; {says}")
        rows, tokens = tokens_BT.shape
        if rows == 0:
            raise UserError("no rows: a batch has at least one")
        if tokens == 0:
            raise UserError("no tokens: a sequence has at least one")
        if tokens > self.backbone.context:
            raise UserError(
                f"a sequence of {tokens} tokens is longer than the model allows "
                f"(model.backbone.context: {self.backbone.context})"
            )
        # A tensor without numbers has none to look at, and a GPU would be waited for.
        if type(tokens_BT) is Tensor and tokens_BT.is_cpu and not torch.compiler.is_compiling():
            low, high = (int(end) for end in tokens_BT.aminmax())
            if low < 0 or high >= self.backbone.vocab:
                raise UserError(
                    f"token ids from {low} to {high}; the vocabulary is 0 to {self.backbone.vocab - 1}"
                )

    def _seen(self, tokens_BT: Tensor, generator: torch.Generator | None) -> Tensor:
        """Tokens that the decoder sees, bool [B, T].

        The first is always seen: as it has only itself to look at, a zero would stay exactly zero up to the
        seam, where the slope of an RMSNorm explodes.
        """
        seen_BT = uniform(tokens_BT.shape, generator, device=tokens_BT.device) >= self.token_dropout
        return seen_BT | (torch.arange(tokens_BT.shape[1], device=tokens_BT.device) == 0)

    def _dropout(self, tokens_BT: Tensor, generator: torch.Generator | None) -> Tensor | None:
        """Rows whose latent stays, bool [B]; a mask rather than an `if`, so that every rank runs every
        unit.
        """
        if not (self.training and self.latent_dropout):
            return None
        return uniform(tokens_BT.shape[:1], generator, device=tokens_BT.device) >= self.latent_dropout


def check_codes(z: CodeSource) -> None:
    """Check where codes come from.

    Raises:
        UserError: neither a known word nor a tensor.
    """
    if not isinstance(z, Tensor):
        one_of(z, CodeSource, "z", or_="a tensor of codes")


def check_slots(slots: Slots) -> None:
    """Check that an encoder's slots don't follow the length of what it reads.

    Raises:
        UserError: they do, so that it can't read another text than the row.
    """
    if slots.tokens is not None:
        per = "token" if slots.tokens == 1 else f"chunk of {slots.tokens} tokens"
        raise UserError(
            f"the encoder can't read another text: it yields a code per {per} of what it reads, and the row "
            "needs its own number of them; encoder.per: sequence yields one of any text"
        )


def exchanged(rows_B: Tensor) -> Tensor:
    """Rows that have changed places: first and second, third and fourth, and so on.

    So whole pairs exchange within a micro-batch as they would within the whole batch. Of an odd number the
    last three rows go around; one row by itself stays.
    """
    pairs = len(rows_B) // 2 - len(rows_B) % 2
    if pairs < 0:
        return rows_B
    paired_B, last_B = rows_B[: 2 * pairs], rows_B[2 * pairs :]
    return torch.cat((paired_B.view(pairs, 2, *rows_B.shape[1:]).flip(1).flatten(0, 1), last_B.roll(1, 0)))


def prefix_mask(prefix: int, tokens: int, keep_B: Tensor | None) -> Tensor | None:
    """Causal mask over prefix and tokens, bool [B, 1, P + T, P + T]; None when nothing is hidden.

    The prefix is hidden from the tokens of rows that dropped it, and still sees itself: no row is fully
    masked.
    """
    if keep_B is None:
        return None
    total = torch.arange(prefix + tokens, device=keep_B.device)
    causal = total[:, None] >= total[None, :]
    hidden = (total[:, None] >= prefix) & (total[None, :] < prefix)
    return causal & (keep_B[:, None, None, None] | ~hidden)
