"""What the user has set under Preferences > HematoNet."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hematokit.taxonomy import Taxonomy

__all__ = ["class_keys", "key_of", "reviewer", "setting", "store_setting"]

_PLUGIN = "hematokit"
_DEFAULTS: dict[str, dict[str, Any]] = {
    "general": {
        "reviewer": "",
        "model": "",
        "recent_models": "",
        "unsure_below": 0.5,
        "detector": "nuclei",
        "explainer": "grad-cam",
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
"""The manifest's defaults again, for napari before 0.9, which has no settings of plugins; a test compares the two."""


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
    """Change a setting of the user, and keep it for the next time; without settings of plugins in napari, nothing."""
    part = getattr(_settings(), group, None)
    if part is not None and getattr(part, name, None) != value:
        setattr(part, name, value)


def _settings() -> Any:
    try:
        from napari.settings import get_plugin_settings

        return get_plugin_settings(_PLUGIN)
    except (ImportError, KeyError, OSError, ValueError):
        # An older napari, a plugin that was just enabled, a file of settings that cannot be read: the defaults do.
        return None


def reviewer() -> str:
    """Return who stands with corrections: the name in the settings, else that of the account."""
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
    """Return the key of each class: what the user has set, and a free one for every other class.

    Parameters
    ----------
    taxonomy : Taxonomy

    Returns
    -------
    dict of str to str
        Key to class code. A class takes the first of its code's letters that is free, else a digit, else none; what
        is set wins over what is chosen. Pairs that name no class are left out.
    """
    keys: dict[str, str] = {}
    for pair in str(setting("classes", "keys")).replace(";", ",").split(","):
        key, _, code = (part.strip() for part in pair.partition("="))
        if key and code in taxonomy:
            keys[key.upper() if len(key) == 1 else key] = code
    for entry in taxonomy:
        if entry.code in keys.values():
            continue
        free = (letter for letter in f"{entry.code.upper()}1234567890" if letter.isalnum() and letter not in keys)
        key = next(free, "")
        if key:
            keys[key] = entry.code
    return keys
