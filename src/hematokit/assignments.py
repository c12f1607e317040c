"""``--set NAME=VALUE``: what a user types after it, as text and as a value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from hematokit.errors import PluginError

__all__ = ["plugin_options", "read_value", "typed_text"]

_WORDS: Final[dict[str, Any]] = {
    **dict.fromkeys(("", "~", "null"), None),
    **dict.fromkeys(("true", "yes", "on"), True),
    **dict.fromkeys(("false", "no", "off"), False),
    **dict.fromkeys((".inf", "+.inf"), math.inf),
    "-.inf": -math.inf,
    ".nan": math.nan,
}


def read_value(text: str) -> Any:
    """Read what a number, true or false, or nothing was written as; anything else stays text.

    Only for options whose declared type is not text. Numbers are decimal, with or without leading zeros, or hexadecimal
    (``0x1F``).
    """
    word = text.strip()
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    for read in (int, lambda digits: int(digits, 0), float):
        with suppress(ValueError):
            return read(word)
    return text


def typed_text(text: str) -> str:
    """Return text as it was typed, without quotes around all of it."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        from hematokit.yaml_text import Scalar, parse_yaml

        with suppress(PluginError):
            value = parse_yaml(text, "", PluginError)
            if isinstance(value, str) and not isinstance(value, Scalar):
                return value
    return text


def plugin_options(assignments: Sequence[str], kind: str) -> dict[str, Any]:
    """Turn ``["detector.min_diameter_um=5"]`` into ``{"min_diameter_um": "5"}``; the option's type decides later.

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
        options[name] = typed_text(text)
    return options
