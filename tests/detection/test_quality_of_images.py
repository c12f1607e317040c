"""Quality of a field, on real fields and against noise, magnification and pale stain."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage

from hematokit.detection.nuclei import NucleusDetector
from hematokit.detection.quality import assess_field, measure_window
from hematokit.synthetic import synthesize_field

NONE = pd.DataFrame({"y": []})
SOME = pd.DataFrame({"y": [1.0]})


def read(path):
    return np.asarray(Image.open(path).convert("RGB"))


def tuning(files, count):
    return [path for path in files if hashlib.sha256(path.name.encode()).digest()[-1] % 2 == 0][:count]


def blurred(pixels, sigma):
    return ndimage.gaussian_filter(pixels, (sigma, sigma, 0))


@pytest.mark.parametrize(
    ("folder", "count"),
    [("bccd/JPEGImages", 10), ("segpc_marrow_fields/images", 10), ("txl_pbc360/images", 8), ("chula_rbc12/images", 8)],
)
def test_real_fields_are_in_focus(real_data, folder, count):
    files = tuning(sorted((real_data / folder).glob("*")), count)
    assert files
    for path in files:
        pixels = read(path)
        found = assess_field([measure_window(pixels, None)], NucleusDetector().detect(pixels, None))
        assert found.flag in ("ok", "no-cells"), (path.name, found)


@pytest.mark.parametrize(
    ("name", "pixel_size_um"),
    [("bccd/JPEGImages/BloodImage_00001.jpg", 0.072), ("segpc_marrow_fields/images/104.jpg", 0.18)],
)
def test_blur_lowers_focus_and_flips_the_flag(real_data, name, pixel_size_um):
    pixels = read(real_data / name)
    fields = [
        assess_field([measure_window(blurred(pixels, um / pixel_size_um), pixel_size_um)], SOME)
        for um in (0, 0.15, 0.3, 0.6, 1.2)
    ]
    focus = [field.focus for field in fields]
    assert focus == sorted(focus, reverse=True)
    assert focus[-1] < 0.6 * focus[0]
    assert fields[0].flag == "ok"
    assert fields[-1].flag == "out-of-focus"
    assert "um" in fields[-1].reasons[0]


def test_noise_is_not_taken_for_focus():
    field = synthesize_field(700, 900, cells=25, seed=1)
    soft = blurred(field.pixels, 14)
    noisy = np.clip(soft + np.random.default_rng(0).normal(0, 6, soft.shape), 0, 255).astype(np.uint8)
    assert assess_field([measure_window(field.pixels, field.pixel_size_um)], SOME).flag == "ok"
    assert assess_field([measure_window(noisy, field.pixel_size_um)], SOME).flag == "out-of-focus"


def test_focus_does_not_depend_on_the_magnification():
    field = synthesize_field(1000, 1200, cells=40, seed=1)
    half = np.asarray(Image.fromarray(field.pixels).resize((600, 500), Image.Resampling.LANCZOS))
    full = assess_field([measure_window(field.pixels, field.pixel_size_um)], SOME)
    less = assess_field([measure_window(half, 2 * field.pixel_size_um)], SOME)
    assert less.focus == pytest.approx(full.focus, rel=0.3)
    assert less.thickness == pytest.approx(full.thickness, abs=0.05)
    assert less.staining == pytest.approx(full.staining, abs=0.1)


def test_field_of_red_cells_has_no_cells(real_data):
    pixels = read(tuning(sorted((real_data / "chula_rbc12" / "images").glob("*")), 1)[0])
    found = assess_field([measure_window(pixels, None)], NONE)
    assert found.flag == "no-cells"
    assert found.reasons == ("no nucleated cell was detected",)


def test_field_without_background_is_too_thick():
    field = synthesize_field(700, 900, cells=30, seed=1)
    # Layers of red cells over all of it.
    thick = (field.pixels * np.array([0.8, 0.45, 0.4])).astype(np.uint8)
    found = assess_field([measure_window(thick, field.pixel_size_um)], SOME)
    assert found.thickness == 1
    assert found.flag == "too-thick"
    assert assess_field([measure_window(field.pixels, field.pixel_size_um)], SOME).flag == "ok"


def test_pale_stain_lowers_staining():
    field = synthesize_field(700, 900, cells=30, seed=1)
    scores = []
    for strength in (1.0, 0.5, 0.25):
        faded = (255 * (field.pixels / 255.0) ** strength).astype(np.uint8)
        scores.append(assess_field([measure_window(faded, field.pixel_size_um)], SOME).staining)
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] < 0.5 * scores[0]


def test_no_windows_is_blank():
    assert assess_field([], NONE).flag == "blank"


def test_dictionary_is_json():
    found = assess_field([measure_window(np.zeros((30, 30, 3), np.uint8), None)], NONE)
    again = json.loads(json.dumps(found.to_dict()))
    assert set(again) == {"focus", "staining", "thickness", "flag", "reasons"}
    assert again["flag"] == "blank"
