"""Two people at the same field: neither loses what the other did."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hematokit.errors import FieldError, StoreError
from hematokit.review.session import Review
from hematokit.store.corrections import CORRECTIONS_FILE, read_corrections
from hematokit.taxonomy import MATEK_21

CHILD = """
import sys
from pathlib import Path
import pandas as pd
from hematokit.errors import FieldError
from hematokit.review.session import Review
from hematokit.taxonomy import MATEK_21

journal, who, code, table, answer = sys.argv[1:]
cells = pd.read_csv(table, keep_default_na=False)
review = Review(cells, MATEK_21, field_id="f", who=who, journal=Path(journal))
print("ready", flush=True)
sys.stdin.readline()
for cell_id in cells["cell_id"]:
    try:
        review.correct([cell_id], code)
    except FieldError:
        continue  # Ada has deleted it
    if cell_id.endswith("7"):
        review.undo()
    if cell_id.endswith("9") and who == "Ada":
        review.delete([cell_id])
# Both point at the same missed cell, in the same moment.
review.add(cells.tail(1).assign(cell_id="f-missed", y=500.0, y0=490))
print("done", flush=True)
sys.stdin.readline()
review.refresh()
review.cells[["cell_id", "label", "label_source", "reviewed"]].to_csv(answer, index=False)
"""


def table(count: int = 6) -> pd.DataFrame:
    n = np.arange(count)
    return pd.DataFrame(
        {
            "cell_id": [f"f-{number}" for number in n],
            "field_id": "f",
            **{"y": 100.0 + 30 * n, "x": 20.5, "y0": 90 + 30 * n, "x0": 10, "height": 20, "width": 21},
            **{"label": "", "label_source": "", "predicted": "BLA", "probability": 0.4, "reviewed": False},
        }
    )


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / CORRECTIONS_FILE


def opened(journal: Path, who: str) -> Review:
    return Review(table(), MATEK_21, field_id="f", who=who, journal=journal)


def labels(review: Review) -> dict[str, str]:
    return dict(zip(review.cells["cell_id"], review.cells["label"], strict=True))


def test_what_another_did_is_taken_over_and_told(journal: Path) -> None:
    ada, ben = opened(journal, "Ada"), opened(journal, "Ben")
    told: list[tuple[str, list[str]]] = []
    ben.on_change(lambda kind, ids: told.append((kind, ids)))
    ada.correct(["f-0", "f-1"], "LYT")
    ada.delete(["f-2"])
    ada.add(table(1).assign(cell_id="f-missed", y=7.0, y0=0))
    news = ben.refresh()
    assert [(entry.who, entry.kind) for entry in news] == [
        ("Ada", kind) for kind in ("label", "label", "delete", "add")
    ]
    assert told == [("delete", ["f-2"]), ("add", ["f-missed"]), ("label", ["f-0", "f-1"])]
    pd.testing.assert_frame_equal(ben.cells, ada.cells)
    assert ben.refresh() == []
    ada.undo()
    ada.undo()
    ben.refresh()
    assert told[3:] == [("delete", ["f-missed"]), ("add", ["f-2"])]
    ada.redo()
    ada.redo()
    ben.refresh()
    pd.testing.assert_frame_equal(ben.cells, ada.cells)


def test_a_change_sees_first_what_another_did(journal: Path) -> None:
    ada, ben = opened(journal, "Ada"), opened(journal, "Ben")
    ada.correct(["f-0"], "LYT")
    ada.delete(["f-1"])
    ben.correct(["f-0"], "LYT")
    # He agrees with her: what he saw on his own screen had been the model's class.
    last = read_corrections(journal)[-1]
    assert (last.kind, last.before, last.after, last.who) == ("confirm", "LYT", "LYT", "Ben")
    with pytest.raises(FieldError, match="f-1 was deleted by Ada"):
        ben.correct(["f-1"], "MON")


def test_an_undo_takes_back_ones_own_and_leaves_the_others(journal: Path) -> None:
    ada, ben = opened(journal, "Ada"), opened(journal, "Ben")
    ada.correct(["f-0", "f-1"], "LYT")
    ben.correct(["f-0"], "MON")
    ada.undo()
    assert labels(ada)["f-0"] == "MON"
    assert labels(ada)["f-1"] == ""
    assert not ada.cells.set_index("cell_id").loc["f-1", "reviewed"]
    ben.undo()
    ada.refresh()
    assert set(labels(ada).values()) == {""}
    assert ben.undo() is None
    pd.testing.assert_frame_equal(ada.cells, table(), check_like=True)


def test_the_same_missed_cell_added_by_both_is_one_cell(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ada, ben = opened(journal, "Ada"), opened(journal, "Ben")
    missed = table(1).assign(cell_id="f-missed", y=7.0, y0=0)
    # In the same moment: neither has read the other's line when they choose a name for it.
    with monkeypatch.context() as blind:
        blind.setattr(ben, "refresh", list)
        ada.add(missed)
        ben.add(missed)
    assert labels(ben) == labels(opened(journal, "Cleo"))
    assert list(labels(ben)).count("f-missed") == 1
    ben.undo()
    assert "f-missed" in labels(ben)  # Ada's stands
    ada.undo()
    ben.refresh()
    assert "f-missed" not in labels(ben)


def test_lines_of_other_fields_are_nobodys_news(journal: Path) -> None:
    ada = opened(journal, "Ada")
    other = Review(table().assign(cell_id=[f"g-{n}" for n in range(6)]), MATEK_21, field_id="g", journal=journal)
    other.correct(["g-0"], "LYT")
    other.add(table(1).assign(cell_id="g-missed"))
    assert ada.refresh() == []
    pd.testing.assert_frame_equal(ada.cells, table(), check_like=True)


def test_a_journal_that_goes_away_takes_nothing_with_it(journal: Path) -> None:
    ada = opened(journal, "Ada")
    ada.correct(["f-0"], "LYT")
    saved = journal.read_bytes()
    journal.unlink()
    ada.refresh()
    assert labels(ada)["f-0"] == "LYT"
    ada.correct(["f-1"], "MON")
    assert labels(ada) == {**labels(ada), "f-0": "LYT", "f-1": "MON"}
    journal.write_bytes(saved + journal.read_bytes())
    assert ada.refresh() == []
    assert labels(ada) == labels(opened(journal, "Ben"))


def test_a_damaged_line_of_another_stops_before_anything_is_changed(journal: Path) -> None:
    ada = opened(journal, "Ada")
    ada.correct(["f-0"], "LYT")
    before = ada.cells
    with journal.open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(StoreError, match="line 2 is no correction"):
        ada.correct(["f-1"], "MON")
    pd.testing.assert_frame_equal(ada.cells, before)
    journal.write_bytes(journal.read_bytes().removesuffix(b"{}\n"))
    ada.correct(["f-1"], "MON")
    assert labels(ada) == labels(opened(journal, "Ben"))


def test_two_processes_at_once_end_with_the_same_cells(journal: Path, tmp_path: Path) -> None:
    cells = tmp_path / "cells.csv"
    table(30).to_csv(cells, index=False)
    answers = [tmp_path / "ada.csv", tmp_path / "ben.csv"]
    people = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(journal), who, code, str(cells), str(answer)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for who, code, answer in (("Ada", "LYT", answers[0]), ("Ben", "MON", answers[1]))
    ]
    for word in ("ready\n", "done\n"):
        for person in people:
            assert person.stdin is not None
            assert person.stdout is not None
            assert person.stdout.readline() == word, person.communicate()[1]
        for person in people:
            person.stdin.write("\n")
            person.stdin.flush()
    for person in people:
        _, errors = person.communicate(timeout=60)
        assert person.returncode == 0, errors
    one, two = (pd.read_csv(answer, keep_default_na=False).sort_values("cell_id") for answer in answers)
    assert one.to_csv(index=False) == two.to_csv(index=False)
    again = Review(table(30), MATEK_21, field_id="f", journal=journal).cells.sort_values("cell_id")
    assert again[list(one.columns)].to_csv(index=False) == one.to_csv(index=False)
    assert {entry.who for entry in read_corrections(journal)} == {"Ada", "Ben"}
    kept = [entry.cell_id for entry in read_corrections(journal) if entry.kind == "label"]
    assert {f"f-{number}" for number in range(30)} == set(kept)
    assert "f-missed" in set(one["cell_id"])
