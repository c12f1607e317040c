"""Fields in a store: images that other programs open, bit for bit, whatever their size; verified, and cleaned up."""

from __future__ import annotations

import hashlib
import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr
from PIL import Image

from hematokit.errors import StoreError
from hematokit.files import hash_path
from hematokit.imaging.fieldfiles import list_fields, open_field
from hematokit.imaging.geometry import Box
from hematokit.store import (
    StoreWriter,
    create_store,
    describe_store,
    open_store,
    open_stored_field,
    split_store,
    verify_store,
)
from hematokit.store.fields import field_folder, open_pixels, write_field
from hematokit.store.schema import CELL_COLUMNS


class ArrayField:
    """A field in memory."""

    def __init__(self, pixels: np.ndarray, pixel_size_um: float | None = None) -> None:
        self.pixels = pixels
        self.height, self.width = pixels.shape[:2]
        self.pixel_size_um = pixel_size_um
        self.orientation = 1
        self.largest = 0

    def read(self, box: Box) -> np.ndarray:
        self.largest = max(self.largest, box.height * box.width)
        return self.pixels[box.slices]


class GreyField:
    """A field that is computed, so that its size costs nothing."""

    pixel_size_um = None
    orientation = 1

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width

    def read(self, box: Box) -> np.ndarray:
        assert box.inside(self.height, self.width)
        rows = (np.arange(box.y0, box.y1) % 251).astype(np.uint8)
        return np.broadcast_to(rows[:, None, None], (box.height, box.width, 3))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(folder: Path, field: Any, field_id: str = "f1") -> Path:
    folder.mkdir(exist_ok=True)
    return write_field(folder, field_id, field)[0]


