"""The differential count: counting rules, intervals, and summaries by field, smear and patient."""

from __future__ import annotations
