"""The saliency layer of a field against the rule written down in plain numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hematokit.explanation import field_map
from hematokit.explanation.field_map import blend_weights, cell_boxes, downsample_layer, read_layer, write_layer


def expected_layer(height: int, width: int, side: int, centres: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """The whole field at once, padded so that no patch leaves it."""
    margin = 2 * side
    total = np.zeros((height + 2 * margin, width + 2 * margin))
    weight = np.zeros_like(total)
    for box, found in zip(cell_boxes(centres, side), maps, strict=True):
        place = (slice(box.y0 + margin, box.y1 + margin), slice(box.x0 + margin, box.x1 + margin))
        total[place] += blend_weights(side) * (found / np.percentile(np.abs(found), 99))
        weight[place] += blend_weights(side)
    layer = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
    return layer[margin : margin + height, margin : margin + width]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(20, 90), st.integers(20, 90), st.integers(4, 30), st.integers(1, 8), st.integers(0, 10_000))
def test_maps_are_blended_by_the_rule_whatever_the_tiles(
    tmp_path: Path, height: int, width: int, side: int, count: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    centres = random.uniform((0, 0), (height, width), (count, 2))
    maps = random.normal(size=(count, side, side)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patching:
        # Tiles smaller than the field, so that cells lie across their borders.
        patching.setattr(field_map, "_WINDOW", 17)
        layer = write_layer(tmp_path / "layer", "a", height, width, cell_boxes(centres, side), lambda n: maps[n])
    found = np.asarray(read_layer(layer)[:])
    np.testing.assert_allclose(found, expected_layer(height, width, side, centres, maps), rtol=1e-3, atol=1e-4)


def test_a_pixel_of_one_cell_has_its_value_and_one_of_none_is_zero(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(1, 2, (20, 20)).astype(np.float32)
    layer = write_layer(
        tmp_path / "layer", "a", 100, 120, cell_boxes([(50, 60)], 20), lambda _: values, pixel_size_um=0.25
    )
    found = np.asarray(read_layer(layer)[:])
    np.testing.assert_allclose(found[40:60, 50:70], values / np.percentile(values, 99), rtol=1e-5)
    found[40:60, 50:70] = 0
    assert not found.any()
    image = zarr.open_group(layer, mode="r").attrs["ome"]["multiscales"][0]
    assert image["datasets"][0]["coordinateTransformations"][0]["scale"] == [0.25, 0.25]
    assert [axis["unit"] for axis in image["axes"]] == ["micrometer", "micrometer"]


def test_a_map_of_nothing_blends_to_nothing(tmp_path: Path) -> None:
    layer = write_layer(
        tmp_path / "layer", "a", 30, 30, cell_boxes([(15, 15)], 10), lambda _: np.zeros((10, 10), np.float32)
    )
    assert not np.asarray(read_layer(layer)[:]).any()


@pytest.mark.parametrize("shape", [(7, 9), (31, 50), (64, 90)])
def test_a_smaller_layer_holds_means(tmp_path: Path, shape: tuple[int, int]) -> None:
    maps = np.random.default_rng(0).normal(size=(40, 40)).astype(np.float32)
    layer = write_layer(tmp_path / "layer", "a", 64, 90, cell_boxes([(30, 40)], 40), lambda _: maps)
    whole = np.asarray(read_layer(layer)[:])
    small = downsample_layer(layer, *shape)
    rows = np.linspace(0, 64, shape[0] + 1).round().astype(int)
    columns = np.linspace(0, 90, shape[1] + 1).round().astype(int)
    for y, x in np.random.default_rng(1).integers(0, shape, (20, 2)):
        expected = whole[rows[y] : rows[y + 1], columns[x] : columns[x + 1]].mean()
        assert small[y, x] == pytest.approx(expected, abs=1e-5)