SIZES = [(1, 1), (7, 512), (513, 512), (1025, 2049), (300, 3)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pixels_come_back_exactly(tmp_path: Path, height: int, width: int) -> None:
    pixels = noise(height, width)
    folder = write(tmp_path / "store", ArrayField(pixels))
    with open_field(folder) as field:
        assert (field.height, field.width, field.pixel_size_um) == (height, width, None)
        assert np.array_equal(field.read(Box(0, 0, height, width)), pixels)
    read = open_pixels(folder)
    box = Box(height // 2, width // 3, height - height // 2, width - width // 3)
    assert np.array_equal(read(box), pixels[box.slices])


def test_other_programs_read_it(tmp_path: Path) -> None:
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader
    from ome_zarr_models.v05 import Image as ImageModel

    pixels = noise(700, 1100)
    folder = write(tmp_path / "store", ArrayField(pixels, 0.172))
    location = parse_url(folder)
    assert location is not None
    (node,) = list(Reader(location)())
    assert [level.shape for level in node.data] == [(3, 700, 1100), (3, 350, 550), (3, 175, 275)]
    assert np.array_equal(np.moveaxis(np.asarray(node.data[0]), 0, 2), pixels)
    assert node.metadata["channel_names"] == ["red", "green", "blue"]

    group = zarr.open_group(folder, mode="r")
    document = group.attrs.asdict()["ome"]
    model = ImageModel.from_zarr(group).ome_attributes
    (scales,) = model.multiscales
    assert [(axis.name, axis.type, axis.unit) for axis in scales.axes] == [
        ("c", "channel", None),
        ("y", "space", "micrometer"),
        ("x", "space", "micrometer"),
    ]
    found = [dataset.coordinateTransformations[0].scale for dataset in scales.datasets]
    assert found == [[1, 0.172 * 2**level, 0.172 * 2**level] for level in range(3)]
    assert [channel["color"] for channel in document["omero"]["channels"]] == ["FF0000", "00FF00", "0000FF"]
    with open_field(folder) as field:
        assert (field.pixel_size_um, field.pixel_size_source) == (0.172, "metadata")


def test_an_unknown_pixel_size_has_no_unit(tmp_path: Path) -> None:
    folder = write(tmp_path / "store", ArrayField(noise(20, 30)))
    document = json.loads((folder / "zarr.json").read_text())
    (scales,) = document["attributes"]["ome"]["multiscales"]
    assert all("unit" not in axis for axis in scales["axes"])
    assert document["attributes"]["ome"]["version"] == "0.5"


def test_levels_are_means_and_line_up_across_bands(tmp_path: Path) -> None:
    pixels = noise(2101, 1203)
    group = zarr.open_group(write(tmp_path / "store", ArrayField(pixels)), mode="r")
    above = pixels.astype(np.float64)
    for level in range(1, 4):
        above = np.pad(above, ((0, above.shape[0] % 2), (0, above.shape[1] % 2), (0, 0)), mode="edge")
        above = sum(above[y::2, x::2] for y in (0, 1) for x in (0, 1)) / 4
        found = np.moveaxis(np.asarray(group[str(level)]), 0, 2)
        assert found.shape == above.shape
        assert np.abs(found - above).max() <= 0.5 * level, "each level rounds once"
    assert max(group["3"].shape[1:]) <= 512


def test_memory_does_not_grow_with_the_field(tmp_path: Path) -> None:
    peaks = []
    for height in (3_000, 12_000):
        tracemalloc.start()
        write(tmp_path / str(height), GreyField(height, 2_000))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]
    assert peaks[1] < 12_000 * 2_000 * 3 / 2


def test_the_same_field_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write_field(_folder(tmp_path / "a"), "f1", ArrayField(noise(600, 70)), source="x/f1.png")
    again = write_field(_folder(tmp_path / "b"), "f1", ArrayField(noise(600, 70)), source="x/f1.png")
    other = write_field(_folder(tmp_path / "c"), "f1", ArrayField(noise(600, 70, seed=1)), source="x/f1.png")
    assert first[1] == again[1] == hash_path(first[0])
    assert first[1] != other[1]


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


# --- in a store -------------------------------------------------------------------------------------------------------


def record(folder: Path, digest: str, cells: int) -> dict[str, Any]:
    return {
        "field_id": folder.name,
        "name": folder.name,
        "source": f"in/{folder.name}.png",
        "sha256": hashlib.sha256(folder.name.encode()).hexdigest(),
        "height": 600,
        "width": 70,
        "pixel_size_um": float("nan"),
        "cells": cells,
        "cells_from": "{}",
        "smear_id": "",
        "patient_id": "",
        "stored_sha256": digest,
    }


def rows(field_id: str, count: int, label: str = "BLA", **more: str) -> pd.DataFrame:
    frame = pd.DataFrame({"cell_id": [f"{field_id}-{i}" for i in range(count)]})
    frame["source_key"] = frame["cell_id"]
    texts = {"label_source": "", "smear_id": "", "patient_id": "", "group": "", "split": ""} | more
    frame = frame.assign(field_id=field_id, source=f"in/{field_id}.png", label=label, row=0, **texts)
    frame = frame.assign(y=8.0, x=8.0, y0=0, x0=0, height=16, width=16)
    return frame.assign(
        pixel_size_um=0.1, pixel_sha256=[f"{abs(hash((field_id, i))):064x}"[:64] for i in range(count)]
    )[list(CELL_COLUMNS)]


def add(store: Path, field_id: str, count: int, label: str = "BLA", fail: bool = False, **more: str) -> None:
    opened = open_store(store)
    with StoreWriter(opened) as writer:
        folder, digest = write_field(store, field_id, ArrayField(noise(600, 70)))
        if count:
            writer.append(np.zeros((count, 16, 16, 3), np.uint8), rows(field_id, count, label, **more))
        writer.add_field(record(folder, digest, count))
        if fail:
            raise ZeroDivisionError


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with two fields, one of them without cells."""
    path = tmp_path / "store.zarr"
    create_store(path, patch_size=16)
    add(path, "full", 3)
    add(path, "empty", 0)
    return path


def test_fields_are_committed_with_their_cells(store: Path) -> None:
    opened = open_store(store)
    assert opened.fields["field_id"].tolist() == ["full", "empty"]
    assert opened.fields["cells"].tolist() == [3, 0]
    assert (len(opened), opened.groups_stale) == (3, True)
    with open_stored_field(opened, "full") as field:
        assert np.array_equal(field.read(Box(0, 0, 600, 70)), noise(600, 70))
    with pytest.raises(StoreError, match="no field 'nobody'"):
        open_stored_field(opened, "nobody")
    assert [path.name for path in list_fields([store])] == ["empty", "full"]
    assert zarr.open_group(store, mode="r")["fields/full/0"].shape == (3, 600, 70)


def test_info_counts_fields_and_unlabelled_cells(store: Path) -> None:
    add(store, "more", 2, label="")
    info = describe_store(store)
    assert (info.fields, info.unlabelled, info.classes) == (3, 2, {"BLA": 3})
    text = "\n".join(info.lines())
    assert "3 whole fields" in text
    assert "BLA 3; without a label 2" in text


def test_what_is_not_committed_goes_and_what_is_not_ours_stays(store: Path) -> None:
    opened = open_store(store)
    before = hash_path(store / "fields")
    with pytest.raises(ZeroDivisionError):
        add(store, "lost", 2, fail=True)
    (store / "fields" / ".writing-0123").mkdir()
    (store / "fields" / ".writing-0123" / "zarr.json").write_text("{}")
    (store / "fields" / "notes").mkdir()
    assert open_store(store).fields["field_id"].tolist() == ["full", "empty"]
    with StoreWriter(opened):
        pass
    assert sorted(path.name for path in (store / "fields").iterdir()) == ["empty", "full", "notes", "zarr.json"]
    assert hash_path(store / "fields") == before


def test_fields_written_but_not_yet_committed_do_not_count(store: Path) -> None:
    """A reader between the replacement of fields.parquet and that of cells.parquet sees neither or both."""
    table = pd.read_parquet(store / "fields.parquet")
    more = table.iloc[:1].assign(field_id="half")
    pd.concat([table, more]).to_parquet(store / "fields.parquet")
    assert open_store(store).fields["field_id"].tolist() == ["full", "empty"]
    add(store, "next", 1)
    assert open_store(store).fields["field_id"].tolist() == ["full", "empty", "next"]
    assert verify_store(store).fields == 3


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: shutil.rmtree(folder), "missing"),
        (lambda folder: (folder / "0" / "c" / "0" / "0" / "0").unlink(), "changed"),
        (lambda folder: (folder / "0" / "c" / "0" / "1" / "0").write_bytes(b"x"), "changed"),
        (lambda folder: (folder / "extra").write_text("x"), "changed"),
        (
            lambda folder: (folder / "zarr.json").write_text((folder / "zarr.json").read_text().replace("1.0", "2.0")),
            "changed",
        ),
    ],
)
def test_verify_finds_damaged_fields(store: Path, damage: Callable[[Path], None], problem: str) -> None:
    damage(field_folder(store, "full"))
    report = verify_store(store)
    assert not report.ok
    assert [(item.field_id, item.problem) for item in report.damaged_fields] == [("full", problem)]
    text = "\n".join(report.lines())
    assert "1 of 2 fields" in text
    assert "in/full.png" in text
    assert json.dumps(report.to_dict())


def test_a_damaged_table_of_fields_is_said_in_one_line(store: Path) -> None:
    (store / "fields.parquet").write_bytes(b"no parquet")
    with pytest.raises(StoreError, match=r"fields\.parquet is damaged .*; restore that file"):
        _ = open_store(store).fields
    (store / "fields.parquet").unlink()
    with pytest.raises(StoreError, match=r"fields\.parquet does not exist; restore"):
        describe_store(store)


# --- unlabelled cells and fields in splits ----------------------------------------------------------------------------


def test_cells_of_a_field_stay_together_and_unlabelled_ones_stay_out(tmp_path: Path) -> None:
    path = tmp_path / "store.zarr"
    create_store(path, patch_size=16)
    for i in range(6):
        add(path, f"field{i}", 4, label="BLA" if i % 2 else "LYT")
    add(path, "unknown", 3, label="")
    add(path, "p1", 2, patient_id="P")
    add(path, "p2", 2, patient_id="P")
    summary = split_store(path, (0.5, 0.25, 0.25))
    cells = open_store(path).cells
    assert (cells.groupby("group")["split"].nunique() == 1).all()
    assert (cells.groupby("field_id")["group"].nunique() == 1).all()
    assert cells.loc[cells["patient_id"] == "P", "group"].unique().tolist() == ["patient:P"]
    assert cells["group"].nunique() == 8
    assert set(cells.loc[cells["label"] == "", "split"]) == {""}
    assert (cells.loc[cells["label"] != "", "split"] != "").all()
    assert summary.unlabelled == 3
    assert "note: 3 cells without a label are in no split" in summary.lines()
    assert sum(sum(counts.values()) for counts in summary.counts.values()) == len(cells) - 3


def test_a_store_without_labels_cannot_be_split(tmp_path: Path) -> None:
    path = tmp_path / "store.zarr"
    create_store(path, patch_size=16)
    add(path, "unknown", 3, label="")
    with pytest.raises(StoreError, match="no labelled cells to split"):
        split_store(path)


def test_a_crop_named_like_a_field_is_another_field(store: Path, tmp_path: Path) -> None:
    from hematokit.store import import_crops

    crops = tmp_path / "crops" / "BLA"
    crops.mkdir(parents=True)
    for name in ("full", "empty", "other"):
        Image.fromarray(noise(16, 16, seed=len(name))).save(crops / f"{name}.png")
    import_crops(crops.parent, store)
    cells = open_store(store).cells
    assert cells["cell_id"].is_unique
    imported = cells[cells["source"].str.endswith(".png") & (cells["label_source"] == "folder")]
    assert len(imported) == 3
    assert not set(imported["field_id"]) & {"full", "empty"}
    assert open_store(store).fields["field_id"].tolist() == ["full", "empty"], "an import keeps the fields"
