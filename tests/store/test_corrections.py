"""What people corrected: saved line by line, whoever else writes or dies meanwhile, and laid over a store's cells."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hematokit.cli.main import main
from hematokit.errors import StoreError
from hematokit.store import StoreWriter, describe_store, open_store, split_store
from hematokit.store.corrections import (
    CORRECTIONS_FILE,
    Correction,
    append_corrections,
    apply_corrections,
    join_cells,
    new_edit,
    read_corrections,
    standing_corrections,
)

# Appends corrections n of the cell argv[2] to argv[1], one call each, and prints every one that returned.
CHILD = """
import os, sys
from hematokit.store import corrections as room

if len(sys.argv) > 4:  # dies in the middle of the n-th write
    real, calls = os.write, 0
    def torn(file, data):
        global calls
        calls += 1
        if calls == int(sys.argv[4]):
            real(file, bytes(data)[: len(data) // 2])
            os.kill(os.getpid(), 9)
        return real(file, data)
    room.os.write = torn
for n in range(int(sys.argv[3])):
    entry = room.Correction("label", room.new_edit(), room.utc_now(), "", sys.argv[2], "", "BLA", f"C{n}")
    room.append_corrections(sys.argv[1], [entry])
    sys.stdout.write(f"C{n}\\n")
    sys.stdout.flush()
"""


def label(cell_id: str, code: str, before: str = "", *, edit: str | None = None, kind: str = "label") -> Correction:
    return Correction(kind, edit or new_edit(), "2026-01-02T03:04:05.678Z", "Ada", cell_id, "field", before, code)


def undo(entry: Correction, kind: str = "undo") -> Correction:
    return Correction(kind, new_edit(), "2026-01-02T03:04:06.000Z", "Ada", of=entry.edit)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / CORRECTIONS_FILE


@pytest.fixture
def store(tiny_store: Path, tmp_path: Path) -> Path:
    """A copy of the tiny store, to be changed."""
    return Path(shutil.copytree(tiny_store, tmp_path / "copy.zarr"))


def run_child(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, words)], capture_output=True, text=True, timeout=120, check=False
    )


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_line_says_who_when_what(file: Path) -> None:
    append_corrections(file, [label("a", "NGS", "BLA")])
    said = json.loads(file.read_text(encoding="utf-8"))
    assert {said[key] for key in ("who", "cell_id", "field_id", "from", "to", "kind")} == {
        *("Ada", "a", "field", "BLA", "NGS", "label")
    }
    assert said["when"].endswith("Z")


def test_what_was_appended_is_read_back(file: Path) -> None:
    cell = {"y": 4.5, "x": 3, "y0": 1, "x0": 0, "height": 7, "width": 6, "area": np.nan, "p_BLA": np.float32(0.25)}
    added = Correction("add", new_edit(), "2026-01-02T03:04:05Z", "Łukasz \udcff", "b", "field", "", "BLA", cell)
    entries = [label("a", "NGS"), added]
    append_corrections(file, entries[:1])
    append_corrections(file, entries[1:])
    append_corrections(file, [])
    first, second = read_corrections(file)
    assert first == entries[0]
    assert second.cell is not None
    assert second.cell["area"] is None
    assert second.cell["p_BLA"] == 0.25
    assert second.who == added.who


def test_no_file_is_no_corrections(file: Path) -> None:
    assert read_corrections(file) == []


@pytest.mark.parametrize("tail", ["", "\n", '{"when": "2026', '{"kind": "label"}', "\0" * 40])
def test_a_torn_last_line_is_left_out_and_then_written_over(file: Path, tail: str) -> None:
    entries = [label("a", "NGS"), label("b", "BLA")]
    append_corrections(file, entries)
    with file.open("a", encoding="utf-8") as handle:
        handle.write(tail)
    assert read_corrections(file) == entries
    append_corrections(file, [label("c", "EOS")])
    assert [entry.cell_id for entry in read_corrections(file)] == ["a", "b", "c"]


def test_a_whole_last_line_without_an_end_counts(file: Path) -> None:
    append_corrections(file, [label("a", "NGS"), label("b", "BLA")])
    file.write_bytes(file.read_bytes().rstrip(b"\n"))
    assert len(read_corrections(file)) == 2
    append_corrections(file, [label("c", "EOS")])
    assert [entry.cell_id for entry in read_corrections(file)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"no json", "Expecting value"),
        (b"[1]", "no JSON object"),
        (b'{"kind": "paint", "edit": "e"}', "paint"),
        (b'{"kind": "label", "edit": "e", "cell_id": "a"}', "'to'"),
        (b'{"kind": "label", "edit": "e", "cell_id": 7, "to": "BLA"}', "'cell_id'"),
        (b'{"kind": "undo", "edit": "e"}', "'of'"),
        (b'{"kind": "add", "edit": "e", "cell_id": "a", "cell": {"y": 1}}', "'x'"),
        (b"[" * 100_000, "nested"),
        (b'\xff\xfe{"a": "\x1b[31m"}', "codec"),
    ],
)
def test_a_damaged_line_inside_is_named_in_one_line(file: Path, line: bytes, reason: str) -> None:
    good = label("a", "NGS").to_line()
    file.write_bytes(good + line + b"\n" + good)
    with pytest.raises(StoreError, match=r"corrections\.jsonl, line 2") as caught:
        read_corrections(file)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def damaged_copies(file: Path, damage: Callable[[bytes], Iterable[bytes]]) -> Iterator[None]:
    """Damage a file in one way after the other."""
    whole = file.read_bytes()
    for data in damage(whole):
        assert data != whole
        file.write_bytes(data)
        yield
    file.write_bytes(whole)


def flipped(whole: bytes) -> Iterator[bytes]:
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        yield bytes(data)


def cut(whole: bytes) -> Iterator[bytes]:
    # But for the end of the last line, which says nothing.
    return (whole[:size] for size in range(len(whole) - 1))


def overwritten(whole: bytes) -> Iterator[bytes]:
    for start in (0, len(whole) // 2, len(whole) - 40):
        for rest in (b"\0", b"\n", b" ", b"x"):
            yield whole[:start] + rest * (len(whole) - start)


def some_corrections() -> list[Correction]:
    cell = {"y": 4.5, "x": 3.25, "y0": 1, "x0": 0, "height": 7, "width": 6, "area": 1e-7}
    first = label("a", "NGS", "BLA")
    return [
        first,
        undo(first),
        label("Ł", "", kind="delete"),
        Correction("add", "e", "w", "Ö", "b", "f", "", "BLA", cell),
    ]


@pytest.mark.parametrize("damage", [flipped, cut, overwritten])
def test_damage_is_noticed_or_changes_nothing(file: Path, damage: Callable[[bytes], Iterable[bytes]]) -> None:
    entries = some_corrections()
    for entry in entries:
        append_corrections(file, [entry])
    whole = read_corrections(file)
    errors = []
    for _ in damaged_copies(file, damage):
        try:
            assert read_corrections(file) == whole
        except StoreError as error:
            errors.append(str(error))
    assert {"\n" not in error and "restore" in error for error in errors} == {True}
    noticed = len(errors)
    size = file.stat().st_size
    # All that goes unnoticed are bits of the name of a line's checksum, and of the case of its digits.
    assert noticed > 7 * size if damage is flipped else noticed == (size - 1 if damage is cut else 12)
    assert read_corrections(file) == whole


def test_nothing_is_appended_to_a_journal_that_was_cut_and_the_error_says_how_to_go_on(file: Path) -> None:
    entries = some_corrections()
    append_corrections(file, entries)
    lines = file.read_bytes().splitlines(keepends=True)
    kept = b"".join(lines[:2])
    for rest in (b"", lines[2][:20], b"\n" * 999, b"\0" * 999):
        file.write_bytes(kept + rest)
        before = file.read_bytes()
        for act in (lambda: append_corrections(file, [label("c", "EOS")]), lambda: read_corrections(file)):
            with pytest.raises(StoreError, match=r"is cut short: \d+ bytes .* delete \.corrections\.jsonl\.size"):
                act()
        assert file.read_bytes() == before
    file.with_name(".corrections.jsonl.size").unlink()
    append_corrections(file, [label("c", "EOS")])
    assert [entry.cell_id for entry in read_corrections(file)] == ["a", "", "c"]
    # From here on it is guarded again.
    file.write_bytes(kept)
    with pytest.raises(StoreError, match="is cut short"):
        read_corrections(file)


def test_a_lost_journal_is_noticed_and_a_new_one_may_begin(file: Path) -> None:
    append_corrections(file, some_corrections())
    file.unlink()
    with pytest.raises(StoreError, match="is missing"):
        read_corrections(file)
    append_corrections(file, [label("c", "EOS")])
    assert [entry.cell_id for entry in read_corrections(file)] == ["c"]


def test_a_damaged_line_is_left_out_as_the_error_says(file: Path) -> None:
    append_corrections(file, [label(name, "NGS") for name in "abc"])
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + lines[1].replace(b'"NGS"', b'"LYT"') + lines[2])
    with pytest.raises(StoreError, match=r"line 2 .*checksum differs.*remove it, and \.corrections\.jsonl\.size"):
        read_corrections(file)
    file.write_bytes(lines[0] + lines[2])
    file.with_name(".corrections.jsonl.size").unlink()
    assert [entry.cell_id for entry in read_corrections(file)] == ["a", "c"]


@pytest.mark.parametrize("note", [b"", b"00000", b"00000000000000999999 00000000\n", b"\0" * 30])
def test_a_damaged_note_of_the_size_is_no_damage_of_the_journal(file: Path, note: bytes) -> None:
    append_corrections(file, some_corrections())
    file.with_name(".corrections.jsonl.size").write_bytes(note)
    assert len(read_corrections(file)) == 4
    append_corrections(file, [label("c", "EOS")])
    assert len(read_corrections(file)) == 5
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(StoreError, match="is cut short"):
        read_corrections(file)


def test_journals_of_earlier_versions_are_read_and_go_on(file: Path) -> None:
    lines = [entry.to_line() for entry in some_corrections()]
    plain = [{key: value for key, value in json.loads(line).items() if key != "crc32"} for line in lines]
    file.write_text("".join(json.dumps(line) + "\n" for line in plain), encoding="utf-8")
    assert [entry.cell_id for entry in read_corrections(file)] == ["a", "", "Ł", "b"]
    append_corrections(file, [label("c", "EOS")])
    with file.open("a", encoding="utf-8") as handle:  # an earlier version in between
        handle.write(json.dumps({**plain[2], "cell_id": "d"}) + "\n")
    append_corrections(file, [label("e", "EOS")])
    assert [entry.cell_id for entry in read_corrections(file)][4:] == ["c", "d", "e"]


def test_a_line_that_cannot_be_written_changes_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append_corrections(file, [label("a", "NGS")])
    before = file.read_bytes()
    real = os.write

    def full(handle: int, data: bytes) -> int:
        real(handle, bytes(data)[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hematokit.store.corrections.os.write", full)
    with pytest.raises(StoreError, match="No space left on device") as caught:
        append_corrections(file, [label("b", "BLA")])
    assert "\n" not in str(caught.value)
    assert file.read_bytes() == before


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot be written"):
        append_corrections(tmp_path / "gone" / CORRECTIONS_FILE, [label("a", "NGS")])
    assert not (tmp_path / "gone").exists()


# --- several processes, and killed ones -------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 4])
def test_a_writer_killed_while_appending_loses_nothing_that_it_acknowledged(file: Path, n: int) -> None:
    done = run_child(file, "a", 10, n)
    assert done.returncode == -signal.SIGKILL
    acknowledged = done.stdout.split()
    assert len(acknowledged) == n - 1
    torn = file.read_bytes()
    assert not torn.endswith(b"\n")
    assert [entry.after for entry in read_corrections(file)] == acknowledged
    append_corrections(file, [label("b", "BLA")])
    assert [entry.after for entry in read_corrections(file)] == [*acknowledged, "BLA"]


def test_writers_at_the_same_time_all_get_their_lines_in(file: Path) -> None:
    children = [
        subprocess.Popen([sys.executable, "-c", CHILD, str(file), f"cell{n}", "25"], stdout=subprocess.DEVNULL)
        for n in range(3)
    ]
    for n in range(25):
        append_corrections(file, [label("here", f"C{n}")])
        read_corrections(file)  # a reader meanwhile sees whole lines only
    assert [child.wait(timeout=120) for child in children] == [0, 0, 0]
    found = read_corrections(file)
    for name in ("cell0", "cell1", "cell2", "here"):
        assert [entry.after for entry in found if entry.cell_id == name] == [f"C{n}" for n in range(25)]


# --- what they mean ---------------------------------------------------------------------------------------------------


def table(*cells: str, reviewed: bool = True) -> pd.DataFrame:
    frame = pd.DataFrame({"cell_id": list(cells), "label": "BLA", "label_source": "csv", "y": 1.0})
    return frame.assign(reviewed=False) if reviewed else frame


def test_applied_to_a_table() -> None:
    cells = table("a", "b", "c", "d")
    entries = [label("a", "NGS"), label("b", "BLA", kind="confirm"), label("c", "", kind="delete"), label("z", "EOS")]
    found = apply_corrections(cells, entries)
    assert found["cell_id"].tolist() == ["a", "b", "d"]
    assert found["label"].tolist() == ["NGS", "BLA", "BLA"]
    assert found["label_source"].tolist() == ["corrected", "confirmed", "csv"]
    assert found["reviewed"].tolist() == [True, True, False]
    assert cells["label"].tolist() == ["BLA"] * 4
    assert "reviewed" not in apply_corrections(table("a", reviewed=False), entries).columns


def test_the_last_word_counts_and_confirming_leaves_corrected() -> None:
    entries = [label("a", "NGS"), label("a", "EOS"), label("a", "EOS", kind="confirm"), label("b", "", kind="delete")]
    found = apply_corrections(table("a", "b"), [*entries, label("b", "LYT")])
    assert found["label"].tolist() == ["EOS", "LYT"]
    assert found["label_source"].tolist() == ["corrected", "corrected"]


def test_undone_and_brought_back() -> None:
    one, two = label("a", "NGS"), label("a", "EOS")
    labels = [
        apply_corrections(table("a"), entries)["label"].item()
        for entries in (
            [one, two],
            [one, two, undo(two)],
            [one, two, undo(one)],
            [one, two, undo(two), undo(one)],
            [one, two, undo(two), undo(two, "redo")],
        )
    ]
    assert labels == ["EOS", "NGS", "EOS", "BLA", "EOS"]


def test_added_cells_join_where_asked_for() -> None:
    cell = {
        "y": 4.5,
        "x": 3,
        "y0": 1,
        "x0": 0,
        "height": 7,
        "width": 6,
        "label": "",
        "contour": [[0, 1], [2, 3], [4, 5]],
    }
    outline = [[0, 1], [2, 3], [4, 5]]
    entry = Correction("add", new_edit(), "", "", "new", "field", "", "BLA", {**cell, "contour": outline})
    assert len(apply_corrections(table("a"), [entry])) == 1
    found = apply_corrections(table("a"), [entry, label("new", "NGS")], add=lambda correction: True)
    assert found["cell_id"].tolist() == ["a", "new"]
    assert found["label"].tolist() == ["BLA", "NGS"]
    assert found["reviewed"].tolist() == [False, True]
    assert found["reviewed"].dtype == bool
    assert found["y"].tolist() == [1.0, 4.5]
    assert found["contour"].iloc[1].shape == (3, 2)


def test_an_empty_table_has_no_say_in_the_order_and_types_of_columns() -> None:
    cells = table("a", "b").assign(probability=np.float32(0.5), area=7)
    empty = pd.DataFrame({"label": [], "area": [], "cell_id": []}, dtype=object)
    pd.testing.assert_frame_equal(join_cells(empty, cells), cells)
    # One that has columns of its own keeps them, and so do rows.
    assert join_cells(empty.assign(own=[]), cells).columns.tolist() == [
        "label",
        "area",
        "cell_id",
        "own",
        "label_source",
        "y",
        "reviewed",
        "probability",
    ]
    assert join_cells(cells, empty).columns.tolist() == cells.columns.tolist()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["NGS", "EOS", ""]), st.booleans()), max_size=12))
def test_whatever_was_done_undone_in_any_order_gives_the_table_back(steps: list[tuple[str, str, bool]]) -> None:
    entries = [label(cell, code, kind="label" if code else "delete") for cell, code, _ in steps]
    late = [undo(entry) for entry, (_, _, first) in zip(entries, steps, strict=True) if first]
    last = [undo(entry) for entry, (_, _, first) in zip(entries, steps, strict=True) if not first]
    cells = table("a", "b", "c")
    pd.testing.assert_frame_equal(apply_corrections(cells, [*entries, *late, *reversed(last)]), cells)
    assert standing_corrections([*entries, *late, *last]) == []
    everything = [undo(entry, "redo") for entry in entries]
    again = apply_corrections(cells, [*entries, *late, *last, *everything])
    pd.testing.assert_frame_equal(again, apply_corrections(cells, entries))


# --- a store ----------------------------------------------------------------------------------------------------------


def test_a_store_shows_corrected_labels_and_is_another_data_set(store: Path) -> None:
    opened = open_store(store)
    cells, old_hash = opened.cells, opened.content_hash
    first, second = cells["cell_id"][:2]
    entries = [label(first, "NGS", cells["label"][0]), label(second, "", cells["label"][1], kind="delete")]
    append_corrections(store / CORRECTIONS_FILE, entries)
    assert opened.content_hash == old_hash  # as it was when it was opened
    opened.refresh()
    found = opened.cells.set_index("cell_id")
    assert found.loc[first, ["label", "label_source"]].tolist() == ["NGS", "corrected"]
    assert second not in found.index
    assert len(opened) == len(cells) - 1
    assert opened.content_hash != old_hash
    with pytest.raises(StoreError, match="has no cell"):
        opened.patches([second])
    append_corrections(store / CORRECTIONS_FILE, [undo(entry) for entry in entries])
    opened.refresh()
    assert opened.content_hash == old_hash
    pd.testing.assert_frame_equal(opened.cells, cells)


def test_a_writer_leaves_corrections_out_of_the_table(store: Path) -> None:
    opened = open_store(store)
    raw = opened.cells
    append_corrections(store / CORRECTIONS_FILE, [label(raw["cell_id"][0], "NGS"), label(raw["cell_id"][1], "BLA")])
    opened.refresh()
    with StoreWriter(opened) as writer:
        pd.testing.assert_frame_equal(writer.cells, raw)
        writer.replace_cells(writer.cells)
    assert opened.cells["label_source"].tolist()[:2] == ["corrected", "corrected"]


def test_a_split_divides_corrected_labels(store: Path) -> None:
    cells = open_store(store).cells
    blasts = cells.loc[cells["label"] == "BLA", "cell_id"].tolist()
    told = [label(name, "EOS", "BLA") for name in blasts[:20]] + [label(blasts[20], "", "BLA", kind="delete")]
    append_corrections(store / CORRECTIONS_FILE, told)
    summary = split_store(store, fractions=(0.5, 0.25, 0.25), seed=1)
    assert [summary.counts[side]["EOS"] for side in ("train", "val", "test")] == [10, 5, 5]
    assert sum(summary.counts[side]["BLA"] for side in summary.counts) == len(blasts) - 21
    assert (open_store(store).cells["split"] != "").all()
    assert not split_store(store, fractions=(0.5, 0.25, 0.25), seed=1).changed


def test_the_verbs_tell_of_corrections(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = open_store(store).cells
    entry = label(cells["cell_id"][0], "NGS", cells["label"][0])
    append_corrections(store / CORRECTIONS_FILE, [entry, label(cells["cell_id"][1], "EOS"), undo(entry)])
    assert describe_store(store).corrections == {"label": 1}
    assert main(["store", "info", str(store)]) == 0
    assert "corrected by people: 1 relabelled" in capsys.readouterr().out
    assert main(["store", "corrections", str(store)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert f"Ada: label {entry.cell_id}, {entry.before} to NGS (undone)" in told[0]
    assert told[-1] == "2 corrections, of which 1 were undone"
    assert main(["store", "corrections", str(store), "--json"]) == 0
    assert [row["undone"] for row in json.loads(capsys.readouterr().out)] == [True, False]


def test_a_damaged_file_stops_the_verbs_with_one_line(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (store / CORRECTIONS_FILE).write_text("damage\nmore\n", encoding="utf-8")
    assert main(["store", "info", str(store)]) == 2
    assert "line 1 is no correction" in capsys.readouterr().err
