"""Built-in detectors: ``nuclei``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hematokit.plugins.hookspecs import hookimpl
from hematokit.plugins.specs import Detector, DetectorSpec, Option

__all__ = ["register_detectors"]


def _nuclei(**options: Any) -> Detector:
    # scikit-image is slow to import; listing detectors does not need it.
    from hematokit.detection.nuclei import NucleusDetector

    return NucleusDetector(**options)


@hookimpl
def register_detectors(register: Callable[[DetectorSpec], None]) -> None:
    """Register the built-in detectors."""
    register(
        DetectorSpec(
            "nuclei",
            "nucleated cells by the violet of their nuclei (Romanowsky stains); no training, no pixel size needed",
            _nuclei,
            {
                "min_score": Option(float, 0.55, "cells with a lower score are left out", 0.0, 1.0),
                "min_diameter_um": Option(float, 3.1, "diameter of the smallest nucleus in um", 0.5, 50.0),
                "margin_um": Option(float, 1.5, "what a cell's box has around its nucleus, in um", 0.0, 50.0),
            },
            # Raised when, and only when, other cells come out of the same field and options.
            version="1",
        )
    )
