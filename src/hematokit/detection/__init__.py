"""Detection of the cells of a field of any size, quality control of fields, and the built-in detector."""

from __future__ import annotations
