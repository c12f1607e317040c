"""Ids of fields: unique, fit for folders, and the same when more fields come."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from hematokit.imaging.fieldfiles.listing import name_fields, safe_name


def test_the_stem_is_the_id_where_it_is_unique() -> None:
    assert name_fields({"/a/one.png": "one", "/a/two.png": "two"}) == {"/a/one.png": "one", "/a/two.png": "two"}


def test_colliding_stems_are_told_apart_for_good() -> None:
    ids = name_fields({"/a/field.png": "field", "/b/field.png": "field", "/c/Field.png": "Field"})
    assert len({field_id.casefold() for field_id in ids.values()}) == 3
    # The order of the fields does not matter, nor what else there is.
    again = name_fields({"/b/field.png": "field", "/a/field.png": "field", "/c/Field.png": "Field", "/d/x.png": "x"})
    assert {key: again[key] for key in ids} == ids


def test_ids_given_before_stay_when_a_namesake_comes() -> None:
    first = name_fields({"/a/field.png": "field"})
    second = name_fields({"/a/field.png": "field", "/b/field.png": "field"}, first)
    assert second["/a/field.png"] == "field"
    assert second["/b/field.png"].startswith("field-")


@given(st.lists(st.text(max_size=130), min_size=1, max_size=6))
def test_any_name_becomes_a_usable_folder(stems: list[str]) -> None:
    ids = name_fields({str(number): stem for number, stem in enumerate(stems)})
    folded = [field_id.casefold() for field_id in ids.values()]
    assert len(set(folded)) == len(stems)
    for field_id in ids.values():
        assert field_id not in ("", ".", "..")
        assert not set(field_id) & set('/\\:*?"<>|\0\n')
        assert len(field_id.encode()) <= 200
        assert Path("folder", field_id).parent == Path("folder")


def test_device_names_of_windows_are_avoided() -> None:
    assert safe_name("con") == "_con"
    assert safe_name("LPT1.tif") == "_LPT1.tif"
