"""Fixtures that several rooms of the tests share."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hematokit.store import import_crops, split_store
from hematokit.training import train

# Small networks gain nothing from a second thread, and lose a lot when something else runs beside the tests.
torch.set_num_threads(1)

TINY = {
    "backbone": "timm:test_resnet",
    "image_size": 64,
    "epochs": 3,
    "batch_size": 16,
    "lr": 3e-3,
    "warmup": 0.5,
    "device": "cpu",
}
"""Settings of a training that takes a few seconds."""

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real images; the test skips, saying so, where it is absent (a user's checkout has none)."""
    folder = Path(os.environ.get("HEMATOKIT_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
    if not (folder / "matek_bm8").is_dir():
        pytest.skip(f"no real images at {folder}; set HEMATOKIT_TEST_DATA to a folder that has matek_bm8/")
    return folder


COLOURS = {"BLA": (200, 60, 60), "LYT": (60, 60, 200), "NGS": (60, 180, 60), "ART": (128, 128, 128)}


def write_crops(folder: Path, counts: dict[str, int], size: int = 64, seed: int = 0) -> Path:
    """Write class folders of small noisy squares whose colour tells the class, now and then misleadingly."""
    random = np.random.default_rng(seed)
    for code, count in counts.items():
        (folder / code).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            colour = np.array(COLOURS[code]) + random.normal(0, 40, 3)
            pixels = colour + random.normal(0, 30, (size, size, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / code / f"{code}_{index:04d}.png")
    return folder


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split store of 128 small patches in three classes and a reject class; tests must not change it."""
    folder = tmp_path_factory.mktemp("tiny")
    write_crops(folder / "crops", {"BLA": 48, "LYT": 36, "NGS": 24, "ART": 20})
    import_crops(folder / "crops", folder / "tiny.zarr", patch_size=64, near_duplicates=False)
    split_store(folder / "tiny.zarr", fractions=(0.6, 0.2, 0.2), seed=0)
    return folder / "tiny.zarr"


@pytest.fixture(scope="session")
def tiny_run(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the tiny store; tests must not change it."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    train(tiny_store, run, settings=TINY)
    return run
