"""Dividing cells: deterministic, stratified, and never through a group."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hematokit.errors import StoreError
from hematokit.store import import_crops, open_store, split_store
from hematokit.store.splitting import assign_split


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    n = draw(st.integers(1, 120))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    classes = draw(st.integers(1, 5))
    groups = draw(st.integers(1, 150))
    return pd.DataFrame(
        {
            "cell_id": [f"c{i}" for i in rng.permutation(1000)[:n]],
            "label": rng.choice(list("ABCDE")[:classes], n),
            "group": [f"g{i}" for i in rng.integers(0, groups, n)],
        }
    )


@settings(max_examples=80, deadline=None)
@given(table=tables(), seed=st.integers(0, 5))
def test_groups_never_straddle_and_order_does_not_matter(table: pd.DataFrame, seed: int) -> None:
    split = pd.Series(assign_split(table, seed=seed), index=table["cell_id"])
    assert set(split) <= {"train", "val", "test"}
    assert (split.groupby(table["group"].to_numpy()).nunique() == 1).all()
    # Rows in another order, groups under other names: the same split.
    shuffled = table.sample(frac=1, random_state=seed).assign(group=lambda t: "renamed " + t["group"])
    again = pd.Series(assign_split(shuffled, seed=seed), index=shuffled["cell_id"])
    assert again.reindex(split.index).equals(split)


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=5),
    parts=st.tuples(st.integers(1, 10), st.integers(0, 10), st.integers(0, 10)),
)
def test_single_cells_meet_the_fractions_to_one_cell(sizes: list[int], parts: tuple[int, int, int]) -> None:
    fractions = [part / sum(parts) for part in parts]
    labels = [code for code, size in zip("ABCDE", sizes, strict=False) for _ in range(size)]
    ids = [f"c{i}" for i in range(len(labels))]
    table = pd.DataFrame({"cell_id": ids, "label": labels, "group": ids})
    table["split"] = assign_split(table, fractions)
    for code, size in zip("ABCDE", sizes, strict=False):
        counts = table[table["label"] == code]["split"].value_counts()
        for name, share in zip(("train", "val", "test"), fractions, strict=True):
            assert abs(counts.get(name, 0) - share * size) <= 1 + 1e-9
        assert counts.get("train", 0) >= 1, "a class is never without training cells"


def test_patients_of_many_cells_come_close_to_the_fractions() -> None:
    rng = np.random.default_rng(0)
    patient = rng.integers(0, 60, 3000)
    table = pd.DataFrame(
        {
            "cell_id": [f"c{i}" for i in range(3000)],
            "label": rng.choice(list("ABC"), 3000, p=[0.6, 0.3, 0.1]),
            "group": [f"p{i}" for i in patient],
        }
    )
    table["split"] = assign_split(table)
    shares = pd.crosstab(table["label"], table["split"], normalize="index")
    wanted = pd.Series({"train": 0.7, "val": 0.15, "test": 0.15})
    assert ((shares - wanted).abs() < 0.05).all().all()


def test_another_seed_is_another_split() -> None:
    ids = [f"c{i}" for i in range(100)]
    table = pd.DataFrame({"cell_id": ids, "label": "A", "group": ids})
    assert (assign_split(table, seed=0) != assign_split(table, seed=1)).any()


@pytest.mark.parametrize(
    "fractions",
    [(0.5, 0.5, 0.5), (0.7, 0.15, 0.149), (1.2, -0.1, -0.1), (0, 0.5, 0.5), (0.5, 0.5), (float("nan"),) * 3],
)
def test_unusable_fractions_are_refused(fractions: tuple[float, ...]) -> None:
    table = pd.DataFrame({"cell_id": ["a"], "label": ["A"], "group": ["a"]})
    with pytest.raises(StoreError, match="fractions"):
        assign_split(table, fractions)


def test_a_store_is_split_and_says_what_it_replaced(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    files = {f"BLA/b{i}": i for i in range(20)} | {f"PMO/p{i}": 100 + i for i in range(10)} | {"ART/lone": 500}
    path = tmp_path / "store.zarr"
    import_crops(make_folder(files), path, patch_size=16)
    assert open_store(path).split_info is None
    first = split_store(path)
    assert first.replaced is None
    assert {name: sum(counts.values()) for name, counts in first.counts.items()} == {"train": 22, "val": 5, "test": 4}
    assert first.counts["train"]["ART"] == 1
    assert any("one cell only" in note and "ART" in note for note in first.warnings)
    store = open_store(path)
    assert store.split_info is not None
    assert store.split_info["hash"] == first.hash
    assert store.cells["split"].value_counts().to_dict() == {"train": 22, "val": 5, "test": 4}

    same = split_store(path)
    assert (same.hash, same.changed) == (first.hash, 0)
    other = split_store(path, seed=1)
    assert other.changed > 0
    assert other.replaced is not None
    assert any("replaced the split" in line and first.hash[:16] in line for line in other.lines())


def test_the_split_does_not_depend_on_the_order_of_import(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    blasts, others = {f"BLA/b{i}": i for i in range(12)}, {f"PMO/p{i}": 100 + i for i in range(12)}
    both, one, two = make_folder(blasts | others), make_folder(others, "others"), make_folder(blasts, "blasts")
    import_crops(both, tmp_path / "a.zarr", patch_size=16)
    import_crops(one, tmp_path / "b.zarr", patch_size=16)
    import_crops(two, tmp_path / "b.zarr")
    hashes = {split_store(tmp_path / name).hash for name in ("a.zarr", "b.zarr")}
    assert len(hashes) == 1


def test_patients_stay_on_one_side(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    files = {f"x{i}": i for i in range(60)}
    folder = make_folder(files)
    lines = [f"x{i}.png,{'BLA' if i % 2 else 'PMO'},s{i % 20},p{i % 12}" for i in range(60)]
    (folder / "labels.csv").write_text("\n".join(["path,label,smear,patient", *lines]))
    import_crops(folder / "labels.csv", tmp_path / "store.zarr", patch_size=16)
    split_store(tmp_path / "store.zarr")
    cells = open_store(tmp_path / "store.zarr").cells
    assert (cells.groupby("patient_id")["split"].nunique() == 1).all()
    assert cells["split"].nunique() == 3


def store_of(make_folder: Callable[..., Path], path: Path, *rows: str) -> Path:
    """A store of crops with the smears and patients given, ``"S1,P1"``, one a crop."""
    folder = make_folder({f"x{number}": number for number in range(len(rows))})
    lines = [f"x{number}.png,{'BLA' if number % 2 else 'PMO'},{row}" for number, row in enumerate(rows)]
    (folder / "labels.csv").write_text("\n".join(["path,label,smear_id,patient_id", *lines]), encoding="utf-8")
    import_crops(folder / "labels.csv", path, patch_size=16)
    return path


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["S1,P1", "S2,P2", "S3,"] * 4, "4 of 12 cells have no patient, though the others have one"),
        (["S1,P 1", "S2,p1", "S3,P2"] * 4, "patients 'P 1' and 'p1' differ only by case or spaces"),
        (["S1,P1", "S1,P2", "S3,P3"] * 4, "a smear is of one patient, but these have several: 'S1' of 'P1' and 'P2'"),
        (["S1,"] * 12, "cells of 1 smears without a patient are on several sides (S1)"),
    ],
)
def test_what_lets_a_patient_get_to_several_sides_is_said(
    make_folder: Callable[..., Path], tmp_path: Path, rows: list[str], said: str
) -> None:
    path = store_of(make_folder, tmp_path / "store.zarr", *rows)
    lines = split_store(path, (0.4, 0.3, 0.3)).lines()
    warnings = [line for line in lines if line.startswith("Warning: ") and "share of" not in line]
    (line,) = [line for line in warnings if said in line]
    assert f"hematokit store set-smears {path} TABLE.csv" in line


def test_complete_patients_are_no_warning(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    rows = [f"S{number},P{number // 2}" for number in range(24)]
    assert split_store(store_of(make_folder, tmp_path / "store.zarr", *rows), (0.5, 0.25, 0.25)).warnings == ()


def test_a_duplicate_across_patients_is_said(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_folder({f"x{number}": number % 11 for number in range(12)})  # the last is the first again
    lines = [f"x{number}.png,BLA,P{number}" for number in range(12)]
    (folder / "labels.csv").write_text("\n".join(["path,label,patient_id", *lines]))
    import_crops(folder / "labels.csv", tmp_path / "store.zarr", patch_size=16)
    (warning,) = split_store(tmp_path / "store.zarr").warnings
    assert warning.startswith("1 groups join several patients")
    assert "P0 and P11" in warning


def test_a_patient_in_two_forms_of_unicode_is_one(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD")]
    path = store_of(
        make_folder, tmp_path / "store.zarr", *(f"S{number},{name}" for number, name in enumerate(names * 6))
    )
    summary = split_store(path, (0.4, 0.3, 0.3))
    cells = open_store(path).cells
    assert cells["patient_id"].nunique() == 2
    assert cells["group"].nunique() == cells["split"].nunique() == 1
    assert not any("Müller" in warning for warning in summary.warnings)


def test_an_empty_store_cannot_be_split(tmp_path: Path) -> None:
    from hematokit.store import create_store

    create_store(tmp_path / "store.zarr")
    with pytest.raises(StoreError, match="no cells to split"):
        split_store(tmp_path / "store.zarr")
