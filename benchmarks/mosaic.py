"""Detection and classification end to end on whole fields whose truth is known, because they are composed.

No annotated field of 2452x2056 px is public. This script makes some: single-cell crops with known classes are taken out
of their surroundings and laid on a drawn background of red cells and platelets, some of them touching or overlapping,
some cut by the border. Then it does what ``hematokit classify`` does, and counts.

How a field is composed:

- One field, one look: a background colour is drawn from the crops, and the crops whose own background is nearest are
  taken. What little difference is left is divided out (light through a stain is a factor of the light without it).
- Of a crop only the cell in the middle is laid down, with a soft edge: the nuclei nearest to the crop's centre, and
  what stain surrounds them and lies nearer to them than to any other nucleus. Neighbours would be cells that the truth
  does not know. Crops where that cannot be told are left out: no empty background in view, nothing or too much in the
  middle, a neighbour that touches the nucleus. So the cells are easier than marrow's thickest places; how many crops
  of each class were taken is in the output.
- The truth's box is the box of what was laid down, cut by the field's border. A detection is right if its centre lies
  in a box; each box counts once.

The class accuracy of the found cells is to be read beside that of the same cells at the truth's centres (what the
detector's centres cost) and in their own crops (what new surroundings and covered parts cost). The crops come from
`matek_bm8_more`; nothing is said about a model that was trained on them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage

from common import REPOSITORY, base_parser, finish, machine, say, table, versions

HEIGHT, WIDTH, SIDE = 2056, 2452, 250
TARGET_RECALL, TARGET_PRECISION = 0.95, 0.95
_CANDIDATES = 220
"""Crops per class that are looked at; their backgrounds decide which go into one field."""


@dataclass(frozen=True, eq=False)
class CutOut:
    """A cell without its surroundings.

    Attributes
    ----------
    code, path
        Class, and the crop it is from.
    pixels : ndarray, uint8, (250, 250, 3)
        The whole crop.
    alpha : ndarray, float32, (250, 250)
        1 inside the cell, 0 outside, soft in between.
    background : ndarray, float32, (3,)
        Colour of empty glass in the crop.
    """

    code: str
    path: Path
    pixels: np.ndarray
    alpha: np.ndarray
    background: np.ndarray

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Rows and columns of the cell in its crop: y0, x0, y1, x1."""
        rows, columns = np.nonzero(self.alpha > 0.5)
        return int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1

    @property
    def radius(self) -> float:
        """Of the disc of the same area, px."""
        return float(np.sqrt((self.alpha > 0.5).sum() / np.pi))


def glass(pixels: np.ndarray) -> np.ndarray | None:
    """Colour of the empty background of a crop, or None where none is in view."""
    image = ndimage.uniform_filter(pixels.astype(np.float32), (9, 9, 0))[::5, ::5].reshape(-1, 3)
    light = image.min(axis=1)
    brightest = image[light >= np.quantile(light, 0.94)]
    colour = np.median(brightest, axis=0)
    # Pale cytoplasm is coloured and mottled, glass is neither.
    if (colour.max() - colour.min()) / colour.max() > 0.22 or brightest.std(axis=0).max() > 9:
        return None
    return colour.astype(np.float32)


