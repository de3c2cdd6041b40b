"""Options that are words: a wrong one is an error that names the known ones, wherever a function takes one.

The parameters are found by their annotations. One without a call in `CALLS` fails: whoever adds an option
adds the call that gives it a wrong word.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import tempfile
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import numpy as np
import pytest
import torch
from pydantic import BaseModel

import lvlm
import lvlm_codebooks
import lvlm_free
import lvlm_gptvae
from lvlm.errors import UserError, literals, nearest, one_of
from lvlm.registry.registry import Registry
from lvlm.report import Report

# What the core says of itself, and nobody chooses: no option, and `lvlm.interfaces` stands on nothing.
SAID = {"Case.trouble", "Finding.tone", "from_kind.trouble", "to_lower.trouble"}
LEFT_OUT = ("lvlm.cli", "lvlm.__main__")  # commands hand their words on


class Option(NamedTuple):
    """A parameter whose annotation holds words."""

    name: str
    """'function.parameter', 'Class.method.parameter', or 'Class.parameter' of a constructor."""
    known: tuple[str, ...]
    may_be_none: bool
    other_types: bool
    """Whether it may also be something else: a tensor, a number."""


def modules() -> Iterator[types.ModuleType]:
    """Every module of the core and of our plugins that can be imported here."""
    for package in (lvlm, lvlm_free, lvlm_gptvae, lvlm_codebooks):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.startswith(LEFT_OUT):
                try:
                    module = importlib.import_module(found.name)
                except ModuleNotFoundError as error:
                    if str(error.name).startswith("lvlm"):
                        raise
                    continue  # it needs an extra
                yield module


def functions(module: types.ModuleType) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Public functions, methods and constructors that a module defines, by name."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value) and not issubclass(value, BaseModel):
            for method, function in vars(value).items():
                if inspect.isfunction(function) and (method == "__init__" or not method.startswith("_")):
                    yield name if method == "__init__" else f"{name}.{method}", function
        elif inspect.isclass(value):  # pydantic checks the fields
            yield from (
                (f"{name}.{method}", function)
                for method, function in vars(value).items()
                if inspect.isfunction(function) and not method.startswith("_")
            )


def hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of the parameters; what is imported for type checkers alone is a Tensor here."""
    space: dict[str, Any] = dict(vars(importlib.import_module(function.__module__)))
    for _ in range(50):
        try:
            return typing.get_type_hints(function, space)
        except NameError as error:
            space[error.name] = torch.Tensor
    raise AssertionError(f"annotations of {function.__qualname__} can't be read")


def options() -> dict[str, Option]:
    """All options that are words, by name."""
    found = {}
    for module in modules():
        for name, function in functions(module):
            for parameter, hint in hints(inspect.unwrap(function)).items():
                known = literals(hint)
                if known and parameter != "return" and get_origin(hint) is not type:
                    parts = set(get_args(hint)) if get_origin(hint) is not Literal else set()
                    others = {part for part in parts if get_origin(part) is not Literal} - {type(None)}
                    option = Option(f"{name}.{parameter}", known, type(None) in parts, bool(others))
                    found[option.name] = option
    return found


OPTIONS = options()


# ------------------------------------------------------------------------------------- a call for each


def model(**changes: Any) -> lvlm.LatentLM:
    """A small FREE, untrained."""
    backbone = {"layers": 2, "width": 16, "heads": 2, "context": 16}
    small = {"extends": "free", "model": {"backbone": backbone}, "data": {"kind": "letters"}, **changes}
    small["model"]["backbone"]["context"] = 80
    return lvlm.build(small).eval()


def rows() -> Any:
    from lvlm.data.letters import LettersData
    from lvlm.likelihood.particles import Rows

    batch = LettersData().open().windows(1).batch
    return Rows(model(), batch, seeds=[0], at_once=1, autocast=torch.no_grad)


def several_rows() -> Any:
    from lvlm.data.letters import LettersData
    from lvlm.likelihood.several import rows_of

    small = ("model.backbone.width=16", "model.backbone.heads=2", "data={kind: letters}")
    batch = LettersData().open().windows(1).batch
    return rows_of(lvlm.build("hierarchy", *small), batch, seeds=[0], at_once=1, autocast=torch.no_grad)


def of_several(verb: str) -> Callable[[Any], object]:
    return lambda proposal: getattr(several_rows(), verb)(proposal, 1)


def walked(proposal: Any) -> object:
    from lvlm.likelihood.several import Walked

    return Walked(several_rows(), proposal, 1)


def windows(kind: str) -> Callable[[Any], object]:
    """Windows of a kind's example from a split of that name."""

    def call(split: Any) -> object:
        from lvlm.testing import write_corpus

        params: Any = Registry.load().get("data", kind).params
        corpus = write_corpus(Path(tempfile.mkdtemp(dir=Path.cwd())))
        return params.example_in(corpus).open().windows(1, split)

    return call


