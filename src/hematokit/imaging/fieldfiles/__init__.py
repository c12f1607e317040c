"""Reading whole fields: TIFF, OME-TIFF, OME-Zarr, PNG, JPEG, BMP and vendors' formats, by windows.

`open_field` opens one field, `list_fields` finds the fields in folders. A `Field` gives 8-bit RGB pixels box by box,
its pixel size, and remarks on what was done to show it. One module per format turns a file into levels of pixels
(``tiff``, ``omezarr``, ``plain``, ``vendor``); what holds for all of them is in ``field``, ``depth`` and ``pixelsize``.

Nothing here is imported before it is needed: the libraries that read a format are loaded when a file of that format
is opened.
"""

from __future__ import annotations

from hematokit.imaging.fieldfiles.field import Field
from hematokit.imaging.fieldfiles.opening import (
    field_name,
    file_orientation,
    list_fields,
    open_field,
    stated_pixel_size,
)

__all__ = ["Field", "field_name", "file_orientation", "list_fields", "open_field", "stated_pixel_size"]