def cut_out(code: str, path: Path, pixels: np.ndarray, background: np.ndarray) -> CutOut | None:
    """Tell the middle cell from its surroundings, or return None where that cannot be done cleanly."""
    from skimage.filters import threshold_otsu

    density = -np.log((pixels.astype(np.float32) + 4) / (background + 4))
    density = ndimage.gaussian_filter(density, (1.5, 1.5, 0))
    # Nuclei absorb red, red cells hardly do.
    red = density[..., 0]
    level = max(float(threshold_otsu(red)), 0.3)
    nuclei, count = ndimage.label(ndimage.binary_opening(red > level, iterations=2))
    if not count:
        return None
    middle = (SIDE - 1) / 2
    rows, columns = np.indices(red.shape, sparse=True)
    near = np.hypot(rows - middle, columns - middle) < 32
    areas = np.bincount(nuclei.ravel(), minlength=count + 1)
    own_numbers = [n for n in np.unique(nuclei[near]) if n and (nuclei[near] == n).sum() > 0.25 * min(areas[n], 1500)]
    own = np.isin(nuclei, own_numbers) & (nuclei > 0)
    other = (nuclei > 0) & ~own & (areas[nuclei] > 250)
    border = np.zeros_like(own)
    border[[0, 1, -1, -2]] = border[:, [0, 1, -1, -2]] = True
    if not 1200 < own.sum() < 25000 or (own & border).any():
        return None
    to_own = ndimage.distance_transform_edt(~own)
    to_other = ndimage.distance_transform_edt(~other) if other.any() else np.full(own.shape, 999.0)
    if (to_other[own] < 7).any():
        return None
    # Cytoplasm: stain around the nucleus. Red cells touch it now and then, so it does not reach far, and slivers of
    # them, thinner than any cytoplasm that matters, are shaved off.
    stained = ndimage.binary_fill_holes(density.sum(axis=2) > 0.22)
    body = own | (stained & (to_own < 34) & (to_own < 0.8 * to_other))
    core = ndimage.distance_transform_edt(body) > 10
    body = (ndimage.distance_transform_edt(~core) < 10) | ndimage.binary_dilation(own, iterations=2)
    labels, _ = ndimage.label(body)
    body = ndimage.binary_fill_holes(np.isin(labels, np.unique(labels[own])))
    if (body & border).sum() > 12:
        return None
    # A smooth outline, and neither a hard cut nor a halo of the crop's own background.
    smooth = ndimage.gaussian_filter(body.astype(np.float32), 4)
    alpha = np.clip((smooth - 0.35) / 0.4, 0, 1)
    labels, _ = ndimage.label(alpha > 0)
    alpha *= np.isin(labels, np.unique(labels[own & (labels > 0)]))
    return CutOut(code, path, pixels, ndimage.gaussian_filter(alpha, 1.2), background)


class Crops:
    """The crops with their backgrounds, and the cells cut out of them as they are asked for."""

    def __init__(self, folder: Path, classes: list[str], random: np.random.Generator) -> None:
        self.entries: dict[str, list[tuple[Path, np.ndarray]]] = {}
        self.taken: dict[str, int] = {}
        self.seen: dict[str, int] = {}
        self._cut: dict[Path, CutOut | None] = {}
        for code in classes:
            paths = sorted((folder / code).glob("*.jpg"))
            chosen = random.permutation(len(paths))[:_CANDIDATES]
            found = [(paths[i], glass(read(paths[i]))) for i in chosen]
            self.entries[code] = [(path, colour) for path, colour in found if colour is not None]
            self.seen[code], self.taken[code] = len(found), len(self.entries[code])
            if not self.entries[code]:
                sys.exit(f"no crop of class {code} in {folder} shows its background; leave it out with --classes")

    def look(self, random: np.random.Generator) -> np.ndarray:
        """A background colour."""
        code = list(self.entries)[random.integers(len(self.entries))]
        return self.entries[code][random.integers(len(self.entries[code]))][1]

    def cells(self, look: np.ndarray, count: int, random: np.random.Generator) -> list[CutOut]:
        """Cells in equal numbers per class from crops of that look, in random order."""
        result = []
        for number, (code, entries) in enumerate(self.entries.items()):
            wanted = count // len(self.entries) + (number < count % len(self.entries))
            ranked = sorted(entries, key=lambda entry: float(np.abs(entry[1] - look).sum()))
            found: list[CutOut] = []
            for path, background in ranked:
                if len(found) >= wanted:
                    break
                if path not in self._cut:
                    self._cut[path] = cut_out(code, path, read(path), background)
                    self.taken[code] -= self._cut[path] is None
                cell = self._cut[path]
                if cell is not None:
                    found.append(cell)
            # A class with few clean crops repeats them rather than leaving the field empty of it.
            result += [found[i % len(found)] for i in range(wanted)] if found else []
        return [result[i] for i in random.permutation(len(result))]


