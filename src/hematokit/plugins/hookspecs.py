"""The extension points. A plugin implements any of these with ``@hematokit.hookimpl``.

They have a version of their own, ``HOOKS``. Its second number rises when something is added: a hook, a field of a spec
with a default, an argument that may be left out. Its first rises when a plugin that worked might no longer. A plugin
says what it needs at least with ``HEMATOKIT_HOOKS = "1.2"`` beside its hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pluggy

from hematokit.plugins.specs import AugmenterSpec, BackboneSpec, DetectorSpec, ExplainerSpec

if TYPE_CHECKING:
    import typer

__all__ = ["HOOKS", "PROJECT", "hookimpl", "hookspec"]

HOOKS = "1.2"
"""Version of everything on this page and of the specs that the hooks take.

1.1: `Option.choices` and `Option.path`. 1.2: `DetectorSpec.version` and `ExplainerSpec.version`.
"""

PROJECT = "hematokit"
"""pluggy's project name, and the entry-point group that plugins are found by."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_backbones(register: Callable[[BackboneSpec], None]) -> None:
    """Call ``register(spec)`` once for every backbone that the plugin provides."""


@hookspec
def register_augmenters(register: Callable[[AugmenterSpec], None]) -> None:
    """Call ``register(spec)`` once for every augmenter that the plugin provides."""


@hookspec
def register_explainers(register: Callable[[ExplainerSpec], None]) -> None:
    """Call ``register(spec)`` once for every explainer that the plugin provides."""


@hookspec
def register_detectors(register: Callable[[DetectorSpec], None]) -> None:
    """Call ``register(spec)`` once for every detector that the plugin provides."""


@hookspec
def register_commands(app: typer.Typer) -> None:
    """Add commands to the command line: ``@app.command("my-command")``."""
