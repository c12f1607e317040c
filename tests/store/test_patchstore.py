"""Creating, writing and reading a store through its public interface."""

from __future__ import annotations

import json
import pickle
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr

from hematokit.errors import StoreError
from hematokit.store import CELL_COLUMNS, PatchStore, StoreWriter, create_store, open_store
from hematokit.taxonomy import CellClass, Taxonomy


def rows(ids: list[str]) -> pd.DataFrame:
    frame = pd.DataFrame({name: [""] * len(ids) for name in CELL_COLUMNS if name not in ("row", "pixel_size_um")})
    frame["cell_id"] = frame["field_id"] = ids
    frame[["y", "x"]] = 8.0
    frame[["y0", "x0"]] = 0
    frame[["height", "width"]] = 16
    frame["label"] = "BLA"
    frame["pixel_sha256"] = [f"{i:064x}" for i in range(len(ids))]
    return frame


def noise(n: int, size: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


@pytest.fixture
def filled(tmp_path: Path) -> tuple[PatchStore, np.ndarray]:
    """A store of 300 + 20 cells, appended one after the other."""
    store = create_store(tmp_path / "store.zarr", patch_size=16)
    patches = noise(320)
    patches[7] = 0  # equal to the array's fill value
    with StoreWriter(store) as writer:
        writer.append(patches[:300], rows([f"a{i}" for i in range(300)]))
    with StoreWriter(store) as writer:
        writer.append(patches[300:], rows([f"b{i}" for i in range(20)]))
    return store, patches


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_patches_come_back_bit_exact_in_the_order_asked_for(tmp_path: Path, codec: str) -> None:
    store = create_store(tmp_path / "store.zarr", patch_size=16, codec=codec)
    patches = noise(600)
    with StoreWriter(store) as writer:
        for start in range(0, 600, 70):
            part = patches[start : start + 70]
            writer.append(part, rows([str(start + i) for i in range(len(part))]))
    assert len(store) == 600
    order = np.random.default_rng(3).permutation(600)
    assert np.array_equal(store.patches([str(i) for i in order]), patches[order])
    assert np.array_equal(store.read_rows_async(store.cells["row"].to_numpy()).result(), patches)
    assert store.patches([]).shape == (0, 16, 16, 3)


def test_appending_starts_a_shard_and_leaves_the_others(filled: tuple[PatchStore, np.ndarray]) -> None:
    store, patches = filled
    assert store.cells["row"].tolist() == [*range(300), *range(512, 532)]
    assert np.array_equal(store.patches(store.cells["cell_id"].tolist()), patches)
    assert list(store.cells.columns) == list(CELL_COLUMNS)


def test_zarr_python_reads_the_same_array(filled: tuple[PatchStore, np.ndarray]) -> None:
    store, patches = filled
    array = zarr.open_group(store.path, mode="r")["patches"]
    assert array.metadata.zarr_format == 3
    assert array.chunks == (1, 16, 16, 3)
    assert array.shards == (256, 16, 16, 3)
    assert np.array_equal(array[:300], patches[:300])


def test_cells_is_a_copy(filled: tuple[PatchStore, np.ndarray]) -> None:
    store, _ = filled
    cells = store.cells
    cells["label"] = "changed"
    assert set(store.cells["label"]) == {"BLA"}


def test_a_reader_sees_committed_cells_only_and_its_own_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "store.zarr"
    store = create_store(path, patch_size=16)
    with StoreWriter(store) as writer:
        writer.append(noise(256), rows([str(i) for i in range(256)]))
        assert len(open_store(path)) == 0
        writer.commit()
        reader = open_store(path)
        assert len(reader) == 256
        writer.append(noise(256, seed=1), rows([f"x{i}" for i in range(256)]))
        assert len(open_store(path)) == 256
    assert len(reader) == 256
    reader.refresh()
    assert len(reader) == len(store) == 512
    assert np.array_equal(reader.patches(["x5"])[0], noise(256, seed=1)[5])


def test_an_exception_drops_what_was_not_committed(tmp_path: Path) -> None:
    store = create_store(tmp_path / "store.zarr", patch_size=16)

    def fail() -> None:
        with StoreWriter(store) as writer:
            writer.append(noise(300), rows([str(i) for i in range(300)]))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert len(store) == len(open_store(store.path)) == 0
    with StoreWriter(store) as writer:
        writer.append(noise(5, seed=9), rows(list("abcde")))
    assert np.array_equal(store.patches(["c"])[0], noise(5, seed=9)[2])


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    store = create_store(tmp_path / "store.zarr", patch_size=16)
    with (
        StoreWriter(store),
        pytest.raises(StoreError, match="written by another process"),
        StoreWriter(open_store(store.path)),
    ):
        pass
    with StoreWriter(open_store(store.path)):
        pass


def test_replacing_cells_keeps_patches_and_rows_together(filled: tuple[PatchStore, np.ndarray]) -> None:
    store, patches = filled
    with StoreWriter(store) as writer:
        cells = writer.cells
        writer.replace_cells(cells.assign(label="PMO").sample(frac=1, random_state=0), split_info={"seed": 3})
        with pytest.raises(ValueError, match="committed cells"):
            writer.replace_cells(cells.assign(row=cells["row"].to_numpy()[::-1]))
        with pytest.raises(ValueError, match="committed cells"):
            writer.replace_cells(cells.iloc[1:])
    assert set(store.cells["label"]) == {"PMO"}
    assert store.split_info == {"seed": 3}
    assert np.array_equal(store.patches(["a5", "b1"]), patches[[5, 301]])


def test_content_hash_knows_cells_labels_and_pixels_but_not_their_order(tmp_path: Path) -> None:
    stores = [create_store(tmp_path / f"{i}.zarr", patch_size=16) for i in range(3)]
    frame = rows(list("abc"))
    patches = noise(3)
    with StoreWriter(stores[0]) as writer:
        writer.append(patches, frame)
    with StoreWriter(stores[1]) as writer:
        writer.append(patches[::-1].copy(), frame.iloc[::-1])
    with StoreWriter(stores[2]) as writer:
        writer.append(patches, frame.assign(label=["BLA", "BLA", "PMO"]))
    hashes = [store.content_hash for store in stores]
    assert hashes[0] == hashes[1] != hashes[2]
    with StoreWriter(stores[0]) as writer:
        writer.replace_cells(writer.cells.assign(split="train"))
    assert stores[0].content_hash == hashes[0]


def test_a_store_travels_to_another_process(filled: tuple[PatchStore, np.ndarray]) -> None:
    store, patches = filled
    copy = pickle.loads(pickle.dumps(store))  # noqa: S301
    assert np.array_equal(copy.patches(["a3"])[0], patches[3])


def test_the_taxonomy_is_kept(tmp_path: Path) -> None:
    taxonomy = Taxonomy("lab", (CellClass("AA", "<b>A & Ä</b>", "x", "#010203"), CellClass("BB", "B", reject=True)))
    create_store(tmp_path / "store.zarr", taxonomy=taxonomy)
    assert open_store(tmp_path / "store.zarr").taxonomy == taxonomy


def test_unknown_cells_and_rows(filled: tuple[PatchStore, np.ndarray]) -> None:
    store, _ = filled
    with pytest.raises(StoreError, match="no cell 'nobody'"):
        store.patches(["a1", "nobody"])
    # 300 to 511 are a gap: the second writer began with a new shard.
    for row in (10**6, -1, 400, 2**40):
        with pytest.raises(StoreError, match=f"has no row {row};"):
            store.read_rows(np.array([0, row, 10**7]))
    for rows in (np.array([0.0, 1.0]), np.array([True, False]), np.array([0, None]), np.array(["0"])):
        with pytest.raises(StoreError, match="whole numbers, not"):
            store.read_rows(rows)
    assert store.read_rows(np.array([512 + 19, 0, 0], np.uint16)).shape == (3, 16, 16, 3)
    assert store.read_rows(np.array([])).shape == (0, 16, 16, 3)


def edit_root(store: Path, change: Callable[[dict[str, object]], object]) -> None:
    document = json.loads((store / "zarr.json").read_text())
    change(document["attributes"])
    (store / "zarr.json").write_text(json.dumps(document))


def test_what_is_no_store_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        open_store(tmp_path / "missing.zarr")
    with pytest.raises(StoreError, match="not a patch store"):
        open_store(tmp_path)
    zarr.open_group(tmp_path / "foreign.zarr", mode="w")
    with pytest.raises(StoreError, match="not a patch store"):
        open_store(tmp_path / "foreign.zarr")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="not a patch store"):
        open_store(tmp_path / "file")


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.zarr"
    create_store(path)
    edit_root(path, lambda attributes: attributes.update(schema_version=99))
    with pytest.raises(StoreError, match=r"schema version 99.*install a newer hematokit"):
        open_store(path)


