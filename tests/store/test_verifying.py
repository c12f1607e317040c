"""Damage is found, named, and told in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hematokit.errors import StoreError
from hematokit.store import import_crops, open_store, verify_store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """600 cells in three shards."""
    folder = tmp_path / "crops" / "BLA"
    folder.mkdir(parents=True)
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (600, 8, 8, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"{i:03}.bmp")
    import_crops(folder, tmp_path / "store.zarr", patch_size=8, near_duplicates=False)
    return tmp_path / "store.zarr"


def shard(store: Path, number: int) -> Path:
    return store / "patches" / "c" / str(number) / "0" / "0" / "0"


def test_a_whole_store_is_whole(store: Path) -> None:
    report = verify_store(store)
    assert report.ok
    assert report.cells == 600
    assert report.content_hash == open_store(store).content_hash


@pytest.mark.parametrize("damage", ["truncated", "missing", "emptied"])
def test_a_damaged_shard_costs_its_cells_only(store: Path, damage: str) -> None:
    path = shard(store, 1)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 1000 if damage == "truncated" else 0])
    report = verify_store(store)
    assert [(cell.cell_id, cell.problem) for cell in report.damaged] == [
        (f"{i:03}", "unreadable") for i in range(256, 512)
    ]
    assert "crops" in report.damaged[0].source
    opened = open_store(store)
    with pytest.raises(StoreError, match="store verify") as caught:
        opened.patches(["000", "300"])
    assert "\n" not in str(caught.value)
    assert opened.patches(["000", "599"]).shape == (2, 8, 8, 3)


def test_one_flipped_bit_costs_one_cell(store: Path) -> None:
    path = shard(store, 0)
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    report = verify_store(store)
    assert len(report.damaged) == 1
    assert report.damaged[0].problem == "unreadable"


def test_exchanged_shards_are_noticed(store: Path) -> None:
    # Whole by their own checksums, but not the patches that belong there.
    shard(store, 0).write_bytes(shard(store, 1).read_bytes())
    report = verify_store(store)
    assert {cell.problem for cell in report.damaged} == {"changed"}
    assert len(report.damaged) == 256
