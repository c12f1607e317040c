"""Detection window by window gives what detection of the whole field gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from hematokit.annotations.cells import DETECTION_COLUMNS, check_detections, name_cells
from hematokit.detection.windows import detect_cells, examine_field, make_detector
from hematokit.errors import PluginError
from hematokit.imaging.geometry import Box
from hematokit.plugins import MadeDetector
from hematokit.plugins.specs import DetectorSpec


@dataclass
class ArrayField:
    """A field in memory that remembers how much was read at once."""

    pixels: np.ndarray
    pixel_size_um: float | None = None
    largest: int = 0
    path: Path = field(default_factory=lambda: Path("field.png"))

    @property
    def height(self) -> int:
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        return self.pixels.shape[1]

    def read(self, box: Box) -> np.ndarray:
        self.largest = max(self.largest, box.height * box.width)
        return self.pixels[box.slices]


class Blobs:
    """Finds white blobs."""

    def detect(self, pixels: np.ndarray, pixel_size_um: float | None) -> pd.DataFrame:
        labels, count = ndimage.label(pixels[..., 0] > 128)
        rows = []
        for piece in ndimage.find_objects(labels):
            y0, y1, x0, x1 = piece[0].start, piece[0].stop, piece[1].start, piece[1].stop
            outline = np.array([(y0, x0), (y0, x1), (y1, x1), (y1, x0)], np.float32)
            edge = y0 == 0 or x0 == 0 or y1 == pixels.shape[0] or x1 == pixels.shape[1]
            rows.append(((y0 + y1) / 2, (x0 + x1) / 2, y0, x0, y1 - y0, x1 - x0, 0.9, 1.0, edge, outline))
        assert len(rows) == count
        return pd.DataFrame(rows, columns=list(DETECTION_COLUMNS))


def named(detector: Any) -> MadeDetector:
    return MadeDetector(DetectorSpec("blobs", "", object), "test", "1", {}, detector, {})


def blobs_field(seed: int, count: int = 150, side: int = 1900) -> np.ndarray:
    random = np.random.default_rng(seed)
    pixels = np.zeros((side, side + 111, 3), np.uint8)
    for _ in range(count):
        y, x = random.integers(0, side), random.integers(0, side + 111)
        height, width = random.integers(5, 60, 2)
        pixels[y : y + height, x : x + width] = 255
    return pixels


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_windows_find_each_cell_once_and_where_it_is(seed: int) -> None:
    pixels = blobs_field(seed)
    whole = detect_cells(ArrayField(pixels), named(Blobs()), window_side=4096)
    watched = ArrayField(pixels)
    parts = detect_cells(watched, named(Blobs()), window_side=500)
    assert len(whole) > 50
    pd.testing.assert_frame_equal(parts.drop(columns="contour"), whole.drop(columns="contour"))
    for one, other in zip(parts["contour"], whole["contour"], strict=True):
        np.testing.assert_allclose(one, other)
    assert watched.largest < pixels.shape[0] * pixels.shape[1] / 2


def test_a_cell_seen_a_little_differently_from_two_windows_stays_one() -> None:
    pixels = np.zeros((600, 1000, 3), np.uint8)
    pixels[280:320, 478:522] = 255  # centred on the seam between two windows

    class Shaky(Blobs):
        calls = 0

        def detect(self, pixels: np.ndarray, pixel_size_um: float | None) -> pd.DataFrame:
            Shaky.calls += 1
            found = super().detect(pixels, pixel_size_um)
            # Away from the own core: the first window sees it right of the seam, the second left of it.
            found["x"] += 3 if Shaky.calls == 1 else -3
            found["score"] = 0.5 + 0.1 * Shaky.calls
            return found

    cells = detect_cells(ArrayField(pixels), named(Shaky()), window_side=600)
    assert Shaky.calls == 2
    assert len(cells) == 1
    assert cells["score"][0] == pytest.approx(0.7)


def test_a_blank_field_has_no_cells_and_says_so() -> None:
    examined = examine_field(ArrayField(np.full((300, 400, 3), 240, np.uint8)), make_detector("nuclei"))
    assert examined.cells.empty
    assert tuple(examined.cells.columns) == DETECTION_COLUMNS
    assert examined.quality.flag != "ok"


class Broken:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def detect(self, pixels: np.ndarray, pixel_size_um: float | None) -> pd.DataFrame:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


ROW = {"y": 5.0, "x": 5.0, "y0": 0, "x0": 0, "height": 10, "width": 10, "score": 1.0}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (RuntimeError("out of\nluck"), "failed: RuntimeError: out of luck"),
        ([1, 2], "returned list"),
        (pd.DataFrame([{**ROW}]).drop(columns="score"), "no column 'score'"),
        (pd.DataFrame([{**ROW, "y": float("nan")}]), "not finite"),
        (pd.DataFrame([{**ROW, "y": "here"}]), "not a number"),
        (pd.DataFrame([{**ROW, "y0": 500}]), "outside the image"),
        (pd.DataFrame([{**ROW, "height": -3}]), "outside the image"),
    ],
)
def test_a_detector_that_misbehaves_is_named_in_one_line(answer: Any, message: str) -> None:
    with pytest.raises(PluginError, match="detector 'blobs'") as caught:
        detect_cells(ArrayField(np.zeros((50, 50, 3), np.uint8)), named(Broken(answer)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_plain_detector_leaves_out_is_filled_in() -> None:
    found = pd.DataFrame([{**ROW, "y0": -4, "score": 1.5}, {**ROW, "y": 20, "x": 20, "y0": 15, "x0": 15}])
    cells = check_detections(found, 40, 40, "plain")
    assert cells["touches_border"].tolist() == [True, False]
    assert cells[["y0", "height"]].to_numpy().tolist() == [[0, 6], [15, 10]]
    assert cells["score"].tolist() == [1.0, 1.0]
    assert cells["contour"].tolist() == [None, None]


def test_cell_ids_say_where_and_stay_unique() -> None:
    found = check_detections(pd.DataFrame([ROW, {**ROW, "x": 5.4}, {**ROW, "y": 30.0, "x": 7.0}]), 40, 40, "plain")
    cells = name_cells(found, "f1", "fields/f1.png", smear_id="S", patient_id="P")
    assert cells["cell_id"].tolist() == ["f1-00005-00005", "f1-00005-00005-2", "f1-00030-00007"]
    assert set(cells["smear_id"]) == {"S"}
    assert set(cells["patient_id"]) == {"P"}
