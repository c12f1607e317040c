"""HTML pages, figures and overlays, rendered from the results they are given."""

from __future__ import annotations
