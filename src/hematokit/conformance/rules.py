"""Rules that a plugin is held against, and what comes of them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hematokit.errors import HematokitError, describe_error

__all__ = ["Broken", "Caution", "NotTried", "Outcome", "Rule", "Verdict", "judge", "judge_all", "rule"]

Outcome = Literal["passed", "failed", "warned", "skipped"]


class Broken(Exception):
    """A rule is broken; the text says how."""


class Caution(Exception):
    """Nothing is broken, but the author should know."""


class NotTried(Exception):
    """A rule could not be tried here; the text says why."""


@dataclass(frozen=True)
class Verdict:
    """What came of one rule.

    Attributes
    ----------
    rule : str
        Its name.
    subject : str
        What was held against it: a package, or ``"backbone thimble:one"``.
    outcome : str
        ``"passed"``, ``"failed"``, ``"warned"`` (works, but somebody will stumble), ``"skipped"`` (could not be
        tried).
    detail : str
        What was found; one line.
    """

    rule: str
    subject: str
    outcome: Outcome
    detail: str

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.subject}: {self.outcome}: {self.rule}: {self.detail}"

    def to_dict(self) -> dict[str, str]:
        """Plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Rule:
    """A rule: its name, what it asks for, and the function that tries it.

    The function gets what is to be tried and returns a few words on what it found; it raises `Broken`, `Caution` or
    `NotTried` otherwise. Anything else that is raised in it breaks the rule, too.
    """

    name: str
    asks: str
    check: Callable[[Any], str]
    first: bool = False
    """Whether those after it need it: if it is broken, they are not tried."""


def rule(
    rules: list[Rule], name: str, *, first: bool = False
) -> Callable[[Callable[[Any], str]], Callable[[Any], str]]:
    """Add the decorated function to a list of rules; its docstring's first paragraph says what the rule asks for."""

    def add(check: Callable[[Any], str]) -> Callable[[Any], str]:
        text = inspect.getdoc(check) or ""
        rules.append(Rule(name, " ".join(text.split("\n\n")[0].split()), check, first))
        return check

    return add


def judge(rule: Rule, subject: str, made: Any) -> Verdict:
    """Try one rule.

    What the plugin prints meanwhile goes to standard error, so that ``--json`` stays readable.
    """
    outcome: Outcome = "passed"
    try:
        with redirect_stdout(sys.stderr):
            detail = rule.check(made)
    except NotTried as said:
        outcome, detail = "skipped", str(said)
    except Caution as said:
        outcome, detail = "warned", str(said)
    except (Broken, HematokitError) as said:
        outcome, detail = "failed", str(said)
    except Exception as error:
        outcome, detail = "failed", describe_error(error)
    return Verdict(rule.name, subject, outcome, " ".join(detail.split())[:400])


def judge_all(rules: Sequence[Rule], subject: str, made: Any) -> list[Verdict]:
    """Try rules in order; where one that the others need is broken, they are skipped."""
    verdicts: list[Verdict] = []
    reason = ""
    for each in rules:
        if reason:
            verdicts.append(Verdict(each.name, subject, "skipped", reason))
            continue
        verdicts.append(judge(each, subject, made))
        if each.first and verdicts[-1].outcome == "failed":
            reason = f"not tried: {each.name} failed"
    return verdicts
