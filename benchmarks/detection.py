"""Detection of nucleated cells on real and synthetic fields: registered detectors beside a peer, in turns.

Sources (those that are there are used): `bccd` and `txl_pbc360`, blood fields with boxes of white cells, recall and
precision; `segpc`, marrow fields with masks of the plasma cells, recall only; `chula`, fields of red cells, false
positives; `matek`, single-cell crops, whether a cell is found in the central 100 px; `synthetic`, drawn fields of
2452x2056 px with exact truth.

A detection and a cell match when the detection's centre lies in the cell's box; each matches once. The pixel size is
not given, but for a second row of the synthetic fields. The images of each source are divided by the parity of the
SHA-256 of their file names into a *tuning* and a *report* part. The built-in detector was tuned on the first; after a
first look at the second, two rules were added (the hue of red cells, and what a fragment at the border must show), so
that part is no longer quite unseen.

Any registered detector can be a contestant, a plugin's too, with its options and beside others:

    --detector nuclei --detector cellpose:model=blood.pth,diameter=180

`train_cellpose.py` trains a network for that on the tuning part of BCCD.

The peer is cellpose or StarDist where one is installed and its weights are on this machine (nothing is downloaded),
else Otsu's threshold on the saturation with a watershed, as in many tutorials.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from common import REPOSITORY, base_parser, finish, machine, say, table, versions

SOURCES = ("bccd", "txl_pbc360", "segpc", "chula_rbc12", "chula_rbc_1280x960", "matek", "synthetic", "synthetic+px")
Detect = Callable[[np.ndarray, "float | None"], np.ndarray]


@dataclass
class Case:
    """One image with its truth: boxes (y0, x0, y1, x1) of cells, or a labelled mask, or a central part."""

    path: str
    pixels: Callable[[], np.ndarray]
    boxes: np.ndarray | None = None
    mask: np.ndarray | None = None
    centre: float | None = None
    pixel_size_um: float | None = None


@dataclass
class Tally:
    """What one contestant did on one source."""

    fields: int = 0
    cells: int = 0
    found: int = 0
    in_box: int = 0
    detections: int = 0
    matched: int = 0
    seconds: list[float] = field(default_factory=list)

    def add(self, case: Case, points: np.ndarray, seconds: float) -> None:
        """Compare detected centres (n, 2) with a truth."""
        self.fields += 1
        self.detections += len(points)
        self.seconds.append(seconds)
        if case.boxes is not None:
            hits = match(points, case.boxes)
            self.cells += len(case.boxes)
            self.found += hits
            self.matched += hits
        elif case.mask is not None:
            self._add_mask(case.mask, points)
        elif case.centre is not None:
            height, width = case.pixels().shape[:2]
            near = np.abs(points - (height / 2, width / 2)) <= case.centre / 2
            self.cells += 1
            self.found += int(near.all(axis=1).any())

    def _add_mask(self, mask: np.ndarray, points: np.ndarray) -> None:
        parts, _ = ndimage.label(ndimage.binary_opening(mask, iterations=2))
        rows = np.clip(points[:, 0].astype(int), 0, mask.shape[0] - 1)
        columns = np.clip(points[:, 1].astype(int), 0, mask.shape[1] - 1)
        hit = set(parts[rows, columns].tolist())
        for number, place in enumerate(ndimage.find_objects(parts), 1):
            if (parts[place] == number).sum() < 100:
                continue  # crumbs of the masks' JPEG compression
            self.cells += 1
            self.found += number in hit
            y, x = points[:, 0], points[:, 1]
            inside = (place[0].start <= y) & (y <= place[0].stop) & (place[1].start <= x) & (x <= place[1].stop)
            self.in_box += bool(inside.any())

    def summary(self, kind: str) -> dict[str, Any]:
        """Numbers for the table; None where a source has no truth for it."""
        result: dict[str, Any] = {
            "fields": self.fields,
            "cells": self.cells or None,
            "recall": self.found / self.cells if self.cells else None,
            "recall_in_box": self.in_box / self.cells if kind == "segpc" and self.cells else None,
            "precision": None,
            "per_field": self.detections / self.fields,
            "seconds": statistics.median(self.seconds),
        }
        if kind in ("bccd", "txl_pbc360", "synthetic", "synthetic+px") and self.detections:
            result["precision"] = self.matched / self.detections
        return result


def match(points: np.ndarray, boxes: np.ndarray) -> int:
    """Number of pairs of a largest matching of centres (n, 2) to the boxes (m, 4) that they lie in."""
    if not len(points) or not len(boxes):
        return 0
    y, x = points[:, :1], points[:, 1:]
    inside = (boxes[:, 0] <= y) & (y <= boxes[:, 2]) & (boxes[:, 1] <= x) & (x <= boxes[:, 3])
    return int((maximum_bipartite_matching(csr_matrix(inside), perm_type="column") >= 0).sum())


def part_of(name: str) -> str:
    """The part that a file belongs to, by its name."""
    return "report" if hashlib.sha256(name.encode()).digest()[-1] % 2 else "tuning"


def read(path: Path) -> np.ndarray:
    """Pixels of an image file as RGB."""
    return np.asarray(Image.open(path).convert("RGB"))


def voc_boxes(path: Path) -> np.ndarray:
    """Boxes of the white cells of a Pascal VOC file; degenerate ones are kept, they cannot be hit."""
    from defusedxml.ElementTree import parse

    boxes = [
        [float(entry.findtext(f"bndbox/{side}")) for side in ("ymin", "xmin", "ymax", "xmax")]
        for entry in parse(path).getroot().iter("object")
        if entry.findtext("name") == "WBC"
    ]
    return np.array(boxes, float).reshape(-1, 4)


def yolo_boxes(path: Path, height: int, width: int) -> np.ndarray:
    """Boxes of class 0 of a YOLO file."""
    rows = np.loadtxt(path, ndmin=2)
    rows = rows[rows[:, 0] == 0] if len(rows) else np.zeros((0, 5))
    size, place = np.array([height, width]), rows[:, [2, 1]]
    half = rows[:, [4, 3]] / 2
    return np.hstack([(place - half) * size, (place + half) * size])


def cases(folder: Path, source: str, part: str, limit: int | None, seed: int) -> Iterator[Case]:
    """Images of a source with their truth."""
    if source.startswith("synthetic"):
        from hematokit.synthetic import synthesize_field

        for number in range(3):
            drawn = synthesize_field(cells=200, seed=seed + number, smear=number)
            truth = drawn.table()
            truth = truth[truth["nucleus_area"] > 0]
            boxes = truth[["y0", "x0"]].to_numpy(float)
            boxes = np.hstack([boxes, boxes + truth[["height", "width"]].to_numpy(float)])
            given = drawn.pixel_size_um if source.endswith("+px") else None
            yield Case(f"{number}", lambda drawn=drawn: drawn.pixels, boxes=boxes, pixel_size_um=given)
        return
    patterns = {
        "bccd": "bccd/JPEGImages/*", "txl_pbc360": "txl_pbc360/images/*", "segpc": "segpc_marrow_fields/images/*",
        "chula_rbc12": "chula_rbc12/images/*", "chula_rbc_1280x960": "chula_rbc_1280x960/*/*",
        "matek": "matek_bm8/*/*",
    }  # fmt: skip
    wanted = [path for path in sorted(folder.glob(patterns[source])) if part in ("all", part_of(path.name))]
    if source == "matek":
        wanted = wanted[::5]
    for path in wanted[:limit]:
        case = Case(path.name, lambda path=path: read(path))
        if source == "bccd":
            case.boxes = voc_boxes(folder / "bccd" / "Annotations" / f"{path.stem}.xml")
        elif source == "txl_pbc360":
            height, width = case.pixels().shape[:2]
            case.boxes = yolo_boxes(folder / "txl_pbc360" / "labels" / f"{path.stem}.txt", height, width)
        elif source == "segpc":
            case.mask = read(folder / "segpc_marrow_fields" / "masks" / path.name)[..., 0] >= 128
        elif source == "matek":
            case.centre = 100.0
        yield case


def registered(asked: str) -> tuple[str, Detect]:
    """A detector of hematokit, reduced to its centres, and its name in the table.

    `asked` is ``NAME``, or ``NAME:OPTION=VALUE,OPTION=VALUE``.
    """
    from hematokit.detection.windows import make_detector
    from hematokit.errors import HematokitError

    name, _, words = asked.partition(":")
    options = dict(word.partition("=")[::2] for word in words.split(",") if word)
    try:
        detector = make_detector(name, options).value
    except HematokitError as error:
        sys.exit(str(error))

    def detect(pixels: np.ndarray, pixel_size_um: float | None) -> np.ndarray:
        return np.asarray(detector.detect(pixels, pixel_size_um)[["y", "x"]].to_numpy(float))

    # Where a file lies does not belong into a result.
    shown = ",".join(f"{option}={Path(value).name}" for option, value in options.items())
    return (f"{name}:{shown}" if shown else name), detect


def otsu(pixels: np.ndarray, pixel_size_um: float | None) -> np.ndarray:
    """Otsu's threshold on the saturation, opening, distance transform, watershed; the size gate knows no scale."""
    from skimage.color import rgb2hsv
    from skimage.feature import peak_local_max
    from skimage.filters import gaussian, threshold_otsu
    from skimage.measure import regionprops
    from skimage.segmentation import watershed

    saturation = gaussian(rgb2hsv(pixels)[..., 1], 2)
    if saturation.min() == saturation.max():
        return np.zeros((0, 2))
    mask = ndimage.binary_fill_holes(ndimage.binary_opening(saturation > threshold_otsu(saturation), iterations=2))
    depth = ndimage.distance_transform_edt(mask)
    markers = np.zeros(mask.shape, np.int32)
    peaks = peak_local_max(gaussian(depth, 3), min_distance=12, labels=mask.astype(np.int32))
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    smallest = mask.size * 0.001
    regions = [region for region in regionprops(watershed(-depth, markers, mask=mask)) if region.area >= smallest]
    return np.array([region.centroid for region in regions], float).reshape(-1, 2)


