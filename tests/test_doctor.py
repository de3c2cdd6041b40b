"""The doctor: every number by hand on a model of one bit, every verdict from a model that deserves it, and
nothing of a run changed.
"""

from __future__ import annotations

import functools
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import lvlm
from lvlm.cli.app import main
from lvlm.data.source import Windows
from lvlm.diagnosis.findings import Finding, findings_of
from lvlm.diagnosis.measure import code_perplexity, measure, training_record
from lvlm.diagnosis.measured import Measured
from lvlm.errors import UserError
from lvlm.interfaces import Backbone, Batch, Case, Encoder, Remedy, Slots
from lvlm.model.latent_lm import LatentLM
from lvlm.model.latent_path import LatentPath
from lvlm.objective import HingeParams
from lvlm.recipe.read import read_recipe
from lvlm.recipe.recipe import Resolved
from lvlm.registry.registry import Registry
from lvlm.runs.checkpoint import Checkpoints, load_trainer_state
from lvlm.runs.manifest import Checkpoint
from lvlm.runs.read import read_run
from lvlm.runs.weights import stored_optimiser, tensors_of
from lvlm.training.optim import make_optimiser
from lvlm_free.add import Add
from lvlm_free.binary import BinaryParams
from tests.tiny import ARMS, logged, tiny, write_text

LOG2 = math.log(2)
SURE = 30.0  # the logit of a bit that is never drawn the other way
LOUD = 4.0  # the logit by which a code that is read favours its token


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A run of each arm, and one whose KL was too dear."""
    folder = tmp_path_factory.mktemp("runs")
    for arm in ARMS:
        lvlm.train(tiny(arm, text), folder / arm)
    dear = tiny("free", text, loss={"budget_bits": 0.0, "beta": 100.0}, train={"learning_rate": 0.01})
    lvlm.train(dear, folder / "dear")
    return folder


# ------------------------------------------------------------------------------------------ a model of one
# bit
#
# Two tokens; a row holds one of them throughout, or both in turn, and each target is the input itself. The
# posterior's logit is `sure` for token 1 and -sure for token 0. A code adds `loud` to the logit of its token;
# there is nothing else.


class NoStack(Backbone):
    """Logits are what the code adds."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.vocab, self.context, self.blocks = 2, 2, 64, nn.ModuleList()

    def embed(self, tokens_BT: Tensor) -> Tensor:
        return torch.zeros(*tokens_BT.shape, 2)

    def locate(self, positions_T: Tensor) -> Any:
        return positions_T

    def head(self, x_BTD: Tensor) -> Tensor:
        return x_BTD

    def make_block(self, *, causal: bool) -> nn.Module:
        raise NotImplementedError

    def make_cache(self, rows: int, capacity: int) -> Any:
        raise NotImplementedError


class Sign(Encoder):
    """+1 for a slot that begins with token 1, -1 for one with token 0."""

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self.width, self.slots = 1, slots

    def forward(self, tokens_BT: Tensor, hidden_BTD: Tensor, keep_BT: Tensor) -> Tensor:
        return 2.0 * tokens_BT[:, self.slots.first_positions(tokens_BT.shape[1]), None] - 1


def one_bit(*, sure: float, bias: float = 0.0, loud: float = LOUD, per: int | None = None) -> LatentLM:
    slots = Slots(per)
    quantizer = BinaryParams(bits=1).build(embedding_dim=2)
    path = LatentPath(Sign(slots), quantizer, Add(2, slots))
    with torch.no_grad():
        path.norm.weight.fill_(1 / torch.nn.functional.rms_norm(torch.ones(1), [1])[0])
        path.readout.weight.fill_(sure)
        path.readout.bias.fill_(bias)
        quantizer.table_RC.copy_(loud * torch.eye(2))
    return LatentLM(NoStack(), path).eval()


TOKENS, ROWS = 6, 22


def windows_of(*, in_turn: bool = False, rows: int = ROWS) -> Windows:
    """Rows of zeros and rows of ones in turn; or all rows the same, zeros and ones in turn."""
    of_what = torch.arange(TOKENS)[None] if in_turn else torch.arange(rows)[:, None]
    tokens_BT = (of_what % 2).expand(rows, TOKENS).contiguous()
    return Windows.of(Batch(tokens_BT, tokens_BT, torch.ones_like(tokens_BT, dtype=torch.bool)))


installed = functools.cache(Registry.load)


def resolved_as(*overrides: str) -> Resolved:
    """The recipe whose loss and training the model is examined with."""
    common = ("train.device=cpu", "train.precision=fp32", "evaluate.rows=11", "train.steps=400")
    return read_recipe("free", (*common, *overrides), registry=installed())


