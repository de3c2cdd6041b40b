"""Our models in lm-eval, on tasks made here: no download."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import lvlm
from lvlm.errors import MissingLibrary, UserError
from lvlm.likelihood.score import score
from tests.tiny import tiny, write_text
from tests.tokenizers_of_others import codec_of, write_documents, write_tokenizer


def test_without_lm_eval_it_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "lvlm.evaluation.harness", None)
    with pytest.raises(MissingLibrary, match=r"pip install -e '\.\[lm-eval\]'"):
        lvlm.lm_eval(tmp_path, ["anything"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("lm_eval")
    folder = tmp_path_factory.mktemp("harness")
    lvlm.train(tiny("free", write_text(folder)), folder / "run")
    return folder / "run"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf" / "datasets"))


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    documents = [{"ask": "10 lines", "choices": [" of", " xq"], "answer": n % 2} for n in range(4)]
    documents.append(
        {"ask": "a prompt that is longer than the context", "choices": [" a", " b"], "answer": 0}
    )
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, documents)))
    common = f"""
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder / "data.jsonl"}}}}}
test_split: test
doc_to_text: "{{{{ask}}}}"
"""
    (folder / "choose.yaml").write_text(
        f"task: choose_here\noutput_type: multiple_choice\n{common}"
        'doc_to_choice: choices\ndoc_to_target: answer\nmetric_list: [{metric: acc}]\ntarget_delimiter: ""\n'
    )
    (folder / "write.yaml").write_text(
        f"task: write_here\noutput_type: generate_until\n{common}"
        'doc_to_target: "of"\nmetric_list: [{metric: exact_match}]\ngeneration_kwargs: '
        '{until: ["\\n"], max_gen_toks: 3}\n'
    )
    (folder / "read.yaml").write_text(
        f"task: read_here\noutput_type: "
        f'loglikelihood_rolling\n{common.replace("{{ask}}", "")}doc_to_target: "{{{{ask}}}}"\n'
        "metric_list: [{metric: bits_per_byte}]\n"
    )
    return folder


@pytest.mark.usefixtures("offline")
def test_local_tasks_run_and_say_the_same_again(run: Path, tasks: Path) -> None:
    names = ["choose_here", "write_here", "read_here"]
    found = lvlm.lm_eval(run, names, k=3, include_path=tasks)
    assert set(found["results"]) == set(names)
    assert 0 <= found["results"]["choose_here"]["acc,none"] <= 1
    assert 0 < found["results"]["read_here"]["bits_per_byte,none"] < 20
    assert found["truncated"] >= 2
    assert found == lvlm.lm_eval(run, names, k=3, include_path=tasks)
    assert "choose_here" in lvlm.lm_eval(run, ["choose_here"], limit=1, include_path=tasks)["results"]


def harness(run: Path, **options: Any) -> Any:
    from lvlm.evaluation.harness import HarnessLM
    from lvlm.runs.opened import open_run

    opened = open_run(run)
    return HarnessLM(opened.model, opened.recipe.data.codec, k=3, **options)


def seed_of(context: list[int]) -> int:
    from lvlm.evaluation.harness import _seed

    return _seed(0, context)


def request(*args: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance("loglikelihood", {}, args, 0)


def test_a_score_is_ours_and_depends_on_no_other_request(run: Path) -> None:
    adapter = harness(run)
    requests = [request("10 l", "ines"), request("10 l", "xxxx"), request("", "nothing before")]
    found = adapter.loglikelihood(requests)
    assert adapter.loglikelihood(requests[::-1]) == found[::-1]
    assert adapter.loglikelihood(requests[1:2]) == found[1:2]
    seed = seed_of(list(b"10 l"))
    assert found[0][0] == score(adapter.model, list(b"10 l"), list(b"ines"), k=3, seed=seed).log_prob_nats
    assert found[0] != harness(run, seed=1).loglikelihood(requests[:1])[0]


def test_greedy_is_what_greedy_decoding_says(run: Path) -> None:
    adapter = harness(run)
    (text,) = adapter.generate_until([request("10 l", {"until": [], "max_gen_toks": 3})])
    scores = adapter.loglikelihood([request("10 l", text), request("10 l", "zzz")])
    assert [likely for _, likely in scores] == [True, False]
    first = text[0]
    assert adapter.generate_until([request("10 l", {"until": [first], "max_gen_toks": 3})]) == [""]


def test_a_long_text_is_scored_token_by_token_once(run: Path) -> None:
    adapter = harness(run)
    text = "a latent that nobody reads is a number"  # 16 tokens of context
    (found,) = adapter.loglikelihood_rolling([request(text)])
    ids = list(text.encode())
    pieces = [([10], ids[:16]), (ids[15:16], ids[16:32])]
    for prompt, piece in pieces:
        found -= score(adapter.model, prompt, piece, k=3, seed=seed_of(prompt)).log_prob_nats
    assert -6 * 6 < found < 0  # the last six tokens, with what came before as their context
    assert math.isfinite(found)


@pytest.mark.usefixtures("offline")
def test_what_became_of_the_requests_is_told(
    run: Path, tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edited = (tasks / "write.yaml").read_text().replace("max_gen_toks: 3", "max_new_tokens: 300")
    (tasks / "write.yaml").write_text(edited)
    found = lvlm.lm_eval(run, ["choose_here", "write_here"], k=1, include_path=tasks)
    assert (found["truncated"], found["shortened"], found["merged"]) == (3, 5, 0)
    told = capsys.readouterr().err
    assert "3 contexts were cut on the left to fit 16 tokens" in told
    assert "5 answers were kept shorter than their task allows" in told
    (tasks / "write.yaml").write_text(edited.replace("until:", "num_beams: 3, until:"))
    with pytest.raises(UserError, match="num_beams is 3"):
        lvlm.lm_eval(run, ["write_here"], k=1, include_path=tasks)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("kind", "keeps"), [("wordpiece", False), ("bytelevel", True)])
def test_no_bits_per_byte_where_the_tokenizer_forgets(
    tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, keeps: bool
) -> None:
    text = write_documents(tmp_path / "documents.txt")
    data = {"path": str(text), "tokenizer": str(write_tokenizer(kind, tmp_path / "tokenizer.json"))}
    lvlm.train(tiny("baseline", text, data=data), tmp_path / "run")
    found = lvlm.lm_eval(tmp_path / "run", ["read_here", "choose_here"], k=1, include_path=tasks)
    assert ("bits_per_byte,none" in found["results"]["read_here"]) == keeps
    assert found["left_out"] == ({} if keeps else {"read_here": ["bits_per_byte"]})
    assert ("read_here: bits_per_byte left out" in capsys.readouterr().err) != keeps
    assert "acc,none" in found["results"]["choose_here"]


@pytest.mark.usefixtures("offline")
def test_a_text_follows_what_stood_between_texts_in_training(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lvlm.evaluation import harness

    seen: list[Any] = []

    class Seen(harness.HarnessLM):
        def loglikelihood_rolling(self, *args: Any, **options: Any) -> Any:
            seen.append((self.prefix_token_id, self.eot_token_id))
            return super().loglikelihood_rolling(*args, **options)

    monkeypatch.setattr(harness, "HarnessLM", Seen)
    text = write_documents(tmp_path / "documents.txt")
    tokenizer, rows = write_tokenizer("bytelevel", tmp_path / "tokenizer.json"), tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": line}) + "\n" for line in text.read_text().splitlines()))
    codec = codec_of("bytelevel")
    end, other, line = codec.id_of("</s>"), codec.id_of("<unk>"), codec.encode("\n")[0]
    shared = {"tokenizer": str(tokenizer), "window": 12}
    documents = {**shared, "kind": "huggingface", "path": str(rows)}
    for number, (data, wanted) in enumerate(
        (
            ({**shared, "kind": "text", "path": str(text)}, (line, end)),
            (documents, (end, end)),
            ({**documents, "end_of_document": "<unk>"}, (other, other)),
        )
    ):
        recipe = {**tiny("baseline", text), "data": data}
        lvlm.train(recipe, tmp_path / str(number))
        lvlm.lm_eval(tmp_path / str(number), ["read_here"], k=1, limit=1, include_path=tasks)
        assert seen.pop() == wanted


@pytest.mark.usefixtures("offline")
def test_a_chat_template_is_refused(run: Path, tasks: Path) -> None:
    import lm_eval

    from lvlm.evaluation.harness_results import find_tasks

    with pytest.raises(UserError, match="no chat template"):
        lm_eval.simple_evaluate(
            model=harness(run),
            tasks=["choose_here"],
            task_manager=find_tasks(["choose_here"], tasks),
            apply_chat_template=True,
        )


@pytest.mark.usefixtures("offline")
def test_mistakes_are_told(run: Path, tasks: Path) -> None:
    with pytest.raises(UserError, match="unknown task 'chose_here'.*did you mean 'choose_here'"):
        lvlm.lm_eval(run, ["chose_here"], include_path=tasks)
    with pytest.raises(UserError, match="no folder of tasks"):
        lvlm.lm_eval(run, ["choose_here"], include_path=tasks / "none")
    with pytest.raises(UserError, match="a choice of 20 tokens is longer than the model's context of 16"):
        harness(run).loglikelihood([request("a", "b" * 20)])
    with pytest.raises(UserError, match="k is 0"):
        lvlm.lm_eval(run, ["choose_here"], include_path=tasks, k=0)
