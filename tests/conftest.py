"""Fixtures that several rooms of the tests share."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from hematokit.pipelines.train import train
from hematokit.store import import_crops, set_pixel_size, split_store
from hematokit.synthetic import PIXEL_SIZE_UM
from tinykit import TINY, write_crops

# The same examples in every run, so that luck decides nothing; HYPOTHESIS_PROFILE=explore looks further.
# No deadline: a busy machine is no failure.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# Small networks gain nothing from a second thread, and lose a lot when something else runs beside the tests.
torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def cache_of_these_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Exported models go into a folder of the tests, not into the user's cache; processes they start inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEMATOKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Every test begins with the same state of the global generators, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - that of libraries which draw from it
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real images; the test skips, saying so, where it is absent (a user's checkout has none)."""
    folder = Path(os.environ.get("HEMATOKIT_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
    if not (folder / "matek_bm8").is_dir():
        pytest.skip(f"no real images at {folder}; set HEMATOKIT_TEST_DATA to a folder that has matek_bm8/")
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


@pytest.fixture(scope="session")
def measured_run(tiny_store: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run with the same weights, trained at the pixel size of drawn cells; tests must not change it."""
    folder = tmp_path_factory.mktemp("measured")
    store, run = shutil.copytree(tiny_store, folder / "store.zarr"), shutil.copytree(tiny_run, folder / "run")
    set_pixel_size(store, PIXEL_SIZE_UM)
    train(store, run, resume=True)
    return Path(run)
