"""Smears and patients set in a store that is there: what changes, what becomes of the split, and killed half-way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hematokit import set_smears
from hematokit.errors import FieldError, StoreError, TrainingError
from hematokit.pipelines.tile import tile
from hematokit.store import create_store, import_crops, open_store, split_store, verify_store
from hematokit.training.data import select_cells

EARLIER = Path(__file__).resolve().parent.parent / "earlier"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Four fields of three cells and three crops, without patients, split."""
    noise = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    rows = []
    for number in range(4):
        pixels = noise.integers(0, 256, (80, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"f{number}.png")
        rows += [f"f{number},{20 + 15 * cell},40,{('BLA', 'LYT')[cell % 2]}" for cell in range(3)]
    (tmp_path / "cells.csv").write_text("\n".join(["field_id,y,x,label", *rows]) + "\n")
    path = tmp_path / "store.zarr"
    tile([tmp_path / "in"], path, cells=tmp_path / "cells.csv", patch_size=16)
    (tmp_path / "crops" / "BLA").mkdir(parents=True)
    for number in range(3):
        pixels = noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "crops" / "BLA" / f"c{number}.png")
    import_crops(tmp_path / "crops", path)
    split_store(path, (0.5, 0.25, 0.25))
    return path


def table(folder: Path, *rows: str) -> Path:
    path = folder / "smears.csv"
    path.write_text("\n".join(["file,smear_id,patient_id", *rows]) + "\n")
    return path


def test_fields_crops_and_their_cells_get_their_patients(store: Path, tmp_path: Path) -> None:
    before = open_store(store)
    assert before.cells.groupby("field_id")["split"].first().nunique() == 3
    named = table(tmp_path, "f0.png,S0,P1", "in/f1.png,S1,P1", "f2,,P1", "crops/BLA/c1.png,S9,P1", "f9.png,S7,P7")
    summary = set_smears(store, named)
    assert (summary.named, summary.fields, summary.cells) == (4, 4, 10)
    assert any("f9.png in line 6" in warning for warning in summary.warnings)
    assert any("5 of 15 cells of the store have no patient" in warning for warning in summary.warnings)
    opened = open_store(store)
    expected = {"f0": ("S0", "P1"), "f1": ("S1", "P1"), "f2": ("", "P1"), "f3": ("", ""), "c1": ("S9", "P1")}
    expected |= {"c0": ("", ""), "c2": ("", "")}
    for frame in (opened.fields, opened.cells):
        for row in frame.itertuples():
            assert (row.smear_id, row.patient_id) == expected[row.field_id]
    cells = opened.cells
    assert cells.loc[cells["patient_id"] == "P1", "group"].nunique() == 1
    assert opened.content_hash == before.content_hash
    assert verify_store(store).ok
    # The split would divide the patient now: it is gone, and the summary says how to make it again.
    assert summary.removed_split == before.split_info
    assert any("hematokit split" in line and "0.5 0.25 0.25 --seed 0" in line for line in summary.lines())
    assert opened.split_info is None
    assert set(cells["split"]) == {""}
    with pytest.raises(TrainingError, match="hematokit split"):
        select_cells(opened)
    split_store(store, (0.5, 0.25, 0.25))
    assert open_store(store).cells.query("patient_id == 'P1'")["split"].nunique() == 1
    # Who opened the store before still reads what was there then.
    assert set(before.fields["patient_id"]) == {""}

    again = set_smears(store, named)
    assert (again.fields, again.cells, again.removed_split) == (0, 0, None)


def test_a_split_that_divides_nobody_stays(store: Path, tmp_path: Path) -> None:
    before = open_store(store)
    summary = set_smears(store, table(tmp_path, *(f"f{number}.png,S{number},P{number}" for number in range(4))))
    opened = open_store(store)
    assert summary.removed_split is None
    assert opened.split_info == before.split_info
    assert opened.cells["split"].tolist() == before.cells["split"].tolist()


