"""What the detector finds in drawn fields, by its options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import PINK, VIOLET, discs
from hematokit.conformance import check_plugin
from hematokit.detection.windows import detect_cells, make_detector
from hematokit.errors import PluginError
from hematokit.imaging.fieldfiles import open_field
from hematokit.imaging.geometry import contour_area

PLACES = [(50, 60), (60, 230), (150, 120), (200, 290), (210, 40)]


def detector(weights: Path, **options: Any) -> Any:
    return make_detector("cellpose", {"model": str(weights), "device": "cpu", **options}).value


def test_discs_are_found_where_they_are(weights: Path) -> None:
    cells = detector(weights).detect(discs(PLACES), None)
    found = cells[["y", "x"]].to_numpy()
    # The middle of the pixel that the disc is drawn around.
    assert np.abs(found - (np.array(PLACES) + 0.5)).max() < 2.5
    assert cells["height"].between(25, 38).all()
    assert cells["width"].between(25, 38).all()
    assert cells["area"].between(550, 900).all()
    assert cells["score"].between(0.5, 1.0).all()
    assert not cells["touches_border"].any()
    for outline, area in zip(cells["contour"], cells["area"], strict=True):
        assert abs(contour_area(outline) - area) < 0.1 * area


def test_tiles_do_not_show(weights: Path) -> None:
    places = [(y, x) for y in range(40, 500, 70) for x in range(40, 600, 70)]
    cells = detector(weights, batch_size=3).detect(discs(places, 520, 640), None)
    apart = np.abs(cells[["y", "x"]].to_numpy()[:, None] - (np.array(places) + 0.5)).max(axis=2)
    assert len(cells) == len(places)
    assert apart.min(axis=0).max() < 2.5


def test_windows_of_a_large_field_give_what_the_whole_gives(weights: Path, tmp_path: Path) -> None:
    places = [(y, x) for y in range(80, 900, 180) for x in range(80, 1200, 180)]
    Image.fromarray(discs(places, 920, 1240, 45)).save(tmp_path / "field.png")
    named = make_detector("cellpose", {"model": str(weights), "device": "cpu", "diameter": 90.0})
    with open_field(tmp_path / "field.png") as field:
        whole, parts = detect_cells(field, named), detect_cells(field, named, window_side=500)
    assert len(whole) == len(parts) == len(places)
    for cells in (whole, parts):
        apart = np.abs(cells[["y", "x"]].to_numpy()[:, None] - (np.array(places) + 0.5)).max(axis=2)
        assert apart.min(axis=0).max() < 4


def test_the_diameter_brings_cells_to_the_networks_size(weights: Path) -> None:
    large = discs([(3 * y, 3 * x) for y, x in PLACES], 780, 1020, 45)
    for options, pixel_size in (({"diameter": 90.0}, None), ({"diameter_um": 9.0}, 0.1)):
        cells = detector(weights, **options).detect(large, pixel_size)
        assert np.abs(cells[["y", "x"]].to_numpy() - (3 * np.array(PLACES) + 0.5)).max() < 7
        assert cells["width"].between(75, 115).all()


def test_micrometres_need_a_pixel_size_or_a_diameter_in_pixels(weights: Path) -> None:
    with pytest.raises(PluginError, match=r"set detector\.diameter in pixels"):
        detector(weights, diameter_um=9.0).detect(discs(PLACES), None)
    assert len(detector(weights, diameter_um=9.0, diameter=30.0).detect(discs(PLACES), None)) == len(PLACES)


def test_a_field_is_not_enlarged_beyond_memory(weights: Path) -> None:
    with pytest.raises(PluginError, match=r"would be enlarged 30 times"):
        detector(weights, diameter=1.0).detect(np.full((600, 800, 3), 235, np.uint8), None)


def test_small_cells_are_left_out_on_request(weights: Path) -> None:
    field = discs(PLACES)
    field[100:110, 200:210] = VIOLET
    few = detector(weights, minimum_area=0.4).detect(field, None)
    assert len(few) == len(PLACES)
    assert few["area"].min() > 0.4 * np.pi / 4 * 30**2


def test_cells_without_a_nucleus_are_left_out_on_request(weights: Path) -> None:
    field = np.hstack([discs(PLACES), discs(PLACES, colour=PINK)])
    assert len(detector(weights).detect(field, None)) == 2 * len(PLACES)
    kept = detector(weights, minimum_nucleus=0.3).detect(field, None)
    assert len(kept) == len(PLACES)
    assert kept["x"].max() < 340


def test_a_cell_at_the_border_says_so(weights: Path) -> None:
    cells = detector(weights).detect(discs([(3, 100), (120, 200)]), None)
    assert cells["touches_border"].tolist() == [True, False]
    assert cells["y0"].iloc[0] == 0


def test_a_margin_widens_the_box_within_the_field(weights: Path) -> None:
    plain, wide = (detector(weights, margin=share).detect(discs(PLACES), None) for share in (0.0, 0.5))
    assert (wide["width"] / plain["width"]).between(1.9, 2.15).all()
    assert np.allclose(plain[["y", "x"]], wide[["y", "x"]])
    assert wide["touches_border"].sum() == 0


def test_it_passes_the_conformance_tests(weights: Path) -> None:
    results = check_plugin("cellpose", {"detector": {"model": str(weights), "device": "cpu", "diameter": 120.0}})
    assert [str(result) for result in results if result.outcome == "failed"] == []
    assert sum(result.outcome == "passed" for result in results) > 4
