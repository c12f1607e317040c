"""Detection of the cells of a field of any size, quality control of fields, and the built-in detector.

Modules
-------
windows
    Running a detector over a field window by window; matching detections to annotated cells.
quality
    Focus, staining and thickness of a field.
detectors
    Specs of the built-in detectors, without importing them.
nuclei, nucleus_scale, nucleus_shapes
    The detector ``nuclei``.
"""

from __future__ import annotations
