"""Loading plugins: built-in and third-party ones register through the same hooks.

A package registers all of its specs or none. Whatever a third-party package raises is kept as a reason that
``hematokit plugins`` shows; everything else works.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

import pluggy

from hematokit._version import __version__
from hematokit.errors import PluginError
from hematokit.plugins import hookspecs
from hematokit.plugins.commands import add_commands
from hematokit.plugins.registry import PluginInfo, Registry, newer_hint
from hematokit.plugins.specs import (
    AnySpec,
    Augmenter,
    AugmenterSpec,
    BackboneSpec,
    Detector,
    DetectorSpec,
    Explainer,
    ExplainerSpec,
    Variant,
)

if TYPE_CHECKING:
    import typer

__all__ = ["BLOCK_VARIABLE", "HOOKS_ATTRIBUTE", "ONLY_VARIABLE", "PluginRegistry", "load_plugins", "registered"]

BUILTIN_MODULES = (
    "hematokit.models.backbones",
    "hematokit.training.augmenters",
    "hematokit.explanation.explainers",
    "hematokit.detection.detectors",
)
"""Named as text and imported like any plugin: the registry sits below them and knows nothing about them."""

ONLY_VARIABLE: Final = "HEMATOKIT_PLUGINS"
BLOCK_VARIABLE: Final = "HEMATOKIT_BLOCK_PLUGINS"
HOOKS_ATTRIBUTE: Final = "HEMATOKIT_HOOKS"
"""Name in a plugin's module for the version of the hooks that it needs at least."""


class PluginRegistry:
    """All plugins and what they registered.

    Parameters
    ----------
    environment : mapping, optional
        Where ``HEMATOKIT_PLUGINS`` (comma list of packages that may load; set but empty means none) and
        ``HEMATOKIT_BLOCK_PLUGINS`` (comma list of those that may not) are read; `os.environ` by default. Built-ins
        always load. An error of a plugin is never raised: it is its `PluginInfo.reason`.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self.backbones: Registry[BackboneSpec, Any] = Registry(BackboneSpec)
        self.augmenters: Registry[AugmenterSpec, Augmenter] = Registry(AugmenterSpec)
        self.explainers: Registry[ExplainerSpec, Explainer] = Registry(ExplainerSpec)
        self.detectors: Registry[DetectorSpec, Detector] = Registry(DetectorSpec)
        self.plugins: list[PluginInfo] = []
        self._command_plugins: list[tuple[PluginInfo, Any]] = []
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        for module in BUILTIN_MODULES:
            info = PluginInfo(module, hookspecs.PROJECT, _version(hookspecs.PROJECT))
            self._load(info, module, lambda module=module: importlib.import_module(module))  # type: ignore[misc]
        self._load_third_party(os.environ if environment is None else environment)

    @property
    def kinds(self) -> dict[str, Registry[Any, Any]]:
        """The four registries: ``"backbones"``, ``"augmenters"``, ``"explainers"`` and ``"detectors"``."""
        return {
            "backbones": self.backbones,
            "augmenters": self.augmenters,
            "explainers": self.explainers,
            "detectors": self.detectors,
        }

    def of_package(self, package: str) -> list[PluginInfo]:
        """Return the plugins of a package, whose name may be spelt with any of ``-``, ``_`` and ``.``."""
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
        """Return the end of a message about a missing plugin: its package, why it is not loaded, and what to do.

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
        """Let plugins add commands; one that fails, or takes the name of a command, is noted and provides nothing."""
        add_commands(app, self._command_plugins)
        for info, _ in self._command_plugins:
            if info.status == "failed":
                self.withdraw(info)
        self._command_plugins = [each for each in self._command_plugins if each[0].status != "failed"]

    def add(self, info: PluginInfo, specs: list[tuple[str, AnySpec]]) -> None:
        """Add a plugin's specs, all together or, if anything is wrong with one, none.

        Parameters
        ----------
        info : PluginInfo
            The plugin; the names are added to its `provides`.
        specs : list of (str, spec)
            With the registry that each is for: ``"backbones"``, ...

        Raises
        ------
        PluginError
            If one is not a spec of its registry, or its name is taken.
        """
        seen: set[tuple[str, str]] = set()
        for kind, spec in specs:
            registry = self.kinds[kind]
            registry.check(spec, info)
            if (kind, spec.name) in seen:
                raise PluginError(f"{registry.kind} {spec.name!r} is registered twice by package {info.package}")
            seen.add((kind, spec.name))
        for kind, spec in specs:
            self.kinds[kind].add(spec, info)
            info.provides.setdefault(kind, []).append(spec.name)

    def withdraw(self, info: PluginInfo) -> None:
        """Remove all specs of a plugin."""
        for kind, names in info.provides.items():
            for name in names if kind in self.kinds else []:
                self.kinds[kind].remove(name)
        info.provides = {}

    def _load_third_party(self, environment: Mapping[str, str]) -> None:
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
        plugin: object = None
        try:
            # Its output must not be mixed into that of --json.
            with redirect_stdout(sys.stderr):
                plugin = load()
                stage = "registration"
                info.hooks = _declared_hooks(plugin, module)
                self._manager.register(plugin, name=f"{info.package}:{info.name}")
                self._manager.check_pending()
                self.add(info, self._collect(plugin))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also SystemExit
            info.fail(stage, error)
            if plugin is not None and self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            return
        finally:
            info.seconds = round(time.monotonic() - started, 3)
        if hasattr(plugin, "register_commands"):
            self._command_plugins.append((info, plugin))
            info.provides["commands"] = ["register_commands"]

    def _collect(self, plugin: object) -> list[tuple[str, AnySpec]]:
        """Call the hooks of one plugin; nothing is kept yet."""
        others = [other for other in self._manager.get_plugins() if other is not plugin]
        collected: list[tuple[str, AnySpec]] = []
        for kind in self.kinds:
            specs: list[AnySpec] = []
            self._manager.subset_hook_caller(f"register_{kind}", remove_plugins=others)(register=specs.append)
            collected += [(kind, spec) for spec in specs]
        return collected


