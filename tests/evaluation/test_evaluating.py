"""Evaluating over a store and over a folder, with a stand-in for the network."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hematokit import load_model
from hematokit.cli.main import main
from hematokit.errors import EvaluationError, ModelError
from hematokit.evaluation.evaluating import evaluate_images, evaluate_store
from hematokit.evaluation.files import read_predictions, write_evaluation
from hematokit.models import TrainingRecord
from hematokit.store import StoreWriter, create_store, import_crops, open_store, set_pixel_size, split_store
from hematokit.synthetic import PIXEL_SIZE_UM
from hematokit.taxonomy import MATEK_21, CellClass, Taxonomy
from tinykit import COLOURS, write_crops


@dataclass
class ByColour:
    """Knows the classes by their mean colour, as the tiny crops are drawn."""

    codes: tuple[str, ...] = ("BLA", "NGS", "LYT")
    patch_size: int = 64
    temperature: float = 1.0
    training: dict[str, Any] = field(default_factory=dict)
    batches: list[int] = field(default_factory=list)

    @property
    def taxonomy(self) -> Taxonomy:
        if "rest" in self.codes:
            return Taxonomy("one", (CellClass(self.codes[0], "This one"), CellClass("rest", "All others")))
        return MATEK_21.subset(self.codes)

    pixel_size_um: float | None = None

    @property
    def config(self) -> Any:
        return SimpleNamespace(
            training=TrainingRecord(**self.training), backbone=SimpleNamespace(name="colour", variant="v"), created="x"
        )

    def predict(self, patches: np.ndarray, batch_size: int = 64) -> pd.DataFrame:
        self.batches.append(len(patches))
        anchors = np.array([COLOURS.get(code, (120, 120, 120)) for code in self.codes])
        distance = np.linalg.norm(patches.mean(axis=(1, 2))[:, None] - anchors, axis=2)
        values = np.exp(-distance / 20)
        values /= values.sum(axis=1, keepdims=True)
        return pd.DataFrame(values, columns=[f"p_{code}" for code in self.codes])


def test_a_split_is_predicted_whole_and_scored(tiny_store: Path) -> None:
    store = open_store(tiny_store)
    model = ByColour()
    told: list[tuple[int, int | None]] = []
    result = evaluate_store(
        model, store, batch_size=7, bootstrap=50, progress=lambda done, total, message: told.append((done, total))
    )
    cells = store.cells
    expected = cells[(cells["split"] == "test") & cells["label"].isin(model.codes)]
    assert set(result.predictions["cell_id"]) == set(expected["cell_id"])
    assert max(model.batches) == 7
    assert told[0] == (0, len(expected))
    assert told[-1][0] == len(expected)
    assert list(result.predictions.columns) == [
        *("cell_id", "source", "label", "predicted", "probability"),
        *("p_BLA", "p_NGS", "p_LYT", "group"),
    ]
    by_id = expected.set_index("cell_id")
    assert (by_id.loc[result.predictions["cell_id"], "label"].to_numpy() == result.predictions["label"]).all()
    # The prediction beside a cell belongs to that cell's patch, whatever the order of reading.
    again = model.predict(store.patches(list(result.predictions["cell_id"])))
    assert np.allclose(result.predictions[again.columns], again, atol=1e-6)
    assert (result.read_patches(np.array([3, 0])) == store.patches(result.predictions["cell_id"].iloc[[3, 0]])).all()
    assert result.metrics["accuracy"] == pytest.approx(
        (result.predictions["label"] == result.predictions["predicted"]).mean()
    )
    assert result.left_out == {"ART": int(((cells["split"] == "test") & (cells["label"] == "ART")).sum())}
    assert result.distribution.loc["BLA"].sum() == 48


def test_one_against_the_rest_counts_every_other_class_as_the_rest(tiny_store: Path) -> None:
    store = open_store(tiny_store)
    model = ByColour(codes=("LYT", "rest"), training={"one_vs_rest": "LYT", "exclude": ["ART"]})
    result = evaluate_store(model, store, bootstrap=20)
    table = result.predictions
    assert set(table["label"]) == {"LYT", "rest"}
    assert set(table.loc[table["label"] == "rest", "original_label"]) == {"BLA", "NGS"}
    assert list(result.left_out) == ["ART"]
    assert result.scores is not None
    assert result.scores.per_class["rest"].support == (table["label"] == "rest").sum()


def test_a_store_of_another_taxonomy_is_matched_by_code(tmp_path: Path) -> None:
    write_crops(tmp_path / "crops", {"BLA": 6, "LYT": 5})
    other = tmp_path / "crops" / "XYZ"
    shutil.copytree(tmp_path / "crops" / "LYT", other)
    for path in other.iterdir():
        Image.fromarray(np.asarray(Image.open(path)) // 2).save(path)
    taxonomy = Taxonomy("lab", (CellClass("XYZ", "Ours"), CellClass("LYT", "L"), CellClass("BLA", "B")))
    import_crops(tmp_path / "crops", tmp_path / "s.zarr", taxonomy=taxonomy, patch_size=64, near_duplicates=False)
    result = evaluate_store(ByColour(), open_store(tmp_path / "s.zarr"), "all", bootstrap=20)
    assert result.metrics["n"] == 11
    assert result.left_out == {"XYZ": 5}
    assert result.metrics["per_class"]["NGS"]["recall"] is None


def test_what_cannot_be_evaluated_is_one_clear_line(tiny_store: Path, tmp_path: Path) -> None:
    store = open_store(tiny_store)
    with pytest.raises(EvaluationError, match=r"no cell in a split 'holdout'; give --split train, val, test or all"):
        evaluate_store(ByColour(), store, "holdout")
    with pytest.raises(EvaluationError, match=r"patches of 64 px, the model takes 250 px"):
        evaluate_store(ByColour(patch_size=250), store)
    with pytest.raises(
        EvaluationError, match=r"no cell of a class that the model knows \(EOS, MON\); it has: ART, BLA"
    ):
        evaluate_store(ByColour(codes=("EOS", "MON")), store)
    create_store(tmp_path / "empty.zarr", patch_size=64)
    with pytest.raises(EvaluationError, match="has no cells"):
        evaluate_store(ByColour(), open_store(tmp_path / "empty.zarr"))
    write_crops(tmp_path / "crops", {"BLA": 3, "LYT": 3})
    import_crops(tmp_path / "crops", tmp_path / "unsplit.zarr", patch_size=64, near_duplicates=False)
    with pytest.raises(EvaluationError, match="no split yet; make one with: hematokit split"):
        evaluate_store(ByColour(), open_store(tmp_path / "unsplit.zarr"))


def test_a_model_gone_wrong_is_said_so(tiny_store: Path) -> None:
    class Broken(ByColour):
        def predict(self, patches: np.ndarray, batch_size: int = 64) -> pd.DataFrame:
            return super().predict(patches) * np.nan

    with pytest.raises(ModelError, match="not finite"):
        evaluate_store(Broken(), open_store(tiny_store))


def test_a_reader_is_warned_of_figures_that_are_too_good(tiny_store: Path, tmp_path: Path) -> None:
    store = open_store(tiny_store)
    own = {"store": str(tiny_store), "store_hash": store.content_hash, "split": store.split_info}
    assert evaluate_store(ByColour(training=own), store, bootstrap=0).notes == ()
    (note,) = evaluate_store(ByColour(training=own), store, "train", bootstrap=0).notes
    assert "trained on" in note
    (note,) = evaluate_store(ByColour(training=own), store, "val", bootstrap=0).notes
    assert "validation cells" in note

    copy = tmp_path / "copy.zarr"
    shutil.copytree(tiny_store, copy)
    split_store(copy, fractions=(0.6, 0.2, 0.2), seed=1)
    (note,) = evaluate_store(ByColour(training=own), open_store(copy), bootstrap=0).notes
    assert "split again" in note

    # Another store which holds some cells that were trained on.
    write_crops(tmp_path / "new", {"BLA": 4, "LYT": 4}, seed=9)
    trained = store.cells.query("split == 'train' and label == 'BLA'")["cell_id"].iloc[:2]
    for index, patch in enumerate(store.patches(list(trained))):
        Image.fromarray(patch).save(tmp_path / "new" / "BLA" / f"seen{index}.png")
    import_crops(tmp_path / "new", tmp_path / "new.zarr", patch_size=64, near_duplicates=False)
    (note, scale) = evaluate_store(ByColour(training=own), open_store(tmp_path / "new.zarr"), "all", bootstrap=0).notes
    assert scale.startswith("The pixel size that the model was trained at is not known")
    assert note.startswith("2 of 10 cells")
    (note,) = evaluate_images(ByColour(training=own), tmp_path / "new", bootstrap=0).notes
    assert note.startswith("2 of 10 cells")
    gone = own | {"store": str(tmp_path / "gone.zarr")}
    (note,) = evaluate_images(ByColour(training=gone), tmp_path / "new", bootstrap=0).notes
    assert "out of reach" in note


def test_a_reader_is_warned_of_patients_that_were_trained_on(tiny_store: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_store, tmp_path / "s.zarr")
    store = open_store(tmp_path / "s.zarr")
    cells = store.cells
    own = {"store": str(store.path), "store_hash": store.content_hash, "split": store.split_info}
    first = {split: cells.index[cells["split"] == split][0] for split in ("train", "test")}
    with StoreWriter(store) as writer:
        writer.replace_cells(cells.assign(patient_id=cells["patient_id"].mask(cells.index == first["train"], "P1")))
    assert evaluate_store(ByColour(training=own), store, bootstrap=0).notes == ()
    write_crops(tmp_path / "new", {"BLA": 2, "LYT": 3}, seed=9)
    names = sorted(path.relative_to(tmp_path / "new") for path in (tmp_path / "new").rglob("*.png"))
    rows = [f"{name},{name.parent},P{number % 2}" for number, name in enumerate(names)]
    (tmp_path / "new" / "labels.csv").write_text("\n".join(["path,label,patient_id", *rows]))
    import_crops(tmp_path / "new" / "labels.csv", tmp_path / "new.zarr", patch_size=64, near_duplicates=False)
    (note, scale) = evaluate_store(ByColour(training=own), open_store(tmp_path / "new.zarr"), "all", bootstrap=0).notes
    assert scale.startswith("The pixel size that the model was trained at is not known")
    assert note.startswith("2 of 5 cells have a patient_id of the training or validation split")

    with StoreWriter(store) as writer:
        inside = cells.index.isin(list(first.values()))
        writer.replace_cells(cells.assign(patient_id=cells["patient_id"].mask(inside, "P1")))
    (note,) = evaluate_store(ByColour(training=own), store, bootstrap=0).notes
    assert note.startswith("The split divides the cells of 1 patients (P1)")


def test_cells_of_another_pixel_size_are_a_warning(
    measured_run: Path, tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, other = load_model(measured_run, device="cpu"), Path(shutil.copytree(tiny_store, tmp_path / "other.zarr"))

    def notes(path: Path) -> list[str]:
        return [note for note in evaluate_store(model, open_store(path), bootstrap=0).notes if "pixel size" in note]

    assert notes(other) == []  # the same cells as those of the training
    import_crops(write_crops(tmp_path / "new", {"BLA": 6, "LYT": 6}, seed=9), tmp_path / "new.zarr", patch_size=64)
    split_store(tmp_path / "new.zarr", fractions=(0.4, 0.2, 0.4))
    (said,) = notes(tmp_path / "new.zarr")
    assert said.startswith("The pixel size of the cells is not known: make sure that they have the scale of the model")
    set_pixel_size(tmp_path / "new.zarr", PIXEL_SIZE_UM)
    assert notes(tmp_path / "new.zarr") == []
    for path in (other, tmp_path / "new.zarr"):
        set_pixel_size(path, 0.25, force=True)
        (said,) = notes(path)
        assert said.startswith("The cells have a pixel size of 0.25 um, the model was trained at 0.08625 um: crops are")
    assert main(["evaluate", str(measured_run), "--store", str(other), "--device", "cpu"]) == 0
    assert "Warning: The cells have a pixel size of 0.25 um" in capsys.readouterr().out
    explained = [
        "explain",
        measured_run,
        "--store",
        other,
        "--per-class",
        1,
        "--methods",
        "grad-cam",
        "--device",
        "cpu",
    ]
    for check in ([], ["--faithfulness"]):
        words = [*explained, "--output", tmp_path / f"why{len(check)}", *check, *([] if check else ["--no-figures"])]
        assert main([str(word) for word in words]) == 0
        said = capsys.readouterr().out
        assert any(line.startswith("Warning: ") and "pixel size of 0.25 um" in line for line in said.splitlines())
    for number, size in enumerate((0.25, PIXEL_SIZE_UM)):
        folder = tmp_path / f"images{number}" / "BLA"
        folder.mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(folder / "a.png", dpi=(25_400 / size,) * 2)
        Image.new("RGB", (64, 64)).save(folder / "b.png")
        found = evaluate_images(model, folder.parent, bootstrap=0).notes
        assert ["pixel size of 0.25 um" in note for note in found if "pixel size" in note] == [True] * (1 - number)
        words = [
            "explain",
            measured_run,
            "--images",
            folder,
            "--output",
            tmp_path / f"w{number}",
            "--methods",
            "grad-cam",
        ]
        assert main([str(word) for word in [*words, "--device", "cpu", "--no-figures"]]) == 0
        assert ("pixel size of 0.25 um" in capsys.readouterr().out) is (number == 0)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Labelled, unlabelled, excluded, repeated and unusable images."""
    folder = write_crops(tmp_path / "pictures é", {"BLA": 5, "LYT": 4, "ART": 2})
    (folder / "BLA" / "0001-1000").mkdir()
    (folder / "BLA" / "BLA_0000.png").rename(folder / "BLA" / "0001-1000" / "deep.png")
    (folder / "unsorted").mkdir()
    shutil.copy(folder / "LYT" / "LYT_0000.png", folder / "unsorted" / "a.png")
    (folder / "BLA" / "bad.jpg").write_bytes(b"no picture")
    Image.new("RGB", (32, 32)).save(folder / "LYT" / "small.png")
    (folder / "LYT" / "notes.txt").write_text("not an image")
    (folder / "LYT" / "outside.png").symlink_to("/etc/passwd")
    return folder


