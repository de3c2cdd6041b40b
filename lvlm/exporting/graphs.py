"""What an exported graph computes: whole rows, and one token behind what came before. Plain functions of
tensors.

    row    tokens, codes                            ─► logits, keys, values, prior numbers
    step   token, position, codes, keys, values     ─► logits, new key, new value, prior numbers

Keys and values of all blocks are one tensor each, [L, B, H, U, d]; place U of a token is its position plus
the rows of the prefix, in every block. Who calls a step keeps them, and writes the new ones where they
belong.

Shape legend: see `lvlm.interfaces`; L blocks, H key/value heads, U places, d width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lvlm.errors import UserError
from lvlm.interfaces import LayerCache
from lvlm.model.latent_lm import LatentLM

# What a graph is traced with; a size of 1 would be taken for the only one.
EXAMPLE = {"rows": 3, "tokens": 4, "slots": 5, "places": 7}


class RowCache(LayerCache):
    """Nothing came before; what is new is kept."""

    def __init__(self) -> None:
        self.length, self.at_B, self.memory = 0, None, None

    def append(self, k_BHUd: Tensor, v_BHUd: Tensor) -> tuple[Tensor, Tensor]:
        """Keep them."""
        self.keys, self.values = k_BHUd, v_BHUd
        return k_BHUd, v_BHUd

    def mask(self, queries: int) -> None:
        """Causal needs no telling."""


class StepCache(LayerCache):
    """What came before is given, what is new is kept beside it.

    Args:
        keys_BHUd, values_BHUd: of places, some of which a row may see.
        at_B: the place of each row's new token.
        first: the first place that holds anything.
    """

    def __init__(self, keys_BHUd: Tensor, values_BHUd: Tensor, at_B: Tensor, first: int) -> None:
        self.keys, self.values, self.at_B, self.first = keys_BHUd, values_BHUd, at_B, first
        self.memory = None  # made anew from the codes in every step
        self.length = 1  # anything but 0, which would put the prefix in front again

    def append(self, k_BHUd: Tensor, v_BHUd: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values, the new ones last."""
        self.new_key, self.new_value = k_BHUd, v_BHUd
        return torch.cat((self.keys, k_BHUd), 2), torch.cat((self.values, v_BHUd), 2)

    def mask(self, queries: int) -> Tensor:
        """The places before each row's own, and the new one: [B, 1, 1, U + 1]."""
        assert self.at_B is not None
        place_U = torch.arange(self.keys.shape[2], device=self.at_B.device)
        seen_BU = (place_U >= self.first) & (place_U < self.at_B[:, None])
        return F.pad(seen_BU, (0, 1), value=True)[:, None, None]


class _Graph(nn.Module):
    """The parts that both graphs use; calls them in evaluation mode, without gradient."""

    def __init__(self, model: LatentLM) -> None:
        super().__init__()
        self.model = model
        self.prefix = model.prefix_rows

    def in_front(self, number: int) -> int:
        """Places of a block that never hold anything: those of the prefixes that begin above it."""
        return self.prefix - self.model.front_rows(number)

    def embedding(self, codes: Sequence[Tensor]) -> Tensor | None:
        return None if self.model.latent is None else self.model.latent.quantizer.embed(*codes)

    def prior(self, hidden_BSD: Tensor) -> list[Tensor]:
        path = self.model.latent
        return [] if path is None or not path.prior_head.sees_hidden else [path.prior(hidden_BSD).float()]


class Row(_Graph):
    """Whole rows: logits [B, T, V], keys and values [L, B, H, P + T, d], and numbers of a learned prior [B,
    T, J], of which those at a slot's first position are the slot's: a number of slots that may be 1 can't be
    traced.
    """

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """Tokens, and codes where there is a latent."""
        tokens_BT, *codes = inputs
        model, tokens = self.model, tokens_BT.shape[1]
        layers = [RowCache() for _ in model.backbone.blocks]
        place = model.place(torch.arange(tokens, device=tokens_BT.device))
        hidden_BTD = model.below(tokens_BT, place, layers=layers)
        y_BTD = model.above(hidden_BTD, self.embedding(codes), place, layers=layers)
        keys, values = (
            torch.stack([F.pad(x, (0, 0, self.in_front(number), 0)) for number, x in enumerate(of_blocks)])
            for of_blocks in ([layer.keys for layer in layers], [layer.values for layer in layers])
        )
        return [model.head(y_BTD), keys, values, *self.prior(hidden_BTD)]


