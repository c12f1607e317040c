"""For plugins written for hooks 1.x, which may import from here; new ones: ``from hematokit import AugmenterSpec``."""

from hematokit.plugins.specs import (
    DETECTION_COLUMNS,
    AnySpec,
    Augmenter,
    AugmenterSpec,
    BackboneSpec,
    Detector,
    DetectorSpec,
    Explainer,
    ExplainerSpec,
    InputSpec,
    Option,
    PathKind,
    Variant,
)

__all__ = [
    "AnySpec",
    "Augmenter",
    "AugmenterSpec",
    "BackboneSpec",
    "DETECTION_COLUMNS",
    "Detector",
    "DetectorSpec",
    "Explainer",
    "ExplainerSpec",
    "InputSpec",
    "Option",
    "PathKind",
    "Variant",
]
