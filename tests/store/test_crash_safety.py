"""Real processes, killed at chosen and at random moments: nothing committed is lost, and the next run finishes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crashkit import DEADLY
from hematokit.errors import StoreError
from hematokit.store import import_crops, open_store, split_store, verify_store

# Imports argv[1] into argv[2]; dies by SIGKILL just before ("before") or after the n-th call of a named step.
CHILD = (
    """
import json, os, signal, sys
import hematokit.store
from hematokit.store import creating, schema, writer
from pathlib import Path

source, store, plan = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
writer._COMMIT_EVERY = 0  # commit every shard, however fast

"""
    + DEADLY
    + """
places = {
    "commit": [(schema, "write_cells")],
    "rename": [(Path, "replace")],
    "fsync": [(os, "fsync")],
    "grow": [(writer.StoreWriter, "_grow")],
    "flush": [(writer.StoreWriter, "_flush")],
    "drain": [(writer.StoreWriter, "_drain")],
    "rejects": [(schema, "write_rejects")],
    "metadata": [(creating, "write_json")],
    "groups": [(writer.StoreWriter, "replace_cells")],
}
for owner, name in places.get(plan["step"], []):
    setattr(owner, name, deadly(getattr(owner, name)))
print("ready", flush=True)
hematokit.store.import_crops(source, store, patch_size=16)
"""
)

CELLS = 700  # two full shards and a part of a third


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    root = tmp_path_factory.mktemp("crops")
    patches = np.random.default_rng(0).integers(0, 256, (CELLS, 16, 16, 3), dtype=np.uint8)
    for i, patch in enumerate(patches):
        path = root / ("BLA" if i % 3 else "PMO") / f"{i:04}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(patch).save(path, compress_level=1)
    (root / "BLA" / "broken.png").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def whole(crops: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of an import that was left alone."""
    store = tmp_path_factory.mktemp("whole") / "store.zarr"
    import_crops(crops, store, patch_size=16)
    return store


def run_child(crops: Path, store: Path, **plan: object) -> int:
    command = [sys.executable, "-c", CHILD, str(crops), str(store), json.dumps(plan)]
    return subprocess.run(command, capture_output=True, timeout=120, check=False).returncode


def committed(store: Path) -> list[str]:
    """Check that what a killed process left is whole, and return the cells it had committed."""
    if not (store / "zarr.json").exists():
        with pytest.raises(StoreError, match=r"not a patch store|does not exist"):
            open_store(store)
        return []
    cells: list[str] = open_store(store).cells["cell_id"].tolist()
    assert verify_store(store).ok
    return cells


def check_finishes(crops: Path, store: Path, whole: Path, before: list[str]) -> None:
    summary = import_crops(crops, store, patch_size=16)
    assert summary.present == len(before)
    assert summary.added == CELLS - len(before)
    assert verify_store(store).ok
    one, two = open_store(store), open_store(whole)
    assert one.content_hash == two.content_hash
    assert one.cells.drop(columns="row").equals(two.cells.drop(columns="row"))
    assert len(one.rejects) == 1
    assert not one.groups_stale
    left = {p.name for p in store.rglob("*") if p.name.startswith(".writing-") or p.name.endswith("__lock")}
    assert not left


@pytest.mark.parametrize(
    ("step", "n", "when"),
    [
        ("metadata", 1, "before"),  # the store is being created
        ("metadata", 2, "before"),
        ("rename", 4, "before"),  # array grown in a temporary file only
        ("fsync", 8, "before"),
        ("grow", 2, "after"),  # array grown, shard not written
        ("flush", 2, "after"),  # a shard may be half on disk
        ("commit", 3, "before"),  # shards on disk, table not replaced
        ("commit", 3, "after"),
        ("commit", 4, "before"),  # only the last, partial shard is missing
        ("rejects", 1, "before"),
        ("groups", 1, "before"),  # all cells there, groups not
    ],
)
def test_killed_at_a_chosen_moment(crops: Path, whole: Path, tmp_path: Path, step: str, n: int, when: str) -> None:
    store = tmp_path / "store.zarr"
    assert run_child(crops, store, step=step, n=n, when=when) == -signal.SIGKILL
    before = committed(store)
    if (step, n) == ("commit", 3):
        assert len(before) == (256 if when == "before" else 512)
    if step in ("rejects", "groups"):
        assert len(before) == CELLS
        assert open_store(store).groups_stale
    check_finishes(crops, store, whole, before)


