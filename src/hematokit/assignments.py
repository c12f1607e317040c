"""``--set NAME=VALUE``: what a user types after it, read as a value."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import yaml

from hematokit.errors import PluginError

__all__ = ["plugin_options", "read_value"]


def read_value(text: str) -> Any:
    """Read a value as YAML: numbers, true and false, null, lists, else text."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    # YAML reads 1e-3 as text, because it lacks the dot; people mean the number.
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    return value


def plugin_options(assignments: Sequence[str], kind: str) -> dict[str, Any]:
    """Turn ``["detector.min_diameter_um=5"]`` into ``{"min_diameter_um": 5}``.

    Parameters
    ----------
    assignments : sequence of str
        What stood after each ``--set``.
    kind : str
        The kind of plugin that options may be given to (``"detector"``).

    Raises
    ------
    PluginError
        If one is not ``KIND.NAME=VALUE``.
    """
    options: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        head, dot, name = key.strip().replace("-", "_").partition(".")
        if not equals or head != kind or not dot or not name:
            raise PluginError(f"--set {assignment!r} is not {kind}.NAME=VALUE; 'hematokit plugins' lists the options")
        options[name] = read_value(text)
    return options
