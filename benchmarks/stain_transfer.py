"""Whether changing the stain in training helps on pictures of another laboratory: with and without, over several seeds.

Two sources of blood fields with boxes of white cells, red cells and platelets, made by different laboratories and
cameras: `bccd` and `txl_pbc360`. Crops around the boxes' centres, as large as `--context` times the median side of a
red cell of their source (so that both have one scale), are classified into the three. A small network is trained on
one source and tested on the whole of the other, and, to know what the change of source costs, on the held-out fields
of its own (fields, not crops, are divided). Everything but the augmenter is the same in all contestants of a seed.

`plain` is hematokit's usual augmenter alone; the others put the plugin's in front of it. `normalised` (Reinhard's
method) and `normalised-macenko` are the usual augmenter with the plugin's backbone that normalises the stain. The
score is balanced accuracy, over classes of which there are at least `--least` cells in the part that is tested. With
`--keep FILE` finished trainings are kept and not done again. Needs the plugin: pip install plugins/hematokit-stain

Three classes that look as unlike as these are an easy task: what is seen here is the shift of colours, and it says
little about classes that resemble each other.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from defusedxml import ElementTree
from PIL import Image

from common import REPOSITORY, base_parser, finish, machine, say, table, versions

SOURCES = ("bccd", "txl_pbc360")
# Any three codes of the built-in taxonomy would do; the store needs some.
CLASSES = {"WBC": "LYT", "RBC": "EBO", "Platelets": "ART"}
CONTESTANTS: dict[str, dict[str, Any]] = {
    "plain": {"augmenter": "hematonet"},
    "hed": {"augmenter": "stain-hed,hematonet"},
    "giemsa": {"augmenter": "stain-hed,hematonet", "augmenter_options": {"stains": "bex"}},
    "reinhard": {"augmenter": "stain-reinhard,hematonet"},
    "macenko": {"augmenter": "stain-macenko,hematonet"},
    "normalised": {"augmenter": "hematonet", "wrap": "reinhard"},
    "normalised-macenko": {"augmenter": "hematonet", "wrap": "macenko"},
}
# What does not change the result of one training.
UNIMPORTANT = ("json", "keep", "seeds", "contestants")
Crop = tuple[str, str, np.ndarray]


def boxes_of(source: str, picture: Path, height: int, width: int) -> Iterator[tuple[str, np.ndarray]]:
    """Class and box (y0, x0, y1, x1) of the cells of a field; degenerate boxes are left out."""
    if source == "bccd":
        root = ElementTree.parse(picture.parents[1] / "Annotations" / f"{picture.stem}.xml").getroot()
        for item in root.iter("object"):
            found = item.find("bndbox")
            x0, y0, x1, y1 = (float(found.findtext(key)) for key in ("xmin", "ymin", "xmax", "ymax"))
            if x1 > x0 and y1 > y0:
                yield item.findtext("name"), np.array([y0, x0, y1, x1])
        return
    for line in (picture.parents[1] / "labels" / f"{picture.stem}.txt").read_text().splitlines():
        kind, x, y, w, h = (float(part) for part in line.split())
        yield list(CLASSES)[int(kind)], np.array([y - h / 2, x - w / 2, y + h / 2, x + w / 2]) * ((height, width) * 2)


def crops_of(folder: Path, source: str, side: int, context: float, most: int, seed: int) -> list[Crop]:
    """Field, class and pixels (side, side, 3) of a source's cells, at most `most` of each class, drawn at random."""
    found: dict[str, list[tuple[Path, np.ndarray]]] = {name: [] for name in CLASSES}
    for picture in sorted((folder / source / ("JPEGImages" if source == "bccd" else "images")).iterdir()):
        with Image.open(picture) as image:
            width, height = image.size
        for name, box in boxes_of(source, picture, height, width):
            found[name].append((picture, box))
    red = np.median([np.sqrt(np.prod(box[2:] - box[:2])) for _, box in found["RBC"]])
    half = context * red / 2
    random = np.random.default_rng(seed)
    crops = []
    for name, cells in found.items():
        for index in sorted(random.permutation(len(cells))[:most]):
            picture, box = cells[index]
            y, x = (box[:2] + box[2:]) / 2
            with Image.open(picture) as image:
                # Mirrored beyond the border, as hematokit's own crops are.
                margin = int(half) + 1
                pixels = np.pad(
                    np.asarray(image.convert("RGB")), ((margin, margin), (margin, margin), (0, 0)), "reflect"
                )
            y, x = y + margin, x + margin
            window = (x - half, y - half, x + half, y + half)
            small = Image.fromarray(pixels).resize(
                (side, side), Image.Resampling.LANCZOS, box=clip(window, pixels.shape)
            )
            crops.append((picture.stem, name, np.asarray(small)))
    return crops


