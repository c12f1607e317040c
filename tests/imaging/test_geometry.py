"""Geometry against the plainest statement of each rule: numpy.pad, a counted canvas, the shoelace by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hematokit.imaging.geometry import (
    Box,
    box_ring,
    contour_area,
    cut_patch,
    pad_to_square,
    patch_box,
    to_geojson_ring,
    to_micrometres,
    to_napari,
    whole_image_box,
    windows,
)

sides = st.integers(1, 40)
coordinates = st.floats(-1000, 1000, allow_nan=False)


def field(height: int, width: int) -> np.ndarray:
    """A field on which every pixel is told from its neighbours."""
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)


@given(sides, sides, st.integers(-60, 60), st.integers(-60, 60), sides, sides)
def test_a_patch_is_what_numpy_cuts_from_the_field_padded_by_reflection(height, width, y0, x0, tall, wide):
    image = field(height, width)
    reads: list[Box] = []

    def read(box: Box) -> np.ndarray:
        assert box.inside(height, width)
        reads.append(box)
        return image[box.slices]

    patch = cut_patch(read, height, width, Box(y0, x0, tall, wide))
    margin = 120
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(patch, padded[margin + y0 :, margin + x0 :][:tall, :wide])
    assert len(reads) == 1
    assert patch.flags.c_contiguous


@given(coordinates, coordinates, st.integers(1, 300))
def test_a_patch_lies_around_its_centre(y, x, size):
    box = patch_box(y, x, size)
    assert (box.height, box.width) == (size, size)
    assert abs(box.centre[0] - y) <= 0.5
    assert abs(box.centre[1] - x) <= 0.5


@given(st.integers(-500, 500), st.integers(-500, 500), st.integers(1, 300))
def test_the_patch_around_the_centre_of_a_square_box_is_that_box(y0, x0, size):
    box = Box(y0, x0, size, size)
    assert patch_box(*box.centre, size) == box


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 60), st.integers(0, 20))
def test_window_cores_cover_every_pixel_once(height, width, side, margin):
    count = np.zeros((height, width), int)
    for window in windows(height, width, side, margin):
        count[window.core.slices] += 1
        assert max(window.core.height, window.core.width) <= side
        assert window.outer.inside(height, width)
        # The margin is all there but where the field ends.
        assert window.outer.y0 == max(0, window.core.y0 - margin)
        assert window.outer.x0 == max(0, window.core.x0 - margin)
        assert window.outer.y1 == min(height, window.core.y1 + margin)
        assert window.outer.x1 == min(width, window.core.x1 + margin)
    assert (count == 1).all()


@given(st.integers(1, 2000), st.integers(1, 500))
def test_windows_are_of_about_equal_size(length, side):
    heights = [window.core.height for window in windows(length, 1, side, 0)]
    assert max(heights) - min(heights) <= 1


contours = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=30)


@given(contours)
def test_a_ring_is_closed_counterclockwise_and_has_x_first(points):
    contour = np.array(points)
    ring = np.array(to_geojson_ring(contour))
    np.testing.assert_array_equal(ring[0], ring[-1])
    assert len(ring) == len(contour) + 1
    assert sorted(map(tuple, ring[:-1])) == sorted(map(tuple, np.round(contour[:, ::-1], 2)))
    x, y = ring[:, 0], ring[:, 1]
    area = float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2
    # Rounding to hundredths may turn what is as good as flat, and no more than that.
    assert area >= -0.01 * np.hypot(np.diff(x), np.diff(y)).sum()
    assert abs(area) == pytest.approx(contour_area(contour), abs=0.02 * (np.hypot(np.diff(x), np.diff(y)).sum() + 1))


@given(contours)
def test_the_ring_of_a_contour_the_other_way_round_covers_the_same(points):
    contour = np.array(points)
    assume(contour_area(contour) > 1)
    forwards, backwards = to_geojson_ring(contour), to_geojson_ring(contour[::-1])
    assert sorted(map(tuple, forwards[:-1])) == sorted(map(tuple, backwards[:-1]))
    assert contour_area(forwards[:-1]) == contour_area(backwards[:-1])


@pytest.mark.parametrize("contour", [np.zeros((2, 2)), np.zeros((0, 2)), np.zeros((4, 3)), np.zeros(6)])
def test_what_is_no_contour_has_no_ring(contour):
    with pytest.raises(ValueError, match="three or more points"):
        to_geojson_ring(contour)


@given(st.lists(st.tuples(coordinates, coordinates), min_size=1))
def test_napari_counts_from_pixel_centres(points):
    there = to_napari(points)
    np.testing.assert_allclose(there + 0.5, points, atol=1e-9)


def test_the_centre_of_the_first_pixel_is_naparis_origin():
    assert to_napari(Box(0, 0, 1, 1).centre).tolist() == [0.0, 0.0]


@given(st.integers(-50, 50), st.integers(-50, 50), sides, sides)
def test_the_ring_of_a_box_has_its_area_and_corners(y0, x0, height, width):
    box = Box(y0, x0, height, width)
    ring = box_ring(box)
    assert contour_area(ring) == height * width
    assert ring.min(axis=0).tolist() == [box.y0, box.x0]
    assert ring.max(axis=0).tolist() == [box.y1, box.x1]


@given(st.integers(-60, 60), st.integers(-60, 60), sides, sides, sides, sides)
def test_clipping_keeps_the_pixels_inside_the_field(y0, x0, tall, wide, height, width):
    box = Box(y0, x0, tall, wide)
    inside = np.zeros((300, 300), bool)
    inside[100 : 100 + height, 100 : 100 + width] = True
    covered = np.zeros_like(inside)
    covered[100 + y0 : 100 + box.y1, 100 + x0 : 100 + box.x1] = True
    clipped = box.clipped(height, width)
    both = inside & covered
    if clipped is None:
        assert not both.any()
    else:
        assert clipped.inside(height, width)
        assert clipped.height * clipped.width == both.sum()
        assert both[100 + clipped.y0, 100 + clipped.x0]
    assert box.inside(height, width) == (clipped == box)


def test_a_box_without_pixels_is_refused():
    with pytest.raises(ValueError, match="at least 1 pixel"):
        Box(0, 0, 0, 5)


@given(sides, sides)
def test_padding_to_a_square_keeps_the_image_in_the_middle(height, width):
    image = field(height, width)
    size = max(height, width) + 1
    # numpy reflects a single row onto itself; everything else is told by cut_patch.
    padded = pad_to_square(image, size)
    top, left = (size - height) // 2, (size - width) // 2
    expected = cut_patch(lambda box: image[box.slices], height, width, Box(-top, -left, size, size))
    np.testing.assert_array_equal(padded, expected)


def test_small_conversions():
    assert whole_image_box(3, 4) == Box(0, 0, 3, 4)
    assert to_micrometres(250, 0.1) == pytest.approx(25)
