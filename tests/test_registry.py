"""One broken plugin costs only itself, and says why."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lvlm import hookspecs
from lvlm.errors import UserError
from lvlm.interfaces import PARAMS_OF_PART, PART_ROLES
from lvlm.registry.registry import Registry
from lvlm.registry.roles import ROLE_OF_HOOK, ROLES

HEAD = """
from typing import Literal
from lvlm.hookspecs import hookimpl
from lvlm.interfaces import QuantizerParams, LossParams
"""


def quantizer(kind: str) -> str:
    """A plugin with one quantizer."""
    return (
        HEAD
        + f'''
class Params_(QuantizerParams):
    """Codes called {kind}.

    More about them.
    """
    kind: Literal["{kind}"] = "{kind}"
    bits: int = 8

    def build(self, *, embedding_dim): ...

@hookimpl
def register_quantizers(register):
    register(Params_)
'''
    )


Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install modules as distributions with an entry point each, and select only those."""
    monkeypatch.delenv("LVLM_PLUGINS", raising=False)
    monkeypatch.delenv("LVLM_STRICT", raising=False)
    names: list[str] = []
    before = set(sys.modules)

    def install(name: str, source: str, *, dist: str | None = None, version: str = "1.2") -> None:
        dist = dist or f"dist-{name}"
        module = f"installed_{dist}_{name}".replace("-", "_")
        site = tmp_path / "site"
        info = site / f"{dist.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[lvlm]\n{name} = {module}\n")
        if not names:
            monkeypatch.syspath_prepend(str(site))
        names.append(name)
        monkeypatch.setenv("LVLM_PLUGINS", ",".join(names))

    yield install
    for name in set(sys.modules) - before:
        if name.startswith(("installed_", "lvlm_plugin_")):
            del sys.modules[name]


def only(registry: Registry, name: str) -> str | None:
    """The error of a plugin."""
    (info,) = [plugin for plugin in registry.plugins if plugin.name == name]
    return info.error


def test_hooks_and_roles_are_those_of_the_contracts() -> None:
    hooks = {name for name, value in vars(hookspecs).items() if hasattr(value, "lvlm_spec")}
    assert hooks == set(ROLE_OF_HOOK)
    assert tuple(ROLES)[: len(PART_ROLES)] == PART_ROLES
    for role in PART_ROLES:
        assert ROLES[role].params is PARAMS_OF_PART[role]


def test_a_sound_plugin(install: Install) -> None:
    install("good", quantizer("binary"))
    registry = Registry.load()
    (info,) = registry.plugins
    assert (info.name, info.version, info.kinds, info.error) == ("good", "1.2", ("quantizer/binary",), None)
    assert info.origin == "entry point installed_dist_good_good"
    kind = registry.get("quantizer", "binary")
    assert (kind.role, kind.name, kind.plugin, kind.help) == (
        "quantizer",
        "binary",
        "good",
        "Codes called binary.",
    )
    assert kind.params.kind_name() == "binary"
    assert registry.warnings() == []


