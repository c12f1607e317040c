"""A store as a data set of torch: its items, its workers, and its errors."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hematokit import PatchDataset, open_store
from hematokit.errors import StoreError


def test_items_are_the_patches_of_the_store(tiny_store: Path) -> None:
    store = open_store(tiny_store)
    cells = store.cells.set_index("cell_id")
    dataset = PatchDataset(store, "val")
    assert dataset.classes_.tolist() == sorted(set(cells["label"]))
    assert sorted(dataset.cell_ids) == sorted(cells.index[cells["split"] == "val"])
    assert [dataset.classes_[label] for label in dataset.labels] == cells.loc[dataset.cell_ids, "label"].tolist()
    patches = store.patches(dataset.cell_ids)
    for index in (0, len(dataset) - 1, -1):
        image, label = dataset[index]
        assert (image.dtype, tuple(image.shape), label) == (torch.float32, (3, 64, 64), dataset.labels[index])
        assert np.array_equal((image * 255).round().byte().permute(1, 2, 0).numpy(), patches[index])


def test_an_index_beyond_the_end_ends_an_iteration(tiny_store: Path) -> None:
    dataset = PatchDataset(tiny_store, "test")
    assert len(list(dataset)) == len(dataset)


def test_every_split_has_the_same_classes_and_only_labelled_cells(tiny_store: Path) -> None:
    store = open_store(tiny_store)
    parts = [PatchDataset(store, name) for name in ("train", "val", "test")]
    everything = PatchDataset(store)
    assert {tuple(part.classes_) for part in parts} == {tuple(everything.classes_)}
    assert sum(map(len, parts)) == len(everything) == int((store.cells["label"] != "").sum())


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_read_the_same_as_this_process(tiny_store: Path, context: str) -> None:
    dataset = PatchDataset(tiny_store, "val")
    here = list(DataLoader(dataset, batch_size=8))
    there = list(DataLoader(dataset, batch_size=8, num_workers=2, multiprocessing_context=context))
    assert len(here) == len(there)
    for (images, labels), (other_images, other_labels) in zip(here, there, strict=True):
        assert labels.dtype == torch.int64
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def test_forked_workers_refuse_a_store_without_its_shards(tiny_store: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(tiny_store, tmp_path / "damaged.zarr"))
    dataset = PatchDataset(store)
    shutil.rmtree(store / "patches" / "c")
    with pytest.raises(StoreError, match="damaged"):
        list(DataLoader(dataset, num_workers=1, multiprocessing_context="fork"))


def test_the_transform_changes_the_image(tiny_store: Path) -> None:
    dataset = PatchDataset(tiny_store, "val", transform=lambda image: image.mean())
    plain = PatchDataset(tiny_store, "val")
    assert dataset[3][0] == plain[3][0].mean()


def test_a_copy_is_the_same_data_set(tiny_store: Path) -> None:
    dataset = PatchDataset(tiny_store, "val")
    copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301 - made here
    assert torch.equal(copy[0][0], dataset[0][0])
    assert np.array_equal(copy.classes_, dataset.classes_)


def test_an_unknown_split_is_refused(tiny_store: Path) -> None:
    with pytest.raises(StoreError, match="no labelled cells in split 'training'"):
        PatchDataset(tiny_store, "training")