def saved(model: LatentLM, resolved: Resolved, folder: Path) -> Checkpoint:
    """A checkpoint of the model as if it had been trained: each tensor has a state, and none has moved."""
    loss = resolved.recipe.loss.build()
    optimiser = make_optimiser(model, loss, resolved.recipe.train)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    model.load_state_dict(before)
    checkpoints, tensors = Checkpoints(folder), tensors_of(model, optimiser)
    checkpoints.save(tensors, {"loss": loss.state_dict()}, step=7, bound_name="elbo", bound=1.0)
    return checkpoints.newest()


Examined = Callable[..., tuple[Measured, list[Finding]]]


@pytest.fixture
def examined(tmp_path: Path) -> Examined:
    """Numbers and findings of a model of one bit."""

    def run(*overrides: str, windows: Windows | None = None, **bit: Any) -> tuple[Measured, list[Finding]]:
        model, resolved = one_bit(**bit), resolved_as(*overrides)
        measured = measure(model, resolved.recipe, windows or windows_of(), saved(model, resolved, tmp_path))
        return measured, findings_of(measured, resolved)

    return run


def tries(findings: list[Finding]) -> list[str]:
    return [override for finding in findings for one in finding.tries for override in one.overrides]


def tones(findings: list[Finding]) -> list[str]:
    return [finding.tone for finding in findings]


# -----------------------------------------------------------------------------------------------------
# numbers


def test_a_latent_that_is_read_by_hand(examined: Examined) -> None:
    """One bit for a row, always right: it costs log 2, and saves LOUD in every token of half of the rows."""
    measured, found = examined(sure=SURE)
    right = math.log(1 + math.exp(-LOUD))
    assert measured.kl_nats_per_slot == pytest.approx(LOG2)
    assert measured.kl_nats_per_token == pytest.approx(LOG2 / TOKENS)
    assert measured.budget_nats_per_slot == pytest.approx(LOG2 / 2)
    assert (measured.active_units, measured.units) == (1, 1)
    assert (measured.code_perplexity, measured.code_perplexity_at_most) == (pytest.approx(2.0), ROWS)
    assert measured.ce_posterior_nats_per_token == pytest.approx(right, rel=1e-4)
    assert measured.ce_shuffled_nats_per_token == pytest.approx(right + LOUD), (
        "the next row is of the other token"
    )
    assert measured.shuffling_cost_nats_per_token == pytest.approx(LOUD)
    assert measured.shuffling_cost_low_nats_per_token == pytest.approx(LOUD)
    assert measured.shuffling_cost_high_nats_per_token == pytest.approx(LOUD)
    wrong = (measured.ce_prior_nats_per_token - right) / LOUD  # the share of the prior's codes
    assert wrong == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(8 * ROWS))
    assert wrong * 8 * ROWS == pytest.approx(round(wrong * 8 * ROWS), abs=1e-3), (
        "not the mean of eight draws a row"
    )
    assert measured.worth_nats_per_token == pytest.approx(wrong * LOUD)
    assert measured.worth_nats_per_row == pytest.approx(wrong * LOUD * TOKENS)
    low, high = measured.worth_low_nats_per_token or 0, measured.worth_high_nats_per_token or 0
    assert (low + high) / 2 == pytest.approx(wrong * LOUD)
    reach = (
        stats.t.ppf(0.975, ROWS - 1) * LOUD * 0.5 / math.sqrt(8 * ROWS)
    )  # of a fair coin's eight draws a row
    assert reach / 2 < (high - low) / 2 < reach * 1.5
    assert measured.exchange_efficiency == pytest.approx(wrong * LOUD * TOKENS / LOG2)
    differs = measured.output_change_nats_per_token / (LOUD * math.tanh(LOUD / 2))
    assert differs == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(ROWS))
    assert differs * ROWS == pytest.approx(round(differs * ROWS), abs=1e-3), "not one pair of draws a row"
    assert measured.beta_effective == pytest.approx(1.0), "all of it is above its budget of half a bit"
    assert (measured.trainable, measured.never_updated) == (4, [])
    assert tones(found) == ["read", "note", "fault"]
    assert found[0].what == (
        f"The decoder reads the codes: the right code is worth {wrong * LOUD:.5f} [{low:.5f}, {high:.5f}] "
        f"nats/token to it, {wrong * LOUD * TOKENS:.3g} nats a window."
    )
    assert "one checkpoint of one seed" in found[1].what
    assert "no gradient" in found[2].what, "what is sure can't be moved"
    assert tries(found) == ["train.encoder_learning_rate_factor=0.3"]


