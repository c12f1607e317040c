"""Review of the cells of a field without a window: edits, undo, and the journal of corrections.

Modules
-------
session
    `Review`: correct, confirm, delete and add cells, undo, export.
table
    The cells table during a review: its rows as the journal's corrections make them, its order, its counts.
journal
    The journal of a review, and where it is kept for an image outside of stores and results folders.
"""

from __future__ import annotations
