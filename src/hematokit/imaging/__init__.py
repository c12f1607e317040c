"""Images: reading files, geometry, light and stain, fingerprints.

Modules
-------
reading, damage
    Image files as RGB arrays; whether a file is complete and undamaged.
geometry
    Coordinates: boxes, patches, windows, orientation, and conversions.
fieldfiles
    Whole fields of any format, read by windows.
staining
    Background and stain maps of a field.
fingerprint
    Patches that show the same pixels.
"""

from __future__ import annotations