def test_codes_of_another_row_are_averaged_over_draws(examined: Examined) -> None:
    """A posterior that errs: the next row's code is wrong as often as its own is right."""
    measured, _ = examined(sure=1.0)
    right = math.log(1 + math.exp(-LOUD))
    wrong = ((measured.ce_shuffled_nats_per_token or 0) - right) / LOUD
    assert wrong == pytest.approx(1 / (1 + math.exp(-1)), abs=4 * 0.5 / math.sqrt(8 * ROWS))
    assert wrong * 8 * ROWS == pytest.approx(round(wrong * 8 * ROWS), abs=1e-3)
    assert wrong * ROWS != pytest.approx(round(wrong * ROWS), abs=1e-3), "one draw"


def test_gradient_norms_by_hand(examined: Examined) -> None:
    """With a deaf decoder only the KL moves the encoder: d KL / d logit = logit p (1 - p) and so on up the
    chain.
    """
    measured, _ = examined("loss.budget_bits=0", "loss.beta=0.5", sure=1.5, loud=0.0)
    p = 1 / (1 + math.exp(-1.5))
    by_logit = (
        0.5 * 1.5 * p * (1 - p) / TOKENS
    )  # beta, and a slot's share of the loss; the signs of rows cancel none
    # Eleven rows a forward: six of token 0 and five of token 1, so the bias gets the difference of one.
    by_hand = by_logit * math.sqrt(1 + 1.5**2 + (1 / 11) ** 2)
    assert measured.encoder_gradient_norm == pytest.approx(by_hand, rel=1e-4)
    assert measured.beta_effective == pytest.approx(0.5)
    # Half a nat per token for each row of the table that was drawn; the other half's gradient is the same.
    assert measured.gradient_norm > measured.encoder_gradient_norm
    assert measured.encoder_share == pytest.approx(measured.encoder_gradient_norm / measured.gradient_norm)


def test_a_slot_per_token_counts_slots(examined: Examined) -> None:
    measured, _ = examined(sure=SURE, per=1)
    assert measured.kl_nats_per_slot == measured.kl_nats_per_token == pytest.approx(LOG2)
    assert measured.code_perplexity_at_most == ROWS * TOKENS


def test_padding_is_no_slot(examined: Examined) -> None:
    whole = windows_of().batch
    keep_BT = whole.keep_BT.clone()
    keep_BT[:, 4:] = False
    cut = Batch(whole.inputs_BT, whole.targets_BT.masked_fill(~keep_BT, -100), keep_BT)
    measured, _ = examined(windows=Windows.of(cut), sure=SURE, per=1)
    assert measured.code_perplexity_at_most == ROWS * 4
    assert measured.kl_nats_per_slot == measured.kl_nats_per_token == pytest.approx(LOG2)


def test_one_window_has_no_other_row(examined: Examined) -> None:
    measured, found = examined(windows=windows_of(rows=1), sure=SURE)
    assert measured.ce_shuffled_nats_per_token is measured.shuffling_cost_nats_per_token is None
    assert measured.shuffling_cost_low_nats_per_token is measured.worth_low_nats_per_token is None
    assert measured.worth_high_nats_per_token is None
    assert found[0].tone == "can't tell"
    assert found[0].what.startswith("One window can't tell")
    assert measured.code_perplexity == pytest.approx(1.0)
    assert not any("one code" in finding.what for finding in found), "one slot has one code"


@pytest.mark.parametrize(
    ("codes", "perplexity"),
    [
        ([5, 5, 5], 1.0),
        ([0, 1, 2, 3], 4.0),
        ([0, 0, 1, 2], 2**1.5),
        ([[0, 1], [0, 1], [1, 0], [1, 0]], 2.0),  # codes of several numbers
    ],
)
def test_perplexity_by_hand(codes: list[Any], perplexity: float) -> None:
    assert code_perplexity(torch.tensor(codes)) == pytest.approx(perplexity)


def test_a_tensor_without_a_state_was_never_trained(runs: Path) -> None:
    model, resolved = lvlm.load(runs / "free"), read_run(runs / "free")
    checkpoint, loss = Checkpoints(runs / "free").newest(), resolved.recipe.loss.build()
    record = training_record(model, loss, checkpoint)
    assert record == {"trainable": len(list(model.parameters())), "never_updated": []}
    frozen = next(n for n, p in model.named_parameters() if n.startswith("latent.encoder") and p.ndim > 1)
    stored = {name: of for name, of in stored_optimiser(checkpoint).items() if name != frozen}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lvlm.diagnosis.measure.stored_optimiser", lambda _: stored)
        assert training_record(model, loss, checkpoint)["never_updated"] == [frozen]


