"""Steering: statistics by hand, and models that certainly read their codes or certainly don't."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, f_oneway
from torch import Tensor, nn

import lvlm
from lvlm.data.attributes import Attribute, text_attributes
from lvlm.data.coin import CoinData
from lvlm.data.letters import LettersData, starts
from lvlm.data.python import PythonData
from lvlm.data.source import DataParams
from lvlm.data.text import TextData
from lvlm.errors import UserError
from lvlm.interfaces import Encoder, Slots
from lvlm.model.latent_lm import LatentLM
from lvlm.report import ReportRun, read_report, render_report, steering
from lvlm.report.tables import Cell
from lvlm.statistics import (
    Interval,
    clopper_pearson,
    group_interval,
    paired_interval,
    pseudo_values,
    window_interval,
)
from lvlm.statistics.agreement import icc, kappa, mean, minus
from lvlm.statistics.diversity import distinct, self_bleu
from lvlm.steering.control import HIDDEN, Gate, read_control
from lvlm.steering.measure import differ, measure, same, share_of, spread
from lvlm.steering.probe import Prober, Prompts
from lvlm.steering.record import Steering, read_steering
from tests.tiny import land_better_checkpoint, steps_of, tiny, write_text

CODEC = LettersData().codec


def value(statistic: Any, groups: int) -> float:
    """The statistic of all groups once."""
    return float(statistic(np.ones((1, groups)))[0])


# ---- statistics
# -------------------------------------------------------------------------------------------------


def test_icc_by_hand() -> None:
    # Shrout and Fleiss 1979, table 2: six targets, four judges; their ICC(1,1) is .17
    table = np.array(
        [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float
    )
    assert value(icc(table), 6) == pytest.approx(0.1657, abs=1e-4)


def test_icc_agrees_with_the_anova_of_scipy_also_in_unequal_groups() -> None:
    rng = np.random.default_rng(0)
    values_GM = rng.normal(size=(9, 1)) + rng.normal(size=(9, 5))
    values_GM[0, 3:] = values_GM[4, 1:] = np.nan  # of one group a single member is left, which tells nothing
    groups = [row[~np.isnan(row)] for index, row in enumerate(values_GM) if index != 4]
    sizes = np.array([len(group) for group in groups])
    f_ratio = f_oneway(*groups).statistic
    size = (sizes.sum() - (sizes**2).sum() / sizes.sum()) / (len(sizes) - 1)
    assert value(icc(values_GM), 9) == pytest.approx((f_ratio - 1) / (f_ratio + size - 1))


def test_icc_is_one_for_equal_members_and_about_zero_for_independent_ones() -> None:
    rng = np.random.default_rng(1)
    fixed = group_interval(icc(np.repeat(rng.integers(57, size=(50, 1)), 6, axis=1).astype(float)))
    assert fixed == Interval(value=1.0, low=1.0, high=1.0)
    assert fixed.above_zero
    free = group_interval(icc(rng.integers(57, size=(200, 6)).astype(float)))
    assert free is not None
    assert free.value == pytest.approx(0, abs=0.05)
    assert not free.without_zero


def test_where_nothing_varies_there_is_no_icc() -> None:
    for nothing in (icc(np.full((4, 3), 7.0)), icc(np.full((4, 3), np.nan))):
        assert group_interval(nothing) is None
        assert pseudo_values(nothing) is None


def test_what_one_group_carries_has_no_ends() -> None:
    """Without the one group that differs nothing varies, so that nothing is known of other groups."""
    values_GM = np.full((4, 3), 7.0)
    values_GM[2] = [8.0, 8.0, 9.0]
    found = group_interval(icc(values_GM))
    assert found is not None
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert not found.bounded
    assert group_interval(mean(np.array([np.nan, 3.0]))) == Interval(3.0, -math.inf, math.inf)


def test_pseudo_values_by_hand() -> None:
    """Agreement of four groups: theta is of all, the others of three each. 4 theta - 3 theta_-g, less its
    mean's excess over theta.
    """
    flags = np.random.default_rng(7).random((4, 3, 10)) < 0.3
    found_G = pseudo_values(kappa(flags))
    assert found_G is not None
    theta = value(kappa(flags), 4)
    tukey_G = np.array([4 * theta - 3 * value(kappa(np.delete(flags, g, 0)), 3) for g in range(4)])
    assert found_G == pytest.approx(tukey_G - tukey_G.mean() + theta)
    assert found_G.mean() == pytest.approx(theta)


def test_pseudo_values_of_a_mean_are_the_numbers_and_groups_without_one_keep_their_places() -> None:
    values_G = np.array([0.5, np.nan, -1.0, 2.0])
    assert pseudo_values(mean(values_G)) == pytest.approx(values_G, nan_ok=True)
    found = group_interval(mean(values_G))
    wanted = window_interval([0.5, -1.0, 2.0])
    assert found is not None
    assert vars(found) == pytest.approx(vars(wanted))


def test_a_paired_difference_is_of_the_groups_that_have_both() -> None:
    one, other = np.array([1.0, 2.0, np.nan, 5.0]), np.array([0.0, np.nan, 7.0, 1.0])
    assert minus(mean(one), mean(other)).value == pytest.approx(2.5)
    rng = np.random.default_rng(8)
    one_GM, other_GM = rng.normal(size=(2, 6, 3)) + rng.normal(size=(2, 6, 1))
    one_GM[0, 1:] = other_GM[3] = np.nan
    both = [1, 2, 4, 5]
    wanted = value(icc(one_GM[both]), 4) - value(icc(other_GM[both]), 4)
    assert minus(icc(one_GM), icc(other_GM)).value == pytest.approx(wanted)
    found_G = pseudo_values(minus(icc(one_GM), icc(other_GM)))
    assert found_G is not None
    assert np.isnan(found_G).nonzero()[0].tolist() == [0, 3]


def test_leaving_out_in_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = np.random.default_rng(9).random((7, 3, 10)) < 0.3
    whole = pseudo_values(kappa(flags))
    monkeypatch.setattr("lvlm.statistics.jackknife._WEIGHTS_IN_MEMORY", 15)
    assert pseudo_values(kappa(flags)) == pytest.approx(whole)


def test_kappa_by_hand() -> None:
    # two raters, 10 positions: both set 2, both clear 6, apart 2; the pooled rate is 6 / 20
    flags = np.zeros((1, 2, 10), dtype=bool)
    flags[0, :, :2] = True
    flags[0, 0, 2] = flags[0, 1, 3] = True
    chance = 0.3**2 + 0.7**2
    assert value(kappa(flags), 1) == pytest.approx((0.8 - chance) / (1 - chance))


def test_kappa_is_one_for_equal_masks_and_zero_for_independent_ones() -> None:
    rng = np.random.default_rng(2)
    masks_GL = rng.random((40, 64)) < 1 / 16
    assert value(kappa(np.repeat(masks_GL[:, None], 5, axis=1)), 40) == pytest.approx(1)
    assert value(kappa(rng.random((200, 5, 64)) < 1 / 16), 200) == pytest.approx(0, abs=0.02)


def test_an_interval_covers_the_truth_nineteen_times_in_twenty() -> None:
    rng, held = np.random.default_rng(3), 0
    for _ in range(200):
        groups = rng.normal(size=(40, 1)) + rng.normal(size=(40, 4))  # the true ICC is one half
        found = group_interval(icc(groups))
        assert found is not None
        held += found.low <= 0.5 <= found.high
    assert 0.9 <= held / 200 <= 0.99


def covered(seeds: int, deviation: float, trials: int, groups: int = 32) -> Interval:
    """Share of intervals over seeds and groups that hold the true difference of two ICC.

    The ICC of samples that share codes varies by seed around 0.4, and each group has an effect that all seeds
    have in common, as one prompt has; that of samples apart is 0.
    """
    rng, held = np.random.default_rng([seeds, round(100 * deviation)]), 0
    for _ in range(trials):
        prompt_G1, by_seed = rng.normal(size=(groups, 1)), []
        for of_seed in 0.4 + deviation * rng.uniform(-1, 1, seeds) * math.sqrt(3):
            own_G1 = (prompt_G1 + rng.normal(size=(groups, 1))) / math.sqrt(2)
            noise_GM, apart_GM = rng.normal(size=(2, groups, 6))
            shared_GM = math.sqrt(of_seed) * own_G1 + math.sqrt(1 - of_seed) * noise_GM
            by_seed.append(pseudo_values(minus(icc(shared_GM), icc(apart_GM))))
        found = paired_interval(np.array(by_seed))
        held += found.low <= 0.4 <= found.high
    return clopper_pearson(held, trials)


def test_over_seeds_and_groups_an_interval_covers_in_short() -> None:
    """Three seeds that differ as those of the letters study do."""
    assert covered(3, 0.12, 200).high > 0.94
    assert covered(3, 0.12, 200).low > 0.85


@pytest.mark.slow
@pytest.mark.parametrize("deviation", [0.0, 0.05, 0.15])
@pytest.mark.parametrize(("seeds", "least"), [(3, 0.92), (5, 0.93), (10, 0.93)])
def test_over_seeds_and_groups_an_interval_covers(seeds: int, least: float, deviation: float) -> None:
    """At least so many of the "95 %" intervals hold the truth."""
    assert covered(seeds, deviation, 2000).high >= least


def test_a_difference_is_paired_by_group() -> None:
    rng = np.random.default_rng(4)
    values_G = rng.normal(scale=10, size=50)
    found = group_interval(minus(mean(values_G + 1), mean(values_G)))
    assert found is not None
    assert found.low == pytest.approx(1)
    assert found.high == pytest.approx(1)


def test_distinct_by_hand() -> None:
    texts = [[1, 2, 1, 2], [1, 2, 3, 4]]
    assert distinct(texts, 1) == 4 / 8
    assert distinct(texts, 2) == 4 / 6  # 12 21 23 34 among 12 21 12, 12 23 34
    assert distinct(texts, 5) == 0


def bleu(text: list[int], references: list[list[int]]) -> float:
    """BLEU-4 as in Papineni et al. 2002, with 0.1 for a count of zero; from its definition, slowly."""
    logs = []
    for n in range(1, 5):
        grams = [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
        others = [Counter(tuple(r[i : i + n]) for i in range(len(r) - n + 1)) for r in references]
        matched = sum(min(c, max(other[g] for other in others)) for g, c in Counter(grams).items())
        logs.append(math.log((matched or 0.1) / len(grams)))
    nearest = min((len(r) for r in references), key=lambda length: (abs(length - len(text)), length))
    return math.exp(min(0, 1 - nearest / len(text)) + sum(logs) / 4)


def test_self_bleu_is_its_definition() -> None:
    rng = np.random.default_rng(5)
    texts = [rng.integers(4, size=length).tolist() for length in (12, 12, 9, 15, 12)]
    wanted = [bleu(text, texts[:i] + texts[i + 1 :]) for i, text in enumerate(texts)]
    assert self_bleu(texts) == pytest.approx(sum(wanted) / 5)
    assert self_bleu([[1, 2, 3, 4, 5]] * 3) == pytest.approx(1)
    assert self_bleu([[1, 2, 3, 4], [5, 6, 7, 8]]) < 0.1


def test_the_spread_is_the_chi_square_test_of_scipy() -> None:
    values_N = np.array([0, 0, 1, 2, 2, 2, np.nan, 1.5])
    found, wanted = spread(values_N, 3), chisquare([2, 1, 3])
    assert found.counts == [2, 1, 3]
    assert found.left_out == 2
    assert (found.chi_square, found.p_value) == pytest.approx((wanted.statistic, wanted.pvalue))


def test_the_same_number_and_another() -> None:
    one, other = np.array([1.0, 2.0, np.nan, np.nan]), np.array([1.2, 3.0, np.nan, 1.0])
    assert same(one, other, 0.25).tolist() == [True, False, False, False]
    assert differ(one, other, 0.25) == 0.5  # two texts without the number don't differ in it
    assert share_of(np.array([True, True, False, False])).value == 0.5


# ---- attributes
# -------------------------------------------------------------------------------------------------


def ids(*texts: str) -> np.ndarray[Any, Any]:
    """Rows of 64 characters, filled up with blanks."""
    return np.array([CODEC.encode(text.ljust(64, "_")) for text in texts])


def letters(name: str) -> Attribute:
    """An attribute of the letters data."""
    return next(a for a in LettersData().attributes if a.name == name)


def test_where_a_run_starts() -> None:
    found = starts(
        ids("", ""),
        ids(
            "___KKKKKKKK",
            "___KK!KKKKK!!",  # a hidden letter
            # the first hidden: no other start has room for seven after it, and a blank at its end
            "___!KKKKKKK",
            "_" * 56 + "K" * 8,
            "___KKKK",  # too short: the first start that contradicts least
            "_" * 64,
        ),
    )
    assert found[:4].tolist() == [3, 3, 3, 56]
    assert found[4] == 0
    assert np.isnan(found[5])


def test_what_a_valid_row_is() -> None:
    prompt = np.array([CODEC.encode("K>")] * 5)
    texts = ids("__KKKKKKKK", "__KK!KKKK!", "__JJJJJJJJ", "__KKKKKKK", "__KKKKKKKKK")
    assert letters("valid").measure(prompt, texts).tolist() == [True, True, False, False, False]
    assert letters("noise").measure(prompt, texts)[1].nonzero()[0].tolist() == [4, 9]


def test_what_any_text_has() -> None:
    codec = TextData(path="x").codec
    text = np.array([codec.encode("Ab, c1"), codec.encode("      ")])
    found = {a.name: a.measure(text, text).tolist() for a in text_attributes(codec)}
    assert found["word_length"][0] == 2.5
    assert math.isnan(found["word_length"][1])
    assert found["capitals"] == [1 / 6, 0]
    assert found["digits"] == found["punctuation"] == [1 / 6, 0]


@pytest.mark.parametrize("params", [CoinData(), LettersData(), PythonData(), TextData(path="x")])
def test_every_kind_of_data_names_attributes(params: DataParams) -> None:
    named = params.attributes
    assert len({a.name for a in named}) == len(named) > 0


# ---- models that read their codes, and models that don't
# ---------------------------------------------------------

BITS, WIDTH = 5, 32


class NextToken(Encoder):
    """Knows the next token of each place, and says it in bits."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.slots = BITS, Slots(1)

    def forward(self, tokens_BT: Tensor, hidden_BTD: Tensor, keep_BT: Tensor) -> Tensor:
        """Each bit as -1 or 1; of the last place, whose next token isn't there, those of a blank."""
        following_BT = torch.cat(
            [tokens_BT[:, 1:], torch.full_like(tokens_BT[:, :1], CODEC.encode("_")[0])], 1
        )
        bits = (following_BT[..., None] >> torch.arange(BITS)) & 1
        return 2.0 * bits - 1


