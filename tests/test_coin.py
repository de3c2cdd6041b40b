"""The coin data: rows of one decision, and a likelihood that is right."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lvlm
from lvlm.data import CoinData
from lvlm.data.coin import entropy_nats, nll_nats
from lvlm.errors import UserError
from lvlm.interfaces import Batch

NOISES = st.floats(0.01, 0.49)


@given(NOISES, st.lists(st.integers(0, 1), min_size=1, max_size=30))
def test_the_oracle_is_the_sum_over_both_sides(noise: float, bits: list[int]) -> None:
    by_side = [math.prod(1 - noise if bit == side else noise for bit in bits) / 2 for side in (0, 1)]
    found = nll_nats(np.array([sum(bits)]), len(bits), noise)
    assert found[0] == pytest.approx(-math.log(sum(by_side)))


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(1, 9), st.integers(1, 30))
def test_fewer_rows_are_a_prefix_of_more(seed: int, step: int, few: int, length: int) -> None:
    source = CoinData(length=length).open()
    short, long = (source.train_batch(seed=seed, step=step, rows=rows) for rows in (few, 10))
    assert torch.equal(short.inputs_BT, long.inputs_BT[:few])
    assert torch.equal(short.targets_BT, long.targets_BT[:few])


@given(NOISES, st.integers(1, 8))
def test_the_probabilities_of_all_rows_sum_to_one(noise: float, length: int) -> None:
    rows = torch.tensor(list(itertools.product((0, 1), repeat=length)))
    source = CoinData(length=length, noise=noise).open()
    nats = source.oracle_nll_nats(Batch(rows, rows, rows >= 0))
    assert np.exp(-nats).sum() == pytest.approx(1)
    assert (np.exp(-nats) * nats).sum() == pytest.approx(entropy_nats(length, noise))


def test_long_rows_do_not_underflow() -> None:
    """Each side's probability is far below the smallest float; with all bits alike one side is all there
    is.
    """
    nats = nll_nats(np.array([0, 10_000, 20_000]), 20_000, 0.01)
    alike = math.log(2) - 20_000 * math.log1p(-0.01)
    assert nats == pytest.approx([alike, -10_000 * (math.log(0.01) + math.log1p(-0.01)), alike])


def test_rows_have_the_entropy_that_is_said() -> None:
    source = CoinData().open()
    batch = source.windows(20_000, "test").batch
    assert batch.inputs_BT.shape == (20_000, 64)
    assert (batch.inputs_BT[:, 0] == 2).all()
    assert torch.equal(batch.inputs_BT[:, 1:], batch.targets_BT[:, :-1])
    nats = source.oracle_nll_nats(batch)
    error = nats.std() / math.sqrt(len(nats))
    assert abs(nats.mean() - entropy_nats(64, 0.1)) < 4 * error
    ones = batch.targets_BT.double().mean(1)
    assert abs((ones > 0.5).double().mean().item() - 0.5) < 0.02


def test_splits_differ() -> None:
    source = CoinData().open()
    rows = [source.train_batch(seed=0, step=0, rows=8).inputs_BT]
    rows += [source.windows(8, split).batch.inputs_BT for split in ("validation", "test")]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(rows, 2))
    assert CoinData(noise=0.2).open().fingerprint != source.fingerprint


def test_the_data_never_changes() -> None:
    """What runs of earlier versions saw is what this version yields."""
    windows = CoinData().open().windows(4)
    text = CoinData().codec.decode(windows.batch.inputs_BT[1].tolist())
    assert text == ">000000010110000000000000000000000000000000000000000000001000000"
    assert windows.digest.startswith("ae043d49")


def test_a_row_that_is_no_row_is_impossible() -> None:
    source = CoinData(length=2).open()
    rows = torch.tensor([[0, 1], [2, 1]])
    assert np.isinf(source.oracle_nll_nats(Batch(rows, rows, rows >= 0))).tolist() == [False, True]


def test_a_character_that_is_no_symbol_is_named() -> None:
    with pytest.raises(UserError, match="no symbol for the character '2' at position 1"):
        CoinData().codec.encode("02")
    assert CoinData().codec.decode(CoinData().codec.encode(">01")) == ">01"


@pytest.mark.parametrize("noise", ["-0.1", "0.0", "0.5", "0.7"])
def test_noise_that_hides_the_coin_is_refused_with_the_reason(noise: str) -> None:
    with pytest.raises(UserError, match=r"data\.noise: \S+ is not above 0 and below 0\.5: .*no trace"):
        lvlm.check("coin", f"data.noise={noise}")


def test_the_schema_knows_the_limits_of_noise() -> None:
    noise = CoinData.model_json_schema()["properties"]["noise"]
    assert (noise["exclusiveMinimum"], noise["exclusiveMaximum"]) == (0, 0.5)


@pytest.mark.slow
def test_one_bit_a_row_reaches_the_entropy_and_a_control_without_it_does_not(tmp_path: Path) -> None:
    excess = {}
    for codes in ("posterior", "prior", "shuffled"):
        lvlm.train("coin_bit", tmp_path / codes, f"train.codes={codes}", "train.steps=250")
        found = lvlm.evaluate(tmp_path / codes)
        excess[codes] = found["excess_nats_per_sequence"]["nll_exact"]["mean"]
        gain = (
            found["estimates"]["ce_prior"]["nats_per_token"]
            - found["estimates"]["ce_posterior"]["nats_per_token"]
        )
        assert (gain > 0.05) == (codes == "posterior"), (codes, gain)
    assert excess["posterior"] < 0.1
