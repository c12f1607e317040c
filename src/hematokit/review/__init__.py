"""Review of the cells of a field without a window: edits, undo, and the journal of corrections."""

from __future__ import annotations