def reader(*, reads: bool) -> LatentLM:
    """A model whose next token is the code of its place, or, deaf to codes, any token."""
    model = lvlm.build(
        "free",
        "data={kind: letters}",
        "model.injection={kind: add}",
        f"model.quantizer={{kind: binary, bits: {BITS}}}",
        f"model.backbone={{kind: decoder, layers: 2, width: {WIDTH}, heads: 2, context: 80}}",
    ).eval()
    assert model.latent is not None
    with torch.no_grad():
        model.backbone.unembedding.weight.copy_(
            10.0 * torch.eye(29, WIDTH) if reads else torch.zeros(29, WIDTH)
        )
        rows_RC = 1000.0 * torch.eye(29, WIDTH)[torch.arange(2**BITS) % 29]
        model.latent.quantizer.table_RC.copy_(rows_RC if reads else torch.zeros(2**BITS, WIDTH))
        model.latent.encoder, model.latent.norm = NextToken(), nn.RMSNorm(BITS)
        model.latent.readout = nn.Linear(BITS, BITS)
        model.latent.readout.weight.copy_(50.0 * torch.eye(BITS))
        model.latent.readout.bias.zero_()
    return model


def measured(model: LatentLM, **settings: Any) -> Steering:
    """A quick measurement on letters."""
    batch = LettersData().open().windows(24, "test").batch
    prompts = Prompts.of(batch, 2)
    prober = Prober(model, tokens=64, rows=64, seed=0)
    asked = {"groups": 16, "samples": 3, "entropy_nats": None, **settings}
    found = measure(prober, prompts, LettersData().attributes, CODEC, **asked)
    return Steering(version=1, key="", lvlm="0", step=1, settings={}, **found)