@pytest.mark.parametrize("damage", ["truncate", "delete", "garbage"])
def test_a_damaged_table_is_told_in_one_line(filled: tuple[PatchStore, np.ndarray], damage: str) -> None:
    table = filled[0].path / "cells.parquet"
    if damage == "truncate":
        table.write_bytes(table.read_bytes()[:500])
    elif damage == "delete":
        table.unlink()
    else:
        table.write_bytes(b"PAR1 no, not really PAR1")
    with pytest.raises(StoreError, match=r"cells\.parquet") as caught:
        open_store(filled[0].path)
    assert "\n" not in str(caught.value)


def test_creating_leaves_other_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("important")
    with pytest.raises(StoreError, match="not empty"):
        create_store(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    create_store(tmp_path / "store.zarr")
    with pytest.raises(StoreError, match="exists already"):
        create_store(tmp_path / "store.zarr")
    with pytest.raises(StoreError, match="is a file"):
        create_store(tmp_path / "thesis.txt")
    with pytest.raises(StoreError, match="codec"):
        create_store(tmp_path / "other.zarr", codec="zip")


@pytest.mark.parametrize("allowed", [0, 2000, 4500])
def test_a_creation_that_fails_leaves_nothing_behind(tmp_path: Path, allowed: int) -> None:
    """A file may not grow beyond some bytes, as on a full disk: of the array's metadata, the table, or the root."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, limit[1]))
        with pytest.raises(StoreError, match="no space left"):
            create_store(tmp_path / "new.zarr")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []
    assert len(create_store(tmp_path / "new.zarr")) == 0


def test_paths_with_spaces_and_unicode(tmp_path: Path) -> None:
    path = tmp_path / "Mein Knochenmark 骨髓 #1 %20" / "störe?.zarr"
    store = create_store(path, patch_size=16)
    with StoreWriter(store) as writer:
        writer.append(noise(3), rows(["a b", "ü", "<i>c</i>"]))
    assert np.array_equal(open_store(path).patches(["<i>c</i>", "ü"]), noise(3)[[2, 1]])
