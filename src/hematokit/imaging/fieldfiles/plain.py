"""PNG, JPEG and BMP: decoded whole, by the same rules as single crops (`hematokit.imaging.reading`)."""

from __future__ import annotations

from pathlib import Path

from hematokit.errors import ImageError
from hematokit.imaging.fieldfiles.levels import ArrayLevel, Source
from hematokit.imaging.fieldfiles.pixelsize import PixelSize, from_density, nothing
from hematokit.imaging.reading import MAX_PIXELS, decode_rgb, open_image, printable, read_bytes, read_orientation

__all__ = ["open_plain", "stated_in_plain"]


def open_plain(path: Path, max_pixels: int | None = None, *, orient: bool = True) -> Source:
    """Read a PNG, JPEG or BMP file of at most `max_pixels`, if given, and never more than `MAX_PIXELS`.

    With `orient`, the orientation that the metadata state is applied.

    Raises
    ------
    ImageError
        As `hematokit.imaging.reading.read_rgb` does.
    """
    data = read_bytes(path)
    try:
        most = min(max_pixels or MAX_PIXELS, MAX_PIXELS)
        pixels = decode_rgb(data, name=str(path), max_pixels=most, orient=orient)
    except ImageError as error:
        if error.reason != "too-large" or max_pixels is not None:
            raise
        raise ImageError(
            "too-large",
            f"{printable(str(path))} has more than {MAX_PIXELS:,} pixels, too many for a format that is decoded whole; "
            "save it as a tiled TIFF or OME-Zarr",
        ) from error
    orientation = read_orientation(data) if orient else 1
    return Source((ArrayLevel(pixels),), stated_in_plain(data), orientation=orientation)


def stated_in_plain(data: bytes) -> PixelSize:
    """Pixel size by the density that a PNG, JPEG or BMP file states; `nothing` where it cannot be read."""
    try:
        with open_image(data) as image:
            x, y = image.info["dpi"]
            return from_density(float(x), float(y), 25400.0)
    except Exception:
        # The pixels were decoded: whatever is wrong with the density must not stop that.
        return nothing
