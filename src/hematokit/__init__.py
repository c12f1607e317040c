"""hematokit: a plugin-based toolkit for bone-marrow and blood cytology. Research use only.

The names here are the public Python interface; they are imported when first used, so that ``import hematokit`` is
quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hematokit._version import __version__

if TYPE_CHECKING:
    from hematokit.errors import HematokitError, PluginError
    from hematokit.explanation.running import explain_cells
    from hematokit.fields.corrected import store_corrected
    from hematokit.fields.differential import Differential, count_differential
    from hematokit.fields.one_cell import classify_one
    from hematokit.fields.review import Review
    from hematokit.fields.store_smears import set_smears
    from hematokit.fields.tiling import tile_fields
    from hematokit.hookspecs import hookimpl
    from hematokit.imaging.fieldfiles import Field, open_field
    from hematokit.models import Classifier, load_model
    from hematokit.registry import load_plugins
    from hematokit.reporting import (
        FieldsResult,
        check_faithfulness,
        check_sanity,
        classify,
        compare,
        detect,
        evaluate,
        explain,
        explain_field,
        export,
    )
    from hematokit.specs import (
        AugmenterSpec,
        BackboneSpec,
        DetectorSpec,
        ExplainerSpec,
        InputSpec,
        Option,
        Variant,
    )
    from hematokit.store import (
        PatchStore,
        create_store,
        import_crops,
        open_store,
        set_pixel_size,
        split_store,
        verify_store,
    )
    from hematokit.taxonomy import MATEK_21, CellClass, Taxonomy, load_taxonomy
    from hematokit.training import TrainConfig, TrainResult, train

_HOMES = {
    "hematokit.errors": ("HematokitError", "PluginError"),
    "hematokit.explanation.running": ("explain_cells",),
    "hematokit.fields.corrected": ("store_corrected",),
    "hematokit.fields.differential": ("Differential", "count_differential"),
    "hematokit.fields.one_cell": ("classify_one",),
    "hematokit.fields.review": ("Review",),
    "hematokit.fields.store_smears": ("set_smears",),
    "hematokit.fields.tiling": ("tile_fields",),
    "hematokit.hookspecs": ("hookimpl",),
    "hematokit.imaging.fieldfiles": ("Field", "open_field"),
    "hematokit.models": ("Classifier", "load_model"),
    "hematokit.registry": ("load_plugins",),
    "hematokit.reporting": (
        "FieldsResult",
        "check_faithfulness",
        "check_sanity",
        "classify",
        "compare",
        "detect",
        "evaluate",
        "explain",
        "explain_field",
        "export",
    ),
    "hematokit.specs": (
        "AugmenterSpec",
        "BackboneSpec",
        "DetectorSpec",
        "ExplainerSpec",
        "InputSpec",
        "Option",
        "Variant",
    ),
    "hematokit.store": (
        "PatchStore",
        "create_store",
        "import_crops",
        "open_store",
        "set_pixel_size",
        "split_store",
        "verify_store",
    ),
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
    "Differential",
    "ExplainerSpec",
    "Field",
    "FieldsResult",
    "HematokitError",
    "InputSpec",
    "Option",
    "PatchStore",
    "PluginError",
    "Review",
    "Taxonomy",
    "TrainConfig",
    "TrainResult",
    "Variant",
    "__version__",
    "check_faithfulness",
    "check_sanity",
    "classify",
    "classify_one",
    "compare",
    "count_differential",
    "create_store",
    "detect",
    "evaluate",
    "explain",
    "explain_cells",
    "explain_field",
    "export",
    "hookimpl",
    "import_crops",
    "load_model",
    "load_plugins",
    "load_taxonomy",
    "open_field",
    "open_store",
    "set_pixel_size",
    "set_smears",
    "split_store",
    "store_corrected",
    "tile_fields",
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
