"""Built-in detectors. The hook is in place; the detector itself comes with the fields room."""

from __future__ import annotations

from collections.abc import Callable

from hematokit.hookspecs import hookimpl
from hematokit.specs import DetectorSpec

__all__ = ["register_detectors"]


@hookimpl
def register_detectors(register: Callable[[DetectorSpec], None]) -> None:
    """Register the built-in detectors (none yet)."""
