"""Holding an installed plugin against the rules of its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hematokit.conformance.rules import Rule, Verdict, judge_all
from hematokit.conformance.specs import PACKAGE_RULES
from hematokit.errors import HematokitError, PluginError
from hematokit.plugins import PluginInfo, PluginRegistry, load_plugins
from hematokit.progress import Progress, no_progress

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["check_plugin", "rules_of"]

KINDS = ("backbone", "augmenter", "explainer", "detector")
Options = Mapping[str, Mapping[str, object]]


def rules_of(kind: str) -> tuple[Sequence[Rule], Callable[[str, Mapping[str, object]], Any]]:
    """Return the rules of a kind of plugin, and what makes a subject of a name and options.

    Imported here, kind by kind: the rules need torch.
    """
    if kind == "backbone":
        from hematokit.conformance import backbones as found

        return found.RULES, found.BackboneSubject
    if kind == "augmenter":
        from hematokit.conformance import augmenters as augmenter_rules

        return augmenter_rules.RULES, augmenter_rules.AugmenterSubject
    if kind == "explainer":
        from hematokit.conformance import explainers as explainer_rules

        return explainer_rules.RULES, explainer_rules.ExplainerSubject
    from hematokit.conformance import detectors as detector_rules

    return detector_rules.RULES, detector_rules.DetectorSubject


def check_plugin(name: str, options: Options | None = None, *, progress: Progress = no_progress) -> list[Verdict]:
    """Hold a plugin against the rules of its kind.

    Parameters
    ----------
    name : str
        A package, with everything that it registers; or the name of one backbone, augmenter, explainer or detector
        (``"thimble"``, ``"thimble:two"`` for a variant other than the default one).
    options : mapping of str to mapping, optional
        Options by kind: ``{"detector": {"weights": "file.pt"}}``.
    progress : Progress
        Told after each part of the plugin.

    Returns
    -------
    list of Verdict
        One per rule. ``outcome`` is ``"failed"`` where the plugin breaks the rule; ``"warned"`` where it works but
        users may stumble; ``"skipped"`` where the rule could not be tried here.

    Raises
    ------
    PluginError
        If nothing installed has that name, or an option is given that nothing takes.

    Examples
    --------
    >>> failed = [verdict for verdict in check_plugin("flips") if verdict.outcome == "failed"]
    >>> failed
    []
    """
    registry = load_plugins()
    given = {kind: dict(values) for kind, values in (options or {}).items()}
    for kind in given:
        if kind not in KINDS:
            raise PluginError(f"--set {kind}.NAME: {kind!r} is no kind of plugin; there are: {', '.join(KINDS)}")
    packages, subjects = _find(registry, name)
    _check_options(registry, subjects, given)
    verdicts: list[Verdict] = []
    total = len(packages) + len(subjects)
    for info in packages:
        verdicts += judge_all(PACKAGE_RULES, f"package {info.package}", info)
        progress(len(packages), total, info.package)
    for number, (kind, subject) in enumerate(subjects, start=len(packages) + 1):
        verdicts += _check_subject(registry, kind, subject, given.get(kind, {}))
        progress(number, total, subject)
    return verdicts


def _find(registry: PluginRegistry, name: str) -> tuple[list[PluginInfo], list[tuple[str, str]]]:
    """The plugins that a name stands for, and what of them is to be tried, as (kind, name)."""
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
    found = [specs for specs in registry.kinds.values() if (base if specs.kind == "backbone" else name) in specs]
    if not found:
        strangers = sorted({info.package for info in registry.plugins})
        raise PluginError(
            f"no installed package and no part of one is called {name!r}; packages: {', '.join(strangers)} "
            "(after a change of pyproject.toml, install the package again)"
        )
    owners = [specs.owner(base if specs.kind == "backbone" else name) for specs in found]
    return list({id(info): info for info in owners}.values()), [(specs.kind, name) for specs in found]


def _check_options(registry: PluginRegistry, subjects: list[tuple[str, str]], given: Options) -> None:
    for kind, values in given.items():
        specs = [registry.kinds[f"{kind}s"].get(name.partition(":")[0]) for known, name in subjects if known == kind]
        for option in values:
            if not any(option in spec.options for spec in specs):
                names = ", ".join(spec.name for spec in specs) or "nothing here"
                raise PluginError(f"--set {kind}.{option}: no {kind} under trial has it ({names})")


def _check_subject(registry: PluginRegistry, kind: str, name: str, given: Mapping[str, object]) -> list[Verdict]:
    import torch

    rules, make = rules_of(kind)
    spec = registry.kinds[f"{kind}s"].get(name.partition(":")[0])
    values = {key: value for key, value in given.items() if key in spec.options}
    said = f"{kind} {name}"
    if kind == "backbone" and not spec.default_variant and ":" not in name:
        reason = f"it has no default variant; name one: hematokit plugins check {name}:VARIANT"
        return [Verdict("spec", said, "skipped", reason)]
    try:
        subject = make(name, values)
    except HematokitError as error:
        return [Verdict("spec", said, "failed", " ".join(str(error).split()))]
    with torch.random.fork_rng():
        return judge_all(rules, said, subject)
