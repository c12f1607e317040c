"""The plugin manager and the registries of backbones, augmenters, explainers and detectors.

Built-ins and strangers go through the same hooks. Whatever a stranger's package does wrong (fails to import, raises
while it registers, takes a name that exists) is kept as a reason that ``hematokit plugins`` shows; everything else
goes on working.
"""

from __future__ import annotations

from hematokit.plugins.loading import BLOCK_VARIABLE, ONLY_VARIABLE, PluginRegistry, load_plugins
from hematokit.plugins.registry import PluginInfo, Registry, is_other_version

__all__ = [
    "BLOCK_VARIABLE",
    "ONLY_VARIABLE",
    "PluginInfo",
    "PluginRegistry",
    "Registry",
    "is_other_version",
    "load_plugins",
]
