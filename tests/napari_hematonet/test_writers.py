"""Saving the layer of cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cellkit import made_up_cells
from hematokit.annotations.writing import read_parquet
from hematokit.review.session import Review
from hematokit.taxonomy import MATEK_21
from napari_hematonet.cells_layer import add_cells_layer


@pytest.fixture
def model() -> Any:
    from napari.components import ViewerModel

    return ViewerModel()


def test_a_hidden_layer_that_is_saved_is_said(
    qapp: Any, model: Any, tmp_path: Path, told: list[tuple[str, str]]
) -> None:
    layer = add_cells_layer(model, Review(made_up_cells(5), MATEK_21), name="cells of a")
    layer.save(str(tmp_path / "shown.csv"), plugin="hematokit")
    assert not told
    layer.visible = False
    layer.save(str(tmp_path / "hidden.csv"), plugin="hematokit")
    assert told == [("warning", "layer 'cells of a' is hidden; its cells were saved anyway")]
    assert (tmp_path / "hidden.csv").read_bytes() == (tmp_path / "shown.csv").read_bytes()


def test_cells_are_saved_with_their_corrections(qapp: Any, model: Any, tmp_path: Path) -> None:
    review = Review(made_up_cells(25), MATEK_21)
    layer = add_cells_layer(model, review, image=model.add_image(np.zeros((1000, 1000, 3), np.uint8), scale=(3, 3)))
    first, second = review.cells["cell_id"][:2]
    review.correct([first], "EOS")
    review.delete([second])
    for ending in (".csv", ".geojson", ".parquet"):
        written = layer.save(str(tmp_path / f"cells{ending}"), plugin="hematokit")
        assert [Path(path) for path in written] == [tmp_path / f"cells{ending}"]
    table = pd.read_csv(tmp_path / "cells.csv")
    whole = read_parquet(tmp_path / "cells.parquet")
    assert len(table) == len(whole) == 24
    for cells in (table, whole):
        row = cells[cells["cell_id"] == first].iloc[0]
        assert (row["label"], row["label_source"], row["reviewed"]) == ("EOS", "corrected", True)
    # Pixels of the field, not places in the viewer's world.
    assert np.allclose(whole[["y", "x"]], review.cells[["y", "x"]])
    features = json.loads((tmp_path / "cells.geojson").read_text())["features"]
    assert len(features) == 24
    assert {feature["properties"]["classification"]["name"] for feature in features} <= set(MATEK_21.codes)
    (written,) = model.layers.save(str(tmp_path / "by-ending.geojson"), selected=True)
    assert written.endswith("by-ending.geojson")


def test_points_of_others_are_saved_as_napari_does(
    qapp: Any, model: Any, told: list[tuple[str, str]], tmp_path: Path
) -> None:
    points = model.add_points([[1.5, 2.0], [3.0, 4.0]])
    assert points.save(str(tmp_path / "points.csv"), plugin="hematokit")
    assert pd.read_csv(tmp_path / "points.csv")[["axis-0", "axis-1"]].to_numpy().tolist() == [[1.5, 2.0], [3.0, 4.0]]
    points.save(str(tmp_path / "points.geojson"), plugin="hematokit")
    assert not (tmp_path / "points.geojson").exists()
    assert any("no cells of HematoNet" in message for _, message in told)


def test_a_place_that_cannot_be_written_is_said(
    qapp: Any, model: Any, told: list[tuple[str, str]], tmp_path: Path
) -> None:
    layer = add_cells_layer(model, Review(made_up_cells(5), MATEK_21))
    layer.save(str(tmp_path / "missing" / "cells.csv"), plugin="hematokit")
    assert [kind for kind, _ in told] == ["error"]
    assert "missing" in told[0][1]
