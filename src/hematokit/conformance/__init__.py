"""What authors of plugins need: a template, and rules that a plugin is held against."""

from __future__ import annotations

from hematokit.conformance.checking import check_plugin
from hematokit.conformance.rules import Verdict
from hematokit.conformance.template import new_plugin

__all__ = ["Verdict", "check_plugin", "new_plugin"]
