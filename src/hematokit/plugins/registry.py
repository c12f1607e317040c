"""Registries of specs by name, the status of each plugin package, and plugins with their options."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeGuard, TypeVar

import pluggy

from hematokit._version import __version__
from hematokit.errors import HematokitError, PluginError, describe_error
from hematokit.plugins.hookspecs import HOOKS, PROJECT
from hematokit.plugins.specs import AnySpec, Augmenter, Detector, Explainer

__all__ = [
    "MadeAugmenter",
    "MadeDetector",
    "MadeExplainer",
    "MadePlugin",
    "PluginChoice",
    "PluginInfo",
    "Registry",
    "is_other_version",
]

_FIRST: Final = ("0.1.0", "1")
"""Version 0.1.0 recorded its own number where later ones record that of the algorithm; all its algorithms were "1"."""


def is_other_version(before: Any, now: Mapping[str, Any]) -> TypeGuard[Mapping[str, Any]]:
    """Return whether the recorded identity of an algorithm differs from the present one in the version only."""
    if not isinstance(before, Mapping) or "version" not in before:
        return False
    return before["version"] != now["version"] and {**before, "version": now["version"]} == now


S = TypeVar("S", bound=AnySpec)
T = TypeVar("T")


@dataclass(slots=True)
class PluginInfo:
    """Status of one plugin.

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
        Version of the hooks that it requires; empty if it states none.
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
        """The status in one line: ``failed: some-package 1.0 (main): import: ...``."""
        return f"{self.status}: {self.package} {self.version} ({self.name}): {self.reason}"

    def fail(self, stage: str, error: BaseException) -> None:
        """Record that the plugin failed: nothing is registered of it.

        Parameters
        ----------
        stage : str
            ``"import"``, ``"registration"`` or ``"register_commands"``.
        error : BaseException
            The exception.
        """
        text = " ".join(str(error).split()) or "no message"
        if isinstance(error, pluggy.PluginValidationError) and "unknown hook" in text:
            hook = re.search(r"unknown hook '(\w+)'", text)
            text = f"implements the hook {hook[1] if hook else '?'}, which is not known here; {newer_hint()}"
        elif not isinstance(error, PluginError):
            text = f"{type(error).__name__}: {text}"
            if _is_about_hematokit(error):
                text = f"{text}; {newer_hint()}"
        self.status, self.reason = "failed", f"{stage}: {text}"[:400]
        self.provides.pop("commands", None)


def newer_hint() -> str:
    """Return the end of a message about a plugin that may be written for a later hematokit."""
    have = f"hematokit {__version__} has hooks {HOOKS}"
    return f"{have}; if the plugin is newer, run: pip install --upgrade hematokit"


def _is_about_hematokit(error: BaseException) -> bool:
    """Whether something is missing from hematokit itself, as when a plugin was written for a later version."""
    if isinstance(error, ImportError):
        name = error.name or ""
    elif isinstance(error, AttributeError):
        name = getattr(error.obj, "__name__", "") if type(error.obj) is type(sys) else ""
    else:
        return False
    return name.split(".")[0] == PROJECT


@dataclass(frozen=True)
class PluginChoice(Generic[S]):
    """A spec, its package, and options.

    Attributes
    ----------
    spec : BackboneSpec, AugmenterSpec, ExplainerSpec or DetectorSpec
    package : str
        The distribution that registered it.
    version : str
        Of the algorithm where the spec states one, else of the package.
    options : mapping
        Checked and complete.
    """

    spec: S
    package: str
    version: str
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The spec's name."""
        return self.spec.name

    @property
    def title(self) -> str:
        """For messages: ``augmenter 'stain' of package hematokit-stain``."""
        return f"{self.spec.kind} {self.name!r} of package {self.package}"


@dataclass(frozen=True)
class MadePlugin(PluginChoice[AnySpec], Generic[T]):
    """A plugin made with its options.

    Attributes
    ----------
    value : Augmenter, Explainer or Detector
        Object that the factory returned.
    deciding_options : mapping
        As `options`, with the SHA-256 of their content in place of paths, taken when it was made.
    """

    value: T
    deciding_options: Mapping[str, Any]

    def identity(self) -> dict[str, Any]:
        """Return name, package, version and deciding options: results are comparable where these are equal."""
        return {
            "name": self.name,
            "package": self.package,
            "version": self.version,
            "options": dict(self.deciding_options),
        }


