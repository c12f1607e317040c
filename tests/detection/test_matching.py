"""Each detection and each cell counts once."""

from __future__ import annotations

import math

import pandas as pd

from hematokit.detection.windows import match_cells


def points(*places: tuple[float, float]) -> pd.DataFrame:
    return pd.DataFrame(list(places), columns=["y", "x"])


def boxes(*places: tuple[int, int, int, int]) -> pd.DataFrame:
    return pd.DataFrame(list(places), columns=["y0", "x0", "height", "width"])


def test_two_centres_in_one_box_are_one_hit_and_one_false_alarm() -> None:
    matches = match_cells(points((5, 5), (6, 6)), boxes((0, 0, 10, 10)))
    assert (matches.recall, matches.precision) == (1.0, 0.5)


def test_overlapping_boxes_are_shared_out_so_that_most_match() -> None:
    # The first centre is in both boxes, the second in the first box only.
    matches = match_cells(points((8, 8), (2, 2)), boxes((0, 0, 10, 10), (7, 7, 10, 10)))
    assert sorted(zip(matches.detected.tolist(), matches.annotated.tolist(), strict=True)) == [(0, 1), (1, 0)]


def test_boxes_are_half_open() -> None:
    assert match_cells(points((10, 5)), boxes((0, 0, 10, 10))).recall == 0
    assert match_cells(points((0, 0)), boxes((0, 0, 10, 10))).recall == 1


def test_nothing_to_find_or_nothing_found_is_no_division_by_zero() -> None:
    assert match_cells(points(), boxes((0, 0, 10, 10))).recall == 0
    assert math.isnan(match_cells(points(), boxes((0, 0, 10, 10))).precision)
    assert math.isnan(match_cells(points((1, 1)), boxes()).recall)
    assert match_cells(points((1, 1)), boxes()).precision == 0
