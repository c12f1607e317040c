"""Rules for packages, and those that all types of plugins share; they need only the registry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires
from types import MappingProxyType
from typing import Any, ClassVar, Final, get_args
from unittest import SkipTest

from hematokit.conformance.rules import Rule, RuleBroken, RuleWarning
from hematokit.plugins import HOOKS_ATTRIBUTE, ONLY_VARIABLE, MadePlugin, PluginInfo, load_plugins
from hematokit.plugins.hookspecs import HOOKS, PROJECT
from hematokit.plugins.specs import AnySpec, BackboneSpec, InputSpec, Option, PathKind

__all__ = ["HEAVY", "PACKAGE_RULES", "PluginUnderTest", "builds", "spec"]

HEAVY: Final = (
    "torch", "torchvision", "timm", "transformers", "tensorflow", "keras", "jax", "captum", "kornia", "cellpose",
    "stardist", "onnx", "onnxruntime", "openvino", "napari", "qtpy", "skimage", "sklearn", "scipy", "cv2", "matplotlib",
    "pandas", "numpy", "zarr", "PIL",
)  # fmt: skip
"""Packages that take long to import; listing plugins must not wait for them."""

_LISTING: Final = """
import json, sys
from hematokit.plugins import PluginRegistry
if {package!r} != "hematokit":
    PluginRegistry({{{only!r}: ""}})