def of_term(kind: str) -> Callable[[Any], object]:
    def call(per: Any) -> object:

        params: Any = Registry.load().get("term", kind).params.example()
        return params.build(budget_nats=0.1, per=per)

    return call


def check_of_terms(name: str) -> Callable[[Any], object]:
    def call(per: Any) -> object:
        from lvlm.objective import HingeParams
        from lvlm.testing import terms

        return getattr(terms, name)(HingeParams(), per)

    return call


def made(module: str, name: str, *args: Any, option: str, **given: Any) -> Callable[[Any], object]:
    """Something of a module called with an option."""

    def call(value: Any) -> object:
        function = getattr(importlib.import_module(module), name)
        return function(*args, **given, **{option: value})

    return call


def tensors_source(order: Any) -> object:
    from lvlm.data.letters import LettersData
    from lvlm.data.rows import TokenSource

    tokens: Any = dict.fromkeys(("train", "validation", "test"), np.arange(200))
    return TokenSource(LettersData(), tokens, fingerprint="", bytes_per_token=None, order=order)


def forward(z: Any) -> object:
    return model()(torch.zeros(1, 4, dtype=torch.long), z=z)


def path_forward(z: Any) -> object:
    small = model()
    tokens_BT = torch.zeros(1, 4, dtype=torch.long)
    hidden_BTD = torch.zeros(1, 4, 16)
    assert small.latent is not None
    return small.latent(tokens_BT, hidden_BTD, tokens_BT == 0, z)


def between(how: Any) -> object:
    code = torch.zeros(2, dtype=torch.long)
    return lvlm.interpolate(model(), code, code, 2, how=how)


def texts(how: Any) -> object:
    from lvlm.generation.interpolate import texts_between

    return texts_between(model(), "K>A", "K>B", 2, how=how)


def checked_between(how: Any) -> None:
    from lvlm.generation.interpolate import check_between

    check_between(model(), "K>A", "K>B", 2, how=how)


def probe(z: Any) -> object:
    from lvlm.data.letters import LettersData
    from lvlm.diagnosis.measure import Probe

    batch = LettersData().open().windows(1).batch
    return list(Probe(model(), batch, rows=1, seed=0, autocast=torch.no_grad).outputs(z))


def elbo(per: Any) -> object:
    from lvlm.objective import Charge, HingeParams

    term = HingeParams().build(budget_nats=0.1, per="slot")
    return Charge(term, beta=1.0, autoencoder_steps=0, budget_bits=0.1, per=per)


def drawing(method: str) -> Callable[[Any], object]:
    return lambda proposal: getattr(rows(), method)(proposal, 1)


def stepping(proposal: Any) -> object:
    from lvlm.likelihood.walk import StepByStep

    some = rows()
    numbers = (some.first_BSD, some.posterior_BSK, some.keep_BS)
    return StepByStep(some.path, *numbers, proposal=proposal, seeds=[1], k=1, known=0)


def binary(estimator: Any) -> object:
    from lvlm_free.binary import Binary

    return Binary(bits=2, bits_per_group=2, embedding_dim=4, embedding_std=0, estimator=estimator)


def categorical(estimator: Any) -> object:
    from lvlm_codebooks.categorical import Categorical

    return Categorical(codes=3, embedding_dim=4, embedding_std=0, estimator=estimator)


def gaussian(variance: Any) -> object:
    from lvlm_gptvae.gaussian import Gaussian

    return Gaussian(dim=2, embedding_dim=4, embedding_std=0, log_variance_bound=10, variance=variance)


def kv(norm: Any) -> object:
    from lvlm.interfaces import Slots
    from lvlm_free.kv import KV

    return KV(4, Slots(1), norm)


def decoding(prompt_codes: Any) -> object:
    from lvlm.generation.decoding import Decoding, RowCodes

    small = model()
    assert small.latent is not None
    codes = RowCodes(small.latent, 4, [0], [0], None)
    return Decoding(small, 1, 8, codes, prompt_codes=prompt_codes)


def picture(method: str) -> Callable[[Any], object]:
    def call(kind: Any) -> object:
        from matplotlib.figure import Figure

        from lvlm.report.canvas import Picture

        return getattr(Picture("title", "key", Figure(), "alt", "note"), method)(kind)

    return call


class Unrated:
    """A checkpoint without a bound."""

    manifest = types.SimpleNamespace(bound=None)


