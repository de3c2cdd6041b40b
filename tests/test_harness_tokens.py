"""The harness's texts as tokens, with tokenizers of several kinds: borders, beginnings and ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import lvlm
from lvlm.data.codecs import ByteCodec
from lvlm.errors import UserError
from lvlm.model.latent_lm import LatentLM
from tests.tiny import tiny, write_text
from tests.tokenizers_of_others import KINDS, codec_of, write_documents, write_tokenizer

pytest.importorskip("lm_eval")

CONTEXT = 24
PAIRS = (
    ("The river keeps", " a slow account"),
    ("The river keeps ", "a slow account"),
    ("Keeps every  ", " stone"),
    ("the river", " it"),
    ("", "nobody reads"),
    ("Nobody reads the book until spring. The river keeps a slow account of every", " stone it moves"),
)


def model_of(folder: Path, kind: str, arm: str = "baseline") -> LatentLM:
    """A model that wasn't trained, for a tokenizer of a kind, or for bytes."""
    data: dict[str, Any] = {"path": str(write_documents(folder / "documents.txt"))}
    if kind != "bytes":
        data["tokenizer"] = str(write_tokenizer(kind, folder / "tokenizer.json"))
    made = tiny(arm, write_text(folder), data=data, model={"backbone": {"context": CONTEXT}})
    torch.manual_seed(0)
    return lvlm.build(made).eval()


def adapter_of(model: LatentLM, **options: Any) -> Any:
    from lvlm.evaluation.harness import HarnessLM

    assert model.codec is not None
    return HarnessLM(model, model.codec, k=2, **options)