TWICE = quantizer("mine") + "    register(Params_)\n"
BROKEN = {
    "no module": (
        "import nothing_of_that_name",
        "ModuleNotFoundError: No module named 'nothing_of_that_name'",
    ),
    "raises": (
        "\n\nraise RuntimeError('first\\nsecond')",
        "RuntimeError: first (installed_dist_bad_bad.py:3)",
    ),
    "syntax": ("def f(:", "SyntaxError: "),
    "exits": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "no hooks": ("x = 1", "it has no hooks; a plugin has some of: register_backbones, "),
    "no mark": (quantizer("mine").replace("@hookimpl", ""), "register_quantizers lacks @hookimpl"),
    "misspelt": (
        quantizer("mine").replace("def register_quantizers", "def register_quantisers"),
        "no hook is called 'register_quantisers'; known: register_backbones, register_data, "
        "register_encoders, "
        "register_estimators, register_injections, register_losses, register_priors, register_quantizers, "
        "register_terms; "
        "did you mean 'register_quantizers'?",
    ),
    "no argument": (
        quantizer("mine").replace("quantizers(register)", "quantizers()"),
        "register_quantizers() must be register_quantizers(register)",
    ),
    "other argument": (
        quantizer("mine").replace("quantizers(register)", "quantizers(register, registry)"),
        "register_quantizers(register, registry) must be register_quantizers(register)",
    ),
    "marked class": (
        HEAD + "@hookimpl\nclass register_quantizers: ...",
        "@hookimpl stands on register_quantizers, which is no function",
    ),
    "marked number": (HEAD + "hookimpl(5)", "AttributeError: 'int' object has no attribute"),
    "hook raises": (
        HEAD + "@hookimpl\ndef register_losses(register):\n    {}['x']",
        "register_losses raised KeyError: 'x' (installed_dist_bad_bad.py:7)",
    ),
    "hook exits": (
        HEAD + "@hookimpl\ndef register_losses(register): exit(1)",
        "register_losses raised SystemExit",
    ),
    "registers nothing": (
        HEAD + "@hookimpl\ndef register_losses(register): ...",
        "its hooks registered no kinds",
    ),
    "not params": (
        HEAD + "@hookimpl\ndef register_losses(register): register(dict)",
        "register_losses registered <class 'dict'>, which is no subclass of LossParams",
    ),
    "other role": (
        quantizer("mine").replace("def register_quantizers", "def register_losses"),
        "register_losses registered Params_, which is a quantizer's and no LossParams",
    ),
    "no kind": (
        quantizer("mine").replace('    kind: Literal["mine"] = "mine"\n', ""),
        "Params_ needs a line like: kind: Literal['mine'] = 'mine'",
    ),
    "kind is a str": (
        quantizer("mine").replace('Literal["mine"]', "str"),
        "Params_ needs a line like: kind:",
    ),
    "no default": (quantizer("mine").replace(' = "mine"', ""), "Params_ needs a line like: kind:"),
    "kind with a space": (quantizer("a b"), "Params_: kind 'a b' must be one word"),
    "no docstring": (
        HEAD + "class P(LossParams):\n    kind: Literal['x'] = 'x'\n    def build(self): ...\n"
        "@hookimpl\ndef register_losses(register): register(P)",
        "P needs a docstring; its first line is the kind's help",
    ),
    "no build": (
        quantizer("mine").replace("def build", "def make"),
        "Params_ needs a method build",
    ),
    "unknown annotation": (
        "from __future__ import annotations\n" + quantizer("mine").replace("bits: int", "bits: Missing"),
        "register_quantizers raised PydanticUndefinedAnnotation: name 'Missing' is not defined",
    ),
    "twice": (TWICE, "register_quantizers registered quantizer 'mine' twice"),
    "taken by the core": (
        "from lvlm.data.coin import CoinData\n"
        + HEAD
        + "@hookimpl\ndef register_data(register): register(CoinData)",
        "data 'coin' is supplied by lvlm itself already",
    ),
    "taken kind": (quantizer("binary"), "quantizer 'binary' is supplied by plugin 'a_good' already"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_costs_only_itself(install: Install, case: str) -> None:
    source, reason = BROKEN[case]
    install("bad", source)
    install("a_good", quantizer("binary"))
    install("z_good", quantizer("gaussian"))
    registry = Registry.load()
    error = only(registry, "bad")
    assert error is not None
    assert reason in error
    assert "\n" not in error
    assert registry.kinds["quantizer"].keys() == {"binary", "gaussian"}
    assert registry.warnings() == [
        f"plugin 'bad' (entry point installed_dist_bad_bad) failed to load and was dropped: {error}"
    ]
    with pytest.raises(UserError, match="plugin 'bad'"):
        Registry.load(strict=True)


def test_a_plugin_is_dropped_whole(install: Install) -> None:
    install("bad", quantizer("mine") + "\n@hookimpl\ndef register_losses(register): register(1)")
    registry = Registry.load()
    assert registry.kinds["quantizer"] == {}
    assert registry.plugins[0].kinds == ()


def test_two_plugins_of_one_name(install: Install) -> None:
    install("same", quantizer("one"), dist="first")
    install("same", quantizer("two"), dist="second")
    registry = Registry.load()
    assert len(registry.plugins) == 2
    assert [kind for plugin in registry.plugins for kind in plugin.kinds] in (
        ["quantizer/one"],
        ["quantizer/two"],
    )
    assert "another plugin has the name 'same' already (entry point installed_" in registry.warnings()[0]


def test_those_of_lvlm_come_first(install: Install) -> None:
    install("z_ours", quantizer("binary"), dist="lvlm", version="0.0")
    install("a_theirs", quantizer("binary"))
    assert Registry.load().get("quantizer", "binary").plugin == "z_ours"


def test_an_unknown_kind_names_what_is_known_near_and_suspect(install: Install) -> None:
    install("good", quantizer("binary"))
    install("bad", "raise ImportError('no luck')")
    with pytest.raises(UserError) as error:
        Registry.load().get("quantizer", "binery")
    assert str(error.value).startswith(
        "unknown quantizer 'binery'; known: binary; did you mean 'binary'?; plugin 'bad' failed to load: "
        "ImportError: no luck (installed_dist_bad_bad.py:1); it may have supplied it"
    )


class TestSelection:
    """LVLM_PLUGINS, `only` and LVLM_STRICT."""

    def test_all_when_unset(self, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
        install("one", quantizer("one"))
        install("two", quantizer("two"))
        monkeypatch.delenv("LVLM_PLUGINS")
        assert {"one", "two"} <= {plugin.name for plugin in Registry.load().plugins}

    def test_some(self, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
        install("one", quantizer("one"))
        install("two", "raise SystemExit")
        monkeypatch.setenv("LVLM_PLUGINS", " one ,")
        registry = Registry.load(strict=True)
        assert [plugin.name for plugin in registry.plugins] == ["one"]
        with pytest.raises(UserError, match=r"LVLM_PLUGINS leaves out .*two, which may supply it"):
            registry.get("quantizer", "two")
        with pytest.raises(UserError, match="plugin 'two' is installed but LVLM_PLUGINS leaves it out"):
            registry.require("two")

    def test_none_when_empty(self, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
        install("one", quantizer("one"))
        monkeypatch.setenv("LVLM_PLUGINS", "")
        assert Registry.load().plugins == []

    def test_the_kinds_of_the_core_are_always_there(
        self, install: Install, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LVLM_PLUGINS", "")
        for registry in (Registry.load(), Registry.load(only=()), Registry.load(only=()).extended([])):
            assert {"python", "text", "mixture", "letters"} <= registry.kinds["data"].keys()
            assert registry.get("data", "coin").plugin == ""

    def test_unknown_names(self, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
        install("gaussian", quantizer("one"))
        monkeypatch.setenv("LVLM_PLUGINS", "gausian,nothing")
        with pytest.raises(
            UserError, match=r"LVLM_PLUGINS: no plugin 'gausian'.*did you mean 'gaussian'\?"
        ) as error:
            Registry.load()
        assert len(str(error.value).splitlines()) == 2

    def test_only_wins_over_the_environment(self, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
        install("one", quantizer("one"))
        monkeypatch.setenv("LVLM_PLUGINS", "")
        assert Registry.load(only=["one"]).kinds["quantizer"].keys() == {"one"}

    def test_strict_by_environment_lists_all(self, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
        install("one", "x = 1")
        install("two", "x = 1")
        monkeypatch.setenv("LVLM_STRICT", "1")
        with pytest.raises(UserError, match=r"(?s)plugin 'one'.*\nplugin 'two'"):
            Registry.load()

    def test_require(self, install: Install) -> None:
        install("good", quantizer("one"))
        install("bad", "x = 1")
        registry = Registry.load()
        assert registry.require("good").kinds == ("quantizer/one",)
        with pytest.raises(UserError, match=r"plugin 'bad'.*it has no hooks"):
            registry.require("bad")
        with pytest.raises(UserError, match=r"no plugin 'godd'; known: bad, good; did you mean 'good'\?"):
            registry.require("godd")


@pytest.mark.usefixtures("install")
class TestSingleFiles:
    """They were named, so they must work."""

    def test_loads_once(self, tmp_path: Path) -> None:
        file = tmp_path / "my plugin.py"
        file.write_text(quantizer("mine"))
        registry = Registry.load(files=[file, str(file)], only=())
        (info,) = registry.plugins
        assert info.name == "my plugin"
        assert info.origin == str(file)
        assert len(info.version) == 12
        params = registry.get("quantizer", "mine").params
        assert params.__module__.startswith("lvlm_plugin_my_plugin_")
        assert sys.modules[params.__module__].Params_ is params
        assert Registry.load(files=[file], only=()).get("quantizer", "mine").params is params
        assert registry.extended([file]).files() == registry.files() == [str(file)]

    def test_changed_content_is_another_module(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.py"
        file.write_text(quantizer("one"))
        before = Registry.load(files=[file], only=())
        file.write_text(quantizer("two"))
        assert Registry.load(files=[file], only=()).kinds["quantizer"].keys() == {"two"}
        assert before.kinds["quantizer"].keys() == {"one"}

    def test_extending_copies(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.py"
        file.write_text(quantizer("mine"))
        registry = Registry.load(only=())
        assert registry.extended([file]).kinds["quantizer"].keys() == {"mine"}
        assert registry.kinds["quantizer"] == {}
        assert registry.plugins == []

    def test_failures_are_loud_all_at_once_and_leave_no_module(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('{name} is broken')")
        before = set(sys.modules)
        with pytest.raises(
            UserError, match=r"(?s)RuntimeError: one is broken.*\n.*RuntimeError: two is broken"
        ):
            Registry.load(files=[tmp_path / "one.py", tmp_path / "two.py"], only=())
        assert {name for name in set(sys.modules) - before if name.startswith("lvlm_plugin")} == set()

    def test_missing(self, tmp_path: Path) -> None:
        (tmp_path / "plugin.py").write_text("")
        with pytest.raises(UserError, match=r"no file '.*plugim.py'; did you mean 'plugin.py'\?"):
            Registry.load(files=[tmp_path / "plugim.py"], only=())
        with pytest.raises(UserError, match="there is no folder"):
            Registry.load(files=[tmp_path / "nowhere" / "plugin.py"], only=())
        with pytest.raises(UserError, match="is a folder, not a file"):
            Registry.load(files=[tmp_path], only=())

    def test_not_python(self, tmp_path: Path) -> None:
        (tmp_path / "plugin.txt").write_text("")
        with pytest.raises(UserError, match=r"a plugin file ends in \.py"):
            Registry.load(files=[tmp_path / "plugin.txt"], only=())

    def test_a_taken_kind_is_loud(self, tmp_path: Path, install: Install) -> None:
        install("good", quantizer("binary"))
        (tmp_path / "mine.py").write_text(quantizer("binary"))
        with pytest.raises(
            UserError, match=r"plugin 'mine'.*quantizer 'binary' is supplied by plugin 'good' already"
        ):
            Registry.load(files=[tmp_path / "mine.py"])
