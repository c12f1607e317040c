"""For plugins written for hooks 1.x, which may import from here; new ones: ``from hematokit import AugmenterSpec``."""

from hematokit.plugins.specs import (
    Augmenter,
    AugmenterSpec,
    BackboneSpec,
    Detector,
    DetectorSpec,
    Explainer,
    ExplainerSpec,
    InputSpec,
    Option,
    Variant,
)

__all__ = [
    "Augmenter",
    "AugmenterSpec",
    "BackboneSpec",
    "Detector",
    "DetectorSpec",
    "Explainer",
    "ExplainerSpec",
    "InputSpec",
    "Option",
    "Variant",
]