def read(path: Path) -> np.ndarray:
    """A crop's pixels."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def places(cells: list[CutOut], overlapping: float, random: np.random.Generator) -> list[tuple[CutOut, int, int, bool]]:
    """Put each cell somewhere: clear of the others, but for a share that is put against another one."""
    placed: list[tuple[CutOut, int, int, bool]] = []
    centres = np.zeros((0, 3))
    for cell in cells:
        radius, beside = cell.radius, bool(len(placed)) and random.random() < overlapping
        for _ in range(200):
            if beside:
                y0, x0, r0 = centres[random.integers(len(centres))]
                angle, distance = random.uniform(0, 2 * np.pi), (radius + r0) * random.uniform(0.78, 1.0)
                y, x = y0 + distance * np.sin(angle), x0 + distance * np.cos(angle)
            else:
                y, x = random.uniform(0, HEIGHT), random.uniform(0, WIDTH)
            if not (12 <= y < HEIGHT - 12 and 12 <= x < WIDTH - 12):
                continue
            gaps = np.hypot(centres[:, 0] - y, centres[:, 1] - x) - centres[:, 2] - radius
            # Against one other cell, never over several.
            if (np.sort(gaps)[1 if beside else 0 :] > 4).all():
                placed.append((cell, round(y), round(x), beside))
                centres = np.vstack([centres, (y, x, radius)])
                break
    return placed


def compose(
    crops: Crops, count: int, overlapping: float, seed: int, number: int
) -> tuple[np.ndarray, pd.DataFrame, list[CutOut]]:
    """Return a field's pixels, its truth (label, box, and how it lies) and the cells that were laid down."""
    from hematokit.synthetic import synthesize_field

    random = np.random.default_rng([seed, number])
    look = crops.look(random)
    drawn = synthesize_field(HEIGHT, WIDTH, cells=0, seed=seed, smear=number).pixels.astype(np.float32)
    light = np.median(drawn[drawn.min(axis=2) >= np.quantile(drawn.min(axis=2), 0.8)], axis=0)
    canvas = drawn * (look / light)
    rows: list[dict[str, Any]] = []
    chosen: list[CutOut] = []
    shade = ndimage.gaussian_filter(random.normal(0, 1, (9, 11)), 2)
    shade = ndimage.zoom(shade, (HEIGHT / 9, WIDTH / 11), order=1)[:HEIGHT, :WIDTH]
    shade = 1 + 0.02 * shade / np.abs(shade).max()
    for cell, y, x, beside in places(crops.cells(look, count, random), overlapping, random):
        top, left = y - SIDE // 2, x - SIDE // 2
        y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + SIDE, HEIGHT), min(left + SIDE, WIDTH)
        inner = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        alpha = cell.alpha[inner][..., None]
        canvas[y0:y1, x0:x1] += alpha * (cell.pixels[inner] * (look / cell.background) - canvas[y0:y1, x0:x1])
        cy0, cx0, cy1, cx1 = cell.box
        by0, bx0, by1, bx1 = max(top + cy0, 0), max(left + cx0, 0), min(top + cy1, HEIGHT), min(left + cx1, WIDTH)
        if by1 <= by0 or bx1 <= bx0:
            continue
        rows.append(
            {"label": cell.code, "y0": by0, "x0": bx0}
            | {"height": by1 - by0, "width": bx1 - bx0, "centre_y": y, "centre_x": x, "beside": beside}
            | {"cut": top + cy0 < 0 or left + cx0 < 0 or top + cy1 > HEIGHT or left + cx1 > WIDTH}
        )
        chosen.append(cell)
    pixels = (canvas * shade[..., None]).clip(0, 255).astype(np.uint8)
    return pixels, pd.DataFrame(rows), chosen


