"""Noise by row: what a row draws in training is its own, however the rows of a step are divided."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lvlm
from lvlm.errors import UserError
from lvlm.interfaces import RowGenerator, exponential, normal, uniform
from lvlm.model.latent_path import exchanged
from lvlm.model.noise import noise_seed
from lvlm.system.world import World
from lvlm.training.trainer import Trainer
from tests.tiny import tiny, write_text

CPU = torch.device("cpu")
DRAWS: tuple[Callable[..., Tensor], ...] = (uniform, normal, exponential)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


# ------------------------------------------------------------------------------------------------- draws


def test_bits_are_those_of_splitmix64() -> None:
    """The first numbers of its reference implementation for the seed 1234567."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    found = RowGenerator([1234567]).bits((1, 5)).numpy().view(np.uint64)[0]
    assert found.tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("draw", "moments", "lowest"),
    [
        (uniform, [1 / 2, 1 / 3, 1 / 4, 1 / 5], 0.0),
        (normal, [0.0, 1.0, 0.0, 3.0], -math.inf),
        (exponential, [1.0, 2.0, 6.0, 24.0], 1e-30),
    ],
)
def test_numbers_have_their_moments(
    draw: Callable[..., Tensor], moments: list[float], lowest: float, dtype: torch.dtype
) -> None:
    """Each within 5 standard errors, over rows of neighbouring places, and none of two rows is correlated."""
    rows = RowGenerator([noise_seed(0, 0, row) for row in range(100)])
    drawn = draw((100, 2_000), rows, device=CPU, dtype=dtype)
    assert drawn.dtype == dtype
    assert drawn.isfinite().all()
    assert drawn.min() >= lowest
    numbers = drawn.double()
    for power, expected in enumerate(moments, start=1):
        powers = numbers**power
        assert abs(float(powers.mean()) - expected) < 5 * float(powers.std()) / math.sqrt(powers.numel())
    between = torch.corrcoef(numbers) - torch.eye(100)
    assert between.abs().max() < 5.5 / math.sqrt(2_000)
    along = torch.corrcoef(torch.stack((numbers[:, :-1].flatten(), numbers[:, 1:].flatten())))[0, 1]
    assert abs(float(along)) < 5 / math.sqrt(numbers.numel())


@pytest.mark.parametrize("draw", DRAWS)
def test_a_row_draws_the_same_alone(draw: Callable[..., Tensor]) -> None:
    seeds = [noise_seed(3, 1, row) for row in range(4)]
    whole = RowGenerator(seeds)
    first, second = (draw((4, 3, 2), whole, device=CPU) for _ in range(2))
    assert not torch.equal(first, second)
    for rows in (slice(0, 1), slice(1, 4)):
        part = RowGenerator(seeds[rows])
        assert torch.equal(draw((len(seeds[rows]), 3, 2), part, device=CPU), first[rows])
        assert torch.equal(draw((len(seeds[rows]), 3, 2), part, device=CPU), second[rows])


@pytest.mark.parametrize("draw", DRAWS)
def test_other_generators_draw_as_torch_does(draw: Callable[..., Tensor]) -> None:
    one, two = (draw((2, 3), torch.Generator().manual_seed(5), device=CPU) for _ in range(2))
    assert torch.equal(one, two)
    torch.manual_seed(5)
    assert torch.equal(draw((2, 3), None, device=CPU), one)


def test_another_number_of_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"draws for 2 rows: the shape \[3, 4\]"):
        uniform((3, 4), RowGenerator([1, 2]), device=CPU)


def test_the_global_random_state_stays_as_it_is() -> None:
    state = torch.get_rng_state()
    normal((2, 3), RowGenerator([1, 2]), device=CPU)
    assert torch.equal(state, torch.get_rng_state())


# ------------------------------------------------------------------------------------------ shuffled codes


@pytest.mark.parametrize(("rows", "expected"), [(1, "0"), (2, "10"), (3, "201"), (4, "1032"), (7, "1032645")])
def test_rows_exchange_in_pairs(rows: int, expected: str) -> None:
    assert "".join(map(str, exchanged(torch.arange(rows)).tolist())) == expected