def clip(window: tuple[float, ...], shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    """Keep rounding from asking for a part of a pixel beyond the border."""
    limits = (shape[1], shape[0], shape[1], shape[0])
    x0, y0, x1, y1 = (min(max(value, 0.0), float(limit)) for value, limit in zip(window, limits, strict=True))
    return x0, y0, x1, y1


def halves(crops: list[Crop], seed: int) -> tuple[list[Crop], list[Crop]]:
    """Divide crops by field: two thirds to train on, a third to test on."""
    fields = sorted({field for field, _, _ in crops})
    held = set(np.random.default_rng(seed).permutation(fields)[: max(len(fields) // 3, 1)])
    return [crop for crop in crops if crop[0] not in held], [crop for crop in crops if crop[0] in held]


def make_store(crops: list[Crop], folder: Path, side: int, seed: int) -> Path:
    """Write crops as a store; its split serves training and the choice of the epoch only."""
    import hematokit

    for number, (_, name, pixels) in enumerate(crops):
        place = folder / "crops" / CLASSES[name]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{CLASSES[name]}_{number:05d}.png")
    store = folder / "store.zarr"
    hematokit.import_crops(folder / "crops", store, patch_size=side, near_duplicates=False)
    hematokit.split_store(store, fractions=(0.8, 0.2, 0.0), seed=seed)
    return store


def balanced_accuracy(model: Any, crops: list[Crop], least: int) -> float:
    """Mean over the classes of the share of their cells that is recognised."""
    predicted = model.predict(np.stack([pixels for _, _, pixels in crops]))["predicted"].to_numpy()
    true = np.array([CLASSES[name] for _, name, _ in crops])
    shares = [float((predicted[true == code] == code).mean()) for code in set(true) if (true == code).sum() >= least]
    return statistics.mean(shares) if shares else float("nan")


class Done:
    """Scores so far, and the file that keeps them, a line for each training."""

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self.found: dict[tuple[str, str, int], list[float]] = {}
        for line in path.read_text().splitlines() if path and path.exists() else ():
            kept = json.loads(line)
            if kept["settings"] != self.settings:
                sys.exit(f"{path} has results of other settings; give another --keep")
            self.found[kept["direction"], kept["contestant"], kept["seed"]] = kept["scores"]

    def has(self, *key: Any) -> bool:
        """Whether a training was done before."""
        return key in self.found

    def add(self, direction: str, contestant: str, seed: int, scores: list[float]) -> None:
        """Keep one training's scores: own source, other source."""
        self.found[direction, contestant, seed] = scores
        if self.path:
            line = {"direction": direction, "contestant": contestant, "seed": seed, "scores": scores}
            with self.path.open("a") as file:
                file.write(json.dumps(line | {"settings": self.settings}) + "\n")

    def scores(self, arguments: Any) -> dict[str, dict[str, dict[str, list[float]]]]:
        """Of what was asked for, in its order."""
        seeds = range(arguments.seed, arguments.seed + arguments.seeds)
        return {
            direction: {
                name: {
                    part: [self.found[direction, name, seed][index] for seed in seeds]
                    for index, part in enumerate(("own", "other"))
                }
                for name in arguments.contestants
            }
            for direction in (f"{a} to {b}" for a, b in (SOURCES, SOURCES[::-1]))
        }


def turn(store: Path, output: Path, contestant: str, arguments: Any, seed: int) -> Any:
    """Train one contestant; return its model."""
    import hematokit

    settings = dict(CONTESTANTS[contestant])
    backbone = arguments.backbone
    if method := settings.pop("wrap", None):
        backbone, settings["backbone_options"] = f"stain-normalised:{backbone}", {"method": method}
    hematokit.train(
        store, output, backbone=backbone, image_size=arguments.side, epochs=arguments.epochs, seed=seed, exclude=[],
        batch_size=arguments.batch_size, lr=arguments.lr, balance="oversample", device=arguments.device, **settings,
    )  # fmt: skip
    return hematokit.load_model(output, arguments.device, "torch")


def main() -> None:
    """Train and test every contestant in both directions, seed by seed."""
    parser = base_parser(__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each contestant and direction")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--backbone", default="timm:resnet18", help="network, trained from nothing")
    parser.add_argument("--side", type=int, default=64, help="side of crops and input in pixels")
    parser.add_argument("--context", type=float, default=2.0, help="side of a crop, in red cells")
    parser.add_argument("--most", type=int, default=300, help="cells of each class and source")
    parser.add_argument("--least", type=int, default=20, help="cells of a class that a score needs")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--keep", type=Path, help="file of finished trainings, which are not done again")
    arguments = parser.parse_args()

    folder = Path(os.environ.get("HEMATOKIT_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
    if missing := [name for name in SOURCES if not (folder / name).is_dir()]:
        sys.exit(f"no {missing[0]} in {folder}; set HEMATOKIT_TEST_DATA to a folder that has {' and '.join(SOURCES)}")
    import hematokit

    if "stain-hed" not in hematokit.load_plugins().augmenters:
        sys.exit("the plugin is not installed; run: pip install plugins/hematokit-stain")
    host = machine()
    crops = {
        name: crops_of(folder, name, arguments.side, arguments.context, arguments.most, arguments.seed)
        for name in SOURCES
    }
    counts = {source: {name: sum(crop[1] == name for crop in crops[source]) for name in CLASSES} for source in SOURCES}
    done = Done(arguments.keep, {key: value for key, value in vars(arguments).items() if key not in UNIMPORTANT})
    # Seeds outside: whatever is finished when the work is cut off compares all contestants.
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        for here, there in (SOURCES, SOURCES[::-1]):
            direction = f"{here} to {there}"
            missing = [name for name in arguments.contestants if not done.has(direction, name, seed)]
            if not missing:
                continue
            known, own = halves(crops[here], seed)
            with tempfile.TemporaryDirectory() as scratch:
                store = make_store(known, Path(scratch), arguments.side, seed)
                for name in missing:
                    model = turn(store, Path(scratch) / name, name, arguments, seed)
                    found = [balanced_accuracy(model, part, arguments.least) for part in (own, crops[there])]
                    done.add(direction, name, seed, found)
                    say(f"{direction}, seed {seed}, {name}: {found[0]:.3f} {found[1]:.3f}")
    scores = done.scores(arguments)
    result = {
        "machine": host,
        "versions": versions("hematokit-stain", "torch", "timm", "scikit-image"),
        "settings": {key: value for key, value in vars(arguments).items() if key not in ("json", "keep")},
        "cells": counts,
        "balanced_accuracy": scores,
    }
    finish(arguments, result, lines_of(scores))


def lines_of(scores: dict[str, dict[str, dict[str, list[float]]]]) -> list[str]:
    """Tables for people: means over seeds, and the difference to `plain` seed by seed."""
    lines = []
    for direction, contestants in scores.items():
        rows = [["", "own", "other", "lowest", "highest", "other - plain", "deviation", "seeds better"]]
        for name, found in contestants.items():
            other = found["other"]
            gains = [a - b for a, b in zip(other, contestants.get("plain", found)["other"], strict=True)]
            deviation = statistics.stdev(gains) if len(gains) > 1 else float("nan")
            rows.append([
                name, f"{statistics.mean(found['own']):.3f}", f"{statistics.mean(other):.3f}", f"{min(other):.3f}",
                f"{max(other):.3f}", f"{statistics.mean(gains):+.3f}", f"{deviation:.3f}",
                f"{sum(g > 0 for g in gains)}/{len(gains)}",
            ])  # fmt: skip
        lines += [f"{direction}, balanced accuracy", table(rows), ""]
    return lines


if __name__ == "__main__":
    main()
