"""The built-in detector on drawn cells at known positions, on real fields, and on images that are not fields."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from hematokit.annotations import ClassNames, read_annotations
from hematokit.annotations.cells import DETECTION_COLUMNS
from hematokit.detection.windows import match_cells
from hematokit.imaging.fieldfiles import open_field
from hematokit.imaging.geometry import Box
from hematokit.imaging.reading import read_rgb
from hematokit.plugins import load_plugins
from hematokit.synthetic import PIXEL_SIZE_UM, SyntheticField, synthesize_field
from hematokit.taxonomy import MATEK_21

BACKGROUND, RED_CELL, NUCLEUS, CYTOPLASM = (232, 228, 222), (205, 170, 165), (85, 45, 140), (205, 185, 220)


def detect(pixels: np.ndarray, pixel_size_um: float | None = None, **options: object) -> pd.DataFrame:
    spec = load_plugins().detectors.get("nuclei")
    found: pd.DataFrame = spec.factory(**spec.resolve_options(options)).detect(pixels, pixel_size_um)
    return found


def draw(*nuclei: tuple[float, float, float], side: int = 500, red_cells: bool = True) -> np.ndarray:
    """Discs for nuclei ``(y, x, radius)`` on a smear of red cells, 0.1 um per pixel."""
    image = Image.new("RGB", (side, side), BACKGROUND)
    pen = ImageDraw.Draw(image)
    for y in range(40, side, 100) if red_cells else ():
        for x in range(40, side, 100):
            if all((y - ny) ** 2 + (x - nx) ** 2 > (radius + 65) ** 2 for ny, nx, radius in nuclei):
                pen.ellipse((x - 35, y - 35, x + 35, y + 35), fill=RED_CELL)
    for y, x, radius in nuclei:
        pen.ellipse((x - radius - 12, y - radius - 12, x + radius + 12, y + radius + 12), fill=CYTOPLASM)
    for y, x, radius in nuclei:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=NUCLEUS)
    noise = np.random.default_rng(0).normal(0, 3, (side, side, 3))
    return (np.asarray(image) + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("pixel_size_um", [0.1, None])
def test_one_nucleus_is_found_where_it_is(pixel_size_um: float | None) -> None:
    found = detect(draw((240, 260, 45)), pixel_size_um)
    assert len(found) == 1
    cell = found.iloc[0]
    assert cell["y"] == pytest.approx(240, abs=4)
    assert cell["x"] == pytest.approx(260, abs=4)
    assert cell["area"] == pytest.approx(np.pi * 45**2, rel=0.15)
    assert cell["y0"] <= 195
    assert cell["y0"] + cell["height"] >= 285
    assert not cell["touches_border"]
    contour = np.asarray(cell["contour"])
    distances = np.hypot(contour[:, 0] - 240, contour[:, 1] - 260)
    assert abs(distances - 45).max() < 7


def test_lobes_of_one_nucleus_are_one_cell_and_two_round_nuclei_are_two() -> None:
    lobes = detect(draw((235, 225, 22), (262, 245, 20), (240, 270, 21)), 0.1)
    assert len(lobes) == 1
    pair = detect(draw((240, 200, 45), (240, 292, 45)), 0.1)
    assert len(pair) == 2
    assert sorted(pair["x"].round(-1)) == [200, 290]


def test_what_the_border_cuts_is_marked() -> None:
    found = detect(draw((20, 250, 45), (300, 250, 45)), 0.1)
    assert found["touches_border"].tolist() == [True, False]


def test_red_cells_alone_are_nothing_however_dark() -> None:
    assert detect(draw()).empty
    dark = draw().astype(float)
    dark = np.where(dark < 215, dark * (0.62, 0.5, 0.58), dark).astype(np.uint8)
    assert detect(dark).empty


def degenerate() -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    grey = draw((240, 260, 45)).mean(axis=2, keepdims=True).repeat(3, axis=2)
    return {
        "one pixel": np.full((1, 1, 3), 120, np.uint8),
        "a row": np.full((1, 300, 3), 200, np.uint8),
        "tiny": random.integers(0, 255, (3, 5, 3), np.uint8),
        "black": np.zeros((200, 300, 3), np.uint8),
        "white": np.full((200, 300, 3), 255, np.uint8),
        "one colour": np.full((200, 300, 3), (120, 60, 160), np.uint8),
        "noise": random.integers(0, 256, (200, 300, 3)).astype(np.uint8),
        "faint noise": random.normal(225, 4, (200, 300, 3)).clip(0, 255).astype(np.uint8),
        "grey": grey.astype(np.uint8),
        "empty": np.zeros((0, 40, 3), np.uint8),
    }


@pytest.mark.parametrize("name", list(degenerate()))
@pytest.mark.parametrize("pixel_size_um", [None, 0.1, 50.0])
def test_whatever_is_given_a_table_comes_back(name: str, pixel_size_um: float | None) -> None:
    pixels = degenerate()[name]
    found = detect(pixels, pixel_size_um)
    assert tuple(found.columns) == DETECTION_COLUMNS
    if name != "grey":
        assert found.empty
    height, width = pixels.shape[:2]
    for cell in found.itertuples():
        assert Box(cell.y0, cell.x0, cell.height, cell.width).inside(height, width)


def test_the_same_image_gives_the_same_cells() -> None:
    pixels = synthesize_field(500, 600, cells=6, seed=4).pixels
    before = pixels.copy()
    first, second = detect(pixels), detect(pixels)
    pd.testing.assert_frame_equal(first.drop(columns="contour"), second.drop(columns="contour"))
    np.testing.assert_array_equal(pixels, before)


def whole_cells(field: SyntheticField) -> pd.DataFrame:
    """Drawn cells that have a nucleus and that the border does not cut."""
    truth = field.table()
    return truth[~truth["touches_border"] & ~truth["label"].isin(["ART", "NIF", "OTH"])]


def test_drawn_fields_with_and_without_the_pixel_size() -> None:
    field = synthesize_field(1400, 1600, cells=70, seed=11)
    for pixel_size_um in (PIXEL_SIZE_UM, None):
        found = detect(field.pixels, pixel_size_um)
        assert match_cells(found, whole_cells(field)).recall >= 0.85
        assert match_cells(found, field.table()).precision >= 0.85
        for cell in found.itertuples():
            assert Box(cell.y0, cell.x0, cell.height, cell.width).inside(1400, 1600)
            contour = np.asarray(cell.contour)
            assert contour.min() >= 0
            assert contour[:, 0].max() <= 1400
            assert contour[:, 1].max() <= 1600
            assert 0 <= cell.score <= 1


def test_an_image_at_half_and_double_scale_has_the_same_cells() -> None:
    for seed in (3, 4):
        field = synthesize_field(900, 1000, cells=25, seed=seed, smear=seed)
        image = Image.fromarray(field.pixels)
        for scale in (0.5, 2.0):
            size = (round(1000 * scale), round(900 * scale))
            found = detect(np.asarray(image.resize(size, Image.Resampling.LANCZOS)))
            places = found.assign(y=found["y"] / scale, x=found["x"] / scale)
            assert match_cells(places, whole_cells(field)).recall >= 0.85
            assert match_cells(places, field.table()).precision >= 0.85


def test_options_change_what_is_reported() -> None:
    pixels = synthesize_field(700, 800, cells=15, seed=5).pixels
    usual = detect(pixels, PIXEL_SIZE_UM)
    assert len(detect(pixels, PIXEL_SIZE_UM, min_diameter_um=9.0)) < len(usual)
    wide = detect(pixels, PIXEL_SIZE_UM, margin_um=5.0)
    assert len(wide) == len(usual)
    assert (wide["width"] >= usual["width"]).all()
    assert (wide["width"] > usual["width"]).any()


def test_white_cells_of_real_blood_fields(real_data: Path) -> None:
    """Some of the fields that settings were chosen on: a floor that a broken detector falls through."""
    images = sorted((real_data / "bccd" / "JPEGImages").glob("*.jpg"))[:60]
    found = cells = detections = 0
    for path in images:
        with open_field(path) as field:
            known = read_annotations(
                real_data / "bccd" / "Annotations" / f"{path.stem}.xml",
                field,
                classes=ClassNames(MATEK_21, {"WBC": ""}),
                only=["WBC"],
            ).cells
            matches = match_cells(detect(field.read(Box(0, 0, field.height, field.width))), known)
        found, cells, detections = (
            found + len(matches.annotated),
            cells + matches.cells,
            detections + matches.detections,
        )
    assert cells > 50
    assert found / cells >= 0.95
    assert found / detections >= 0.93


def test_real_fields_of_red_cells_have_next_to_none(real_data: Path) -> None:
    images = sorted((real_data / "chula_rbc12" / "images").glob("*"))[:20]
    assert sum(len(detect(read_rgb(path))) for path in images) <= 0.2 * len(images)
