"""Groups of cells that show the same pixels: found, stable, kept on disk, and computed only for what is new."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from hematokit.errors import StoreError
from hematokit.store.duplicates import PAIR_COLUMNS, Fingerprints, assign_groups, find_pairs, label_conflicts

SIZE = 120


class Patches:
    """Patches in memory, read as a store's are; remembers which rows were read."""

    def __init__(self, patches: list[np.ndarray]) -> None:
        self.patches = np.stack(patches)
        self.read: list[int] = []

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        self.read += rows.tolist()
        return self.patches[rows]

    def cells(self, *, patients: dict[int, str] | None = None, labels: str | list[str] = "LYT") -> pd.DataFrame:
        n = len(self.patches)
        return pd.DataFrame(
            {
                "cell_id": [f"c{index:02d}" for index in range(n)],
                "row": range(n),
                "pixel_sha256": [hashlib.sha256(patch.tobytes()).hexdigest() for patch in self.patches],
                "patient_id": [(patients or {}).get(index, "") for index in range(n)],
                "label": labels,
            }
        )


def make_field(seed: int, side: int = 300) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = gaussian_filter(rng.normal(size=(side, side)), 8)
    fine = gaussian_filter(rng.normal(size=(side, side)), 2.5)
    dark = 1 / (1 + np.exp(-(coarse / coarse.std() - 0.5) * 6))
    grey = 225 - 120 * dark + 14 * dark * fine / fine.std()
    return np.clip(np.stack([grey, grey - 35 * dark, grey + 10], axis=2), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def patches() -> Patches:
    """0, 1, 2: overlapping crops of one field; 3: equal to 4; 5: a mirrored copy of 3; 6, 7: alone; 8, 9: blank."""
    one, two, three, four = (make_field(seed) for seed in range(4))
    crops = [one[y : y + SIZE, x : x + SIZE] for y, x in ((50, 40), (70, 60), (95, 85))]
    single = two[:SIZE, :SIZE]
    noise = np.random.default_rng(0).normal(220, 2, (2, SIZE, SIZE, 3)).astype(np.uint8)
    return Patches([*crops, single, single, single[:, ::-1], three[:SIZE, :SIZE], four[:SIZE, :SIZE], *noise])


def test_each_grade_is_grouped_and_the_rest_stays_alone(patches):
    cells = patches.cells()
    groups, _ = assign_groups(patches, cells, None)
    assert groups.tolist() == ["c00", "c00", "c00", "c03", "c03", "c03", "c06", "c07", "c08", "c09"]
    assert groups.index.equals(cells.index)


def test_pairs_are_listed_with_kind_and_translation(patches):
    cells = patches.cells()
    pairs = find_pairs(cells, assign_groups(patches, cells, None)[1])
    assert tuple(pairs.columns) == PAIR_COLUMNS
    listed = pairs.set_index(["cell_a", "cell_b"])
    assert listed.loc[("c03", "c04"), "kind"] == "exact"
    assert listed.loc[("c05", "c03"), ["kind", "dy", "dx", "transform"]].tolist() == ["near", 0, 0, "mirror"]
    # c01 starts (20, 20) px further on, so that what is at p in c00 is at p - 20 in c01.
    assert listed.loc[("c01", "c00"), ["kind", "dy", "dx"]].tolist() == ["overlap", -20, -20]
    assert listed.loc[("c02", "c01"), ["kind", "dy", "dx"]].tolist() == ["overlap", -25, -25]
    assert len(pairs) == 4 + (("c02", "c00") in listed.index)


def test_patients_join_cells_and_name_the_group(patches):
    groups, _ = assign_groups(patches, patches.cells(patients={6: "zoe", 7: "zoe"}), None)
    assert groups[6] == groups[7] == "patient:zoe"
    # A duplicate across two patients makes them one group: neither may be on both sides of a split.
    groups, _ = assign_groups(patches, patches.cells(patients={0: "zoe", 6: "zoe", 2: "ann", 7: "ann"}), None)
    assert set(groups[[0, 1, 2, 6, 7]]) == {"patient:ann"}
    assert groups[3] == "c03"


def test_order_of_the_rows_does_not_matter(patches):
    cells = patches.cells(patients={1: "p"}).set_index(pd.Index(range(100, 110)))
    groups, _ = assign_groups(patches, cells, None)
    shuffled, _ = assign_groups(patches, cells.sample(frac=1, random_state=1), None)
    pd.testing.assert_series_equal(shuffled.sort_index(), groups)


def test_added_cells_are_the_only_ones_read_and_the_result_is_the_same(patches, tmp_path):
    cells = patches.cells()
    whole, all_prints = assign_groups(patches, cells, None)
    _, first = assign_groups(patches, cells.iloc[[0, 3, 6]], None)
    first.save(tmp_path / "fingerprints.npz")
    first = Fingerprints.load(tmp_path / "fingerprints.npz")
    patches.read.clear()
    groups, prints = assign_groups(patches, cells, first)
    pd.testing.assert_series_equal(groups, whole)
    # 6 and 7 and the blanks match nothing; 3 is read again only to compare it with its new mirror image.
    assert 6 not in patches.read
    pairs = [
        find_pairs(cells, kept).sort_values(["cell_a", "cell_b"], ignore_index=True) for kept in (prints, all_prints)
    ]
    assert set(map(frozenset, pairs[0][["cell_a", "cell_b"]].to_numpy())) == set(
        map(frozenset, pairs[1][["cell_a", "cell_b"]].to_numpy())
    )
    patches.read.clear()
    again, _ = assign_groups(patches, cells, prints)
    assert patches.read == []
    pd.testing.assert_series_equal(again, whole)


def test_cells_that_changed_or_went_leave_nothing_behind(patches):
    cells = patches.cells()
    _, prints = assign_groups(patches, cells, None)
    changed = Patches(list(patches.patches))
    changed.patches[1] = patches.patches[7]  # was the middle of the chain of overlaps
    groups, prints = assign_groups(changed, changed.cells().drop(index=2), prints)
    assert groups.drop([1, 7]).tolist() == ["c00", "c03", "c03", "c03", "c06", "c08", "c09"]
    assert groups[1] == groups[7] == "c01"
    assert changed.read == []  # its new pixels are known: those of cell 7
    assert len(prints) == 7
    assert set(find_pairs(changed.cells().drop(index=2), prints)["kind"]) == {"exact", "near"}


def test_conflicting_labels_are_those_of_copies_not_of_overlaps(patches):
    cells = patches.cells(labels=["BLA", "LYT", "MON", "NGS", "EOS", "NGS", "LYT", "LYT", "ART", ""])
    pairs = find_pairs(cells, assign_groups(patches, cells, None)[1])
    conflicts = label_conflicts(cells, pairs)
    assert conflicts[["cell_a", "cell_b", "label_a", "label_b"]].to_numpy().tolist() == [["c03", "c04", "NGS", "EOS"]]


def test_a_copy_without_a_label_hides_no_conflict_with_a_near_one(patches):
    # The fixture's c00 is alone; c03 and c04 are near copies. Another c03 comes first in the alphabet, without a label.
    cells = patches.cells(labels=["BLA", "LYT", "MON", "NGS", "EOS", "NGS", "LYT", "LYT", "ART", ""])
    more = pd.concat([cells.iloc[[3]].assign(cell_id="a", label=""), cells], ignore_index=True)
    pairs = find_pairs(more, assign_groups(patches, more, None)[1])
    conflicts = label_conflicts(more, pairs)
    assert conflicts[["cell_a", "cell_b", "label_a", "label_b"]].to_numpy().tolist() == [["c03", "c04", "NGS", "EOS"]]
    assert ["c03", "a"] in pairs.loc[pairs["kind"] == "exact", ["cell_a", "cell_b"]].to_numpy().tolist()


def test_no_cells(tmp_path):
    groups, prints = assign_groups(Patches([make_field(0)]), Patches([make_field(0)]).cells().iloc[:0], None)
    assert len(groups) == len(prints) == len(find_pairs(Patches([make_field(0)]).cells().iloc[:0], prints)) == 0
    prints.save(tmp_path / "empty.npz")
    assert len(Fingerprints.load(tmp_path / "empty.npz")) == 0


def test_bad_hashes_are_refused(patches):
    with pytest.raises(ValueError, match="64 hexadecimal"):
        assign_groups(patches, patches.cells().assign(pixel_sha256="abc"), None)


@pytest.mark.parametrize("damage", ["missing", "cut", "not a zip", "pickle", "flipped"])
def test_an_unreadable_file_is_one_clear_line(patches, tmp_path, damage):
    path = tmp_path / "fingerprints ü.npz"
    assign_groups(patches, patches.cells(), None)[1].save(path)
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "not a zip":
        path.write_bytes(b"hello")
    elif damage == "pickle":
        with path.open("wb") as stream:
            np.savez(stream, version=1, digests=np.array([{"a": 1}], dtype=object))
    else:
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :])
    with pytest.raises(StoreError) as caught:
        Fingerprints.load(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_a_killed_save_leaves_the_old_file(patches, tmp_path):
    """A real process is killed in the middle of writing."""
    path = tmp_path / "fingerprints.npz"
    assign_groups(patches, patches.cells(), None)[1].save(path)
    before = path.read_bytes()
    script = (
        "import os, sys, numpy as np\n"
        "from hematokit.store.duplicates import Fingerprints\n"
        "def savez(stream, **arrays):\n"
        "    stream.write(b'half'); stream.flush(); os.kill(os.getpid(), 9)\n"
        "np.savez = savez\n"
        "Fingerprints().save(sys.argv[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -9
    assert path.read_bytes() == before


def test_real_crops_of_one_field_are_found_and_no_others(real_data: Path):
    """Six pairs checked by eye (and by comparing every pair), among unrelated crops of the same classes."""
    pairs = {
        ("ART_00092", "BLA_00099"): (-183, 34),
        ("EOS_00011", "PMO_00018"): (106, -125),
        ("MON_00011", "NGS_00183"): (81, -139),
        ("MON_00103", "NIF_00083"): (-1, -168),
        ("ART_00149", "NIF_00186"): (-53, -99),
        ("NIF_00056", "NIF_00112"): (-73, 96),
    }
    folder = real_data / "matek_bm8"
    names = {name for pair in pairs for name in pair}
    for code in ("ART", "BLA", "EOS", "LYT", "MON", "NGS", "NIF", "PMO"):
        names |= {path.stem for path in sorted((folder / code).glob("*.jpg"))[:12]}
    files = [folder / name[:3] / f"{name}.jpg" for name in sorted(names)]
    crops = Patches([np.asarray(Image.open(file).convert("RGB")) for file in files])
    cells = crops.cells(labels=[file.stem[:3] for file in files]).assign(cell_id=[file.stem for file in files])
    groups, prints = assign_groups(crops, cells, None)
    found = find_pairs(cells, prints)
    assert set(found["kind"]) == {"overlap"}
    # Pairs are listed later cell first; turn them round to compare.
    moved = {
        (b, a): (-dy, -dx)
        for a, b, dy, dx in found[["cell_a", "cell_b", "dy", "dx"]].itertuples(index=False, name=None)
    }
    assert moved == pairs
    assert groups.nunique() == len(cells) - len(pairs)
    assert len(label_conflicts(cells, found)) == 0
