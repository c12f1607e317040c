"""The conformance tests of an installed package or of one plugin."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any
from unittest import SkipTest

from hematokit.conformance import augmenters, backbones, detectors, explainers
from hematokit.conformance.packages import PACKAGE_RULES
from hematokit.conformance.rules import ConformanceTest, Rule, RuleResult
from hematokit.errors import PluginError
from hematokit.plugins import PluginInfo, PluginRegistry, load_plugins
from hematokit.progress import Progress, no_progress

__all__ = ["RULES", "check_plugin", "conformance_tests"]

Options = Mapping[str, Mapping[str, object]]

RULES: dict[str, Sequence[Rule]] = {
    "backbone": backbones.RULES,
    "augmenter": augmenters.RULES,
    "explainer": explainers.RULES,
    "detector": detectors.RULES,
    "package": PACKAGE_RULES,
}
_UNDER_TEST: dict[str, Callable[[str, Mapping[str, object]], Any]] = {
    "backbone": backbones.BackboneUnderTest,
    "augmenter": augmenters.AugmenterUnderTest,
    "explainer": explainers.ExplainerUnderTest,
    "detector": detectors.DetectorUnderTest,
}


def check_plugin(name: str, options: Options | None = None, *, progress: Progress = no_progress) -> list[RuleResult]:
    """Run the conformance tests of a plugin.

    Parameters
    ----------
    name, options
        As for `conformance_tests`.
    progress : Progress
        Called after each test.

    Returns
    -------
    list of RuleResult
        One per rule. ``outcome`` is ``"failed"`` where the plugin breaks the rule; ``"warned"`` where it works but
        users may have trouble; ``"skipped"`` where the rule could not be tested here.

    Raises
    ------
    PluginError
        If nothing installed has that name, or an option is given that nothing takes.

    Examples
    --------
    >>> failed = [result for result in check_plugin("flips") if result.outcome == "failed"]
    >>> failed
    []
    """
    import torch

    tests = conformance_tests(name, options)
    results = []
    with torch.random.fork_rng():
        for number, test in enumerate(tests):
            results.append(test.result())
            progress(number + 1, len(tests), test.subject)
    return results


def conformance_tests(name: str, options: Options | None = None) -> list[ConformanceTest]:
    """Return the conformance tests of a plugin, one per rule, for ``pytest.mark.parametrize``.

    Parameters
    ----------
    name : str
        A package, with everything that it registers; or the name of one backbone, augmenter, explainer or detector
        (``"thimble"``, ``"thimble:two"`` for a variant other than the default one).
    options : mapping of str to mapping, optional
        Options by type of plugin: ``{"detector": {"weights": "file.pt"}}``.

    Raises
    ------
    PluginError
        If nothing installed has that name, or an option is given that nothing takes.

    Examples
    --------
    >>> import pytest
    >>> @pytest.mark.parametrize("test", conformance_tests("flips"), ids=str)
    ... def test_conformance(test):
    ...     test()
    """
    registry = load_plugins()
    given = {kind: dict(values) for kind, values in (options or {}).items()}
    for kind in given:
        if kind not in _UNDER_TEST:
            raise PluginError(f"--set {kind}.NAME: {kind!r} is no kind of plugin; there are: {', '.join(_UNDER_TEST)}")
    packages, plugins = _find(registry, name)
    specs = {(kind, each): registry.kinds[f"{kind}s"].get(each.partition(":")[0]) for kind, each in plugins}
    for kind, values in given.items():
        tested = [spec for (known, _), spec in specs.items() if known == kind]
        for option in values:
            if not any(option in spec.options for spec in tested):
                names = ", ".join(spec.name for spec in tested) or "nothing here"
                raise PluginError(f"--set {kind}.{option}: no {kind} under trial has it ({names})")
    tests = []
    for info in packages:
        tests += _tests(PACKAGE_RULES, f"package {info.package}", lambda info=info: info)  # type: ignore[misc]
    for (kind, each), spec in specs.items():
        values = {key: value for key, value in given.get(kind, {}).items() if key in spec.options}
        make = partial(_UNDER_TEST[kind], each, values)
        rules = RULES[kind]
        if kind == "backbone" and not spec.default_variant and ":" not in each:
            rules, make = rules[:1], partial(_no_variant, each)
        tests += _tests(rules, f"{kind} {each}", make)
    return tests


def _tests(rules: Sequence[Rule], subject: str, make: Callable[[], Any]) -> list[ConformanceTest]:
    plugin, broken = cache(make), list[str]()
    return [ConformanceTest(rule, subject, plugin, broken) for rule in rules]


def _no_variant(name: str) -> Any:
    raise SkipTest(f"it has no default variant; name one: hematokit plugins check {name}:VARIANT")


def _find(registry: PluginRegistry, name: str) -> tuple[list[PluginInfo], list[tuple[str, str]]]:
    """Return the packages of a name, and their plugins to test, as (type, name)."""
    packages = registry.of_package(name)
    if packages:
        return packages, [
            (registry.kinds[kind].kind, spec)
            for info in packages
            for kind, specs in info.provides.items()
            if kind in registry.kinds
            for spec in specs
        ]
    base = name.partition(":")[0]
    found = [(specs, base if specs.kind == "backbone" else name) for specs in registry.kinds.values()]
    found = [(specs, spec) for specs, spec in found if spec in specs]
    if not found:
        installed = ", ".join(sorted({info.package for info in registry.plugins}))
        raise PluginError(
            f"no installed package and no part of one is called {name!r}; packages: {installed} "
            "(after a change of pyproject.toml, install the package again)"
        )
    owners = {id(info): info for info in (specs.owner(spec) for specs, spec in found)}
    return list(owners.values()), [(specs.kind, name) for specs, _ in found]
