"""Write the files in this folder: one of each kind that a version of hematokit leaves on disk.

Later versions have to open them. They were made once, by the version whose name the folder bears, from drawn cells:

    cd tests/earlier && python make.py

Absolute paths in the results are replaced by ``@ROOT@``, which the tests put back.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
from hematokit.fields.exports import read_parquet
from hematokit.imaging.synthetic import PIXEL_SIZE_UM, synthesize_field
from PIL import Image

import hematokit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tinykit import seal_bundle, write_crops

SIDE = 32
SETTINGS = {
    "backbone": "timm:test_efficientnet",
    "image_size": 64,
    "epochs": 2,
    "batch_size": 16,
    "lr": 3e-3,
    "device": "cpu",
    "workers": 1,
}


def draw_fields(folder: Path) -> None:
    folder.mkdir()
    for number in range(2):
        drawn = synthesize_field(height=480, width=480, cells=8, seed=number)
        dots_per_inch = 25_400 / PIXEL_SIZE_UM
        Image.fromarray(drawn.pixels).save(folder / f"field_{number}.png", dpi=(dots_per_inch,) * 2)


def main() -> None:
    root = Path(hematokit.__version__).absolute()
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    os.chdir(root)
    write_crops(Path("crops"), {"BLA": 12, "LYT": 10, "NGS": 8, "ART": 4}, size=SIDE)
    hematokit.import_crops("crops", "crops.zarr", patch_size=SIDE)
    hematokit.split_store("crops.zarr", fractions=(0.5, 0.25, 0.25), seed=0)
    shutil.rmtree("crops")
    hematokit.train("crops.zarr", "run", settings=SETTINGS)
    hematokit.evaluate("run")
    hematokit.export("run", "model.onnx", format="onnx")
    draw_fields(Path("fields"))
    hematokit.tile(["fields"], "fields.zarr", patch_size=SIDE)
    hematokit.classify(["fields"], "run", "results", runtime="torch", device="cpu")
    hematokit.detect(["fields/field_0.png"], "detections")
    hematokit.explain("run", output="explained", split="test", per_class=1, figures=False)
    review(root / "results" / "fields" / "field_0")
    cells = hematokit.open_store("crops.zarr")
    logits = hematokit.load_model("run").logits(cells.patches(cells.cells["cell_id"][:8]))
    np.save("logits.npy", logits)
    drop_pictures(root)
    hide_paths(root)


def drop_pictures(root: Path) -> None:
    """Remove what nobody reads back, to keep the repository small."""
    for name in ("overlay.png", "report.html", "report.png", "cell_types.png", "best.safetensors", "model.md"):
        for path in root.rglob(name):
            path.unlink()


def hide_paths(root: Path) -> None:
    """Replace this machine's paths."""
    graph = onnx.load(root / "model.onnx")
    for node in graph.graph.node:
        node.ClearField("metadata_props")
    onnx.save(graph, root / "model.onnx")
    for path in root.rglob("*"):
        if path.is_file() and str(root).encode() in path.read_bytes():
            path.write_bytes(path.read_bytes().replace(str(root).encode(), b"@ROOT@"))
            print("absolute path replaced in", path.relative_to(root))
    seal_bundle(root / "run" / "bundle")


def review(folder: Path) -> None:
    """Correct a cell of a field's results, confirm one and delete one."""
    reviewed = hematokit.Review(
        read_parquet(folder / "cells.parquet"),
        hematokit.load_model("run").taxonomy,
        field_id=folder.name,
        who="A. Reviewer",
        journal=folder / "corrections.jsonl",
    )
    first, second, third = reviewed.cells["cell_id"][:3]
    reviewed.correct([first], "NGS")
    reviewed.confirm([second])
    reviewed.delete([third])


if __name__ == "__main__":
    main()
