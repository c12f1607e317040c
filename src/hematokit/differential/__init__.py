"""The differential count: counting rules, intervals, and summaries by field, smear and patient.

Modules
-------
counts
    Which classes are counted, and the cells of each class in each field.
summary
    The differential of a set of fields from these counts: shares, ratio, intervals.
differential
    The summaries at every level, as tables, JSON and text.
"""

from __future__ import annotations
