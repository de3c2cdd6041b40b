"""The conformance checks themselves: a stranger's honest parts pass, and a broken promise is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import setitem
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lvlm
from lvlm.interfaces import Conditioning, Slots
from lvlm.registry.registry import Registry
from lvlm.runs.checkpoint import Checkpoints, load_trainer_state
from lvlm.runs.weights import stored_optimiser
from lvlm.testing import check_kind, conformance, crosses
from lvlm_baseline.cross_entropy import CrossEntropy, CrossEntropyParams
from lvlm_free.binary import Binary, BinaryParams
from lvlm_free.kv import KVParams
from lvlm_gptvae.bidirectional import BidirectionalParams
from lvlm_gptvae.gaussian import Gaussian, GaussianParams
from tests.test_parallel import assert_same_training, finish, launch
from tests.tiny import before_step, logged, steps_of, tiny, weights, write_text

STRANGERS = Path(__file__).parent / "strangers"
ALIBI, TWO_AHEAD = str(STRANGERS / "alibi.py"), str(STRANGERS / "two_ahead.py")

test_a_strangers_backbone_in_its_crosses = conformance(files=[ALIBI])


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


# --------------------------------------------------------------------------------------------- every backbone


def test_another_backbone_has_few_crosses_and_all_that_there_is() -> None:
    alone, both = Registry.load(), Registry.load(files=[ALIBI])
    before, after = crosses(alone)[0], crosses(both)[0]
    assert after[: len(before)] == before, "a plugin's backbone changes the crosses of the others"
    added = after[len(before) :]
    assert {cross.backbone.kind_name() for cross in added if cross.backbone} == {"alibi"}
    assert len(added) < len(before) / 4
    for role in ("encoder", "quantizer", "injection"):
        unread = {"film", "cross_attention", "logits"} if role == "injection" else set()  # ports of others
        assert {getattr(cross, role).kind_name() for cross in added} == both.kinds[role].keys() - unread
    for per in ("token", 3, "sequence"):
        assert {c.encoder.kind_name() for c in added if c.encoder.per == per} == both.kinds["encoder"].keys()
    assert {cross.prior for cross in added} == {"fixed", "learned"}


# --------------------------------------------------------------------------- losses with layers, frozen parts


@pytest.mark.parametrize("role_and_kind", [("loss", "two_ahead"), ("encoder", "frozen")])
def test_a_loss_with_a_head_and_a_frozen_encoder_pass(role_and_kind: tuple[str, str]) -> None:
    check_kind(Registry.load(files=[TWO_AHEAD]).get(*role_and_kind).params.example())


def recipe_of(text: Path, **train: Any) -> dict[str, Any]:
    """FREE with the frozen encoder and the loss with a head."""
    changes: dict[str, Any] = {"model": {"encoder": {"kind": "frozen"}}, "plugins": [TWO_AHEAD]}
    recipe = tiny("free", text, **changes, train={"steps": 3, "micro_rows": 1, "evaluate_every": 3, **train})
    return recipe | {"loss": {"kind": "two_ahead"}}


def heads(run: Path) -> Tensor:
    """The loss's head of the newest checkpoint."""
    head: Tensor = load_trainer_state(Checkpoints(run).newest())["loss"]["head.weight"]
    return head


def test_a_loss_with_a_head_trains_with_a_frozen_encoder_and_resumes_to_the_bit(
    text: Path, tmp_path: Path
) -> None:
    run = lvlm.train(recipe_of(text), tmp_path / "run")
    assert logged(run)[-1]["two_ahead"] < logged(run)[0]["two_ahead"]
    stored = stored_optimiser(Checkpoints(run).newest())
    assert set(stored["loss.0"]) == {"step", "exp_avg", "exp_avg_sq"}
    assert "latent.encoder.table.weight" not in stored, "the optimiser has a frozen parameter"
    untrained = lvlm.build(recipe_of(text)).state_dict()
    after = weights(run, plugin_files=[TWO_AHEAD])
    assert torch.equal(after["latent.encoder.table.weight"], untrained["latent.encoder.table.weight"])
    assert not torch.equal(after["latent.readout.weight"], untrained["latent.readout.weight"])

    other = tmp_path / "other"

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 2, stop)
        with pytest.raises(KeyboardInterrupt):
            lvlm.train(recipe_of(text, checkpoint_every=1), other)
    assert steps_of(other)[-1] == 2
    lvlm.train(None, other, resume=True, plugin_files=[TWO_AHEAD])
    assert logged(other) == logged(run)
    assert torch.equal(heads(other), heads(run))
    assert all(
        torch.equal(value, after[name]) for name, value in weights(other, plugin_files=[TWO_AHEAD]).items()
    )