MadeAugmenter = MadePlugin[Augmenter]
MadeExplainer = MadePlugin[Explainer]
MadeDetector = MadePlugin[Detector]


class Registry(Generic[S, T]):
    """Specs of one type, by name.

    Parameters
    ----------
    spec_type : type
        Type of spec that a plugin must register.
    """

    def __init__(self, spec_type: type[S]) -> None:
        self.kind = spec_type.kind
        self.spec_type = spec_type
        self._entries: dict[str, tuple[S, PluginInfo]] = {}

    def __iter__(self) -> Iterator[S]:
        return (spec for spec, _ in self._entries.values())

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def names(self) -> list[str]:
        """Registered names, in order of registration."""
        return list(self._entries)

    def _entry(self, name: str) -> tuple[S, PluginInfo]:
        if name not in self._entries:
            raise PluginError(
                f"no {self.kind} is called {name!r}; there are: {', '.join(self._entries) or 'none'} "
                "(hematokit plugins lists them, and plugins that failed to load)"
            )
        return self._entries[name]

    def get(self, name: str) -> S:
        """Return a spec.

        Raises
        ------
        PluginError
            If nothing of that name is registered.
        """
        return self._entry(name)[0]

    def owner(self, name: str) -> PluginInfo:
        """Return the plugin that registered `name`; raises as `get` does."""
        return self._entry(name)[1]

    def choose(self, name: str, options: Mapping[str, object] | None = None) -> PluginChoice[S]:
        """Check and complete the options of a plugin, which is not made yet.

        Parameters
        ----------
        name : str
            As ``hematokit plugins`` lists it.
        options : mapping, optional
            Its options.

        Raises
        ------
        PluginError
            If no plugin has that name, or an option does not fit.
        """
        spec, info = self._entry(name)
        version = getattr(spec, "version", "") or info.version
        return PluginChoice(spec, info.package, version, spec.resolve_options(options))

    def make(self, name: str, options: Mapping[str, object] | None = None) -> MadePlugin[T]:
        """Make a plugin with its options.

        Parameters
        ----------
        name : str
            As ``hematokit plugins`` lists it.
        options : mapping, optional
            Its options, which are checked and completed.

        Raises
        ------
        PluginError
            If no plugin has that name, an option does not fit, or it cannot be made.
        """
        choice = self.choose(name, options)
        try:
            value = choice.spec.factory(**choice.options)
        except HematokitError:
            raise
        except Exception as error:
            raise PluginError(f"{choice.title} cannot be made: {describe_error(error)}") from error
        deciding = choice.spec.deciding_options(choice.options)
        return MadePlugin(choice.spec, choice.package, choice.version, choice.options, value, deciding)

    def update_identity(self, name: str, recorded: Any) -> Any:
        """Return what an earlier version recorded of `name` (package, version, options) as it would be recorded now.

        An option that is newer than the record had its default, or else the version of the algorithm would be another.
        """
        if name not in self._entries or not isinstance(recorded, Mapping):
            return recorded
        document = dict(recorded)
        if document.get("package") == PROJECT and document.get("version") == _FIRST[0]:
            document["version"] = _FIRST[1]
        if isinstance(document.get("options"), Mapping):
            defaults = {option: entry.default for option, entry in self.get(name).options.items()}
            document["options"] = defaults | dict(document["options"])
        return document

    def check(self, spec: S, info: PluginInfo) -> None:
        """Refuse what is not a spec of this type, or a name that is taken.

        Raises
        ------
        PluginError
            In both cases; for a taken name, the message names both packages.
        """
        if not isinstance(spec, self.spec_type):
            article = "an" if self.kind[0] in "aeiou" else "a"
            raise PluginError(
                f"registered a {type(spec).__name__} as {self.kind}; it takes {article} {self.spec_type.__name__}"
            )
        if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", spec.name):
            raise PluginError(f"{self.kind} name {spec.name!r} is not usable: small letters, digits, '-', '_' and '.'")
        if spec.name in self._entries:
            raise PluginError(
                f"{self.kind} {spec.name!r} of package {info.package} is already registered by package "
                f"{self.owner(spec.name).package}; one of them must rename it"
            )

    def add(self, spec: S, info: PluginInfo) -> None:
        """Add a spec; raises as `check` does."""
        self.check(spec, info)
        self._entries[spec.name] = (spec, info)

    def remove(self, name: str) -> None:
        """Remove a spec, if it is registered."""
        self._entries.pop(name, None)
