"""What authors of plugins need: a template, and rules that a plugin is held against."""

from __future__ import annotations

from hematokit.plugin_kit.checking import check_plugin
from hematokit.plugin_kit.template import new_plugin
from hematokit.plugin_kit.verdicts import Verdict

__all__ = ["Verdict", "check_plugin", "new_plugin"]
