"""The plugin manager and the registries of backbones, augmenters, explainers and detectors.

Built-ins and strangers go through the same hooks. Whatever a stranger's package does wrong (fails to import, raises
while it registers, takes a name that exists) is kept as a reason that ``hematokit plugins`` shows; everything else
goes on working.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pluggy

from hematokit import hookspecs
from hematokit.errors import HematokitError, PluginError, describe_error
from hematokit.specs import AnySpec, AugmenterSpec, BackboneSpec, DetectorSpec, ExplainerSpec, Variant

if TYPE_CHECKING:
    import typer

__all__ = ["PluginInfo", "PluginRegistry", "Registry", "load_plugins"]

BUILTIN_MODULES = (
    "hematokit.builtins.backbones",
    "hematokit.builtins.augmenters",
    "hematokit.builtins.explainers",
    "hematokit.builtins.detectors",
)
"""Named as text and imported like any plugin: the registry sits below them and knows nothing about them."""

ONLY_VARIABLE = "HEMATOKIT_PLUGINS"
BLOCK_VARIABLE = "HEMATOKIT_BLOCK_PLUGINS"

S = TypeVar("S", bound=AnySpec)


@dataclass(slots=True)
class PluginInfo:
    """What became of one plugin.

    Attributes
    ----------
    name : str
        Entry point's name, or module for a built-in.
    package, version : str
        The distribution that provides it.
    status : str
        ``"loaded"``, ``"failed"`` or ``"blocked"``.
    reason : str
        Why it failed or is blocked; one line.
    provides : dict of str to list of str
        Names it registered, by kind (``"backbones"``, ...).
    """

    name: str
    package: str
    version: str
    status: str = "loaded"
    reason: str = ""
    provides: dict[str, list[str]] = field(default_factory=dict)


class Registry(Generic[S]):
    """Specs of one kind, by name.

    Parameters
    ----------
    kind : str
        ``"backbone"``, ``"augmenter"``, ...; used in messages.
    spec_type : type
        What a plugin must register.
    """

    def __init__(self, kind: str, spec_type: type[S]) -> None:
        self.kind = kind
        self.spec_type = spec_type
        self._specs: dict[str, S] = {}
        self._owners: dict[str, PluginInfo] = {}

    def __iter__(self) -> Iterator[S]:
        return iter(self._specs.values())

    def __contains__(self, name: object) -> bool:
        return name in self._specs

    def names(self) -> list[str]:
        """Registered names, in order of registration."""
        return list(self._specs)

    def get(self, name: str) -> S:
        """Return a spec.

        Raises
        ------
        PluginError
            If nothing of that name is registered.
        """
        if name not in self._specs:
            raise PluginError(
                f"no {self.kind} is called {name!r}; there are: {', '.join(self._specs) or 'none'} "
                "(hematokit plugins lists them, and plugins that failed to load)"
            )
        return self._specs[name]

    def owner(self, name: str) -> PluginInfo:
        """Return the plugin that registered `name`."""
        self.get(name)
        return self._owners[name]

    def make(self, name: str, options: Mapping[str, object] | None = None) -> tuple[Any, dict[str, Any]]:
        """Make what a spec describes.

        Parameters
        ----------
        name : str
            As ``hematokit plugins`` lists it.
        options : mapping, optional
            Its options, checked and completed.

        Returns
        -------
        made, options
            What the factory returned, and the options it was given.

        Raises
        ------
        PluginError
            If there is none of that name, an option does not fit, or it cannot be made.
        """
        resolved = self.get(name).resolve_options(options)
        try:
            return self.get(name).factory(**resolved), resolved
        except HematokitError:
            raise
        except Exception as error:
            who = f"{self.kind} {name!r} of package {self.owner(name).package}"
            raise PluginError(f"{who} cannot be made: {describe_error(error)}") from error

    def check(self, spec: S, info: PluginInfo) -> None:
        """Refuse what is not a spec of this kind, or a name that is taken.

        Raises
        ------
        PluginError
            In both cases; for a taken name it says both packages.
        """
        if not isinstance(spec, self.spec_type):
            raise PluginError(
                f"registered a {type(spec).__name__} as {self.kind}; it takes a {self.spec_type.__name__}"
            )
        if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", spec.name):
            raise PluginError(f"{self.kind} name {spec.name!r} is not usable: small letters, digits, '-', '_' and '.'")
        if spec.name in self._specs:
            raise PluginError(
                f"{self.kind} {spec.name!r} of package {info.package} is already registered by package "
                f"{self._owners[spec.name].package}; one of them must rename it"
            )

    def add(self, spec: S, info: PluginInfo) -> None:
        """Add a checked spec."""
        self.check(spec, info)
        self._specs[spec.name] = spec
        self._owners[spec.name] = info


class PluginRegistry:
    """All plugins and what they registered.

    Parameters
    ----------
    environment : mapping, optional
        Where ``HEMATOKIT_PLUGINS`` (comma list of packages that may load; set but empty means none) and
        ``HEMATOKIT_BLOCK_PLUGINS`` (comma list of those that may not) are read; `os.environ` by default.
        Built-ins always load.
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
        for module in BUILTIN_MODULES:
            info = PluginInfo(module, hookspecs.PROJECT, _version(hookspecs.PROJECT))
            self._load(info, lambda module=module: importlib.import_module(module))  # type: ignore[misc]
        self._load_strangers(os.environ if environment is None else environment)

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

    def register_commands(self, app: typer.Typer) -> None:
        """Let plugins add commands; one that fails is noted and left out."""
        for info, plugin in self._command_plugins:
            try:
                plugin.register_commands(app=app)  # type: ignore[attr-defined]
            except Exception as error:
                info.status, info.reason = "failed", _one_line("register_commands", error)

    def _load_strangers(self, environment: Mapping[str, str]) -> None:
        only = _names(environment[ONLY_VARIABLE]) if ONLY_VARIABLE in environment else None
        blocked = _names(environment.get(BLOCK_VARIABLE, ""))
        points = metadata.entry_points(group=hookspecs.PROJECT)
        for point in sorted(points, key=lambda point: (point.dist.name if point.dist else "", point.name)):
            package = point.dist.name if point.dist else point.value
            info = PluginInfo(point.name, package, point.dist.version if point.dist else "")
            # Decided from the package's name alone: nothing of a blocked plugin is imported.
            if _normalise(package) in blocked:
                info.status, info.reason = "blocked", f"{BLOCK_VARIABLE} names it"
                self.plugins.append(info)
            elif only is not None and _normalise(package) not in only:
                info.status, info.reason = "blocked", f"{ONLY_VARIABLE} does not name it"
                self.plugins.append(info)
            else:
                self._load(info, point.load)

    def _load(self, info: PluginInfo, load: Callable[[], object]) -> None:
        self.plugins.append(info)
        try:
            plugin = load()
        except (Exception, SystemExit) as error:
            info.status, info.reason = "failed", _one_line("import", error)
            return
        try:
            name = self._manager.register(plugin, name=f"{info.package}:{info.name}")
            self._manager.check_pending()
            self._collect(info, plugin)
        except (Exception, SystemExit) as error:
            info.status, info.reason = "failed", _one_line("registration", error)
            info.provides = {}
            if self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            return
        if name is not None and hasattr(plugin, "register_commands"):
            self._command_plugins.append((info, plugin))
            info.provides["commands"] = ["register_commands"]

    def _collect(self, info: PluginInfo, plugin: object) -> None:
        """Call the plugin's hooks; its specs are added all together or, if anything is wrong, not at all."""
        kinds: dict[str, Registry[Any]] = {
            "backbones": self.backbones,
            "augmenters": self.augmenters,
            "explainers": self.explainers,
            "detectors": self.detectors,
        }
        collected: list[tuple[str, Registry[Any], AnySpec]] = []
        others = [other for other in self._manager.get_plugins() if other is not plugin]
        for kind, registry in kinds.items():
            specs: list[AnySpec] = []
            caller = self._manager.subset_hook_caller(f"register_{kind}", remove_plugins=others)
            caller(register=specs.append)
            for spec in specs:
                registry.check(spec, info)
                if any(other.name == spec.name for _, known, other in collected if known is registry):
                    raise PluginError(f"{registry.kind} {spec.name!r} is registered twice by package {info.package}")
                collected.append((kind, registry, spec))
        for kind, registry, spec in collected:
            registry.add(spec, info)
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
        from hematokit import __version__

        return __version__


def _one_line(stage: str, error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    return f"{stage}: {type(error).__name__}: {text}"[:400]
