"""A trained model behind HTTP: crops to classes, fields to cells and their differential, and a page to try it on.

`build_app` makes the application of one loaded model, `serve` runs it. Which model it is, is decided when the server
starts; no request can load another. Needs the extra ``hematokit[serve]``, imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hematokit.serving.settings import ServeSettings, is_loopback

if TYPE_CHECKING:
    from hematokit.serving.app import build_app
    from hematokit.serving.running import serve

_HOMES = {"build_app": "app", "serve": "running"}

__all__ = ["ServeSettings", "build_app", "is_loopback", "serve"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