# ----------------------------------------------------------------------------------------------------
# verdicts


VERDICTS = {"read", "not read", "can't tell"}


def test_kl_at_its_budget_is_no_praise(examined: Examined) -> None:
    """KL rises to its budget by itself under a hinge; a decoder that doesn't read it gets one verdict."""
    measured, found = examined("loss.budget_bits=1", sure=SURE, loud=0.0, per=1)
    assert measured.kl_nats_per_slot == pytest.approx(measured.budget_nats_per_slot or 0)
    assert [tone for tone in tones(found) if tone in VERDICTS] == tones(found)[:1] == ["not read"]
    assert "the right code is worth 0.00000 [0.00000, 0.00000] nats/token to it" in found[0].what
    assert not any("budget of" in finding.what for finding in found), "KL beside its budget tells nothing"
    assert measured.exchange_efficiency is None, "of codes that aren't read"
    note = "elbo is 0.6931 nats/token above ce_prior, for KL that nothing is read of."
    assert [finding.what for finding in found if finding.what.startswith("elbo")] == [note]


@pytest.mark.parametrize(
    ("low", "high", "kl", "verdict"),
    [
        (0.001, 0.1, 0.3, "read"),
        (0.00011, 0.0002, 0.3, "read"),
        (0.0001, 0.0002, 0.3, "not read"),
        (-0.1, -0.01, 0.3, "not read"),
        (-0.001, 0.0005, 0.3, "not read"),
        (0.0, 0.0, 0.3, "not read"),
        (0.0, 0.011, 0.3, "can't tell"),  # a hundredth of a nat a token would matter
        (-0.005, 0.006, 0.1, "can't tell"),  # so would more than 5 % of the KL
        (-0.005, 0.004, 0.1, "not read"),
        (-0.2, 0.3, 0.3, "can't tell"),
        (-0.2, 0.3, 0.001, "not read"),  # codes tell no more than their KL
        (0.1, 0.3, 0.001, "read"),
        (None, None, 0.3, "can't tell"),
        (None, None, 0.001, "not read"),
    ],
)
def test_the_verdict_is_that_of_the_interval(
    low: float | None, high: float | None, kl: float, verdict: str, examined: Examined
) -> None:
    """Whatever the KL is beside its budget, below, at, or far above."""
    measured, _ = examined(sure=SURE, per=1)
    worth = 0.0 if low is None or high is None else (low + high) / 2
    for budget in (None, kl / 10, kl, 10 * kl):
        case = replace(
            measured,
            worth_nats_per_token=worth,
            worth_low_nats_per_token=low,
            worth_high_nats_per_token=high,
            kl_nats_per_slot=kl,
            kl_nats_per_token=kl,
            budget_nats_per_slot=budget if kl > 0.01 else None,
        )
        found = findings_of(case, resolved_as())
        assert [tone for tone in tones(found) if tone in VERDICTS] == tones(found)[:1] == [verdict]
        assert set(tones(found)) <= {verdict, "note", "fault"}


def test_few_windows_can_t_tell(examined: Examined) -> None:
    """Codes that are right three times in five: four windows are too few to see it, 100 see it."""
    measured, found = examined(windows=windows_of(rows=4), sure=0.4)
    assert measured.worth_low_nats_per_token is not None
    assert measured.worth_low_nats_per_token < 0 < (measured.worth_high_nats_per_token or 0)
    assert found[0].tone == "can't tell"
    assert found[0].what.startswith("4 windows can't tell whether the decoder reads the codes")
    assert "lvlm doctor RUN --windows 16" in found[0].what
    assert found[0].tries == ()
    _, found = examined(windows=windows_of(rows=100), sure=0.4)
    assert found[0].tone == "read"


def test_codes_that_mislead_are_not_read(examined: Examined) -> None:
    measured, found = examined(sure=-SURE)
    assert (measured.worth_high_nats_per_token or 0) < 0
    assert found[0].tone == "not read"
    assert "those of the prior predict better" in found[0].what


def test_tries_come_by_their_measured_success(examined: Examined) -> None:
    """Ports that read in most runs first; then time, and another seed, since chance decides when reading
    begins; then what is free; what nobody measured last. None starts a table elsewhere.
    """
    _, found = examined("loss.budget_bits=0.125", sure=SURE, loud=0.0, per=1)
    assert tries(found[:1]) == [
        "model.injection.kind=add",
        "model.injection.norm=hidden",
        "train.steps=1000",
        "seed=1",
        "loss.budget_bits=1",
        "model.token_dropout=0.3",
        "model.seam=1",
    ]
    whys = [one.why for one in found[0].tries]
    assert "read in 3 of 3 seeds" in whys[0]
    assert "read in 2 of 3 seeds" in whys[1]
    assert "steps 110 to 500" in whys[2]
    other = ("model.injection.norm=hidden", "train.steps=2000", "seed=4")
    _, found = examined(*other, sure=SURE, loud=0.0, per=1)
    assert tries(found[:1])[:3] == ["model.injection.kind=add", "train.steps=4000", "seed=5"]
    _, found = examined("model.injection.kind=add", "train.steps=3000", sure=SURE, loud=0.0, per=1)
    assert tries(found[:1])[0] == "seed=1", "a port with a better record, and steps enough"


