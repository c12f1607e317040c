"""Every command with class codes that YAML, CSV readers, templates and tables like to take for something else."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

import hematokit
from hematokit.annotations.writing import read_parquet
from hematokit.cli.main import main
from hematokit.review.session import Review
from hematokit.synthetic import synthesize_field
from servingkit import command, running
from tinykit import TINY, write_crops

CODES = ("0", "1", "02", "NO", "on", "1e5", "nan", "None", "True", "null", "NA", "p_BLA", "items", "values", "010")
LEFT_OUT = ("02", "None")
KEPT = tuple(code for code in CODES if code not in LEFT_OUT)
TRAIN = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]


def run(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


def text_table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a taxonomy, a store, a run that was stopped and resumed, and its copy."""
    folder = tmp_path_factory.mktemp("lab")
    lines = [
        f"  - {{code: {code}, name: Off{number}, colour: '#00{number:02}ff'}}" for number, code in enumerate(CODES)
    ]
    (folder / "lab.yaml").write_text("\n".join(["name: 007", "classes:", *lines]) + "\n")
    write_crops(folder / "crops", dict.fromkeys(CODES, 6))
    write_crops(folder / "more", dict.fromkeys(CODES, 2), seed=1)
    rows = [
        f"{path.relative_to(folder / 'more')},{path.parent.name},NA,{number:03}"
        for number, path in enumerate(sorted((folder / "more").rglob("*.png")))
    ]
    (folder / "more" / "labels.csv").write_text("\n".join(["path,label,smear_id,patient_id", *rows]) + "\n")
    store = ["lab.zarr", "--taxonomy", folder / "lab.yaml", "--patch-size", 64, "--no-near-duplicates"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run("import", "crops", *store)
        run("import", "more/labels.csv", *store)
        run("split", "lab.zarr", "--fractions", 0.4, 0.2, 0.4)
        left_out = ["--exclude", ",".join(LEFT_OUT)]
        run("train", "lab.zarr", *TRAIN, *left_out, "--output", "run", "--epochs", 2, "--stop-after", 1)
        run("train", "--resume", "--output", "run", *left_out)
        run("evaluate", "run", "--device", "cpu")
    shutil.copytree(folder / "run", folder / "again")
    return folder


@pytest.fixture(scope="module")
def fields(lab: Path) -> Path:
    """Two drawn fields and their cells in every format that ``tile`` reads."""
    (lab / "fields").mkdir()
    tables = []
    for number in range(2):
        field = synthesize_field(600, 700, cells=8, seed=number)
        Image.fromarray(field.pixels).save(lab / "fields" / f"00{number}.png")
        table = field.table()
        order = np.arange(len(table)) + 8 * number
        tables.append(table.assign(label=np.array(CODES)[order % len(CODES)], field_id=f"00{number}"))
    (lab / "smears.csv").write_text("file,smear_id,patient_id\n000.png,NA,007\n001.png,01,null\n")
    for name in ("voc", "yolo", "geojson"):
        (lab / name).mkdir()
    for number, table in enumerate(tables):
        objects, lines, features = "", "", []
        for label, y, x, h, w in table[["label", "y0", "x0", "height", "width"]].itertuples(index=False):
            corners = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
            objects += f"<object><name>{label}</name><bndbox>{corners}</bndbox></object>"
            lines += f"{CODES.index(label)} {(x + w / 2) / 700} {(y + h / 2) / 600} {w / 700} {h / 600}\n"
            ring = [[x, y], [x + w, y], [x + w, y + h], [x, y + h], [x, y]]
            properties = {"classification": {"name": int(label) if label in ("0", "1") else label}}
            geometry = {"type": "Polygon", "coordinates": [[list(map(int, point)) for point in ring]]}
            features.append({"type": "Feature", "geometry": geometry, "properties": properties})
        (lab / "voc" / f"00{number}.xml").write_text(f"<annotation>{objects}</annotation>")
        (lab / "yolo" / f"00{number}.txt").write_text(lines)
        document = {"type": "FeatureCollection", "features": features}
        (lab / "geojson" / f"00{number}.geojson").write_text(json.dumps(document))
    (lab / "yolo" / "data.yaml").write_text(f"names: [{', '.join(CODES)}]\n")
    (lab / "map.yaml").write_text("\n".join(f"{code}: {CODES[-1 - place]}" for place, code in enumerate(CODES)))
    pd.concat(tables).to_csv(lab / "cells.csv", index=False)
    return lab / "fields"


def test_a_store_has_the_labels_of_folders_and_tables(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = hematokit.open_store(lab / "lab.zarr")
    assert store.taxonomy.codes == CODES
    assert store.taxonomy.name == "007"
    cells = store.cells
    assert cells["label"].value_counts().to_dict() == dict.fromkeys(CODES, 8)
    assert [Path(path).parent.name for path in cells["source"]] == cells["label"].tolist()
    assert set(cells["smear_id"]) == {"", "NA"}
    assert set(cells["patient_id"]) == {"", *(f"{number:03}" for number in range(2 * len(CODES)))}
    run("store", "info", lab / "lab.zarr", "--json")
    assert json.loads(capsys.readouterr().out)["classes"] == dict.fromkeys(CODES, 8)


def test_a_run_knows_its_classes_and_their_cells(lab: Path) -> None:
    facts = yaml.safe_load((lab / "run" / "config.yaml").read_text())["facts"]
    assert facts["classes"] == list(KEPT)
    assert set(facts["left_out"]) == set(LEFT_OUT)
    assert hematokit.load_model(lab / "run", device="cpu").codes == KEPT
    folder = lab / "run" / "evaluation" / "test"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert tuple(metrics["per_class"]) == KEPT
    table = text_table(folder / "table2.csv")
    assert table["code"].tolist() == list(KEPT)
    assert table["name"].tolist() == [f"Off{CODES.index(code)}" for code in KEPT]
    predictions = pd.read_parquet(folder / "predictions.parquet")
    store = hematokit.open_store(lab / "lab.zarr").cells.set_index("cell_id")
    assert predictions["label"].tolist() == store.loc[predictions["cell_id"], "label"].tolist()
    assert set(predictions["label"]) == set(KEPT)
    assert all(f"p_{code}" in predictions for code in KEPT)


def test_one_class_against_the_rest(lab: Path) -> None:
    words = ["--one-vs-rest", "null", "--exclude", "None,", "--epochs", 1, "--output", lab / "rest"]
    run("train", lab / "lab.zarr", *TRAIN, *words)
    run("evaluate", lab / "rest", "--device", "cpu")
    assert hematokit.load_model(lab / "rest", device="cpu").codes == ("null", "rest")
    assert yaml.safe_load((lab / "rest" / "config.yaml").read_text())["facts"]["left_out"] == {"None": 8}


def test_images_of_folders_are_scored(lab: Path) -> None:
    run("evaluate", lab / "run", "--images", lab / "crops", "--device", "cpu", "--output", lab / "images")
    metrics = json.loads((lab / "images" / "metrics.json").read_text())
    assert {code: entry["support"] for code, entry in metrics["per_class"].items()} == dict.fromkeys(KEPT, 6)


def test_runs_are_compared(lab: Path) -> None:
    run("compare", lab / "run", lab / "again", "--device", "cpu", "--output", lab / "comparison")
    assert text_table(lab / "comparison" / "comparison.csv")["code"].tolist() == list(KEPT)
    page = (lab / "comparison" / "comparison.html").read_text()
    assert all(f"</span>{code} *</span>" in page for code in KEPT)


def test_cells_are_explained(lab: Path) -> None:
    words = ["explain", lab / "run", "--device", "cpu", "--per-class", 1, "--methods", "grad-cam"]
    run(*words, "--uncertain", "--target", "NO", "--output", lab / "why")
    cells = pd.read_parquet(lab / "why" / "cells.parquet")
    assert set(cells["label"]) == set(KEPT)
    assert set(cells["target"]) == {"NO"}
    training = ["--train-per-class", 2, "--set", "training.epochs=1"]
    run(*words, "--sanity", "--faithfulness", *training, "--output", lab / "checks")
    assert set(text_table(lab / "checks" / "faithfulness.csv")["label"]) == {"", *KEPT}


@pytest.mark.parametrize("format", ["onnx", "bioimageio", "wsinfer", "huggingface"])
def test_exported_models_have_their_classes(lab: Path, format: str) -> None:
    target = lab / {"onnx": "model.onnx", "bioimageio": "model.zip"}.get(format, format)
    run("export", lab / "run", "--output", target, "--format", format, "--pixel-size", 0.1)
    if format == "onnx":
        run("evaluate", target, "--store", lab / "lab.zarr", "--output", lab / "from-onnx")
        assert tuple(json.loads((lab / "from-onnx" / "metrics.json").read_text())["per_class"]) == KEPT
    elif format == "bioimageio":
        from bioimageio.spec import load_model_description

        described = load_model_description(target, perform_io_checks=False)
        assert all(list(output.axes[1].channel_names) == list(KEPT) for output in described.outputs)
    else:
        config = json.loads((target / "config.json").read_text())
        assert config.get("class_names", config.get("label_names")) == list(KEPT)


@pytest.mark.parametrize("cells", ["cells.csv", "voc", "yolo", "geojson"])
def test_annotations_keep_their_classes(lab: Path, fields: Path, cells: str, tmp_path: Path) -> None:
    given = text_table(lab / "cells.csv")["label"]
    words = ["tile", fields, "--cells", lab / cells, "--taxonomy", lab / "lab.yaml", "--patch-size", 64]
    words += ["--smears", lab / "smears.csv", "--pixel-size", 0.1]
    run(*words, tmp_path / "plain.zarr")
    stored = hematokit.open_store(tmp_path / "plain.zarr").cells
    assert sorted(stored["label"]) == sorted(given)
    assert set(zip(stored["smear_id"], stored["patient_id"], strict=True)) == {("NA", "007"), ("01", "null")}
    run(*words, tmp_path / "mapped.zarr", "--class-map", lab / "map.yaml", "--only", "02", "--only", "NA")
    reverse = dict(zip(CODES, reversed(CODES), strict=True))
    stored = hematokit.open_store(tmp_path / "mapped.zarr").cells
    # What is given after --only is a name of the file or a code that it means.
    wanted = [reverse[name] for name in given if {name, reverse[name]} & {"02", "NA"}]
    assert sorted(stored["label"]) == sorted(wanted)


def test_fields_are_classified_corrected_and_exported(lab: Path, fields: Path, tmp_path: Path) -> None:
    words = ["classify", fields, "--model", lab / "run", "--smears", lab / "smears.csv", "--runtime", "torch"]
    run(*words, "--min-probability", 0, "--output", tmp_path / "out")
    cells = pd.concat([pd.read_parquet(file) for file in sorted((tmp_path / "out").glob("fields/*/cells.parquet"))])
    counted = text_table(tmp_path / "out" / "differential.csv")
    whole = counted[(counted["level"] == "all") & (counted["kind"] == "class")]
    assert whole["code"].tolist() == list(KEPT)
    assert whole["count"].tolist() == [str((cells["predicted"] == code).sum()) for code in KEPT]
    assert set(counted["patient_id"]) == {"", "007", "null"}
    assert set(counted["smear_id"]) == {"", "NA", "01"}

    table = read_parquet(tmp_path / "out" / "fields" / "000" / "cells.parquet")
    review = Review(table, hematokit.load_taxonomy(lab / "lab.yaml"), field_id="000", journal=tmp_path / "j.jsonl")
    given = [CODES[place % len(CODES)] for place in range(2, len(table) + 2)]
    for cell, code in zip(table["cell_id"], given, strict=True):
        review.correct([cell], code)
    assert review.shown_label().tolist() == given
    again = Review(table, review.taxonomy, field_id="000", journal=tmp_path / "j.jsonl")
    assert again.cells["label"].tolist() == given
    (tmp_path / "one").mkdir()
    shutil.copy(fields / "000.png", tmp_path / "one")
    for ending in ("csv", "geojson"):
        again.export(tmp_path / f"000.{ending}")
        store = tmp_path / f"{ending}.zarr"
        words = ["--taxonomy", lab / "lab.yaml", "--patch-size", 64]
        run("tile", tmp_path / "one", store, "--cells", tmp_path / f"000.{ending}", *words)
        assert sorted(hematokit.open_store(store).cells["label"]) == sorted(given)


def test_a_server_answers_with_them(lab: Path, tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    crop = next((lab / "crops" / "02").iterdir())
    model = hematokit.load_model(lab / "run", device="cpu")
    expected = model.predict(np.asarray(Image.open(io.BytesIO(crop.read_bytes())))[None])
    words = command("serve", lab / "run", "--port", "0", "--json", "--runtime", "torch", "--device", "cpu")
    with running(words, tmp_path / "tmp") as server, server.client() as client:
        (cell,) = client.post("/v1/cells", content=crop.read_bytes()).json()["cells"]
    assert cell["predicted"] == expected["predicted"].iloc[0]
    assert tuple(cell["probabilities"]) == KEPT
