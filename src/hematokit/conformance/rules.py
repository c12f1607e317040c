"""Conformance rules and their outcomes.

A rule is a function of the plugin under test. It returns a few words on what it saw. It raises `RuleBroken` where the
plugin breaks it, `RuleWarning` where the plugin works but users may have trouble, and `unittest.SkipTest` where it
cannot be tested here. Anything else that is raised breaks the rule, too. The function's name is the rule's id, and the
first paragraph of its docstring says what it asks for.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal
from unittest import SkipTest

from hematokit.errors import HematokitError, describe_error

__all__ = [
    "ConformanceTest",
    "Outcome",
    "Rule",
    "RuleBroken",
    "RuleResult",
    "RuleWarning",
    "rule_description",
    "rule_name",
]

Outcome = Literal["passed", "failed", "warned", "skipped"]
Rule = Callable[[Any], str]

_FIRST: Final = frozenset({"loads", "spec", "builds", "shape", "table"})
"""Rules without which the later ones make no sense: if one is broken, those are skipped."""


class RuleBroken(AssertionError):
    """A rule is broken; the text states how."""


class RuleWarning(UserWarning):
    """No rule is broken, but the author should know."""


@dataclass(frozen=True)
class RuleResult:
    """Outcome of one rule.

    Attributes
    ----------
    rule : str
        Its name.
    subject : str
        Subject of the test: ``"package hematokit-thimble"``, ``"backbone thimble:one"``.
    outcome : str
        ``"passed"``, ``"failed"``, ``"warned"`` (works, but users may have trouble) or ``"skipped"`` (could not be
        tested).
    detail : str
        Observation; one line.
    """

    rule: str
    subject: str
    outcome: Outcome
    detail: str

    def __str__(self) -> str:
        """Return the result as one line."""
        return f"{self.subject}: {self.outcome}: {self.rule}: {self.detail}"

    def to_dict(self) -> dict[str, str]:
        """Plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ConformanceTest:
    """A rule and the plugin that it is to test.

    Called, it is a test for pytest: it raises where the rule is broken, warns with `RuleWarning`, and raises
    `unittest.SkipTest` where it cannot be tested.

    Attributes
    ----------
    rule : callable
    subject : str
        As in `RuleResult`.
    plugin : callable
        Returns what the rule takes.
    broken : list of str
        Rules that were broken before by the same subject, of those that the later ones need.
    """

    rule: Rule
    subject: str
    plugin: Callable[[], Any]
    broken: list[str]

    def __str__(self) -> str:
        """For pytest's ids."""
        return f"{self.subject}: {rule_name(self.rule)}"

    def __call__(self) -> None:
        """Test the rule, as pytest does."""
        try:
            self._test()
        except RuleWarning as warning:
            warnings.warn(warning, stacklevel=2)

    def result(self) -> RuleResult:
        """Test the rule and return the outcome; nothing is raised."""
        outcome: Outcome = "passed"
        try:
            detail = self._test()
        except SkipTest as error:
            outcome, detail = "skipped", str(error)
        except RuleWarning as error:
            outcome, detail = "warned", str(error)
        except (RuleBroken, HematokitError) as error:
            outcome, detail = "failed", str(error)
        except Exception as error:
            outcome, detail = "failed", describe_error(error)
        return RuleResult(rule_name(self.rule), self.subject, outcome, " ".join(detail.split())[:400])

    def _test(self) -> str:
        if self.broken:
            raise SkipTest(f"not tried: {self.broken[0]} failed")
        try:
            # The output of the plugin must not be mixed into that of --json.
            with redirect_stdout(sys.stderr):
                return self.rule(self.plugin())
        except (SkipTest, RuleWarning):
            raise
        except Exception:
            if rule_name(self.rule) in _FIRST:
                self.broken.append(rule_name(self.rule))
            raise


def rule_name(rule: Rule) -> str:
    """Return a rule's id: ``"input-gradients"``."""
    return rule.__name__.strip("_").replace("_", "-")


def rule_description(rule: Rule) -> str:
    """Return what a rule asks for, in one line."""
    return " ".join((inspect.getdoc(rule) or "").split("\n\n")[0].split())
