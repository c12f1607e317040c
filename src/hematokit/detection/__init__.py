"""Detection of the cells of a field of any size, quality control of fields, and the built-in detector.

Modules
-------
windows
    Run a detector over a field window by window; match detections to annotated cells.
quality
    Focus, staining and thickness of a field.
detectors
    The built-in detectors as specs, without their imports.
nuclei, nucleus_scale, nucleus_shapes
    The detector ``nuclei``.
"""

from __future__ import annotations
