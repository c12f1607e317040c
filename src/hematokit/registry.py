"""The plugin manager and the registries of backbones, augmenters, explainers and detectors.

Built-ins and strangers go through the same hooks. Whatever a stranger's package does wrong (fails to import, raises
while it registers, takes a name that exists) is kept as a reason that ``hematokit plugins`` shows; everything else
goes on working.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pluggy

from hematokit import hookspecs
from hematokit.errors import HematokitError, PluginError, describe_error
from hematokit.isolation import TookTooLongError, call_with_limit, declared_hooks, describe_failure, time_limit
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

_log = logging.getLogger(__name__)


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
    hooks : str
        Version of the hooks that it says it needs; empty where it does not say.
    seconds : float
        How long importing and registering took.
    """

    name: str
    package: str
    version: str
    status: str = "loaded"
    reason: str = ""
    provides: dict[str, list[str]] = field(default_factory=dict)
    hooks: str = ""
    seconds: float = 0.0

    @property
    def line(self) -> str:
        """What became of it, for people: ``failed: some-package 1.0 (main): import: ...``."""
        return f"{self.status}: {self.package} {self.version} ({self.name}): {self.reason}"


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
            raise PluginError(f"{self.describe(name)} cannot be made: {describe_error(error)}") from error

    def describe(self, name: str) -> str:
        """Name a spec and its package, for messages: ``augmenter 'stain' of package hematokit-stain``."""
        return f"{self.kind} {name!r} of package {self.owner(name).package}"

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
        import typer

        taken = {_command_name(command): hookspecs.PROJECT for command in (*app.registered_commands,)}
        taken |= {str(group.name): hookspecs.PROJECT for group in app.registered_groups}
        for info, plugin in self._command_plugins:
            # A program of its own, so that nothing of it is there if anything of it is wrong.
            own = typer.Typer()
            try:
                call_with_limit(lambda plugin=plugin, own=own: plugin.register_commands(app=own), self._seconds)  # type: ignore[misc]
                names = [_command_name(command) for command in own.registered_commands]
                names += [str(group.name) for group in own.registered_groups]
                for name in names:
                    if name in taken:
                        raise PluginError(f"the command {name!r} is already there, from package {taken[name]}")
                if names:
                    typer.main.get_command(own)  # raises for parameters that no command line can have
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                info.status, info.reason = "failed", describe_failure("register_commands", error, info.package)
                info.provides.pop("commands", None)
                continue
            app.registered_commands += own.registered_commands
            app.registered_groups += own.registered_groups
            taken |= dict.fromkeys(names, info.package)
            info.provides["commands"] = names

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
        from hematokit import __version__

        return __version__


def _package(point: metadata.EntryPoint) -> str:
    """The distribution's name; damaged metadata have none."""
    return (point.dist.name if point.dist else None) or point.value


def _call(call: Callable[[], Any], seconds: float) -> Any:
    return call()


def _command_name(command: Any) -> str:
    return str(command.name or getattr(command.callback, "__name__", "").replace("_", "-"))