class Step(_Graph):
    """A token of each row: logits [B, V], its key and value [L, B, H, d], and numbers of a learned prior [B,
    J].
    """

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """Tokens, positions, codes where there is a latent, keys and values."""
        tokens_B1, positions_B, *codes, keys, values = inputs
        model, at_B = self.model, positions_B + self.prefix
        layers = [
            StepCache(keys[number], values[number], at_B, self.in_front(number))
            for number in range(len(model.backbone.blocks))
        ]
        place = model.place(positions_B[:, None])
        hidden_B1D = model.below(tokens_B1, place, layers=layers)
        y_B1D = model.above(hidden_B1D, self.embedding(codes), place, layers=layers)
        new_keys = torch.stack([layer.new_key[:, :, 0] for layer in layers])
        new_values = torch.stack([layer.new_value[:, :, 0] for layer in layers])
        prior = [numbers[:, 0] for numbers in self.prior(hidden_B1D)]
        return [model.head(y_B1D)[:, 0], new_keys, new_values, *prior]


@dataclass(frozen=True)
class Port:
    """An input or an output: its name, its type, and its shape, in which a word is a size that may vary."""

    name: str
    dtype: str
    shape: tuple[str | int, ...]


@dataclass(frozen=True)
class Graph:
    """A traced function and what goes in and out, in order."""

    name: str
    program: ExportedProgram
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def trace(model: LatentLM) -> list[Graph]:
    """The row and the step of a model, for any number of rows, tokens, slots and places.

    Raises:
        UserError: a part of the model can't be traced.
    """
    cache, backbone = model.backbone.make_cache(1, 1).keys, model.backbone
    blocks, heads, width = len(backbone.blocks), cache.shape[1], cache.shape[3]
    past, new = (blocks, "rows", heads, "places", width), (blocks, "rows", heads, width)
    tokens = Port("tokens", "int64", ("rows", "tokens"))
    token = Port("tokens", "int64", ("rows", 1))
    positions = Port("positions", "int64", ("rows",))
    codes, prior_rows, prior = _ports_of_latent(model)
    given = (Port("keys", "float32", past), Port("values", "float32", past))
    made = (Port("new_keys", "float32", new), Port("new_values", "float32", new))
    logits_row = Port("logits", "float32", ("rows", "tokens", backbone.vocab))
    logits = Port("logits", "float32", ("rows", backbone.vocab))
    return [
        _trace(Row(model), (tokens, *codes), (logits_row, *given, *prior_rows)),
        _trace(Step(model), (token, positions, *codes, *given), (logits, *made, *prior)),
    ]


def _ports_of_latent(model: LatentLM) -> tuple[list[Port], list[Port], list[Port]]:
    """Codes, and the prior's numbers of rows and of a step."""
    path = model.latent
    if path is None:
        return [], [], []
    slots = 1 if path.slots.tokens is None else "slots"
    codes = draw_prior(model, 1, 1)
    kind = "float32" if codes.is_floating_point() else "int64"
    port = Port("codes", kind, ("rows", slots, *codes.shape[2:]))
    prior = path.prior_head
    if prior.sees_codes or prior.kl == "sampled":
        why = "depend on the codes before" if prior.sees_codes else "are of no distribution of the family's"
        raise UserError(
            f"the model can't be exported: the numbers of its {type(prior).__name__} {why}, and a graph only "
            f"says numbers of which the caller draws codes; graphs are made with prior: fixed or linear"
        )
    if not prior.sees_hidden:
        return [port], [], []
    numbers = path.quantizer.prior_dim
    of_rows = Port("prior_numbers", "float32", ("rows", "tokens", numbers))
    return [port], [of_rows], [Port("prior_numbers", "float32", ("rows", numbers))]


def draw_prior(model: LatentLM, rows: int, tokens: int, generator: torch.Generator | None = None) -> Tensor:
    """Codes of the slots of so many tokens, from all-zero prior numbers."""
    assert model.latent is not None
    path, slots = model.latent, model.latent.slots.count(tokens)
    zeros_BSJ = torch.zeros(rows, slots, path.quantizer.prior_dim)
    return path.quantizer.sample(zeros_BSJ, generator or torch.Generator()).codes


def _trace(module: _Graph, inputs: Sequence[Port], outputs: Sequence[Port]) -> Graph:
    model, name = module.model, type(module).__name__.lower()
    if (context := model.backbone.context) < EXAMPLE["tokens"]:
        raise UserError(
            f"a graph is traced with {EXAMPLE['tokens']} tokens, more than model.backbone.context: {context}"
        )
    dims = {size: Dim(size, max=context) if size == "tokens" else Dim(size) for size in EXAMPLE}
    example, dynamic = [], []
    for port in inputs:
        shape = [EXAMPLE[size] if isinstance(size, str) else size for size in port.shape]
        example.append(torch.zeros(shape, dtype=getattr(torch, port.dtype)))
        dynamic.append({at: dims[size] for at, size in enumerate(port.shape) if isinstance(size, str)})
    try:
        with torch.no_grad():
            program = torch.export.export(module, tuple(example), dynamic_shapes=(tuple(dynamic),))
    except Exception as error:  # whatever a part does that a graph can't hold, its own errors among it
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"the model can't be exported: torch.export says of its {name}: {first}") from error
    return Graph(name, program, tuple(inputs), tuple(outputs))
