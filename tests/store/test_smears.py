"""Which field belongs to which smear and patient."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from hematokit.errors import FieldError
from hematokit.store.smears import load_smears


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


def test_composed_and_decomposed_accents_name_the_same_file(tmp_path: Path) -> None:
    names = ["Müller 1.jpg", "a/Präparat.ome.tif", "Žofie"]
    for one, other in (("NFC", "NFD"), ("NFD", "NFC")):
        rows = [f"{unicodedata.normalize(one, name)},S,P{number}" for number, name in enumerate(names)]
        table = load_smears(write(tmp_path, "\n".join(["file,smear_id,patient_id", *rows])))
        for number, name in enumerate(["Müller 1.jpg", "b/a/Präparat.ome.tif", "Žofie.png"]):
            assert table.lookup(tmp_path / unicodedata.normalize(other, name)) == ("S", f"P{number}")


def match(folder: Path, text: str, *files: str) -> tuple[dict[str, tuple[str, str]], tuple[str, ...]]:
    found = load_smears(write(folder, text)).match({folder / file: Path(file).stem for file in files})
    return {path.name: said for path, said in found.said.items()}, found.warnings


def test_a_table_that_names_no_field_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FieldError, match=r"smears\.csv names none of the 2 fields .*'field-0\.jpg'.*'field_0\.jpg'"):
        match(tmp_path, "file,patient_id\nfield-0.jpg,P1\n", "field_0.jpg", "field_1.jpg")


def test_what_fits_in_part_is_said(tmp_path: Path) -> None:
    said, warnings = match(tmp_path, "file,patient_id\na.jpg,P1\nb.jpg,P1\n", "a.jpg", "b.jpg")
    assert (said, warnings) == ({"a.jpg": ("", "P1"), "b.jpg": ("", "P1")}, ())
    _, warnings = match(tmp_path, "file,patient_id\na.jpg,P1\nx-1.jpg,P2\nx-2.jpg,P2\n", "a.jpg", *"bcdef")
    assert len(warnings) == 2
    assert "no smear and no patient for 5 of 6 fields (b, c, d and 2 more)" in warnings[0]
    assert "2 of 3 rows" in warnings[1]
    assert "x-1.jpg in line 3, x-2.jpg in line 4" in warnings[1]
    _, warnings = match(tmp_path, "file,smear_id,patient_id\na,S1,P1\nb,S2,\nc,S3,\n", "a", "b", "c")
    assert len(warnings) == 1
    assert "2 of 3 fields" in warnings[0]
    assert "have no patient" in warnings[0]
    # Smears alone, and the same row twice, are complete.
    assert match(tmp_path, "file,smear_id\na,S1\nb,S2\na,S1\n", "a", "b")[1] == ()


def test_doubtful_identifiers_are_said(tmp_path: Path) -> None:
    rows = "a,S1,P 1\nb,S2,p1\nc,S3,Q\nd,S3,R\n"
    said, warnings = match(tmp_path, f"file,smear_id,patient_id\n{rows}", *"abcd")
    assert said["a"] != said["b"], "they are not merged in silence"
    assert len(warnings) == 2
    assert "'P 1' and 'p1' differ only by case or spaces" in warnings[0]
    assert "'S3' of 'Q' and 'R'" in warnings[1]


def test_the_path_of_one_field_does_not_name_another(tmp_path: Path) -> None:
    for files in (("1.tif", "more/1.tif"), ("more/1.tif", "1.tif")):
        found = load_smears(write(tmp_path, "file,patient_id\n1.tif,P1\n")).match({tmp_path / f: "1" for f in files})
        assert found.said == {tmp_path / "1.tif": ("", "P1"), tmp_path / "more" / "1.tif": ("", "")}
        assert "1 of 2 fields" in found.warnings[0]
