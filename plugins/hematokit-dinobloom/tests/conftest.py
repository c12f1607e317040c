"""A small store of coloured squares, and a small checkpoint of the published form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hematokit_dinobloom.network import DinoBloom, build
from PIL import Image

from hematokit import import_crops, split_store

COLOURS = {"BLA": (200, 60, 60), "LYT": (60, 60, 200), "NGS": (60, 180, 60)}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split store of three classes that their colour tells apart."""
    folder, random = tmp_path_factory.mktemp("store"), np.random.default_rng(0)
    for code, colour in COLOURS.items():
        (folder / "crops" / code).mkdir(parents=True)
        for number in range(20):
            pixels = np.array(colour) + random.normal(0, 15, 3) + random.normal(0, 30, (64, 64, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "crops" / code / f"{number}.png")
    import_crops(folder / "crops", folder / "cells.zarr", patch_size=64, near_duplicates=False)
    split_store(folder / "cells.zarr", fractions=(0.6, 0.2, 0.2), seed=0)
    return folder / "cells.zarr"


def make(size: int = 56, classes: int = 3, **options: object) -> DinoBloom:
    """The smallest variant."""
    given = {
        "freeze": True,
        "head": "linear",
        "neighbours": 5,
        "knn_temperature": 0.07,
        "drop_path_rate": 0.0,
        **options,
    }
    return build("tiny", num_classes=classes, input_size=size, pretrained=False, **given)  # type: ignore[arg-type]


def teacher(size: int = 56, seed: int = 1) -> dict[str, torch.Tensor]:
    """What DINOv2's training saves of the teacher: transformer, mask token and the two projection heads."""
    torch.manual_seed(seed)
    body = {f"backbone.{name}": torch.randn_like(value) * 0.1 for name, value in make(size).body.state_dict().items()}
    heads = {
        f"{head}.{name}": torch.randn(*shape)
        for head in ("dino_head", "ibot_head")
        for name, shape in {
            "mlp.0.weight": (16, 48),
            "mlp.0.bias": (16,),
            "last_layer.weight_g": (32, 1),
            "last_layer.weight_v": (32, 16),
        }.items()
    }
    return {**body, "backbone.mask_token": torch.zeros(1, 48), **heads}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like ``DinoBloom-S.pth``, but small."""
    path = tmp_path_factory.mktemp("weights") / "DinoBloom-tiny.pth"
    torch.save({"teacher": teacher()}, path)
    return path
