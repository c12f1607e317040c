"""Reading images safely, geometry, and synthetic cells.

Import from the modules: ``hematokit.imaging.reading`` (files to RGB arrays), ``hematokit.imaging.geometry`` (the one
place that knows coordinates), ``hematokit.synthetic`` (seeded cell crops).
"""

from __future__ import annotations
