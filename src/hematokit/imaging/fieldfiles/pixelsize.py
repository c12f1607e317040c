"""Pixel sizes from the metadata of a file and from the user, and the choice between them."""

from __future__ import annotations

import math
from typing import NamedTuple

from hematokit.errors import ImageError

__all__ = [
    "LARGEST",
    "SMALLEST",
    "PixelSize",
    "check_given",
    "choose",
    "from_density",
    "from_lengths",
    "is_same_size",
    "nothing",
]

SMALLEST, LARGEST = 0.01, 20.0
"""Smallest and largest pixel size of a microscope in micrometres. No light microscope is below; the densities that
programs write by default are above (72 to 1200 dots per inch are 353 to 21 micrometres)."""

_SAME = 0.02
"""Largest relative difference of equal pixel sizes: resampling by so little only blurs."""

_ANISOTROPY = 0.01  # relative difference of the two sides up to which pixels count as square

# Lengths in micrometres of the units in OME-XML, OME-Zarr (names of UDUNITS-2) and ImageJ.
_UNITS = {
    "pm": 1e-6, "picometer": 1e-6,
    "å": 1e-4, "angstrom": 1e-4,
    "nm": 1e-3, "nanometer": 1e-3,
    "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0,
    "mm": 1e3, "millimeter": 1e3,
    "cm": 1e4, "centimeter": 1e4,
    "dm": 1e5, "decimeter": 1e5,
    "m": 1e6, "meter": 1e6,
    "in": 25400.0, "inch": 25400.0,
}  # fmt: skip


class PixelSize(NamedTuple):
    """The pixel size in the metadata of a file.

    Attributes
    ----------
    um : float or None
        Side of a pixel in micrometres; None if unknown.
    notes : tuple of str
        Reasons for which a number in the file was ignored.
    """

    um: float | None
    notes: tuple[str, ...] = ()


nothing = PixelSize(None)
"""The file has no pixel size."""


def micrometres_per(unit: str) -> float | None:
    """Return the length of a unit in micrometres; None if the name is not a known unit of length.

    Examples
    --------
    >>> micrometres_per("nanometer"), micrometres_per("µm"), micrometres_per("pixel")
    (0.001, 1.0, None)
    """
    # ImageJ writes the micro sign as an escape; Unicode has two characters for it.
    name = unit.strip().replace("\\u00B5", "u").replace("µ", "u").replace("μ", "u").lower()
    return _UNITS.get(name.replace("metre", "meter"))


def from_lengths(x: object, y: object, unit_x: str, unit_y: str, where: str) -> PixelSize:
    """Return the pixel size from the lengths of the sides of a pixel in a file.

    Parameters
    ----------
    x, y : object
        Numbers, or text that should be numbers.
    unit_x, unit_y : str
        Their units.
    where : str
        Their name in the file, for the note: ``"PhysicalSizeX"``, ``"scale"``.
    """
    factors = micrometres_per(unit_x), micrometres_per(unit_y)
    try:
        sides = float(str(x)), float(str(y))
    except ValueError:
        return PixelSize(None, (f"pixel size ignored: {where} is not a number",))
    if not all(math.isfinite(side) and side > 0 for side in sides):
        return PixelSize(None, (f"pixel size ignored: {where} is {sides[0]:g} x {sides[1]:g}",))
    if factors[0] is None or factors[1] is None:
        unit = unit_x if factors[0] is None else unit_y
        return PixelSize(None, (f"pixel size ignored: {where} is in {unit!r}, which is not a known unit of length",))
    width, height = sides[0] * factors[0], sides[1] * factors[1]
    if not (SMALLEST <= width <= LARGEST and SMALLEST <= height <= LARGEST):
        return PixelSize(
            None, (f"pixel size ignored: {where} is {width:g} x {height:g} um, outside {SMALLEST:g} to {LARGEST:g}",)
        )
    if abs(width - height) > _ANISOTROPY * max(width, height):
        return PixelSize(None, (f"pixel size ignored: {where} is {width:g} x {height:g} um, not square",))
    # Round, so that the same length in different units gives the same number.
    return PixelSize(float(f"{(width + height) / 2:.9g}"))


def from_density(x: float, y: float, unit_um: float) -> PixelSize:
    """Return the pixel size from a resolution in pixels per unit, as in TIFF, PNG and JPEG.

    Most such numbers are a program's default for printing; those outside the range of microscopes are ignored silently.

    Parameters
    ----------
    x, y : float
        Pixels per unit.
    unit_um : float
        Length of the unit in micrometres.
    """
    if not all(math.isfinite(density) and density > 0 for density in (x, y)):
        return nothing
    sides = unit_um / x, unit_um / y
    if not all(SMALLEST <= side <= LARGEST for side in sides):
        return nothing
    return from_lengths(sides[0], sides[1], "um", "um", "the resolution")


def check_given(pixel_size_um: float | None) -> None:
    """Raise an error for an impossible pixel size.

    Raises
    ------
    ImageError
        ``"pixel-size"`` if it is not a number from `SMALLEST` to `LARGEST`: nanometres, for example.
    """
    if pixel_size_um is not None and not SMALLEST <= pixel_size_um <= LARGEST:
        raise ImageError(
            "pixel-size",
            f"a pixel size of {pixel_size_um:g} um is not possible; give micrometres per pixel, as 0.1 "
            f"({SMALLEST:g} to {LARGEST:g})",
        )


def is_same_size(one_um: float, other_um: float) -> bool:
    """Return whether two pixel sizes in micrometres differ by less than 2 %, so that nothing is resampled.

    Examples
    --------
    >>> is_same_size(0.0861, 0.0865), is_same_size(0.09, 0.25)
    (True, False)
    """
    return abs(one_um / other_um - 1) < _SAME


def choose(stated: PixelSize, given: float | None, *, force: bool) -> tuple[float | None, str, tuple[str, ...]]:
    """Return the pixel size to use, from the metadata or from the user.

    Parameters
    ----------
    stated : PixelSize
        From the metadata.
    given : float or None
        Pixel size from the user, checked by `check_given`.
    force : bool
        Use the pixel size from the user even if the metadata have one.

    Returns
    -------
    tuple
        Micrometres or None; ``"metadata"``, ``"given"`` or ``""``; notes.
    """
    notes = stated.notes
    if stated.um is None:
        return given, "given" if given is not None else "", notes
    if given is None or math.isclose(given, stated.um, rel_tol=1e-6):
        return stated.um, "metadata", notes
    if force:
        return given, "given", (*notes, f"pixel size {given:g} um as given; the file has {stated.um:g} um")
    return stated.um, "metadata", (*notes, f"pixel size {stated.um:g} um from the file; {given:g} um was given")