def test_odd_micro_batches_of_shuffled_codes_are_refused(text: Path, tmp_path: Path) -> None:
    shuffled = {"codes": "shuffled", "rows": 6}
    with pytest.raises(UserError, match="micro_rows 3 is odd, and codes: shuffled exchanges"):
        lvlm.check(tiny("free", text, train=shuffled | {"micro_rows": 3}))
    resolved = lvlm.check(tiny("free", text, train=shuffled)).resolved
    with pytest.raises(UserError, match="make train.rows 6 a multiple of 4"):
        Trainer(resolved, tmp_path / "run", World(rank=0, ranks=2))


# --------------------------------------------------------------------------------------------- whole steps

DROPOUT = {"latent_dropout": 0.5, "token_dropout": 0.3}
NOISY = {"quantizer": {"embedding_std": 0.5}}  # so that codes show in the loss of the first step
STEPS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "free": ("free", NOISY, {}),
    "free bitwise": ("free", {"quantizer": {"embedding_std": 0.5, "estimator": "bitwise"}}, {}),
    "free gumbel": ("free", {"quantizer": {"embedding_std": 0.5, "estimator": "gumbel"}}, {}),
    "free of the prior": ("free", NOISY, {"codes": "prior"}),
    "free shuffled": ("free", NOISY, {"codes": "shuffled"}),
    "free with dropout": ("free", NOISY | DROPOUT, {}),
    "gptvae": ("gptvae", NOISY | DROPOUT, {}),
    "gptvae of a learned prior": ("gptvae", NOISY | {"prior": "learned"}, {"codes": "prior"}),
    "codebook": ("free", {"quantizer": {"kind": "vq", "codes": 9, "dim": 3, "embedding_std": 0.5}}, {}),
    "categorical": ("free", {"quantizer": {"kind": "categorical", "codes": 5, "embedding_std": 0.5}}, {}),
    "signs": ("free", {"quantizer": {"kind": "bsq", "bits": 3, "embedding_std": 0.5}}, {}),
    "directions": ("gptvae", {"quantizer": {"kind": "vmf", "dim": 3, "embedding_std": 0.5}} | DROPOUT, {}),
    "codes of a codebook's prior": (
        "free",
        {"quantizer": {"kind": "fsq", "levels": [4, 3], "embedding_std": 0.5}},
        {"codes": "prior"},
    ),
}


def first_steps(
    name: str, micro_rows: int | None, text: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[dict[str, float]], list[Tensor]]:
    """Numbers of two steps of 8 rows, and the gradients of the first."""
    arm, model, train = STEPS[name]
    recipe = tiny(arm, text, model=model, train={"rows": 8, **train})
    trainer = Trainer(lvlm.check(recipe).resolved, out)
    trainer.spec = trainer.spec.model_copy(update={"micro_rows": micro_rows})  # ragged ones, too
    trainer.model.train()
    gradients: list[Tensor] = []
    clip = torch.nn.utils.clip_grad_norm_

    def keeping(parameters: list[torch.nn.Parameter], *args: Any) -> Tensor:
        gradients.extend([p.grad.clone() for p in parameters if p.grad is not None])
        return clip(parameters, *args)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", keeping)
        numbers = [trainer._train_step([])[0]]
    trainer.step += 1
    return [*numbers, trainer._train_step([])[0]], gradients


@pytest.mark.parametrize("name", STEPS)
def test_micro_rows_change_nothing_but_rounding(
    name: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "codebook" in name:
        pytest.importorskip("vector_quantize_pytorch")
    whole, gradients = first_steps(name, None, text, tmp_path / "whole", monkeypatch)
    for micro_rows in (2, 6) if "shuffled" in name else (1, 3):
        parts, found = first_steps(name, micro_rows, text, tmp_path / str(micro_rows), monkeypatch)
        for one, other in zip(whole, parts, strict=True):
            assert other == pytest.approx(one, rel=1e-5, abs=1e-5)
        for one_grad, other_grad in zip(gradients, found, strict=True):
            torch.testing.assert_close(other_grad, one_grad, rtol=1e-4, atol=1e-6)
    assert any(gradient.abs().max() > 1e-4 for gradient in gradients)


def test_steps_seeds_and_rows_have_noise_of_their_own() -> None:
    seeds = {noise_seed(seed, step, row) for seed in range(3) for step in range(20) for row in range(20)}
    assert len(seeds) == 3 * 20 * 20
    assert all(0 <= seed < 2**63 for seed in seeds)