@pytest.fixture(scope="module")
def read() -> Steering:
    """Of the model that reads."""
    return measured(reader(reads=True))


@pytest.fixture(scope="module")
def deaf() -> Steering:
    """Of the model that doesn't."""
    return measured(reader(reads=False))


def test_a_code_that_fixes_the_text_gives_icc_and_kappa_of_one(read: Steering) -> None:
    (start,), (noise,) = read.numbers, read.flags
    assert start.icc.shared.value == 1
    assert noise.kappa.shared.value == pytest.approx(1)
    assert start.icc.apart.value == pytest.approx(0, abs=0.35)
    assert start.icc.difference.above_zero
    assert read.control_came_out
    (valid,) = read.checks
    assert valid.share.value == 0  # the prior draws every character at random
    for group in read.groups:
        assert len(set(group.shared)) == 1 < len(set(group.apart))


def test_differences_are_kept_group_by_group(read: Steering, deaf: Steering) -> None:
    """Their mean is the difference and their interval its own; transfers are counted source by source."""
    for found in (read, deaf):
        transfer = found.numbers[0].transfer
        assert transfer is not None
        for one, groups in (
            (found.numbers[0].icc, 16),
            (found.flags[0].kappa, 16),
            (transfer, transfer.sources),
        ):
            assert one.difference_by_group is not None
            assert len(one.difference_by_group) == groups
            assert one.difference is not None
            assert vars(window_interval(one.difference_by_group)) == pytest.approx(vars(one.difference))
        assert set(transfer.difference_by_group or ()) <= {-1.0, 0.0, 1.0}


