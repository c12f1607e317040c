"""The cells table as Parquet, CSV and GeoJSON."""

from __future__ import annotations

import csv
import json
import uuid
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hematokit.annotations.cells import empty_detections, name_cells
from hematokit.annotations.writing import are_simple, csv_text, read_parquet, write_csv, write_geojson, write_parquet
from hematokit.errors import FieldError
from hematokit.taxonomy import MATEK_21

geometry = pytest.importorskip("shapely.geometry")

TRIANGLE = np.array([[10, 20], [30, 40], [12, 44]], np.float32)
BOW_TIE = np.array([[0, 0], [10, 10], [0, 10], [10, 0]], np.float32)


@pytest.fixture
def cells() -> pd.DataFrame:
    found = pd.DataFrame(
        {
            "y": [17.25, 5.0, 60.0],
            "x": [34.5, 5.0, 61.0],
            "y0": [10, 0, 50],
            "x0": [20, 0, 50],
            "height": [20, 10, 20],
            "width": [24, 10, 22],
            "score": [0.987654, 0.5, 1.0],
            "area": [250.0, 50.0, np.nan],
            "touches_border": [False, True, False],
            "contour": [TRIANGLE, BOW_TIE, None],
        }
    )
    table = name_cells(found, "=field", "-dir/@f.tif")
    return table.assign(
        predicted=["NGS", "LYT", ""],
        probability=np.array([0.75, 0.4, np.nan], np.float32),
        p_NGS=np.array([0.75, 0.1, np.nan], np.float32),
        p_LYT=np.array([0.25, 0.4, np.nan], np.float32),
        reviewed=False,
    )


def test_parquet_round_trip(cells: pd.DataFrame, tmp_path: Path) -> None:
    write_parquet(tmp_path / "cells.parquet", cells)
    back = read_parquet(tmp_path / "cells.parquet")
    assert list(back.columns) == list(cells.columns)
    assert back["contour"][0].dtype == np.float32
    np.testing.assert_array_equal(back["contour"][0], TRIANGLE)
    np.testing.assert_array_equal(back["contour"][1], BOW_TIE)
    assert back["contour"][2] is None
    pd.testing.assert_frame_equal(
        back.drop(columns="contour"), cells.drop(columns="contour"), check_dtype=False, check_exact=True
    )


def test_tables_without_rows(tmp_path: Path) -> None:
    none = name_cells(empty_detections(), "f", "f.tif")
    write_parquet(tmp_path / "c.parquet", none)
    assert list(read_parquet(tmp_path / "c.parquet").columns) == list(none.columns)
    write_csv(tmp_path / "c.csv", none)
    assert (tmp_path / "c.csv").read_text().strip() == ",".join(none.columns)
    write_geojson(tmp_path / "c.geojson", none, MATEK_21)
    assert json.loads((tmp_path / "c.geojson").read_text()) == {"type": "FeatureCollection", "features": []}


def test_parquet_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(FieldError, match=r"bad\.parquet is damaged"):
        read_parquet(tmp_path / "bad.parquet")
    with pytest.raises(FieldError, match="does not exist"):
        read_parquet(tmp_path / "missing.parquet")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(FieldError, match="not a cells table"):
        read_parquet(tmp_path / "other.parquet")


