"""Images: reading of files, geometry, background and stains, fingerprints.

Modules
-------
reading, damage
    Reading of image files as RGB arrays; detection of damaged and incomplete files.
geometry
    Coordinates: boxes, patches, windows, orientation, and conversions.
fieldfiles
    Whole fields of any format, read window by window.
staining
    Background and stain maps of a field.
fingerprint
    Detection of patches that show the same pixels.
"""

from __future__ import annotations