def test_its_codes_carry_a_text_over(read: Steering) -> None:
    transfer = read.numbers[0].transfer
    assert transfer is not None
    assert transfer.success.value == pytest.approx(1, abs=0.05)
    assert transfer.prior_rate.value == pytest.approx(0, abs=0.15)
    assert transfer.difference.above_zero
    assert transfer.sources == 24


def test_each_of_its_bits_changes_every_token(read: Steering) -> None:
    assert read.units is not None
    assert len(read.units.units) == BITS
    assert read.units.names == [f"bit {bit}" for bit in range(BITS)]
    for change in read.units.units:
        assert change.tokens == 1
    assert read.units.other_noise.tokens == 0
    assert read.units.all_redrawn.tokens > 0.85


def test_a_model_that_is_deaf_to_codes_is_not_steered(deaf: Steering) -> None:
    (start,), (noise,) = deaf.numbers, deaf.flags
    for contrast in (start.icc, noise.kappa):
        assert contrast.shared.value == pytest.approx(0, abs=0.4)
        assert not contrast.difference.without_zero
    assert not deaf.control_came_out
    assert deaf.units is not None
    assert {change.tokens for change in deaf.units.units} == {0.0}
    assert deaf.units.other_noise.tokens > 0.9


def test_a_baseline_has_nothing_to_share() -> None:
    model = lvlm.build(
        "baseline", "data={kind: letters}", "model.backbone={kind: decoder, layers: 1, width: 16, heads: 2}"
    ).eval()
    found = measured(model)
    assert not found.has_latent
    assert found.units is None
    assert found.numbers[0].icc.shared is None
    assert found.numbers[0].icc.apart is not None
    assert found.numbers[0].transfer is None


