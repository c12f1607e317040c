"""Which keys give which classes, and what else those keys do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from hematokit.taxonomy import MATEK_21, CellClass, Taxonomy
from napari_hematonet.following import usable_key
from napari_hematonet.settings import class_keys, key_of, store_setting


@pytest.fixture(autouse=True)
def own_settings() -> Iterator[None]:
    yield
    store_setting("classes", "", group="keys")


def test_every_class_has_a_key_of_its_own_that_napari_does_not_use(viewer: Any) -> None:
    keys = class_keys(MATEK_21)
    assert sorted(keys.values()) == sorted(MATEK_21.codes)
    viewer.add_points([[1, 1]])
    # Everything that a key does while points are the active layer, the layer's and the viewer's.
    taken = {str(key) for key in viewer.window._qt_viewer._key_map_handler.active_keymap}
    assert {"1", "A", "S", "V"} <= taken
    assert set(keys).isdisjoint(taken)
    ours = {usable_key(key_of(name)) for name in ("delete_cell", "confirm_cell", "next_cell", "previous_cell")}
    assert None not in ours
    assert len(ours) == 4
    assert set(keys).isdisjoint(ours)


def test_the_letters_that_come_to_mind_are_those_of_the_common_classes() -> None:
    keys = class_keys(MATEK_21)
    assert {keys[key] for key in "LMBE"} == {"LYT", "MON", "BLA", "EOS"}
    assert keys["L"] == "LYT"


def test_what_is_set_wins_and_the_others_still_have_a_key() -> None:
    store_setting("classes", "l=LYI; S = NGS, 5=PLM, Q=nothing", group="keys")
    keys = class_keys(MATEK_21)
    assert (keys["L"], keys["S"], keys["5"]) == ("LYI", "NGS", "PLM")
    assert sorted(keys.values()) == sorted(MATEK_21.codes)


def test_classes_of_ones_own() -> None:
    ours = Taxonomy("ours", tuple(CellClass(f"S{n}", f"Sort {n}", "other", "#000000") for n in range(30)))
    keys = class_keys(ours)
    assert len(keys) == 21  # there are no more letters; the others are given by the list
    assert "S" not in keys
    assert class_keys(Taxonomy("one", (CellClass("PQ", "Sort", "other", "#000000"),))) == {"Q": "PQ"}