before = set(sys.modules)
found = PluginRegistry({{{only!r}: {package!r}}})
print(json.dumps(sorted({{name.split(".")[0] for name in (set(sys.modules) - before)}})))
"""


def loads(info: PluginInfo) -> str:
    """It is imported and registers without an error."""
    if info.status != "loaded":
        raise RuleBroken(f"{info.status}: {info.reason}")
    return f"entry point {info.name}, {info.seconds:.2f} s"


def provides(info: PluginInfo) -> str:
    """It registers something."""
    if not info.provides:
        raise RuleBroken(
            "nothing was registered; are the functions named register_... and marked with @hematokit.hookimpl?"
        )
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in info.provides.items())


def light(info: PluginInfo) -> str:
    """Listing it imports nothing heavy: torch and its like belong inside the factory."""
    code = _LISTING.format(package=info.package, only=ONLY_VARIABLE)
    # The child sees what this process sees, wherever that came from.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    try:
        imported = set(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        raise SkipTest(f"a process that lists it ended with {done.returncode}") from None
    heavy = [name for name in HEAVY if name in imported]
    if heavy:
        raise RuleBroken(f"registering imports {', '.join(heavy)}; import inside the factory instead")
    return f"imports {', '.join(sorted(imported)[:8]) or 'nothing'}"


def hooks(info: PluginInfo) -> str:
    """It states the required version of the hooks."""
    if info.package == PROJECT:
        return f"those of hematokit, {HOOKS}"
    if not info.hooks:
        _require_package(info)
        raise RuleWarning(
            f'write {HOOKS_ATTRIBUTE} = "{HOOKS}" beside the hooks, so that an older hematokit says what it lacks'
        )
    return f"{info.hooks}; hematokit has {HOOKS}"


def metadata(info: PluginInfo) -> str:
    """Its package has a version and depends on hematokit."""
    if info.package == PROJECT:
        return f"version {info.version}"
    if not info.version:
        raise RuleBroken("the package has no version; bundles could not say which one they need")
    needed = [line.lower() for line in _require_package(info)]
    if not any(line.startswith(PROJECT) and not line[len(PROJECT) :][:1].isalnum() for line in needed):
        raise RuleWarning("its dependencies do not name hematokit; pip would install it alone")
    return f"version {info.version}"


def _require_package(info: PluginInfo) -> list[str]:
    """Return the dependencies of its package; the rule is skipped for specs of `hematokit.plugins.registered`."""
    try:
        return requires(info.package) or []
    except PackageNotFoundError:
        raise SkipTest(f"{info.package} is not an installed package") from None


PACKAGE_RULES: Final[Sequence[Rule]] = (loads, provides, light, hooks, metadata)


class PluginUnderTest:
    """A plugin and the options that it is tested with.

    Parameters
    ----------
    name : str
        As registered.
    options : mapping
        Its options.
    """

    registry: ClassVar[str]
    """``"augmenters"``, ``"explainers"`` or ``"detectors"``."""

    def __init__(self, name: str, options: Mapping[str, object]) -> None:
        self.name, self.options = name, dict(options)
        self.spec: AnySpec = load_plugins().kinds[self.registry].get(name)

    def make(self, changed: Mapping[str, object] = MappingProxyType({})) -> MadePlugin[Any]:
        """Make it, with some options changed."""
        return load_plugins().kinds[self.registry].make(self.name, {**self.options, **changed})


def spec(plugin: Any) -> str:
    """Its description, options and variants are complete and agree with each other."""
    tested: AnySpec = plugin.spec
    _one_line("description", tested.description)
    if not callable(tested.factory):
        raise RuleBroken(f"the factory is a {type(tested.factory).__name__}, which cannot be called")
    for name, option in tested.options.items():
        if not name.isidentifier():
            raise RuleBroken(f"option {name!r} cannot be an argument of a function; letters, digits and '_'")
        if option.type not in (int, float, bool, str):
            raise RuleBroken(
                f"option {name} is a {option.type.__name__}; int, float, bool or str can be typed after --set"
            )
        _one_line(f"description of option {name}", option.description)
        _values(name, option)
        if option.default is not None and option.convert(name, option.default) != option.default:
            raise RuleBroken(f"option {name}: the default {option.default!r} is not of type {option.type.__name__}")
    version = getattr(tested, "version", "")
    if not isinstance(version, str):
        raise RuleBroken(f"the version is of type {type(version).__name__}; write it as text")
    said = f"options: {len(tested.options)}" + (f", version {version}" if version else "")
    if isinstance(tested, BackboneSpec):
        _variants(tested)
        said += f", variants: {len(tested.variants)}"
    return said


def builds(plugin: PluginUnderTest) -> str:
    """It is made from its options, without the network."""
    return type(plugin.make().value).__name__


def _values(name: str, option: Option) -> None:
    """Return the restrictions on the values of an option."""
    wrong = [choice for choice in option.choices if type(choice) is not option.type]
    if wrong:
        raise RuleBroken(f"option {name}: the choice {wrong[0]!r} is not of type {option.type.__name__}")
    if option.choices and (option.minimum is not None or option.maximum is not None):
        raise RuleBroken(f"option {name} has choices and limits; give one of them")
    if option.path is None:
        return
    if option.path not in get_args(PathKind):
        raise RuleBroken(f"option {name}: path {option.path!r} is none of {', '.join(get_args(PathKind))}")
    if option.type is not str or option.choices:
        raise RuleBroken(f"option {name} is a path; its type is str, and it has no choices")
    if option.default:
        raise RuleBroken(
            f"option {name}: a path has no default, because no file is everywhere; give an empty one or None"
        )


def _variants(given: BackboneSpec) -> None:
    if not given.variants and given.find_variant is None:
        raise RuleBroken("it has no variants; give at least one, with its input size")
    if given.default_variant and given.default_variant not in given.variants and given.find_variant is None:
        raise RuleBroken(f"the default variant {given.default_variant!r} is not among its variants")
    for name, variant in given.variants.items():
        _input(name, variant.input)


def _input(name: str, given: InputSpec) -> None:
    if given.divisor < 1 or given.size % given.divisor or given.size < 2 * given.divisor:
        raise RuleBroken(
            f"variant {name}: input size {given.size} is not a multiple of its divisor {given.divisor}, at least twice"
        )
    if given.fit not in ("resize", "reflect-pad", "crop", "auto"):
        raise RuleBroken(f"variant {name}: fit {given.fit!r} is none of resize, reflect-pad, crop, auto")
    if len(given.mean) != 3 or len(given.std) != 3:
        raise RuleBroken(f"variant {name}: mean and std are three numbers each")


def _one_line(what: str, text: Any) -> None:
    if not isinstance(text, str) or not text.strip():
        raise RuleBroken(f"the {what} is empty; one line is shown in listings")
    if "\n" in text:
        raise RuleBroken(f"the {what} has more than one line")