def test_the_same_seed_gives_the_same_numbers_and_leaves_the_global_noise_alone(deaf: Steering) -> None:
    model = reader(reads=False)
    state = torch.get_rng_state()
    assert measured(model) == deaf
    assert torch.equal(state, torch.get_rng_state())


def test_entropy_is_that_of_the_distributions_and_can_be_set(deaf: Steering) -> None:
    assert deaf.diversity.entropy_nats_per_token == pytest.approx(math.log(29), abs=1e-5)
    model = lvlm.build(
        "baseline", "data={kind: letters}", "model.backbone={kind: decoder, layers: 1, width: 16, heads: 2}"
    ).eval()
    torch.nn.init.normal_(model.backbone.unembedding.weight, std=1.0)
    found = measured(model, entropy_nats=1.5)
    assert found.diversity.entropy_nats_per_token == pytest.approx(1.5, abs=0.05)
    assert found.diversity.temperature != 1


# ---- runs, the gate, the report
# -----------------------------------------------------------------------------------

STEER = {"groups": 4, "samples": 2, "sources": 4}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run of FREE, not on letters."""
    folder = tmp_path_factory.mktemp("run")
    recipe = tiny("free", write_text(folder), steer=STEER)
    return lvlm.train(recipe, folder / "free")


def test_a_run_is_measured_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = lvlm.steer(run)
    assert found.settings["groups"] == 4
    assert found.settings["prompt_tokens"] == 1
    assert {n.name for n in found.numbers} == {"word_length", "capitals", "digits", "punctuation"}
    assert read_steering(run) == found
    monkeypatch.setattr("lvlm.steering.run.measure", lambda *_, **__: pytest.fail("measured again"))
    assert lvlm.steer(run) == found
    with pytest.raises(BaseException, match="measured again"):
        lvlm.steer(run, seed=1)


@pytest.mark.parametrize("moment", ["data", "measure"])
def test_a_better_checkpoint_that_lands_in_the_middle_lends_its_name_to_no_number(
    moment: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers, step and key are of the checkpoint that was selected when the run was opened."""
    no_numbers = shutil.ignore_patterns("steering.json")
    old, new = (shutil.copytree(run, tmp_path / name, ignore=no_numbers) for name in ("old", "new"))
    alone = lvlm.steer(old)
    at: tuple[Any, str] = {
        "data": (TextData, "open"),
        "measure": (sys.modules["lvlm.steering.run"], "measure"),
    }[moment]
    original = getattr(*at)

    def meanwhile(*asked: Any, **options: Any) -> Any:
        land_better_checkpoint(new)
        return original(*asked, **options)

    with monkeypatch.context() as patch:
        patch.setattr(*at, meanwhile)
        found = lvlm.steer(new)
    assert len(steps_of(new)) == len(steps_of(old)) + 1, "nothing landed"
    assert found == alone == read_steering(new)
    better = lvlm.steer(new)
    assert better.step == found.step + 1
    assert better.key != found.key
    assert better.groups != found.groups


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"groups": 1}, "groups is 1: Input should be greater than or equal to 2"),
        ({"prompt_tokens": 99}, "steer.prompt_tokens is 99, but a window has 12 tokens"),
    ],
)
def test_what_cannot_be_measured(run: Path, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        lvlm.steer(run, **asked)


def test_damaged_or_older_files_are_measured_anew(run: Path) -> None:
    found = lvlm.steer(run)
    for damage in ("{", json.dumps({**json.loads(found.model_dump_json()), "version": 0})):
        (run / "steering.json").write_text(damage)
        assert read_steering(run) is None
        assert lvlm.steer(run) == found


def as_the_first_version(found: Steering) -> dict[str, Any]:
    """The file as it was before differences were stored by group and units by name."""
    stored = json.loads(found.model_dump_json())
    for one in stored["numbers"]:
        del one["icc"]["difference_by_group"]
        if one["transfer"]:
            del one["transfer"]["difference_by_group"]
    for one in stored["flags"]:
        del one["kappa"]["difference_by_group"]
    del stored["units"]["names"]
    return {**stored, "version": 1}


def test_a_file_of_the_first_version_opens_and_is_measured_anew_when_asked(
    run: Path, read: Steering, tmp_path: Path
) -> None:
    (tmp_path / "steering.json").write_text(json.dumps(as_the_first_version(read)))
    found = read_steering(tmp_path)
    assert found is not None
    assert found.numbers[0].icc.difference == read.numbers[0].icc.difference
    assert found.numbers[0].icc.difference_by_group is None
    now = lvlm.steer(run)
    # the key of the first version was of the same weights, data and settings, and of another number
    (run / "steering.json").write_text(json.dumps({**as_the_first_version(now), "key": "first"}))
    assert lvlm.steer(run) == now == read_steering(run)


def test_an_interval_without_ends_is_stored_as_json_has_it(read: Steering, tmp_path: Path) -> None:
    (start,) = read.numbers
    endless = Interval(0.25, -math.inf, math.inf)
    icc_of_start = start.icc.model_copy(update={"difference": endless, "apart": None})
    found = read.model_copy(update={"numbers": [start.model_copy(update={"icc": icc_of_start})]})
    text = found.model_dump_json()
    assert "Infinity" not in text
    (tmp_path / "steering.json").write_text(text)
    assert read_steering(tmp_path) == found
    assert not found.control_came_out


def test_no_null_without_a_positive_control(read: Steering, deaf: Steering) -> None:
    null, effect = Interval(value=0.0, low=-0.1, high=0.1), Interval(value=0.3, low=0.2, high=0.4)
    shut, opened = Gate.of([deaf], lvlm="0"), Gate.of([deaf, read], lvlm="0")
    assert not shut.shows(null)
    assert shut.shows(effect)
    assert opened.shows(null)
    assert not Gate.of([read], lvlm="another version").open


def test_the_command_line_hides_a_null_and_a_control_shows_it(
    run: Path, read: Steering, capsys: pytest.CaptureFixture[str]
) -> None:
    from lvlm.cli.app import main

    def shown(*options: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(["steer", str(run), *options])
        assert not stop.value.code, capsys.readouterr().err
        return capsys.readouterr().out

    assert HIDDEN in shown()
    assert json.loads(shown("--json"))["numbers"]
    control = run.parent / "control"
    control.mkdir(exist_ok=True)
    mine = read_steering(run)
    assert mine is not None
    (control / "steering.json").write_text(read.model_copy(update={"lvlm": mine.lvlm}).model_dump_json())
    table = shown("--control", str(control))
    assert HIDDEN not in table
    assert "bit 0" in table
    assert "of this one run" in table
    with pytest.raises(UserError, match="no positive control"):
        read_control(run)
    with pytest.raises(UserError, match="lvlm steer"):
        read_control(run.parent)


def test_a_study_measures_the_arms_that_say_so_and_reports_them(tmp_path: Path) -> None:
    text = write_text(tmp_path)
    (tmp_path / "study.yaml").write_text(
        json.dumps(
            {
                "study": "steered",
                "seeds": [0],
                "arms": {
                    "baseline": tiny("baseline", text),
                    "free": tiny("free", text, steer=STEER),
                },
            }
        )
    )
    page = lvlm.study(tmp_path / "study.yaml", tmp_path / "out").read_text()
    assert not (tmp_path / "out/baseline/seed0/steering.json").exists()
    assert (tmp_path / "out/free/seed0/steering.json").exists()
    assert "<h2>Steering</h2>" in page
    assert HIDDEN in page
    assert "ICC of word_length" in page


def test_with_a_control_in_the_study_the_report_draws_every_arm(
    run: Path, read: Steering, tmp_path: Path
) -> None:
    lvlm.evaluate(run)
    mine = lvlm.steer(run)
    (run / "steering.json").write_text(read.model_copy(update={"lvlm": mine.lvlm}).model_dump_json())
    try:
        report = read_report(
            tmp_path,
            title="t",
            description="",
            command="",
            controls=["free"],
            runs=[ReportRun("free", 0, run)],
        )
        page = render_report(report).read_text()
    finally:
        (run / "steering.json").unlink()
    assert HIDDEN not in page
    assert "Steering, means over seeds: ICC of start of free 1.000" in page


def of_seeds(run: Path, folder: Path, found: list[Steering]) -> tuple[Cell, list[str]]:
    """What a report says of the ICC of `start` of one arm whose seeds were measured so, and its notes."""
    lvlm.evaluate(run)
    runs = []
    for seed, one in enumerate(found):
        copy = shutil.copytree(run, folder / f"seed{seed}")
        (copy / "steering.json").write_text(one.model_dump_json())
        runs.append(ReportRun("free", seed, copy))
    report = read_report(folder, title="t", description="", command="", controls=["free"], runs=runs)
    table, notes = steering.table(report), steering.notes(report)
    (row,) = table.rows
    place = [header.text for header in table.headers].index("ICC of start")
    return row[place], notes


def with_differences(found: Steering, by_group: list[float | None] | None, **changes: Any) -> Steering:
    """A steering whose ICC of `start` differs so, group by group."""
    (start,) = found.numbers
    known = [one for one in by_group or [0.5, 0.7] if one is not None]
    middle = sum(known) / len(known)
    update = {"difference": Interval(middle, 0.01, 1.5), "difference_by_group": by_group}
    number = start.model_copy(update={"icc": start.icc.model_copy(update=update), "transfer": None})
    return found.model_copy(update={"numbers": [number], "flags": [], **changes})


def test_a_report_has_the_interval_over_seeds_and_groups(run: Path, read: Steering, tmp_path: Path) -> None:
    """Only groups that every seed has a number of count."""
    by_group: list[list[float | None]] = [[0.6, 0.8, None, 0.7], [0.2, 0.3, 0.9, 0.1], [0.5, 0.5, 0.5, 0.8]]
    cell, notes = of_seeds(run, tmp_path, [with_differences(read, one) for one in by_group])
    wanted = paired_interval([[0.6, 0.8, 0.7], [0.2, 0.3, 0.1], [0.5, 0.5, 0.8]])
    assert cell.text == "1.000"
    assert cell.detail.endswith(f", {wanted.value:+.3f} [{wanted.low:+.3f}, {wanted.high:+.3f}]")
    assert cell.detail.startswith("apart ")
    assert not [note for note in notes if "interval" in note or "brackets" in note]


def test_a_seed_without_the_number_is_counted_out_aloud(run: Path, read: Steering, tmp_path: Path) -> None:
    """The others' interval isn't passed off as that of all seeds."""
    found = [with_differences(read, [0.2, 0.3, 0.5]) for _ in range(3)]
    (start,) = found[2].numbers
    nothing = {"shared": None, "difference": None, "difference_by_group": None}
    start = start.model_copy(update={"icc": start.icc.model_copy(update=nothing)})
    found[2] = found[2].model_copy(update={"numbers": [start]})
    cell, _ = of_seeds(run, tmp_path, found)
    assert cell.detail.endswith("], 2 of 3 seeds")


@pytest.mark.parametrize(
    ("by_group", "changes", "note"),
    [
        ([[0.4, 0.6]], {}, steering.ONE_SEED),
        ([[0.4, 0.6], None], {}, steering.NOT_BY_GROUP),
        ([[0.4, None], [None, 0.6]], {}, steering.NOT_BY_GROUP),
        ([[0.4, 0.6], [0.4, 0.6]], {"settings": {"seed": 1}}, steering.OTHER_SETTINGS),
        ([[0.4, 0.6], [0.4, 0.5, 0.6]], {}, steering.OTHER_SETTINGS),
    ],
)
def test_without_crossed_seeds_and_groups_a_report_has_no_interval(
    run: Path, read: Steering, tmp_path: Path, by_group: list[Any], changes: dict[str, Any], note: str
) -> None:
    found = [with_differences(read, one) for one in by_group]
    differences = [one.numbers[0].icc.difference for one in found]
    middle = sum(one.value for one in differences if one is not None) / len(found)
    cell, notes = of_seeds(
        run, tmp_path, [*found[:1], *(one.model_copy(update=changes) for one in found[1:])]
    )
    assert cell.detail.endswith(f", {middle:+.3f}")
    assert note in notes