def peer(name: str) -> tuple[str, Detect]:
    """The peer that can be had: the one asked for, if it is installed with weights, else `otsu`."""
    if name == "cellpose":
        weights = Path(os.environ.get("CELLPOSE_LOCAL_MODELS_PATH") or Path.home() / ".cellpose" / "models")
        try:
            from cellpose import models

            if not weights.is_dir() or not any(weights.iterdir()):
                raise ImportError(f"no weights in {weights}")
            model = models.CellposeModel(gpu=False)
            return name, lambda pixels, _: centres(model.eval(pixels)[0])
        except ImportError as error:
            say(f"cellpose cannot be used ({error}); the peer is otsu-watershed")
    elif name == "stardist":
        weights = Path(os.environ.get("STARDIST_MODEL") or "stardist-weights")
        try:
            from csbdeep.utils import normalize
            from stardist.models import StarDist2D

            if not weights.is_dir():
                raise ImportError("set STARDIST_MODEL to the folder of a model for H&E")
            model = StarDist2D(None, name=weights.name, basedir=str(weights.parent))
            return name, lambda pixels, _: centres(model.predict_instances(normalize(pixels))[0])
        except ImportError as error:
            say(f"StarDist cannot be used ({error}); the peer is otsu-watershed")
    return "otsu-watershed", otsu