CALLS: dict[str, Callable[[Any], object]] = {
    "Attribute.scale": made("lvlm.data.attributes", "Attribute", "name", measure=max, option="scale"),
    "CoinSource.windows.split": windows("coin"),
    "LettersSource.windows.split": windows("letters"),
    "MixtureSource.windows.split": windows("mixture"),
    "NoisedSource.windows.split": windows("noised"),
    "TokenSource.windows.split": windows("text"),
    "TokenSource.order": tensors_source,
    "Cutter.documents": made("lvlm.data.streams", "Cutter", 4, option="documents"),
    "Probe.outputs.z": probe,
    "evaluate.resampling": made("lvlm", "evaluate", "no run", option="resampling"),
    "Settings.resampling": made("lvlm.evaluation.settings", "Settings", option="resampling"),
    "export.format": made("lvlm", "export", "no run", "out", option="format"),
    "Decoding.prompt_codes": decoding,
    "interpolate.how": between,
    "texts_between.how": texts,
    "check_between.how": checked_between,
    "Options.prompt_codes": made("lvlm.generation.options", "Options", option="prompt_codes"),
    "Importance.proposal": made("lvlm.likelihood.estimators", "Importance", 1, option="proposal"),
    "make_estimators.resampling": made(
        "lvlm.likelihood.estimators", "make_estimators", [0], [1], has_latent=False, option="resampling"
    ),
    "Filter.resampling": made("lvlm.likelihood.filter", "Filter", 1, option="resampling"),
    "Filter.proposal": made("lvlm.likelihood.filter", "Filter", 1, option="proposal"),
    "ancestors.rule": made(
        "lvlm.likelihood.filter", "ancestors", torch.ones(2), generator=torch.Generator(), option="rule"
    ),
    "Effort.resampling": made("lvlm.likelihood.kind", "Effort", 1, option="resampling"),
    "Rows.draws.proposal": drawing("draws"),
    "Rows.cost.proposal": drawing("cost"),
    "Rows.walk.proposal": drawing("walk"),
    "StepByStep.proposal": stepping,
    **{f"SeveralRows.{verb}.proposal": of_several(verb) for verb in ("draws", "cost", "walk")},
    "SeveralRows.mean_cost_by_target.proposal": of_several("mean_cost_by_target"),
    "Walked.proposal": lambda proposal: walked(proposal),
    "Rows.mean_cost_by_target.proposal": drawing("mean_cost_by_target"),
    "LatentPath.forward.z": path_forward,
    "LatentLM.forward.z": forward,
    "check_codes.z": made("lvlm.model.latent_lm", "check_codes", option="z"),
    "convert.precision": made("lvlm.model.precision", "convert", None, option="precision"),
    "load.precision": made("lvlm", "load", "no run", option="precision"),
    "sample.precision": made("lvlm", "sample", "no run", "a", option="precision"),
    "encode_text.precision": made("lvlm", "encode_text", "no run", "a", option="precision"),
    "Controller.per": made("lvlm.objective", "Clamp", 0.1, option="per"),
    "PID.per": made("lvlm.objective", "PID", 0.1, proportional=1, integral=1, option="per"),
    "Lagrangian.per": made("lvlm.objective", "Lagrangian", 0.1, rate=1, largest=1, option="per"),
    "LocalTerm.shape": made("lvlm.objective", "LocalTerm", budget_nats=0.1, per="slot", option="shape"),
    "LocalTerm.per": made("lvlm.objective", "LocalTerm", "hinge", 0.1, option="per"),
    "Charge.per": elbo,
    **{
        f"{name}Params.build.per": of_term(name.lower())
        for name in ("Clamp", "PID", "Lagrangian", "Plain", "Hinge", "Mask", "Target")
    },
    **{
        f"{name}.per": check_of_terms(name)
        for name in (
            "check_free_within_budget",
            "check_parts_add_up",
            "check_edges",
            "check_linear",
            "check_state",
            "check_schedule",
        )
    },
    "Control.form": made("lvlm.playground.writing", "Control", count=1, slots=False, option="form"),
    "Asked.source": made("lvlm.playground.writing", "Asked", "a", option="source"),
    "keep_fewer_activations.which": made(
        "lvlm.training.recompute", "keep_fewer_activations", None, option="which"
    ),
    "Checkpoints.select": made("lvlm.runs.checkpoint", "Checkpoints", Path("run"), option="select"),
    "selected_of.rule": made("lvlm.runs.checkpoint", "selected_of", [Unrated()], option="rule"),
    "report_folder.kind": made("lvlm.report.page", "report_folder", "no folder", option="kind"),
    "write_figures.kind": made(
        "lvlm.report.files", "write_figures", object.__new__(Report), " ", option="kind"
    ),
    "Picture.file.kind": picture("file"),
    "Picture.saved.kind": picture("saved"),
    "Binary.estimator": binary,
    "Categorical.estimator": categorical,
    "Gaussian.variance": gaussian,
    "KV.norm": kv,
}
# Abstract, or behind an extra that tests/test_streams.py needs; their calls are those of what is built on them.
ABSTRACT = {"Source.windows.split", "TermParams.build.per", "StreamedDataset.windows.split"}
# Words of an annotation that other kinds or models than the call's know.
NOT_HERE = {
    f"{kind}Params.build.per": ("sequence",) for kind in ("Clamp", "PID", "Lagrangian")
} | dict.fromkeys(("interpolate.how", "texts_between.how", "check_between.how"), ("linear", "spherical"))


