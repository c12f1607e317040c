"""The viewer of hematokit: cells of whole fields in napari, with their classes, reasons and corrections.

For research use only; not a medical device.
"""

from __future__ import annotations

from napari_hematonet._libraries import keep_triton_out

# By now napari's window is there, and torch usually is not.
keep_triton_out()
