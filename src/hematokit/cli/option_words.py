"""Options of plugins in words: for ``--help`` of the verbs that take them, and for ``hematokit plugins show``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hematokit.plugins import load_plugins

if TYPE_CHECKING:
    from hematokit.plugins.specs import Option

__all__ = ["describe_option", "options_help"]

_TYPES = {int: "whole number", float: "number", bool: "true or false", str: "text"}
_PATHS = {
    "file": "a file that exists",
    "folder": "a folder that exists",
    "existing": "a file or folder that exists",
    "any": "a path",
}


def describe_option(option: Option) -> str:
    """Type, limits and default of an option: ``number, 0 to 0.5, default 0.1``."""
    if option.choices:
        parts = [f"one of {' | '.join(map(str, option.choices))}"]
    elif option.path is not None:
        parts = [_PATHS[option.path]]
    else:
        parts = [_TYPES.get(option.type, option.type.__name__)]
    low, high = option.minimum, option.maximum
    if low is not None and high is not None:
        parts.append(f"{low:g} to {high:g}")
    elif low is not None:
        parts.append(f"{low:g} or more")
    elif high is not None:
        parts.append(f"up to {high:g}")
    if option.default is not None:
        default = str(option.default).lower() if option.type is bool else str(option.default)
        parts.append(f"default {default or 'empty'}")
    return ", ".join(parts)


def options_help(*kinds: str) -> str:
    """Lines for the end of a verb's help: every option of the plugins of some kinds, with what ``--set`` calls it.

    Parameters
    ----------
    *kinds : str
        ``"backbone"``, ``"augmenter"``, ``"explainer"``, ``"detector"``. Options of explainers are called by the
        explainer's name, those of the others by the kind.
    """
    registry = load_plugins()
    # Options that several plugins share (timm's families do) are said once.
    shared: dict[tuple[str, str], list[str]] = {}
    for kind in kinds:
        for spec in registry.kinds[f"{kind}s"]:
            for name, option in spec.options.items():
                head = spec.name if kind == "explainer" else kind
                line = f"{option.description}; {describe_option(option)}"
                shared.setdefault((f"{head}.{name}", line), []).append(spec.name)
    if not shared:
        return ""
    lines = ["\b", "Options of plugins, for --set:"]
    for (key, line), owners in shared.items():
        of = "" if key.split(".")[0] in owners else f" ({', '.join(owners)})"
        lines.append(f"  {key}{of}: {line}")
    return "\n".join(lines)
