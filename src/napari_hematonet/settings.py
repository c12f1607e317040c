"""Settings of the user, under Preferences > Plugins > HematoNet."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING, Any, Final

from hematokit.pipelines.settings import ClassifySettings, ExplainFieldSettings

if TYPE_CHECKING:
    from hematokit.taxonomy import Taxonomy

__all__ = ["class_keys", "key_of", "reviewer", "setting", "store_setting"]

_PLUGIN = "hematokit"
_DEFAULTS: dict[str, dict[str, Any]] = {
    "general": {
        "reviewer": "",
        "model": "",
        "recent_models": "",
        "min_probability": ClassifySettings().min_probability,
        "detector": ClassifySettings().detector,
        "explainer": ExplainFieldSettings().methods[0],
        "show_text": False,
    },
    "keys": {
        "classes": "",
        "delete_cell": "Delete",
        "confirm_cell": "Return",
        "next_cell": "Right",
        "previous_cell": "Left",
    },
}
"""Defaults for napari before 0.9, which has no settings of plugins; a test compares them with the manifest."""

_FREE: Final = "BCDEFGHIJKLMNOQRTUWXY"
"""Letters that napari does not use on points; it uses A, P, S, V, Z and the digits, of which 1 deletes."""

_LETTERS: Final = {
    **{"BLA": "B", "PMO": "R", "MYB": "Y", "MMZ": "T", "NGB": "N", "NGS": "G", "EOS": "E", "ABE": "J", "BAS": "U"},
    **{"MON": "M", "LYT": "L", "LYI": "I", "HAC": "H", "PLM": "C", "PEB": "Q", "EBO": "O"},
    **{"FGC": "F", "KSC": "K", "OTH": "X", "ART": "D", "NIF": "W"},
}
"""Letters that are easy to remember for the common classes: monocyte M, lymphocyte L, segmented neutrophil G."""


def setting(name: str, group: str = "general") -> Any:
    """Return a setting of the user.

    Parameters
    ----------
    name, group : str
        As in the manifest's ``configurations``.
    """
    settings = _settings()
    value = getattr(getattr(settings, group, None), name, None)
    return _DEFAULTS[group][name] if value is None else value


def store_setting(name: str, value: Any, group: str = "general") -> None:
    """Change and save a setting of the user; does nothing where napari has no settings of plugins."""
    part = getattr(_settings(), group, None)
    if part is not None and getattr(part, name, None) != value:
        setattr(part, name, value)


def _settings() -> Any:
    try:
        from napari.settings import get_plugin_settings

        return get_plugin_settings(_PLUGIN)
    except (ImportError, KeyError, OSError, ValueError):
        # An older napari, a plugin that was just enabled, or an unreadable settings file: use the defaults.
        return None


def reviewer() -> str:
    """Return the name recorded with corrections: that in the settings, else that of the account."""
    name = str(setting("reviewer")).strip()
    if name:
        return name
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return ""  # an account without a name, as in containers


def key_of(name: str) -> str:
    """Return the key of an action: ``"delete_cell"``, ``"confirm_cell"``, ``"next_cell"`` or ``"previous_cell"``."""
    return str(setting(name, "keys")).strip() or str(_DEFAULTS["keys"][name])


def class_keys(taxonomy: Taxonomy) -> dict[str, str]:
    """Return the key of each class: the one set by the user, or a free one.

    Parameters
    ----------
    taxonomy : Taxonomy

    Returns
    -------
    dict of str to str
        Class codes by key. Keys set by the user come first. Any other class has the letter that is fixed for its code,
        else the first free letter of its code, else any free letter, else no key. Letters that napari uses on points
        (modes, "select all", "hide") are given only where the user sets them. Pairs without a known class are ignored.
    """
    keys: dict[str, str] = {}
    for pair in str(setting("classes", "keys")).replace(";", ",").split(","):
        key, _, code = (part.strip() for part in pair.partition("="))
        if key and code in taxonomy:
            keys[key.upper() if len(key) == 1 else key] = code
    rest = [entry.code for entry in taxonomy if entry.code not in keys.values()]
    for code in rest:
        if _LETTERS.get(code, "") not in ("", *keys):
            keys[_LETTERS[code]] = code
    for code in rest:
        if code not in keys.values():
            free = (letter for letter in code.upper() + _FREE if letter in _FREE and letter not in keys)
            key = next(free, "")
            if key:
                keys[key] = code
    return keys
