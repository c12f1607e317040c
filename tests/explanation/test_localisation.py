"""Shares of attribution against masks that are known, and masks of drawn and real cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hematokit.explanation.checks.faithfulness import CENTRED, centred_gaussian
from hematokit.explanation.checks.localisation import CellMasks, evidence, find_cell_masks, localisation
from hematokit.plugins.specs import InputSpec

SIDE = 40
LABELS = ["BLA", "BLA", "LYT", "LYT"]


class FakeDetector:
    """Finds the circles it is told of: (y, x, radius)."""

    def __init__(self, *circles: tuple[float, float, float]) -> None:
        self.circles = circles

    def detect(self, field: np.ndarray, pixel_size_um: float | None) -> pd.DataFrame:
        """Return the circles as nuclei."""
        angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
        contours = [
            np.stack([y + r * np.sin(angles), x + r * np.cos(angles)], axis=1).astype(np.float32)
            for y, x, r in self.circles
        ]
        columns = {"y": [c[0] for c in self.circles], "x": [c[1] for c in self.circles]}
        return pd.DataFrame({**columns, "contour": pd.Series(contours, dtype=object)})


@pytest.fixture
def masks() -> CellMasks:
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5 - SIDE / 2
    cell, nucleus = np.hypot(y, x) < 14, np.hypot(y - 2, x) < 8
    found = np.array([True, True, True, False])
    return CellMasks(nucleus & found[:, None, None], cell & found[:, None, None], found)


def test_a_map_that_is_the_mask_lies_wholly_inside(masks: CellMasks) -> None:
    result = localisation({"mask": masks.nucleus.astype(np.float32) * 3}, masks, LABELS)
    own = result.summary.set_index(["method", "label"]).loc[("mask", "")]
    assert own["nucleus"] == own["nucleus_low"] == own["nucleus_high"] == own["cell"] == 1
    assert (own["n"], own["not_found"], own["empty"]) == (3, 1, 0)
    assert own["nucleus_area"] == pytest.approx(masks.nucleus[0].mean())


def test_an_even_map_has_the_areas_share_and_the_gaussian_more(masks: CellMasks) -> None:
    result = localisation({"even": np.ones((4, SIDE, SIDE), np.float32)}, masks, LABELS)
    summary = result.summary.set_index(["method", "label"])
    even, hill = summary.loc[("even", "")], summary.loc[(CENTRED, "")]
    assert even["cell"] == pytest.approx(even["cell_area"])
    assert even["nucleus"] == pytest.approx(even["nucleus_area"])
    gaussian = centred_gaussian(SIDE)
    assert hill["cell"] == pytest.approx(gaussian[masks.cell[0]].sum() / gaussian.sum())
    assert hill["cell"] > 1.5 * even["cell"]
    assert even["cell_gain"] == pytest.approx(even["cell"] - hill["cell"])
    assert hill["cell_gain"] == 0


def test_only_what_speaks_for_the_class_counts(masks: CellMasks) -> None:
    signed = np.where(masks.nucleus, 2.0, -5.0).astype(np.float32)
    assert evidence(signed).min() == 0
    assert localisation({"signed": signed}, masks, LABELS).summary["nucleus"].iloc[0] == 1
    unsigned = np.where(masks.nucleus, 2.0, 5.0).astype(np.float32)
    assert (evidence(unsigned) == unsigned).all()


def test_classes_have_their_own_figures_and_what_is_missing_is_counted(masks: CellMasks) -> None:
    maps = np.ones((4, SIDE, SIDE), np.float32)
    maps[1] = 0  # says nothing
    summary = localisation({"map": maps}, masks, LABELS, groups=list("aabb")).summary.set_index(["method", "label"])
    assert (summary.loc[("map", "BLA"), "n"], summary.loc[("map", "BLA"), "empty"]) == (1, 1)
    assert (summary.loc[("map", "LYT"), "n"], summary.loc[("map", "LYT"), "not_found"]) == (1, 1)
    assert (summary.loc[("map", ""), "n"], summary.loc[("map", ""), "not_found"]) == (2, 1)


def test_no_nucleus_at_all_is_no_share(masks: CellMasks) -> None:
    nothing = CellMasks(np.zeros_like(masks.nucleus), np.zeros_like(masks.cell), np.zeros(4, bool))
    summary = localisation({"map": np.ones((4, SIDE, SIDE), np.float32)}, nothing, LABELS).summary
    assert summary["nucleus"].isna().all()
    assert (summary["n"] == 0).all()


def patch_of(*circles: tuple[float, float, float, tuple[int, int, int]], side: int = 100) -> np.ndarray:
    picture = np.full((side, side, 3), 235, np.uint8)
    y, x = np.mgrid[:side, :side] + 0.5
    for cy, cx, radius, colour in circles:
        picture[np.hypot(y - cy, x - cx) < radius] = colour
    return picture


NUCLEUS, CYTOPLASM = (90, 40, 130), (170, 150, 205)


def test_the_nucleus_in_the_middle_is_chosen_and_its_cytoplasm_found() -> None:
    patch = patch_of((50, 52, 26, CYTOPLASM), (50, 52, 18, NUCLEUS), (12, 85, 10, NUCLEUS))
    masks = find_cell_masks(FakeDetector((12, 85, 10), (50, 52, 18)), patch[None], InputSpec(100))
    assert masks.found.all()
    assert masks.nucleus.sum() == pytest.approx(np.pi * 18**2, rel=0.01)
    assert masks.cell.sum() == pytest.approx(np.pi * 26**2, rel=0.08)
    assert not masks.cell[0, 5:20, 78:95].any()
    assert (masks.cell | ~masks.nucleus).all()


def test_masks_go_the_way_of_the_image() -> None:
    patch = patch_of((40, 60, 20, NUCLEUS))
    detector = FakeDetector((40, 60, 20))
    small = find_cell_masks(detector, patch[None], InputSpec(50)).nucleus[0]
    where = np.argwhere(small) + 0.5
    assert where.mean(axis=0) == pytest.approx([20, 30], abs=0.3)
    assert small.sum() == pytest.approx(np.pi * 10**2, rel=0.05)
    padded = find_cell_masks(detector, patch[None], InputSpec(110)).nucleus[0]
    assert (np.argwhere(padded) + 0.5).mean(axis=0) == pytest.approx([45, 65], abs=0.3)
    cropped = find_cell_masks(detector, patch[None], InputSpec(90, fit="crop")).nucleus[0]
    assert (np.argwhere(cropped) + 0.5).mean(axis=0) == pytest.approx([35, 55], abs=0.3)


def test_a_nucleus_at_the_edge_is_not_the_cell_of_the_patch() -> None:
    patch = patch_of((10, 10, 9, NUCLEUS))
    masks = find_cell_masks(FakeDetector((10, 10, 9)), np.stack([patch, patch]), InputSpec(100))
    assert not masks.found.any()
    assert not masks.cell.any()
    assert not find_cell_masks(FakeDetector(), patch[None], InputSpec(100)).found.any()


def test_nuclei_of_real_cells_lie_in_the_middle(real_data: Path) -> None:
    detectors = pytest.importorskip("hematokit.plugins").load_plugins().detectors
    if "nuclei" not in detectors:
        pytest.skip("no detector of nuclei is registered")
    files = sorted((real_data / "matek_bm8" / "LYT").glob("*.jpg"))[:8]
    patches = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    spec = detectors.get("nuclei")
    masks = find_cell_masks(spec.factory(**spec.resolve_options(None)), patches, InputSpec(96))
    assert masks.found.mean() >= 0.75
    middles = [np.argwhere(mask).mean(axis=0) for mask in masks.nucleus[masks.found]]
    assert np.abs(np.median(middles, axis=0) - 48).max() < 12
    assert (masks.cell.sum(axis=(1, 2)) >= masks.nucleus.sum(axis=(1, 2))).all()
