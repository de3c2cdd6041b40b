"""The letters data: rows as the paper draws them, and a likelihood that is right."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lvlm.data import LettersData
from lvlm.data.letters import (
    BLANK,
    ENTROPY_NATS,
    EXPECTED_LOG_STARTS,
    LENGTH,
    NOISE,
    NOISE_RATE,
    PROMPT,
    RUN,
    STARTS,
    SYMBOLS,
    nll_nats,
)
from lvlm.errors import UserError
from lvlm.interfaces import IGNORE

SOURCE = LettersData().open()


def rows(count: int, step: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Letters [N] and characters [N, 64] of training rows."""
    batch = SOURCE.train_batch(seed=1, step=step, rows=count)
    return batch.inputs_BT[:, 0].numpy(), batch.targets_BT[:, 1:].numpy()


def enumerated_nll(letter: int, text: NDArray[np.int64]) -> float:
    """-log p by summing over the 57 starts and multiplying over the 64 characters."""
    total = 0.0
    for start in range(STARTS):
        clean = np.full(LENGTH, BLANK)
        clean[start : start + RUN] = letter
        factors = NOISE_RATE * (text == NOISE) + (1 - NOISE_RATE) * (text == clean)
        total += float(factors.prod()) / STARTS
    return -math.log(total) if total else math.inf


def test_rows_are_as_the_paper_draws_them() -> None:
    batch = SOURCE.train_batch(seed=0, step=0, rows=2000)
    assert batch.inputs_BT.shape == (2000, 65) == (2000, SOURCE.params.tokens)
    assert SOURCE.params.vocab == len(SYMBOLS) == 29
    assert (batch.inputs_BT[:, 0] < 26).all()
    assert (batch.inputs_BT[:, 1] == PROMPT).all()
    assert (batch.targets_BT[:, 0] == IGNORE).all()
    assert batch.num_targets == 2000 * LENGTH
    letter_N, text_NL = batch.inputs_BT[:, 0].numpy(), batch.targets_BT[:, 1:].numpy()
    for letter, text in zip(letter_N, text_NL, strict=True):
        places = np.flatnonzero(text == letter)
        assert places.size
        assert places[-1] - places[0] < RUN  # one run
        assert set(text) <= {int(letter), BLANK, NOISE}
        assert not (text[places[0] : places[-1] + 1] == BLANK).any()  # unbroken but for noise


def test_letters_starts_and_noise_are_uniform() -> None:
    letter_N, text_NL = rows(50_000)
    noise_NL = text_NL == NOISE
    deviation = math.sqrt(NOISE_RATE * (1 - NOISE_RATE) / noise_NL.size)
    assert abs(noise_NL.mean() - NOISE_RATE) < 4 * deviation
    inside_NL = text_NL == letter_N[:, None]
    whole_N = inside_NL.sum(1) == RUN  # where the start is plain to see; equally likely for every start
    starts_S = np.bincount(inside_NL[whole_N].argmax(1), minlength=STARTS)
    letters_A = np.bincount(letter_N, minlength=26)
    for counts in (starts_S, letters_A):
        expected = counts.sum() / len(counts)
        chi_squared = ((counts - expected) ** 2 / expected).sum()
        freedom = len(counts) - 1
        assert abs(chi_squared - freedom) < 4 * math.sqrt(2 * freedom)


def test_the_oracle_is_the_enumeration() -> None:
    letter_N, text_NL = rows(300, step=3)
    rng = np.random.default_rng(0)
    text_NL = text_NL.copy()
    text_NL[100:200][rng.random((100, LENGTH)) < 0.1] = BLANK  # mostly impossible
    text_NL[200:250][rng.random((50, LENGTH)) < 0.8] = NOISE  # many starts
    text_NL[250] = NOISE
    text_NL[251:260] = rng.integers(0, len(SYMBOLS), (9, LENGTH))
    expected_N = [enumerated_nll(letter, text) for letter, text in zip(letter_N, text_NL, strict=True)]
    found_N = nll_nats(letter_N, text_NL)
    np.testing.assert_allclose(found_N, expected_N, rtol=1e-12)
    assert np.isfinite(found_N[:100]).all()
    assert 10 < np.isinf(found_N[100:200]).sum() < 100
    assert found_N[250] == pytest.approx(LENGTH * math.log(16))