@cache
def load_plugins() -> PluginRegistry:
    """Load all plugins once per process."""
    return PluginRegistry()


@contextmanager
def registered(*specs: AnySpec, package: str = "test-package", version: str = "1.0") -> Iterator[None]:
    """Register specs while a ``with`` block runs, as an installed package does; for tests.

    Parameters
    ----------
    *specs : BackboneSpec, AugmenterSpec, ExplainerSpec or DetectorSpec
    package, version : str
        The package that messages, bundles and results name.

    Raises
    ------
    PluginError
        If a name is taken; nothing is registered then.

    Examples
    --------
    >>> with registered(AugmenterSpec("still", "Changes nothing", lambda: lambda images, generator: images)):
    ...     "still" in load_plugins().augmenters
    True
    >>> "still" in load_plugins().augmenters
    False
    """
    registry = load_plugins()
    info = PluginInfo("registered", package, version)
    registry.add(info, [(f"{spec.kind}s", spec) for spec in specs])
    registry.plugins.append(info)
    try:
        yield
    finally:
        registry.plugins.remove(info)
        registry.withdraw(info)


def _declared_hooks(plugin: object, module: str) -> str:
    """Return the version of the hooks that a plugin requires, or an empty text if it states none.

    `module` is the entry point's, looked at where `plugin` is an object inside it.

    Raises
    ------
    PluginError
        If it needs another version than this hematokit has.
    """
    found = getattr(plugin, HOOKS_ATTRIBUTE, None) or getattr(sys.modules.get(module), HOOKS_ATTRIBUTE, None)
    if found is None:
        return ""
    if not isinstance(found, str) or not re.fullmatch(r"\d{1,4}\.\d{1,4}", found):
        raise PluginError(f"{HOOKS_ATTRIBUTE} is {found!r}, not a version like {hookspecs.HOOKS!r}; tell its author")
    major, minor = map(int, found.split("."))
    have_major, have_minor = map(int, hookspecs.HOOKS.split("."))
    if (major, minor) > (have_major, have_minor):
        raise PluginError(f"needs hooks {found}; {newer_hint()}")
    if major < have_major:
        raise PluginError(
            f"is written for hooks {found}; hematokit {__version__} has hooks {hookspecs.HOOKS}; "
            "install a newer version of the plugin"
        )
    return found


def _normalise(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def _names(text: str) -> set[str]:
    return {_normalise(part.strip()) for part in text.split(",") if part.strip()}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return __version__


def _package(point: metadata.EntryPoint) -> str:
    """Return the distribution's name; damaged metadata have none."""
    return (point.dist.name if point.dist else None) or point.value
