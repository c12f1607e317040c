"""Checks of explanations: sanity, data randomisation, faithfulness and localisation."""

from __future__ import annotations
