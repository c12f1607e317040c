"""Pictures inside an HTML file: patches and figures as data URLs, so that the report needs no other file."""

from __future__ import annotations

import base64
import io
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["data_url", "thumbnail"]

THUMBNAIL_SIDE: Final = 144


def data_url(content: bytes, kind: str) -> str:
    """Return bytes as a data URL.

    Parameters
    ----------
    content : bytes
    kind : str
        MIME type. An SVG document shown through ``<img>`` can run no script, whatever it holds.
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def thumbnail(patch: npt.NDArray[np.uint8], side: int = THUMBNAIL_SIDE) -> str:
    """Return a patch (P, P, 3) uint8, reduced to `side` pixels where larger, as the data URL of a JPEG image."""
    image = Image.fromarray(patch)
    if max(image.size) > side:
        image = image.resize((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return data_url(buffer.getvalue(), "image/jpeg")
