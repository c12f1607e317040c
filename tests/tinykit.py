"""Small stores and trainings that take a second or two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hematokit.models.integrity import write_manifest

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

COLOURS = {"BLA": (200, 60, 60), "LYT": (60, 60, 200), "NGS": (60, 180, 60), "ART": (128, 128, 128)}


def write_crops(folder: Path, counts: dict[str, int], size: int = 64, seed: int = 0) -> Path:
    """Write class folders of small noisy squares whose colour tells the class, now and then misleadingly."""
    random = np.random.default_rng(seed)
    hues: dict[str, np.ndarray] = {}
    for code, count in counts.items():
        (folder / code).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            colour = np.array(COLOURS.get(code) or hues.setdefault(code, random.integers(0, 256, 3))) + random.normal(
                0, 40, 3
            )
            pixels = colour + random.normal(0, 30, (size, size, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / code / f"{code}_{index:04d}.png")
    return folder


def seal_bundle(bundle: Path, config: dict[str, Any] | None = None) -> None:
    """What a person does who changed a bundle's files on purpose: replace its ``config.json``, hash the files again."""
    if config is not None:
        (bundle / "config.json").write_text(json.dumps(config))
    write_manifest(bundle, {name: (bundle / name).read_bytes() for name in ("config.json", "model.safetensors")})