def test_images_are_labelled_by_folder_and_bad_ones_listed(pictures: Path) -> None:
    result = evaluate_images(ByColour(training={"exclude": ["ART"]}), pictures, batch_size=3, bootstrap=20)
    table = result.predictions.set_index("cell_id")
    assert len(table) == 12
    assert table.loc["BLA/0001-1000/deep.png", "label"] == "BLA"
    assert table.loc["unsorted/a.png", "label"] == ""
    assert result.metrics["n"] == 9
    assert result.left_out == {"": 1, "ART": 2}
    assert sorted(result.rejects["reason"]) == ["unreadable", "wrong-size"]
    assert any("32x32 px, not 64x64" in message for message in result.rejects["message"])
    # The same picture twice is one observation.
    assert table.loc["unsorted/a.png", "group"] == table.loc["LYT/LYT_0000.png", "group"] != ""
    assert any("2 image files could not be used" in note for note in result.notes)
    (position,) = np.flatnonzero(result.predictions["cell_id"] == "LYT/LYT_0001.png")
    assert (result.read_patches(np.array([position]))[0] == np.asarray(Image.open(pictures / "LYT/LYT_0001.png"))).all()


def test_unlabelled_images_get_predictions_and_no_scores(pictures: Path, tmp_path: Path) -> None:
    result = evaluate_images(ByColour(), pictures / "unsorted")
    assert result.scores is None
    assert list(result.predictions["predicted"]) == ["LYT"]
    assert result.metrics["accuracy"] is None
    paths = write_evaluation(result, tmp_path / "out")
    assert set(paths) == {"predictions"}


