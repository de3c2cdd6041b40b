"""Kinds of data that a plugin brings, and that `check_data` finds what is wrong with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lvlm
from lvlm.data import CoinData, MixtureData, Windows
from lvlm.data.coin import CoinSource
from lvlm.errors import UserError
from lvlm.interfaces import Batch
from lvlm.recipe.read import read_recipe
from lvlm.registry.registry import Registry
from lvlm.testing import check_data
from tests.test_docs import ROOT, fences
from tests.tiny import tiny, write_text

# ---- a stranger's kind: the example of docs/plugins.md -------------------------------------------------


@pytest.fixture
def markov(tmp_path: Path) -> Path:
    """The plugin file."""
    (source,) = [
        fence.text
        for fence in fences((ROOT / "docs" / "plugins.md").read_text())
        if fence.option("file") == "markov.py"
    ]
    path = tmp_path / "markov.py"
    path.write_text(source)
    return path


def test_a_plugins_kind_is_listed_and_in_the_schema(markov: Path) -> None:
    (kind,) = [kind for kind in lvlm.kinds("data", plugin_files=[str(markov)]) if kind.plugin]
    assert (kind.name, kind.plugin) == ("markov", "markov")
    schema = lvlm.schema(plugin_files=[str(markov)])
    assert "markov" in schema["properties"]["data"]["discriminator"]["mapping"]
    parts = schema["$defs"]["MixtureData"]["properties"]["parts"]["additionalProperties"]
    assert "markov" in parts["discriminator"]["mapping"]
    assert "mixture" not in parts["discriminator"]["mapping"]
    assert "markov" not in json.dumps(lvlm.schema())


def mixture(**parts: Any) -> dict[str, Any]:
    return {"extends": "baseline", "data": {"kind": "mixture", "parts": parts}}


def test_a_plugins_kind_may_be_a_part_of_a_mixture(markov: Path) -> None:
    said = mixture(slow={"kind": "markov", "stay": 0.9}, fast={"kind": "markov"})
    data = read_recipe(said, plugin_files=[markov]).recipe.data
    assert type(data) is MixtureData
    assert [part.kind_name() for part in data.parts.values()] == ["markov", "markov"]
    check_data(data)
    with pytest.raises(UserError, match=r"data.parts.b: has other tokens \(coin\) than 'a' \(markov\)"):
        read_recipe(mixture(a={"kind": "markov"}, b={"kind": "coin"}), plugin_files=[markov])
    with pytest.raises(UserError, match=r"data.parts.a.sty: unknown key 'sty'; did you mean 'stay'\?"):
        read_recipe(mixture(a={"kind": "markov", "sty": 0.5}), plugin_files=[markov])


def test_a_kind_that_may_be_no_part_is_refused_in_words(markov: Path) -> None:
    no_part = '    kind: Literal["markov"] = "markov"\n    may_be_part = False\n'
    source = markov.read_text().replace('    kind: Literal["markov"] = "markov"\n', no_part)
    source = source.replace("from typing import Literal", "from typing import ClassVar, Literal")
    markov.write_text(source.replace("may_be_part =", "may_be_part: ClassVar[bool] ="))
    says = r"data.parts.a.kind: a markov can't be a part of a mixture; name its parts here; known: bins, coin"
    with pytest.raises(UserError, match=says):
        read_recipe(mixture(a={"kind": "markov"}), plugin_files=[markov])


def test_a_plugins_attributes_are_steered_by_and_a_run_names_the_plugin(tmp_path: Path, markov: Path) -> None:
    data = {"kind": "mixture", "parts": {"only": {"kind": "markov", "length": 12}}}
    train = {"steps": 2, "evaluate_every": 2, "rows": 4}
    for name, said in (("plain", data["parts"]["only"]), ("mixed", data)):  # type: ignore[index]
        recipe = tiny("free", write_text(tmp_path), train=train) | {"data": said, "plugins": [str(markov)]}
        run = lvlm.train(recipe, tmp_path / name)
        record = json.loads((run / "run.json").read_text())
        assert {plugin["name"] for plugin in record["plugins"]} >= {"baseline", "free", "markov"}
        with pytest.raises(
            UserError, match=r"(?s)unknown data 'markov'.*was trained with the plugin 'markov'"
        ):
            lvlm.load(run)
    found = lvlm.steer(
        tmp_path / "plain",
        plugin_files=[str(markov)],
        groups=4,
        samples=2,
        sources=4,
        prompt_tokens=1,
    )
    assert [number.name for number in found.numbers] == ["changes"]


def test_the_cores_kinds_are_in_no_runs_list_of_plugins(tmp_path: Path) -> None:
    run = lvlm.train(
        tiny("baseline", write_text(tmp_path), train={"steps": 2, "evaluate_every": 2}), tmp_path / "run"
    )
    plugins = json.loads((run / "run.json").read_text())["plugins"]
    assert [plugin["name"] for plugin in plugins] == ["baseline"]


def test_a_kind_needs_a_method_open(tmp_path: Path) -> None:
    (tmp_path / "closed.py").write_text(
        "from typing import Literal\nfrom lvlm.data import DataParams\nfrom lvlm.hookspecs import hookimpl\n"
        'class Closed(DataParams):\n    """Rows."""\n    kind: Literal["closed"] = "closed"\n'
        "@hookimpl\ndef register_data(register): register(Closed)\n"
    )
    with pytest.raises(UserError, match="Closed needs a method open"):
        Registry.load(files=[tmp_path / "closed.py"])


# ---- what is wrong is found ----------------------------------------------------------------------------


class BrokenSource(CoinSource):
    """A source with one method exchanged."""

    breaks: str = ""

    def train_batch(self, *, seed: int, step: int, rows: int) -> Batch:
        if self.breaks == "one seed for all":
            seed = 0
        batch = super().train_batch(seed=seed, step=step, rows=rows)
        match self.breaks:
            case "rows depend on their number":
                return super().train_batch(seed=seed, step=step + rows, rows=rows)
            case "no pure function":
                self.drawn = getattr(self, "drawn", 0) + 1
                return super().train_batch(seed=seed, step=step + 10**9 * self.drawn, rows=rows)
            case "held-out rows are trained on":
                return super().windows(rows, "test").batch
            case "global randomness":
                torch.rand(1)
            case "an id too large":
                batch.inputs_BT[0, 0] = 3
            case "targets that are no next inputs":
                return Batch(batch.inputs_BT, batch.targets_BT.flip(1), batch.keep_BT)
            case "padding on the left":
                batch.keep_BT[0, 0] = False
        return batch

    def windows(self, count: int, split: Any = "validation") -> Windows:
        windows = super().windows(count, "test" if self.breaks == "one split for two" else split)
        if self.breaks == "a digest of nothing":
            return Windows(windows.batch, "0" * 64)
        if self.breaks == "windows backwards":
            rows = windows.batch
            return Windows.of(
                Batch(*(x_BT.flip(0) for x_BT in (rows.inputs_BT, rows.targets_BT, rows.keep_BT)))
            )
        return windows

    def oracle_nll_nats(self, batch: Batch) -> Any:
        nats_N = super().oracle_nll_nats(batch)
        match self.breaks:
            case "an oracle that is too sure":
                return nats_N - 0.5
            case "an oracle of other rows":
                return CoinSource(CoinData(length=10, noise=0.3)).oracle_nll_nats(batch)
            case "an oracle of all rows at once":
                return nats_N + np.arange(len(nats_N))
            case "an oracle of the first bits":
                nats_N = CoinSource(self.params).oracle_nll_nats(
                    Batch(batch.inputs_BT[:, :5], batch.targets_BT[:, :5], batch.keep_BT[:, :5])
                )
                return np.where(np.isinf(super().oracle_nll_nats(batch)), np.inf, nats_N)
        return nats_N

    def sample_prompt(self) -> str:
        return "" if self.breaks == "no prompt" else super().sample_prompt()


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        ("rows depend on their number", "fewer training rows are no prefix of more"),
        ("no pure function", "depends on what was drawn before it"),
        ("one seed for all", "two seeds or steps have the same rows"),
        ("held-out rows are trained on", "two seeds or steps|share rows"),
        ("global randomness", "global randomness was used or seeded"),
        ("an id too large", "inputs_BT holds ids beyond 0..2"),
        ("targets that are no next inputs", "a target is not the next input"),
        ("padding on the left", "padding stands on the right"),
        ("one split for two", "test and validation share rows|validation and test share rows"),
        ("a digest of nothing", r"the digest is `Windows.of\(batch\)`'s"),
        ("windows backwards", "fewer validation windows are no prefix of more"),
        ("an oracle that is too sure", "sum to 1.6"),
        ("an oracle of other rows", "not the -log p of the rows that are drawn"),
        ("an oracle of all rows at once", "the oracle of a row depends on the rows beside it"),
        ("an oracle of the first bits", "the probabilities of all rows sum to 32"),
        ("no prompt", "the sample prompt has 0 characters"),
    ],
)
def test_a_broken_kind_fails_in_words(monkeypatch: pytest.MonkeyPatch, breaks: str, message: str) -> None:
    params = CoinData.example()

    def opened(self: CoinData) -> CoinSource:
        source = BrokenSource(self)
        source.breaks = breaks
        return source

    monkeypatch.setattr(CoinData, "open", opened)
    with pytest.raises(AssertionError, match=message):
        check_data(params)
