"""Results folders of whole-field runs: layout, reading and writing."""

from __future__ import annotations