def centres(labels: np.ndarray) -> np.ndarray:
    """Centres of the labelled objects."""
    count = int(labels.max())
    return np.array(ndimage.center_of_mass(labels > 0, labels, np.arange(1, count + 1))).reshape(-1, 2)


def run(folder: Path, sources: list[str], contestants: dict[str, Detect], arguments: Any) -> list[dict[str, Any]]:
    """Let the contestants take turns on every image."""
    results = []
    names = list(contestants)
    warm = np.full((64, 64, 3), 200, np.uint8)
    for name in names:
        contestants[name](warm, None)
    for source in sources:
        tallies = {name: Tally() for name in names}
        for number, case in enumerate(cases(folder, source, arguments.part, arguments.limit, arguments.seed)):
            pixels = case.pixels()
            for name in names[number % len(names) :] + names[: number % len(names)]:
                begun = time.perf_counter()
                points = contestants[name](pixels, case.pixel_size_um)
                tallies[name].add(case, points, time.perf_counter() - begun)
        for name in names:
            if tallies[name].fields:
                results.append({"source": source, "detector": name, **tallies[name].summary(source)})
        if not any(tally.fields for tally in tallies.values()):
            say(f"{source}: no images in {folder}")
    return results


def main() -> None:
    """Run and print."""
    parser = base_parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--part", choices=("tuning", "report", "all"), default="report", help="which half of the images"
    )
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES), metavar="NAME", help="which")
    parser.add_argument(
        "--detector",
        action="append",
        metavar="NAME[:OPTION=VALUE,...]",
        help="a registered detector with its options; may be repeated (default: nuclei)",
    )
    parser.add_argument("--peer", choices=("otsu", "cellpose", "stardist", "none"), default="otsu", help="beside it")
    parser.add_argument("--limit", type=int, default=None, help="images per source at most")
    parser.add_argument("--output", type=Path, default=None, metavar="FILE", help="also write the result as JSON")
    arguments = parser.parse_args()
    folder = Path(os.environ.get("HEMATOKIT_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir() and any(not name.startswith("synthetic") for name in arguments.sources):
        sys.exit(f"no real images at {folder}; set HEMATOKIT_TEST_DATA, or ask for --sources synthetic")
    contestants = dict(registered(asked) for asked in arguments.detector or ["nuclei"])
    if arguments.peer != "none":
        name, detect = peer(arguments.peer)
        contestants[name] = detect
    results = run(folder, arguments.sources, contestants, arguments)
    document = {
        "machine": machine(),
        "versions": versions("numpy", "scipy", "scikit-image", "cellpose", "stardist"),
        "settings": {"part": arguments.part, "seed": arguments.seed, "limit": arguments.limit},
        "results": results,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    def shown(value: float | None, digits: int = 3) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    rows = [["source", "detector", "fields", "cells", "recall", "in box", "precision", "per field", "s/field"]]
    for row in results:
        rows.append(
            [
                row["source"],
                row["detector"],
                str(row["fields"]),
                str(row["cells"] or ""),
                shown(row["recall"]),
                shown(row["recall_in_box"]),
                shown(row["precision"]),
                shown(row["per_field"], 2),
                shown(row["seconds"]),
            ]
        )
    finish(arguments, document, [table(rows)])


if __name__ == "__main__":
    main()
