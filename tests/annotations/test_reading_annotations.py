"""Annotated cells from the files that annotation tools write, and what becomes of those that cannot be right."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hematokit.annotations import (
    AnnotatedCells,
    AnnotationFiles,
    ClassNames,
    check_annotations,
    load_class_map,
    read_annotations,
    read_class_names,
)
from hematokit.annotations.cells import DETECTION_COLUMNS
from hematokit.errors import FieldError, ImageError
from hematokit.imaging.fieldfiles import Field, list_fields, open_field
from hematokit.taxonomy import MATEK_21

HEIGHT, WIDTH = 300, 400


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Field]:
    """A field of 300 rows and 400 columns."""
    Image.new("RGB", (WIDTH, HEIGHT), "white").save(tmp_path / "field1.png")
    with open_field(tmp_path / "field1.png") as field:
        yield field


def read(path: Path, text: str, **more: object) -> AnnotatedCells:
    path.write_text(text, encoding="utf-8")
    files = AnnotationFiles(path, [Path("field1.png")], more.pop("class_names", None))  # type: ignore[arg-type]
    annotations = files.of_field(Path("field1.png"), HEIGHT, WIDTH)
    classes = ClassNames(MATEK_21, more.pop("mapping", None))  # type: ignore[arg-type]
    return check_annotations(annotations, HEIGHT, WIDTH, classes, **more)  # type: ignore[arg-type]


def boxes(known: AnnotatedCells) -> list[tuple[int, int, int, int]]:
    frame = known.cells[["y0", "x0", "height", "width"]]
    return [tuple(row) for row in frame.itertuples(index=False)]


def reasons(known: AnnotatedCells) -> list[str]:
    return [reason for reason, _ in known.rejects]


def voc(*objects: tuple[str, int | float, int | float, int | float, int | float], size: str = "") -> str:
    parts = [
        f"<object><name>{name}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
        "</bndbox></object>"
        for name, x0, y0, x1, y1 in objects
    ]
    return f"<annotation>{size}{''.join(parts)}</annotation>"


def feature(geometry: dict[str, object], classification: object = None, **more: object) -> dict[str, object]:
    properties = {} if classification is None else {"classification": classification}
    return {"type": "Feature", "geometry": geometry, "properties": properties, **more}


def square(x0: float, y0: float, side: float) -> list[list[float]]:
    return [[x0, y0], [x0 + side, y0], [x0 + side, y0 + side], [x0, y0 + side], [x0, y0]]


# --- one cell in every format -----------------------------------------------------------------------------------------

box_in_field = st.tuples(
    st.integers(0, HEIGHT - 1), st.integers(0, WIDTH - 1), st.integers(1, HEIGHT), st.integers(1, WIDTH)
).map(lambda b: (b[0], b[1], min(b[2], HEIGHT - b[0]), min(b[3], WIDTH - b[1])))


@given(box=box_in_field)
def test_a_box_is_the_same_box_in_every_format(tmp_path_factory: pytest.TempPathFactory, box: tuple[int, ...]) -> None:
    y0, x0, height, width = box
    y1, x1 = y0 + height, x0 + width
    folder = tmp_path_factory.mktemp("formats")
    cy, cx, h, w = (y0 + y1) / 2 / HEIGHT, (x0 + x1) / 2 / WIDTH, height / HEIGHT, width / WIDTH
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    texts = {
        "a.xml": voc(("BLA", x0, y0, x1, y1)),
        "corners.csv": f"class;xmin;ymin;xmax;ymax\nBLA;{x0};{y0},0;{x1};{y1}\n",
        "own.csv": f"y,x,y0,x0,height,width,label\n{y0 + height / 2},{x0 + width / 2},{y0},{x0},{height},{width},BLA\n",
        "a.txt": f"3 {cx:.17g} {cy:.17g} {w:.17g} {h:.17g}\n",
        "a.geojson": json.dumps([feature({"type": "Polygon", "coordinates": [ring]}, {"name": "BLA"})]),
    }
    for name, text in texts.items():
        known = read(folder / name, text, mapping={"3": "BLA"})
        assert known.rejects == [], name
        assert known.cut == 0, name
        cell = known.cells.iloc[0]
        assert (cell.label, cell.score) == ("BLA", 1.0)
        assert math.isclose(cell.y, y0 + height / 2, abs_tol=1e-9), name
        assert math.isclose(cell.x, x0 + width / 2, abs_tol=1e-9), name
        assert boxes(known) == [box], name
        assert cell.touches_border == (y0 == 0 or x0 == 0 or y1 == HEIGHT or x1 == WIDTH), name


def test_the_columns_are_a_detectors_and_what_is_known(opened: Field, tmp_path: Path) -> None:
    (tmp_path / "cells.csv").write_text("y,x,label,smear_id,patient_id\n20,30,LYT,S1,P1\n10,300,,,\n")
    known = read_annotations(tmp_path / "cells.csv", opened, point_side=100)
    assert tuple(known.cells.columns) == (*DETECTION_COLUMNS, "label", "label_source", "smear_id", "patient_id")
    assert known.cells["label"].tolist() == ["", "LYT"]
    assert known.cells["label_source"].tolist() == ["", "csv"]
    assert known.cells["patient_id"].tolist() == ["", "P1"]
    # Of a point only the centre is known: the box is the patch's, cut at the border.
    assert boxes(known) == [(0, 250, 60, 100), (0, 0, 70, 80)]


def test_qupath_geojson(tmp_path: Path) -> None:
    features = [
        feature({"type": "Polygon", "coordinates": [square(10, 20, 40)]}, {"name": "Blast", "color": [1, 2, 3]}),
        feature({"type": "MultiPolygon", "coordinates": [[square(100, 20, 10)], [square(120, 20, 30)]]}, "lyt"),
        feature({"type": "Point", "coordinates": [200, 100]}, {"names": ["BLA"]}),
        feature({"type": "MultiPoint", "coordinates": [[20, 150], [380.5, 290]]}),
        feature(
            {"type": "Polygon", "coordinates": [square(300, 20, 50)]},
            {"name": "EOS"},
            nucleusGeometry={"type": "Polygon", "coordinates": [square(310, 30, 20)]},
        ),
        feature({"type": "LineString", "coordinates": [[0, 0], [9, 9]]}),
        feature({"type": "Polygon", "coordinates": [[[0, 0], ["a", 1], [1, 1]]]}),
        feature({"type": "Polygon", "coordinates": [square(390, 20, 40)]}, {"name": "BLA"}),
        {"type": "Feature", "geometry": None},
        "nothing",
    ]
    known = read(tmp_path / "a.geojson", json.dumps({"type": "FeatureCollection", "features": features}))
    by_place = {(cell.y, cell.x): cell for cell in known.cells.itertuples()}
    assert {place: cell.label for place, cell in by_place.items()} == {
        (40, 30): "BLA",
        (35, 125): "LYT",
        (100, 200): "BLA",
        (150, 20): "",
        (290, 380.5): "",
        (45, 325): "EOS",
    }
    assert by_place[40, 30].contour.tolist() == [[20, 10], [20, 50], [60, 50], [60, 10]]
    assert by_place[40, 30].area == 1600
    assert by_place[45, 325].area == 400, "the nucleus, not the cell"
    assert by_place[45, 325].width == 50
    assert reasons(known) == ["no-geometry", "bad-number", "outside-field", "no-geometry", "no-geometry"]
    assert "feature 6: a geometry of type LineString" in known.rejects[0][1]


def test_yolo_polygons_confidences_and_names(tmp_path: Path) -> None:
    text = "0 0.5 0.5 0.1 0.2 0.93\n\n1 0.1 0.1 0.2 0.1 0.2 0.3\n1 0.5 0.5 0.1\n2 nan 0.5 0.1 0.1\n0 0.5 0.5 0 0.1\n"
    (tmp_path / "data.yaml").write_text("names: {0: Blast, 1: LYT, 2: PLM}\n")
    known = read(tmp_path / "a.txt", text)
    assert known.cells["label"].tolist() == ["LYT", "BLA"]
    assert boxes(known) == [(30, 40, 60, 40), (120, 180, 60, 40)]
    assert len(known.cells["contour"][0]) == 3
    assert reasons(known) == ["bad-number", "bad-number", "empty-box"]
    known = read(tmp_path / "a.txt", text, class_names=["EOS", "MON"])
    assert known.cells["label"].tolist() == ["MON", "EOS"]


def test_a_number_without_a_name_is_no_code(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("names: {0: BLA, 2: LYT}\n")
    (tmp_path / "a.txt").write_text("1 0.5 0.5 0.1 0.2\n3 0.2 0.2 0.1 0.2\n2 0.7 0.7 0.1 0.2\n")
    annotations = AnnotationFiles(tmp_path / "a.txt", [Path("a.png")]).of_field(Path("a.png"), 300, 400).annotations
    assert [annotation.name for annotation in annotations] == ["class 1", "class 3", "LYT"]


def test_names_of_yolo_classes(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("WBC\n\nRBC\n")
    assert read_class_names(tmp_path / "classes.txt") == ["WBC", "RBC"]
    (tmp_path / "a.yaml").write_text("names: [WBC, RBC]\n")
    assert read_class_names(tmp_path / "a.yaml") == ["WBC", "RBC"]
    (tmp_path / "b.yaml").write_text("nc: 3\n")
    for name in ("b.yaml", "none.txt"):
        with pytest.raises(FieldError, match=name):
            read_class_names(tmp_path / name)


# --- cells that cannot be right ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "reason", "said"),
    [
        ("BLA,50,20,10,60", "reversed-box", "ends before it begins"),
        ("BLA,10,60,50,20", "reversed-box", "y 60 to 20"),
        ("BLA,10,20,10,60", "empty-box", "is empty"),
        ("BLA,0,0,0,0", "empty-box", "is empty"),
        ("BLA,500,20,560,60", "outside-field", "400x300 px"),
        ("BLA,-60,-60,0,0", "outside-field", "outside"),
        ("BLA,390,20,480,60", "outside-field", "centre (y 40, x 435)"),
        ("BLA,nan,20,50,60", "bad-number", "xmin: 'nan' is not a finite number"),
        ("BLA,10,inf,50,60", "bad-number", "ymin: 'inf'"),
        ("BLA,10,20,,60", "bad-number", "xmax: '' is not a number"),
        ("BLA,10,20,fifty,60", "bad-number", "'fifty' is not a number"),
        ("BLA,10", "bad-number", "ymin"),
        ("XYZ,10,20,50,60", "unknown-class", "--class-map 'XYZ=CODE'"),
        ("BLA,100,100,150,150", "repeated-cell", "the same place as line 2"),
        ("LYT,100,100,150,150", "repeated-cell", "line 2"),
    ],
)
def test_what_cannot_be_right_is_refused_and_the_rest_goes_on(tmp_path: Path, row: str, reason: str, said: str) -> None:
    known = read(
        tmp_path / "cells.csv", f"class,xmin,ymin,xmax,ymax\nBLA,100,100,150,150\n{row}\nLYT,200,100,260,150\n"
    )
    assert known.cells["label"].tolist() == ["BLA", "LYT"]
    assert reasons(known) == [reason]
    message = known.rejects[0][1]
    assert "cells.csv, line 3: " in message
    assert said in message
    assert "\n" not in message


def test_a_centre_must_lie_in_its_box_and_field(tmp_path: Path) -> None:
    text = "y,x,y0,x0,height,width\n10,10,100,100,20,20\n-1,10,,,,\n110,112,100,100,20,20\n300.5,10,,,,\nnan,3,,,,\n"
    known = read(tmp_path / "cells.csv", text)
    assert reasons(known) == ["centre-not-in-box", "outside-field", "outside-field", "bad-number"]
    assert known.cells[["y", "x"]].to_numpy().tolist() == [[110, 112]]


def test_a_box_over_the_border_is_cut_and_counted(tmp_path: Path) -> None:
    known = read(tmp_path / "a.xml", voc(("BLA", -10, 20, 40, 60), ("BLA", 380, 270, 401, 310), ("BLA", 9, 9, 20, 20)))
    assert boxes(known) == [(9, 9, 11, 11), (20, 0, 40, 40), (270, 380, 30, 20)]
    assert known.cells["y"].tolist() == [14.5, 40, 290], "the centre is the whole box's"
    assert known.cells["touches_border"].tolist() == [False, True, True]
    assert known.cut == 2


def test_annotations_of_another_image_are_refused_whole(tmp_path: Path) -> None:
    size = "<size><width>{}</width><height>{}</height></size>"
    assert len(read(tmp_path / "a.xml", voc(("BLA", 1, 1, 9, 9), size=size.format(WIDTH, HEIGHT))).cells) == 1
    assert len(read(tmp_path / "a.xml", voc(("BLA", 1, 1, 9, 9), size=size.format(0, 0))).cells) == 1
    for name, text in {
        "a.xml": voc(("BLA", 1, 1, 9, 9), size=size.format(640, 480)),
        "a.csv": "filename,width,height,class,xmin,ymin,xmax,ymax\nfield1.png,640,480,BLA,1,1,9,9\n",
    }.items():
        with pytest.raises(ImageError, match="640x480 px, but the field has 400x300 px") as caught:
            read(tmp_path / name, text)
        assert caught.value.reason == "size-differs"


BOMB = '<!DOCTYPE a [<!ENTITY b "x"><!ENTITY c "&b;&b;">]><annotation><object><name>&c;</name></object></annotation>'


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.xml", "<annotation><object>", "is not XML"),
        ("a.xml", "", "is not XML"),
        ("a.xml", BOMB, "is not XML"),
        ("a.xml", "<html></html>", "not Pascal VOC"),
        ("a.geojson", "{", "is not JSON"),
        ("a.geojson", "[" * 100_000, "is not JSON"),
        ("a.json", '{"type": "FeatureCollection"}', "no list 'features'"),
        ("a.json", "3", "no list 'features'"),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(ImageError) as caught:
        read(tmp_path / name, text)
    assert caught.value.reason == "unreadable-cells"
    assert name in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.csv", b"label,area\nBLA,3\n", "needs xmin, ymin, xmax, ymax"),
        ("a.csv", b"", "has the columns none"),
        ("a.csv", b"y,x\n\xff\xfe,1\n", "UTF-8"),
        ("a.docx", b"x", "has an unknown type; give a .csv"),
        ("missing.csv", None, "does not exist"),
    ],
)
def test_a_table_that_is_none_is_one_line(tmp_path: Path, name: str, data: bytes | None, said: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(FieldError) as caught:
        AnnotationFiles(tmp_path / name, [Path("field1.png")])
    assert said in str(caught.value)
    assert name in str(caught.value)


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    known = read(tmp_path / "a.csv", "y,x,label\n5,5,\x1b[31mred\n")
    assert "\x1b" not in known.rejects[0][1]


# --- classes ----------------------------------------------------------------------------------------------------------


def test_names_become_codes(tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text("Neutrophil: NGS\nWBC:\n7: lyt\n")
    mapping = load_class_map([str(tmp_path / "map.yaml"), "neutro = ngb", "Blast=PMO"], MATEK_21)
    assert mapping == {"Neutrophil": "NGS", "WBC": "", "7": "LYT", "neutro": "NGB", "Blast": "PMO"}
    names = ClassNames(MATEK_21, mapping)
    asked = ["neutrophil", "wbc", "7", "NEUTRO", "blast", "bla", "Plasma cell", "", "nobody"]
    assert [names.code(name) for name in asked] == ["NGS", "", "LYT", "NGB", "PMO", "BLA", "PLM", "", None]


@pytest.mark.parametrize(
    ("value", "said"),
    [("WBC=XYZ", "'XYZ'"), ("nothing.yaml", "neither NAME=CODE nor a file"), ("list.yaml", "no 'name")],
)
def test_a_wrong_class_map_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.yaml").write_text("- BLA\n")
    with pytest.raises(FieldError, match="--class-map") as caught:
        load_class_map([value], MATEK_21)
    assert said in str(caught.value)


def test_only_some_classes(tmp_path: Path) -> None:
    text = voc(("BLA", 1, 1, 9, 9), ("LYT", 11, 1, 19, 9), ("RBC", 5, 5, 5, 5), ("RBC", 50, 50, 60, 60))
    known = read(tmp_path / "a.xml", text, only=["bla"])
    assert known.cells["label"].tolist() == ["BLA"]
    assert known.left_out == {"LYT": 1, "RBC": 2}
    assert known.rejects == [], "what was not asked for is not judged"
    known = read(tmp_path / "a.xml", text, only=["BLA", "rbc"], mapping={"RBC": ""})
    assert (known.cells["label"].tolist(), reasons(known)) == (["BLA", ""], ["empty-box"])


# --- which file for which field ---------------------------------------------------------------------------------------


def annotation_count(files: AnnotationFiles, path: str) -> int:
    return len(files.of_field(Path(path), HEIGHT, WIDTH).annotations)


def test_a_folder_has_a_file_for_each_field(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.xml").write_text(voc(("BLA", 1, 1, 9, 9)))
    (tmp_path / "sub" / "b.ome.tif.geojson").write_text("[]")
    (tmp_path / "c.txt").write_text("")
    (tmp_path / "d.txt").write_text("")
    (tmp_path / "d.xml").write_text(voc())
    paths = ["a.png", "b.ome.tif", "c.jpg", "d.jpg", "e.jpg"]
    files = AnnotationFiles(tmp_path, [Path(path) for path in paths])
    assert [annotation_count(files, path) for path in paths[:3]] == [1, 0, 0]
    for path, reason in (("d.jpg", "ambiguous-cells"), ("e.jpg", "no-cells")):
        with pytest.raises(ImageError) as caught:
            annotation_count(files, path)
        assert caught.value.reason == reason
    with pytest.raises(FieldError, match="with the name of a field"):
        AnnotationFiles(tmp_path, [Path("x.png")])
    twice = AnnotationFiles(tmp_path, [Path("one/a.png"), Path("two/a.png")])
    with pytest.raises(ImageError, match="2 fields are named a"):
        annotation_count(twice, "one/a.png")


def test_one_table_for_many_fields(tmp_path: Path) -> None:
    table = tmp_path / "cells.csv"
    table.write_text(
        "source,y,x\nA/one.png,5,5\nA/one.png,9,9\nA/two.png,5,5\nB/two.png,5,5\nB/two.png,7,7\nthree.png,1,1\n"
    )
    paths = ["/data/A/one.png", "A/two.png", "/data/B/two.png", "somewhere/three.tif", "four.png"]
    files = AnnotationFiles(table, [Path(path) for path in paths])
    assert [annotation_count(files, path) for path in paths[:4]] == [2, 1, 2, 1]
    with pytest.raises(ImageError, match="no row of field four"):
        annotation_count(files, "four.png")
    # Only the file's name is given, and two rows have it.
    with pytest.raises(ImageError, match="which both match"):
        annotation_count(AnnotationFiles(table, [Path("two.png"), Path("one.png")]), "two.png")


def test_a_table_by_field_id(tmp_path: Path) -> None:
    (tmp_path / "cells.csv").write_text("field_id,y,x\nsmear 1,5,5\nsmear_2,5,5\nsmear_2,6,6\n")
    paths = [Path("smear 1.png"), Path("smear 2.png")]
    files = AnnotationFiles(tmp_path / "cells.csv", paths)
    assert [annotation_count(files, str(path)) for path in paths] == [1, 2]


@pytest.mark.parametrize(("name", "text"), [("a.xml", voc()), ("a.txt", ""), ("a.json", "[]"), ("a.csv", "y,x\n1,1\n")])
def test_the_file_of_one_field_is_not_many_fields(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(FieldError, match="2 fields are given"):
        AnnotationFiles(tmp_path / name, [Path("a.png"), Path("b.png")])


# --- real annotations -------------------------------------------------------------------------------------------------


def test_every_white_cell_of_bccd(real_data: Path) -> None:
    fields = list_fields([real_data / "bccd" / "JPEGImages"])
    files = AnnotationFiles(real_data / "bccd" / "Annotations", fields)
    classes = ClassNames(MATEK_21, {"WBC": ""})
    counts: Counter[str] = Counter()
    for path in fields:
        known = check_annotations(files.of_field(path, 480, 640), 480, 640, classes, ["WBC"])
        assert known.rejects == []
        assert (known.cells["y"] <= 480).all()
        counts.update(known.left_out)
        counts["WBC"] += len(known.cells)
    assert counts == {"WBC": 273, "RBC": 3012, "Platelets": 270}


def test_every_white_cell_of_txl(real_data: Path) -> None:
    fields = list_fields([real_data / "txl_pbc360" / "images"])
    files = AnnotationFiles(real_data / "txl_pbc360" / "labels", fields, ["WBC", "RBC", "platelet"])
    counts: Counter[str] = Counter()
    for path in fields:
        with Image.open(path) as image:
            width, height = image.size
        annotations = files.of_field(path, height, width)
        known = check_annotations(annotations, height, width, ClassNames(MATEK_21, {"WBC": ""}), ["WBC"])
        assert known.cut == 0
        counts.update(WBC=len(known.cells))
        counts.update(reasons(known))
        ends = known.cells[["y0", "x0"]].to_numpy() + known.cells[["height", "width"]].to_numpy()
        assert (ends <= [height, width]).all()
        assert np.isfinite(known.cells[["y", "x"]].to_numpy()).all()
    # One image lists its white cell six times.
    assert counts == {"WBC": 105, "repeated-cell": 5}