@given(
    letter=st.integers(0, 25),
    start=st.integers(0, STARTS - 1),
    hidden=st.sets(st.integers(0, LENGTH - 1)),
    wrong=st.dictionaries(st.integers(0, LENGTH - 1), st.integers(0, len(SYMBOLS) - 1), max_size=2),
)
@settings(max_examples=100, deadline=None)
def test_the_oracle_on_any_row(letter: int, start: int, hidden: set[int], wrong: dict[int, int]) -> None:
    text = np.full(LENGTH, BLANK)
    text[start : start + RUN] = letter
    text[sorted(hidden)] = NOISE
    for place, symbol in wrong.items():
        text[place] = symbol
    found = nll_nats(np.array([letter]), text[None])[0]
    assert found == pytest.approx(enumerated_nll(letter, text), rel=1e-12)


def test_the_mean_of_the_oracle_is_the_entropy() -> None:
    assert pytest.approx(19.000389, abs=1e-6) == ENTROPY_NATS
    nll_N = SOURCE.oracle_nll_nats(SOURCE.train_batch(seed=0, step=0, rows=100_000))
    assert abs(nll_N.mean() - ENTROPY_NATS) < 4 * nll_N.std() / math.sqrt(len(nll_N))
    assert 5.1 < nll_N.std() < 5.3


def test_what_the_noise_hides_of_the_start() -> None:
    """E log N, exact but for a run hidden whole, which has probability 16^-8.

    The run can slide right by d where its first d letters and the d blanks behind it are hidden; left
    likewise.
    """

    def capped(
        cap: int,
    ) -> list[float]:  # the probabilities of so many hidden characters in a row, cap at most
        return [NOISE_RATE**n * (1 if n == cap else 1 - NOISE_RATE) for n in range(cap + 1)]

    total = 0.0
    for mask in range(2**RUN - 1):
        bits = f"{mask:0{RUN}b}"
        weight = NOISE_RATE ** bits.count("1") * (1 - NOISE_RATE) ** bits.count("0")
        first, last = bits.index("0"), bits[::-1].index("0")
        for start in range(STARTS):
            behind, before = capped(min(first, STARTS - 1 - start)), capped(min(last, start))
            total += weight * sum(
                p * q * math.log(1 + n + m) for n, p in enumerate(behind) for m, q in enumerate(before)
            )
    assert total / STARTS == pytest.approx(EXPECTED_LOG_STARTS, abs=2e-9)


def test_the_oracle_of_a_batch_sees_its_letter() -> None:
    batch = SOURCE.windows(8).batch
    assert np.isfinite(SOURCE.oracle_nll_nats(batch)).all()
    batch.inputs_BT[:, 0] = (batch.inputs_BT[:, 0] + 1) % 26
    assert np.isinf(SOURCE.oracle_nll_nats(batch)).all()


def test_held_out_rows_are_no_training_rows() -> None:
    validation, test = (SOURCE.windows(500, split).batch.inputs_BT for split in ("validation", "test"))
    train = SOURCE.train_batch(seed=0, step=0, rows=500).inputs_BT
    kept = [{row.numpy().tobytes() for row in part} for part in (validation, test, train)]
    # Rows may repeat by chance (about 1e-7 a pair); streams may not.
    assert len(kept[0] & kept[1]) <= 2
    assert len(kept[0] & kept[2]) <= 2
    assert not torch.equal(validation, train)


def test_the_data_never_changes() -> None:
    """What runs of earlier versions saw is what this version yields."""
    text = SOURCE.params.codec.decode(SOURCE.windows(2).batch.inputs_BT[1].tolist())
    assert text == "O>________!___________________________________________OO!OOOOO___"
    assert SOURCE.windows(4).digest.startswith("808ebf93")


@given(st.text(alphabet=SYMBOLS))
@settings(deadline=None)
def test_codec_round_trip(text: str) -> None:
    codec = LettersData().codec
    assert codec.decode(codec.encode(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("K>é", r"character 'é' at position 2; known: A-Z, '_', '!' and '>'$"),
        ("k>", r"'k' at position 0.*mean 'K'\?"),
    ],
)
def test_codec_names_what_it_does_not_know(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LettersData().codec.encode(text)


def test_one_row_does_not_put_its_ignored_target_into_its_inputs() -> None:
    batch = LettersData().open().train_batch(seed=0, step=0, rows=1)
    assert (batch.inputs_BT >= 0).all()
    assert (batch.targets_BT[:, 0] == IGNORE).all()
