"""Loading plugins: built-ins and strangers go through the same hooks."""

from __future__ import annotations

import importlib
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pluggy

from hematokit.errors import PluginError
from hematokit.plugins import hookspecs
from hematokit.plugins.commands import add_verbs
from hematokit.plugins.isolation import TookTooLongError, call_with_limit, declared_hooks, describe_failure, time_limit
from hematokit.plugins.registry import PluginInfo, Registry
from hematokit.plugins.specs import AnySpec, AugmenterSpec, BackboneSpec, DetectorSpec, ExplainerSpec, Variant

if TYPE_CHECKING:
    import typer

__all__ = ["BLOCK_VARIABLE", "ONLY_VARIABLE", "PluginRegistry", "load_plugins"]

BUILTIN_MODULES = (
    "hematokit.models.backbones",
    "hematokit.training.augmenters",
    "hematokit.explanation.explainers",
    "hematokit.detection.detectors",
)
"""Named as text and imported like any plugin: the registry sits below them and knows nothing about them."""

ONLY_VARIABLE = "HEMATOKIT_PLUGINS"
BLOCK_VARIABLE = "HEMATOKIT_BLOCK_PLUGINS"

_log = logging.getLogger(__name__)


class PluginRegistry:
    """All plugins and what they registered.

    Parameters
    ----------
    environment : mapping, optional
        Where ``HEMATOKIT_PLUGINS`` (comma list of packages that may load; set but empty means none) and
        ``HEMATOKIT_BLOCK_PLUGINS`` (comma list of those that may not) are read, and ``HEMATOKIT_PLUGIN_SECONDS``
        (how long each may take to load); `os.environ` by default. Built-ins always load.

    Raises
    ------
    PluginError
        If the number of seconds is none. What is wrong with a plugin is never raised: it is its `PluginInfo.reason`.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self.backbones: Registry[BackboneSpec] = Registry("backbone", BackboneSpec)
        self.augmenters: Registry[AugmenterSpec] = Registry("augmenter", AugmenterSpec)
        self.explainers: Registry[ExplainerSpec] = Registry("explainer", ExplainerSpec)
        self.detectors: Registry[DetectorSpec] = Registry("detector", DetectorSpec)
        self.plugins: list[PluginInfo] = []
        self._command_plugins: list[tuple[PluginInfo, object]] = []
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        given = os.environ if environment is None else environment
        self._seconds = time_limit(given)
        for module in BUILTIN_MODULES:
            info = PluginInfo(module, hookspecs.PROJECT, _version(hookspecs.PROJECT))
            self._load(info, module, lambda module=module: importlib.import_module(module))  # type: ignore[misc]
        self._load_strangers(given)

    @property
    def kinds(self) -> dict[str, Registry[Any]]:
        """The four registries, by the names that the listing has for them: ``"backbones"``, ..., ``"detectors"``."""
        return {
            "backbones": self.backbones,
            "augmenters": self.augmenters,
            "explainers": self.explainers,
            "detectors": self.detectors,
        }

    def of_package(self, package: str) -> list[PluginInfo]:
        """What became of a package's plugins; its name may be spelt with any of ``-``, ``_`` and ``.``."""
        return [info for info in self.plugins if _normalise(info.package) == _normalise(package)]

    def backbone(self, name: str, variant: str | None = None) -> tuple[BackboneSpec, str, Variant]:
        """Resolve ``"coatnet"``, ``"coatnet:nano"`` or ``"timm:<name>"``.

        Parameters
        ----------
        name : str
            Backbone, with the variant after a colon if it is not given separately.
        variant : str, optional
            Variant.

        Returns
        -------
        spec, variant_name, variant

        Raises
        ------
        PluginError
            If there is no such backbone or variant, or two variants are named.
        """
        base, _, suffix = name.partition(":")
        if suffix and variant and suffix != variant:
            raise PluginError(f"backbone {name!r} and variant {variant!r} disagree; name the variant once")
        spec = self.backbones.get(base)
        variant_name, found = spec.variant(variant or suffix or None)
        return spec, variant_name, found

    def explain_absence(self, package: str, version: str) -> str:
        """Say why nothing of a package is here, and what to do: the end of a sentence that begins with what is missed.

        Parameters
        ----------
        package, version : str
            Of the package that provided it.
        """
        said = f"package {package} {version}".rstrip()
        for info in self.of_package(package):
            if info.status == "blocked":
                return f"{said}, which may not load here ({info.reason})"
            if info.status == "failed":
                return f"{said}, which did not load ({info.reason})"
            return f"{said}; the installed {info.version} does not have it; run: pip install {package}=={version}"
        return f"{said}, which is not installed; run: pip install {package}"

    def register_commands(self, app: typer.Typer) -> None:
        """Let plugins add commands; one that fails, or takes the name of a command, is noted and adds none."""
        add_verbs(app, self._command_plugins, self._seconds)

    def _load_strangers(self, environment: Mapping[str, str]) -> None:
        only = _names(environment[ONLY_VARIABLE]) if ONLY_VARIABLE in environment else None
        blocked = _names(environment.get(BLOCK_VARIABLE, ""))
        points = metadata.entry_points(group=hookspecs.PROJECT)
        for point in sorted(points, key=lambda point: (_package(point), point.name)):
            package = _package(point)
            info = PluginInfo(point.name, package, (point.dist.version or "") if point.dist else "")
            # Decided from the package's name alone: nothing of a blocked plugin is imported.
            if _normalise(package) in blocked:
                info.status, info.reason = "blocked", f"{BLOCK_VARIABLE} names it"
                self.plugins.append(info)
            elif only is not None and _normalise(package) not in only:
                info.status, info.reason = "blocked", f"{ONLY_VARIABLE} does not name it"
                self.plugins.append(info)
            else:
                self._load(info, point.module, point.load)

    def _load(self, info: PluginInfo, module: str, load: Callable[[], object]) -> None:
        self.plugins.append(info)
        started, stage = time.monotonic(), "import"
        # Ours are imported as any module is: a thread and a limit are for strangers.
        call = _call if info.package == hookspecs.PROJECT else call_with_limit
        plugin: object = None
        try:
            plugin = call(load, self._seconds)
            stage = "registration"
            info.hooks = declared_hooks(plugin, module)
            self._manager.register(plugin, name=f"{info.package}:{info.name}")
            self._manager.check_pending()
            collected = call(lambda: self._collect(plugin), self._seconds)
            self._add(info, collected)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            info.status, info.reason = "failed", describe_failure(stage, error, info.package)
            if plugin is not None and self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            if isinstance(error, TookTooLongError):
                # Said at once: everybody who starts the program waits for it.
                _log.warning("%s", info.line)
            return
        finally:
            info.seconds = round(time.monotonic() - started, 3)
        if hasattr(plugin, "register_commands"):
            self._command_plugins.append((info, plugin))
            info.provides["commands"] = ["register_commands"]

    def _collect(self, plugin: object) -> list[tuple[str, AnySpec]]:
        """Call the plugin's hooks, and its only; nothing is kept yet."""
        others = [other for other in self._manager.get_plugins() if other is not plugin]
        collected: list[tuple[str, AnySpec]] = []
        for kind in self.kinds:
            specs: list[AnySpec] = []
            self._manager.subset_hook_caller(f"register_{kind}", remove_plugins=others)(register=specs.append)
            collected += [(kind, spec) for spec in specs]
        return collected

    def _add(self, info: PluginInfo, collected: list[tuple[str, AnySpec]]) -> None:
        """Add a plugin's specs, all together or, if anything is wrong with one, none."""
        seen: set[tuple[str, str]] = set()
        for kind, spec in collected:
            registry = self.kinds[kind]
            registry.check(spec, info)
            if (kind, spec.name) in seen:
                raise PluginError(f"{registry.kind} {spec.name!r} is registered twice by package {info.package}")
            seen.add((kind, spec.name))
        for kind, spec in collected:
            self.kinds[kind].add(spec, info)
            info.provides.setdefault(kind, []).append(spec.name)


@cache
def load_plugins() -> PluginRegistry:
    """Load all plugins once per process."""
    return PluginRegistry()


def _normalise(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def _names(text: str) -> set[str]:
    return {_normalise(part.strip()) for part in text.split(",") if part.strip()}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        from hematokit._version import __version__

        return __version__


def _package(point: metadata.EntryPoint) -> str:
    """The distribution's name; damaged metadata have none."""
    return (point.dist.name if point.dist else None) or point.value


def _call(call: Callable[[], Any], seconds: float) -> Any:
    return call()
