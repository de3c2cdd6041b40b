"""Recipes and studies: every way to be wrong, in words and at its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lvlm.errors import UserError
from lvlm.recipe import files as recipe_files
from lvlm.recipe.files import recipes_dir
from lvlm.recipe.read import json_schema, read_recipe, recipe_model
from lvlm.recipe.recipe import Recipe, Resolved
from lvlm.recipe.study import read_study
from lvlm.recipe.tree import RecipeError
from lvlm.registry.registry import Registry

TOY = '''
from typing import Annotated, ClassVar, Literal
from pydantic import Field, field_validator
from lvlm.hookspecs import hookimpl
from lvlm.interfaces import *

class Stack(BackboneParams):
    """A stack."""
    kind: Literal["stack"] = "stack"
    def build(self, *, vocab): ...

class Query(EncoderParams):
    """One slot per what you like."""
    kind: Literal["learned_query"] = "learned_query"
    def build(self, *, backbone): ...

class Binary(QuantizerParams):
    """Bits."""
    kind: Literal["binary"] = "binary"
    bits: int = Field(ge=1, le=16)
    mode: Literal["joint", "grouped"] = "joint"
    def build(self, *, embedding_dim): ...

class Levels(QuantizerParams):
    """A grid of levels."""
    kind: Literal["levels"] = "levels"
    levels: tuple[int, ...] = (5, 5)
    temperature: float = 1.0
    @field_validator("levels")
    @classmethod
    def odd(cls, levels):
        if not all(n % 2 for n in levels):
            raise ValueError("every number of levels must be odd")
        return levels
    def build(self, *, embedding_dim): ...

class KV(InjectionParams):
    """Into keys and values."""
    kind: Literal["kv"] = "kv"
    needs_block: ClassVar[bool] = True
    def build(self, *, width, slots): ...

class Prefix(InjectionParams):
    """In front."""
    kind: Literal["prefix"] = "prefix"
    needs_fixed_slots: ClassVar[bool] = True
    needs_block: ClassVar[bool] = True
    def build(self, *, width, slots): ...

class Add(InjectionParams):
    """Onto the hidden."""
    kind: Literal["add"] = "add"
    def build(self, *, width, slots): ...

class CrossEntropy(LossParams):
    """Without a latent."""
    kind: Literal["ce"] = "ce"
    def build(self): ...

class Elbo(LossParams):
    """With a latent."""
    kind: Literal["elbo"] = "elbo"
    needs_latent: ClassVar[bool] = True
    def build(self): ...

@hookimpl
def register_backbones(register): register(Stack)
@hookimpl
def register_encoders(register): register(Query)
@hookimpl
def register_quantizers(register): register(Binary); register(Levels)
@hookimpl
def register_injections(register): register(KV); register(Prefix); register(Add)
@hookimpl
def register_losses(register): register(CrossEntropy); register(Elbo)
'''

BASE = """\
name: base
model:
  backbone: {kind: stack, layers: 4, width: 32, context: 128}
loss: {kind: ce}
data: {kind: letters}
train: {steps: 50}
"""

FREE = """\
extends: base
name: free
model:
  encoder:
    kind: learned_query
    per: token
  quantizer:
    kind: binary
    bits: 8
  injection: {kind: kv}
loss:
  kind: elbo
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A registry of toy kinds only."""
    file = tmp_path_factory.mktemp("toy") / "toy.py"
    file.write_text(TOY)
    return Registry.load(files=[file], only=())


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose recipes/ are the shipped ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipe_files, "recipes_dir", lambda: tmp_path / "recipes")
    for name, text in {"base": BASE, "free": FREE, "cross/prefix": "extends: free\n"}.items():
        write(f"recipes/{name}.yaml", text)
    return tmp_path


def write(name: str, text: str) -> str:
    """Write a file and give back its name."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return name


Faults = Callable[..., list[str]]


@pytest.fixture
def faults(toy: Registry) -> Faults:
    """The lines of the error that a recipe text and overrides give."""

    def faults(text: str, *overrides: str) -> list[str]:
        write("recipes/bad.yaml", text)
        with pytest.raises(RecipeError) as error:
            read_recipe("recipes/bad.yaml", overrides, registry=toy)
        return str(error.value).splitlines()

    return faults