def test_what_was_refused_for_its_smear_is_no_reject_any_more(store: Path, tmp_path: Path) -> None:
    named = table(tmp_path, "f0.png,S0,P1", "f1.png,S1,P1")
    summary = tile([tmp_path / "in"], store, cells=tmp_path / "cells.csv", smears=named)
    assert summary.rejected == {"smear-differs": 2}
    assert any(f"hematokit store set-smears {store} {named}" in warning for warning in summary.warnings)
    set_smears(store, named)
    assert len(open_store(store).rejects) == 0
    assert tile([tmp_path / "in"], store, cells=tmp_path / "cells.csv", smears=named).present_fields == 4


def test_mistakes_change_nothing(store: Path, tmp_path: Path) -> None:
    before = (store / "cells.parquet").read_bytes(), (store / "fields.parquet").read_bytes()
    with pytest.raises(FieldError, match="names none of the 7 fields"):
        set_smears(store, table(tmp_path, "g0.png,S0,P1"))
    with pytest.raises(FieldError, match="both name"):
        set_smears(store, table(tmp_path, "f0.png,S0,P1", "F0.PNG,S0,P2"))
    assert before == ((store / "cells.parquet").read_bytes(), (store / "fields.parquet").read_bytes())
    create_store(tmp_path / "empty.zarr")
    with pytest.raises(StoreError, match="no fields and no crops"):
        set_smears(tmp_path / "empty.zarr", table(tmp_path, "f0.png,S0,P1"))


@pytest.mark.parametrize("version", sorted(path.name for path in EARLIER.iterdir() if path.is_dir()))
def test_a_store_of_an_earlier_version(version: str, tmp_path: Path) -> None:
    for name in ("fields.zarr", "crops.zarr"):
        path = tmp_path / name
        shutil.copytree(EARLIER / version / name, path)
        before = open_store(path)
        ids = before.cells["field_id"].unique()[:2]
        summary = set_smears(path, table(tmp_path, *(f"{field_id},S,P" for field_id in ids)))
        assert summary.fields == 2
        cells = open_store(path).cells
        assert (cells["patient_id"] == "P").tolist() == cells["field_id"].isin(ids).tolist()
        assert verify_store(path).ok


# Sets the smears of argv[1] by argv[2]; dies by SIGKILL just before or after it writes one of the two tables.
CHILD = """
import os, signal, sys
from hematokit import set_smears
from hematokit.store import schema

store, table, step, when = sys.argv[1:]
write = getattr(schema, step)
def deadly(*arguments):
    if when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    write(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(schema, step, deadly)
set_smears(store, table)
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
@pytest.mark.parametrize(
    ("step", "when", "patient"),
    [
        ("write_fields", "before", ""),
        ("write_fields", "after", ""),
        ("write_cells", "before", ""),
        ("write_cells", "after", "P1"),
    ],
)
def test_killed_it_leaves_the_old_or_the_new(store: Path, tmp_path: Path, step: str, when: str, patient: str) -> None:
    named = table(tmp_path, *(f"f{number}.png,S1,P1" for number in range(4)))
    command = [sys.executable, "-c", CHILD, str(store), str(named), step, when]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr
    opened = open_store(store)
    of_cells = opened.cells[opened.cells["field_id"].str.startswith("f")]
    assert set(of_cells["patient_id"]) == set(opened.fields["patient_id"]) == {patient}
    assert (opened.split_info is None) == bool(patient)
    # A field tiled now, or the same again, finds the store whole.
    Image.fromarray(np.full((60, 60, 3), 200, np.uint8)).save(tmp_path / "in" / "g.png")
    cells = pd.read_csv(tmp_path / "cells.csv")
    pd.concat([cells, pd.DataFrame({"field_id": ["g"], "y": 9, "x": 9, "label": "BLA"})]).to_csv(
        tmp_path / "cells.csv", index=False
    )
    summary = tile([tmp_path / "in"], store, cells=tmp_path / "cells.csv")
    assert (summary.present_fields, summary.added_fields) == (4, 1)
    set_smears(store, named)
    opened = open_store(store)
    assert opened.fields.set_index("field_id")["patient_id"].to_dict() == dict.fromkeys(
        ["f0", "f1", "f2", "f3"], "P1"
    ) | {"g": ""}
    assert verify_store(store).ok
