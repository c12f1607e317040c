"""Cellpose networks as a detector of cells.

Read at every start of hematokit, so nothing heavy is imported here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hematokit import DetectorSpec, Option, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

HEMATOKIT_HOOKS = "1.0"


def _cellpose(**options: Any) -> Any:
    from hematokit_cellpose.detector import make

    return make(**options)


@hookimpl
def register_detectors(register: Callable[[DetectorSpec], None]) -> None:
    """Register the detector ``cellpose``."""
    register(
        DetectorSpec(
            name="cellpose",
            description="cells outlined by a Cellpose network (Stringer et al. 2021), published or trained by you",
            factory=_cellpose,
            options={
                "model": Option(str, "", "file of weights, or published name (cyto3, cpsam_v2); empty: the usual one"),
                "download": Option(bool, False, "fetch published weights that are not on this machine"),
                "diameter": Option(float, 0.0, "typical cell in px; 0: as in the network's training", 0.0, 2000.0),
                "diameter_um": Option(float, 0.0, "typical cell in um, instead of diameter; 0: not used", 0.0, 500.0),
                "flow_threshold": Option(float, 0.4, "largest error of a cell's flows; 0: all are kept", 0.0, 100.0),
                "cellprob_threshold": Option(float, 0.0, "least logit of a pixel that is cell", -20.0, 20.0),
                "minimum_area": Option(float, 0.05, "smallest cell, as a share of the typical one's area", 0.0, 1.0),
                "minimum_nucleus": Option(float, 0.0, "least share of a cell stained as nuclei are; 0: any", 0.0, 1.0),
                "margin": Option(float, 0.0, "what a box has around the outline, as a share of its side", 0.0, 2.0),
                "batch_size": Option(int, 8, "tiles that the network is given at once", 1, 1024),
                "device": Option(str, "auto", "cpu, cuda, cuda:1, mps, or auto"),
            },
        )
    )
