"""Built-in detectors: ``nuclei``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hematokit.plugins.hookspecs import hookimpl
from hematokit.plugins.specs import Detector, DetectorSpec, Option

__all__ = ["register_detectors"]


def _nuclei(**options: Any) -> Detector:
    # scikit-image is slow to import and not needed to list the detectors.
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
                "min_score": Option(float, 0.55, "smallest score of a detected cell", 0.0, 1.0),
                "min_diameter_um": Option(float, 3.1, "diameter of the smallest nucleus in um", 0.5, 50.0),
                "margin_um": Option(float, 1.5, "margin of a cell's box around its nucleus in um", 0.0, 50.0),
            },
            # To be raised when, and only when, the same field and options give different cells.
            version="1",
        )
    )
