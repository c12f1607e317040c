"""One whole field, from the file to the files: by stage, and its classification beside others' in turns.

- *detect*: the detector and the judgement on the field's quality, what ``hematokit classify`` does first.
- *the rest*: open the file, cut the patches of the cells found, classify them, write ``cells.parquet``, ``cells.csv``,
  ``cells.geojson`` and ``overlay.png``. These are the functions that ``hematokit classify`` calls; its report for a
  whole run is not in it.
- *PyTorch and PIL*: a plain loop, as people write it (`field_peers.py`): open with PIL, crop, resize, classify 32 at a
  time with the same network and weights in eager mode. It writes no files.
- *TIAToolbox*: its point extractor and `PatchPredictor` on the same field, cells, network and weights, with
  ``--peer-python`` naming an interpreter that has it (its pins go badly with others' in one environment). No files.

All have the same number of threads, and take turns, each round starting with another one; ratios are taken within a
round, once with and once without hematokit's files. The peers' probabilities are compared with hematokit's, so that
nobody is quick by computing something else. Starting and loading models is not timed, nor is the first, cold turn.

Without ``--model`` the network has random weights, which costs the same. Without ``--field`` the field is drawn
(`hematokit.synthetic`), with the number of nucleated cells asked for; the detector decides how many it finds.
The linear check classifies the same field with its cells taken as often as needed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common import base_parser, finish, machine, say, spread, table, verdict, versions

HEIGHT, WIDTH = 2056, 2452
DETECT_GOAL, RATIO_GOAL = 1.5, 2.0
DETECT, REST, PLAIN, TIA = "hematokit: detect", "hematokit: the rest", "PyTorch and PIL", "TIAToolbox"
Turn = dict[str, float]
"""Seconds by stage; "wall" and "cpu" are of the whole turn."""


class Laps:
    """Times stages one after another."""

    def __init__(self) -> None:
        self.seconds: Turn = {}
        self._begun = time.perf_counter()
        self._cpu = time.process_time()
        self._last = self._begun

    def lap(self, stage: str) -> None:
        """The stage that ends now."""
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now

    def cpu(self) -> float:
        """Processor seconds since the beginning."""
        return time.process_time() - self._cpu

    def total(self) -> Turn:
        """All stages, and the whole."""
        whole = {"wall": time.perf_counter() - self._begun, "cpu": self.cpu()}
        return self.seconds | whole


class TimedModel:
    """A model that notes how long it computes, so that cutting and classifying can be told apart."""

    def __init__(self, model: Any) -> None:
        self.model, self.seconds = model, 0.0
        self.patch_size, self.taxonomy = model.patch_size, model.taxonomy

    def predict(self, patches: np.ndarray, batch_size: int = 64) -> pd.DataFrame:
        """Classify."""
        start = time.perf_counter()
        result: pd.DataFrame = self.model.predict(patches, batch_size=batch_size)
        self.seconds += time.perf_counter() - start
        return result


class Peer:
    """A process that classifies a field's cells when told to."""

    def __init__(self, kind: str, python: str, bundle: Path, threads: int, folder: Path) -> None:
        script = Path(__file__).with_name("field_peers.py")
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self.kind, self.output = kind, folder / f"{kind}.npy"
        self._log = (folder / f"{kind}.log").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [python, str(script), kind, str(bundle), "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )

    def answer(self) -> dict[str, Any]:
        """Wait for the next line it says; ends the program if there is none."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            last = (self._log.read().strip().splitlines() or ["no message"])[-1]
            sys.exit(f"the peer {self.kind} stopped: {last}")
        found: dict[str, Any] = json.loads(line)
        return found

    def classify(self, field: Path, points: Path) -> Turn:
        """One turn."""
        assert self._process.stdin is not None
        order = {"field": str(field), "points": str(points), "output": str(self.output)}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        said = self.answer()
        return {"wall": said["wall"], "cpu": said["cpu"]} | said["seconds"]

    def end(self) -> None:
        """Let it go."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._log.close()


def parse() -> argparse.Namespace:
    """The options."""
    parser = base_parser(__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="run or bundle; else an untrained network")
    parser.add_argument("--backbone", default="coatnet:nano", help="of the untrained network")
    parser.add_argument("--image-size", type=int, default=128, help="of the untrained network, px")
    parser.add_argument("--field", type=Path, help="PNG, JPEG or TIFF; else one is drawn")
    parser.add_argument("--cells", type=int, default=200, help="nucleated cells of the drawn field")
    parser.add_argument("--detector", default="nuclei", help="a registered detector")
    parser.add_argument("--runtime", default="onnxruntime", help="what computes hematokit's model")
    parser.add_argument("--peer-python", help="interpreter that has TIAToolbox")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    parser.add_argument("--linear", default="50,100,200,400", help="numbers of cells of the linear check; empty: none")
    parser.add_argument("--threads", type=int, default=0, help="of everybody; 0: one per core")
    return parser.parse_args()


def untrained(folder: Path, name: str, size: int, seed: int) -> Path:
    """A bundle with random weights."""
    import torch

    from hematokit import MATEK_21
    from hematokit.models import Classifier, build_backbone, choose_backbone, save_bundle

    torch.manual_seed(seed)
    choice = choose_backbone(name, image_size=size)
    model = Classifier(build_backbone(choice, len(MATEK_21)), MATEK_21, choice.input, 250)
    save_bundle(folder, model, choice, {})
    return folder


def drawn(path: Path, cells: int, seed: int) -> Path:
    """A field as a PNG file."""
    from PIL import Image

    from hematokit.synthetic import synthesize_field

    Image.fromarray(synthesize_field(HEIGHT, WIDTH, cells=cells, seed=seed).pixels).save(path, compress_level=4)
    return path


def rest(path: Path, cells: pd.DataFrame, model: Any, folder: Path) -> Turn:
    """Everything but detection, from the file to the files."""
    from hematokit.annotations.writing import write_csv, write_geojson, write_parquet
    from hematokit.files import write_atomically
    from hematokit.imaging.fieldfiles import open_field
    from hematokit.models.field_cells import classify_cells
    from hematokit.reports.overlay import draw_overlay

    timed = TimedModel(model)
    laps = Laps()
    with open_field(path) as field:
        laps.lap("open")
        classified = classify_cells(field, cells, timed)
        laps.lap("cut patches")
        laps.seconds["classify"] = timed.seconds
        laps.seconds["cut patches"] -= timed.seconds
        laps.seconds["cpu so far"] = laps.cpu()
        write_parquet(folder / "cells.parquet", classified)
        laps.lap("parquet")
        write_csv(folder / "cells.csv", classified)
        laps.lap("csv")
        write_geojson(folder / "cells.geojson", classified, model.taxonomy, pixel_size_um=field.pixel_size_um)
        laps.lap("geojson")
        write_atomically(folder / "overlay.png", draw_overlay(field, classified, model.taxonomy))
        laps.lap("overlay")
    return laps.total()


def linear(path: Path, cells: pd.DataFrame, model: Any, folder: Path, counts: list[int], rounds: int) -> dict[str, Any]:
    """Time the rest for several numbers of cells, in turns, and fit a line."""
    times: dict[int, list[Turn]] = {count: [] for count in counts}
    for number in range(rounds + 1):
        start = number % len(counts)
        for count in counts[start:] + counts[:start]:
            taken = cells.iloc[np.arange(count) % len(cells)].reset_index(drop=True)
            taken["cell_id"] = [f"cell-{index}" for index in range(count)]
            turn = rest(path, taken, model, folder)
            if number:  # the first is cold
                times[count].append(turn)
    walls = {count: spread([turn["wall"] for turn in turns])["median"] for count, turns in times.items()}
    classify = {count: spread([turn["classify"] for turn in turns])["median"] for count, turns in times.items()}
    slope, constant = np.polyfit(list(walls), list(walls.values()), 1)
    off = max(abs(constant + slope * count - wall) / wall for count, wall in walls.items())
    return {
        "seconds": walls,
        "classify_per_cell": {count: seconds / count for count, seconds in classify.items()},
        "constant": float(constant),
        "per_cell": float(slope),
        "largest_deviation": float(off),
    }


def agreement(ours: pd.DataFrame, codes: tuple[str, ...], theirs: np.ndarray) -> dict[str, float]:
    """How far a peer's probabilities are from hematokit's."""
    mine = ours[[f"p_{code}" for code in codes]].to_numpy()
    return {
        "same_class": float((mine.argmax(axis=1) == theirs.argmax(axis=1)).mean()),
        "largest_difference": float(np.abs(mine - theirs).max()),
    }


def main() -> None:
    """Measure."""
    arguments = parse()
    threads = arguments.threads or (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    import torch

    from hematokit import HematokitError

    torch.set_num_threads(threads)
    host = machine()
    with tempfile.TemporaryDirectory() as temporary:
        try:
            measure(arguments, threads, Path(temporary), host)
        except HematokitError as error:
            sys.exit(str(error))


def measure(arguments: argparse.Namespace, threads: int, folder: Path, host: dict[str, Any]) -> None:
    """Prepare everybody, let them take turns, report."""
    from hematokit.annotations.cells import name_cells
    from hematokit.detection.windows import examine_field, make_detector
    from hematokit.imaging.fieldfiles import open_field
    from hematokit.models import find_bundle, load_model

    if arguments.model is None:
        os.environ["HEMATOKIT_CACHE"] = str(folder / "cache")
        bundle = untrained(folder / "bundle", arguments.backbone, arguments.image_size, arguments.seed)
    else:
        bundle = find_bundle(arguments.model)
    path = arguments.field or drawn(folder / "field.png", arguments.cells, arguments.seed)
    say("loading the models")
    model: Any = load_model(bundle, device="cpu", runtime=arguments.runtime)
    # Probabilities without the bundle's temperature, which the peers do not know.
    model.temperature = 1.0
    detector = make_detector(arguments.detector)
    with open_field(path) as field:
        size = f"{field.width}x{field.height}"
        cells = name_cells(examine_field(field, detector).cells, "field", str(path))
    if not len(cells):
        sys.exit(f"no cell was found in {path}; give another --field")
    # The peers cut squares around whole pixels.
    points = folder / "points.npy"
    whole = cells.assign(y=np.floor(cells["y"] + 0.5), x=np.floor(cells["x"] + 0.5))
    np.save(points, whole[["x", "y"]].to_numpy(np.int64))
    kinds = {PLAIN: ("plain", sys.executable)}
    if arguments.peer_python:
        kinds[TIA] = ("tiatoolbox", arguments.peer_python)
    peers = {name: Peer(kind, python, bundle, threads, folder) for name, (kind, python) in kinds.items()}
    for name, peer in peers.items():
        say(f"{name}: torch {peer.answer()['torch']}")

    def detect() -> Turn:
        laps = Laps()
        with open_field(path) as opened:
            laps.lap("open")
            examine_field(opened, detector)
            laps.lap("detect")
        return laps.total()

    turns: dict[str, Callable[[], Turn]] = {DETECT: detect, REST: lambda: rest(path, whole, model, folder)}
    turns |= {name: lambda peer=peer: peer.classify(path, points) for name, peer in peers.items()}
    times: dict[str, list[Turn]] = {name: [] for name in turns}
    names = list(turns)
    for number in range(arguments.rounds + 1):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            turn = turns[name]()
            if number:  # the first is cold
                times[name].append(turn)
        say(f"round {number} of {arguments.rounds}" if number else "warmed up")
    ours = pd.read_parquet(folder / "cells.parquet")
    agreements = {name: agreement(ours, model.codes, np.load(peer.output)) for name, peer in peers.items()}
    for peer in peers.values():
        peer.end()
    counts = [int(word) for word in arguments.linear.split(",") if word.strip()]
    line = linear(path, whole, model, folder, counts, min(arguments.rounds, 3)) if len(counts) > 1 else None
    result, lines = report(times, agreements, line)
    result |= {
        "machine": host,
        "versions": versions("torch", "timm", "onnxruntime", "scikit-image", "pillow"),
        "settings": {key: str(value) for key, value in vars(arguments).items() if key not in ("json", "peer_python")}
        | {"field": str(arguments.field or "drawn"), "size": size, "found": str(len(cells)), "threads": str(threads)},
    }
    finish(arguments, result, lines)


def report(
    times: dict[str, list[Turn]], agreements: dict[str, dict[str, float]], line: dict[str, Any] | None
) -> tuple[dict[str, Any], list[str]]:
    """Figures, for machines and for people."""
    stages = {
        name: {stage: spread([turn[stage] for turn in turns]) for stage in turns[0]} for name, turns in times.items()
    }
    result: dict[str, Any] = {"seconds": stages, "agreement": agreements}
    rows = [["stage", "seconds", "quartiles"]]
    for name, found in stages.items():
        for stage, figure in found.items():
            if stage == "cpu so far":
                continue
            label = {"wall": "all", "cpu": "all, processor time"}.get(stage, stage)
            rows.append([f"{name}: {label}", f"{figure['median']:.3f}", f"{figure['low']:.3f}-{figure['high']:.3f}"])
    lines = [table(rows), ""]
    detect = stages[DETECT]["detect"]
    word = "met" if detect["median"] < DETECT_GOAL else "MISSED"
    lines.append(f"detection under {DETECT_GOAL} s: {detect['median']:.3f} s, {word}")
    result["ratios"] = {}
    # The goal is about TIAToolbox; the plain loop stands in where that cannot be installed.
    judge = TIA if TIA in agreements else PLAIN
    for name in agreements:
        pairs = list(zip(times[name], times[REST], strict=True))
        ratios = {
            "open, cut, classify": [peer["wall"] / classifying(mine) for peer, mine in pairs],
            "the same, processor time": [peer["cpu"] / mine["cpu so far"] for peer, mine in pairs],
            "and write four files": [peer["wall"] / mine["wall"] for peer, mine in pairs],
            "and files, processor time": [peer["cpu"] / mine["cpu"] for peer, mine in pairs],
        }
        result["ratios"][name] = {what: spread(values) for what, values in ratios.items()}
        for what, values in ratios.items():
            figure = spread(values)
            if name == judge:
                lines.append(f"{name} / hematokit, {what} (goal {RATIO_GOAL}): {verdict(figure, RATIO_GOAL)}")
            else:
                quartiles = f"{figure['low']:.3f}-{figure['high']:.3f}"
                lines.append(f"{name} / hematokit, {what}: {figure['median']:.3f} ({quartiles})")
        said = agreements[name]
        same, apart = said["same_class"], said["largest_difference"]
        lines.append(f"{name}: same class for {same:.1%} of the cells, probabilities differ by up to {apart:.2g}")
    if line is not None:
        result["linear"] = line
        each = ", ".join(f"{count}: {seconds:.3f}" for count, seconds in line["seconds"].items())
        per_cell = ", ".join(f"{count}: {1e3 * seconds:.2f}" for count, seconds in line["classify_per_cell"].items())
        lines += [
            "",
            f"the rest by number of cells, seconds: {each}",
            f"classifying a cell, milliseconds: {per_cell}",
            f"line: {line['constant']:.3f} s + {1e3 * line['per_cell']:.2f} ms per cell, "
            f"off by at most {line['largest_deviation']:.1%}",
        ]
    return result, lines


def classifying(turn: Turn) -> float:
    """What the peers do, too."""
    return turn["open"] + turn["cut patches"] + turn["classify"]


if __name__ == "__main__":
    main()