def test_every_option_is_called_here() -> None:
    assert OPTIONS.keys() - SAID - ABSTRACT == CALLS.keys(), "add a call with a wrong word to CALLS"
    assert OPTIONS.keys() >= SAID | ABSTRACT


def told_by(call: Callable[[], object]) -> str:
    """What a user is told; the empty string where all is well."""
    try:
        call()
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_word_is_told_and_never_the_default(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    option = OPTIONS[name]
    fits = [word for word in option.known if word not in NOT_HERE.get(name, ())]
    wrong: list[Any] = [option.known[0].upper(), option.known[0] + "s", "none of them", "", False, [], b"a"]
    wrong += [] if option.may_be_none else [None]
    wrong += [] if option.other_types else [3]
    for value in wrong:
        told = told_by(lambda: CALLS[name](value))  # noqa: B023
        assert told.startswith(("unknown ", "no "))
        assert f" {value!r}; known: " in told
        assert all(one in told for one in fits), told
    assert not any(tmp_path.glob("out*")), "something was written"
    assert "; known: " not in told_by(lambda: CALLS[name](fits[0])), "a right word is refused, too"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: forward("Prior"), "unknown z 'Prior'; .* or a tensor of codes; did you mean 'prior'"),
        (lambda: lvlm.build("baseline")(torch.zeros(1, 2, dtype=torch.long), z="Prior"), "unknown z 'Prior'"),
        (lambda: lvlm.kinds("Encoder"), "unknown role 'Encoder'; known: .*; did you mean 'encoder'"),
        (lambda: lvlm.kinds(3), "unknown role 3; known: "),  # type: ignore[arg-type]
        (lambda: lvlm.plan("free", gpu="h100", gpus=1), "unknown GPU 'h100'; .* did you mean 'H100'"),
        (lambda: lvlm.plan("free", "train.peak_tflops=9", gpu="abacus"), "unknown GPU 'abacus'; known: "),
        (lambda: lvlm.load("no run", device="Cpu"), "no device 'Cpu'; it is auto, cpu, .*did you mean 'cpu'"),
        (lambda: lvlm.load("no run", device=None), "no device None; it is a name: auto"),  # type: ignore[arg-type]
    ],
)
def test_other_words(call: Callable[[], object], words: str) -> None:
    """Words whose choices no annotation holds: kinds, GPUs, devices."""
    with pytest.raises(UserError, match=words):
        call()


@pytest.mark.parametrize("name", ["share_codes", "compile"])
@pytest.mark.parametrize("value", ["no", 0, None])
def test_a_word_is_neither_true_nor_false(name: str, value: Any) -> None:
    options: Any = {name: value}
    with pytest.raises(UserError, match=f"{name} is {value!r}; it is True or False"):
        lvlm.generate(model(), "K>", 1, **options)


def test_names_of_estimators() -> None:
    with pytest.raises(UserError, match=r"estimators is 'elbo'; it is a list of names: \['elbo'\]"):
        lvlm.evaluate("no run", estimators="elbo")
    estimators: Any = [3, None, ["elbo"]]
    for wrong in estimators:
        with pytest.raises(UserError, match="unknown estimator .*; known: elbo, "):
            Registry.load().get("estimator", wrong)


def test_precisions_of_the_parts_of_a_training() -> None:
    from lvlm.system.device import pick_autocast
    from lvlm.training.parallel import shard

    with pytest.raises(UserError, match="unknown precision 'BF16'; .*did you mean 'bf16'"):
        pick_autocast("BF16", torch.device("cpu"))
    mesh: Any = object()
    with pytest.raises(UserError, match="unknown precision 'fp8'"):
        shard(model(), torch.nn.Linear(1, 1), mesh, precision="fp8")


def test_one_of() -> None:
    way = Literal["by land", "by sea"]
    assert one_of("by sea", way | int, "way") == "by sea"
    with pytest.raises(
        UserError, match=r"^unknown way 'By See'; known: by land, by sea, or a number; did you"
    ):
        one_of("By See", way | int, "way", or_="a number")
    assert nearest(None, ["none"]) == ""
    assert nearest("SUM", ["sum", "hidden"]) == "; did you mean 'sum'?"
