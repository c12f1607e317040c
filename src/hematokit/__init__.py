"""hematokit: a plugin-based toolkit for bone-marrow and blood cytology. Research use only."""

from __future__ import annotations

__version__ = "0.1.0"
