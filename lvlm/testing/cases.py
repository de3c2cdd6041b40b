"""What to check: crosses of a registry's kinds, random weights, small batches, hypothesis strategies."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from lvlm.errors import UserError
from lvlm.interfaces import IGNORE, Batch, Params
from lvlm.model.latent_lm import LatentLM
from lvlm.recipe.assemble import assemble
from lvlm.recipe.read import PRIOR_WORDS, read_recipe
from lvlm.registry.registry import Registry

M = TypeVar("M", bound=nn.Module)
VOCAB = 11
TOKENS = 7
BACKBONE: dict[str, Any] = {
    "kind": "decoder",
    "layers": 3,
    "width": 16,
    "heads": 4,
    "kv_heads": 2,
    "hidden": 16,
    "context": 32,
}


@dataclass(frozen=True)
class Cross:
    """One way to put an encoder, a quantizer and an injection together."""

    encoder: Params
    quantizer: Params
    injection: Params
    prior: str | Params = "fixed"
    """'fixed' and 'learned' stand in all crosses, params of another kind in a few."""
    seam: int = 1
    backbone: Params | None = None
    """The small decoder of `BACKBONE` unless given."""

    @property
    def parts(self) -> tuple[Params, ...]:
        """The params that make this cross another one; the backbone of `BACKBONE` and the priors that all
        crosses have are not among them.
        """
        chosen = (self.encoder, self.quantizer, self.injection, self.backbone)
        others = () if isinstance(self.prior, str) else (self.prior,)
        return tuple(part for part in (*chosen, *others) if part is not None)

    @property
    def prior_name(self) -> str:
        """The prior's word in a recipe."""
        return self.prior if isinstance(self.prior, str) else self.prior.kind_name()

    def __str__(self) -> str:
        per = getattr(self.encoder, "per", "")
        names = [part.kind_name() for part in self.parts if part is not self.prior]
        return f"{'-'.join(names)}-per_{per}-{self.prior_name}"

    def recipe(self, loss: str = "cross_entropy") -> dict[str, Any]:
        """The cross as a recipe of a tiny model."""
        return {
            "name": str(self),
            "model": {
                "backbone": BACKBONE if self.backbone is None else self.backbone.model_dump(),
                "seam": self.seam,
                "encoder": self.encoder.model_dump(),
                "quantizer": self.quantizer.model_dump(),
                "injection": self.injection.model_dump(),
                "prior": self.prior if isinstance(self.prior, str) else self.prior.model_dump(),
            },
            "loss": {"kind": loss},
            "data": {"kind": "python", "window": 8},
        }


def crosses(
    registry: Registry, priors: Sequence[str] = ("fixed", "learned")
) -> tuple[list[Cross], list[Cross]]:
    """All crosses of the registry's kinds with slots per token, per chunk of 3 and per sequence: those that a
    recipe may ask for, and those that it refuses.

    The decoder of `BACKBONE` has all of them with these priors. Each other prior has a few, and each other
    backbone: every encoder and every injection with every kind of slots, and every quantizer, as far as it
    goes with them.
    """
    legal: list[Cross] = []
    refused: list[Cross] = []
    kinds = registry.kinds
    for encoder, quantizer, injection, per, prior in itertools.product(
        kinds["encoder"].values(),
        kinds["quantizer"].values(),
        kinds["injection"].values(),
        ("token", 3, "sequence"),
        priors,
    ):
        params = encoder.params.example().model_copy(update={"per": per})
        cross = Cross(params, quantizer.params.example(), injection.params.example(), prior)
        try:
            read_recipe(cross.recipe(), registry=registry)
        except UserError:
            refused.append(cross)
        else:
            legal.append(cross)
    usual = {PRIOR_WORDS.get(word, word) for word in priors}
    other_priors = [kind.params.example() for name, kind in kinds["prior"].items() if name not in usual]
    with_prior = [cross for prior in other_priors for cross in _with_prior(prior, legal, registry)]
    others = [kind for name, kind in kinds["backbone"].items() if name != BACKBONE["kind"]]
    with_backbone = [cross for kind in others for cross in _with_backbone(kind.params.example(), legal)]
    return legal + with_prior + with_backbone, refused


def _with_prior(prior: Params, legal: Sequence[Cross], registry: Registry) -> list[Cross]:
    """Few of the legal crosses, with another prior."""
    fitting = []
    for cross in (replace(one, prior=prior) for one in legal if one.prior == legal[0].prior):
        try:
            read_recipe(cross.recipe(), registry=registry)
        except UserError:
            continue
        fitting.append(cross)
    return _few(fitting)


def _with_backbone(backbone: Params, legal: Sequence[Cross]) -> list[Cross]:
    """Few of the legal crosses, with another backbone."""
    layers = getattr(backbone, "layers", 2)
    reads: frozenset[str] = getattr(backbone, "ports", frozenset())
    fitting = [one for one in legal if getattr(one.injection, "ports", frozenset()) <= reads]
    return [replace(one, backbone=backbone, seam=min(one.seam, layers - 1)) for one in _few(fitting)]


