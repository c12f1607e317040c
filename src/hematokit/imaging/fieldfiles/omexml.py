"""What OME-XML, the metadata of an OME-TIFF, say about its image.

Read by hand rather than with a model of the whole standard: many programs write OME-XML that no strict parser takes,
and a field needs ten attributes of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hematokit.imaging.fieldfiles.pixelsize import PixelSize, from_lengths, nothing

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

__all__ = ["OmeImage", "read_omexml"]


@dataclass(frozen=True)
class OmeImage:
    """The image of an OME-TIFF.

    Attributes
    ----------
    images : int
        Images in the file, of which this is the first.
    channels, planes : int
        Channels (samples of one channel counted each), and z planes times time points.
    significant_bits : int or None
        Bits in use.
    fluorescent : bool
        A channel states a fluorophore or an emission wavelength.
    files : int
        Different files over which the planes are spread; 0 or 1 for a file by itself.
    pixel_size : PixelSize
    """

    images: int = 1
    channels: int | None = None
    planes: int = 1
    significant_bits: int | None = None
    fluorescent: bool = False
    files: int = 0
    pixel_size: PixelSize = nothing


def read_omexml(text: str) -> OmeImage | None:
    """Read OME-XML.

    Parameters
    ----------
    text : str
        Description of a TIFF's first page.

    Returns
    -------
    OmeImage or None
        None if the text is no OME-XML, or damaged.
    """
    if "<OME" not in text[:4096] and ":OME" not in text[:4096]:
        return None
    from defusedxml import ElementTree

    try:
        # Some writers end the text with a zero byte. Encoded, because XML in a str must not declare an encoding.
        root = ElementTree.fromstring(text.strip("\0 \r\n\t").encode(), forbid_dtd=True)
        images = list(_find(root, "Image"))
        pixels = next(_find(images[0], "Pixels"))
        return _describe(len(images), pixels)
    except (ValueError, SyntaxError, LookupError, StopIteration, RecursionError):
        return None


def _find(element: Element, name: str) -> Iterator[Element]:
    """Descendants by name, whatever the version of the standard that the name space states."""
    return (child for child in element.iter() if child.tag == name or child.tag.endswith("}" + name))


def _describe(images: int, pixels: Element) -> OmeImage:
    about = pixels.attrib
    bits = about.get("SignificantBits")
    channels = list(_find(pixels, "Channel"))
    files = {uuid.get("FileName", "") for uuid in _find(pixels, "UUID")}
    size = nothing
    if "PhysicalSizeX" in about or "PhysicalSizeY" in about:
        x = about.get("PhysicalSizeX", about.get("PhysicalSizeY"))
        y = about.get("PhysicalSizeY", x)
        unit_x, unit_y = about.get("PhysicalSizeXUnit", "µm"), about.get("PhysicalSizeYUnit", "µm")
        size = from_lengths(x, y, unit_x, unit_y, "PhysicalSize in its OME-XML")
    return OmeImage(
        images=images,
        channels=int(about["SizeC"]) if "SizeC" in about else None,
        planes=int(about.get("SizeZ", 1)) * int(about.get("SizeT", 1)),
        significant_bits=int(bits) if bits is not None and bits.isdecimal() else None,
        fluorescent=any("EmissionWavelength" in channel.attrib or "Fluor" in channel.attrib for channel in channels),
        files=len(files),
        pixel_size=size,
    )
