"""One plugin: load its module, check its hooks, call them, check what they register."""

from __future__ import annotations

import importlib.util
import inspect
import re
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pluggy

from lvlm import hookspecs
from lvlm.errors import listing, nearest, shortened
from lvlm.interfaces import Params, PortName, Register
from lvlm.registry.roles import ROLE_OF_HOOK, ROLES


@dataclass(frozen=True)
class Kind:
    """A named choice for a role."""

    role: str
    name: str
    params: type[Params]
    plugin: str
    """The plugin's name; empty for lvlm's own kinds, which belong to the core."""
    help: str


class PluginError(Exception):
    """What is wrong with a plugin, in words."""


def kinds_of(plugin: object, name: str) -> list[Kind]:
    """What a plugin's hooks register.

    Raises:
        PluginError: when a hook is misspelt or of another signature, raises, or registers what is no kind.
    """
    _check_hooks(plugin)
    manager = pluggy.PluginManager(hookspecs.hookspec.project_name)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin, name)
    kinds: list[Kind] = []
    for hook, role in ROLE_OF_HOOK.items():
        try:
            getattr(manager.hook, hook)(register=_collector(kinds, hook, role, name))
        except PluginError:
            raise
        except KeyboardInterrupt:
            raise
        except BaseException as failure:  # a SystemExit or a BaseExceptionGroup is no reason to end, either
            raise PluginError(f"{hook} raised {in_words(failure)}") from failure
    if not kinds:
        raise PluginError("its hooks registered no kinds")
    return kinds


def _check_hooks(plugin: object) -> None:
    """Say what pluggy lets pass: a misspelt hook, a forgotten mark, a mark on what is no function."""
    hooks = []
    for attribute in dir(plugin):
        value = getattr(plugin, attribute, None)
        marked = isinstance(getattr(value, "lvlm_impl", None), dict)
        if not marked:
            if attribute in ROLE_OF_HOOK and callable(value) and not hasattr(value, "lvlm_spec"):
                raise PluginError(f"{attribute} lacks @hookimpl")
            continue
        if not (inspect.isroutine(value) and callable(value)):
            raise PluginError(f"@hookimpl stands on {attribute}, which is no function")
        if attribute not in ROLE_OF_HOOK:
            known = f"known: {listing(ROLE_OF_HOOK)}{nearest(attribute, ROLE_OF_HOOK)}"
            raise PluginError(f"no hook is called {attribute!r}; {known}")
        parameters = inspect.signature(value).parameters.values()
        if [(p.name, p.default) for p in parameters] != [("register", inspect.Parameter.empty)]:
            raise PluginError(f"{attribute}{inspect.signature(value)} must be {attribute}(register)")
        hooks.append(attribute)
    if not hooks:
        raise PluginError(f"it has no hooks; a plugin has some of: {listing(ROLE_OF_HOOK)}, under @hookimpl")


def _collector(kinds: list[Kind], hook: str, role: str, plugin: str) -> Register:
    def register(params: type[Params], /) -> None:
        kind = _kind(params, hook, role, plugin)
        if any((other.role, other.name) == (role, kind.name) for other in kinds):
            raise PluginError(f"{hook} registered {role} {kind.name!r} twice")
        kinds.append(kind)

    return register


def _kind(params: Any, hook: str, role: str, plugin: str) -> Kind:
    """A params class as a kind, after checking that it says all that recipes need."""
    base, makes = ROLES[role].params, ROLES[role].makes
    if not (isinstance(params, type) and issubclass(params, Params)):
        raise PluginError(f"{hook} registered {params!r}, which is no subclass of {base.__name__}")
    who = params.__name__
    if not issubclass(params, base):
        raise PluginError(f"{hook} registered {who}, which is a {params.role}'s and no {base.__name__}")
    params.model_rebuild()  # raises when an annotation cannot be resolved, which would else wait for a recipe
    field = params.model_fields.get("kind")
    names = get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()
    if field is None or len(names) != 1 or names[0] != field.default or not isinstance(names[0], str):
        raise PluginError(f"{who} needs a line like: kind: Literal['mine'] = 'mine'")
    if not re.fullmatch(r"[\w.-]+", names[0]):
        raise PluginError(f"{who}: kind {names[0]!r} must be one word")
    doc = inspect.cleandoc(params.__dict__.get("__doc__") or "")
    if not doc:
        raise PluginError(f"{who} needs a docstring; its first line is the kind's help")
    ports: object = getattr(params, "ports", frozenset())
    if not isinstance(ports, frozenset) or not ports <= {*get_args(PortName)}:
        known = ", ".join(get_args(PortName))
        raise PluginError(f"{who}: ports is {ports!r}; it is a frozenset of some of {known}")
    if getattr(params, makes) is getattr(base, makes):
        raise PluginError(f"{who} needs a method {makes}")
    return Kind(role, names[0], params, plugin, doc.splitlines()[0])


def in_words(failure: BaseException) -> str:
    """An exception on one line, with the last place in a file that is not the import system's."""
    ours = (str(Path(importlib.util.__file__).parent), importlib.metadata.__file__, __file__, "<")
    frames = [f for f in traceback.extract_tb(failure.__traceback__) if not f.filename.startswith(ours)]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    try:
        message = shortened(str(failure).strip().split("\n")[0])
    except Exception:  # an exception of a stranger may fail to say what it is
        message = ""
    return f"{type(failure).__name__}: {message}".removesuffix(": ") + place
