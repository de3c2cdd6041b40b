"""Ways into the stack: every port at every block, equal to the baseline at step 0, cached as uncached, refused
where nobody reads it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lvlm.errors import UserError
from lvlm.interfaces import BlockInjectionParams
from lvlm.model.latent_lm import LatentLM
from lvlm.nn import MemoryAttention
from lvlm.recipe.assemble import assemble, count_parameters
from lvlm.recipe.read import read_recipe
from lvlm.registry.registry import Registry
from lvlm.testing import Cross, build_cross, check_kind, check_model, randomise, token_rows
from lvlm_baseline import DecoderParams
from lvlm_free import AddParams, BinaryParams, KVParams, LearnedQueryParams
from lvlm_gptvae import BidirectionalParams, CrossAttentionParams, FilmParams, GaussianParams, LogitsParams

REGISTRY = Registry.load(strict=True)
TOKEN = Cross(LearnedQueryParams(), BinaryParams(bits=3), KVParams())
SEQUENCE = Cross(BidirectionalParams(per="sequence"), GaussianParams(dim=3), KVParams())
INTO_BLOCKS = [
    kind.params
    for kind in REGISTRY.kinds["injection"].values()
    if issubclass(kind.params, BlockInjectionParams)
]
REACHES: list[dict[str, Any]] = [
    {"layers": "all"},
    {"layers": "all", "shared": False},
    {"layers": [2]},
    {"layers": [1, 2], "shared": False},
]


def crossed(params: Any) -> list[Cross]:
    """The injection with a slot per sequence, and with one per token where it may."""
    both = [replace(SEQUENCE, injection=params)]
    return both if params.needs_fixed_slots else [*both, replace(TOKEN, injection=params)]


REACHING = [
    cross
    for kind in INTO_BLOCKS
    for reach in REACHES
    for cross in crossed(kind.example().model_copy(update=reach))
]
NAMES = [f"{cross}-{cross.injection.layers}-{cross.injection.shared}" for cross in REACHING]


def test_all_injections_into_blocks_are_here() -> None:
    names = {kind.kind_name() for kind in INTO_BLOCKS}
    assert {"kv", "add", "film", "cross_attention"} <= names


@pytest.mark.parametrize(
    "cross",
    [
        pytest.param(one, id=name, marks=() if number % 4 in (1, 3) else pytest.mark.slow)
        for number, (one, name) in enumerate(zip(REACHING, NAMES, strict=True))
    ],
)
def test_a_code_may_enter_any_block_above_the_seam(cross: Cross) -> None:
    check_model(build_cross(cross, REGISTRY))


@pytest.mark.parametrize("cross", [*REACHING, *crossed(LogitsParams())], ids=str)
def test_every_reach_equals_the_baseline_bit_for_bit_at_step_0(cross: Cross) -> None:
    recipe = read_recipe(cross.recipe(), registry=REGISTRY).recipe
    model, baseline = assemble(recipe), LatentLM(assemble(recipe).backbone)
    tokens_BT = token_rows()
    for z in ("posterior", "prior"):
        assert torch.equal(model(tokens_BT, z=z).logits_BTV, baseline(tokens_BT).logits_BTV)


@pytest.mark.parametrize("kind", INTO_BLOCKS, ids=lambda kind: kind.kind_name())
def test_a_code_moves_the_blocks_that_it_enters_and_no_other(kind: Any) -> None:
    """What comes out of a block below the first that the code enters doesn't move with the code."""
    params = kind.example().model_copy(update={"layers": [2]})
    model = build_cross(crossed(params)[0], REGISTRY).eval()
    seen: dict[int, list[torch.Tensor]] = {0: [], 1: [], 2: []}
    for number, block in enumerate(model.backbone.blocks):
        block.register_forward_hook(lambda *args, number=number: seen[number].append(args[-1].detach()))
    tokens_BT = token_rows(1)
    for code in (0.5, -0.7):
        model(tokens_BT, z=torch.full((1, 1, 3), code, dtype=torch.float64))
    moved = {number: not torch.equal(*outputs) for number, outputs in seen.items()}
    assert moved == {0: False, 1: False, 2: True}