def test_folders_without_usable_images_are_errors(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="does not exist"):
        evaluate_images(ByColour(), tmp_path / "nowhere")
    with pytest.raises(EvaluationError, match="no image files"):
        evaluate_images(ByColour(), tmp_path)
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(EvaluationError, match="none of the 1 images can be used"):
        evaluate_images(ByColour(), tmp_path)


def test_files_are_replaced_and_stale_ones_removed(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = write_evaluation(evaluate_images(ByColour(), pictures, bootstrap=20), out)
    assert {"metrics", "predictions", "table2", "rejects"} == set(first)
    (out / "mine.txt").write_text("keep")
    back = read_predictions(out)
    assert back is not None
    assert len(back) == 12
    write_evaluation(evaluate_images(ByColour(), pictures / "unsorted"), out)
    assert sorted(path.name for path in out.iterdir()) == ["mine.txt", "predictions.parquet"]
    assert read_predictions(tmp_path) is None
    (out / "predictions.parquet").write_bytes(b"damaged")
    with pytest.raises(EvaluationError, match="damaged"):
        read_predictions(out)


def test_a_folder_that_cannot_be_written_is_one_line(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EvaluationError, match="cannot write to"):
        write_evaluation(evaluate_images(ByColour(), pictures, bootstrap=0), tmp_path / "file" / "out")