def test_a_silent_latent(examined: Examined) -> None:
    measured, found = examined(sure=0.1)
    assert measured.exchange_efficiency is None
    assert tones(found) == ["not read", "note"]
    low, high = measured.worth_low_nats_per_token or 0, measured.worth_high_nats_per_token or 0
    assert found[0].what == (
        "There is nothing to read: the raw KL is 0.0012 nats per slot, and codes tell no more of their text than "
        f"that. The right code is worth {measured.worth_nats_per_token:z.5f} [{low:.5f}, {high:.5f}] nats/token."
    )
    first, *others = found[0].tries
    assert first.overrides == ("loss.term.kind=lagrangian", "loss.budget_bits=0.5")
    given = tries(found)
    assert "model.token_dropout=0.3" in given
    assert "train.encoder_learning_rate_factor=3" in given
    assert not any("beta" in override for override in given), (
        "below its budget the KL is free: no ramp can help"
    )
    assert len(others) == 2


def test_a_silent_latent_without_a_budget_is_given_time(examined: Examined) -> None:
    given = tries(examined("loss.budget_bits=0", "loss.beta=2", "loss.per=sequence", sure=0.1)[1])
    assert given[:3] == ["loss.term.kind=lagrangian", "loss.budget_bits=0.5", "loss.per=slot"]
    assert "loss.beta={start: 0, end: 2, steps: 200}" in given
    assert "loss.autoencoder_steps=100" in given


def test_what_the_recipe_says_already_is_not_advised(examined: Examined) -> None:
    said = ("model.token_dropout=0.1", "loss.autoencoder_steps=5")
    pulled = ("loss.term.kind=lagrangian", "loss.term.rate=0.02", "train.encoder_learning_rate_factor=5")
    assert tries(examined(*said, *pulled, sure=0.1)[1]) == ["loss.term.rate=0.2"]


def test_an_encoder_that_stands_still_is_told(examined: Examined) -> None:
    assert "train.encoder_learning_rate_factor=1" in tries(
        examined("train.encoder_learning_rate_factor=0", sure=0.1)[1]
    )


def test_the_same_output_for_any_code(examined: Examined) -> None:
    """And nothing but the decoder could teach an encoder whose KL is within its budget."""
    measured, found = examined("loss.budget_bits=2", sure=SURE, loud=0.0)
    assert measured.output_change_nats_per_token == measured.worth_nats_per_token == 0.0
    assert measured.encoder_gradient_norm == measured.encoder_share == measured.beta_effective == 0.0
    assert tones(found) == ["not read", "note", "note", "fault"]
    assert "The output is all but the same for any code" in found[0].what
    assert "The encoder gets no gradient" in found[3].what
    assert len(set(tries(found))) == len(tries(found)), "a try is given once"
    assert not any("prefix" in word for word in tries(found)), "a prefix wants one slot per sequence"


def test_reading_that_has_just_begun(examined: Examined) -> None:
    """The interval lies above 0, and the worth is under 5 % of the KL."""
    _, found = examined(sure=SURE, loud=0.01, per=1)
    assert found[0].tone == "read"
    assert "reading may just have begun" in found[0].what
    assert tries(found)[0] == "train.steps=1000"


def test_codes_that_cost_more_than_they_bring(examined: Examined) -> None:
    measured, found = examined(sure=SURE, loud=0.4, per=1)
    assert 0.05 < (measured.exchange_efficiency or 0) < 1
    (told,) = [finding for finding in found if "cost more than they bring" in finding.what]
    assert told.tone == "note"
    elbo = measured.ce_posterior_nats_per_token + measured.kl_nats_per_token
    assert elbo > measured.ce_prior_nats_per_token, "as the sentence says"


def test_codes_that_pay_off(examined: Examined) -> None:
    measured, found = examined(sure=SURE)
    assert (measured.exchange_efficiency or 0) > 1
    assert found[0].tone == "read"
    assert not any("cost more than they bring" in finding.what for finding in found)


