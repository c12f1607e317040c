"""Conformance tests of plugins: what the rest of hematokit expects of a package, and of each type of plugin.

Modules
-------
rules
    Rules and their outcomes.
packages, backbones, augmenters, explainers, detectors
    The rules for packages, and for each type of plugin.
checking
    `conformance_tests` and `check_plugin`.
"""

from __future__ import annotations

from hematokit.conformance.checking import check_plugin, conformance_tests
from hematokit.conformance.rules import ConformanceTest, RuleBroken, RuleResult, RuleWarning

__all__ = ["ConformanceTest", "RuleBroken", "RuleResult", "RuleWarning", "check_plugin", "conformance_tests"]