def parse() -> argparse.Namespace:
    """The options."""
    parser = base_parser(__doc__.splitlines()[0])
    parser.add_argument("--fields", type=int, default=4, help="fields to compose")
    parser.add_argument("--cells", type=int, default=200, help="cells per field; as many of them as find a place")
    parser.add_argument("--overlapping", type=float, default=0.15, help="share of cells put against another one")
    parser.add_argument("--classes", default="BLA,EOS,LYT,MON,NGS,PMO", help="folders of matek_bm8_more to take")
    parser.add_argument("--model", type=Path, help="run or bundle; without one, cells are only detected")
    parser.add_argument("--runtime", default="auto", help="what computes the model")
    parser.add_argument("--detector", default="nuclei", help="a registered detector")
    parser.add_argument("--pixel-size", type=float, help="um, told to the detector; it is not known of these crops")
    parser.add_argument("--keep", type=Path, help="write the fields and their truth into this folder, to look at")
    return parser.parse_args()


def more_crops() -> Path:
    """Folder of the crops; ends the program with one line where it is absent."""
    folder = Path(os.environ.get("HEMATOKIT_TEST_DATA") or REPOSITORY.parent / "shared" / "data") / "matek_bm8_more"
    if not folder.is_dir():
        sys.exit(f"no real crops at {folder}; set HEMATOKIT_TEST_DATA to a folder that has matek_bm8_more/")
    return folder


def share(right: pd.Series) -> dict[str, float]:
    """A proportion with its 95 % interval (Wilson); cells count as independent, they are from different crops."""
    from hematokit.evaluation.intervals import wilson_interval

    value = float(right.mean()) if len(right) else float("nan")
    low, high = wilson_interval(value, len(right)) or (float("nan"), float("nan"))
    return {"value": value, "low": low, "high": high, "of": len(right)}


def told(found: dict[str, float]) -> str:
    """A proportion in words."""
    return f"{found['value']:.3f} ({found['low']:.3f}-{found['high']:.3f}) of {found['of']}"


def main() -> None:
    """Compose, detect, classify, count."""
    arguments = parse()
    from hematokit import load_model
    from hematokit.detection.windows import examine_field, make_detector, match_cells
    from hematokit.errors import HematokitError
    from hematokit.imaging.fieldfiles import open_field
    from hematokit.models.field_cells import classify_cells, cut_patches

    folder = more_crops()
    classes = [code.strip() for code in arguments.classes.split(",") if code.strip()]
    missing = [code for code in classes if not (folder / code).is_dir()]
    if missing or not classes:
        sys.exit(f"{folder} has no class {', '.join(missing) or '(none given)'}; mend --classes")
    host = machine()
    try:
        detector = make_detector(arguments.detector)
        model = load_model(arguments.model, device="cpu", runtime=arguments.runtime) if arguments.model else None
    except HematokitError as error:
        sys.exit(str(error))
    say(f"looking at {_CANDIDATES} crops of each of {', '.join(classes)}")
    crops = Crops(folder, classes, np.random.default_rng(arguments.seed))
    truths: list[pd.DataFrame] = []
    detections: list[pd.DataFrame] = []
    seconds: dict[str, list[float]] = {"open": [], "detect": [], "classify": []}
    with tempfile.TemporaryDirectory() as temporary:
        target = arguments.keep or Path(temporary)
        target.mkdir(parents=True, exist_ok=True)
        for number in range(arguments.fields):
            pixels, truth, chosen = compose(crops, arguments.cells, arguments.overlapping, arguments.seed, number)
            path = target / f"mosaic{number:02d}.png"
            Image.fromarray(pixels).save(path, compress_level=1)
            start = time.perf_counter()
            with open_field(path, pixel_size_um=arguments.pixel_size) as field:
                seconds["open"].append(time.perf_counter() - start)
                start = time.perf_counter()
                cells = examine_field(field, detector).cells
                seconds["detect"].append(time.perf_counter() - start)
                if model is not None:
                    start = time.perf_counter()
                    cells = classify_cells(field, cells, model)
                    seconds["classify"].append(time.perf_counter() - start)
                    centres = truth.assign(y=truth["centre_y"], x=truth["centre_x"])
                    in_place = model.predict(cut_patches(field, centres, model.patch_size))
                    in_crop = model.predict(np.stack([cell.pixels for cell in chosen]))
                    truth["in_place"], truth["in_crop"] = in_place["predicted"], in_crop["predicted"]
            matches = match_cells(cells, truth)
            truth["field"], truth["found"] = number, False
            truth.loc[matches.annotated, "found"] = True
            cells["field"], cells["right"] = number, False
            cells.loc[matches.detected, "right"] = True
            if model is not None:
                truth["predicted"] = pd.Series(dtype=object)
                truth.loc[matches.annotated, "predicted"] = cells["predicted"].to_numpy()[matches.detected]
            if arguments.keep:
                truth.to_csv(target / f"mosaic{number:02d}.csv", index=False)
            truths.append(truth)
            detections.append(cells)
            figures = f"recall {matches.recall:.3f}, precision {matches.precision:.3f}"
            say(f"field {number + 1}: {len(truth)} cells, {figures}")
    truth = pd.concat(truths, ignore_index=True)
    cells = pd.concat(detections, ignore_index=True)
    result, lines = report(truth, cells, crops, seconds, arguments, None if model is None else model.codes)
    result |= {
        "machine": host,
        "versions": versions("torch", "timm", "onnxruntime", "scikit-image", "numpy"),
        "settings": {key: str(value) for key, value in vars(arguments).items() if key not in ("json", "keep")}
        | {"computed by": "" if model is None else model.runtime},
    }
    finish(arguments, result, lines)