def test_one_code_for_all(examined: Examined) -> None:
    measured, found = examined(sure=0.0, bias=SURE)
    assert measured.code_perplexity == pytest.approx(1.0)
    told = found[0]
    assert told.tone == "not read"
    assert told.what.startswith("There is nothing to read: one code is all there is")
    assert ("model.prior=learned",) in [one.overrides for one in told.tries]
    assert "train.encoder_learning_rate_factor=0.3" in tries(found)
    _, slow = examined("train.encoder_learning_rate_factor=0.2", sure=0.0, bias=SURE)
    assert not any("encoder_learning_rate_factor" in override for override in tries(slow)), (
        "that would be faster"
    )


def test_codes_that_tell_no_row_from_another(examined: Examined) -> None:
    """All rows are alike: the codes vary, are worth their price, and another row's do as well."""
    measured, found = examined(windows=windows_of(in_turn=True), sure=SURE, per=1)
    assert measured.code_perplexity == pytest.approx(2.0)
    assert measured.shuffling_cost_nats_per_token == pytest.approx(0.0, abs=1e-6)
    assert found[0].tone == "read"
    assert "Yet the codes tell no row from another" in found[0].what
    assert tries(found)[0] == "model.prior=learned"
    _, found = examined(sure=SURE, per=1)
    assert not any("tell no row" in finding.what for finding in found)


def test_far_above_its_budget(examined: Examined) -> None:
    _, found = examined("loss.budget_bits=0.1", sure=SURE)
    (told,) = [finding for finding in found if "times its budget" in finding.what]
    assert told.what == "The raw KL is 10.0 times its budget; a nat of it costs 1 on average."
    assert [one.overrides for one in told.tries] == [("loss.beta=2",), ("loss.budget_bits=1",)]
    _, found = examined("loss.budget_bits=0.6", sure=SURE)
    assert not any("times its budget" in finding.what for finding in found)


def test_a_budget_that_each_unit_has_is_told_per_unit(examined: Examined) -> None:
    measured, _ = examined("loss.budget_bits=0.1", sure=SURE)
    found = findings_of(replace(measured, units=4), resolved_as("loss.budget_bits=0.1", "loss.per=unit"))
    assert "loss.budget_bits=0.25" in tries(found)


@pytest.mark.parametrize(
    ("overrides", "mended"),
    [
        (("loss={kind: cross_entropy}",), ["loss.kind=elbo"]),
        (("loss.budget_bits=.inf",), ["loss.budget_bits=0.5"]),
        (("loss.beta=0", "loss.budget_bits=0"), ["loss.beta=1"]),
        (("loss.autoencoder_steps=100", "loss.budget_bits=0"), []),  # step 7: it will cost something later
    ],
)
def test_a_kl_that_costs_nothing(overrides: tuple[str, ...], mended: list[str], examined: Examined) -> None:
    measured, found = examined(*overrides, sure=SURE)
    assert not measured.budget_nats_per_slot, "no budget, and one without end is none"
    (told,) = [finding for finding in found if "charges nothing for the KL" in finding.what]
    assert told.tone == "note"
    assert tries([told]) == mended
    json.dumps(measured.__dict__, allow_nan=False)
    _, found = examined("loss.budget_bits=0", sure=SURE)
    assert not any("charges nothing" in finding.what for finding in found)


def test_a_kind_that_is_not_installed_is_not_advised(examined: Examined) -> None:
    resolved = resolved_as("loss={kind: cross_entropy}")
    measured, found = examined("loss={kind: cross_entropy}", sure=SURE)
    assert "loss.kind=elbo" in tries(found)
    bare = resolved.registry.extended([])
    del bare.kinds["loss"]["elbo"]
    assert "loss.kind=elbo" not in tries(findings_of(measured, replace(resolved, registry=bare)))