def test_a_recipe_by_name_by_path_and_as_a_mapping(toy: Registry) -> None:
    by_name = read_recipe("free", registry=toy)
    recipe = by_name.recipe
    assert recipe.name == "free"
    assert (recipe.model.seam_index, recipe.model.has_latent, recipe.train.steps) == (2, True, 50)
    assert recipe.model.quantizer is not None
    assert recipe.model.quantizer.model_dump() == {"kind": "binary", "bits": 8, "mode": "joint"}
    assert (recipe.data.kind, recipe.train.learning_rate, recipe.evaluate.headline) == (
        "letters",
        3e-3,
        "lowest",
    )
    assert by_name.source == "free"
    for source in ("recipes/free.yaml", Path("recipes/free.yaml").absolute(), recipe, recipe.model_dump()):
        assert read_recipe(source, registry=toy).recipe == recipe
    assert read_recipe("cross/prefix", registry=toy).recipe == recipe
    assert not read_recipe("base", registry=toy).recipe.model.has_latent


def test_recipes_are_frozen(toy: Registry) -> None:
    recipe = read_recipe("base", registry=toy).recipe
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 3  # type: ignore[misc]


def test_the_shipped_recipes_lie_beside_the_package_or_in_it() -> None:
    assert recipes_dir().name == "recipes"


