"""Rows of two texts: the encoder reads one, the decoder writes the other, and every number stays what it says."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import lvlm
from lvlm.cli.app import app
from lvlm.data import NoisedData, Source, TextData, Windows
from lvlm.data.files import tell_once
from lvlm.data.noised import NoisedSource, noised, sentence
from lvlm.errors import Interrupted, UserError
from lvlm.generation.interpolate import texts_between
from lvlm.interfaces import IGNORE, Batch
from lvlm.likelihood import Effort, EstimatorParams
from lvlm.likelihood.score import score
from lvlm.model.latent_lm import LatentLM
from lvlm.recipe.read import read_recipe
from lvlm.testing import check_data
from lvlm_free.learned_query import LearnedQueryParams
from lvlm_gptvae.bidirectional import BidirectionalParams
from lvlm_gptvae.prefix import PrefixParams
from tests.test_estimators import BOUNDS, ONE, model_of, repeated, rows_of
from tests.test_parallel import assert_same_training, finish, launch
from tests.tiny import before_step, logged, tiny, weights

NOISED = NoisedData()


def recipe_of(arm: str = "two_texts", *, seam: int = 0, **train: Any) -> dict[str, Any]:
    """An arm on noised sentences, small, on the CPU."""
    small = tiny(arm, Path("unused"), train=train)
    small["data"] = {"kind": "noised"}
    if seam:
        small["model"] |= {"seam": seam, "encoder": {"kind": "learned_query", "per": "sequence"}}
    return small


def model_without_gradients(*args: Any, **options: Any) -> LatentLM:
    with torch.no_grad():
        return model_of(*args, **options)


def model_and_batch(seam: int = 0, arm: str = "two_texts") -> tuple[LatentLM, Batch]:
    """An untrained model, and validation rows."""
    model = lvlm.build(recipe_of(arm, seam=seam)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return model, NOISED.open().windows(4).batch


def posterior(model: LatentLM, batch: Batch, **options: Any) -> Tensor:
    latent = model(
        batch.inputs_BT,
        batch.keep_BT,
        latent_tokens_BU=batch.latent_inputs_BU,
        latent_keep_BU=batch.latent_keep_BU,
        generator=torch.Generator().manual_seed(0),
        **options,
    ).latent
    assert latent is not None
    assert latent.posterior_BSK is not None
    return latent.posterior_BSK


def other_first(tokens_BT: Tensor) -> Tensor:
    """The same rows with another first token."""
    changed = tokens_BT.clone()
    changed[:, 0] = (changed[:, 0] + 1) % NOISED.vocab
    return changed


# ---- the model -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seam", [0, 1])
def test_the_encoder_sees_one_text_and_the_decoder_the_other(seam: int) -> None:
    model, batch = model_and_batch(seam)
    assert batch.latent_inputs_BU is not None
    before = posterior(model, batch)
    row = Batch(other_first(batch.inputs_BT), *batch.tensors[1:])
    assert torch.equal(posterior(model, row), before)
    other = Batch(*batch.tensors[:3], other_first(batch.latent_inputs_BU), batch.latent_keep_BU)
    after = posterior(model, other)
    assert ((after - before).abs().amax((1, 2)) > 1e-6).all()

    codes = torch.zeros(4, 1, 16)
    given = [
        model(one.inputs_BT, one.keep_BT, latent_tokens_BU=one.latent_inputs_BU, z=codes).logits_BTV
        for one in (batch, other, row)
    ]
    assert torch.equal(given[0], given[1])
    assert not torch.allclose(given[0], given[2])
    plain = model(batch.inputs_BT, batch.keep_BT, z=codes).logits_BTV
    assert torch.equal(given[0], plain)


def test_a_model_without_a_latent_does_not_read_it() -> None:
    model, batch = model_and_batch(arm="baseline")
    with_it = model(batch.inputs_BT, batch.keep_BT, latent_tokens_BU=batch.latent_inputs_BU).logits_BTV
    assert torch.equal(with_it, model(batch.inputs_BT, batch.keep_BT).logits_BTV)


def test_the_prior_reads_the_row() -> None:
    recipe = recipe_of(seam=1)
    recipe["model"]["prior"] = "learned"
    model, batch = lvlm.build(recipe).eval(), NOISED.open().windows(4).batch
    assert model.latent is not None and model.latent.prior_head is not None
    torch.nn.init.normal_(model.latent.prior_head.weight)

    def prior(one: Batch) -> Tensor:
        output = model(one.inputs_BT, one.keep_BT, latent_tokens_BU=one.latent_inputs_BU)
        found: Tensor = output.latent.prior_BSJ
        return found

    assert batch.latent_inputs_BU is not None
    other = Batch(*batch.tensors[:3], other_first(batch.latent_inputs_BU))
    row = Batch(other_first(batch.inputs_BT), *batch.tensors[1:])
    assert torch.equal(prior(batch), prior(other))
    assert not torch.allclose(prior(batch), prior(row))


def test_no_token_of_the_other_text_is_dropped() -> None:
    model, batch = model_and_batch(seam=1)
    model.token_dropout = 0.9
    model.train()
    seen = [posterior(model, batch, dropout_generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    assert torch.equal(*seen)
    model.reads_other_text = False  # a model of such data refuses rows without the text
    own = [
        model(batch.inputs_BT, dropout_generator=torch.Generator().manual_seed(seed)).latent.posterior_BSK
        for seed in (1, 2)
    ]
    assert not torch.allclose(*own)


def test_padding_of_either_text_is_invisible() -> None:
    model, batch = model_and_batch(seam=1)
    assert batch.latent_inputs_BU is not None and batch.latent_keep_BU is not None
    both = Batch(
        batch.inputs_BT.where(batch.keep_BT, 7),
        batch.targets_BT,
        batch.keep_BT,
        batch.latent_inputs_BU.where(batch.latent_keep_BU, 7),
        batch.latent_keep_BU,
    )
    torch.testing.assert_close(posterior(model, both), posterior(model, batch))
    one = batch[1:2]
    assert one.latent_keep_BU is not None and one.latent_inputs_BU is not None
    tokens, latent_tokens = int(one.keep_BT.sum()), int(one.latent_keep_BU.sum())
    short = Batch(*(x[:, :tokens] for x in one.tensors[:3]), one.latent_inputs_BU[:, :latent_tokens])
    torch.testing.assert_close(posterior(model, short), posterior(model, batch)[1:2], atol=1e-5, rtol=1e-5)


def test_another_text_that_cannot_be_read_is_refused_in_words() -> None:
    model, batch = model_and_batch()
    tokens, other = batch.inputs_BT, batch.latent_inputs_BU
    assert other is not None
    for given, says in (
        ({"latent_tokens_BU": [1]}, r"latent_tokens is \[1\]"),
        ({"latent_tokens_BU": other[:2]}, "latent_tokens has 2 rows, and tokens 4"),
        ({"latent_tokens_BU": other + 100}, "token ids from 1"),
        ({"latent_tokens_BU": other, "latent_keep_BU": other}, r"latent_keep is int64\[4, 7\]"),
        ({"latent_keep_BU": other}, "latent_keep is given without latent_tokens"),
        ({"latent_tokens_BU": other.repeat(1, 3)}, "longer than the model allows"),
    ):
        with pytest.raises(UserError, match=says):
            model(tokens, **given)
    with pytest.raises(UserError, match="it yields a code per token of what it reads"):
        lvlm.build(tiny("free", Path("unused")))(tokens[:, :9], latent_tokens_BU=other[:, :9])


def test_a_batch_keeps_its_other_text() -> None:
    batch = NOISED.open().windows(4).batch
    assert len(batch.tensors) == len(batch[1:3].tensors) == len(batch.to("cpu").tensors) == 5
    assert "latent_inputs_BU=int64[4, 7]" in repr(batch)
    without_keep = Batch(*batch.tensors[:4])
    assert without_keep.latent_keep_BU is not None and without_keep.latent_keep_BU.all()
    assert len(Batch(*batch.tensors[:3]).tensors) == 3
    changed = Batch(*batch.tensors[:3], batch.tensors[3] + 1, batch.tensors[4])
    assert len({Windows.of(one).digest for one in (batch, changed, Batch(*batch.tensors[:3]))}) == 3


# ---- bounds --------------------------------------------------------------------------------------------

DRAWS = 6000


@pytest.mark.parametrize("prior", ["fixed", "learned"])
@pytest.mark.parametrize("kind", BOUNDS, ids=lambda kind: kind.kind_name())
@torch.no_grad()
def test_bounds_hold_with_a_posterior_of_another_text(kind: EstimatorParams, prior: str) -> None:
    encoder, injection = BidirectionalParams, PrefixParams(length=2)
    model = model_of("sequence", encoder=encoder, injection=injection, prior=prior)
    one = Batch(*ONE.tensors, torch.tensor([[1, 1, 0, 2, 2, 0]]))
    exact = rows_of(model, one)
    assert not torch.allclose(exact.posterior_BSK, rows_of(model, ONE).posterior_BSK)
    assert torch.equal(exact.prior_BSJ, rows_of(model, ONE).prior_BSJ)
    codes = exact.code_sequences()
    assert model.latent is not None
    log_p_N = model.latent.quantizer.log_prob(codes, exact.prior_BSJ.expand(len(codes), -1, -1)).sum(-1)
    truth = float((log_p_N - exact.cost_of(codes[None])[0]).logsumexp(0))

    many = repeated(one, DRAWS)
    nats = kind.build(Effort(k=2, chunk=2, resample_below=1.0))(rows_of(model, many, at_once=20_000)).nats
    if kind.unbiased:
        weight = (-nats - truth).exp()
        assert abs(float(weight.mean()) - 1) < 5 * float(weight.std()) / DRAWS**0.5 + 1e-9
    assert float(nats.mean()) >= -truth - 5 * float(nats.std()) / DRAWS**0.5


@torch.no_grad()
def test_a_score_takes_the_codes_of_the_other_text() -> None:
    model = model_of("sequence", encoder=BidirectionalParams, injection=PrefixParams(length=2))
    text, prompt, rest = [1, 0, 2], [0, 2], [0, 1, 1]
    row = Batch(torch.tensor([[0, 2, 0, 1]]), torch.tensor([[IGNORE, 0, 1, 1]]), torch.ones(1, 4).bool())
    whole = Batch(*row.tensors, torch.tensor([text]))
    rows = rows_of(model, whole)
    assert model.latent is not None
    quantizer, codes = model.latent.quantizer, rows.code_sequences()
    cost_N = rows.cost_of(codes[None])[0]

    def expected(numbers_BSn: Tensor) -> float:
        log_N = quantizer.log_prob(codes, numbers_BSn.expand(len(codes), -1, -1)).sum(-1)
        return float((log_N - cost_N).logsumexp(0))

    found = score(model, prompt, rest, latent_text=text, k=20_000, rows=20_000).log_prob_nats
    assert found == pytest.approx(expected(rows.posterior_BSK), abs=0.01)
    model.reads_other_text = True  # then a prompt alone says nothing of the code
    found = score(model, prompt, rest, k=20_000, rows=20_000).log_prob_nats
    assert found == pytest.approx(expected(rows.prior_BSJ), abs=0.01)
    with pytest.raises(UserError, match="the latent text has 0 tokens"):
        score(model, prompt, rest, latent_text=[])
    with pytest.raises(UserError, match="code per token"):
        score(model_of("token"), prompt, rest, latent_text=text)


# ---- generation and encoding ---------------------------------------------------------------------------


@pytest.mark.parametrize("encoder", [BidirectionalParams, LearnedQueryParams])
def test_generation_takes_codes_from_the_encoder_that_reads_the_latent_text(encoder: Any) -> None:
    model = model_without_gradients("sequence", encoder=encoder).float()
    encoded = lvlm.encode(model, [[1, 2, 1, 0]], seed=5)[0].codes
    (made,) = lvlm.generate(model, [[0, 1]], 3, latent_text=[[1, 2, 1, 0]], seed=5)
    assert made.codes is not None and torch.equal(made.codes, encoded)
    forward = model(torch.tensor([made.prompt + made.tokens[:-1]]), z=made.codes[None]).logits_BTV
    log_p = forward.log_softmax(-1)[0, len(made.prompt) - 1 :]
    torch.testing.assert_close(made.log_prob_N, log_p[torch.arange(3), made.tokens].detach())

    several = lvlm.generate(model, [[0, 1], [2]], 3, latent_text=[[1, 2, 1, 0], [0]], samples=2, seed=5)
    alone = lvlm.generate(model, [[2]], 3, latent_text=[[0]], seed=7)[0]
    assert several[2].tokens == alone.tokens and several[0].tokens == made.tokens
    for_all = lvlm.generate(model, [[0, 1], [2]], 3, latent_text=[1, 2, 1, 0], seed=5)
    assert for_all[0].tokens == made.tokens


def test_without_a_latent_text_a_model_of_two_texts_draws_from_the_prior() -> None:
    model = model_without_gradients("sequence", sure=30.0).float()
    by_prior = lvlm.generate(model, [[0, 1]], 3, samples=16, prompt_codes="prior")
    by_prompt = lvlm.generate(model, [[0, 1]], 3, samples=16)
    model.reads_other_text = True
    found = lvlm.generate(model, [[0, 1]], 3, samples=16)

    def codes(samples: list[Any]) -> list[int]:
        return [int(one.codes) for one in samples]

    assert codes(found) == codes(by_prior) != codes(by_prompt)


def test_a_latent_text_out_of_place_is_refused_in_words() -> None:
    model = model_without_gradients("sequence").float()
    for options, says in (
        ({"latent_text": [[1]], "codes": 0}, "codes are given, and a latent_text"),
        ({"latent_text": [[1]], "prompt_codes": "prior"}, "prompt_codes: prior doesn't ask it"),
        ({"latent_text": [[1], [0], [1]]}, "3 latent texts for 2 prompts; give one, or one for each"),
        ({"latent_text": [[9]]}, "the latent text: tokens 9 to 9"),
        ({"latent_text": "some"}, "a latent text is text, but the model has no codec"),
        ({"latent_txt": "some"}, "did you mean 'latent_text'"),
    ):
        with pytest.raises(UserError, match=says):
            lvlm.generate(model, [[0], [1]], 2, **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="it yields a code per token"):
        lvlm.generate(model_without_gradients("token").float(), [[0]], 2, latent_text=[[1]])
    with pytest.raises(UserError, match="the model has no latent"):
        lvlm.generate(LatentLM(model.backbone), [[0]], 2, latent_text=[[1]])


def test_the_kl_of_an_encoded_text_is_to_the_prior_of_what_is_written() -> None:
    model = model_without_gradients("sequence", prior="learned")
    model.reads_other_text = True
    with pytest.raises(UserError, match="give what is written as well"):
        lvlm.encode(model, [[1, 2]])
    with pytest.raises(UserError, match="2 written texts for 1 texts"):
        lvlm.encode(model, [[1, 2]], written=[[0], [1]])
    found = lvlm.encode(model, [[1, 2]], written=[[2, 0, 1]])[0]
    latent = model(torch.tensor([[2, 0, 1]]), latent_tokens_BU=torch.tensor([[1, 2]])).latent
    assert latent is not None and latent.kl_BSd is not None
    torch.testing.assert_close(found.kl_Sd, latent.kl_BSd[0].detach())
    assert found.tokens == [1, 2]
    with pytest.raises(UserError, match="give their prompt"):
        texts_between(model, "a", "b")


# ---- data ----------------------------------------------------------------------------------------------


def write_pairs(path: Path, count: int = 60, **more: str) -> Path:
    rows = [{"text": f"sentence {n}", "latent_text": f"{n} sentence"} for n in range(count)]
    path.write_text("".join(json.dumps(row | more) + "\n" for row in rows))
    return path


def pairs(path: Path, **options: Any) -> TextData:
    return TextData(path=str(path), window=8, latent_field="latent_text", **options)


def texts_of(batch: Batch) -> list[tuple[str, str]]:
    """What the rows say."""
    assert batch.latent_inputs_BU is not None and batch.latent_keep_BU is not None
    rows = zip(*batch.tensors, strict=True)
    return [
        (
            bytes([int(inputs[0]), *targets[targets != IGNORE].tolist()]).decode(),
            bytes(latent[latent_keep].tolist()).decode(),
        )
        for inputs, targets, _, latent, latent_keep in rows
    ]


def test_a_row_is_a_document_with_its_other_text(tmp_path: Path) -> None:
    source = pairs(write_pairs(tmp_path / "pairs.jsonl"), latent_window=40).open()
    found = texts_of(source.train_batch(seed=0, step=0, rows=20))
    assert all(text == "sentence "[:9] for text, _ in found)  # window 8: nine characters of a document
    wide = TextData(path=source.params.path, window=20, latent_field="latent_text").open()  # type: ignore[attr-defined]
    for text, latent in texts_of(wide.train_batch(seed=0, step=0, rows=20)):
        assert text.endswith("\n")
        assert latent == " ".join(text.split()[::-1])


def test_what_is_cut_or_left_out_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_pairs(tmp_path / "pairs.jsonl")
    with path.open("a") as file:
        file.write('{"text": "", "latent_text": "nothing"}\n')
    tell_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        pairs(path, latent_window=10).open()
    (line,) = caplog.messages
    assert "of 61 documents 60 are cut to data.window (8 tokens and the one behind them)" in line
    assert "50 have an other text that is cut to 10 tokens" in line
    assert "1 have fewer than two tokens and are left out" in line


def test_the_other_text_is_a_part_of_the_content(tmp_path: Path) -> None:
    one, other = write_pairs(tmp_path / "a.jsonl"), write_pairs(tmp_path / "b.jsonl", latent_text="same")
    assert pairs(one).open().fingerprint != pairs(other).open().fingerprint
    assert pairs(one).open().fingerprint == pairs(one).open().fingerprint


def test_documents_are_split_whole_and_equal_texts_together(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"text": f"text {n // 2}", "latent_text": f"{n}"} for n in range(2000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = pairs(path).open()
    held = [
        {text for text, _ in texts_of(source.windows(60, split).batch)} for split in ("validation", "test")
    ]
    train = {text for text, _ in texts_of(source.train_batch(seed=0, step=0, rows=2000))}
    assert not held[0] & held[1] and not train & (held[0] | held[1])
    few = pairs(write_pairs(tmp_path / "few.jsonl", 3)).open()  # one for each split
    assert len(few.windows(1, "test").batch) == 1
    with pytest.raises(UserError, match="2 documents are too few"):
        pairs(write_pairs(tmp_path / "two.jsonl", 2)).open()


def test_broken_pairs_are_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"text": "a b", "latent": "b"}\n')
    with pytest.raises(UserError, match=r"pairs.jsonl:1: no field 'latent_text'.*did you mean"):
        pairs(path).open()
    with pytest.raises(UserError, match=r"pairs.jsonl:1: the other text is empty"):
        pairs(write_pairs(path, latent_text="")).open()
    (tmp_path / "plain.txt").write_text("text")
    with pytest.raises(
        UserError, match=r"'.*plain.txt' has no fields, and data.latent_field is 'latent_text'"
    ):
        pairs(tmp_path / "plain.txt").open()


def test_columns_of_a_dataset_and_its_own_splits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from lvlm.data import HuggingFaceData

    def rows(name: str, count: int) -> Any:
        texts = [f"{name} {n}" for n in range(count)]
        return datasets.Dataset.from_dict({"text": texts, "noisy": [text[::-1] for text in texts]})

    folder = tmp_path / "saved"
    datasets.DatasetDict({"train": rows("t", 100), "dev": rows("d", 10)}).save_to_disk(str(folder))
    params = HuggingFaceData(path=str(folder), window=12, latent_field="noisy", validation="dev")
    source = params.open()
    for text, latent in texts_of(source.windows(8).batch):
        assert text.startswith("d ") and latent == text.strip()[::-1]
    assert all(text.startswith("t ") for text, _ in texts_of(source.windows(4, "test").batch))
    with pytest.raises(UserError, match="no field 'nois'.*did you mean 'noisy'"):
        params.model_copy(update={"latent_field": "nois"}).open()


def read(data: dict[str, Any], **model: Any) -> None:
    said = {"extends": "two_texts", "data": data}
    read_recipe(said | ({"model": model} if model else {}))


def test_rules_of_recipes() -> None:
    text = {"kind": "text", "path": "x.jsonl", "window": 32}
    for data, model, says in (
        (
            {"kind": "noised"},
            {"encoder": {"per": "token"}},
            "model.encoder.per: the encoder reads another text",
        ),
        (
            {"kind": "noised"},
            {"backbone": {"context": 6}},
            "rows of 7 tokens are longer than the back",
        ),
        (text | {"latent_window": 9}, {}, "data.latent_window: goes with a latent_field"),
        (
            text | {"latent_field": "a", "latent_window": 99},
            {},
            "data.latent_window: other texts of 99 tokens",
        ),
        (
            {"kind": "huggingface", "hub": "x", "window": 8, "streaming": True, "latent_field": "a"},
            {},
            "data.streaming: a stream reads one text a row",
        ),
        (
            {"kind": "mixture", "parts": {"a": {"kind": "noised"}, "b": {"kind": "noised", "drop": 0.5}}},
            {},
            None,
        ),
    ):
        if says is None:
            read(data, **model)
            continue
        with pytest.raises(UserError, match=says):
            read(data, **model)
    parts = {"a": {**text, "latent_field": "b"}, "b": text}
    with pytest.raises(UserError, match="parts.b: has one text a row, and 'a' has another text of 32 tokens"):
        read({"kind": "mixture", "parts": parts})
    for injection in ("add", "kv", "prefix"):
        read({"kind": "noised"}, injection={"kind": injection})


def test_noised_sentences() -> None:
    words = sentence(np.zeros(9))
    assert " ".join(words) == "the big bear asks the big bear"
    none, every = np.ones((3, 7)), np.zeros((3, 7))
    assert noised(words, none, mask=0.5, drop=0.5, swap=0.5) == " ".join(words)
    assert noised(words, every, mask=1.0, drop=0.0, swap=0.0) == "_ _ _ _ _ _ _"
    assert noised(words, every, mask=0.0, drop=1.0, swap=0.0) == "the"
    assert noised(words[:3], every, mask=0.0, drop=0.0, swap=1.0) == "big bear the"
    plain = NoisedData(mask=0, drop=0, swap=0).open().windows(64).batch
    codec = NOISED.codec
    for text, latent in zip(plain.tensors[0], plain.tensors[3], strict=True):
        assert text.tolist() == latent.tolist(), (codec.decode(text.tolist()), codec.decode(latent.tolist()))
    longest = max(NOISED.open().windows(2000).batch.keep_BT.sum(1).tolist())
    assert longest <= NOISED.tokens == NOISED.latent_tokens == 7


# ---- what is wrong with a kind is found ----------------------------------------------------------------


class BrokenSource(NoisedSource):
    """A source whose other texts are broken in one way."""

    breaks: str = ""

    def _rows(self, u_NC: Any) -> Batch:
        *row, ids_NU, keep_NU = super()._rows(u_NC).tensors
        match self.breaks:
            case "none":
                return Batch(*row)
            case "ids out of range":
                ids_NU[0, 0] = 99
            case "padding on the left":
                keep_NU[0, 0] = False
            case "nothing to read":
                keep_NU[0] = False
            case "another length":
                ids_NU, keep_NU = ids_NU[:, 1:], keep_NU[:, 1:]
            case "one for all":
                ids_NU[:], keep_NU[:] = ids_NU[:1].clone(), keep_NU[:1].clone()
            case "no pure function":
                self.drawn = getattr(self, "drawn", 0) + 1
                ids_NU[:, 0] = self.drawn % self.params.vocab
        return Batch(*row, ids_NU, keep_NU)


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        ("none", "latent_tokens is 7, and a row has no latent_inputs_BU"),
        ("ids out of range", "latent_inputs_BU holds ids beyond"),
        ("padding on the left", "padding of another text stands on the right"),
        ("nothing to read", "other text has nothing to read"),
        ("another length", r"latent_inputs_BU is \[8, 6\]"),
        ("one for all", "all rows have the same other text"),
        ("no pure function", "no prefix of more|not the same each time"),
    ],
)
def test_a_broken_kind_fails_in_words(monkeypatch: pytest.MonkeyPatch, breaks: str, message: str) -> None:
    def opened(self: NoisedData) -> Source:
        source = BrokenSource(self)
        source.breaks = breaks
        return source

    monkeypatch.setattr(NoisedData, "open", opened)
    with pytest.raises(AssertionError, match=message):
        check_data(NOISED)


def test_an_undeclared_other_text_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NoisedData, "latent_tokens", None)
    with pytest.raises(AssertionError, match="latent_tokens is None"):
        check_data(NOISED)


# ---- runs ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lvlm.train(recipe_of(), tmp_path_factory.mktemp("runs") / "two")


def test_a_run_is_evaluated_with_its_other_texts(run: Path, tmp_path: Path) -> None:
    found = lvlm.evaluate(run, k=[1, 4])
    windows = NOISED.open().windows(4, "test")
    assert found["windows_hash"] == windows.digest
    kl_nats = float(rows_of(lvlm.load(run).eval(), windows.batch).kl_of_draws(1).detach().double().sum())
    assert found["estimates"]["kl"]["nats_per_token"] == pytest.approx(
        kl_nats / found["target_tokens"], rel=1e-5
    )
    oracle = found["estimates"]["nll_oracle"]["nats_per_token"]
    bounds = [one["nats_per_token"] for one in found["estimates"].values() if one["bound"]]
    assert min(bounds) > oracle
    control = lvlm.train(recipe_of("baseline"), tmp_path / "control")
    assert lvlm.evaluate(control)["windows_hash"] == windows.digest
    assert lvlm.doctor(run).measured is not None
    with pytest.raises(UserError, match="some of these are padded"):
        lvlm.steer(run, groups=2, samples=2, sources=2)


def test_the_command_line_takes_a_latent_text(run: Path) -> None:
    made = CliRunner().invoke(
        app, ["sample", str(run), "--prompt", "the", "--latent-text", "old fox", "--tokens", "4", "--json"]
    )
    assert made.exit_code == 0, made.output
    read_back = CliRunner().invoke(app, ["encode", str(run), "--text", "old fox", "--json"])
    assert read_back.exit_code == 0, read_back.output
    (sample,), (encoded,) = json.loads(made.stdout), json.loads(read_back.stdout)
    assert sample["codes"] == encoded["codes"]
    assert "".join(encoded["texts"]) == "old fox"
    both = ["sample", str(run), "--prompt", "the", "--latent-text", "old", "--codes-of", "fox"]
    refused = CliRunner().invoke(app, both)
    assert refused.exit_code == 2
    assert "codes are given by --latent-text and --codes-of; choose one" in refused.output


def test_resumed_equals_uninterrupted(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:

        def stop() -> None:
            raise KeyboardInterrupt

        before_step(patch, 6, stop)
        with pytest.raises((KeyboardInterrupt, Interrupted)):
            lvlm.train(recipe_of(), tmp_path / "cut")
    lvlm.train(recipe_of(), tmp_path / "cut", resume=True)
    assert logged(tmp_path / "cut") == logged(run)
    for name, value in weights(tmp_path / "cut").items():
        assert torch.equal(value, weights(run)[name])


def test_micro_batches_and_workers_train_the_same(run: Path, tmp_path: Path) -> None:
    other = lvlm.train(recipe_of(micro_rows=2, workers=1), tmp_path / "micro")
    for a, b in zip(logged(other), logged(run), strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def test_rows_grow_short_to_long_and_the_other_text_stays_whole() -> None:
    from lvlm.data import open_reader

    reader = open_reader(NOISED.open(), seed=0, rows=2, length=5)
    batch = reader.batch(0)
    assert [x.shape[1] for x in batch.tensors] == [5, 5, 5, 7, 7]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    recipe = recipe_of(seam=1)  # blocks below the seam run over both texts
    started = [launch(ranks, recipe, tmp_path / str(ranks)) for ranks in (1, 2)]
    for processes in started:
        finish(processes)
    assert_same_training(tmp_path / "2", tmp_path / "1")


def test_text_files_of_two_fields_train(tmp_path: Path) -> None:
    recipe = recipe_of()
    path = write_pairs(tmp_path / "pairs.jsonl", 200)
    recipe["data"] = {"kind": "text", "path": str(path), "window": 14, "latent_field": "latent_text"}
    out = lvlm.train(recipe, tmp_path / "run")
    assert lvlm.evaluate(out)["estimates"]["elbo"]["nats_per_token"] > 0
    plan = lvlm.plan(recipe)
    recipe["data"]["latent_window"] = 16
    assert lvlm.plan(recipe).flops_per_token > plan.flops_per_token


@pytest.mark.slow
def test_the_shipped_recipe_learns_to_read(tmp_path: Path) -> None:
    """The right code says more of the sentence than the decoder knows without: log of its choices, per word."""
    out = lvlm.train("two_texts", tmp_path / "run", "train.threads=1")
    last = logged(out, "evaluate")[-1]
    windows = NOISED.open().windows(64).batch
    oracle = float(NOISED.open().oracle_nll_nats(windows).sum()) / windows.num_targets
    assert last["worth_low"] > 0.1
    assert last["ce_posterior"] < oracle - 0.1
