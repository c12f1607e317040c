"""Fingerprints: what shows the same pixels is found, with the right translation; what does not is not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from hematokit.imaging import fingerprint as fp
from hematokit.imaging.fingerprint import TRANSFORMS, compare_patches, contrast, overlap_views, turn

SIZE = 250


def make_field(seed: int, side: int = 620) -> np.ndarray:
    """Blobs on a pale ground with fine texture: a field in which every place is unlike the others."""
    rng = np.random.default_rng(seed)
    coarse = gaussian_filter(rng.normal(size=(side, side)), 12)
    fine = gaussian_filter(rng.normal(size=(side, side)), 2.5)
    dark = 1 / (1 + np.exp(-(coarse / coarse.std() - 0.5) * 6))
    grey = 225 - 120 * dark + 14 * dark * fine / fine.std()
    rgb = np.stack([grey, grey - 35 * dark, grey + 10], axis=2) + rng.normal(scale=1.0, size=(side, side, 3))
    return np.clip(rgb, 0, 255).astype(np.uint8)


def as_jpeg(patch: np.ndarray, quality: int = 95) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(patch)).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def crop(field: np.ndarray, y: int, x: int) -> np.ndarray:
    return field[y : y + SIZE, x : x + SIZE]


def links(patches: list[np.ndarray]) -> dict[tuple[int, int], tuple[int, int, str]]:
    """All confirmed pairs (later, earlier) with translation and transform."""
    prints = fp.fingerprint_patches(np.stack(patches))
    views = [contrast(patch) for patch in patches]
    found = {}
    for a, b, dy, dx, _ in zip(*fp.match_translations(prints), strict=True):
        result = compare_patches(views[a], views[b], int(dy), int(dx))
        if result.same:
            found[int(a), int(b)] = (result.dy, result.dx, TRANSFORMS[result.transform])
    for a, b in fp.match_shapes(prints.shapes):
        result = compare_patches(views[a], views[b], any_transform=True)
        if result.same:
            found.setdefault((int(a), int(b)), (result.dy, result.dx, TRANSFORMS[result.transform]))
    return found


FIELDS = [make_field(seed) for seed in range(3)]


@settings(max_examples=20, deadline=None)
@given(
    field=st.sampled_from(range(len(FIELDS))),
    start=st.tuples(st.integers(120, 250), st.integers(120, 250)),
    shift=st.tuples(st.integers(-110, 110), st.integers(-110, 110)).filter(
        lambda s: (1 - abs(s[0]) / SIZE) * (1 - abs(s[1]) / SIZE) >= 0.4
    ),
    quality=st.integers(85, 100),
)
def test_overlapping_crops_are_found_with_their_translation(field, start, shift, quality):
    y, x = start
    one = as_jpeg(crop(FIELDS[field], y, x), quality)
    two = as_jpeg(crop(FIELDS[field], y + shift[0], x + shift[1]))
    other = crop(FIELDS[(field + 1) % len(FIELDS)], y, x)
    # What is at p in `one` is at p - shift in `two`.
    assert {pair: moved[:2] for pair, moved in links([one, other, two]).items()} == {(2, 0): (-shift[0], -shift[1])}


def test_overlaps_in_real_fields_are_found_and_crops_of_other_fields_are_not(real_data: Path):
    """Red cells with next to nothing between them: the hardest fields at hand, where a few overlaps escape."""
    fields = [
        np.asarray(Image.open(name).convert("RGB")) for name in sorted((real_data / "chula_rbc_1280x960").rglob("*.*"))
    ]
    random = np.random.default_rng(0)
    found, wanted = 0, 40
    for _ in range(wanted):
        field, stranger = (fields[index] for index in random.permutation(len(fields))[:2])
        y, x = int(random.integers(110, 500)), int(random.integers(110, 800))
        dy, dx = 110, 110
        while (1 - abs(dy) / SIZE) * (1 - abs(dx) / SIZE) < 0.4:
            dy, dx = (int(shift) for shift in random.integers(-110, 111, 2))
        patches = [crop(field, y, x), crop(stranger, y, x), as_jpeg(crop(field, y + dy, x + dx))]
        moved = {pair: result[:2] for pair, result in links(patches).items()}
        assert moved in ({}, {(2, 0): (-dy, -dx)}), "a link to the stranger, or a wrong translation"
        found += bool(moved)
    print(f"{found} of {wanted}")
    assert found >= 0.9 * wanted


@pytest.mark.parametrize("transform", range(8))
def test_copies_mirrored_or_turned_are_found_and_named(transform):
    patch = crop(FIELDS[0], 30, 40)
    copy = as_jpeg(turn(patch, transform), 85)
    ((pair, (dy, dx, name)),) = links([copy, patch]).items()
    assert pair == (1, 0)
    assert (dy, dx) == (0, 0)
    # `second` (the copy, at index 0) is turned back: quarter turns undo each other, the rest undo themselves.
    undo = {"turn90": "turn270", "turn270": "turn90"}
    assert name == undo.get(TRANSFORMS[transform], TRANSFORMS[transform])


def test_copies_resized_brightened_and_encoded_again_are_found():
    patch = crop(FIELDS[1], 10, 20)
    small = Image.fromarray(patch).resize((125, 125), Image.Resampling.BICUBIC)
    copies = [
        np.asarray(small.resize((SIZE, SIZE), Image.Resampling.BICUBIC)),
        np.clip(patch * 0.85 + 20, 0, 255).astype(np.uint8),
        (255 * (patch / 255) ** 1.2).astype(np.uint8),
        as_jpeg(patch, 40),
        np.roll(patch, (3, -4), axis=(0, 1)),
    ]
    found = links([patch, *copies])
    assert {(index, 0) for index in range(1, 6)} <= set(found)
    assert found[5, 0][:2] == (3, -4)


def test_blank_patches_never_match():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE]
    vignette = 225 - 2e-4 * ((y - 125) ** 2 + (x - 125) ** 2)
    blank = [np.full((SIZE, SIZE, 3), level, np.uint8) for level in (0, 200, 230, 255)]
    noisy = [rng.normal(220, 3, (SIZE, SIZE, 3)) for _ in range(10)]
    uneven = [vignette[..., None] + rng.normal(0, 1, (SIZE, SIZE, 3)) for _ in range(10)]
    barred = [
        np.where((y < 40)[..., None] | (y > 205)[..., None], 0, rng.normal(220, 2, (SIZE, SIZE, 3))) for _ in range(10)
    ]
    patches = [np.clip(patch, 0, 255).astype(np.uint8) for patch in (*blank, *noisy, *uneven, *barred)]
    assert links([*patches, *(as_jpeg(patch, 60) for patch in noisy_as_uint8(noisy))]) == {}


def noisy_as_uint8(patches: list[np.ndarray]) -> list[np.ndarray]:
    # New noise under JPEG's block pattern: the pattern alone is no agreement.
    return [np.clip(patch[::-1, ::-1], 0, 255).astype(np.uint8) for patch in patches]


def test_a_letterboxed_overlap_is_still_found():
    one, two = (crop(FIELDS[2], 100, x).copy() for x in (100, 190))
    for patch in (one, two):
        patch[:30] = patch[-30:] = 0
    assert links([one, two])[1, 0][:2] == (0, -90)


@pytest.mark.parametrize("side", [16, 32, 33, 64, 300, 600])
def test_any_patch_size(side):
    field = make_field(7, side + 100)
    one, two = field[20 : 20 + side, 30 : 30 + side], field[20 : 20 + side, 50 : 50 + side]
    prints = fp.fingerprint_patches(np.stack([one, two]))
    assert len(prints) == 2
    if side >= 250:
        moved = fp.match_translations(prints)
        result = compare_patches(contrast(two), contrast(one), int(moved.dy[0]), int(moved.dx[0]))
        # `two` starts 20 px further right, so that what is at p in `one` is at p - 20 in `two`.
        assert (result.dy, result.dx, result.same) == (0, -20, True)


def test_only_new_patches_are_matched_from_start():
    patches = [crop(FIELDS[0], 100, x) for x in (100, 150, 200)]
    prints = fp.fingerprint_patches(np.stack(patches))
    assert set(zip(*fp.match_translations(prints)[:2], strict=True)) == {(1, 0), (2, 0), (2, 1)}
    assert set(zip(*fp.match_translations(prints, 2)[:2], strict=True)) == {(2, 0), (2, 1)}
    assert len(fp.match_translations(prints, 3).first) == 0


def test_very_many_copies_stay_connected_through_each_other():
    patch = crop(FIELDS[0], 100, 100)
    one = fp.fingerprint_patches(patch[None])
    many = fp.PatchFingerprints(*(np.repeat(part, 300, axis=0) for part in (one.hashes, one.positions, one.shapes)))
    moved = fp.match_translations(many, neighbours=4)
    assert len(moved.first) <= 4 * 300
    assert set(range(1, 300)) == set(moved.first.tolist())


def test_chunks_do_not_change_the_result():
    patches = [crop(FIELDS[k % 3], 20 * k, 25 * k) for k in range(12)]
    prints = fp.fingerprint_patches(np.stack(patches))
    whole, parts = fp.match_translations(prints), fp.match_translations(prints, chunk=5)
    assert len(whole.first) > 0
    for one, two in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, two)


def test_fingerprints_do_not_change_between_versions():
    """Fingerprints lie on disk; if this fails, raise the version in hematokit.store.duplicates."""
    raw = np.random.PCG64(1).random_raw(100 * 100 * 3).reshape(100, 100, 3) % 256
    prints = fp.fingerprint_patches(raw.astype(np.uint8)[None])
    assert prints.positions[0, 0].tolist() == [55, 58]
    assert prints.hashes[0, 0].tolist() == [438272060, 610781439]


@pytest.mark.parametrize("bad", [np.zeros((2, 8, 8), np.uint8), np.zeros((2, 8, 8, 3), np.float32)])
def test_wrong_arrays_are_refused(bad):
    with pytest.raises(ValueError, match="uint8"):
        fp.fingerprint_patches(bad)


def test_no_patches():
    prints = fp.fingerprint_patches(np.zeros((0, SIZE, SIZE, 3), np.uint8))
    assert len(fp.match_translations(prints).first) == 0
    assert len(fp.match_shapes(prints.shapes)) == 0


def test_overlap_views_beyond_the_patch_are_empty():
    image = np.zeros((10, 10), np.float32)
    for shift in (10, 12, -10, -25):
        assert all(view.size == 0 for view in overlap_views(image, image, shift, 0))
