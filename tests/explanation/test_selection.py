"""Which cells are explained, and for which class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hematokit.errors import ExplanationError, ImageError
from hematokit.explanation.selection import cells_of_images, cells_of_store, target_chooser
from hematokit.store import open_store
from tinykit import write_crops

CODES = ("LYT", "BLA", "NGS")


def test_cells_of_a_store_by_id_come_in_the_order_asked_for(tiny_store: Path) -> None:
    store = open_store(tiny_store)
    ids = np.random.default_rng(0).permutation(store.cells["cell_id"].to_numpy())[:9].tolist()
    chosen = cells_of_store(store, CODES, cell_ids=[*ids, ids[0]])
    assert chosen.cells["cell_id"].tolist() == ids
    np.testing.assert_array_equal(chosen.read(np.array([4, 1])), store.patches([ids[4], ids[1]]))


def test_so_many_of_each_class_in_the_models_order_and_fewer_are_the_first_of_more(tiny_store: Path) -> None:
    store = open_store(tiny_store)
    few = cells_of_store(store, CODES, split="train", per_class=2, seed=3)
    many = cells_of_store(store, CODES, split="train", per_class=5, seed=3)
    other = cells_of_store(store, CODES, split="train", per_class=5, seed=4)
    without = cells_of_store(store, ("BLA", "NGS"), split="train", per_class=5, seed=3)

    assert few.cells["label"].tolist() == ["LYT", "LYT", "BLA", "BLA", "NGS", "NGS"]
    assert set(many.cells["split"]) == {"train"}
    for code in CODES:
        first, more = (chosen.cells.loc[chosen.cells["label"] == code, "cell_id"].tolist() for chosen in (few, many))
        assert more[:2] == first
    assert without.cells["cell_id"].tolist() == many.cells["cell_id"].tolist()[5:]
    assert other.content != many.content
    assert cells_of_store(store, CODES, split="train", per_class=5, seed=3).content == many.content


def test_without_a_number_all_cells_of_the_split(tiny_store: Path) -> None:
    store = open_store(tiny_store)
    assert len(cells_of_store(store, CODES, split="all", per_class=None)) == len(store)
    assert len(cells_of_store(store, CODES, split="test")) == (store.cells["split"] == "test").sum()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cell_ids": ["nobody"]}, "has no cell 'nobody'"),
        ({"split": "tset"}, "no cell in a split 'tset'"),
        ({"per_class": -1}, "--per-class 1 or more"),
    ],
)
def test_cells_that_are_not_there(tiny_store: Path, options: dict[str, object], said: str) -> None:
    with pytest.raises(ExplanationError, match=said):
        cells_of_store(open_store(tiny_store), CODES, **options)  # type: ignore[arg-type]


def test_no_cell_of_the_models_classes(tiny_store: Path) -> None:
    with pytest.raises(ExplanationError, match=r"no cell of the model's classes \(MON\)"):
        cells_of_store(open_store(tiny_store), ("MON",), per_class=2)


def test_images_of_a_folder_and_single_ones(tmp_path: Path) -> None:
    write_crops(tmp_path / "crops", {"BLA": 2, "LYT": 1}, seed=int(np.random.SeedSequence().generate_state(1)[0]))
    loose = tmp_path / "loose.png"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(loose)
    (tmp_path / "crops" / "notes.txt").write_text("no image")

    chosen = cells_of_images([tmp_path / "crops", loose, tmp_path / "crops" / "BLA" / "BLA_0000.png"], CODES, 64)

    assert chosen.cells["cell_id"].tolist() == ["BLA/BLA_0000.png", "BLA/BLA_0001.png", "LYT/LYT_0000.png", "loose.png"]
    assert chosen.cells["label"].tolist() == ["BLA", "BLA", "LYT", ""]
    np.testing.assert_array_equal(chosen.read(np.array([3]))[0], pixels)


def test_images_that_cannot_be_used_are_said_before_the_work(tmp_path: Path) -> None:
    write_crops(tmp_path, {"BLA": 1})
    with pytest.raises(ImageError, match="64x64 px, not 250x250, which the model takes"):
        cells_of_images([tmp_path], CODES, 250)
    with pytest.raises(ImageError, match=r"no\.png cannot be read"):
        cells_of_images([tmp_path / "no.png"], CODES, 64)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExplanationError, match="no image files were given"):
        cells_of_images([tmp_path / "empty"], CODES, 64)


def test_targets(tiny_store: Path) -> None:
    chosen = cells_of_store(open_store(tiny_store), CODES, split="test", per_class=2)
    logits = np.random.default_rng(0).normal(size=(len(chosen), 3)).astype(np.float32)
    positions = np.arange(len(chosen))
    assert target_chooser("predicted", chosen.cells, CODES)(positions, logits).tolist() == logits.argmax(1).tolist()
    assert target_chooser("true", chosen.cells, CODES)(positions[3:], logits[3:]).tolist() == [1, 2, 2]
    assert target_chooser("bla", chosen.cells, CODES)(positions[:2], logits[:2]).tolist() == [1, 1]
    with pytest.raises(
        ExplanationError, match=r"no class 'XYZ'; give --target predicted, true, or one of LYT, BLA, NGS"
    ):
        target_chooser("XYZ", chosen.cells, CODES)


def test_a_true_class_that_the_model_does_not_know(tiny_store: Path) -> None:
    cells = cells_of_store(open_store(tiny_store), CODES, split="all").cells
    with pytest.raises(ExplanationError, match=r"of class ART, which the model does not know \(20 such cells\)"):
        target_chooser("true", cells, CODES)
    with pytest.raises(ExplanationError, match="without a label"):
        target_chooser("true", cells.assign(label=""), CODES)