def report(
    truth: pd.DataFrame,
    cells: pd.DataFrame,
    crops: Crops,
    seconds: dict[str, list[float]],
    arguments: argparse.Namespace,
    codes: tuple[str, ...] | None,
) -> tuple[dict[str, Any], list[str]]:
    """Figures, for machines and for people."""
    plain = truth[~truth["beside"] & ~truth["cut"]]
    detection = {
        "recall": share(truth["found"]),
        "precision": share(cells["right"]),
        "recall, free-standing cells": share(plain["found"]),
        "recall, put against another": share(truth["found"][truth["beside"]]),
        "recall, cut by the border": share(truth["found"][truth["cut"]]),
    }
    result: dict[str, Any] = {
        "detection": detection,
        "crops": {code: {"looked at": crops.seen[code], "usable": crops.taken[code]} for code in crops.seen},
        "seconds_per_field": {stage: statistics.median(times) for stage, times in seconds.items() if times},
    }
    lines = [f"{name}: {told(figure)}" for name, figure in detection.items()]
    for name, goal in (("recall", TARGET_RECALL), ("precision", TARGET_PRECISION)):
        lines.append(f"goal {name} {goal}: {'met' if detection[name]['value'] >= goal else 'MISSED'}")
    if codes is not None:
        # Classes that the model does not know cannot be right; they are not counted against it.
        known = truth[truth["label"].isin(codes)]
        found = known[known["found"]]
        figures = {
            "class accuracy of found cells": share(found["predicted"] == found["label"]),
            "the same cells, at the truth's centres": share(found["in_place"] == found["label"]),
            "the same cells in their own crops": share(found["in_crop"] == found["label"]),
            "found and rightly classified, of all": share(known["found"] & (known["predicted"] == known["label"])),
        }
        result["classification"] = figures
        lines += ["", *(f"{name}: {told(figure)}" for name, figure in figures.items())]
        rows = [["class", "cells", "found", "right", "at true centre", "in own crop"]]
        for code, group in known.groupby("label"):
            seen = group[group["found"]]
            rows.append(
                [str(code), str(len(group)), f"{group['found'].mean():.3f}"]
                + [f"{(seen[column] == code).mean():.3f}" for column in ("predicted", "in_place", "in_crop")]
            )
        result["by_class"] = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
        lines += ["", table(rows)]
    times = ", ".join(f"{stage} {value:.2f}" for stage, value in result["seconds_per_field"].items())
    lines += ["", f"seconds per field (median of {arguments.fields}): {times}"]
    taken = ", ".join(f"{code} {crops.taken[code]} of {crops.seen[code]}" for code in crops.seen)
    lines.append(f"crops that could be cut out cleanly, of those looked at: {taken}")
    return result, lines


if __name__ == "__main__":
    main()
