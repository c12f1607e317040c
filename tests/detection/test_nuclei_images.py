"""The built-in detector under other light, in other frames, beside dirt, at borders, and on real marrow."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy import ndimage

from hematokit.detection.nuclei import NucleusDetector

PX = 10  # pixels per micrometre of the drawings

BACKGROUND, RED_CELL = (225, 222, 228), (205, 160, 155)
NUCLEUS, CYTOPLASM = (85, 40, 135), (205, 175, 215)


def disc(image, y, x, diameter_um, colour):
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    image[(rows + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2 <= (diameter_um * PX / 2) ** 2] = colour


def smear(height=600, width=800, red_cells=True):
    """A field of red cells on a grid, with a free place in the middle."""
    image = np.full((height, width, 3), BACKGROUND, np.uint8)
    if red_cells:
        for y in range(50, height, 90):
            for x in range(50, width, 90):
                if abs(y - height / 2) > 120 or abs(x - width / 2) > 150:
                    disc(image, y, x, 7.2, RED_CELL)
                    disc(image, y, x, 2.0, (222, 200, 200))
    return image


def photograph(image, seed=0):
    """Blur a drawing as a microscope does, and add a camera's noise."""
    blurred = ndimage.gaussian_filter(image.astype(float), (1.5, 1.5, 0))
    noise = np.random.default_rng(seed).normal(0, 2, image.shape)
    return np.clip(blurred + noise, 0, 255).astype(np.uint8)


def resized(pixels, factor):
    height, width = pixels.shape[:2]
    size = (round(width * factor), round(height * factor))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def hits(cells, boxes):
    """How many boxes (y0, x0, y1, x1) hold a centre of a detection."""
    y, x = cells["y"].to_numpy(), cells["x"].to_numpy()
    return sum(bool(((y0 <= y) & (y <= y1) & (x0 <= x) & (x <= x1)).any()) for y0, x0, y1, x1 in boxes)


def tuning(files, count):
    """The first files of the part that the detector was tuned on."""
    chosen = [path for path in files if hashlib.sha256(path.name.encode()).digest()[-1] % 2 == 0]
    return chosen[:count]


def read(path):
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture(scope="module")
def detector():
    return NucleusDetector()


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))),
    st.sampled_from([None, 0.02, 0.1, 1.0, 10.0]),
)
def test_never_raises_and_keeps_to_the_image(pixels, pixel_size_um):
    height, width = pixels.shape[:2]
    for cell in NucleusDetector(min_score=0.0, min_diameter_um=0.5).detect(pixels, pixel_size_um).itertuples():
        assert cell.y0 >= 0
        assert cell.x0 >= 0
        assert cell.y0 + cell.height <= height
        assert cell.x0 + cell.width <= width


@pytest.mark.parametrize("pixel_size_um", [None, 1 / PX])
def test_lobes_of_a_segmented_nucleus_are_one_cell(detector, pixel_size_um):
    image = smear()
    disc(image, 300, 400, 13, CYTOPLASM)
    for y, x in ((270, 370), (268, 412), (305, 436), (335, 405)):
        disc(image, y, x, 3.8, NUCLEUS)
    cells = detector.detect(photograph(image), pixel_size_um)
    assert len(cells) == 1
    assert abs(cells["y"][0] - 300) < 12
    assert abs(cells["x"][0] - 402) < 12


def test_platelets_and_dirt_are_no_cells(detector):
    image = smear()
    for y, x in ((280, 330), (300, 400), (310, 460)):
        disc(image, y, x, 2.2, (150, 110, 175))
    disc(image, 340, 360, 8, (60, 58, 60))
    assert len(detector.detect(photograph(image), None)) == 0


def test_cells_cut_by_the_border_say_so(detector):
    image = smear()
    disc(image, 300, 400, 8, NUCLEUS)
    for y, x in ((10, 400), (300, 5), (590, 400), (300, 795)):
        disc(image, y, x, 11, BACKGROUND)
        disc(image, y, x, 8, NUCLEUS)
    cells = detector.detect(photograph(image), None)
    inside = (cells["y"].sub(300).abs() < 10) & (cells["x"].sub(400).abs() < 10)
    assert len(cells) == 5
    assert cells["touches_border"].tolist() == (~inside).tolist()


@pytest.mark.parametrize("colour", [0, 255, (209, 196, 212)])
def test_a_letterbox_changes_nothing(detector, colour):
    image = smear()
    disc(image, 300, 400, 8, NUCLEUS)
    pixels = photograph(image)
    boxed = np.full((800, 800, 3), colour, np.uint8)
    boxed[100:700] = pixels
    plain, framed = detector.detect(pixels, None), detector.detect(boxed, None)
    assert framed["y"].tolist() == (plain["y"] + 100).tolist()
    assert framed["x"].tolist() == plain["x"].tolist()
    np.testing.assert_allclose(framed["contour"][0], plain["contour"][0] + np.float32([100, 0]), atol=1e-3)


@pytest.mark.parametrize("gain", [(1.0, 0.8, 0.9), (0.75, 0.85, 1.0), (0.5, 0.5, 0.5)], ids=["pink", "blue", "dim"])
def test_a_cast_changes_nothing(detector, gain):
    image = smear()
    disc(image, 300, 400, 8, NUCLEUS)
    pixels = photograph(image)
    cells = detector.detect((pixels * np.array(gain)).astype(np.uint8), None)
    assert len(cells) == 1
    assert hits(cells, [(285, 385, 315, 415)]) == 1


def test_uneven_light_changes_nothing(detector):
    image = smear()
    disc(image, 300, 400, 8, NUCLEUS)
    y, x = np.mgrid[-1:1:600j, -1:1:800j]
    light = 1 - 0.35 * (x * x + y * y) / 2
    cells = detector.detect((photograph(image) * light[..., None]).astype(np.uint8), None)
    assert len(cells) == 1


def test_real_blood_fields_at_half_and_double_size(detector, real_data):
    plain = scaled = 0
    for path in tuning(sorted((real_data / "bccd" / "JPEGImages").glob("*.jpg")), 8):
        pixels = read(path)
        plain += 2 * len(detector.detect(pixels, None))
        scaled += sum(len(detector.detect(resized(pixels, factor), None)) for factor in (0.5, 2.0))
    assert abs(plain - scaled) <= 2


def test_real_marrow_fields(detector, real_data):
    wanted = found = 0
    for path in tuning(sorted((real_data / "segpc_marrow_fields" / "images").glob("*.jpg")), 10):
        mask = read(real_data / "segpc_marrow_fields" / "masks" / path.name)[..., 0] >= 128
        parts, _ = ndimage.label(ndimage.binary_opening(mask, iterations=2))
        cells = detector.detect(read(path), None)
        rows, columns = cells["y"].to_numpy().astype(int), cells["x"].to_numpy().astype(int)
        hit = set(parts[np.minimum(rows, 511), np.minimum(columns, 511)].tolist()) - {0}
        sizes = np.bincount(parts.ravel())[1:]
        large = {number for number, size in enumerate(sizes, 1) if size >= 100}
        wanted, found = wanted + len(large), found + len(large & hit)
    assert found >= 0.93 * wanted


def test_real_crops_have_a_cell_in_the_middle(detector, real_data):
    files = [
        path
        for code in ("BLA", "MON", "NGS", "PMO")
        for path in tuning(sorted((real_data / "matek_bm8" / code).glob("*")), 6)
    ]
    found = 0
    for path in files:
        cells = detector.detect(read(path), None)
        found += bool(((cells["y"] - 125).abs().le(50) & (cells["x"] - 125).abs().le(50)).any())
    assert found >= 0.85 * len(files)
