"""The picture of a field with its cells."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from PIL import Image

from hematokit.reports.overlay import contrasting, draw_overlay, font, scale_bar_length, shortened
from hematokit.taxonomy import MATEK_21, CellClass, Taxonomy

RED, GREEN = (0xD6, 0x27, 0x28), (0x2C, 0xA0, 0x2C)


@dataclass
class PlainField:
    """A field in memory."""

    pixels: npt.NDArray[np.uint8]
    name: str = "field"
    pixel_size_um: float | None = None
    scale: float = 1.0

    @property
    def height(self) -> int:
        return round(self.pixels.shape[0] * self.scale)

    @property
    def width(self) -> int:
        return round(self.pixels.shape[1] * self.scale)

    def thumbnail(self, longest: int) -> tuple[npt.NDArray[np.uint8], float]:
        return self.pixels, self.scale


def grey(height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.full((height, width, 3), 225, np.uint8)


def cells(*boxes: tuple[int, int, int, int], **columns: object) -> pd.DataFrame:
    table = pd.DataFrame(boxes, columns=["y0", "x0", "height", "width"]).assign(contour=None)
    return table.assign(cell_id=[str(row) for row in range(len(table))], **columns)


def opened(png: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def count(picture: npt.NDArray[np.uint8], colour: tuple[int, int, int]) -> int:
    return int((picture == colour).all(axis=2).sum())


def test_cells_are_outlined_in_their_colours_where_they_are() -> None:
    found = cells((300, 300, 200, 200), (800, 900, 100, 150), predicted=["BLA", "NGS"], probability=0.9)
    picture = opened(draw_overlay(PlainField(grey(1200, 1200)), found, MATEK_21))
    assert picture.shape[0] == 1200
    assert picture.shape[1] > 1300  # the legend
    field = picture[:, :1200]
    rows, columns = np.nonzero((field == RED).all(axis=2))
    # The ring, and the code above or below it.
    assert rows.min() > 260
    assert rows.max() < 540
    assert (columns.min(), columns.max()) == pytest.approx((299, 500), abs=8)
    assert count(field[760:940, 860:1090], GREEN) == count(field, GREEN) > 300
    # Nothing is drawn over the nucleus itself.
    assert (field[350:450, 350:450] == 225).all()
    assert count(picture[:, 1200:], RED) > 100


def test_low_confidence_cells_are_dashed() -> None:
    sure = cells((300, 300, 300, 300), predicted="BLA", probability=0.9)
    low_confidence = sure.assign(probability=0.3)
    solid, dashed = (
        count(opened(draw_overlay(PlainField(grey(1200, 1200)), table, MATEK_21))[290:610, 290:610], RED)
        for table in (sure, low_confidence)
    )
    assert 0.3 * solid < dashed < 0.8 * solid


def test_a_reduced_field_keeps_cells_in_place() -> None:
    found = cells((6000, 6000, 4000, 4000), predicted="BLA", probability=0.9)
    field = opened(draw_overlay(PlainField(grey(1200, 1200), scale=20.0), found, MATEK_21))[:, :1200]
    _, columns = np.nonzero((field == RED).all(axis=2))
    assert (columns.min(), columns.max()) == pytest.approx((299, 500), abs=8)


def test_outlines_follow_the_contour() -> None:
    triangle = np.array([[300, 600], [900, 300], [900, 900]], np.float32)
    found = cells((300, 300, 600, 600), predicted="BLA", probability=0.9)
    found.at[0, "contour"] = triangle
    field = opened(draw_overlay(PlainField(grey(1200, 1200)), found, MATEK_21))[:, :1200]
    assert count(field[300:500, 300:400], RED) == 0  # a corner of the box that the triangle leaves free
    assert count(field[880:920, 400:800], RED) > 400


def test_small_fields_are_enlarged_and_tiny_ones_survive() -> None:
    none = cells()
    picture = opened(draw_overlay(PlainField(grey(480, 640)), none, MATEK_21))
    assert picture.shape[0] == 900
    for height, width in ((1, 1), (1, 500), (500, 1)):
        assert opened(draw_overlay(PlainField(grey(height, width), pixel_size_um=0.1), none, MATEK_21)).size


def test_before_classification_there_is_one_colour() -> None:
    found = cells((300, 300, 200, 200), (800, 900, 100, 150))
    picture = opened(draw_overlay(PlainField(grey(1200, 1200)), found, MATEK_21))
    assert count(picture[:, :1200], (0, 220, 255)) > 500
    assert count(picture, RED) == 0


def test_the_scale_bar_has_its_length() -> None:
    white = PlainField(np.full((1200, 1200, 3), 200, np.uint8), pixel_size_um=0.25)
    picture = opened(draw_overlay(white, cells(), MATEK_21))[1000:, :600]
    ink = (picture == (31, 41, 51)).all(axis=2)
    assert ink.sum(axis=1).max() == pytest.approx(20 / 0.25, abs=2)  # 300 um wide: a bar of 20 um
    unknown = opened(draw_overlay(PlainField(grey(1200, 1200)), cells(), MATEK_21))[:, :1200]
    assert (unknown == 225).all()


def test_any_names_and_taxonomies() -> None:
    strange = Taxonomy("lab", (CellClass("A" * 32, "x" * 300, "", "#ffffff"), CellClass("B", "Bläst 细胞 $")))
    found = cells((300, 300, 200, 200), predicted="A" * 32, probability=0.9)
    field = PlainField(grey(700, 900), name="f" * 200)
    assert opened(draw_overlay(field, found, strange)).size
    many = cells(
        *[(y, x, 20, 20) for y in range(0, 680, 24) for x in range(0, 880, 24)], predicted="B", probability=0.9
    )
    assert opened(draw_overlay(field, many, strange)).size


def test_a_real_field(real_data: Path) -> None:
    from hematokit.imaging.fieldfiles import open_field

    path = sorted((real_data / "bccd" / "JPEGImages").glob("*.jpg"))[0]
    found = cells((100, 100, 80, 80), predicted="NGS", probability=0.9)
    with open_field(path, pixel_size_um=0.2) as field:
        picture = opened(draw_overlay(field, found, MATEK_21))
        pixels, _ = field.thumbnail(2452)
    assert picture.shape[0] == 900
    # The field itself is the background.
    shown = np.asarray(Image.fromarray(picture[:, :1200]).resize((640, 480), Image.Resampling.BOX)).astype(int)
    assert np.abs(shown[250:400, 250:600] - pixels[250:400, 250:600]).mean() < 4


def test_lettering() -> None:
    assert contrasting((255, 255, 0)) == (20, 20, 20)
    assert contrasting((20, 20, 120)) == (255, 255, 255)
    assert [scale_bar_length(width) for width in (8, 100, 212, 3000)] == [1, 10, 20, 200]
    letters = font(20)
    assert shortened("Blast", letters, 500) == "Blast"
    cut = shortened("Segmented neutrophil", letters, 100)
    assert cut.endswith("…")
    assert letters.getlength(cut) <= 100
