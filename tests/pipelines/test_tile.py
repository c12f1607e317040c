"""Whole fields into a store: what is cut, what is refused, and that a killed run leaves and finishes the same store."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from crashkit import DEADLY
from hematokit.errors import FieldError, ImageError, PluginError, StoreError
from hematokit.imaging.fieldfiles import open_field
from hematokit.imaging.geometry import Box
from hematokit.pipelines import tile as tiling
from hematokit.plugins import registered
from hematokit.plugins.specs import DetectorSpec, Option
from hematokit.store import StoreWriter, describe_store, open_store, set_pixel_size, split_store, verify_store
from hematokit.store.corrections import CORRECTIONS_FILE, Correction, append_corrections, new_edit, utc_now
from hematokit.store.schema import hash_pixels
from hematokit.store.tiling import TileSummary

SIZE = 16


def noise(seed: int, height: int = 60, width: int = 80) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, seed: int, **more: Any) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = noise(seed, **more)
    Image.fromarray(pixels).save(path)
    return pixels


def tile(folder: Path, store: Path, **more: Any) -> TileSummary:
    return tiling.tile([folder], store, **{"patch_size": SIZE, "near_duplicates": False} | more)


@pytest.fixture
def fields(tmp_path: Path) -> Path:
    """Three fields; known cells of two of them, one at the corner."""
    folder = tmp_path / "fields"
    for number in range(3):
        save(folder / f"f{number}.png", number)
    rows = ["f0,30,40,BLA", "f0,10.4,20.6,LYT", "f0,1,1,BLA", "f1,5,79,", "f1,40,50,NGS"]
    (tmp_path / "cells.csv").write_text("\n".join(["field_id,y,x,label", *rows]) + "\n")
    return folder


def reasons(store: Path) -> dict[str, list[str]]:
    rejects = open_store(store).rejects
    return {Path(source).name: sorted(group["reason"]) for source, group in rejects.groupby("source")}


# --- what is stored ---------------------------------------------------------------------------------------------------


def test_patches_are_cut_at_the_centres_and_reflected_at_the_border(fields: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    summary = tile(fields, store, cells=tmp_path / "cells.csv", pixel_size_um=0.2)
    assert (summary.fields, summary.added_fields, summary.added) == (3, 2, 5)
    assert (summary.rejected, summary.warnings) == ({"no-cells": 1}, ())
    opened = open_store(store)
    cells = opened.cells
    wide = np.pad(noise(0), ((SIZE, SIZE), (SIZE, SIZE), (0, 0)), mode="reflect")
    ids = ["f0-00001-00001", "f0-00010-00020", "f0-00030-00040"]
    patches = opened.patches(ids)
    for patch, (top, left) in zip(patches, [(-7, -7), (2, 13), (22, 32)], strict=True):
        assert np.array_equal(patch, wide[top + SIZE : top + 2 * SIZE, left + SIZE : left + 2 * SIZE])
    assert [hash_pixels(patch) for patch in patches] == cells["pixel_sha256"][:3].tolist()
    assert cells["cell_id"][:3].tolist() == ids
    assert cells["label"].tolist() == ["BLA", "LYT", "BLA", "", "NGS"]
    assert cells["label_source"].tolist() == ["csv", "csv", "csv", "", "csv"]
    assert cells["source"][0] == str(fields / "f0.png")
    assert cells["source_key"].is_unique
    assert set(cells["pixel_size_um"]) == {0.2}
    table = opened.fields
    assert table[["field_id", "height", "width", "pixel_size_um", "cells"]].to_numpy().tolist() == [
        ["f0", 60, 80, 0.2, 3],
        ["f1", 60, 80, 0.2, 2],
    ]
    with open_field(store / "fields" / "f1") as field:
        assert np.array_equal(field.read(Box(0, 0, 60, 80)), noise(1))
        assert field.pixel_size_um == 0.2
    assert verify_store(store).ok


def test_again_adds_nothing_and_a_missing_field_is_added(fields: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    tile(fields, store, cells=tmp_path / "cells.csv")
    before, version = open_store(store).cells, open_store(store).content_hash
    for name, mapped in (("cells.csv", False), ("more.csv", True)):
        if mapped:
            text = (tmp_path / "cells.csv").read_text() + "f2,20,20,MON\n"
            (tmp_path / name).write_text(text)
        summary = tile(fields, store, cells=tmp_path / name)
        assert (summary.present_fields, summary.added_fields, summary.added) == (2, int(mapped), int(mapped))
        assert open_store(store).cells[:5].drop(columns="group").equals(before.drop(columns="group"))
    assert reasons(store) == {}, "what was refused and is in the store now is no reject any more"
    assert open_store(store).content_hash != version
    # The same files by another path are the same fields.
    here = Path.cwd()
    try:
        os.chdir(fields)
        summary = tile(Path(), store, cells=tmp_path / "more.csv")
    finally:
        os.chdir(here)
    assert (summary.present_fields, summary.added_fields) == (3, 0)


def test_contradictions_are_refused_and_change_nothing(fields: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    cells = tmp_path / "cells.csv"
    (tmp_path / "smears.csv").write_text("file,smear_id,patient_id\nf0.png,S0,P0\nf1.png,S1,P0\n")
    tile(fields, store, cells=cells, smears=tmp_path / "smears.csv")
    table = open_store(store).cells
    assert set(table["group"]) == {"patient:P0"}
    assert table.groupby("field_id")["smear_id"].unique().map(list).to_dict() == {"f0": ["S0"], "f1": ["S1"]}

    (tmp_path / "other.csv").write_text("file,smear_id,patient_id\nf0.png,S0,P1\nf1.png,S9,P0\n")
    (tmp_path / "moved.csv").write_text(cells.read_text().replace("f0,30,40", "f0,31,40"))
    for settings, expected in (
        ({"cells": cells}, {}),
        ({"cells": cells, "smears": tmp_path / "other.csv"}, {"f0": "patient-differs", "f1": "smear-differs"}),
        ({"cells": cells, "pixel_size_um": 0.1}, {"f0": "pixel-size-differs", "f1": "pixel-size-differs"}),
        ({"cells": tmp_path / "moved.csv"}, {"f0": "cells-differ"}),
        ({"cells": cells, "only": ["BLA"]}, {"f0": "cells-differ", "f1": "cells-differ"}),
    ):
        summary = tile(fields, store, **settings)
        assert summary.added_fields == 0
        found = reasons(store)
        assert {name: found[f"{name}.png"] for name in ("f0", "f1") if f"{name}.png" in found} == {
            name: [reason] for name, reason in expected.items()
        }
        assert open_store(store).cells.equals(table)

    save(fields / "f0.png", 99)
    tile(fields, store, cells=cells)
    assert reasons(store)["f0.png"] == ["changed-file"]
    assert open_store(store).cells.equals(table)
    assert all("\n" not in message for message in open_store(store).rejects["message"])


def test_patients_that_the_known_cells_state_are_compared_too(fields: Path, tmp_path: Path) -> None:
    store, cells = tmp_path / "store.zarr", tmp_path / "cells.csv"
    cells.write_text("field_id,y,x,label,patient_id\nf0,30,40,BLA,P1\nf0,9,9,LYT,P1\nf1,30,40,BLA,P2\n")
    tile(fields, store, cells=cells)
    assert open_store(store).fields["patient_id"].tolist() == ["P1", "P2"]
    assert tile(fields, store, cells=cells).present_fields == 2
    cells.write_text(cells.read_text().replace("P2", "P1"))
    summary = tile(fields, store, cells=cells)
    assert (summary.present_fields, summary.rejected) == (1, {"no-cells": 1, "patient-differs": 1})
    # As earlier versions left it: in the cells alone, and not in all of them.
    opened = open_store(store)
    with StoreWriter(opened) as writer:
        people = [("P1" if name == "f0-00009-00009" else "") for name in opened.cells["cell_id"]]
        writer.replace_cells(opened.cells.assign(patient_id=people), fields=opened.fields.assign(patient_id=""))
    cells.write_text("field_id,y,x,label,patient_id\nf0,30,40,BLA,P3\nf0,9,9,LYT,P1\nf1,30,40,BLA,\n")
    assert tile(fields, store, cells=cells).present_fields == 2
    cells.write_text(cells.read_text().replace("P1", "P4"))
    assert tile(fields, store, cells=cells).rejected == {"no-cells": 1, "patient-differs": 1}
    assert "hematokit store set-smears" in summary.warnings[0]


def test_a_copy_of_a_field_is_on_the_same_side(fields: Path, tmp_path: Path) -> None:
    store, cells = tmp_path / "store.zarr", tmp_path / "cells.csv"
    (fields / "other.png").write_bytes((fields / "f0.png").read_bytes())
    cells.write_text(cells.read_text() + "other,50,60,BLA\n")
    summary = tile(fields, store, cells=cells)
    assert any("1 fields are copies" in warning and "other of f0" in warning for warning in summary.warnings)
    groups = open_store(store).cells.groupby("field_id")["group"].unique().map(list).to_dict()
    assert groups["other"] == groups["f0"] != groups["f1"]


# --- cells of a field replaced by others ------------------------------------------------------------------------------


def test_replaced_cells(fields: Path, tmp_path: Path) -> None:
    store, cells = tmp_path / "store.zarr", tmp_path / "cells.csv"
    tile(fields, store, cells=cells)
    split_store(store, (1, 0, 0))
    earlier = open_store(store)
    rows = earlier.cells.set_index("cell_id")
    patches = earlier.patches(rows.index.tolist())
    review = [
        Correction("label", new_edit(), utc_now(), "Ada", name, "f0", "BLA", "MON")
        for name in ("f0-00001-00001", "f0-00030-00040")
    ]
    append_corrections(store / CORRECTIONS_FILE, review)

    # One cell moved, one with another class, one new; the other field has none any more.
    text = "field_id,y,x,label\nf0,31,40,BLA\nf0,10.4,20.6,MON\nf0,1,1,BLA\nf0,50,60,NGS\nf1,999,9,BLA\n"
    (tmp_path / "corrected.csv").write_text(text)
    assert tile(fields, store, cells=tmp_path / "corrected.csv").rejected["cells-differ"] == 2
    assert "--replace" in open_store(store).rejects.set_index("reason").loc["cells-differ", "message"].iloc[0]
    summary = tile(fields, store, cells=tmp_path / "corrected.csv", replace=True)
    assert (summary.replaced_fields, summary.removed, summary.added, summary.added_fields) == (2, 5, 4, 0)
    assert any("the corrections of 1 cells no longer apply" in line for line in summary.lines())
    opened = open_store(store)
    now = opened.cells.set_index("cell_id")
    assert now["label"].to_dict() == {
        "f0-00001-00001": "MON",  # as it was corrected
        "f0-00010-00020": "MON",
        "f0-00031-00040": "BLA",
        "f0-00050-00060": "NGS",
    }
    assert set(now["split"]) == {""}
    assert opened.fields[["field_id", "cells"]].to_numpy().tolist() == [["f0", 4], ["f1", 0]]
    assert summary.without_split == 4
    assert describe_store(store).corrections == {"label": 1}
    assert verify_store(store).ok
    assert tile(fields, store, cells=tmp_path / "corrected.csv", replace=True).present_fields == 2

    # The rows of removed cells are not used again: who opened the store before reads what was there then.
    assert now["row"].min() > rows["row"].max()
    (tmp_path / "none.csv").write_text("field_id,y,x,label\nf0,999,9,BLA\nf1,999,9,BLA\n")
    assert tile(fields, store, cells=tmp_path / "none.csv", replace=True).cells == 0
    tile(fields, store, cells=cells, replace=True)
    assert open_store(store).cells["row"].min() > now["row"].max()
    assert earlier.fields["cells"].tolist() == [3, 2]
    assert np.array_equal(earlier.patches(rows.index.tolist()), patches)
    assert verify_store(store).ok


def test_replaced_cells_keep_the_pixel_size_that_was_stated_for_their_field(fields: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    tile(fields, store, cells=tmp_path / "cells.csv")
    # Known for one cell of each field, and not for the last one.
    set_pixel_size(store, 0.1, cell_ids=["f0-00001-00001", "f1-00005-00079"])
    (tmp_path / "moved.csv").write_text("field_id,y,x,label\nf0,31,40,BLA\nf0,9,9,BLA\nf1,41,50,NGS\n")
    assert tile(fields, store, cells=tmp_path / "moved.csv", replace=True).replaced_fields == 2
    assert open_store(store).cells["pixel_size_um"].tolist() == [0.1] * 3


def test_replacing_sets_the_smear_and_keeps_what_is_not_said(fields: Path, tmp_path: Path) -> None:
    store, cells = tmp_path / "store.zarr", tmp_path / "cells.csv"
    (tmp_path / "smears.csv").write_text("file,smear_id,patient_id\nf0.png,S0,P0\nf1.png,S1,P0\n")
    tile(fields, store, cells=cells, smears=tmp_path / "smears.csv")
    cells.write_text(cells.read_text().replace("f0,30,40", "f0,31,40"))
    (tmp_path / "smears.csv").write_text("file,patient_id\nf1.png,P1\n")
    summary = tile(fields, store, cells=cells, smears=tmp_path / "smears.csv", replace=True)
    assert summary.replaced_fields == 2
    opened = open_store(store)
    for table in (opened.fields, opened.cells):
        said = table.drop_duplicates("field_id").set_index("field_id")[["smear_id", "patient_id"]]
        assert said.to_numpy().tolist() == [["S0", "P0"], ["S1", "P1"]]


def test_two_files_of_one_content_do_not_replace_each_other(fields: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    for folder in ("a", "b"):
        save(tmp_path / "two" / folder / "f.png", 5)
    (tmp_path / "cells.csv").write_text("source,y,x,label\na/f.png,9,9,BLA\nb/f.png,9,9,BLA\n")
    tile(tmp_path / "two", store, cells=tmp_path / "cells.csv")
    (tmp_path / "cells.csv").write_text("source,y,x,label\na/f.png,19,9,BLA\nb/f.png,29,9,BLA\n")
    summary = tile(tmp_path / "two", store, cells=tmp_path / "cells.csv", replace=True)
    assert (summary.replaced_fields, summary.rejected) == (1, {"cells-differ": 1})
    assert open_store(store).cells["y"].tolist() == [19]
    assert verify_store(store).ok


def test_one_bad_field_does_not_stop_the_others(fields: Path, tmp_path: Path) -> None:
    (fields / "a-truncated.png").write_bytes((fields / "f0.png").read_bytes()[:-400])
    (fields / "b-text.tif").write_text("no image")
    (fields / "c-empty.jpg").write_bytes(b"")
    Image.new("CMYK", (30, 30)).save(fields / "d-cmyk.jpg")
    Image.new("RGB", (1, 1), "red").save(fields / "e-one.png")
    rows = (tmp_path / "cells.csv").read_text() + "e-one,0.5,0.5,BLA\na-truncated,9,9,BLA\nf2,500,9,BLA\nf2,5,9,BLA\n"
    (tmp_path / "cells.csv").write_text(rows)
    store = tmp_path / "store.zarr"
    summary = tile(fields, store, cells=tmp_path / "cells.csv")
    assert open_store(store).fields["field_id"].tolist() == ["e-one", "f0", "f1", "f2"]
    assert summary.added == 7
    found = reasons(store)
    assert set(found) == {"a-truncated.png", "b-text.tif", "c-empty.jpg", "d-cmyk.jpg", "f2.png"}
    assert found["f2.png"] == ["outside-field"]
    assert np.unique(open_store(store).patches(["e-one-00000-00000"])).tolist() == [0, 255]
    assert verify_store(store).ok
    assert not list((store / "fields").glob(".writing-*"))


def test_fields_of_one_name_get_different_ids_in_every_order(tmp_path: Path) -> None:
    names = [
        "a/field.png",
        "b/field.png",
        "b/Field.png",
        "c/my field*.png",
        "c/CON.png",
        "c/__x.png",
        "c/" + "ü" * 90 + ".png",
    ]
    for seed, name in enumerate(names):
        save(tmp_path / "in" / name, seed)
    rows = [f"{tmp_path}/in/{name},9,9,BLA" for name in names]
    (tmp_path / "cells.csv").write_text("\n".join(["source,y,x,label", *rows]) + "\n")
    store, again = tmp_path / "one.zarr", tmp_path / "two.zarr"
    tile(tmp_path / "in", store, cells=tmp_path / "cells.csv")
    ids = open_store(store).fields["field_id"].tolist()
    assert len({name.casefold() for name in ids}) == len(names)
    assert "field" in ids
    assert all(name not in (".", "CON") and not name.startswith((".", "__")) and "*" not in name for name in ids)
    assert all(len(name.encode()) <= 130 and (store / "fields" / name / "zarr.json").is_file() for name in ids)
    assert open_store(store).cells["cell_id"].is_unique
    # Tiled in two steps, they are the same.
    tile(tmp_path / "in" / "a", again, cells=tmp_path / "cells.csv")
    tile(tmp_path / "in", again, cells=tmp_path / "cells.csv")
    assert open_store(again).fields.equals(open_store(store).fields)
    assert open_store(again).content_hash == open_store(store).content_hash


def test_a_store_among_its_fields_is_not_tiled_into_itself(fields: Path, tmp_path: Path) -> None:
    for _ in range(2):
        summary = tile(fields, fields / "store.zarr", cells=tmp_path / "cells.csv")
        assert summary.fields == 3
    with pytest.raises(FieldError, match="of the store"):
        tiling.tile([fields / "store.zarr"], fields / "store.zarr", cells=tmp_path / "cells.csv")


def test_a_dense_field_is_one_group_and_its_patches_are_not_compared(tmp_path: Path) -> None:
    save(tmp_path / "in" / "dense.png", 1, height=300, width=400)
    save(tmp_path / "in" / "other.png", 2, height=300, width=400)
    rows = [
        f"{name},{y},{x},BLA" for name in ("dense", "other") for y in range(20, 300, 40) for x in range(20, 400, 40)
    ]
    (tmp_path / "cells.csv").write_text("\n".join(["field_id,y,x,label", *rows]) + "\n")
    store = tmp_path / "store.zarr"
    tile(tmp_path / "in", store, cells=tmp_path / "cells.csv", patch_size=64, near_duplicates=True)
    cells = open_store(store).cells
    assert len(cells) == len(rows) > 128
    assert cells.groupby("field_id")["group"].nunique().tolist() == [1, 1]
    assert cells["group"].nunique() == 2
    split_store(store, (0.5, 0.5, 0))
    assert open_store(store).cells.groupby("field_id")["split"].nunique().tolist() == [1, 1]
    with np.load(store / "fingerprints.npz") as prints:
        assert len(prints["links"]) == 0


# --- a detector -------------------------------------------------------------------------------------------------------


class Corners:
    """Claims a cell in every corner; fails on a field whose first pixel is black."""

    def __init__(self, inset: int) -> None:
        self.inset = inset

    def detect(self, field: np.ndarray, pixel_size_um: float | None) -> pd.DataFrame:
        if not field[0, 0].any():
            raise RuntimeError("nothing\nthere")
        if field.shape[0] < 20:
            return pd.DataFrame(columns=["y", "x", "y0", "x0", "height", "width", "score"])
        low, rows, columns = self.inset, field.shape[0] - self.inset, field.shape[1] - self.inset
        places = [(y, x) for y in (low, rows) for x in (low, columns)]
        return pd.DataFrame([(y, x, y - 2, x - 2, 4, 4, 0.5) for y, x in places],
                            columns=["y", "x", "y0", "x0", "height", "width", "score"])  # fmt: skip


@pytest.fixture
def corners() -> Iterator[None]:
    """The detector ``corners`` of a plugin."""
    spec = DetectorSpec(
        "corners", "Finds corners", lambda inset: Corners(inset), {"inset": Option(int, 5, "from the border, px", 2, 9)}
    )
    with registered(spec, package="their-package"):
        yield


@pytest.mark.usefixtures("corners")
def test_detected_cells(fields: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), "black").save(fields / "g-black.png")
    Image.new("RGB", (10, 10), "white").save(fields / "h-small.png")
    store = tmp_path / "store.zarr"
    summary = tile(fields, store, detector="corners", detector_options={"inset": 4})
    assert (summary.added, summary.without_cells, summary.unlabelled) == (12, 1, 12)
    assert summary.rejected == {"detector-failed": 1}
    opened = open_store(store)
    assert set(opened.cells["label"]) == {""}
    assert opened.cells["cell_id"][0] == "f0-00004-00004"
    said = json.loads(opened.fields["cells_from"][0])["detector"]
    assert (said["name"], said["package"], said["options"]) == ("corners", "their-package", {"inset": 4})
    assert opened.fields["field_id"].tolist()[-1] == "h-small", "a field without cells is remembered, too"

    again = tile(fields, store, detector="corners", detector_options={"inset": 4})
    assert (again.present_fields, again.added_fields) == (4, 0)
    other = tile(fields, store, detector="corners")
    assert other.rejected == {"cells-differ": 4, "detector-failed": 1}
    assert open_store(store).cells.equals(opened.cells)
    with pytest.raises(StoreError, match="no labelled cells"):
        split_store(store)
    with pytest.raises(PluginError, match="outside 2 to 9"):
        tile(fields, store, detector="corners", detector_options={"inset": 99})


@pytest.mark.usefixtures("corners")
def test_present_fields_are_not_searched_again(fields: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store.zarr"
    tile(fields, store, detector="corners")

    def never(*_: object) -> None:
        raise AssertionError("searched")

    monkeypatch.setattr(Corners, "detect", never)
    assert tile(fields, store, detector="corners").present_fields == 3


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"cells": "missing.csv"}, FieldError, "missing.csv does not exist"),
        ({"cells": "cells.csv", "class_map": ["WBC=XYZ"]}, FieldError, "'XYZ'"),
        ({"cells": "cells.csv", "class_names": "none.txt"}, FieldError, "none.txt"),
        ({"only": ["BLA"]}, FieldError, "give --cells too"),
        ({"detector": "nobody"}, PluginError, "nobody"),
        ({"cells": "cells.csv", "smears": "none.csv"}, FieldError, "none.csv"),
        ({"cells": "cells.csv", "patch_size": 0}, StoreError, "patch size of 0 px"),
        ({"cells": "cells.csv", "codec": "zip"}, StoreError, "codec"),
    ],
)
def test_mistakes_are_said_before_anything_is_written(
    fields: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], error: type, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=said):
        tile(fields, tmp_path / "store.zarr", **settings)
    assert not (tmp_path / "store.zarr").exists()


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_pixel_size_that_is_none(fields: Path, tmp_path: Path, value: float) -> None:
    with pytest.raises(ImageError, match="pixel size"):
        tile(fields, tmp_path / "store.zarr", cells=tmp_path / "cells.csv", pixel_size_um=value)
    assert not (tmp_path / "store.zarr").exists()


def test_a_store_that_does_not_fit(fields: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    tile(fields, store, cells=tmp_path / "cells.csv")
    with pytest.raises(StoreError, match="patches of 16 px, not 32"):
        tile(fields, store, cells=tmp_path / "cells.csv", patch_size=32)
    with pytest.raises(ImageError, match="does not exist"):
        tile(tmp_path / "nothing", store, cells=tmp_path / "cells.csv")


# --- killed, interrupted, full ----------------------------------------------------------------------------------------

# Tiles argv[1] into argv[2]; dies by SIGKILL just before ("before") or after the n-th call of a named step.
CHILD = (
    """
