"""What is registered: specs of one kind by name, and what became of each plugin."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeGuard, TypeVar

from hematokit.errors import HematokitError, PluginError, describe_error
from hematokit.plugins.hookspecs import PROJECT
from hematokit.plugins.specs import AnySpec

__all__ = ["PluginInfo", "Registry", "is_other_version"]

_FIRST: Final = ("0.1.0", "1")
"""Version 0.1.0 recorded its own number where later ones record that of the algorithm; all its algorithms were "1"."""


def is_other_version(before: Any, now: Mapping[str, Any]) -> TypeGuard[Mapping[str, Any]]:
    """Tell whether what was recorded of an algorithm differs from what would be recorded now in the version only."""
    if not isinstance(before, Mapping) or "version" not in before:
        return False
    return before["version"] != now["version"] and {**before, "version": now["version"]} == now


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

    def version(self, name: str) -> str:
        """Return the version of an algorithm: the one that its spec states, else that of its package."""
        return getattr(self.get(name), "version", "") or self.owner(name).version

    def update_identity(self, name: str, recorded: Any) -> Any:
        """Return what an earlier version recorded of `name` (package, version, options) as it would be recorded now.

        An option that is newer than the record had its default, or else the version of the algorithm would be another.
        """
        if name not in self._specs or not isinstance(recorded, Mapping):
            return recorded
        document = dict(recorded)
        if document.get("package") == PROJECT and document.get("version") == _FIRST[0]:
            document["version"] = _FIRST[1]
        if isinstance(document.get("options"), Mapping):
            defaults = {option: entry.default for option, entry in self._specs[name].options.items()}
            document["options"] = defaults | dict(document["options"])
        return document

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
            article = "an" if self.kind[0] in "aeiou" else "a"
            raise PluginError(
                f"registered a {type(spec).__name__} as {self.kind}; it takes {article} {self.spec_type.__name__}"
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