def test_csv_is_safe_for_spreadsheets(cells: pd.DataFrame, tmp_path: Path) -> None:
    write_csv(tmp_path / "cells.csv", cells)
    with (tmp_path / "cells.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(cells.columns)
    assert rows[0]["field_id"] == "'=field"
    assert rows[0]["source"] == "'-dir/@f.tif"
    assert rows[0]["contour"] == "POLYGON ((20 10, 40 30, 44 12, 20 10))"
    assert rows[2]["contour"] == ""
    assert rows[0]["p_NGS"] == "0.75"
    assert rows[1]["p_NGS"] == "0.1"  # not 0.10000000149
    assert rows[2]["probability"] == ""
    assert "'" not in csv_text(pd.DataFrame({"low": [-1.5], "n": [-3]}))


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1"])
def test_formulas_are_disarmed(text: str) -> None:
    assert csv_text(pd.DataFrame({"a": [text]})).splitlines()[1].strip('"').startswith("'")


def test_long_tables_have_one_header(cells: pd.DataFrame, tmp_path: Path) -> None:
    long = pd.concat([cells] * 700, ignore_index=True)
    write_csv(tmp_path / "long.csv", long)
    assert len(pd.read_csv(tmp_path / "long.csv")) == 2100
    write_geojson(tmp_path / "long.geojson", long, MATEK_21)
    assert len(json.loads((tmp_path / "long.geojson").read_text())["features"]) == 2100


def test_geojson_as_qupath_reads_it(cells: pd.DataFrame, tmp_path: Path) -> None:
    write_geojson(tmp_path / "cells.geojson", cells, MATEK_21, pixel_size_um=0.1)
    document = json.loads((tmp_path / "cells.geojson").read_text(encoding="utf-8"))
    first, second, third = document["features"]
    assert document["type"] == "FeatureCollection"
    assert first["type"] == "Feature"
    assert first["properties"]["objectType"] == "detection"
    assert first["properties"]["classification"] == {"name": "NGS", "color": [0x2C, 0xA0, 0x2C]}
    assert first["properties"]["name"] == cells["cell_id"][0]
    measured = first["properties"]["measurements"]
    assert measured["Probability"] == 0.75
    assert measured["p_LYT"] == 0.25
    assert measured["Detection score"] == 0.9877
    assert measured["Nucleus area µm^2"] == 2.5
    # What is not known is left out: QuPath takes numbers only.
    assert set(third["properties"]["measurements"]) == {"Detection score"}
    assert "classification" not in third["properties"]
    assert len({uuid.UUID(feature["id"]) for feature in document["features"]}) == 3

    outline = geometry.shape(first["geometry"])
    assert outline.equals(geometry.Polygon([(20, 10), (40, 30), (44, 12)]))
    # An outline that crosses itself, or none: the box.
    assert geometry.shape(second["geometry"]).equals(geometry.box(0, 0, 10, 10))
    assert geometry.shape(third["geometry"]).equals(geometry.box(50, 50, 72, 70))

    write_geojson(tmp_path / "again.geojson", cells, MATEK_21, pixel_size_um=0.1)
    assert (tmp_path / "again.geojson").read_bytes() == (tmp_path / "cells.geojson").read_bytes()


def test_geojson_before_classification_and_of_another_taxonomy(cells: pd.DataFrame, tmp_path: Path) -> None:
    plain = cells.drop(columns=["predicted", "probability", "p_NGS", "p_LYT", "reviewed"])
    write_geojson(tmp_path / "a.geojson", plain, MATEK_21)
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert all("classification" not in feature["properties"] for feature in features)
    write_geojson(tmp_path / "b.geojson", cells, MATEK_21.subset(["BLA"]))
    features = json.loads((tmp_path / "b.geojson").read_text())["features"]
    assert features[0]["properties"]["classification"]["name"] == "NGS"


def test_a_failed_write_keeps_the_old_file(cells: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "cells.geojson"
    path.write_text("old")
    with pytest.raises(KeyError):
        write_geojson(path, cells.drop(columns="cell_id"), MATEK_21)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["cells.geojson"]


coordinates = st.tuples(st.integers(0, 12), st.integers(0, 12))


@given(st.lists(st.lists(coordinates, min_size=0, max_size=9), min_size=1, max_size=6))
def test_simple_polygons_are_those_that_geos_calls_valid(shapes: list[list[tuple[int, int]]]) -> None:
    rings: list[npt.NDArray[np.float64]] = [np.array(shape, np.float64).reshape(-1, 2) for shape in shapes]
    expected = [
        len(set(shape)) >= 3 and geometry.Polygon(shape).is_valid and geometry.Polygon(shape).area > 0
        for shape in shapes
    ]
    assert are_simple(rings).tolist() == expected


def test_outlines_of_real_shapes_are_simple() -> None:
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    radius = 40 + 15 * np.cos(3 * angle)
    lobed = np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1) + 25000
    not_finite = np.array([[0, 0], [1, np.nan], [2, 2]])
    assert are_simple([lobed, not_finite, lobed[::-1], lobed[:2]]).tolist() == [True, False, True, False]
