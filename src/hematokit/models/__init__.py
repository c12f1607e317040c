"""Classifiers (preparation, normalisation, backbone, calibration) and the bundles they are kept in."""

from __future__ import annotations

from hematokit.models.bundle import BundleConfig, find_bundle, load_model, save_bundle
from hematokit.models.classifier import Classifier
from hematokit.models.construction import BackboneChoice, build_backbone, choose_backbone
from hematokit.models.devices import resolve_device

__all__ = [
    "BackboneChoice",
    "BundleConfig",
    "Classifier",
    "build_backbone",
    "choose_backbone",
    "find_bundle",
    "load_model",
    "resolve_device",
    "save_bundle",
]
