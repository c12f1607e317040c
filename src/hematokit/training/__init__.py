"""Training: settings, class balance, the loop, run folders, and the built-in augmenters."""

from __future__ import annotations
