"""hematokit: a plugin-based toolkit for bone-marrow and blood cytology. Research use only.

The names here are the public Python interface; they are imported when first used, so that ``import hematokit`` is
quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hematokit.errors import HematokitError
    from hematokit.hookspecs import hookimpl
    from hematokit.models import Classifier, load_model
    from hematokit.registry import load_plugins
    from hematokit.reporting import compare, evaluate
    from hematokit.specs import (
        AugmenterSpec,
        BackboneSpec,
        DetectorSpec,
        ExplainerSpec,
        InputSpec,
        Option,
        Variant,
    )
    from hematokit.store import PatchStore, create_store, import_crops, open_store, split_store, verify_store
    from hematokit.taxonomy import MATEK_21, CellClass, Taxonomy, load_taxonomy
    from hematokit.training import TrainConfig, TrainResult, train

_HOMES = {
    "hematokit.errors": ("HematokitError",),
    "hematokit.hookspecs": ("hookimpl",),
    "hematokit.models": ("Classifier", "load_model"),
    "hematokit.registry": ("load_plugins",),
    "hematokit.reporting": ("compare", "evaluate"),
    "hematokit.specs": (
        "AugmenterSpec",
        "BackboneSpec",
        "DetectorSpec",
        "ExplainerSpec",
        "InputSpec",
        "Option",
        "Variant",
    ),
    "hematokit.store": ("PatchStore", "create_store", "import_crops", "open_store", "split_store", "verify_store"),
    "hematokit.taxonomy": ("MATEK_21", "CellClass", "Taxonomy", "load_taxonomy"),
    "hematokit.training": ("TrainConfig", "TrainResult", "train"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "MATEK_21",
    "AugmenterSpec",
    "BackboneSpec",
    "CellClass",
    "Classifier",
    "DetectorSpec",
    "ExplainerSpec",
    "HematokitError",
    "InputSpec",
    "Option",
    "PatchStore",
    "Taxonomy",
    "TrainConfig",
    "TrainResult",
    "Variant",
    "__version__",
    "compare",
    "create_store",
    "evaluate",
    "hookimpl",
    "import_crops",
    "load_model",
    "load_plugins",
    "load_taxonomy",
    "open_store",
    "split_store",
    "train",
    "verify_store",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'hematokit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