def test_killed_again_and_again_at_random(crops: Path, whole: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    rng = np.random.default_rng(0)
    before: list[str] = []
    for _ in range(6):
        command = [sys.executable, "-c", CHILD, str(crops), str(store), json.dumps({"step": "", "n": 0, "when": ""})]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(rng.uniform(0, 0.4))
        child.kill()
        child.communicate()
        now = committed(store)
        assert now[: len(before)] == before, "what was committed stays"
        before = now
    check_finishes(crops, store, whole, before)


def test_interrupted_it_keeps_what_it_committed(
    crops: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(done: int, total: int | None, message: str) -> None:
        if done >= 600:
            raise KeyboardInterrupt

    monkeypatch.setattr("hematokit.store.writer._COMMIT_EVERY", 0)
    store = tmp_path / "store.zarr"
    with pytest.raises(KeyboardInterrupt):
        import_crops(crops, store, patch_size=16, progress=interrupt)
    before = committed(store)
    assert len(before) == 512
    check_finishes(crops, store, whole, before)


def test_stale_groups_are_made_up_for_by_split(crops: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    assert run_child(crops, store, step="groups", n=1, when="before") == -signal.SIGKILL
    split_store(store)
    opened = open_store(store)
    assert not opened.groups_stale
    assert (opened.cells["group"] != "").all()


def test_a_second_writer_is_told_and_a_dead_one_is_no_obstacle(crops: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    import_crops(crops, store, patch_size=16)
    hold = (
        "import sys, time\nfrom hematokit.store import StoreWriter, open_store\n"
        "with StoreWriter(open_store(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", hold, str(store)], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        for attempt in (lambda: import_crops(crops, store), lambda: split_store(store)):
            with pytest.raises(StoreError, match="being written by another process; wait"):
                attempt()
        assert len(open_store(store)) == CELLS, "readers do not wait"
    finally:
        child.kill()
        child.communicate()
    assert split_store(store).replaced is None


FULL = """
import resource, sys
from hematokit.errors import StoreError
from hematokit.store import import_crops
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), -1))
try:
    import_crops(sys.argv[1], sys.argv[2], patch_size=16)
except StoreError as error:
    print(error)
    sys.exit(2)
"""


@pytest.mark.skipif(os.name != "posix", reason="limits on file size are POSIX")
@pytest.mark.parametrize("limit", [200, 5_000, 100_000])  # no root, no shard, no ... fits
def test_a_full_disk_leaves_the_store_whole(crops: Path, whole: Path, tmp_path: Path, limit: int) -> None:
    store = tmp_path / "store.zarr"
    command = [sys.executable, "-c", FULL, str(crops), str(store), str(limit)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 2, result.stderr
    assert result.stdout.count("\n") == 1
    assert "no space left" in result.stdout
    assert "run the same command again" in result.stdout
    check_finishes(crops, store, whole, committed(store))


def test_what_was_committed_survives_a_full_disk(crops: Path, tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    store = tmp_path / "store.zarr"
    import_crops(make_folder({"BLA/a": 1, "BLA/b": 2}), store, patch_size=16)
    command = [sys.executable, "-c", FULL, str(crops), str(store), "20000"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "its 2 committed cells are safe" in result.stdout
    assert open_store(store).cells["cell_id"].tolist() == ["a", "b"]
    assert verify_store(store).ok
