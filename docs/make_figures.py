"""Make the figures of the documentation from cells that hematokit draws.

    python docs/make_figures.py [FOLDER]

FOLDER (by default a temporary one) keeps the sample, the store and the run; an existing run is not trained again.
Takes about five minutes. Real cells are not shown, because their images may not be redistributed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

import hematokit
from hematokit.pipelines.train import train
from hematokit.store import import_crops, split_store
from hematokit.synthetic import write_sample

STATIC = Path(__file__).resolve().parent / "_static"
CLASSES = ("BLA", "PMO", "NGS", "EOS", "EBO", "LYT", "PLM", "MON")
SETTINGS = {"backbone": "coatnet", "variant": "femto", "image_size": 96, "epochs": 30, "batch_size": 32, "lr": 1e-3}


def explained_classes(folder: Path) -> None:
    """Make the counterpart of Fig. 8 in the HematoNet paper: one column per class; cell, SmoothGrad, Grad-CAM."""
    run = folder / "runs" / "coatnet"
    if not (run / "bundle").is_dir():
        table = write_sample(folder / "sample")
        store = folder / "sample.zarr"
        import_crops(table, store)
        split_store(store, fractions=(0.7, 0.15, 0.15), seed=0)
        train(store, run, settings={**SETTINGS, "seed": 0})
    cells = hematokit.open_store(folder / "sample.zarr").cells
    chosen = cells[(cells["split"] == "test") & cells["label"].isin(CLASSES)].groupby("label").head(1)
    hematokit.explain(
        run,
        folder / "why",
        cells=chosen["cell_id"].tolist(),
        methods=["smoothgrad", "grad-cam"],
        # The layer before the last: at 96 px the last one has 3x3 positions.
        options={"grad-cam": {"layer": "6x6"}},
    )
    with Image.open(folder / "why" / "classes.png") as figure:
        image = figure.convert("RGB")
        image.thumbnail((1500, 1500))
        image.save(STATIC / "explained-classes.jpg", quality=85, optimize=True)


def main() -> None:
    """Make all figures."""
    if len(sys.argv) > 1:
        explained_classes(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as name:
        explained_classes(Path(name))


if __name__ == "__main__":
    main()
