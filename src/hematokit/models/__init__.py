"""Classifiers (preparation, normalisation, backbone, calibration) and the bundles they are kept in.

The names are imported when first used: a model that another runtime computes opens without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hematokit.models.bundle import BundleConfig, find_bundle, find_model, save_bundle
    from hematokit.models.caching import cached_model
    from hematokit.models.classifier import Classifier
    from hematokit.models.construction import BackboneChoice, build_backbone, choose_backbone
    from hematokit.models.devices import resolve_device
    from hematokit.models.exporting import export_onnx
    from hematokit.models.loading import Runtime, load_model
    from hematokit.models.onnx_classifier import OnnxClassifier

_HOMES = {
    "bundle": ("BundleConfig", "find_bundle", "find_model", "save_bundle"),
    "caching": ("cached_model",),
    "classifier": ("Classifier",),
    "construction": ("BackboneChoice", "build_backbone", "choose_backbone"),
    "devices": ("resolve_device",),
    "exporting": ("export_onnx",),
    "loading": ("Runtime", "load_model"),
    "onnx_classifier": ("OnnxClassifier",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "BackboneChoice",
    "BundleConfig",
    "Classifier",
    "OnnxClassifier",
    "Runtime",
    "build_backbone",
    "cached_model",
    "choose_backbone",
    "export_onnx",
    "find_bundle",
    "find_model",
    "load_model",
    "resolve_device",
    "save_bundle",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
