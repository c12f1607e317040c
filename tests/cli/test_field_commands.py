"""`hematokit detect` and `hematokit classify` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hematokit.cli.main import main
from hematokit.detection.windows import match_cells
from hematokit.synthetic import PIXEL_SIZE_UM, SyntheticField, synthesize_field


@pytest.fixture(scope="module")
def drawn() -> list[SyntheticField]:
    return [synthesize_field(600, 700, cells=8, seed=number) for number in range(2)]


@pytest.fixture(scope="module")
def fields(drawn: list[SyntheticField], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fields")
    for number, field in enumerate(drawn):
        dots = 25_400 / PIXEL_SIZE_UM
        Image.fromarray(field.pixels).save(folder / f"field{number}.png", dpi=(dots, dots))
    return folder


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_detect_finds_the_drawn_cells(
    fields: Path, drawn: list[SyntheticField], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("detect", fields, "--output", tmp_path / "out", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["fields"] == 2
    assert said["failed"] == []
    cells = pd.read_csv(tmp_path / "out" / "cells.csv")
    pd.testing.assert_series_equal(
        pd.read_parquet(tmp_path / "out" / "cells.parquet")["cell_id"].astype(str),
        cells["cell_id"].astype(str),
    )
    table = pd.read_csv(tmp_path / "out" / "fields.csv")
    np.testing.assert_allclose(table["pixel_size_um"], PIXEL_SIZE_UM, rtol=1e-3)
    for number, field in enumerate(drawn):
        matches = match_cells(cells[cells["field_id"] == f"field{number}"], field.table())
        assert matches.recall >= 0.7
        assert matches.precision >= 0.7
        assert (tmp_path / "out" / "fields" / f"field{number}" / "overlay.png").stat().st_size > 10_000


def test_classify_writes_everything_that_it_says(
    fields: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "smears.csv").write_text("file,smear_id,patient_id\nfield0.png,S1,P1\nfield1.png,S2,P1\n")
    words = ("classify", fields, "--model", tiny_run, "--output", tmp_path / "out", "--smears", tmp_path / "smears.csv")
    assert run(*words, "--min-probability", "0.4", "--runtime", "torch") == 0
    said = capsys.readouterr().out
    assert "cells in 2 fields" in said
    assert "research use only" in said.lower()
    out = tmp_path / "out"
    differential = json.loads((out / "differential.json").read_text())
    assert {entry["smear_id"] for entry in differential["smears"]} == {"S1", "S2"}
    assert {entry["patient_id"] for entry in differential["patients"]} == {"P1"}
    counted = pd.read_csv(out / "differential.csv")
    parts = [pd.read_parquet(file) for file in sorted(out.glob("fields/*/cells.parquet"))]
    cells = pd.concat(parts)
    sure = cells[cells["probability"] >= 0.4]
    whole = counted[(counted["level"] == "all") & (counted["kind"] == "class")].set_index("code")["count"]
    assert whole.to_dict() == {code: int((sure["predicted"] == code).sum()) for code in ("BLA", "NGS", "LYT")}
    report = (out / "report.html").read_text()
    assert "fields/field0/overlay.png" in report
    assert "esearch use only" in report
    for name in ("cell_types.png", "fields.csv", "run.json", "fields/field1/overlay.png"):
        assert (out / name).stat().st_size > 0
    features = json.loads((out / "fields" / "field0" / "cells.geojson").read_text())["features"]
    assert len(features) == len(parts[0])

    # The same again: nothing is done, the same is said.
    before = {file: file.stat().st_mtime_ns for file in out.rglob("fields/*/*")}
    assert run(*words, "--min-probability", "0.4", "--runtime", "torch") == 0
    assert {file: file.stat().st_mtime_ns for file in out.rglob("fields/*/*")} == before


def test_smears_that_fit_in_part_are_a_warning(
    fields: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "part.csv").write_text("file,patient_id\nfield0.png,P1\nfield-1.png,P1\n")
    for words in (["detect"], ["classify", "--model", tiny_run, "--runtime", "torch"]):
        words += [fields, "--output", tmp_path / words[0], "--smears", tmp_path / "part.csv"]
        assert run(*words) == 0
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Warning: ")]
        assert any("for 1 of 2 fields (field1.png)" in line for line in said)
        assert any("1 of 2 rows" in line and "field-1.png in line 3" in line for line in said)
        assert run(*words, "--json") == 0
        warnings = json.loads(capsys.readouterr().out)["warnings"]
        assert {f"Warning: {warning}" for warning in warnings} <= set(said)
        assert sum("part.csv" in warning for warning in warnings) == 2


def test_classify_in_onnxruntime_says_the_same(fields: Path, tiny_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    for runtime in ("torch", "onnxruntime"):
        output = tmp_path / runtime
        assert run("classify", fields, "--model", tiny_run, "--output", output, "--runtime", runtime) == 0
    for file in sorted((tmp_path / "torch").glob("fields/*/cells.parquet")):
        one = pd.read_parquet(file)
        other = pd.read_parquet(tmp_path / "onnxruntime" / file.relative_to(tmp_path / "torch"))
        assert one["predicted"].tolist() == other["predicted"].tolist()
        np.testing.assert_allclose(one["probability"], other["probability"], atol=1e-4)


def test_a_bad_field_is_named_and_the_command_succeeds(
    fields: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.tif"
    broken.write_bytes(b"II*\0\x08\0\0\0")
    assert run("detect", fields / "field0.png", broken, "--output", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "Failed: " in said
    assert "broken.tif" in said
    assert set(pd.read_csv(tmp_path / "out" / "fields.csv")["status"]) == {"done", "failed"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["detect", "FIELDS/nowhere.png", "--output", "OUT"], "nowhere.png"),
        (["detect", "FIELDS", "--output", "OUT", "--detector", "nosuch"], "nosuch"),
        (["detect", "FIELDS", "--output", "OUT", "--set", "nonsense"], "detector.NAME=VALUE"),
        (["detect", "FIELDS", "--output", "OUT", "--set", "detector.nosuch=1"], "no option"),
        (["detect", "FIELDS", "--output", "OUT", "--pixel-size", "nan"], "pixel size"),
        (["detect", "FIELDS", "--output", "OUT", "--smears", "FIELDS/none.csv"], "none.csv"),
        (["detect", "FIELDS", "--output", "OUT", "--smears", "WRONG"], "names none of the 2 fields"),
        (["detect", "FIELDS", "--output", "FULL"], "holds something else"),
        (["classify", "FIELDS", "--model", "FIELDS", "--output", "OUT"], "neither a run nor a bundle"),
        (["classify", "FIELDS", "--model", "RUN", "--output", "OUT", "--runtime", "abacus"], "abacus"),
        (["classify", "FIELDS", "--model", "RUN", "--output", "OUT", "--model-pixel-size", "30"], "pixel size"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    words: list[str], says: str, fields: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "wrong.csv").write_text("file,patient_id\nfield-0.png,P1\n")
    places = {"FIELDS": fields, "OUT": tmp_path / "out", "FULL": tmp_path / "full", "RUN": tiny_run}
    places["WRONG"] = tmp_path / "wrong.csv"
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert says in error
    assert len([line for line in error.splitlines() if line.startswith("hematokit: ")]) == 1
    assert "Traceback" not in error
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["mine.txt"]
    assert "--smears" not in words or not (tmp_path / "out").exists()
