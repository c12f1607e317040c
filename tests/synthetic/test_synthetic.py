"""The built-in sample: what is drawn, its truth, and its files."""

from __future__ import annotations

import csv
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from hematokit.errors import HematokitError
from hematokit.store import import_crops, open_store
from hematokit.synthetic import (
    PIXEL_SIZE_UM,
    SAMPLE_COUNTS,
    Canvas,
    SyntheticCrop,
    draw_cell,
    make_cell,
    synthesize_crops,
    synthesize_field,
    write_sample,
)
from hematokit.taxonomy import MATEK_21

PER_CLASS = 10


@pytest.fixture(scope="module")
def crops() -> list[SyntheticCrop]:
    return list(synthesize_crops(PER_CLASS, seed=3, smears=8))


def test_every_class_of_the_taxonomy_is_drawn_in_its_order(crops: list[SyntheticCrop]) -> None:
    assert [crop.code for crop in crops] == [code for code in MATEK_21.codes for _ in range(PER_CLASS)]
    assert set(SAMPLE_COUNTS) == set(MATEK_21.codes)


def test_pixels_and_masks_have_the_promised_shape_and_type(crops: list[SyntheticCrop]) -> None:
    for crop in crops:
        assert crop.pixels.shape == (250, 250, 3)
        assert crop.pixels.dtype == np.uint8
        assert crop.nucleus.shape == crop.body.shape == (250, 250)
        assert crop.cells[0].code == crop.code
        assert not (crop.nucleus & ~crop.body).any()


def test_the_cell_is_in_the_middle_and_large_enough_to_see(crops: list[SyntheticCrop]) -> None:
    for crop in crops:
        rows, columns = np.nonzero(crop.body)
        assert len(rows) > 1200, crop.code
        # Smeared protoplasm is lopsided; the place that it was put at is not.
        assert abs(crop.cells[0].y - 125.5) <= 7
        assert abs(crop.cells[0].x - 125.5) <= 7
        assert abs(rows.mean() - 125) < 35
        assert abs(columns.mean() - 125) < 35


def test_nuclei_are_darker_than_the_background(crops: list[SyntheticCrop]) -> None:
    without = 0
    for crop in crops:
        green = crop.pixels[..., 1].astype(float)
        if not crop.nucleus.any():
            without += 1  # stain precipitate and smeared protoplasm
            assert crop.code == "ART"
            continue
        assert np.median(green[crop.nucleus]) < 0.62 * np.percentile(green, 95), (crop.code, crop.index)
    assert without < PER_CLASS


