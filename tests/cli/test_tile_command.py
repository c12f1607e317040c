"""The command tile, as a user types it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hematokit.cli.main import main
from hematokit.store import import_crops, open_store
from hematokit.training.data import select_cells
from tinykit import write_crops


class Run:
    """What a command printed, and its exit code."""

    def __init__(self, capsys: pytest.CaptureFixture[str], arguments: Sequence[str | Path]) -> None:
        capsys.readouterr()
        self.code = main([str(argument) for argument in arguments])
        self.out, self.err = capsys.readouterr()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which somebody works: four fields, VOC files, and a table of smears."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fields ü").mkdir()
    (tmp_path / "voc").mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (4, 90, 120, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "fields ü" / f"f{number}.png")
        places = [("Blast", 10, 10), ("lympho", 60, 60), ("RBC", 5, 5), ("Blast", 110, 80)]
        objects = [
            f"<object><name>{name}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + 20}</xmax>"
            f"<ymax>{y + 20 if number else y - 1}</ymax></bndbox></object>"
            for name, x, y in places
        ]
        (tmp_path / "voc" / f"f{number}.xml").write_text(f"<annotation>{''.join(objects)}</annotation>")
    lines = [f"f{number}.png,S{number},P{number}" for number in range(4)]
    (tmp_path / "smears.csv").write_text("\n".join(["file,smear_id,patient_id", *lines]) + "\n")
    return tmp_path


TILE = [
    "tile",
    "fields ü",
    "store.zarr",
    "--cells",
    "voc",
    "--class-map",
    "lympho=LYT",
    "--only",
    "BLA",
    "--only",
    "LYT",
]


def test_the_way_from_fields_to_a_split(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(capsys, [*TILE, "--patch-size", "32", "--smears", "smears.csv", "--pixel-size", "0.2"])
    assert (run.code, run.err) == (0, "")
    assert "9 cells of 4 fields added to store.zarr" in run.out
    assert "3 reversed-box" in run.out
    assert "left out by class: RBC 4" in run.out
    assert "3 boxes left their field by a part" in run.out
    assert "the store holds 4 fields and 9 cells: BLA 6, LYT 3" in run.out

    run = Run(capsys, [*TILE, "--smears", "smears.csv", "--pixel-size", "0.2", "--json"])
    summary = json.loads(run.out)
    assert (summary["present_fields"], summary["added"], summary["rejected"]) == (4, 0, {"reversed-box": 3})

    assert "f0.xml, object 1: its box" in Run(capsys, ["store", "info", "store.zarr", "--rejects"]).out
    info = json.loads(Run(capsys, ["store", "info", "store.zarr", "--json"]).out)
    assert (info["fields"], info["patients"], info["smears"], info["unlabelled"]) == (4, 3, 3, 0)
    assert Run(capsys, ["split", "store.zarr"]).code == 0
    run = Run(capsys, ["store", "verify", "store.zarr"])
    assert (run.code, run.err) == (0, "")
    assert "9 patches and 4 fields" in run.out


def test_smears_that_fit_in_part_are_a_warning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "part.csv").write_text("file,patient_id\nf0.png,P0\nf-1.png,P0\n")
    run = Run(capsys, [*TILE, "--patch-size", "32", "--smears", "part.csv"])
    assert run.code == 0
    assert "Warning: part.csv gives no smear and no patient for 3 of 4 fields (f1.png, f2.png, f3.png)\n" in run.out
    assert "Warning: 1 of 2 rows of part.csv were used for no field given (f-1.png in line 3)\n" in run.out
    summary = json.loads(Run(capsys, [*TILE, "--smears", "part.csv", "--json"]).out)
    assert sum("part.csv" in warning for warning in summary["warnings"]) == 2


def test_wrong_smears_and_cells_are_mended_in_the_store(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Run(capsys, [*TILE, "--patch-size", "32"]).code == 0
    assert Run(capsys, ["split", "store.zarr", "--fractions", "0.4", "0.3", "0.3"]).code == 0
    (folder / "smears.csv").write_text("file,patient_id\n" + "".join(f"f{number}.png,P\n" for number in range(4)))
    run = Run(capsys, [*TILE, "--smears", "smears.csv"])
    assert (run.code, "hematokit store set-smears store.zarr smears.csv" in run.out) == (0, True)
    run = Run(capsys, ["store", "set-smears", "store.zarr", "smears.csv"])
    assert run.code == 0
    assert "9 cells of 4 fields" in run.out
    assert "Warning: the split was removed" in run.out
    run = Run(capsys, ["train", "store.zarr", "--output", "run", "--backbone", "timm:test_resnet"])
    assert (run.code, "hematokit split store.zarr" in run.err) == (2, True)
    Run(capsys, ["split", "store.zarr", "--fractions", "0.4", "0.3", "0.3"])
    assert open_store("store.zarr").cells["split"].nunique() == 1
    summary = json.loads(Run(capsys, ["store", "set-smears", "store.zarr", "smears.csv", "--json"]).out)
    assert (summary["cells"], summary["removed_split"]) == (0, None)
    run = Run(capsys, ["store", "set-smears", "store.zarr", "voc"])
    assert (run.code, run.err.count("\n")) == (2, 1)

    for path in (folder / "voc").glob("*.xml"):
        first = "<name>Blast</name><bndbox><xmin>10<"
        path.write_text(path.read_text().replace(first, first.replace("Blast", "lympho")))
    assert "3 cells-differ" in Run(capsys, TILE).out
    run = Run(capsys, [*TILE, "--replace"])
    assert run.code == 0
    assert "the cells of 3 fields were replaced: 9 cells removed" in run.out
    assert open_store("store.zarr").cells["label"].value_counts().to_dict() == {"LYT": 6, "BLA": 3}


def test_what_is_not_known_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(capsys, ["tile", "fields ü", "store.zarr", "--cells", "voc", "--patch-size", "32"])
    assert run.code == 0
    assert (
        "note: no pixel size in the file; state it with --pixel-size, in micrometres per pixel (4 of 4 fields)"
        in run.out
    )
    rejects = open_store(folder / "store.zarr").rejects
    assert set(rejects["reason"]) == {"unknown-class", "reversed-box"}
    assert any("--class-map 'RBC=CODE'" in message for message in rejects["message"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--cells", "nothing"], "nothing does not exist"),
        (["--cells", "smears.csv"], "needs xmin, ymin, xmax, ymax"),
        (["--cells", "voc", "--class-map", "lympho=XXX"], "'XXX'"),
        (["--cells", "voc", "--pixel-size", "nan"], "pixel size"),
        (["--cells", "voc", "--taxonomy", "none.yaml"], "none.yaml"),
        (["--detector", "nobody"], "nobody"),
        (["--set", "detector"], "detector.NAME=VALUE"),
        (["--only", "BLA"], "--cells"),
        (["--cells", "voc", "--smears", "wrong.csv"], "wrong.csv names none of the 4 fields"),
        (["--cells", "voc", "--smears", "twice.csv"], "lines 2 and 3 both name"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    (folder / "wrong.csv").write_text((folder / "smears.csv").read_text().replace("\nf", "\nfield-"))
    (folder / "twice.csv").write_text("file,patient_id\nf0.png,P0\nf0.PNG,P1\n")
    run = Run(capsys, ["tile", "fields ü", "store.zarr", *more])
    assert (run.code, run.out) == (2, "")
    assert run.err.count("\n") == 1
    assert message in run.err
    assert not (folder / "store.zarr").exists()


def test_fields_and_crops_share_a_store_and_unlabelled_cells_are_not_trained_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_crops(folder / "crops", {"BLA": 12, "LYT": 12}, size=32)
    import_crops(folder / "crops", "store.zarr", patch_size=32)
    run = Run(capsys, [*TILE[:5], "--class-map", "lympho=", "--class-map", "Blast=", "--class-map", "RBC="])
    assert run.code == 0
    assert "without a label 12" in run.out
    run = Run(capsys, ["split", "store.zarr"])
    assert "note: 12 cells without a label are in no split" in run.out
    data = select_cells(open_store(folder / "store.zarr"))
    assert data.unlabelled == 12
    assert sum(len(part) for part in data.splits.values()) == 24
    assert data.left_out == {}
    assert "24 cells added" not in Run(capsys, ["import", "crops", "store.zarr"]).out
    assert "in no split yet" not in Run(capsys, ["import", "crops", "store.zarr"]).out


def test_training_says_that_cells_without_a_label_take_no_part(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_crops(folder / "crops", {"BLA": 12, "LYT": 12}, size=64)
    Run(capsys, ["import", "crops", "store.zarr", "--patch-size", "64", "--no-near-duplicates"])
    Run(capsys, [*TILE[:5], "--class-map", "lympho=", "--class-map", "Blast=", "--class-map", "RBC="])
    Run(capsys, ["split", "store.zarr"])
    arguments = ["--backbone", "timm:test_resnet", "--image-size", "64", "--epochs", "1", "--device", "cpu"]
    run = Run(capsys, ["train", "store.zarr", "--output", "run", *arguments])
    assert run.code == 0, run.err
    assert "12 cells of the store have no label and are not used" in run.out
    run = Run(capsys, ["evaluate", "run", "--device", "cpu", "--split", "all"])
    assert run.code == 0, run.err
