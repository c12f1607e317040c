"""Small crops for the tests of the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def crop() -> Callable[..., np.ndarray]:
    """Return ``crop(seed, size=16)``: noise, uint8 (size, size, 3), another for each seed."""

    def make(seed: int, size: int = 16) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)

    return make


@pytest.fixture
def make_folder(tmp_path: Path, crop: Callable[..., np.ndarray]) -> Callable[..., Path]:
    """Return ``make_folder({"BLA/x": seed, ...}, name="crops", size=16)``: a folder of PNG crops."""

    def make(files: dict[str, int], name: str = "crops", size: int = 16) -> Path:
        root = tmp_path / name
        for file, seed in files.items():
            path = root / f"{file}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(crop(seed, size)).save(path)
        return root

    return make