def test_same_seed_same_pixels_and_another_seed_other_pixels() -> None:
    first, again, other = (next(synthesize_crops({"MON": 1}, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(first.pixels, again.pixels)
    assert np.array_equal(first.nucleus, again.nucleus)
    assert not np.array_equal(first.pixels, other.pixels)


def test_another_process_draws_the_same_pixels() -> None:
    code = (
        "import hashlib; from hematokit.synthetic import synthesize_crops;"
        "crops = synthesize_crops({'EOS': 1, 'OTH': 1});"
        "print(hashlib.sha256(b''.join(crop.pixels.tobytes() for crop in crops)).hexdigest())"
    )
    here = hashlib.sha256(b"".join(c.pixels.tobytes() for c in synthesize_crops({"EOS": 1, "OTH": 1}))).hexdigest()
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == here


@settings(max_examples=8, deadline=None)
@given(
    code=st.sampled_from(MATEK_21.codes),
    index=st.integers(0, 2),
    before=st.sampled_from(MATEK_21.codes),
    size=st.sampled_from([128, 250]),
)
def test_a_crop_does_not_depend_on_what_else_is_drawn(code: str, index: int, before: str, size: int) -> None:
    alone = list(synthesize_crops({code: index + 1}, seed=5, size=size))[index]
    among = synthesize_crops({before: 1, code: index + 2}, seed=5, size=size)
    same = next(crop for crop in among if crop.code == code and crop.index == index)
    assert np.array_equal(alone.pixels, same.pixels)
    assert alone.smear_id == same.smear_id


def test_crops_of_a_class_come_from_all_smears_and_two_smears_make_a_patient(crops: list[SyntheticCrop]) -> None:
    for code in MATEK_21.codes:
        assert len({crop.smear_id for crop in crops if crop.code == code}) == 8
    patients: dict[str, set[str]] = {}
    for crop in crops:
        patients.setdefault(crop.patient_id, set()).add(crop.smear_id)
    assert all(len(smears) == 2 for smears in patients.values())


def _features(crop: SyntheticCrop) -> list[float]:
    pixels = crop.pixels.astype(float) / np.maximum(np.percentile(crop.pixels.reshape(-1, 3), 95, axis=0), 1)
    away = np.hypot(*(np.mgrid[:250, :250] - 125))
    features = [float((pixels[..., 1][away < 95] < 0.35).mean())]
    for inner, outer in ((0, 25), (25, 45), (45, 65), (65, 85)):
        ring = pixels[(away >= inner) & (away < outer)]
        features += [*ring.mean(axis=0), *ring.std(axis=0)]
    return features


def test_classes_can_be_told_apart_but_not_all_of_them(crops: list[SyntheticCrop]) -> None:
    features = np.array([_features(crop) for crop in crops])
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    labels = np.repeat(np.arange(21), PER_CLASS)
    hits = 0
    for fold in range(2):
        train = np.arange(len(labels)) % 2 != fold
        centroids = np.stack([features[train & (labels == label)].mean(axis=0) for label in range(21)])
        distance = np.linalg.norm(features[~train][:, None] - centroids[None], axis=2)
        hits += int((distance.argmin(axis=1) == labels[~train]).sum())
    accuracy = hits / len(labels)
    assert 4 / 21 < accuracy < 0.9, accuracy


def test_stages_of_granulopoiesis_differ_in_the_shape_of_their_nucleus(crops: list[SyntheticCrop]) -> None:
    def solidity(crop: SyntheticCrop) -> float:
        from skimage.measure import regionprops

        return float(regionprops(crop.nucleus.astype(np.uint8))[0].solidity)

    means = [np.mean([solidity(c) for c in crops if c.code == code]) for code in ("BLA", "MMZ", "NGB", "NGS")]
    assert means[0] > means[1] > means[2] > means[3] - 0.05
    share = {
        code: np.mean([c.nucleus.sum() / c.body.sum() for c in crops if c.code == code])
        for code in ("BLA", "LYT", "PLM")
    }
    assert share["BLA"] > 0.6
    assert share["LYT"] > 0.6
    assert share["PLM"] < 0.45


def test_a_cell_looks_the_same_wherever_it_is_drawn() -> None:
    cell = make_cell("PMO", np.random.default_rng(4))
    whole, cut = Canvas(250, 250), Canvas(250, 250)
    draw_cell(whole, cell, 125, 125)
    seen = draw_cell(cut, cell, 125, 10)
    assert seen is not None
    np.testing.assert_allclose(cut.density[:, :100], whole.density[:, 115:215], atol=1e-5)
    assert draw_cell(cut, cell, 125, 2000) is None


@pytest.fixture(scope="module")
def field() -> object:
    return synthesize_field(700, 900, cells=30, seed=2)


def test_field_truth_is_consistent(field) -> None:
    assert field.pixels.shape == (700, 900, 3)
    assert field.pixels.dtype == np.uint8
    assert field.pixel_size_um == PIXEL_SIZE_UM
    assert len(field.cells) >= 20
    dark = []
    for cell in field.cells:
        assert 0 <= cell.y0 < cell.y0 + cell.height <= 700
        assert 0 <= cell.x0 < cell.x0 + cell.width <= 900
        assert cell.y0 <= cell.y <= cell.y0 + cell.height
        assert cell.x0 <= cell.x <= cell.x0 + cell.width
        assert cell.body.shape == cell.nucleus.shape == (cell.height, cell.width)
        # The box is tight.
        assert cell.body[0].any()
        assert cell.body[-1].any()
        assert cell.body[:, 0].any()
        assert cell.body[:, -1].any()
        for line in cell.contours:
            assert line[:, 0].min() >= cell.y0
            assert line[:, 0].max() <= cell.y0 + cell.height
            assert line[:, 1].min() >= cell.x0
            assert line[:, 1].max() <= cell.x0 + cell.width
        if cell.nucleus.sum() > 200:
            window = field.pixels[cell.y0 : cell.y0 + cell.height, cell.x0 : cell.x0 + cell.width, 1]
            dark.append(np.median(window[cell.nucleus]) < 0.62 * np.percentile(field.pixels[..., 1], 95))
    assert all(dark)
    assert len(dark) > 10
    table = field.table()
    assert list(table["label"]) == [cell.code for cell in field.cells]
    assert table["touches_border"].dtype == bool


def test_neighbours_touch_and_flatten_instead_of_overlapping() -> None:
    field = synthesize_field(800, 800, cells={"LYT": 40, "BLA": 40}, seed=3)
    times = np.zeros((800, 800), int)
    inked = np.zeros((800, 800), int)
    for cell in field.cells:
        box = np.s_[cell.y0 : cell.y0 + cell.height, cell.x0 : cell.x0 + cell.width]
        times[box] += cell.body
        inked[box] += ndimage.binary_dilation(cell.body, iterations=6)
    assert (times > 1).sum() < 0.05 * (times > 0).sum()
    # Grown by half a micrometre they would run into each other: they do lie close.
    assert (inked > 1).sum() > 2 * (times > 1).sum()


def test_smears_differ_in_their_background() -> None:
    lights = np.array([np.percentile(_empty(smear), 80, axis=(0, 1)) for smear in range(12)])
    assert np.ptp(lights[:, 1]) > 60
    assert np.ptp(lights[:, 0] - lights[:, 2]) > 15


def _empty(smear: int) -> np.ndarray:
    return synthesize_field(96, 96, cells=0, seed=1, smear=smear).pixels.astype(float)


def test_neighbouring_pixels_and_colours_share_noise() -> None:
    # As measured on the real crops: correlation of 0.5 between neighbours, and 0.65 to 0.8 between the colours.
    pixels = np.concatenate([_empty(smear)[:, :95] for smear in range(6)], axis=1)
    rough = pixels - ndimage.gaussian_filter(pixels, (2, 2, 0))
    flat = ndimage.gaussian_gradient_magnitude(pixels.mean(axis=2), 2)
    quiet = (flat < np.percentile(flat, 25)) & (pixels.max(axis=2) < 250)
    both = quiet[:, 1:] & quiet[:, :-1]
    assert 0.3 < np.corrcoef(rough[:, 1:, 1][both], rough[:, :-1, 1][both])[0, 1] < 0.75
    assert 0.5 < np.corrcoef(rough[quiet].T)[0, 1] < 0.9


def test_nuclei_and_backgrounds_have_the_colours_of_real_ones(real_data: Path, crops: list[SyntheticCrop]) -> None:
    classes = ("BLA", "EOS", "LYT", "MON", "NGS", "PMO")

    def colours(pixels: np.ndarray) -> list[float]:
        middle = pixels[65:185, 65:185].reshape(-1, 3)
        nucleus = middle[middle[:, 1] < 0.35 * np.percentile(pixels[..., 1], 95)]
        light = np.percentile(pixels.reshape(-1, 3), 90, axis=0)
        return [*np.median(nucleus, axis=0), *light] if len(nucleus) > 300 else [np.nan] * 6

    real = []
    for code in classes:
        for path in sorted((real_data / "matek_bm8" / code).glob("*.jpg"))[:10]:
            with Image.open(path) as image:
                real.append(colours(np.asarray(image.convert("RGB"))))
    drawn = [colours(crop.pixels) for crop in crops if crop.code in classes]
    difference = np.nanmedian(drawn, axis=0) - np.nanmedian(real, axis=0)
    assert np.abs(difference).max() < 30, difference


def test_field_counts_by_class_and_determinism() -> None:
    first = synthesize_field(600, 800, cells={"NGS": 3, "LYT": 2}, seed=1, smear=3)
    again = synthesize_field(600, 800, cells={"LYT": 2, "NGS": 3}, seed=1, smear=3)
    assert sorted(cell.code for cell in first.cells) == ["LYT", "LYT", "NGS", "NGS", "NGS"]
    assert np.array_equal(first.pixels, again.pixels)
    assert first.smear_id == "S04"
    empty = synthesize_field(200, 300, cells=0)
    assert empty.cells == ()
    assert len(empty.table()) == 0


@pytest.mark.parametrize(
    ("counts", "options", "says"),
    [
        ({"XYZ": 1}, {}, "XYZ"),
        ({"BLA": -1}, {}, "-1"),
        (1, {"size": 4}, "size 4"),
        (1, {"smears": 0}, "smears 0"),
        (1, {"seed": -1}, "seed -1"),
    ],
)
def test_impossible_requests_are_refused_in_one_line(counts, options, says) -> None:
    with pytest.raises(HematokitError, match=says) as caught:
        synthesize_crops(counts, **options)
    assert "\n" not in str(caught.value)


def test_unknown_code_has_no_recipe() -> None:
    with pytest.raises(HematokitError, match="XYZ"):
        make_cell("XYZ", np.random.default_rng(0))
    with pytest.raises(HematokitError, match="too small"):
        synthesize_field(3, 3)


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_sample_has_the_published_layout_and_imports_whole(tmp_path: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    folder = write_sample(tmp_path / "a b", counts=2, progress=lambda done, total, _: calls.append((done, total)))
    assert calls[-1] == (42, 42)
    assert (folder / "BLA" / "BLA_00001.jpg").is_file()
    with Image.open(folder / "BLA" / "BLA_00001.jpg") as image:
        assert image.size == (250, 250)
        assert image.mode == "RGB"
    with (folder / "sample.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert set(rows[0]) == {"path", "label", "smear", "patient", "pixel_size_um"}
    assert {row["path"] for row in rows} == set(_digests(folder)) - {"sample.csv"}
    assert import_crops(folder / "sample.csv", tmp_path / "store.zarr").pixel_sizes.common == PIXEL_SIZE_UM
    store = open_store(tmp_path / "store.zarr")
    assert len(store.rejects) == 0
    assert store.cells["label"].value_counts().to_dict() == dict.fromkeys(MATEK_21.codes, 2)
    assert set(store.cells["patient_id"]) == {row["patient"] for row in rows}
    assert set(store.cells["smear_id"]) == {row["smear"] for row in rows}


def test_sample_is_the_same_again_and_replaces_an_earlier_or_interrupted_one(tmp_path: Path) -> None:
    wanted = {"NGS": 2, "PLM": 1}
    first = _digests(write_sample(tmp_path / "first", counts=wanted, seed=4))
    target = tmp_path / "second"
    write_sample(target, counts={"NGS": 3, "EBO": 1}, seed=4)
    (target / "NGS" / ".writing-NGS_00009.jpg-0123456789abcdef").write_bytes(b"half")

    class Stop(Exception):
        pass

    def stop(done: int, total: int | None, message: str) -> None:
        raise Stop

    with pytest.raises(Stop):
        write_sample(target, counts=wanted, seed=4, progress=stop)
    assert not (target / "sample.csv").exists()
    assert _digests(write_sample(target, counts=wanted, seed=4)) == first


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "BLA").mkdir()
    (tmp_path / "BLA" / "BLA_00001.jpg").write_bytes(b"an image of ours?")
    with pytest.raises(HematokitError, match=r"thesis\.txt"):
        write_sample(tmp_path, counts=1)
    assert (tmp_path / "BLA" / "BLA_00001.jpg").read_bytes() == b"an image of ours?"
