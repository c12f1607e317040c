"""What a server says of itself: the model, what it takes, its limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from hematokit._version import __version__
from hematokit.differential.counts import counting_groups
from hematokit.models.field_cells import model_pixel_size
from hematokit.reports.text import RESEARCH_USE
from hematokit.serving.settings import ServeSettings

if TYPE_CHECKING:
    from hematokit.models import Classifier

__all__ = ["BATCH_BODY", "IMAGE_BODY", "describe_model"]

_IMAGES: Final = ("image/png", "image/jpeg", "image/tiff", "image/bmp")
_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}


def _body(form: dict[str, Any]) -> dict[str, Any]:
    content = dict.fromkeys(_IMAGES, _BINARY)
    schema = {"schema": {"type": "object", "properties": {"image": form}}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": schema, **content}}}


IMAGE_BODY: Final = _body({"type": "string", "format": "binary"})
BATCH_BODY: Final = _body({"type": "array", "items": {"type": "string", "format": "binary"}})


def describe_model(model: Classifier, settings: ServeSettings) -> dict[str, Any]:
    """Return what ``/v1/model`` answers; no path of this machine is in it.

    Parameters
    ----------
    model : Classifier
    settings : ServeSettings

    Returns
    -------
    dict
        Plain data.
    """
    config = model.config
    counted = set(counting_groups(model.taxonomy).counted)
    return {
        "name": f"{config.backbone.name}:{config.backbone.variant}, {config.created[:10]}",
        "backbone": f"{config.backbone.name}:{config.backbone.variant}",
        "created": config.created,
        "sha256": model.identity,
        "taxonomy": model.taxonomy.name,
        "classes": [
            {
                "code": entry.code,
                "name": entry.name,
                "lineage": entry.lineage,
                "colour": entry.colour,
                "counted": entry.code in counted,
            }
            for entry in model.taxonomy
        ],
        "patch_size": model.patch_size,
        "pixel_size_um": model_pixel_size(model, settings.model_pixel_size_um),
        "runtime": getattr(model, "runtime", "torch"),
        "device": str(model.device),
        "detector": settings.detector,
        "limits": {
            "crops": settings.most_crops,
            "crop_bytes": settings.crop_bytes,
            "field_bytes": settings.field_bytes,
            "field_pixels": settings.field_pixels,
            "field_cells": settings.field_cells,
        },
        "hematokit": __version__,
        "research_use_only": RESEARCH_USE,
    }