def request(*args: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance("loglikelihood", {}, args, 0)


def by_hand(model: LatentLM, prompt: list[int], text: list[int]) -> tuple[float, bool]:
    """The sum of the log-probabilities of a text's tokens, and whether each is the likeliest; the window is
    cut as lm-eval's own model of Hugging Face checkpoints cuts it.
    """
    window = (prompt + text)[-(CONTEXT + 1) :]
    with torch.no_grad():
        logits_TV = model(torch.tensor([window[:-1]])).logits_BTV[0, -len(text) :]
    log_p_T = logits_TV.log_softmax(-1).gather(1, torch.tensor(text)[:, None])[:, 0]
    return float(log_p_T.sum()), logits_TV.argmax(-1).tolist() == text


@pytest.mark.parametrize("kind", ["bytes", *KINDS])
def test_a_baselines_scores_are_those_of_the_harnesss_pairs(tmp_path: Path, kind: str) -> None:
    from lm_eval.api.model import TemplateLM

    model = model_of(tmp_path, kind)
    adapter = adapter_of(model)
    wanted = []
    for context, said in PAIRS:
        if context:
            pair = TemplateLM._encode_pair(adapter, context, said)
        else:
            pair = [adapter.prefix_token_id], adapter.tok_encode(said)
        wanted.append(by_hand(model, *pair))
    found = adapter.loglikelihood([request(*pair) for pair in PAIRS])
    assert [score for score, _ in found] == pytest.approx([score for score, _ in wanted], abs=1e-4)
    assert [likely for _, likely in found] == [likely for _, likely in wanted]
    assert found[0] == found[1], "a space at the end of a context belongs to the continuation"


def test_what_is_likeliest_is_greedy(tmp_path: Path) -> None:
    adapter = adapter_of(model_of(tmp_path, "bytelevel"))
    prompt = adapter.tok_encode("The river")
    (sample,) = lvlm.generate(adapter.model, prompt, 4, temperature=0.0)
    said, other = sample.tokens, [*sample.tokens[:3], (sample.tokens[3] + 1) % 256]
    texts = ("The river", "…")
    ((_, likely), (_, unlikely)) = adapter._loglikelihood_tokens(
        [(texts, prompt, said), (texts, prompt, other)]
    )
    assert likely
    assert by_hand(adapter.model, prompt, said)[1]
    assert not unlikely


@pytest.mark.parametrize("arm", ["baseline", "free"])
def test_a_choice_that_merges_with_its_context_is_not_free(tmp_path: Path, arm: str) -> None:
    model = model_of(tmp_path, "bytelevel", arm)
    adapter = adapter_of(model)
    context, said = "it moves t", "he"
    assert len(adapter.tok_encode(context + said)) < len(adapter.tok_encode(context)), "they merge"
    prompt, text = adapter._encode_pair(context, said)
    assert (prompt, text) == (adapter.tok_encode(context), adapter.tok_encode(said))
    assert adapter.merged == 1
    ((score, _),) = adapter.loglikelihood([request(context, said)])
    assert adapter.merged == 2
    assert score < -1
    if arm == "baseline":
        assert score == pytest.approx(by_hand(model, prompt, text)[0], abs=1e-4)
    adapter._encode_pair("it moves", " the river")
    assert adapter.merged == 2, "these don't"


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_without_a_context_follows_the_end_of_a_document(tmp_path: Path, kind: str) -> None:
    model = model_of(tmp_path, kind)
    adapter, end = adapter_of(model), codec_of(kind).id_of("</s>")
    assert adapter.prefix_token_id == adapter.eot_token_id == end
    said = adapter.tok_encode("nobody reads")
    (score,) = adapter.loglikelihood_rolling([request("nobody reads")])
    assert score == pytest.approx(by_hand(model, [end], said)[0], abs=1e-4)
    assert adapter._encode_pair("", "nobody reads") == ([end], said)
    assert adapter._encode_pair("", "</s>nobody") == ([end], adapter.tok_encode("</s>nobody")[1:])
    assert adapter._encode_pair("", "</s>") == ([end], [end])
    blank, _ = adapter._encode_pair("  ", "nobody")
    assert blank == [end], "a context of spaces has no token of its own"


def test_bytes_follow_a_newline_which_is_text_and_no_mark(tmp_path: Path) -> None:
    model = model_of(tmp_path, "bytes")
    adapter = adapter_of(model)
    assert (adapter.prefix_token_id, adapter.eot_token_id) == (10, None)
    assert adapter._encode_pair("", "\nab") == ([10], list(b"\nab")), "no token of a text is free"


def test_data_say_what_stands_in_front(tmp_path: Path) -> None:
    model = model_of(tmp_path, "bytelevel")
    from lvlm.evaluation.harness_text import newline

    assert model.codec is not None
    line = newline(model.codec)
    assert line is not None
    assert model.codec.decode([line]) == "\n"
    assert adapter_of(model, prefix=line).prefix_token_id == line
    other = codec_of("bytelevel").id_of("<unk>")
    named = adapter_of(model, document_end=other)
    assert named.prefix_token_id == named.eot_token_id == other
    assert newline(ByteCodec()) == 10
    assert newline(codec_of("wordpiece")) is None


def test_without_an_end_or_a_newline_a_context_is_asked_for() -> None:
    model = lvlm.build({"extends": "baseline", "data": {"kind": "letters"}, "model": SMALL}).eval()
    adapter = adapter_of(model)
    for ask in (
        lambda: adapter.loglikelihood_rolling([request("AAAA")]),
        lambda: adapter.loglikelihood([request("", "AAAA")]),
        lambda: adapter.generate_until([request("", {"max_gen_toks": 2})]),
    ):
        with pytest.raises(UserError, match="newline.*letters.*give each text a context"):
            ask()
    assert adapter.loglikelihood([request("A>", "_A")])[0][0] < 0


SMALL = {"backbone": {"layers": 2, "width": 16, "heads": 2, "context": 66}}


def test_a_choice_that_the_tokenizer_forgets_is_refused(tmp_path: Path) -> None:
    adapter = adapter_of(model_of(tmp_path, "wordpiece"))
    for context in ("", "the river"):
        with pytest.raises(UserError, match=r"the choice '\\n' has no tokens"):
            adapter.loglikelihood([request(context, "\n")])
        assert adapter.loglikelihood([request(context, "")]) == [(0.0, True)]
    assert adapter.loglikelihood_rolling([request("")]) == [0.0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampled", [False, True])
def test_prompt_and_answer_are_the_text_of_all_tokens(tmp_path: Path, kind: str, sampled: bool) -> None:
    model = model_of(tmp_path, kind)
    adapter = adapter_of(model)
    assert model.codec is not None
    prompt = model.codec.encode("The river")
    ask = {"max_gen_toks": 6, "do_sample": sampled}
    (answer,) = adapter.generate_until([request("The river", ask)])
    from lvlm.evaluation.harness import _seed

    temperature = 1.0 if sampled else 0.0
    (sample,) = lvlm.generate(model, prompt, 6, temperature=temperature, seed=_seed(0, prompt))
    whole = model.codec.decode(prompt + sample.tokens)
    assert answer
    assert (model.codec.decode(prompt) + answer).startswith(whole.split("</s>")[0])


@pytest.mark.parametrize("kind", ["bytelevel", "wordpiece", "sentencepiece"])
def test_the_end_of_a_document_ends_an_answer(tmp_path: Path, kind: str) -> None:
    model = model_of(tmp_path, kind)
    assert model.codec is not None
    prompt = model.codec.encode("The river")
    (sample,) = lvlm.generate(model, prompt, 8, temperature=0.0)
    end = next(token for token in reversed(sample.tokens) if model.codec.decode([token]).strip())
    before = sample.tokens[: sample.tokens.index(end)]
    adapter = adapter_of(model, document_end=end)
    (answer,) = adapter.generate_until([request("The river", {"until": ["\n\n"], "max_gen_toks": 8})])
    whole = model.codec.decode(prompt + before)
    assert whole.startswith(model.codec.decode(prompt) + answer)
    assert model.codec.decode([end]).strip() not in answer


def test_chat_templates_are_refused(tmp_path: Path) -> None:
    adapter = adapter_of(model_of(tmp_path, "bytes"))
    assert adapter.chat_template(False) == ""
    for ask in (
        lambda: adapter.tokenizer_name,
        lambda: adapter.chat_template(True),
        lambda: adapter.apply_chat_template([{"role": "user", "content": "hi"}]),
    ):
        with pytest.raises(UserError, match="no chat template"):
            ask()
