"""Going through the cells of a field: every change in the table, in the journal, and back again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cellkit import made_up_cells
from hematokit.annotations import AnnotationFiles, ClassNames, check_annotations
from hematokit.annotations.cells import TABLE_COLUMNS
from hematokit.annotations.writing import read_parquet
from hematokit.differential.differential import count_differential
from hematokit.errors import FieldError, StoreError, TaxonomyError
from hematokit.review.session import Review, whole_taxonomy
from hematokit.store.corrections import CORRECTIONS_FILE, read_corrections
from hematokit.taxonomy import MATEK_21, CellClass, Taxonomy

CODES = ["BLA", "NGS", "EBO", "ART"]


def cells_table(count: int = 6, start: int = 0, field_id: str = "f") -> pd.DataFrame:
    """A classified field whose n-th cell is called ``f-n``, the later the surer."""
    numbers = np.arange(start, start + count)
    scores = {f"p_{code}": np.full(count, 0.25, np.float32) for code in CODES}
    frame = pd.DataFrame(
        {
            "cell_id": [f"{field_id}-{n}" for n in numbers],
            "field_id": field_id,
            "source": f"{field_id}.png",
            **{"y": 100.0 - numbers, "x": 20.5 + numbers, "y0": 90 - numbers, "x0": 10 + numbers},
            **{"height": 20, "width": 21, "score": 1.0, "area": np.nan, "touches_border": False},
            "contour": pd.Series([np.array([[0, 0], [0, 5], [5, 5]], np.float32)] * count, dtype=object),
            **dict.fromkeys(("label", "label_source", "smear_id", "patient_id", "group", "split"), ""),
            "predicted": [CODES[n % 4] for n in numbers],
            "probability": 0.30 + 0.05 * numbers,
            **scores,
            "reviewed": False,
        }
    )
    assert list(frame.columns[: len(TABLE_COLUMNS)]) == list(TABLE_COLUMNS)
    return frame


def missed_cell(cell_id: str = "f-missed") -> pd.DataFrame:
    return cells_table(1, start=50).assign(cell_id=cell_id, y=5.0, y0=0)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / CORRECTIONS_FILE


@pytest.fixture
def review(journal: Path) -> Review:
    return Review(cells_table(), MATEK_21, field_id="f", who="Ada", journal=journal)


def kinds(journal: Path) -> list[str]:
    return [entry.kind for entry in read_corrections(journal)]


def same_cells(one: pd.DataFrame, two: pd.DataFrame, **more: bool) -> None:
    """Equal but for the order of the rows, and for the outlines, which are arrays."""
    tables = [table.drop(columns="contour").sort_values("cell_id", ignore_index=True) for table in (one, two)]
    pd.testing.assert_frame_equal(*tables, check_like=True, **more)


# --- changing ---------------------------------------------------------------------------------------------------------


def test_correcting_shows_and_is_written(review: Review, journal: Path) -> None:
    review.correct(["f-0", "f-2"], "LYT")
    assert review.shown_label().tolist() == ["LYT", "NGS", "LYT", "ART", "BLA", "NGS"]
    row = review.cells.iloc[0]
    assert (row["label"], row["label_source"], row["reviewed"], row["predicted"]) == ("LYT", "corrected", True, "BLA")
    assert not review.low_confidence()[0]
    first, second = read_corrections(journal)
    assert (first.kind, first.cell_id, first.before, first.after, first.who) == ("label", "f-0", "BLA", "LYT", "Ada")
    assert first.edit == second.edit


def test_giving_the_class_it_has_confirms(review: Review, journal: Path) -> None:
    review.correct(["f-0"], "BLA")
    review.confirm(["f-1"])
    assert kinds(journal) == ["confirm", "confirm"]
    assert review.cells["label"].tolist()[:2] == ["BLA", "NGS"]
    assert review.cells["label_source"].tolist()[:2] == ["confirmed", "confirmed"]
    review.correct(["f-0"], "LYT")
    review.confirm(["f-0"])
    assert review.cells["label_source"].tolist()[0] == "corrected"


def test_deleting_keeps_the_others_in_order(review: Review) -> None:
    review.delete(["f-1", "f-3"])
    assert review.cells["cell_id"].tolist() == ["f-0", "f-2", "f-4", "f-5"]
    assert review.cells.index.tolist() == [0, 1, 2, 3]
    assert review.deleted["cell_id"].tolist() == ["f-1", "f-3"]
    with pytest.raises(FieldError, match=r"f-1.*undo"):
        review.correct(["f-0", "f-1"], "LYT")
    assert not review.cells["reviewed"].any()


def test_adding_gives_an_id_that_no_other_cell_has(review: Review) -> None:
    assert review.add(missed_cell()) == "f-missed"
    assert review.add(missed_cell()) == "f-missed-2"
    assert len(review) == 8
    review.correct(["f-missed-2"], "NGS")
    assert review.shown_label().iloc[-2:].tolist() == [CODES[50 % 4], "NGS"]


def test_undo_and_redo_say_what(review: Review, journal: Path) -> None:
    assert review.undo() is None
    assert review.redo() is None
    review.correct(["f-0"], "LYT")
    review.delete(["f-1", "f-2"])
    assert review.undo() == "2 cells deleted"
    assert review.undo() == "cell f-0 to Lymphocyte"
    assert review.undo() is None
    assert review.redo() == "cell f-0 to Lymphocyte"
    assert kinds(journal) == ["label", "delete", "delete", "undo", "undo", "redo"]
    review.confirm(["f-5"])
    assert review.redo() is None  # something else was done since


def test_cells_come_while_a_job_runs(journal: Path) -> None:
    review = Review(pd.DataFrame(), MATEK_21, field_id="f", journal=journal)
    assert len(review) == 0
    assert review.queue() == []
    assert review.differential()["count"].sum() == 0
    review.append(cells_table(3))
    review.correct(["f-1"], "EOS")
    review.append(cells_table(3, start=3))
    review.undo()
    pd.testing.assert_frame_equal(review.cells, cells_table(6), check_like=True)
    review.append(cells_table(0))
    with pytest.raises(FieldError, match="f-5 is already in the table"):
        review.append(cells_table(1, start=5))
    assert len(review) == 6


def test_what_the_journal_says_applies_to_cells_that_come_later(journal: Path) -> None:
    first = Review(cells_table(), MATEK_21, field_id="f", journal=journal)
    first.correct(["f-1"], "EOS")
    first.delete(["f-2"])
    first.add(missed_cell())
    again = Review(pd.DataFrame(), MATEK_21, field_id="f", journal=journal)
    assert again.cells["cell_id"].tolist() == ["f-missed"]
    told: list[tuple[str, list[str]]] = []
    again.on_change(lambda kind, ids: told.append((kind, ids)))
    again.append(pd.concat([cells_table(), missed_cell()], ignore_index=True))  # now a detector found it, too
    assert told == [("append", ["f-0", "f-1", "f-3", "f-4", "f-5"])]
    same_cells(again.cells, first.cells, check_dtype=False)
    assert again.cells["probability"].dtype == np.float64


def test_whoever_listens_is_told_of_every_change(review: Review) -> None:
    told: list[tuple[str, list[str]]] = []
    review.on_change(lambda kind, ids: told.append((kind, ids)))
    review.correct(["f-0", "f-0"], "LYT")
    review.confirm([])
    review.delete(["f-1"])
    review.undo()
    review.add(missed_cell())
    review.undo()
    review.redo()
    assert told == [
        ("label", ["f-0"]),
        ("delete", ["f-1"]),
        ("add", ["f-1"]),
        *[(kind, ["f-missed"]) for kind in ("add", "delete", "add")],
    ]


def test_cells_of_another_field_in_the_journal_are_left_alone(journal: Path) -> None:
    one = Review(cells_table(), MATEK_21, field_id="f", journal=journal)
    one.correct(["f-0"], "EOS")
    one.add(missed_cell())
    other = Review(cells_table(field_id="g"), MATEK_21, field_id="g", journal=journal)
    pd.testing.assert_frame_equal(other.cells, cells_table(field_id="g"))


# --- any sequence -----------------------------------------------------------------------------------------------------

PLACES = st.lists(st.integers(0, 7), max_size=3)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("correct"), PLACES, st.sampled_from(CODES)),
        st.tuples(st.sampled_from(["confirm", "delete"]), PLACES, st.just("")),
        st.tuples(st.sampled_from(["add", "undo", "redo"]), st.just([]), st.just("")),
    ),
    max_size=12,
)


def take(review: Review, step: tuple[str, list[int], str]) -> None:
    what, places, code = step
    ids = [review.cells["cell_id"].iloc[place] for place in places if place < len(review)]
    if what == "correct":
        review.correct(ids, code)
    elif what == "add":
        review.add(missed_cell())
    elif what in ("confirm", "delete"):
        getattr(review, what)(ids)
    else:
        getattr(review, what)()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_any_sequence_of_changes_undone_gives_the_table_back(
    steps: list[tuple[str, list[int], str]], journal: Path
) -> None:
    for left in journal.parent.iterdir():
        left.unlink()
    review = Review(cells_table(), MATEK_21, field_id="f", journal=journal)
    for step in steps:
        take(review, step)
    end = review.cells
    # What was saved is what is shown.
    same_cells(Review(cells_table(), MATEK_21, field_id="f", journal=journal).cells, end)
    undone = 0
    while review.undo():
        undone += 1
    pd.testing.assert_frame_equal(review.cells, cells_table())
    for _ in range(undone):
        assert review.redo()
    pd.testing.assert_frame_equal(review.cells, end)


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda review: review.correct(["f-0"], "LYT"),
        lambda review: review.confirm(["f-0"]),
        lambda review: review.delete(["f-0"]),
        lambda review: review.add(missed_cell()),
        lambda review: review.undo(),
    ],
)
def test_what_cannot_be_saved_is_not_done(review: Review, journal: Path, change: Callable[[Review], object]) -> None:
    review.correct(["f-3"], "LYT")
    before = review.cells.copy()
    journal.unlink()
    journal.mkdir()  # a folder is in the way
    with pytest.raises(StoreError, match=CORRECTIONS_FILE):
        change(review)
    pd.testing.assert_frame_equal(review.cells, before)
    journal.rmdir()
    assert review.undo() == "cell f-3 to Lymphocyte"


def test_mistakes_are_told_in_one_line(review: Review, tmp_path: Path) -> None:
    with pytest.raises(TaxonomyError, match="XYZ"):
        review.correct(["f-0"], "XYZ")
    with pytest.raises(FieldError, match="no cell nobody"):
        review.delete(["nobody"])
    with pytest.raises(FieldError, match="one of least sure"):
        review.queue("backwards")
    with pytest.raises(TaxonomyError, match="XYZ"):
        review.queue(code="XYZ")
    with pytest.raises(FieldError, match=r"\.csv"):
        review.export(tmp_path / "cells.xlsx")
    with pytest.raises(FieldError, match="cannot write"):
        review.export(tmp_path / "gone" / "cells.csv")
    with pytest.raises(FieldError, match="one cell with y"):
        review.add(missed_cell().drop(columns="y"))
    with pytest.raises(FieldError, match="appears twice"):
        Review(pd.concat([cells_table(1)] * 2), MATEK_21)
    with pytest.raises(FieldError, match="cell_id"):
        Review(pd.DataFrame({"y": [1.0]}), MATEK_21)
    blank = Review(cells_table().assign(predicted=""), MATEK_21)
    with pytest.raises(FieldError, match="no class to confirm"):
        blank.confirm(["f-0"])


def test_without_a_journal_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    review = Review(cells_table(), MATEK_21)
    review.correct(["f-0"], "LYT")
    review.undo()
    assert list(tmp_path.iterdir()) == []


# --- looking ----------------------------------------------------------------------------------------------------------


def test_the_queue_goes_from_the_least_sure_and_ends_with_what_was_reviewed(review: Review) -> None:
    review.confirm(["f-0"])
    assert review.queue() == ["f-1", "f-2", "f-3", "f-4", "f-5", "f-0"]
    assert review.queue("place") == ["f-5", "f-4", "f-3", "f-2", "f-1", "f-0"]
    assert review.queue("class") == ["f-4", "f-1", "f-5", "f-2", "f-3", "f-0"]
    assert review.queue(code="NGS") == ["f-1", "f-5"]
    review.correct(["f-5"], "MON")
    assert review.queue(code="NGS") == ["f-1"]
    assert review.queue(code="MON") == ["f-5"]


def test_the_differential_follows(review: Review) -> None:
    found = review.differential().set_index("code")
    assert found.index.tolist() == list(MATEK_21.codes)
    assert found.loc["BLA", ["count", "low_confidence", "reviewed"]].tolist() == [1, 1, 0]
    review.correct(["f-0"], "NGS")
    found = review.differential().set_index("code")
    assert found.loc["NGS", ["count", "low_confidence", "reviewed"]].tolist() == [2, 1, 1]
    assert found.loc["NGS", "low"] < found.loc["NGS", "percent"] < found.loc["NGS", "high"]
    assert found.loc["BLA", "colour"] == MATEK_21["BLA"].colour
    summary = review.summary()
    assert summary.to_dict() == count_differential(review.cells, MATEK_21).overall.to_dict()
    assert (summary.counted, summary.cells) == (3, 6)


def test_cells_with_labels_and_no_predictions_count_as_their_labels() -> None:
    labelled = cells_table()[["cell_id", "field_id", "y", "x", "y0", "x0", "height", "width"]]
    labelled = labelled.assign(label=["BLA", "BLA", "NGS", "", "LYT", "BLA"], label_source="csv")
    review = Review(labelled, MATEK_21)
    assert review.shown_label().tolist() == labelled["label"].tolist()
    assert not review.low_confidence().any()
    assert review.differential().set_index("code").loc["BLA", "count"] == 3
    review.add(missed_cell())  # classified, in a table that is not
    assert review.shown_label().tolist()[:6] == labelled["label"].tolist()
    assert review.low_confidence().tolist() == [label == "" for label in review.shown_label()]
    assert review.differential().set_index("code").loc["BLA", "count"] == 3


def test_classes_that_the_taxonomy_lacks_do_not_stop_the_count() -> None:
    review = Review(cells_table().assign(predicted="???"), MATEK_21)
    assert review.summary().counted == 0
    assert review.summary().low_confidence == 6


def test_a_model_of_some_classes_is_corrected_with_all() -> None:
    assert whole_taxonomy(MATEK_21.subset(["BLA", "NGS"])) is MATEK_21
    ours = Taxonomy("ours", (CellClass("BLA", "Blast", "blast", "#000000"),))
    assert whole_taxonomy(ours) is ours


def test_exports_say_what_was_corrected_by_whom_and_when(review: Review, journal: Path, tmp_path: Path) -> None:
    review.correct(["f-0"], "LYT")
    review.delete(["f-1"])
    review.add(missed_cell())
    for name in ("cells.csv", "cells.parquet", "cells.geojson"):
        review.export(tmp_path / name)
    table = pd.read_csv(tmp_path / "cells.csv", keep_default_na=False)
    assert table["cell_id"].tolist() == review.cells["cell_id"].tolist()
    assert table.loc[0, ["label", "label_source", "reviewed"]].tolist() == ["LYT", "corrected", True]
    assert table.loc[0, "who"] == "Ada"
    assert table.loc[0, "when"] == read_corrections(journal)[0].when
    assert table["who"].tolist() == ["Ada", "", "", "", "", "Ada"]
    same_cells(read_parquet(tmp_path / "cells.parquet").drop(columns=["who", "when"]), review.cells)
    features = json.loads((tmp_path / "cells.geojson").read_text(encoding="utf-8"))["features"]
    assert features[0]["properties"]["classification"]["name"] == "LYT"
    assert len(features) == 6
    # QuPath keeps texts as metadata, and takes nothing but texts there.
    signed = [feature["properties"].get("metadata", {}) for feature in features]
    assert all(isinstance(text, str) for part in signed for text in part.values())
    assert [part.get("reviewed by", "") for part in signed] == table["who"].tolist()
    assert [part.get("reviewed at", "") for part in signed] == table["when"].tolist()
    assert signed[0]["class name"] == MATEK_21["LYT"].name
    assert "reviewed by" not in signed[1]


def test_exported_cells_are_annotations_with_the_classes_that_count(tmp_path: Path) -> None:
    review = Review(made_up_cells(25), MATEK_21, who="Ada")
    first, second = review.cells["cell_id"][:2]
    review.correct([first], "EOS")
    review.delete([second])
    review.export(tmp_path / "f.geojson")
    annotations = AnnotationFiles(tmp_path / "f.geojson", [Path("f.png")]).of_field(Path("f.png"), 1000, 1000)
    again = check_annotations(annotations, 1000, 1000, ClassNames(MATEK_21)).cells
    assert len(again) == 24
    assert sorted(again["label"]) == sorted(review.shown_label())