def _few(legal: Sequence[Cross]) -> list[Cross]:
    """Few crosses that have all that any of them has."""

    def has(cross: Cross) -> set[object]:
        per = getattr(cross.encoder, "per", "")
        names = {f"{part.role} {part.kind_name()}" for part in cross.parts}
        with_slots = {(name, per) for name in names if not name.startswith("quantizer")}
        return with_slots | {(name, "any") for name in names} | {("prior", cross.prior_name)}

    return _cover(legal, has)


def covering(legal: Sequence[Cross]) -> list[Cross]:
    """Few crosses that have every pair of kinds, slots and priors that any of them has."""

    def has(cross: Cross) -> set[object]:
        one = [(part.role, part.kind_name()) for part in cross.parts]
        one += [("per", str(getattr(cross.encoder, "per", ""))), ("prior", cross.prior_name)]
        return set(itertools.combinations(sorted({*one}), 2))

    return _cover(legal, has)


def _cover(legal: Sequence[Cross], has: Callable[[Cross], set[object]]) -> list[Cross]:
    """Crosses that together have all that any of them has; the one with most that is new comes next."""
    left = {number: has(cross) for number, cross in enumerate(legal)}
    wanted, found = set[object]().union(*left.values()), []
    while wanted:
        best = max(left, key=lambda number: len(left[number] & wanted))
        wanted -= left.pop(best)
        found.append(legal[best])
    return found


def build_cross(cross: Cross, registry: Registry, *, seed: int = 0) -> LatentLM:
    """The model of a cross in float64, with every parameter drawn anew, so that nothing is zero by design."""
    model = assemble(read_recipe(cross.recipe(), registry=registry).recipe).double()
    return randomise(model, seed=seed)


def randomise(module: M, *, seed: int = 0, std: float = 0.3) -> M:
    """Draw every parameter anew, around 1 where it is a norm's gain."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for submodule in module.modules():
            center = 1.0 if isinstance(submodule, nn.RMSNorm | nn.LayerNorm) else 0.0
            for parameter in submodule.parameters(recurse=False):
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(center + std * noise)
    return module


def token_rows(rows: int = 2, tokens: int = TOKENS, *, vocab: int = VOCAB, seed: int = 0) -> Tensor:
    """Random token ids, [rows, tokens]."""
    return torch.randint(vocab, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def generator_of(seed: int = 0) -> torch.Generator:
    """A generator with that seed."""
    return torch.Generator().manual_seed(seed)


def batch_of(rows_BT: Tensor) -> Batch:
    """Next-token prediction over rows [B, T + 1]."""
    return Batch(rows_BT[:, :-1], rows_BT[:, 1:], torch.ones_like(rows_BT[:, 1:], dtype=torch.bool))


def numbers(shape: Sequence[int], *, largest: float = 8.0) -> st.SearchStrategy[Tensor]:
    """Posterior or prior numbers of a shape, float64, zeros and extremes among them."""
    size = 1
    for n in shape:
        size *= n
    values = st.floats(-largest, largest, allow_subnormal=False)
    flat = st.lists(values, min_size=size, max_size=size)
    return flat.map(lambda v: torch.tensor(v, dtype=torch.float64).view(*shape))


def padded_batches(
    *, vocab: int = VOCAB, max_rows: int = 3, max_tokens: int = TOKENS
) -> st.SearchStrategy[Batch]:
    """Batches whose rows have lengths of their own, each at least one token."""

    @st.composite
    def build(draw: st.DrawFn) -> Batch:
        tokens = draw(st.integers(1, max_tokens))
        lengths = draw(st.lists(st.integers(1, tokens), min_size=1, max_size=max_rows))
        rows_BT = token_rows(len(lengths), tokens + 1, vocab=vocab, seed=draw(st.integers(0, 2**16)))
        keep_BT = torch.arange(tokens)[None, :] < torch.tensor(lengths)[:, None]
        return Batch(rows_BT[:, :-1], rows_BT[:, 1:].masked_fill(~keep_BT, IGNORE), keep_BT)

    return build()


def assert_learns(module: nn.Module, objective: Tensor, except_for: set[int] | None = None) -> None:
    """A gradient that isn't zero reaches every parameter, but those that are frozen (`requires_grad`
    False).
    """
    left_out = except_for or set()
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad and id(p) not in left_out]
    if not named:
        return
    gradients = torch.autograd.grad(objective, [p for _, p in named], allow_unused=True, retain_graph=True)
    dead = [n for (n, _), g in zip(named, gradients, strict=True) if g is None or not g.abs().sum() > 0]
    assert not dead, f"no gradient reaches {', '.join(dead)}"
