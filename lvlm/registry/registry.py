"""Which kinds there are: plugins are loaded one by one, so a broken one costs only itself.

entry points of 'lvlm' ─┐  import   check hooks   call hooks   check params
single files ───────────┴────►──────────►────────────►─────────────►─── Registry.kinds[role][name]
                                 a failure anywhere drops that plugin whole, with its reason

lvlm's own kinds of data, estimators and priors are entry points too, of modules of the core. They are no
plugins: they are loaded first and always, whatever is selected, since without them nothing can be trained or
evaluated.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lvlm.errors import UserError, listing, nearest
from lvlm.registry.plugin import Kind, PluginError, in_words, kinds_of
from lvlm.registry.roles import ROLES
from lvlm.system.files import given_path, read_named, real
from lvlm.system.limits import PLUGIN_BYTES
from lvlm.system.modules import module_name, module_of

GROUP = "lvlm"

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class PluginInfo:
    """What became of one plugin: its kinds (role/kind), or why it was dropped; a single file has a sha256."""

    name: str
    version: str
    origin: str
    single_file: bool = False
    kinds: tuple[str, ...] = ()
    error: str | None = None
    sha256: str = ""


class Registry:
    """The kinds of the loaded plugins. An object, not a global: two may differ in one process."""

    def __init__(self) -> None:
        self.plugins: list[PluginInfo] = []
        self.kinds: dict[str, dict[str, Kind]] = {role: {} for role in ROLES}
        self.left_out: tuple[str, ...] = ()  # by LVLM_PLUGINS
        self.core: tuple[str, ...] = ()  # the entry points of the core that are loaded

    @classmethod
    def load(
        cls, *, files: Sequence[str | Path] = (), only: Collection[str] | None = None, strict: bool = False
    ) -> Registry:
        """Load installed plugins and then single files, which were named and so must work.

        Args:
            files: single-file plugins.
            only: names of the installed plugins to load, beside the core's own kinds. Unless given,
                LVLM_PLUGINS is read: comma-separated names, empty for none; all when it is unset.
            strict: no plugin may fail; LVLM_STRICT=1 says the same.

        Raises:
            UserError: for an unknown name, a file that fails, or, when strict, any plugin that fails.
        """
        registry = cls()
        core, points = _entry_points()
        for point in core:
            registry._add_core(point)
        names = [point.name for point in points]
        chosen = _chosen(names, only)
        if only is None:
            registry.left_out = tuple(name for name in names if name not in chosen)
        for point in points:
            if point.name in chosen:
                version = point.dist.version if point.dist else "unknown"
                registry._add(PluginInfo(point.name, version, f"entry point {point.value}"), point.load)
        registry = registry.extended(files)
        if strict or os.environ.get("LVLM_STRICT", "0") not in ("", "0"):
            registry._refuse([plugin for plugin in registry.plugins if plugin.error])
        for line in registry.warnings():
            LOGGER.warning(line)
        return registry

    def extended(self, files: Sequence[str | Path]) -> Registry:
        """A copy with single-file plugins added; one that is there already is not loaded again.

        Raises:
            UserError: when a file is missing or its plugin fails, for all of them at once.
        """
        copy = Registry()
        copy.plugins, copy.left_out, copy.core = [*self.plugins], self.left_out, self.core
        copy.kinds = {role: dict(kinds) for role, kinds in self.kinds.items()}
        failed = []
        for file in dict.fromkeys(real(given_path(file, "a plugin's file")) for file in files):
            if str(file) not in copy.files():
                info = copy._add_file(file)
                failed += [info] if info.error else []
        copy._refuse(failed)
        return copy

    def files(self) -> list[str]:
        """The single-file plugins that are loaded."""
        return [plugin.origin for plugin in self.plugins if plugin.single_file and not plugin.error]

    def get(self, role: str, name: str) -> Kind:
        """The kind of that name.

        Raises:
            UserError: when there is none.
        """
        assert role in ROLES, f"{role} is none of {[*ROLES]}"
        if not isinstance(name, str) or name not in self.kinds[role]:
            raise UserError(self.unknown(role, name))
        return self.kinds[role][name]

    def unknown(self, role: str, name: str, known: Collection[str] | None = None) -> str:
        """Error text for an unknown kind: known kinds (the role's unless given), the nearest, failures."""
        known = self.kinds[role] if known is None else known
        return f"unknown {role} {name!r}; known: {listing(known)}{nearest(name, known)}{self._suspects()}"

    def require(self, name: str) -> PluginInfo:
        """An installed plugin that somebody named.

        Raises:
            UserError: when it is not installed, not selected, or failed.
        """
        for plugin in self.plugins:
            if plugin.name == name:
                self._refuse([plugin] if plugin.error else [])
                return plugin
        if name in self.left_out:
            raise UserError(f"plugin {name!r} is installed but LVLM_PLUGINS leaves it out")
        known = [plugin.name for plugin in self.plugins]
        raise UserError(f"no plugin {name!r}; known: {listing(known)}{nearest(name, known)}")

    def warnings(self) -> list[str]:
        """One line for each plugin that was dropped; `load` logs them."""
        return [_dropped(plugin) for plugin in self.plugins if plugin.error]

    def _suspects(self) -> str:
        failed = (p for p in self.plugins if p.error)
        text = "".join(
            f"; plugin {p.name!r} failed to load: {p.error}; it may have supplied it" for p in failed
        )
        if self.left_out:
            text += f"; LVLM_PLUGINS leaves out {listing(self.left_out)}, which may supply it"
        if not self.core:
            text += "; lvlm's own kinds are missing: it was installed from older code, so install it again"
        return text

    def _refuse(self, failed: Sequence[PluginInfo]) -> None:
        if failed:
            raise UserError("\n".join(map(_dropped, failed)))

    def _add_file(self, path: Path) -> PluginInfo:
        source = read_named(path, most_bytes=PLUGIN_BYTES)
        name = module_name(path, source)
        fresh = name not in sys.modules
        digest = hashlib.sha256(source).hexdigest()
        info = PluginInfo(path.stem, digest[:12], str(path), single_file=True, sha256=digest)
        info = self._add(info, lambda: _module(path, source, name))
        if info.error and fresh:
            sys.modules.pop(name, None)
        return info

    def _add_core(self, point: importlib.metadata.EntryPoint) -> None:
        """Load a module of the core; one that fails is shown as a plugin that failed, under its own name."""
        try:
            kinds = kinds_of(point.load(), "")
        except Exception as failure:
            error = str(failure) if isinstance(failure, PluginError) else in_words(failure)
            version = point.dist.version if point.dist else "unknown"
            self.plugins.append(PluginInfo(point.name, version, f"entry point {point.value}", error=error))
            return
        for kind in kinds:
            self.kinds[kind.role][kind.name] = kind
        self.core += (point.name,)

    def _add(self, info: PluginInfo, load: Callable[[], object]) -> PluginInfo:
        """Load one plugin; on any failure none of its kinds stay."""
        kinds: list[Kind] = []
        error = None
        try:
            for twin in self.plugins:
                if twin.name == info.name:
                    raise PluginError(f"another plugin has the name {info.name!r} already ({twin.origin})")
            kinds = kinds_of(load(), info.name)
            for kind in kinds:
                if kind.name in self.kinds[kind.role]:
                    holder = self.kinds[kind.role][kind.name].plugin
                    supplier = f"plugin {holder!r}" if holder else "lvlm itself"
                    raise PluginError(f"{kind.role} {kind.name!r} is supplied by {supplier} already")
        except PluginError as failure:
            kinds, error = [], str(failure)
        except KeyboardInterrupt:
            raise
        except BaseException as failure:  # a SystemExit or a BaseExceptionGroup is no reason to end, either
            kinds, error = [], in_words(failure)
        for kind in kinds:
            self.kinds[kind.role][kind.name] = kind
        info = replace(info, kinds=tuple(f"{kind.role}/{kind.name}" for kind in kinds), error=error)
        self.plugins.append(info)
        return info


def _module(path: Path, source: bytes, name: str) -> object:
    if path.suffix != ".py":
        raise PluginError("a plugin file ends in .py")
    return module_of(path, source, name)


def _dropped(plugin: PluginInfo) -> str:
    return f"plugin {plugin.name!r} ({plugin.origin}) failed to load and was dropped: {plugin.error}"


def _entry_points() -> tuple[list[importlib.metadata.EntryPoint], list[importlib.metadata.EntryPoint]]:
    """Modules of the core, and plugins: lvlm's come first, so that no stranger's takes a kind from them."""

    def is_strange(point: importlib.metadata.EntryPoint) -> bool:
        return point.dist is None or point.dist.name != "lvlm"

    points = sorted(
        importlib.metadata.entry_points(group=GROUP), key=lambda point: (is_strange(point), point.name)
    )
    core = [point for point in points if not is_strange(point) and point.module.split(".")[0] == "lvlm"]
    return core, [point for point in points if point not in core]


def _chosen(names: Sequence[str], only: Collection[str] | None) -> Collection[str]:
    said = "only"
    if only is None:
        text = os.environ.get("LVLM_PLUGINS")
        if text is None:
            return names
        said, only = "LVLM_PLUGINS", [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in only if name not in names]:
        known = f"known: {listing(names)}"
        lines = [f"{said}: no plugin {name!r}; {known}{nearest(name, names)}" for name in unknown]
        raise UserError("\n".join(lines))
    return only