class TestWords:
    """What a reader of an error sees."""

    def test_the_two_of_the_design(self, faults: Faults) -> None:
        text = "extends: free\nmodel:\n  quantizer:\n    bitz: 3\n"
        assert faults(text, "model.quantizer.bits=99") == [
            "recipes/bad.yaml:4: model.quantizer.bitz: unknown key 'bitz'; did you mean 'bits'?",
            (
                "override 'model.quantizer.bits=99': model.quantizer.bits: Input should be less than or equal "
                "to 16"
            ),
        ]

    def test_an_override_of_an_unknown_key(self, faults: Faults) -> None:
        assert faults("extends: free", "model.quantizr.bits=8", "trian.steps=3", "zzz=1") == [
            (
                "override 'model.quantizr.bits=8': model.quantizr: unknown key 'quantizr'; did you mean "
                "'quantizer'?"
            ),
            "override 'trian.steps=3': trian: unknown key 'trian'; did you mean 'train'?",
            "override 'zzz=1': zzz: unknown key 'zzz'; known: added_losses, data, description, evaluate, loss, model, "
            "name, "
            "plugins, seed, steer, train",
        ]

    def test_a_missing_key_points_at_the_mapping_around_it(self, faults: Faults) -> None:
        text = "\nseed: 1\nmodel:\n  backbone:\n    kind: stack\n    width: 8\ndata: {kind: letters}\n"
        assert faults(text) == [
            "recipes/bad.yaml:2: name: missing required key 'name'",
            "recipes/bad.yaml:2: loss: missing required key 'loss'",
            "recipes/bad.yaml:4: model.backbone.layers: missing required key 'layers'",
        ]

    def test_kinds(self, faults: Faults) -> None:
        text = (
            "extends: free\nmodel:\n  quantizer: {kind: binery, bitz: 3}\n  encoder: kv\ndata: "
            "{kind: leters, x: 1}\n"
        )
        assert faults(text, "loss={beta: 3}", "model.injection=null", "loss.kind=null") == [
            "recipes/bad.yaml:3: model.quantizer.kind: unknown quantizer 'binery'; known: binary, levels; "
            "did you mean 'binary'?",
            "recipes/bad.yaml:4: model.encoder: needs 'kind'; known: learned_query; write it as {kind: …}",
            "recipes/bad.yaml:5: data.kind: unknown data 'leters'; known: bins, coin, huggingface, "
            "letters, mixture, noised, python, text; "
            "did you mean 'letters'?",
            "override 'loss={beta: 3}': loss: needs 'kind'; known: ce, elbo",
        ]

    def test_a_part_without_kind(self, faults: Faults) -> None:
        assert faults("extends: base\n", "model.quantizer.bits=8") == [
            "override 'model.quantizer.bits=8': model.quantizer: needs 'kind'; known: binary, levels"
        ]

    @pytest.mark.parametrize("kind", ["3", "[binary]", "{a: 1}"])
    def test_a_kind_that_is_no_word(self, faults: Faults, kind: str) -> None:
        (line,) = faults("extends: free\n", f"model.quantizer.kind={kind}")
        assert "model.quantizer.kind: unknown quantizer " in line

    def test_a_required_part_that_is_null(self, faults: Faults) -> None:
        assert faults("extends: base\nloss: null\nmodel: 3") == [
            "recipes/bad.yaml:2: loss: Input should be a mapping",
            "recipes/bad.yaml:3: model: Input should be a mapping",
        ]

    def test_values(self, faults: Faults) -> None:
        text = """\
extends: free
seed: true
model:
  seam: -1
  prior: lerned
  encoder: {per: tokn}
  quantizer: {mode: jont, bits: 8.5}
train:
  learning_rate: fast
  rows: 0
  clip_norm: .inf
  warmup: 3
evaluate: {headline: elbow}
"""
        assert faults(text) == [
            "recipes/bad.yaml:2: seed: Input should be a valid integer",
            "recipes/bad.yaml:4: model.seam: Input should be 'middle' or greater than or equal to 0",
            "recipes/bad.yaml:5: model.prior.kind: unknown prior 'lerned'; known: fixed, learned, linear; "
            "did you mean 'learned'?",
            "recipes/bad.yaml:6: model.encoder.per: Input should be 'token' or 'sequence' or a valid "
            "integer; "
            "did you mean 'token'?",
            "recipes/bad.yaml:7: model.quantizer.bits: Input should be a valid integer",
            (
                "recipes/bad.yaml:7: model.quantizer.mode: Input should be 'joint' or 'grouped'; did you mean "
                "'joint'?"
            ),
            "recipes/bad.yaml:9: train.learning_rate: Input should be a valid number",
            "recipes/bad.yaml:10: train.rows: Input should be greater than or equal to 1",
            "recipes/bad.yaml:11: train.clip_norm: Input should be a finite number",
            "recipes/bad.yaml:12: train.warmup: unknown key 'warmup'; did you mean 'warmup_steps'?",
            "recipes/bad.yaml:13: evaluate.headline: Input should be 'exact', 'elbo', 'prior', 'iwae', "
            "'iwae_prior', "
            "'iwae_mixture', 'smc', 'smc_prior', 'smc_mixture', 'smc_deferred' or 'lowest'; did you mean "
            "'elbo'?",
        ]

    def test_a_plugins_own_validator(self, faults: Faults) -> None:
        text = "extends: free\nmodel:\n  quantizer:\n    kind: levels\n    levels: [3, 4]\n"
        assert faults(text) == [
            "recipes/bad.yaml:5: model.quantizer.levels: every number of levels must be odd"
        ]

    def test_a_failed_plugin_is_suspected(self, toy: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
        registry = toy.extended([])
        monkeypatch.setattr(registry, "left_out", ("gptvae",))
        with pytest.raises(RecipeError, match="LVLM_PLUGINS leaves out gptvae, which may supply it"):
            read_recipe("free", ["model.quantizer.kind=gaussian"], registry=registry)

    def test_without_plugins_every_kind_is_unknown(self) -> None:
        with pytest.raises(RecipeError, match=r"loss\.kind: unknown loss 'ce'; known: none"):
            read_recipe("base", registry=Registry.load(only=()))

    def test_faults_of_overrides_are_told_with_those_of_the_file(self, faults: Faults) -> None:
        assert faults("a: 1\na: 2\n", "b") == [
            "recipes/bad.yaml:2: a: key 'a' is said twice, the first time on line 1",
            "override 'b': write key=value, for example model.quantizer.bits=8 (or key=null)",
        ]

    def test_given_mappings(self, toy: Registry) -> None:
        with pytest.raises(
            RecipeError, match=r"given mapping: train\.stebs: unknown key 'stebs'; did you mean"
        ):
            read_recipe({"extends": "base", "train": {"stebs": 3}}, registry=toy)

    def test_a_study_is_no_recipe(self, faults: Faults) -> None:
        assert "recipes/bad.yaml:2: study: this is a study, not a recipe" in faults(
            "extends: base\nstudy: x\n"
        )


RULES = {
    "trio": (
        ["model.encoder=null", "model.injection=null"],
        "override 'model.encoder=null': model.encoder: encoder, quantizer and injection come all three or "
        "none; "
        "encoder and injection are missing",
    ),
    "seam": (
        ["model.seam=5"],
        "override 'model.seam=5': model.seam: seam 5 lies outside the stack, whose layers are 4",
    ),
    "block": (
        ["model.seam=4"],
        "override 'model.seam=4': model.seam: injection 'kv' needs a block at the seam, but seam 4 is the "
        "end of "
        "the stack; set seam below 4",
    ),
    "prefix block": (
        ["model.seam=4", "model.injection.kind=prefix", "model.encoder.per=sequence"],
        "override 'model.seam=4': model.seam: injection 'prefix' needs a block at the seam, but seam 4 is "
        "the end "
        "of the stack; set seam below 4",
    ),
    "slots": (
        ["model.injection.kind=prefix"],
        "recipes/free.yaml:6: model.encoder.per: injection 'prefix' needs a fixed number of slots, but "
        "encoder "
        "'learned_query' yields one per token; set encoder.per: sequence",
    ),
    "chunks": (
        ["model.injection.kind=prefix", "model.encoder.per=3"],
        "override 'model.encoder.per=3': model.encoder.per: injection 'prefix' needs a fixed number of "
        "slots, but "
        "encoder 'learned_query' yields one per chunk of 3 tokens; set encoder.per: sequence",
    ),
    "no chunk": (
        ["model.encoder.per=0"],
        (
            "override 'model.encoder.per=0': model.encoder.per: Input should be 'token' or 'sequence' or "
            "greater than or equal to 1"
        ),
    ),
    "context": (
        ["model.backbone.context=64"],
        "recipes/base.yaml:5: data: rows of 65 tokens are longer than the backbone's context of 64",
    ),
    "window": (
        ["data={kind: python, window: 200}"],
        "override 'data={kind: python, window: 200}': data.window: rows of 200 tokens are longer than the "
        "backbone's context of 128",
    ),
    "micro rows": (
        ["train.micro_rows=5"],
        (
            "override 'train.micro_rows=5': train.micro_rows: micro_rows 5 must divide rows 16 "
            "(recipes/base.yaml:6)"
        ),
    ),
    "endless": (
        ["train.steps=1000000000001"],
        (
            "override 'train.steps=1000000000001': train.steps: Input should be less than or equal to "
            "1000000000000"
        ),
    ),
    "warm-up": (
        ["train.warmup_steps=51"],
        (
            "override 'train.warmup_steps=51': train.warmup_steps: warmup_steps 51 exceed steps 50 "
            "(recipes/base.yaml:6); "
            "set train.warmup_steps to at most 50, or more train.steps"
        ),
    ),
    "cosine": (
        ["train.final_learning_rate=1"],
        "override 'train.final_learning_rate=1': train.final_learning_rate: final_learning_rate 1.0 exceeds "
        "learning_rate 0.003 (recipes/base.yaml:6), which the cosine comes down from; set "
        "train.final_learning_rate to at most that",
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_rules_across_parts(faults: Faults, rule: str) -> None:
    overrides, message = RULES[rule]
    assert faults("extends: free", *overrides) == [message]


def test_rules_without_a_latent_all_at_once(faults: Faults) -> None:
    mend = "needs a latent, but the model has none; give it encoder, quantizer and injection"
    text = "extends: base\nloss: {kind: elbo}\nmodel:\n  prior: learned\n  latent_dropout: 0.5\n"
    assert faults(text, "train.warmup_steps=60") == [
        f"recipes/bad.yaml:2: loss.kind: loss 'elbo' {mend}",
        f"recipes/bad.yaml:4: model.prior: a learned prior {mend}, or set prior: fixed",
        f"recipes/bad.yaml:5: model.latent_dropout: dropout of the latent {mend}, or set it to 0",
        "override 'train.warmup_steps=60': train.warmup_steps: warmup_steps 60 exceed steps 50 "
        "(recipes/base.yaml:6); "
        "set train.warmup_steps to at most 50, or more train.steps",
    ]


def test_an_addition_may_stand_at_the_end_of_the_stack(toy: Registry) -> None:
    recipe = read_recipe("free", ["model.injection.kind=add", "model.seam=4"], registry=toy).recipe
    assert recipe.model.seam_index == recipe.model.backbone.layers == 4


def test_a_default_that_breaks_a_rule_points_at_what_is_around_it(faults: Faults) -> None:
    assert faults("extends: base\ntrain:\n  steps: 3\n") == [
        "recipes/base.yaml:6: train.warmup_steps: warmup_steps 20 exceed steps 3 (recipes/bad.yaml:3); "
        "set train.warmup_steps to at most 3, or more train.steps"
    ]
    assert faults("extends: base\n", "train.steps=2") == [
        "recipes/base.yaml:6: train.warmup_steps: warmup_steps 20 exceed steps 2 (override 'train.steps=2'); "
        "set train.warmup_steps to at most 2, or more train.steps"
    ]


class TestExtends:
    """Names, paths, several, circles."""

    def test_chain_and_list(self, toy: Registry) -> None:
        write("mine/one.yaml", "train: {rows: 1, steps: 100, log_every: 1}")
        write("mine/two.yml", "train: {rows: 2}\nseed: 2")
        write("mine/deep/run.yaml", "extends: [free, ../one.yaml, ../two.yml]\ntrain: {steps: 200}\n")
        resolved = read_recipe("mine/deep/run.yaml", registry=toy)
        train = resolved.recipe.train
        assert (train.rows, train.steps, train.log_every, resolved.recipe.seed) == (2, 200, 1, 2)
        said = {path: origin for path, _, origin in resolved.describe()}
        assert said["train.rows"] == "mine/two.yml:1"
        assert said["train.steps"] == "mine/deep/run.yaml:2"
        assert said["model.quantizer.bits"] == "recipes/free.yaml:9"
        assert said["train.weight_decay"] == "default"

    def test_circle(self, faults: Faults) -> None:
        write("recipes/other.yaml", "seed: 1\nextends: bad\n")
        assert faults("extends: other\n") == [
            "recipes/other.yaml:2: extends: recipes extend each other in a circle: "
            "recipes/bad.yaml -> recipes/other.yaml -> recipes/bad.yaml"
        ]

    def test_unknown_all_at_once(self, faults: Faults) -> None:
        lines = faults("extends:\n  - fre\n  - bass.yaml\n  - 3\n")
        assert lines == [
            "recipes/bad.yaml:2: extends: no recipe 'fre'; shipped: bad, base, cross/prefix, free; "
            "did you mean 'free'?",
            "recipes/bad.yaml:3: extends: no file 'recipes/bass.yaml'; did you mean 'base.yaml'?; "
            "shipped: bad, base, cross/prefix, free",
            (
                "recipes/bad.yaml:4: extends: Input should be the name or the path of a recipe, or a list of "
                "them"
            ),
        ]

    def test_unknown_from_the_outside(self, toy: Registry) -> None:
        with pytest.raises(UserError, match=r"^no recipe 'fre'; shipped: .*did you mean 'free'\?"):
            read_recipe("fre", registry=toy)
        with pytest.raises(
            UserError, match=r"^no file 'recipes/fre.yaml'; did you mean 'free.yaml'\?; shipped: "
        ):
            read_recipe("recipes/fre.yaml", registry=toy)
        write("mine", BASE)
        with pytest.raises(UserError, match=r"a file's name ends in \.yaml"):
            read_recipe("mine", registry=toy)

    def test_only_a_file_extends(self, faults: Faults) -> None:
        assert faults("extends: base", "extends=free") == [
            "override 'extends=free': only a file can say what it extends"
        ]


class TestPlugins:
    """Those that a recipe or the command line names."""

    SHARP = (
        "from typing import Literal\nfrom lvlm.hookspecs import hookimpl\nfrom lvlm.interfaces import "
        "LossParams\n"
        'class Sharp(LossParams):\n    """Sharp."""\n    kind: Literal["sharp"] = "sharp"\n    def '
        "build(self): ...\n"
        "@hookimpl\ndef register_losses(register): register(Sharp)\n"
    )

    def test_files_are_relative_to_the_recipe(self, toy: Registry, folder: Path) -> None:
        write("mine/parts/sharp.py", self.SHARP)
        write("mine/run.yaml", "extends: base\nplugins: [parts/sharp.py]\nloss: {kind: sharp}\n")
        resolved = read_recipe("mine/run.yaml", registry=toy)
        assert resolved.recipe.loss.kind_name() == "sharp"
        assert resolved.recipe.plugins == [str(folder / "mine/parts/sharp.py"), *toy.files()]
        assert "sharp" not in toy.kinds["loss"]
        write("saved/recipe.yaml", resolved.to_yaml())
        assert read_recipe("saved/recipe.yaml", registry=toy).recipe == resolved.recipe

    def test_files_of_the_command_line_are_written_down(self, toy: Registry, folder: Path) -> None:
        write("sharp.py", self.SHARP)
        resolved = read_recipe("base", ["loss.kind=sharp"], plugin_files=["sharp.py"], registry=toy)
        assert resolved.recipe.plugins == [*toy.files(), str(folder / "sharp.py")]
        assert str(resolved.origins["plugins", 1]) == "--plugin sharp.py"

    def test_what_is_named_must_be_there_all_at_once(self, faults: Faults) -> None:
        write("recipes/broken.py", "raise RuntimeError('no')")
        lines = faults("extends: base\nplugins:\n  - freee\n  - broken.py\n  - brokn.py\n")
        assert lines[0] == "recipes/bad.yaml:3: plugins.0: no plugin 'freee'; known: toy"
        assert lines[1].startswith("recipes/bad.yaml:4: plugins.1: plugin 'broken' (")
        assert lines[1].endswith("dropped: RuntimeError: no (broken.py:1)")
        assert (
            lines[2] == "recipes/bad.yaml:5: plugins.2: no file 'recipes/brokn.py'; did you mean 'broken.py'?"
        )

    def test_installed_ones_are_kept_by_name(self, toy: Registry) -> None:
        resolved = read_recipe("base", ["plugins=[toy]"], registry=toy)
        assert resolved.recipe.plugins == ["toy", *toy.files()]

    @pytest.mark.parametrize("value", ["toy", "[3]", "{a: 1}", "null"])
    def test_what_is_no_list_of_names(self, faults: Faults, value: str) -> None:
        (line,) = faults("extends: base", f"plugins={value}")
        assert line.startswith(f"override 'plugins={value}': plugins")
        assert "Input should be a valid" in line


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["name='1e3'", "description='on: x'", "train.clip_norm=null", "seed=3"],
        ["model.quantizer={kind: levels, levels: [3, 7], temperature: 1e-5}"],
    ],
)
def test_what_is_saved_reads_back_equal(toy: Registry, overrides: list[str]) -> None:
    resolved = read_recipe("free", overrides, registry=toy)
    write("run/recipe.yaml", resolved.to_yaml())
    again = read_recipe("run/recipe.yaml", registry=toy.extended([]))
    assert again.recipe == resolved.recipe
    assert again.to_yaml() == resolved.to_yaml()
    assert all(origin.startswith("run/recipe.yaml:") for _, _, origin in again.describe())


def test_describe_lists_every_value_once(toy: Registry) -> None:
    resolved = read_recipe("free", ["model.seam=1"], registry=toy)
    rows = resolved.describe()
    assert len({path for path, _, _ in rows}) == len(rows)
    assert ("model.seam", 1, "override 'model.seam=1'") in rows
    assert ("model.quantizer.mode", "joint", "default") in rows
    assert ("model.backbone.layers", 4, "recipes/base.yaml:3") in rows


def test_schema(toy: Registry) -> None:
    schema = json_schema(toy)
    json.dumps(schema)
    definitions = schema["$defs"]
    assert definitions["Binary"]["properties"]["bits"]["maximum"] == 16
    assert definitions["Binary"]["description"] == "Bits."
    quantizer = definitions["Model"]["properties"]["quantizer"]
    assert quantizer["description"].startswith("The family of the latent")
    assert quantizer["anyOf"][0]["discriminator"]["mapping"].keys() == {"binary", "levels"}
    assert definitions["TrainParams"]["properties"]["rows"]["description"].startswith(
        "Sequences per optimiser step"
    )
    assert definitions["TrainParams"]["additionalProperties"] is False
    assert schema["required"] == ["name", "model", "loss", "data"]
    assert "extends" in schema["properties"]


def test_equal_registries_give_one_model(toy: Registry) -> None:
    assert recipe_model(toy) is recipe_model(toy.extended([]))
    assert issubclass(recipe_model(toy), Recipe)


STUDY = """\
study: bits
description: How many bits?
base: free
common:
  train: {steps: 30}
seeds: [0, 1]
control: baseline
arms:
  baseline: {extends: base}
  free:
  wide:
    model:
      backbone: {width: 64}
"""


class TestStudies:
    """Arms, grids, seeds; all validated before the first run."""

    @staticmethod
    def faults(toy: Registry, text: str, *overrides: str) -> list[str]:
        write("recipes/studies/bad.yaml", text)
        with pytest.raises(RecipeError) as error:
            read_study("bad", overrides, registry=toy)
        return str(error.value).splitlines()

    def test_arms_and_seeds(self, toy: Registry) -> None:
        write("recipes/studies/bits.yaml", STUDY)
        for source in ("bits", "studies/bits", "recipes/studies/bits.yaml"):
            study = read_study(source, registry=toy)
        assert (study.name, study.description, study.controls) == ("bits", "How many bits?", ("baseline",))
        assert (study.seeds, study.arms) == ((0, 1), ["baseline", "free", "wide"])
        assert [(run.arm, run.seed) for run in study.runs] == [
            (arm, seed) for arm in ("baseline", "free", "wide") for seed in (0, 1)
        ]
        recipes = {run.arm: run.resolved.recipe for run in study.runs if run.seed == 1}
        assert [recipe.model.has_latent for recipe in recipes.values()] == [False, True, True]
        assert [recipe.model.backbone.width for recipe in recipes.values()] == [32, 32, 64]
        assert {(recipe.train.steps, recipe.seed) for recipe in recipes.values()} == {(30, 1)}
        said = {path: origin for path, _, origin in study.runs[-1].resolved.describe()}
        assert said["seed"] == "recipes/studies/bits.yaml:6"
        assert said["train.steps"] == "recipes/studies/bits.yaml:5"
        assert said["model.backbone.width"] == "recipes/studies/bits.yaml:13"

    def test_overrides(self, toy: Registry) -> None:
        name = write("s.yaml", STUDY)
        study = read_study(
            name, ["seeds=[7]", "control=free", "train.rows=2", "arms.wide=null"], registry=toy
        )
        assert (study.controls, [run.seed for run in study.runs]) == (("free",), [7, 7, 7])
        assert {run.resolved.recipe.train.rows for run in study.runs} == {2}
        assert str(study.runs[0].resolved.origins["seed",]) == "override 'seeds=[7]'"

    def test_grid_times_arms(self, toy: Registry) -> None:
        grid = "grid:\n  model.quantizer.bits: [4, 8]\n  train.learning_rate: [3e-3, 1e-2]\n"
        name = write("s.yaml", f"study: s\nbase: free\narms: {{a: null, b: {{seed: 3}}}}\n{grid}")
        study = read_study(name, registry=toy)
        assert study.arms == [
            f"{arm},bits={bits},learning_rate={rate}"
            for arm in "ab"
            for bits in (4, 8)
            for rate in (0.003, 0.01)
        ]
        assert study.controls == (study.arms[0],)
        last = study.runs[-1].resolved
        assert last.recipe.model_dump()["model"]["quantizer"]["bits"] == 8
        assert str(last.origins["model", "quantizer", "bits"]) == "s.yaml:5"
        assert len(read_study(name, ["grid.model.quantizer.bits=[2]"], registry=toy).arms) == 4

    def test_grid_alone_labels_kinds_and_tells_axes_apart(self, toy: Registry) -> None:
        grid = (
            "  model.quantizer:\n    - {kind: binary, bits: 2}\n    - {kind: levels}\n"
            "  train.rows: [2]\n  evaluate.rows: [3]\n  model.seam: [middle]\n  train.clip_norm: [null]\n"
        )
        name = write("s.yaml", f"study: s\nbase: free\ngrid:\n{grid}")
        study = read_study(name, registry=toy)
        tail = "train.rows=2,evaluate.rows=3,model.seam=middle,train.clip_norm=null"
        assert study.arms == [f"model.quantizer={kind},{tail}" for kind in ("binary", "levels")]

    def test_faults_of_all_arms_at_once_at_their_lines(self, toy: Registry) -> None:
        text = STUDY + "  odd:\n    extends: fre\n"
        assert self.faults(toy, text) == [
            "recipes/studies/bad.yaml:15: extends: no recipe 'fre'; shipped: base, cross/prefix, free; "
            "did you mean 'free'?"
        ]
        text = STUDY.replace("width: 64", "widht: 64").replace("steps: 30", "stebs: 30") + (
            "  odd: {model: {quantizer: {bits: 99}}}\n"
        )
        assert self.faults(toy, text, "seeds=[0, 1, 2]") == [
            "recipes/studies/bad.yaml:5: train.stebs: unknown key 'stebs'; did you mean 'steps'?",
            (
                "recipes/studies/bad.yaml:13: model.backbone.widht: unknown key 'widht'; did you mean 'width'? "
                "(arm wide)"
            ),
            (
                "recipes/studies/bad.yaml:14: model.quantizer.bits: Input should be less than or equal to 16 "
                "(arm odd)"
            ),
        ]

    def test_rules_hold_for_every_arm(self, toy: Registry) -> None:
        assert self.faults(toy, STUDY, "model.prior=learned", "train.warmup_steps=40") == [
            "override 'model.prior=learned': model.prior: a learned prior needs a latent, but the model "
            "has none; "
            "give it encoder, quantizer and injection, or set prior: fixed (arm baseline)",
            "override 'train.warmup_steps=40': train.warmup_steps: warmup_steps 40 exceed steps 30 "
            "(recipes/studies/bad.yaml:5); set train.warmup_steps to at most 30, or more train.steps",
        ]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                ("control: baseline", "control: base"),
                "bad.yaml:7: control: no arm 'base'; known: baseline, free, wide; did you mean 'baseline'?",
            ),
            (
                ("control: baseline", "controls: [free, base]"),
                "bad.yaml:7: controls.1: no arm 'base'; known: baseline, free, wide; did you mean 'baseline'?",
            ),
            (
                ("control: baseline", "controls: [free, free]"),
                "bad.yaml:7: controls: an arm is named twice",
            ),
            (
                ("control: baseline", "control: free\ncontrols: [baseline]"),
                "bad.yaml:7: control: name the arms in control or in controls, not in both",
            ),
            (
                ("seeds: [0, 1]", "seeds: [0, -1]"),
                "bad.yaml:6: seeds.1: Input should be greater than or equal to 0",
            ),
            (
                ("seeds: [0, 1]", "seeds: []"),
                "bad.yaml:6: seeds: List should have at least 1 item after validation, not 0",
            ),
            (("seeds: [0, 1]", "seeds: [1, 1]"), "bad.yaml:6: seeds: a seed is said twice"),
            (("seeds:", "sees:"), "bad.yaml:6: sees: unknown key 'sees'; did you mean 'seeds'?"),
            (
                ("  free:\n", "  a/b:\n"),
                "bad.yaml:10: arms.a/b: an arm's name is a folder's: letters, digits and any of . _ + - only",
            ),
            (
                ("base: free\n", ""),
                (
                    "bad.yaml:9: arms.free: has no recipe to start from; set the study's base, or extends in "
                    "the arm"
                ),
            ),
            (
                ("base: free", "base: fre"),
                (
                    "bad.yaml:3: extends: no recipe 'fre'; shipped: base, cross/prefix, free; did you mean "
                    "'free'?"
                ),
            ),
            (("study: bits\n", ""), "bad.yaml:1: study: missing required key 'study'"),
            (
                ("arms:", "grid: {a..b: [1]}\narms:"),
                "bad.yaml:8: 'a..b' is no dotted path such as model.quantizer.bits",
            ),
            (
                ("arms:", "grid: {seed: [1, 1]}\narms:"),
                (
                    "bad.yaml:8: grid: two arms would be called 'baseline,seed=1'; give the grid values of "
                    "other names"
                ),
            ),
            (
                ("arms:", "grid: {seed: []}\narms:"),
                "bad.yaml:8: grid.seed: List should have at least 1 item after validation, not 0",
            ),
        ],
    )
    def test_words_about_the_study_itself(self, toy: Registry, change: tuple[str, str], message: str) -> None:
        assert f"recipes/studies/{message}" in self.faults(toy, STUDY.replace(*change))

    def test_neither_arms_nor_grid(self, toy: Registry) -> None:
        assert self.faults(toy, "study: x\nbase: free\n") == [
            "recipes/studies/bad.yaml:1: a study needs 'arms', 'grid' or both"
        ]

    def test_a_recipe_is_no_study(self, toy: Registry) -> None:
        assert self.faults(toy, FREE) == [
            "recipes/studies/bad.yaml:1: this is a recipe, not a study; a study has a key 'study'"
        ]

    def test_unknown(self, toy: Registry) -> None:
        write("recipes/studies/bits.yaml", STUDY)
        with pytest.raises(UserError, match=r"no study 'bit'; shipped: bits; did you mean 'bits'\?"):
            read_study("bit", registry=toy)


def test_resolved_is_what_runs_get(toy: Registry) -> None:
    resolved: Any = read_recipe("base", registry=toy)
    assert isinstance(resolved, Resolved)
    assert resolved.registry.kinds["loss"].keys() == toy.kinds["loss"].keys()
