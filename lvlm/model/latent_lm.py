"""The one model: a decoder cut at seams, with a latent at each or with none. `LatentLM.forward` tells the
story.

The shape legend is that of `lvlm.interfaces.parts`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from lvlm.arguments import told
from lvlm.errors import UserError, one_of
from lvlm.interfaces import (
    Backbone,
    Drawn,
    LayerCache,
    Output,
    Slots,
    uniform,
)
from lvlm.model.latent_path import CodeSource, LatentPath, Read, check_codes, check_slots
from lvlm.model.ports import Ports

if TYPE_CHECKING:
    from lvlm.interfaces import Codec


ONLY = "latent"
"""Name of the latent of a model that has one."""


class Place(NamedTuple):
    """Positions, [T] or [B, T] where rows differ, and the backbone's tables for them."""

    positions_T: Tensor
    where: Any


class Stage(NamedTuple):
    """Blocks from one seam to the next, and the latents whose codes enter in front of them."""

    latents: tuple[str, ...]
    start: int
    stop: int


class LatentLM(nn.Module):
    """A decoder cut at the seams of its latents, or whole without any.

    Args:
        backbone: embedding, blocks and head.
        latents: the latents by name; none for a baseline. Given by itself, a latent is called 'latent'. Those
            of a lower seam come first, and of the same seam in the order given.
        token_dropout: share of the input tokens, the first excepted, whose embedding is zeroed during
            training (word dropout: Bowman et al. 2016, arXiv 1511.06349). An encoder over the tokens still
            sees them; one over the hidden at the seam sees what the lower blocks made of the rest.
    """

    def __init__(
        self,
        backbone: Backbone,
        latents: LatentPath | Mapping[str, LatentPath] | None = None,
        *,
        token_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.logits_chunk: int | None = None  # tokens whose logits a loss makes at a time in training
        self.codec: Codec | None = None  # of the data that the model was made for
        self.reads_other_text = False  # whether rows of these data have another text, for encoders
        named = {ONLY: latents} if isinstance(latents, LatentPath) else latents or {}
        self.backbone, self.token_dropout = backbone, token_dropout
        self.names = tuple(sorted(named, key=lambda name: named[name].seam))
        """Names of the latents, in the order in which their codes are drawn."""
        for name in self.names:  # 'latent.readout.weight', or of several 'latent_plan.readout.weight'
            self._modules[_child(name)] = named[name]
        self.stages = self._cut()
        """The stack in pieces: the blocks below all seams, then those from each seam to the next."""
        for path in self.paths.values():
            if path.injection.memory_rows:
                for block in path.blocks:
                    backbone.open_memory(block)

    @property
    def paths(self) -> dict[str, LatentPath]:
        """The latents by name, in the order in which their codes are drawn."""
        return {name: cast(LatentPath, self._modules[_child(name)]) for name in self.names}

    @property
    def latent(self) -> LatentPath | None:
        """The latent of a model that has one; None without.

        Raises:
            UserError: it has several.
        """
        if len(self.names) > 1:
            raise UserError(
                f"the model has {len(self.names)} latents ({', '.join(self.names)}), and this works on "
                f"models with one"
            )
        return next(iter(self.paths.values()), None)

    def _cut(self) -> list[Stage]:
        seams = sorted({path.seam for path in self.paths.values()})
        ends = [*seams, len(self.backbone.blocks)]
        stages = [Stage((), 0, ends[0])]
        for start, stop in itertools.pairwise(ends):
            names = tuple(name for name, path in self.paths.items() if path.seam == start)
            stages.append(Stage(names, start, stop))
        return stages

    @property
    def seam(self) -> int:
        """Number of the blocks below all seams, which no code reaches."""
        return self.stages[0].stop

    @property
    def slots(self) -> Slots | None:
        """Places of the latent variables; None without a latent.

        Raises:
            UserError: the model has several latents.
        """
        return None if self.latent is None else self.latent.slots

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def front_rows(self, block: int) -> int:
        """Rows that codes put in front of the tokens of a block; 0 for most injections and a baseline."""
        return sum(path.injection.prefix_rows for path in self.paths.values() if path.seam <= block)

    @property
    def prefix_rows(self) -> int:
        """Rows in front of the tokens at the end of the stack."""
        return self.front_rows(len(self.backbone.blocks))

    def memory_rows(self, block: int) -> int:
        """Rows of the memory that a block attends to; 0 for most injections and a baseline."""
        return sum(path.injection.memory_rows for path in self.paths.values() if block in path.blocks)

    def at_step(self, step: int) -> None:
        """Tell the quantizers how many training steps are done, for what follows a schedule."""
        for path in self.paths.values():
            path.quantizer.at_step(step)

    def make_cache(self, rows: int, capacity: int, *, above: bool = False) -> list[LayerCache]:
        """One empty cache for each block, or only for those above the lowest seam: for `rows` rows of at most
        `capacity` tokens, prefixes and memories.
        """
        layers = []
        for block in range(self.seam if above else 0, len(self.backbone.blocks)):
            layers.append(self.backbone.make_cache(rows, capacity + self.front_rows(block)))
            if memory := self.memory_rows(block):
                layers[-1].hold_memory(memory)
        return layers

    def cache_bytes(self, rows: int, capacity: int, *, above: bool = False) -> int:
        """Memory that `make_cache` takes, without taking it."""
        blocks = range(self.seam if above else 0, len(self.backbone.blocks))
        if not blocks:
            return 0
        one = self.backbone.make_cache(1, 1)
        places = sum(capacity + self.front_rows(block) + self.memory_rows(block) for block in blocks)
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
        z: CodeSource | Mapping[str, CodeSource] = "posterior",
        generator: torch.Generator | None = None,
        dropout_generator: torch.Generator | None = None,
        log_ratios: bool = False,
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
                own. With several latents a mapping says it for each by name, and 'posterior' for the rest.
            generator: the noise of codes, row by row if it is a `lvlm.interfaces.RowGenerator`; torch's
                global one unless given.
            dropout_generator: decides what latent and token dropout drop in training; may be the same.
            log_ratios: whether latents of the posterior get the log-ratio of their draw, which losses over
                several draws weigh.

        Raises:
            UserError: no tokens, more than the backbone's context, ids that are no int64 [B, T] or not in
                the vocabulary (looked at on the CPU), codes that don't fit, or a word for them that isn't
                known, with a latent or without; the same faults of another text, or one for an encoder whose
                number of slots would follow its length.
            NotFinite: the encoder yields NaN or infinity.
        """
        sources = self._sources(z)
        self._check_ids(tokens_BT, keep_BT)
        self._check_other_text(latent_tokens_BU, latent_keep_BU, rows=len(tokens_BT))
        if self.training and latent_tokens_BU is None and any(map(self.reads_other_text_for, self.names)):
            raise UserError("the data say that an encoder reads another text, and these rows have none")
        if keep_BT is None:
            keep_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
        place = self.place(torch.arange(tokens_BT.shape[1], device=tokens_BT.device))

        x_BTD = self.below(tokens_BT, place, dropout_generator=dropout_generator)
        latents, ports = {}, Ports()
        for stage in self.stages[1:]:
            for name in stage.latents:
                path, hidden_BTD, z = self.paths[name], ports.of_tokens(x_BTD), sources[name]
                encodes = not isinstance(z, Tensor) and z != "prior"
                other = self.read(name, latent_tokens_BU, latent_keep_BU) if encodes else None
                latent = path(tokens_BT, hidden_BTD, keep_BT, z, generator, other, log_ratios=log_ratios)
                keep_B = self._dropout(path, tokens_BT, dropout_generator)
                path.enter(ports, latent.embedding_BSC.to(x_BTD.dtype), place.positions_T, keep_B)
                keep_BS = path.slots.any(keep_BT)
                keep_BS = keep_BS if keep_B is None else keep_BS & keep_B[:, None]
                latents[name] = Drawn(latent, keep_BS, path.slots)
            x_BTD = self.through(stage, x_BTD, place, ports)

        chunk_tokens = self.logits_chunk if self.training else None
        output = Output(self.last(x_BTD, ports), self.head, latents, chunk_tokens)
        if chunk_tokens is None:
            _ = output.logits_BTV  # now, under the precision and the gradient mode of this call
        return output

    def can_read_other_text(self, name: str) -> bool:
        """Whether a latent's encoder may read another text than the row: its number of slots is fixed."""
        return self.paths[name].slots.tokens is None

    def reads_other_text_for(self, name: str) -> bool:
        """Whether a latent's encoder was trained on another text than the row. Of several latents, those with
        one slot a row read it.
        """
        return self.reads_other_text and self.can_read_other_text(name)

    def check_other_text(self) -> None:
        """Check that some encoder can read another text than the row.

        Raises:
            UserError: there is none, since slots follow the length of what is read.
        """
        if not self.names:
            raise UserError("the model has no latent, and so no codes")
        if not any(map(self.can_read_other_text, self.names)):
            check_slots(self.paths[self.names[0]].slots)

    def read(
        self, name: str, latent_tokens_BU: Tensor | None, latent_keep_BU: Tensor | None = None
    ) -> Read | None:
        """Another text as a latent's encoder reads it, no token of it dropped and without codes in it; None
        without one, and for a latent of several whose encoder reads the row.

        Raises:
            UserError: no encoder can read another text.
        """
        if latent_tokens_BU is None:
            return None
        self.check_other_text()
        if not self.can_read_other_text(name):
            return None
        if latent_keep_BU is None:
            latent_keep_BU = torch.ones_like(latent_tokens_BU, dtype=torch.bool)
        place = self.place(torch.arange(latent_tokens_BU.shape[1], device=latent_tokens_BU.device))
        x_BUD = self.below(latent_tokens_BU, place, drop=False)
        for stage in self.stages[1:]:
            if stage.start < self.paths[name].seam:
                x_BUD = self.through(stage, x_BUD, place, Ports())
        return Read(latent_tokens_BU, x_BUD, latent_keep_BU)

    def below(
        self,
        tokens_BT: Tensor,
        place: Place,
        *,
        layers: Sequence[LayerCache] | None = None,
        dropout_generator: torch.Generator | None = None,
        drop: bool = True,
    ) -> Tensor:
        """Everything under all seams, where no code has entered: tokens [B, T] -> hidden [B, T, D].

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
        return self.through(self.stages[0], x_BTD, place, Ports(), layers=layers)

    def above(
        self,
        x_BTD: Tensor,
        embeddings: Tensor | Mapping[str, Tensor] | None,
        place: Place,
        *,
        layers: Sequence[LayerCache] | None = None,
        keep_B: Tensor | None = None,
    ) -> Tensor:
        """Everything from the lowest seam to the head, with codes that are known: hidden -> the last hidden
        [B, T, D], for `head`.

        Args:
            x_BTD: the hidden at the lowest seam, from `below`.
            embeddings: embeddings [B, S, C] of all slots up to these tokens', or of more, by the names of the
                latents; without a name for the only latent; None for no codes.
            place: as for `below`.
            layers: as for `below`; those under the lowest seam are not looked at.
            keep_B: rows that get their codes; all unless given.
        """
        if isinstance(embeddings, Tensor):
            (only,) = self.names
            embeddings = {only: embeddings}
        named, ports = embeddings or {}, Ports()
        assert named.keys() <= {*self.names}, f"embeddings of {[*named]}, latents {self.names}"
        for stage in self.stages[1:]:
            for name in stage.latents:
                if (embedding_BSC := named.get(name)) is not None:
                    # Quantizers stay in float32 where the stack is in less, see `lvlm.model.precision`.
                    embedding_BSC = embedding_BSC.to(x_BTD.dtype)
                    self.paths[name].enter(ports, embedding_BSC, place.positions_T, keep_B)
            x_BTD = self.through(stage, x_BTD, place, ports, layers=layers)
        return self.last(x_BTD, ports)

    def through(
        self,
        stage: Stage,
        x_BTD: Tensor,
        place: Place,
        ports: Ports,
        *,
        layers: Sequence[LayerCache] | None = None,
    ) -> Tensor:
        """The blocks of one stage: stream [B, F + T, D] -> stream, with the prefixes of its seam in front.

        Args:
            stage: one of `stages`.
            x_BTD: the stream at the stage's seam, with the rows in front that it has.
            place: where the tokens stand.
            ports: what the codes of this and of lower seams do.
            layers: a cache for each block of the stack.
        """
        tokens = x_BTD.shape[1] - ports.front
        later = bool(layers and stage.start < stage.stop and layers[stage.start].length)
        if not later:  # later tokens find the prefix in the cache
            x_BTD = ports.prefixed(x_BTD, stage.start)
        front, where = ports.front, place.where
        mask = layers[stage.start].mask(tokens) if layers and stage.start < stage.stop else None
        if front:
            where = self.backbone.locate(torch.arange(-front, tokens, device=x_BTD.device))
            mask = ports.mask(tokens)
        for number in range(stage.start, stage.stop):
            x_BTD = ports.added(x_BTD, number)
            x_BTD = self.backbone.blocks[number](
                x_BTD,
                where,
                mask=mask,
                cache=layers[number] if layers else None,
                **ports.of_block(x_BTD, number),
            )
        return x_BTD

    def last(self, x_BTD: Tensor, ports: Ports) -> Tensor:
        """The last hidden of the tokens, for `head`: with what enters behind the last block."""
        end = len(self.backbone.blocks)
        x_BTD = ports.added(ports.of_tokens(x_BTD), end)
        logits_BTD = ports.logits(end)
        return x_BTD if logits_BTD is None else torch.cat((x_BTD, logits_BTD.to(x_BTD.dtype)), dim=-1)

    def head(self, last_BTD: Tensor) -> Tensor:
        """Logits [..., T, V] of the last hidden, as `last` and `above` return it."""
        width = self.backbone.width
        if last_BTD.shape[-1] == width:
            return self.backbone.head(last_BTD)
        return self.backbone.head_with(last_BTD[..., :width], last_BTD[..., width:])

    def _sources(self, z: CodeSource | Mapping[str, CodeSource]) -> dict[str, CodeSource]:
        """Where the codes of each latent come from."""
        if not isinstance(z, Mapping):
            check_codes(z)
            if isinstance(z, Tensor) and len(self.names) > 1:
                raise UserError(f"codes for {', '.join(self.names)} are given by name: {{name: codes}}")
            return dict.fromkeys(self.names, z)
        for name, source in z.items():
            one_of(name, self.names, "latent")
            check_codes(source)
        return {name: z.get(name, "posterior") for name in self.names}

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

    def _dropout(
        self, path: LatentPath, tokens_BT: Tensor, generator: torch.Generator | None
    ) -> Tensor | None:
        """Rows whose latent stays, bool [B]; a mask rather than an `if`, so that every rank runs every
        unit.
        """
        if not (self.training and path.dropout):
            return None
        return uniform(tokens_BT.shape[:1], generator, device=tokens_BT.device) >= path.dropout


def _child(name: str) -> str:
    """Name of a latent's module, and so of its weights."""
    return name if name == ONLY else f"{ONLY}_{name}"
