"""Quality of a field: blur, blank fields, pale stain, and that windows add up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from hematokit.detection.quality import FieldQuality, assess_field, measure_window
from hematokit.imaging.reading import read_rgb
from hematokit.synthetic import PIXEL_SIZE_UM, synthesize_field

SOME = pd.DataFrame({"y": [1.0]})
NONE = pd.DataFrame({"y": []})


def assess(pixels: np.ndarray, pixel_size_um: float | None = None, cells: pd.DataFrame = SOME) -> FieldQuality:
    return assess_field([measure_window(pixels, pixel_size_um)], cells)


def blurred(pixels: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(pixels.astype(np.float32), (sigma, sigma, 0)).astype(np.uint8)


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    return synthesize_field(900, 1100, cells=30, seed=2).pixels


@pytest.mark.parametrize("pixel_size_um", [PIXEL_SIZE_UM, None])
def test_blur_lowers_the_focus_step_by_step_until_the_flag_turns(
    drawn: np.ndarray, pixel_size_um: float | None
) -> None:
    found = [assess(blurred(drawn, sigma), pixel_size_um) for sigma in (0, 4, 8, 16, 30)]
    focus = [one.focus for one in found]
    assert focus == sorted(focus, reverse=True)
    assert found[0].flag == "ok"
    assert found[-1].flag == "out-of-focus"
    assert any("um wide" in reason or "no sharp edge" in reason for reason in found[-1].reasons)


def test_focus_of_real_fields_falls_with_blur(real_data: Path) -> None:
    images = sorted((real_data / "bccd" / "JPEGImages").glob("*.jpg"))[:6]
    for path in images:
        pixels = read_rgb(path)
        assert assess(blurred(pixels, 12)).focus < assess(pixels).focus


def test_most_real_fields_are_fit_for_reading(real_data: Path) -> None:
    images = sorted((real_data / "bccd" / "JPEGImages").glob("*.jpg"))[:20]
    images += sorted((real_data / "segpc_marrow_fields" / "images").glob("*"))[:20]
    flags = [assess(read_rgb(path)).flag for path in images]
    assert flags.count("ok") >= 0.85 * len(flags)


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_an_empty_image_is_blank_and_says_so(grey: int) -> None:
    found = assess(np.full((300, 400, 3), grey, np.uint8), cells=NONE)
    assert found.flag == "blank"
    assert found.reasons
    assert all("\n" not in reason for reason in found.reasons)


def test_a_field_without_cells_is_flagged(drawn: np.ndarray) -> None:
    assert assess(drawn, PIXEL_SIZE_UM, NONE).flag == "no-cells"


def test_cells_over_one_another_are_too_thick(drawn: np.ndarray) -> None:
    shifts = np.random.default_rng(0).integers(-400, 400, (16, 2)).tolist()
    piled = np.minimum.reduce([np.roll(drawn, shift, axis=(0, 1)) for shift in shifts])
    found = assess(piled, PIXEL_SIZE_UM)
    assert found.flag == "too-thick"
    assert found.thickness > assess(drawn, PIXEL_SIZE_UM).thickness
    assert any("covered" in reason for reason in found.reasons)


def test_windows_add_up_to_the_field(drawn: np.ndarray) -> None:
    whole = assess(drawn, PIXEL_SIZE_UM)
    parts = [measure_window(part, PIXEL_SIZE_UM) for part in (drawn[:, :550], drawn[:, 550:])]
    together = assess_field(parts, SOME)
    assert together.flag == whole.flag
    assert together.focus == pytest.approx(whole.focus, abs=0.1)
    assert together.thickness == pytest.approx(whole.thickness, abs=0.1)


@pytest.mark.parametrize("shape", [(1, 1, 3), (0, 5, 3), (3, 700, 3)])
def test_odd_images_are_assessed_too(shape: tuple[int, int, int]) -> None:
    assert assess(np.full(shape, 90, np.uint8), cells=NONE).flag != "ok"
    assert set(assess(np.full(shape, 90, np.uint8), cells=NONE).to_dict()) >= {"focus", "staining", "flag", "reasons"}
