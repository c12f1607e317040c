"""Which field belongs to which smear and patient."""

from __future__ import annotations

from pathlib import Path

import pytest

from hematokit.errors import FieldError
from hematokit.fields.smears import load_smears


def write(folder: Path, text: str) -> Path:
    path = folder / "smears.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_way_to_name_a_file(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.tif").touch()
    table = load_smears(
        write(
            tmp_path,
            "file;smear_id;patient_id\n"
            "a/1.tif;relative;p\n"
            f"{tmp_path}/b/1.tif;absolute;p\n"
            "only.png;named;p\n"
            "slide7;stem;p\n"
            "x/end.tif;end;p\n"
            "C:\\data\\other machine\\far.tif;elsewhere;p\n"
            "its-id;id;p\n",
        )
    )
    assert table.lookup(tmp_path / "a" / "1.tif", "1") == ("relative", "p")
    assert table.lookup(tmp_path / "b" / "1.tif", "1") == ("absolute", "p")
    assert table.lookup("/somewhere/only.png", "only") == ("named", "p")
    assert table.lookup("/somewhere/slide7.ome.tif", "slide7") == ("stem", "p")
    assert table.lookup("/mnt/x/end.tif", "end") == ("end", "p")
    assert table.lookup("/mnt/far.tif", "far") == ("elsewhere", "p")
    assert table.lookup("/mnt/anything.tif", "its-id") == ("id", "p")
    assert table.lookup("/mnt/unknown.tif", "unknown") == ("", "")
    assert table.lookup("/mnt/y/1.tif", "1") == ("", "")


def test_the_same_file_in_another_folder_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "1.tif").touch()
    table = load_smears(write(tmp_path, f"file,smear_id\n{tmp_path}/here/1.tif,s\n"))
    assert table.lookup(tmp_path / "there" / "1.tif", "1") == ("", "")


def test_one_column_is_enough_and_gaps_are_allowed(tmp_path: Path) -> None:
    table = load_smears(write(tmp_path, "path\tpatient\n1.tif\tp1\n2.tif\t\n"))
    assert table.lookup("1.tif", "1") == ("", "p1")
    assert table.lookup("2.tif", "2") == ("", "")


def test_ambiguous_names_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FieldError, match="lines 2 and 3 both name"):
        load_smears(write(tmp_path, "file,smear_id\n1.tif,s\n./1.tif,t\n"))
    table = load_smears(write(tmp_path, "file,smear_id\nx/1.tif,s\ny/x/1.tif,t\n1.tif,u\n"))
    assert table.lookup("/data/y/x/1.tif", "1") == ("t", "")
    table = load_smears(write(tmp_path, "file,smear_id\n1.tif,s\n"))
    assert table.lookup("/data/a/1.tif", "1") == ("s", "")
    assert table.lookup("/data/a/1.tif", "1") == ("s", "")
    with pytest.raises(FieldError, match=r"line 2: '1\.tif' names both .*a.1\.tif and .*b.1\.tif"):
        table.lookup("/data/b/1.tif", "1")
    table = load_smears(write(tmp_path, "file,smear_id\n/gone/a/9.tif,s\n/gone/b/9.tif,t\n"))
    with pytest.raises(FieldError, match="lines 2 and 3 both name"):
        table.lookup("/data/9.tif", "9")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,smear_id\n1.tif,s\n", "needs 'file'"),
        ("file,other\n1.tif,s\n", "gives no smear and no patient"),
        ("file,smear_id\n,s\n", "line 2: no usable file"),
        ("", "needs 'file'"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(FieldError, match=words) as caught:
        load_smears(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_missing_table(tmp_path: Path) -> None:
    with pytest.raises(FieldError, match="cannot be read"):
        load_smears(tmp_path / "none.csv")
