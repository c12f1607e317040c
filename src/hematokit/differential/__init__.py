"""The differential count: counting rules, intervals, and summaries by field, smear and patient.

Modules
-------
counts
    The classes that are counted, and the number of cells of each class in each field.
summary
    The differential of a set of fields from these counts: shares, ratio, intervals.
differential
    The summaries at every level, as tables, JSON, text and HTML.
"""

from __future__ import annotations
