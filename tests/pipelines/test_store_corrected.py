"""Reviewed cells become a training set, and stay up to date with their review; one missed cell is classified."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hematokit import set_smears
from hematokit.annotations.cells import name_cells
from hematokit.detection.windows import detect_cells, make_detector
from hematokit.errors import FieldError, ImageError
from hematokit.evaluation.evaluating import evaluate_store
from hematokit.imaging.fieldfiles import open_field
from hematokit.imaging.geometry import cut_patch, patch_box
from hematokit.models import Classifier, load_model
from hematokit.models.field_cells import classify_cells
from hematokit.pipelines.classify import classify
from hematokit.pipelines.interactive import classify_one, usual_side
from hematokit.pipelines.store_corrected import store_corrected
from hematokit.pipelines.tile import tile
from hematokit.review.session import Review
from hematokit.store import open_store, open_stored_field, set_pixel_size, split_store, verify_store
from hematokit.store.corrections import CORRECTIONS_FILE, Correction, append_corrections, new_edit, utc_now
from hematokit.taxonomy import MATEK_21
from hematokit.training.data import select_cells

SIZE = 64
QUIET = {"patch_size": SIZE, "near_duplicates": False}


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> Classifier:
    return load_model(tiny_run, device="cpu")


@pytest.fixture
def picture(real_data: Path) -> Path:
    """A real field of bone marrow, 512 px."""
    return real_data / "segpc_marrow_fields" / "images" / "102.jpg"


@pytest.fixture
def classified(picture: Path, model: Classifier) -> pd.DataFrame:
    with open_field(picture) as field:
        cells = name_cells(detect_cells(field, make_detector()), "102", str(picture))
        found = classify_cells(field, cells, model)
    assert len(found) > 5
    return found


@pytest.fixture
def review(classified: pd.DataFrame, tmp_path: Path) -> Review:
    return Review(classified, MATEK_21, field_id="102", who="Ada", journal=tmp_path / CORRECTIONS_FILE)


def labels(store: Path) -> dict[tuple[float, float], str]:
    cells = open_store(store).cells
    return dict(zip(zip(cells["y"], cells["x"], strict=True), cells["label"], strict=True))


def reviewed(review: Review) -> dict[tuple[float, float], str]:
    cells = review.cells[review.cells["reviewed"]]
    return dict(zip(zip(cells["y"], cells["x"], strict=True), cells["label"], strict=True))


# --- one missed cell --------------------------------------------------------------------------------------------------


def test_a_missed_cell_is_classified_where_it_was_pointed_at(
    picture: Path, model: Classifier, classified: pd.DataFrame, review: Review
) -> None:
    with open_field(picture) as field:
        row = classify_one(field, model, 100.5, 60.25, cells=review.cells, field_id="102")
        patch = cut_patch(field.read, field.height, field.width, patch_box(100.5, 60.25, SIZE))
    assert row["cell_id"].item() == "102-00100-00060"
    side = usual_side(classified, None, SIZE)
    assert (row["height"].item(), row["width"].item()) == (side, side)
    expected = model.predict(patch[None])
    assert row["predicted"].item() == expected["predicted"].item()
    assert row["probability"].item() == pytest.approx(expected["probability"].item(), abs=1e-5)
    assert review.add(row) == "102-00100-00060"
    assert review.cells.dtypes.equals(classified.dtypes[review.cells.columns])


def test_a_cell_at_the_corner_has_a_box_inside(picture: Path, model: Classifier) -> None:
    with open_field(picture) as field:
        row = classify_one(field, model, 1.0, 511.0, side=30)
        assert row[["y0", "x0", "height", "width"]].iloc[0].tolist() == [0, 496, 16, 16]
        assert row["touches_border"].item()
        for place in ((-1.0, 5.0), (5.0, 512.0), (float("nan"), 5.0)):
            with pytest.raises(FieldError, match="outside the field of 512x512"):
                classify_one(field, model, *place)


def test_the_usual_side_is_that_of_the_others_else_of_a_cell_in_micrometres() -> None:
    cells = pd.DataFrame({"height": [10, 20, 90], "width": [10, 20, 90]})
    assert usual_side(cells, 0.5, 250) == 20
    assert usual_side(cells[:0], 0.5, 250) == 24
    assert usual_side(None, None, 250) == 83


def test_smears_of_reviewed_fields_are_checked_before_anything_is_written(
    review: Review, picture: Path, tmp_path: Path
) -> None:
    review.confirm(review.cells["cell_id"].tolist()[:2])
    store, table = tmp_path / "marrow.zarr", tmp_path / "smears.csv"
    table.write_text("file,smear_id,patient_id\nother.jpg,S1,P1\n")
    with pytest.raises(FieldError, match="names none of the 1 fields"):
        store_corrected(review, picture, store, smears=table, **QUIET)
    assert not store.exists()
    store_corrected(review, picture, store, **QUIET)
    table.write_text("file,smear_id,patient_id\n102.jpg,S1,P1\n")
    review.confirm(review.cells["cell_id"].tolist()[2:3])
    summary = store_corrected(review, picture, store, smears=table, near_duplicates=False)
    assert summary.added == 1
    assert f"hematokit store set-smears {store} {table}" in summary.warnings[0]
    set_smears(store, table)
    assert set(open_store(store).cells["patient_id"]) == {"P1"}
    summary = store_corrected(review, picture, store, smears=table, near_duplicates=False)
    assert not any("set-smears" in warning for warning in summary.warnings)
    store_corrected(review, picture, tmp_path / "new.zarr", smears=table, **QUIET)
    assert open_store(tmp_path / "new.zarr").fields["patient_id"].tolist() == ["P1"]


def test_reviewed_cells_keep_the_patient_that_they_were_classified_with(
    classified: pd.DataFrame, picture: Path, tmp_path: Path
) -> None:
    known = classified.assign(smear_id="S1", patient_id="P1")
    review = Review(known, MATEK_21, field_id="102", who="Ada", journal=tmp_path / CORRECTIONS_FILE)
    review.confirm(review.cells["cell_id"].tolist()[:2])
    store = tmp_path / "marrow.zarr"
    store_corrected(review, picture, store, **QUIET)
    review.confirm(review.cells["cell_id"].tolist()[2:3])
    assert store_corrected(review, picture, store, near_duplicates=False).added == 1
    for table in (open_store(store).cells, open_store(store).fields):
        assert set(zip(table["smear_id"], table["patient_id"], strict=True)) == {("S1", "P1")}
    (tmp_path / "smears.csv").write_text("file,patient_id\n102.jpg,P2\n")
    summary = store_corrected(review, picture, tmp_path / "other.zarr", smears=tmp_path / "smears.csv", **QUIET)
    assert not any("another" in warning for warning in summary.warnings)
    assert set(open_store(tmp_path / "other.zarr").cells["patient_id"]) == {"P2"}
    summary = store_corrected(review, picture, tmp_path / "other.zarr", near_duplicates=False)
    assert any("set-smears" in warning for warning in summary.warnings), "the review says P1"


# --- a training set ---------------------------------------------------------------------------------------------------


def test_only_reviewed_cells_become_a_training_set(review: Review, picture: Path, tmp_path: Path) -> None:
    ids = review.cells["cell_id"].tolist()
    review.correct(ids[:2], "MYB")
    review.confirm(ids[2:3])
    store = tmp_path / "marrow.zarr"
    summary = store_corrected(review, picture, store, **QUIET)
    assert (summary.added, summary.added_fields) == (3, 1)
    assert labels(store) == reviewed(review)
    opened = open_store(store)
    assert sorted(opened.cells["label_source"]) == ["confirmed", "corrected", "corrected"]
    row = opened.cells.iloc[0]
    with open_field(picture) as field:
        expected = cut_patch(field.read, field.height, field.width, patch_box(row["y"], row["x"], SIZE))
    np.testing.assert_array_equal(opened.patches([row["cell_id"]])[0], expected)
    assert open_stored_field(opened, "102").height == 512
    assert verify_store(store).ok
    # Who and when came along.
    told = sorted(opened.corrections, key=lambda entry: ids.index(entry.cell_id))
    assert [(entry.kind, entry.who, entry.cell_id, entry.after) for entry in told] == [
        ("label", "Ada", ids[0], "MYB"),
        ("label", "Ada", ids[1], "MYB"),
        ("confirm", "Ada", ids[2], review.cells["label"][2]),
    ]
    assert [entry.when for entry in told] == [review.decision(name).when for name in ids[:3]]
    review.who = "Ben"
    review.correct(ids[3:4], "NGS")
    review.correct(ids[:1], "EOS")
    review.who = "Cleo"  # who exports has decided nothing
    store_corrected(review, picture, store, near_duplicates=False)
    later = open_store(store).corrections[len(told) :]
    assert {(entry.who, entry.cell_id, entry.after) for entry in later} == {
        ("Ben", ids[0], "EOS"),
        ("Ben", ids[3], "NGS"),
    }


def test_exporting_again_brings_the_store_up_to_date(review: Review, picture: Path, tmp_path: Path) -> None:
    store = tmp_path / "marrow.zarr"
    ids = review.cells["cell_id"].tolist()
    review.correct(ids[:3], "MYB")
    store_corrected(review, picture, store, **QUIET)
    review.correct(ids[:1], "EOS")
    review.delete(ids[1:2])
    review.correct(ids[4:6], "NGS")
    summary = store_corrected(review, picture, store, near_duplicates=False)
    assert (summary.added, summary.present_fields) == (2, 1)
    assert "labels changed: 1, cells taken out: 1" in summary.notes[-1]
    assert labels(store) == reviewed(review)
    assert len(labels(store)) == 4
    for change in (review.undo, review.undo, review.undo, review.redo, lambda: review.delete(ids[2:3]), review.undo):
        change()
        store_corrected(review, picture, store, near_duplicates=False)
        assert labels(store) == reviewed(review)
    before = (store / CORRECTIONS_FILE).read_bytes()
    assert store_corrected(review, picture, store, near_duplicates=False).notes == ()
    assert (store / CORRECTIONS_FILE).read_bytes() == before
    assert verify_store(store).ok


def test_a_field_that_was_tiled_before_gets_labels(review: Review, picture: Path, tmp_path: Path) -> None:
    store = tmp_path / "marrow.zarr"
    tile([picture], store, **QUIET)
    count = len(open_store(store))
    assert count == len(review)
    review.correct(review.cells["cell_id"][:2].tolist(), "MYB")
    review.delete(review.cells["cell_id"][2:3].tolist())
    summary = store_corrected(review, picture, store, near_duplicates=False)
    assert summary.added == 0
    found = open_store(store).cells
    assert len(found) == count - 1
    assert found["label"].value_counts().to_dict() == {"": count - 3, "MYB": 2}


def test_a_stores_own_field_keeps_what_was_added_to_it(picture: Path, model: Classifier, tmp_path: Path) -> None:
    store = tmp_path / "marrow.zarr"
    tile([picture], store, **QUIET)
    opened = open_store(store)
    review = Review(opened.cells, MATEK_21, field_id="102", journal=store / CORRECTIONS_FILE)
    field = open_stored_field(opened, "102")
    added = review.add(classify_one(field, model, 100.5, 60.25, cells=review.cells, field_id="102"))
    review.correct([added], "PLM")
    opened.refresh()
    assert added not in set(opened.cells["cell_id"])  # it has no patch yet
    summary = store_corrected(review, field.path, store, near_duplicates=False)
    opened.refresh()
    assert summary.added == 1
    assert opened.cells.set_index("cell_id").loc[added, "label"] == "PLM"
    assert opened.patches([added]).shape == (1, SIZE, SIZE, 3)
    again = Review(opened.cells, MATEK_21, field_id="102", journal=store / CORRECTIONS_FILE)
    assert (again.cells["cell_id"] == added).sum() == 1


def test_an_opened_field_without_a_file_is_stored_as_it_reads(review: Review, picture: Path, tmp_path: Path) -> None:
    store = tmp_path / "marrow.zarr"
    moved = Path(shutil.copy(picture, tmp_path / "gone.jpg"))
    with open_field(moved, pixel_size_um=0.25) as field:
        moved.unlink()
        review.correct(review.cells["cell_id"][:1].tolist(), "MYB")
        store_corrected([review], [field], store, **QUIET)
        review.correct(review.cells["cell_id"][1:2].tolist(), "MYB")
        summary = store_corrected(review, field, store, near_duplicates=False)
        assert (summary.added, summary.present_fields, summary.stored_fields) == (1, 1, 1)
        stored = open_stored_field(open_store(store), "102")
        box = patch_box(100, 100, 50)
        np.testing.assert_array_equal(stored.read(box), field.read(box))
        assert stored.pixel_size_um == 0.25
        assert open_store(store).cells["pixel_size_um"].tolist() == [0.25, 0.25]
    assert labels(store) == reviewed(review)


def test_cells_added_to_a_field_have_the_pixel_size_that_was_stated_since(
    review: Review, picture: Path, tmp_path: Path
) -> None:
    store = tmp_path / "marrow.zarr"
    review.correct(review.cells["cell_id"][:1].tolist(), "MYB")
    first = store_corrected(review, picture, store, **QUIET)
    assert "the pixel size of the cells is not known" in first.warnings[0]
    set_pixel_size(store, 0.25)
    review.correct(review.cells["cell_id"][1:2].tolist(), "MYB")
    assert store_corrected(review, picture, store, near_duplicates=False).warnings == ()
    assert open_store(store).cells["pixel_size_um"].tolist() == [0.25, 0.25]
    with open_stored_field(open_store(store), "102") as field:
        assert field.pixel_size_um == 0.25


def test_fields_have_the_pixel_size_of_their_reviews(picture: Path, model: Classifier, tmp_path: Path) -> None:
    images, reviews = [], []
    for number, size in enumerate((0.1, 0.25)):
        image = tmp_path / f"f{number}.png"
        with open_field(picture) as field:
            pixels = np.asarray(field.read(patch_box(200, 200, 300 + 20 * number)))
        Image.fromarray(pixels).save(image)
        with open_field(image, pixel_size_um=size) as field:
            cells = classify_one(field, model, 100, 100, side=30, field_id=f"f{number}")
        review = Review(cells, MATEK_21, field_id=f"f{number}", pixel_size_um=size)
        review.confirm(review.cells["cell_id"].tolist())
        images.append(image)
        reviews.append(review)
    summary = store_corrected(reviews, images, tmp_path / "marrow.zarr", **QUIET)
    assert (summary.fields, summary.added_fields, summary.added) == (2, 2, 2)
    assert open_store(tmp_path / "marrow.zarr").fields["pixel_size_um"].tolist() == [0.1, 0.25]
    assert open_store(tmp_path / "marrow.zarr").cells["pixel_size_um"].tolist() == [0.1, 0.25]
    assert "different pixel sizes" in summary.warnings[0]


def test_others_come_without_a_label(review: Review, picture: Path, tmp_path: Path) -> None:
    review.correct(review.cells["cell_id"][:1].tolist(), "MYB")
    summary = store_corrected(review, picture, tmp_path / "marrow.zarr", others=True, **QUIET)
    assert summary.added == len(review)
    assert summary.unlabelled == len(review) - 1


def test_mistakes_are_told_in_one_line(review: Review, picture: Path, tmp_path: Path, tiny_store: Path) -> None:
    store = tmp_path / "marrow.zarr"
    with pytest.raises(FieldError, match="no cell has been reviewed"):
        store_corrected(review, picture, store)
    review.correct(review.cells["cell_id"][:1].tolist(), "MYB")
    with pytest.raises(FieldError, match="1 reviews and 2 fields"):
        store_corrected(review, [picture, picture.with_name("104.jpg")], store)
    with pytest.raises(ImageError, match="does not exist"):
        store_corrected(review, tmp_path / "none.png", store)
    small = tmp_path / "small.png"
    with open_field(picture) as field:
        Image.fromarray(field.read(patch_box(50, 50, 60))).save(small)
    with pytest.raises(FieldError, match=r"small\.png has 60x60 px.*was reviewed"):
        store_corrected(review, small, store, **QUIET)
    copy = Path(shutil.copytree(tiny_store, tmp_path / "copy.zarr"))
    other = Review(review.cells.assign(label="ZZZ"), MATEK_21)
    with pytest.raises(FieldError, match="'ZZZ' is not in the store"):
        store_corrected(other, picture, copy)


# --- what uses corrected labels ---------------------------------------------------------------------------------------


def test_training_and_evaluation_take_corrected_labels(tiny_store: Path, model: Classifier, tmp_path: Path) -> None:
    store = Path(shutil.copytree(tiny_store, tmp_path / "copy.zarr"))
    cells = open_store(store).cells
    train = cells[(cells["split"] == "train") & (cells["label"] == "BLA")]["cell_id"].tolist()
    test = cells[(cells["split"] == "test") & (cells["label"] == "BLA")]["cell_id"].tolist()
    before = select_cells(open_store(store)).counts()["train"]
    edit, when = new_edit(), utc_now()
    entries = [Correction("label", edit, when, "Ada", name, "", "BLA", "LYT") for name in (*train[:5], test[0])]
    append_corrections(store / CORRECTIONS_FILE, [*entries, Correction("delete", edit, when, "Ada", train[5])])
    opened = open_store(store)
    after = select_cells(opened).counts()["train"]
    assert after["LYT"] == before["LYT"] + 5
    assert after["BLA"] == before["BLA"] - 6
    evaluation = evaluate_store(model, opened, split="test")
    said = evaluation.predictions.set_index("cell_id")["label"]
    assert said[test[0]] == "LYT"
    assert evaluation.about["store_hash"] == opened.content_hash != open_store(tiny_store).content_hash
    assert split_store(store, seed=3).counts["train"]["LYT"] > 0


def test_a_folder_of_results_counts_what_was_corrected(picture: Path, tiny_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    first = classify([picture], tiny_run, folder, device="cpu", runtime="torch", min_probability=0.0)
    place = folder / "fields" / "102"
    cells = pd.read_parquet(place / "cells.parquet")
    review = Review(cells, MATEK_21, field_id="102", journal=place / CORRECTIONS_FILE)
    review.correct(cells["cell_id"].tolist()[:3], "MYB")  # a class that the model does not know
    review.delete(cells["cell_id"].tolist()[3:4])
    second = classify([picture], tiny_run, folder, device="cpu", runtime="torch", min_probability=0.0)
    assert first.differential is not None
    assert second.differential is not None
    assert second.differential.overall.classes["MYB"].count == 3
    assert second.differential.overall.cells == first.differential.overall.cells - 1
    assert f"3 of {len(cells) - 1} cells" in (folder / "report.html").read_text(encoding="utf-8")
