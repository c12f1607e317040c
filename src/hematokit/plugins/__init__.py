"""The plugin manager and the registries of backbones, augmenters, explainers and detectors.

Modules
-------
specs
    What a plugin registers.
hookspecs
    The hooks that a plugin implements.
registry
    Specs by name; a plugin with its options.
commands
    Commands that plugins add.
loading
    `load_plugins`: built-in and third-party plugins.
template
    The template of a plugin, for ``hematokit plugins new``.
"""

from __future__ import annotations

from hematokit.plugins.loading import (
    BLOCK_VARIABLE,
    HOOKS_ATTRIBUTE,
    ONLY_VARIABLE,
    PluginRegistry,
    load_plugins,
    registered,
)
from hematokit.plugins.registry import (
    MadeAugmenter,
    MadeDetector,
    MadeExplainer,
    MadePlugin,
    PluginChoice,
    PluginInfo,
    Registry,
    is_other_version,
)

__all__ = [
    "BLOCK_VARIABLE",
    "HOOKS_ATTRIBUTE",
    "ONLY_VARIABLE",
    "MadeAugmenter",
    "MadeDetector",
    "MadeExplainer",
    "MadePlugin",
    "PluginChoice",
    "PluginInfo",
    "PluginRegistry",
    "Registry",
    "is_other_version",
    "load_plugins",
    "registered",
]