@pytest.mark.slow
def test_a_loss_with_a_head_is_divided_over_processes(text: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    finish(launch(1, recipe_of(text), one))
    finish(launch(2, recipe_of(text, checkpoint_every=2), two))
    assert_same_training(one, two, plugin_files=[TWO_AHEAD])
    torch.testing.assert_close(heads(one), heads(two), rtol=0, atol=2e-5)


# -------------------------------------------------------------------------------------------- broken promises


@dataclass
class Gated(Conditioning):
    """With a port that the core doesn't know."""

    gate_BTD: Tensor | None = None


class Unheard(KVParams):
    """An injection into a port that nobody reads."""

    def build(self, *, width: int, slots: Slots) -> Any:
        """Keys and values, under another name."""
        injection = super().build(width=width, slots=slots)
        forward = injection.forward

        def elsewhere(*args: Any) -> Conditioning:
            port = forward(*args)
            return Gated(gate_BTD=port.kv_BTD if port.kv_BTD is not None else port.kv_normed_BTD)

        injection.forward = elsewhere
        return injection


class Writing(BidirectionalParams):
    """An encoder that writes into the hidden."""

    def build(self, *, backbone: Any) -> Any:
        """The encoder, with a hook that zeroes what it reads."""
        encoder = super().build(backbone=backbone)
        encoder.register_forward_pre_hook(lambda _, given: setitem(given[1], ..., 0.0))
        return encoder


class Keeping(BidirectionalParams):
    """An encoder that keeps the mask of the first call, as a cache might, and is wrong if that changes."""

    def build(self, *, backbone: Any) -> Any:
        """The encoder, with a hook that looks at what it kept."""
        encoder = super().build(backbone=backbone)
        kept: list[Tensor] = []

        def look(_: Any, given: tuple[Tensor, ...]) -> None:
            kept.append(given[2])
            assert kept[0].all(), "the first mask, of which all was real, has changed"

        encoder.register_forward_pre_hook(look)
        return encoder


class Deaf(CrossEntropyParams):
    """A loss with a parameter that nothing reaches."""

    def build(self, *, width: int, vocab: int) -> CrossEntropy:
        """Cross-entropy, and a matrix."""
        loss = super().build()
        loss.unused = torch.nn.Parameter(torch.zeros(width, vocab))
        return loss


def lying(base: Callable[..., Any], change: Callable[[Any], None]) -> Any:
    """Params of a quantizer that is changed after it was built."""

    class Lying(type(base())):  # type: ignore[misc]
        """A quantizer that says what isn't so."""

        def build(self, *, embedding_dim: int) -> Any:
            quantizer = super().build(embedding_dim=embedding_dim)
            change(quantizer)
            return quantizer

    return Lying(**base().model_dump())


def binary() -> BinaryParams:
    return BinaryParams(bits=3)


def gaussian() -> GaussianParams:
    return GaussianParams(dim=3)


def setting(**values: Any) -> Callable[[Any], None]:
    def change(quantizer: Binary | Gaussian) -> None:
        for name, value in values.items():
            setattr(quantizer, name, value)

    return change


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (Unheard(), "the code has no effect on the logits"),
        (Writing(), "the encoder writes into hidden_BTD"),
        (Deaf(), "no gradient reaches unused"),
        (lying(gaussian, setting(code_dim=None, units=())), "sets num_codes .* or code_dim"),
        (lying(gaussian, setting(code_dim=4, units=())), r"code_dim is 4, the codes are \[4, 5, 3\]"),
        (lying(gaussian, setting(units=("a", "b"))), "the units of a vector are its coordinates"),
        (lying(gaussian, setting(units=("a", "b", "a"))), "units have names of their own"),
        (lying(gaussian, setting(with_unit_changed=lambda codes, _: -codes)), "changes other units"),
        (
            lying(gaussian, setting(with_unit_changed=lambda codes, _: codes.neg_())),
            "writes into the codes",
        ),
        (lying(binary, setting(units=("a", "b"))), "8 codes are not those of 2 bits"),
        (lying(binary, setting(code_dim=3)), "set one of them"),
        (lying(binary, setting(with_unit_changed=lambda codes, _: codes)), "isn't changed in every slot"),
        (
            lying(binary, setting(with_unit_changed=lambda codes, unit: codes ^ (3 << unit) & 7)),
            "changes other units",
        ),
    ],
)
def test_a_broken_promise_is_named(params: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_kind(params)


def test_an_encoder_may_keep_what_it_is_given() -> None:
    check_kind(Keeping())