import json, os, resource, signal, sys
from collections.abc import Iterator
from pathlib import Path
from hematokit.errors import StoreError
from hematokit.pipelines import tile as tiling
from hematokit.store import fields, schema, writer

folder, store, plan = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
writer._COMMIT_EVERY = 0
writer._COMMIT_SECONDS = plan.get("seconds", 0.0)

"""
    + DEADLY
    + """
places = {
    "cells": [(schema, "write_cells")],
    "fields": [(schema, "write_fields")],
    "image": [(fields, "_write_image")],
    "levels": [(fields, "_halve")],
    "rename": [(Path, "rename")],
    "noted": [(writer.StoreWriter, "add_field"), (writer.StoreWriter, "replace_field")],
    "rejects": [(schema, "write_rejects")],
    "groups": [(writer.StoreWriter, "replace_cells")],
}
for owner, name in places.get(plan.get("step"), []):
    setattr(owner, name, deadly(getattr(owner, name)))
if "limit" in plan:
    resource.setrlimit(resource.RLIMIT_FSIZE, (plan["limit"], -1))
try:
    cells = Path(folder).parent / plan.get("cells", "cells.csv")
    tiling.tile([folder], store, cells=cells, patch_size=16, replace=plan.get("replace", False))
except StoreError as error:
    print(error)
    sys.exit(2)
