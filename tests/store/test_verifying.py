"""Damage is found and named in one line; what is no damage is not called so."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hematokit.errors import StoreError
from hematokit.store import PatchStore, import_crops, open_store, verify_store
from hematokit.store.corrections import CORRECTIONS_FILE, Correction, append_corrections, new_edit, utc_now


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


def test_cells_that_corrections_delete_are_checked_too(store: Path) -> None:
    deleted = Correction("delete", new_edit(), utc_now(), "Ada", "007", "", "BLA")
    append_corrections(store / CORRECTIONS_FILE, [deleted])
    assert verify_store(store).cells == 600
    path = shard(store, 0)
    path.write_bytes(path.read_bytes()[:-4])  # the shard's index
    report = verify_store(store)
    assert [cell.cell_id for cell in report.damaged if cell.deleted] == ["007"]
    assert len(report.damaged) == 256
    assert [line for line in report.lines() if "deleted by a correction" in line] == [
        f"  007: unreadable, imported from {report.damaged[7].source} (deleted by a correction)"
    ]


def refuse_files(store: PatchStore) -> Iterator[None]:
    """Let the process open no more files, as where a limit is reached."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def loop_the_shard(store: PatchStore) -> Iterator[None]:
    """A shard whose link leads nowhere, as on a share that is not there."""
    path = shard(store.path, 0)
    data = path.read_bytes()
    path.unlink()
    path.symlink_to(path.name)
    yield
    path.unlink()
    path.write_bytes(data)


def take_the_drive_away(store: PatchStore) -> Iterator[None]:
    away = store.path.with_name("away")
    store.path.rename(away)
    store.path.mkdir()  # the empty folder that a drive is mounted on
    yield
    store.path.rmdir()
    away.rename(store.path)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (refuse_files, "Too many open files"),
        (loop_the_shard, "Too many levels of symbolic links"),
        (take_the_drive_away, "is not there any more"),
    ],
)
def test_what_cannot_be_read_just_now_is_not_called_damage(
    store: Path, fault: Callable[[PatchStore], Iterator[None]], reason: str
) -> None:
    opened = open_store(store)
    with contextlib.contextmanager(fault)(opened), pytest.raises(StoreError) as caught:
        opened.patches(["000"])
    assert reason in str(caught.value)
    assert "damaged" not in str(caught.value)
    if fault is not take_the_drive_away:
        with contextlib.contextmanager(fault)(opened), pytest.raises(StoreError, match="cannot be read") as caught:
            verify_store(store)
        assert "damaged" not in str(caught.value)
    assert verify_store(store).ok