def test_a_family_whose_kl_has_a_floor_is_judged_by_its_codes(
    examined: Examined, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lvlm_free.binary.Binary.can_be_prior", False)
    measured, found = examined(sure=0.0, bias=SURE)
    assert measured.kl_has_floor
    assert "one code is all there is" in found[0].what
    low = replace(measured, kl_nats_per_slot=0.0, kl_nats_per_token=0.0, code_perplexity=2.0)
    assert findings_of(low, resolved_as())[0].tone == "can't tell", "its KL shows nothing"


def test_untrained_tensors_are_named(examined: Examined) -> None:
    measured, _ = examined(sure=SURE)
    measured = replace(measured, never_updated=["a", "b", "c", "d"])
    told = "\n".join(
        finding.what for finding in findings_of(measured, resolved_as()) if finding.tone == "fault"
    )
    assert "4 of 4 tensors never got a gradient in training, nor changed: a, b, c, …." in told


@pytest.mark.parametrize("loss", ["loss.budget_bits=0.1", "loss.budget_bits=0", "loss={kind: cross_entropy}"])
@pytest.mark.parametrize("bit", [{"sure": 0.1}, {"sure": SURE, "loud": 0.0}, {"sure": 0.0, "bias": SURE}])
def test_every_try_is_a_recipe(loss: str, bit: dict[str, float], examined: Examined) -> None:
    _, found = examined(loss, **bit)
    resolved = resolved_as(loss)
    for finding in found:
        for one in finding.tries:
            mended = read_recipe(resolved.recipe, one.overrides, registry=resolved.registry).recipe
            assert mended != resolved.recipe, one
    if "cross_entropy" in loss:
        assert {word for word in tries(found) if word.startswith("loss.")} <= {"loss.kind=elbo"}
    assert tries(found), "no advice at all"


# -------------------------------------------------------------------------------------------------- whole
# runs


@pytest.mark.parametrize("arm", ["free", "gptvae"])
def test_the_numbers_of_a_run_are_those_that_it_logged(arm: str, runs: Path) -> None:
    found = lvlm.doctor(runs / arm)
    measured = found.measured
    assert measured is not None
    entry = next(entry for entry in logged(runs / arm, "evaluate") if entry["step"] == found.step)
    assert measured.kl_nats_per_token == pytest.approx(entry["kl"], rel=1e-5)
    assert measured.ce_posterior_nats_per_token == pytest.approx(entry["ce_posterior"], rel=1e-3)
    tokens_per_slot = 12 if arm == "gptvae" else 1
    assert measured.kl_nats_per_slot == pytest.approx(tokens_per_slot * entry["kl"], rel=1e-5)
    assert (measured.code_perplexity is None) is (arm == "gptvae"), "vectors have no frequencies"
    assert measured.windows == 4
    assert measured.never_updated == []


def test_a_latent_that_was_too_dear_says_nothing(runs: Path) -> None:
    found = lvlm.doctor(runs / "dear")
    assert (found.findings[0].tone, found.findings[0].what[:24]) == ("not read", "There is nothing to read")
    for one in found.findings[0].tries:
        read_run(runs / "dear", one.overrides)


def test_more_windows(runs: Path) -> None:
    """As many as are asked for, of which the usual ones are the first."""
    few, more = lvlm.doctor(runs / "free").measured, lvlm.doctor(runs / "free", windows=8).measured
    assert few is not None
    assert more is not None
    assert (few.windows, more.windows) == (4, 8)
    with pytest.raises(UserError, match="windows is 0; it is at least 1"):
        lvlm.doctor(runs / "free", windows=0)


def test_a_checkpoint_that_diverged_is_refused(examined: Examined) -> None:
    with pytest.raises(UserError, match="this checkpoint diverged"):
        examined(sure=SURE, loud=math.nan)


def test_the_price_is_that_of_the_checkpoint_s_controller(text: Path, tmp_path: Path) -> None:
    run = lvlm.train(tiny("free", text, loss={"term": {"kind": "lagrangian"}}), tmp_path / "run")
    measured = lvlm.doctor(run).measured
    price = load_trainer_state(Checkpoints(run).newest())["loss"]["charge.term._extra_state"]["price_u"]
    assert float(price) not in (0.0, 1.0)
    assert measured is not None
    assert measured.beta_effective == pytest.approx(float(price), rel=1e-5)


def test_two_calls_agree_and_nothing_is_changed(runs: Path) -> None:
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    for arm in ARMS:
        one = lvlm.doctor(runs / arm)
        torch.manual_seed(1)
        state = torch.get_rng_state()
        assert lvlm.doctor(runs / arm) == one, "a module of that name in the way, or a noise without a seed"
        assert torch.equal(torch.get_rng_state(), state)
    assert before == {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}


def test_other_data_are_refused(tmp_path: Path) -> None:
    text = write_text(tmp_path)
    run = lvlm.train(tiny("free", text, train={"steps": 2}), tmp_path / "run")
    write_text(tmp_path, verse="another verse")
    with pytest.raises(UserError, match="the data changed since the run began"):
        lvlm.doctor(run)


def test_another_step(runs: Path) -> None:
    last = lvlm.doctor(runs / "free")
    assert (last.step, last.newest_step) == (10, 10)
    other = lvlm.doctor(runs / "free", step=8)
    assert (other.step, other.newest_step) == (8, 10)
    assert last.measured != other.measured


def test_a_part_from_a_plugin_file(text: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "coins.py"
    plugin.write_text(
        "from typing import Literal\n"
        "from lvlm.hookspecs import hookimpl\n"
        "from lvlm.interfaces import Remedy\n"
        "from lvlm_free.binary import BinaryParams\n"
        "class CoinsParams(BinaryParams):\n"
        '    """Bits by another name."""\n'
        '    kind: Literal["coins"] = "coins"\n'
        "    def remedies(self, case):\n"
        '        """Groups of one bit."""\n'
        '        yield Remedy(("bits_per_group=1",), "each bit for itself")\n'
        "@hookimpl\n"
        "def register_quantizers(register):\n"
        "    register(CoinsParams)\n"
    )
    recipe = tiny("free", text, model={"quantizer": {"kind": "coins"}}, plugins=[str(plugin)])
    run = lvlm.train(recipe, tmp_path / "run")
    with pytest.raises(UserError, match="--plugin FILE"):
        lvlm.doctor(run)
    found = lvlm.doctor(run, plugin_files=[str(plugin)])
    assert "model.quantizer.bits_per_group=1" in tries(found.findings)


# --------------------------------------------------------------------------------------------- the command
# line

Lvlm = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Lvlm:
    """`lvlm doctor …`, in this process: status, standard output, standard error."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lvlm", "doctor", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


def test_what_the_console_shows(runs: Path, run_doctor: Lvlm) -> None:
    status, out, _ = run_doctor(runs / "dear", "--step", "8")
    assert status == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0].startswith("step 8 (newest: 10), 4 validation windows (")
    for name in ("raw KL", "ce_posterior", "ce_prior", "ce_shuffled", "change of output", "gradient norm"):
        assert any(line.startswith(name) for line in lines), name
    assert any("at most 48, the slots seen" in line for line in lines)
    assert any(line.startswith("not read There is nothing to read: ") for line in lines)
    assert any(line.startswith("try loss.term.kind=lagrangian loss.budget_bits=0.5: ") for line in lines)
    assert any(line.startswith("try 'loss.beta={start: 0, end: 100, steps: 5}': ") for line in lines), (
        "unquoted"
    )


def test_a_run_without_a_latent(runs: Path, run_doctor: Lvlm) -> None:
    status, out, err = run_doctor(runs / "baseline")
    assert (status, err) == (0, "")
    assert " ".join(out.split()) == "note The model has no latent: there is nothing to examine."


@pytest.mark.parametrize("arm", ["baseline", "free"])
def test_json_stands_alone(arm: str, runs: Path, run_doctor: Lvlm, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal there is a bar; it goes to the standard error."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    status, out, err = run_doctor(runs / arm, "--json")
    assert status == 0
    assert "examining" in err
    record = json.loads(out)
    found = lvlm.doctor(runs / arm)
    assert record["step"] == found.step
    assert (record["measured"] is None) is (arm == "baseline")
    assert [finding["what"] for finding in record["findings"]] == [finding.what for finding in found.findings]
    if found.measured is not None:
        assert record["measured"] == found.measured.__dict__


def test_mistakes_are_told_in_words(runs: Path, run_doctor: Lvlm, text: Path) -> None:
    for words, told in (
        ((text.parent,), "holds no run"),
        ((runs / "fre",), "no such run; did you mean 'free'?"),
        ((runs / "free", "--step", "9"), "no checkpoint of step 9; kept: 8, 10"),
    ):
        status, out, err = run_doctor(*words)
        assert (status, out) == (2, "")
        assert told in err
        assert "Traceback" not in err


def test_a_kind_says_itself_what_to_try(examined: Examined, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor asks each kind of the recipe, those among a kind's options too; what a recipe refuses is
    left out.
    """
    cases: list[Case] = []

    def remedies(_: BinaryParams, case: Case) -> Iterator[Remedy]:
        cases.append(case)
        yield Remedy(("bits=0",), "refused")
        yield Remedy(("bits=3", "bits_per_group=1"), f"it is {case.trouble}")

    def faster(*_: Any) -> Iterator[Remedy]:
        yield Remedy(("kind=mask",), "of the term")

    monkeypatch.setattr(BinaryParams, "remedies", remedies)
    monkeypatch.setattr(HingeParams, "remedies", faster)
    _, found = examined(sure=0.1)
    given = {one.overrides: one.why for one in found[0].tries}
    assert given["model.quantizer.bits=3", "model.quantizer.bits_per_group=1"] == "it is silent"
    assert given["loss.term.kind=mask",] == "of the term"
    assert not any("quantizer.bits=0" in override for overrides in given for override in overrides)
    assert {case.trouble for case in cases} >= {"silent"}
    assert all(case.steps > 0 and case.units > 0 for case in cases)