"""
)

FIELDS, CELLS = 6, 40


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("many")
    rows = []
    for number in range(FIELDS):
        save(root / "in" / f"f{number}.png", number, height=300, width=600)
        # The second has no cells but a wrong one.
        places = np.random.default_rng(number).integers(0, 300, (CELLS if number != 1 else 0, 2)).tolist()
        rows += [f"f{number},{y},{x},{'BLA' if x % 2 else ''}" for y, x in places]
        rows += [f"f{number},999,9,BLA"]
    (root / "cells.csv").write_text("\n".join(["field_id,y,x,label", *rows]) + "\n")
    (root / "in" / "broken.png").write_bytes(b"no image")
    return root / "in"


@pytest.fixture(scope="module")
def whole(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a run that was left alone."""
    store = tmp_path_factory.mktemp("whole") / "store.zarr"
    summary = tiling.tile([many], store, cells=many.parent / "cells.csv", patch_size=SIZE)
    assert (summary.added_fields, summary.without_cells) == (FIELDS, 1)
    return store


def run_child(many: Path, store: Path, **plan: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHILD, str(many), str(store), json.dumps(plan)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def committed(store: Path) -> int:
    """Check that what a killed process left is whole, and return the number of fields it had committed."""
    if not (store / "zarr.json").exists():
        return 0
    opened = open_store(store)
    assert verify_store(store).ok
    fields = opened.fields
    counts = opened.cells["field_id"].value_counts()
    assert {name: int(counts.get(name, 0)) for name in fields["field_id"]} == dict(
        zip(fields["field_id"], fields["cells"], strict=True)
    )
    assert set(counts.index) <= set(fields["field_id"])
    return len(fields)


def check_finishes(many: Path, store: Path, whole: Path, before: int) -> None:
    summary = tiling.tile([many], store, cells=many.parent / "cells.csv", patch_size=SIZE)
    assert (summary.present_fields, summary.added_fields) == (before, FIELDS - before)
    one, two = open_store(store), open_store(whole)
    assert verify_store(store).ok
    assert one.content_hash == two.content_hash
    assert one.cells.drop(columns="row").equals(two.cells.drop(columns="row"))
    assert one.fields.equals(two.fields)
    assert one.rejects.equals(two.rejects)
    assert not one.groups_stale
    images = {path.name for path in (store / "fields").iterdir()}
    assert images == {path.name for path in (whole / "fields").iterdir()}
    left = {path.name for path in store.rglob("*") if path.name.startswith(".writing-") or path.name.endswith("__lock")}
    assert not left


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
@pytest.mark.parametrize(
    ("step", "n", "when", "expected"),
    [
        ("image", 1, "before", 0),
        ("levels", 3, "after", 2),  # a part of a pyramid
        ("rename", 4, "after", 3),  # an image under its own name, without cells
        ("noted", 3, "after", 2),  # patches in a buffer, or in a shard that does not count
        ("fields", 3, "after", 2),  # fields.parquet is ahead of cells.parquet
        ("cells", 4, "before", 2),  # the first call makes the empty store
        ("cells", 4, "after", 3),
        ("rejects", 1, "before", FIELDS),
        ("groups", 1, "before", FIELDS),
    ],
)
def test_killed_at_a_chosen_moment(
    many: Path, whole: Path, tmp_path: Path, step: str, n: int, when: str, expected: int
) -> None:
    store = tmp_path / "store.zarr"
    result = run_child(many, store, step=step, n=n, when=when)
    assert result.returncode == -signal.SIGKILL, result.stderr
    before = committed(store)
    assert before == expected
    check_finishes(many, store, whole, before)


@pytest.fixture(scope="module")
def moved(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the same fields with other cells, written in ``moved.csv``."""
    table = pd.read_csv(many.parent / "cells.csv", keep_default_na=False)
    table.assign(x=table["x"] + 300).to_csv(many.parent / "moved.csv", index=False)
    store = tmp_path_factory.mktemp("moved") / "store.zarr"
    tiling.tile([many], store, cells=many.parent / "moved.csv", patch_size=SIZE)
    return store


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
@pytest.mark.parametrize(
    ("step", "n", "when", "expected"),
    [
        ("noted", 2, "after", 1),  # patches in a buffer
        ("fields", 2, "after", 1),  # fields.parquet is ahead of cells.parquet
        ("cells", 2, "before", 1),
        ("cells", 2, "after", 2),
        ("groups", 1, "before", FIELDS - 1),
    ],
)
def test_killed_while_cells_are_replaced(
    many: Path, whole: Path, moved: Path, tmp_path: Path, step: str, n: int, when: str, expected: int
) -> None:
    store = tmp_path / "store.zarr"
    shutil.copytree(whole, store)
    result = run_child(many, store, step=step, n=n, when=when, cells="moved.csv", replace=True)
    assert result.returncode == -signal.SIGKILL, result.stderr

    def by_field(path: Path) -> dict[str, tuple[object, ...]]:
        opened = open_store(path)
        tables = opened.cells.groupby("field_id")[["y", "x", "label", "pixel_sha256"]]
        cells = {name: sorted(table.itertuples(index=False, name=None)) for name, table in tables}
        stated = zip(opened.fields["field_id"], opened.fields["cells_from"], opened.fields["cells"], strict=True)
        return {name: (said, count, tuple(cells.get(name, ()))) for name, said, count in stated}

    assert committed(store) == FIELDS
    found, old, new = by_field(store), by_field(whole), by_field(moved)
    assert all(found[name] in (old[name], new[name]) for name in old)
    assert sum(found[name] != old[name] for name in old) == expected
    summary = tiling.tile([many], store, cells=many.parent / "moved.csv", patch_size=SIZE, replace=True)
    assert summary.replaced_fields == FIELDS - 1 - expected
    assert by_field(store) == new
    assert open_store(store).content_hash == open_store(moved).content_hash
    assert verify_store(store).ok


def test_interrupted_it_keeps_what_it_committed(
    many: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(done: int, total: int | None, message: str) -> None:
        if done >= 5:
            raise KeyboardInterrupt

    monkeypatch.setattr("hematokit.store.writer._COMMIT_SECONDS", 0.0)
    store = tmp_path / "store.zarr"
    with pytest.raises(KeyboardInterrupt):
        tiling.tile([many], store, cells=many.parent / "cells.csv", patch_size=SIZE, progress=interrupt)
    before = committed(store)
    assert before == 4, "broken.png was the first of five"
    check_finishes(many, store, whole, before)


@pytest.mark.skipif(os.name != "posix", reason="limits on file size are POSIX")
@pytest.mark.parametrize("limit", [200, 30_000, 180_000])  # no root, no patches or parquet, no chunk of a field fits
def test_a_full_disk_leaves_the_store_whole(many: Path, whole: Path, tmp_path: Path, limit: int) -> None:
    store = tmp_path / "store.zarr"
    result = run_child(many, store, limit=limit)
    assert result.returncode == 2, result.stderr
    assert result.stdout.count("\n") == 1
    assert "no space left" in result.stdout
    assert "run the same command again" in result.stdout
    check_finishes(many, store, whole, committed(store))


# --- real fields ------------------------------------------------------------------------------------------------------


def test_bccd_fields_with_voc_boxes(real_data: Path, tmp_path: Path) -> None:
    names = sorted((real_data / "bccd" / "JPEGImages").glob("*.jpg"))[:12]
    store = tmp_path / "store.zarr"
    annotations = real_data / "bccd" / "Annotations"
    settings: dict[str, Any] = {"cells": annotations, "class_map": ["WBC="], "only": ["WBC"], "pixel_size_um": 0.1}
    summary = tiling.tile(names, store, **settings)
    opened = open_store(store)
    assert summary.added_fields == 12
    assert summary.added == len(opened) > 11
    assert summary.rejected == {}
    for name in names[:3]:
        with Image.open(name) as image, open_field(store / "fields" / name.stem) as field:
            assert np.array_equal(field.read(Box(0, 0, field.height, field.width)), np.asarray(image))
    # Half of a box lies around its centre, so the nucleus is in the middle of the patch: darker than the whole.
    patches = opened.patches(opened.cells["cell_id"]).astype(float)
    darker = patches[:, 75:175, 75:175, 0].mean((1, 2)) < patches[..., 0].mean((1, 2))
    assert darker.mean() > 0.9
    assert verify_store(store).ok
    assert tiling.tile(names, store, **settings).present_fields == 12


def test_txl_fields_with_yolo_boxes(real_data: Path, tmp_path: Path) -> None:
    names = sorted((real_data / "txl_pbc360" / "images").glob("*.jpg"))[:10]
    store = tmp_path / "store.zarr"
    summary = tiling.tile(
        names, store, cells=real_data / "txl_pbc360" / "labels", class_map=["0="], only=["0"], codec="zstd"
    )
    cells = open_store(store).cells
    assert summary.added_fields == 10
    assert summary.added == len(cells) >= 10
    assert set(summary.left_out) <= {"1", "2"}
    assert (cells.groupby("field_id")["group"].nunique() == 1).all()
    assert verify_store(store).ok
