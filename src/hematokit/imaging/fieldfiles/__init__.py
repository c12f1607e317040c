"""Fields of any format, read window by window: TIFF, OME-TIFF, OME-Zarr, PNG, JPEG, BMP and vendors' formats.

Modules
-------
field
    `Field`: 8-bit RGB pixels by boxes, the pixel size, and notes on how the file was read; levels of pixels.
opening
    `open_field`, for every format; pixel size and orientation from metadata.
listing
    Fields in files and folders; their names and ids.
tiff, segments
    Pages and metadata of TIFF and OME-TIFF; their pixels, decoded tile by tile.
omezarr
    OME-Zarr images.
pixelsize
    Pixel sizes from metadata and from the user.

Libraries that read a format are imported when a file of that format is opened.
"""

from __future__ import annotations

from hematokit.imaging.fieldfiles.field import Field
from hematokit.imaging.fieldfiles.listing import field_name, list_fields
from hematokit.imaging.fieldfiles.opening import file_orientation, open_field, stated_pixel_size

__all__ = ["Field", "field_name", "file_orientation", "list_fields", "open_field", "stated_pixel_size"]