def test_blocks_share_an_embedding_or_have_their_own() -> None:
    params = AddParams(layers="all", shared=False)
    own = build_cross(replace(SEQUENCE, injection=params), REGISTRY)
    shared = build_cross(replace(SEQUENCE, injection=AddParams(layers="all")), REGISTRY)
    assert own.latent is not None and shared.latent is not None
    assert own.latent.quantizer.embedding_dim == 2 * shared.latent.quantizer.embedding_dim == 2 * 16


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("[0]", "block 0 can't be entered: the seam is 1, and the last block is 2; name blocks from 1 to 2"),
        ("[1, 3]", "block 3 can't be entered"),
        ("[2, 2]", "a block is named twice in [2, 2]"),
        ("[]", "at least 1 item"),
        ("each", "Input should be 'seam' or 'all'"),
    ],
)
def test_blocks_that_do_not_exist_are_told(layers: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        read_recipe(TOKEN.recipe(), [f"model.injection.layers={layers}"], registry=REGISTRY)
    assert "model.injection.layers" in str(refused.value)
    assert message in str(refused.value)


class DeafParams(DecoderParams):
    """A decoder that reads what every backbone reads."""

    kind: Any = "deaf"
    ports = frozenset({"prefix", "kv", "add"})


@pytest.mark.parametrize(
    ("injection", "port"),
    [(FilmParams(), "scale_shift"), (CrossAttentionParams(), "memory"), (LogitsParams(), "logits")],
    ids=lambda value: str(value),
)
def test_a_port_that_the_backbone_does_not_read_is_refused(
    injection: Any, port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DecoderParams, "ports", DeafParams.ports)
    with pytest.raises(UserError) as refused:
        read_recipe(replace(SEQUENCE, injection=injection).recipe(), registry=REGISTRY)
    said = f"injection {injection.kind_name()!r} uses the port {port}, but backbone 'decoder' reads add, kv, prefix"
    assert said in str(refused.value)


def test_a_hidden_memory_leaves_no_trace_and_an_empty_one_is_nothing() -> None:
    layer = randomise(MemoryAttention(8, 2, 1, norm_eps=1e-5).double())
    x_BTD, memory_BMD = torch.randn(2, 3, 8, dtype=torch.float64), torch.randn(2, 4, 8, dtype=torch.float64)
    key_MD = torch.randn(4, 8, dtype=torch.float64)
    hidden = layer(x_BTD, memory_BMD, key_MD, torch.tensor([False, True]), None, fill=True)
    assert torch.equal(hidden[0], torch.zeros(3, 8, dtype=torch.float64))
    torch.testing.assert_close(hidden[1], layer(x_BTD, memory_BMD, key_MD, None, None, fill=True)[1])
    assert torch.equal(layer(x_BTD, 0 * memory_BMD, key_MD, None, None, fill=True), 0 * x_BTD)


def test_rows_of_a_memory_learn_apart() -> None:
    """Equal zeros at the start, they would stay equal if their names didn't tell them apart."""
    torch.manual_seed(0)
    cross = replace(SEQUENCE, injection=CrossAttentionParams(rows=2))
    model = assemble(read_recipe(cross.recipe(), registry=REGISTRY).recipe)
    model(token_rows()).logits_BTV.square().sum().backward()
    assert model.latent is not None
    one, other = model.latent.quantizer.embedding.weight.grad.chunk(2)
    assert (one - other).abs().max() > 0.001 * one.abs().max() > 0


def test_the_weights_that_read_a_memory_are_the_latents() -> None:
    with_memory, without = (
        count_parameters(build_cross(replace(SEQUENCE, injection=injection), REGISTRY))
        for injection in (CrossAttentionParams(), KVParams())
    )
    assert with_memory.backbone == without.backbone
    attention = 16 * 16 * 2 + 16 * 8 * 2 + 16  # queries and output, keys and values of 2 heads of 4, a norm
    assert with_memory.latent - without.latent == attention + 16  # and the name of the row


@pytest.mark.parametrize("ports", ["memory", ("memory",), frozenset({"memories"}), None])
def test_ports_that_are_no_set_of_ports_are_a_broken_plugin(ports: Any, tmp_path: Any) -> None:
    source = f"""
from lvlm.hookspecs import hookimpl
from lvlm_free import AddParams
from typing import Any, ClassVar, Literal

class MineParams(AddParams):
    '''Mine.'''
    kind: Literal["mine"] = "mine"
    ports: ClassVar[Any] = {ports!r}

    def build(self, *, width, slots):
        return super().build(width=width, slots=slots)

@hookimpl
def register_injections(register):
    register(MineParams)
"""
    file = tmp_path / "mine.py"
    file.write_text(source)
    with pytest.raises(
        UserError, match="MineParams: ports is .* it is a frozenset of some of prefix, kv, add"
    ):
        Registry.load(files=[str(file)])


def test_an_injection_names_the_port_that_it_uses() -> None:
    class Silent(FilmParams):
        """Modulation that doesn't say so."""

        ports = frozenset()

    with pytest.raises(AssertionError, match="it uses .'scale_shift'.: say so on the params"):
        check_kind(Silent())
