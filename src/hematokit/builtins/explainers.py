"""Built-in explainers. The hook is in place; the explainers themselves come with the explanation room."""

from __future__ import annotations

from collections.abc import Callable

from hematokit.hookspecs import hookimpl
from hematokit.specs import ExplainerSpec

__all__ = ["register_explainers"]


@hookimpl
def register_explainers(register: Callable[[ExplainerSpec], None]) -> None:
    """Register the built-in explainers (none yet)."""
