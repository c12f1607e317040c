"""What `fields.py` compares with: a field's cells classified by TIAToolbox, or by a plain PyTorch loop over PIL crops.

A process of its own, started by `fields.py` with the interpreter that has the peer; it needs torch, timm, safetensors,
Pillow and, for TIAToolbox, that, but not hematokit. Orders come as JSON lines on standard input (``field``: an image,
``points``: a .npy of centres (n, 2) as x, y; ``output``: where the probabilities go), answers go to standard output.

Both have the same network and weights as hematokit's model, in eager mode. TIAToolbox's `PatchPredictor` gets the
patches from its own point extractor; resizing and normalisation are part of the model it is given, a batch at a time,
which is quicker than its usual way, one patch at a time in the data loader.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional

BATCH = 32
Classify = Callable[[str, np.ndarray], tuple[np.ndarray, dict[str, float]]]


def load(bundle: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The network of a bundle, and its ``config.json``."""
    config = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
    state = load_file(bundle / "model.safetensors")
    name, size, classes = config["backbone"]["model"], config["input"]["size"], len(config["taxonomy"]["classes"])
    try:
        network = timm.create_model(name, num_classes=classes, img_size=size)
    except TypeError:
        network = timm.create_model(name, num_classes=classes)
    network.load_state_dict(state)
    return network.eval(), config


def plain(network: torch.nn.Module, config: dict[str, Any]) -> Classify:
    """Open with PIL, crop, resize each crop with PIL, stack, normalise, classify: a script as people write it."""
    given = config["input"]
    side, size = given["patch_size"], given["size"]
    mean, std = (torch.tensor(given[key]).view(1, 3, 1, 1) for key in ("mean", "std"))

    def classify(field: str, points: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        seconds = {}
        start = time.perf_counter()
        with Image.open(field) as image:
            pixels = image.convert("RGB")
        # Mirrored margins, once for the whole field: PIL fills with black.
        margin = side // 2 + 1
        padded = Image.fromarray(np.pad(np.asarray(pixels), ((margin, margin), (margin, margin), (0, 0)), "reflect"))
        seconds["open"] = time.perf_counter() - start
        start = time.perf_counter()
        parts = []
        with torch.inference_mode():
            for first in range(0, len(points), BATCH):
                crops = []
                for x, y in points[first : first + BATCH].tolist():
                    left, top = x - side // 2 + margin, y - side // 2 + margin
                    crop = padded.crop((left, top, left + side, top + side))
                    crops.append(np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR)))
                batch = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
                parts.append(network((batch - mean) / std).softmax(dim=1).numpy())
        seconds["cut and classify"] = time.perf_counter() - start
        return np.concatenate(parts), seconds

    return classify


def tiatoolbox(network: torch.nn.Module, config: dict[str, Any]) -> Classify:
    """`PointsPatchExtractor` and `PatchPredictor`, as its documentation shows them."""
    from tiatoolbox.models import IOPatchPredictorConfig, PatchPredictor
    from tiatoolbox.models.models_abc import ModelABC
    from tiatoolbox.tools.patchextraction import get_patch_extractor
    from tiatoolbox.wsicore.wsireader import VirtualWSIReader

    given = config["input"]
    side, size = given["patch_size"], given["size"]

    class Network(ModelABC):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.register_buffer("mean", torch.tensor(given["mean"]).view(1, 3, 1, 1))
            self.register_buffer("std", torch.tensor(given["std"]).view(1, 3, 1, 1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            images = images / 255
            if images.shape[-1] != size:
                images = functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
            return torch.softmax(self.network((images - self.mean) / self.std), dim=1)

        @staticmethod
        def postproc(image: np.ndarray) -> np.ndarray:
            return np.argmax(image, axis=-1)

        @staticmethod
        def infer_batch(model: torch.nn.Module, batch_data: torch.Tensor, *, device: str) -> np.ndarray:
            # As TIAToolbox's own models do it (tiatoolbox.models.architecture.vanilla).
            images = batch_data.to(device).type(torch.float32).permute(0, 3, 1, 2).contiguous()
            model.eval()
            with torch.inference_mode():
                return model(images).cpu().numpy()

    predictor = PatchPredictor(model=Network(), batch_size=BATCH, num_workers=0, device="cpu", verbose=False)
    settings = IOPatchPredictorConfig(
        patch_input_shape=(side, side), input_resolutions=[{"resolution": 1.0, "units": "baseline"}]
    )

    def classify(field: str, points: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        seconds = {}
        start = time.perf_counter()
        reader = VirtualWSIReader.open(field)
        seconds["open"] = time.perf_counter() - start
        start = time.perf_counter()
        # Its patches begin one pixel later than the centre minus half the side: moved, to have the same pixels.
        extractor = get_patch_extractor(
            "point",
            input_img=reader,
            locations_list=points - 1,
            patch_size=(side, side),
            units="level",
            pad_mode="reflect",
        )
        patches = np.stack(list(extractor))
        output = predictor.run(
            patches, patch_mode=True, ioconfig=settings, return_probabilities=True, output_type="dict", device="cpu"
        )
        seconds["cut and classify"] = time.perf_counter() - start
        return np.asarray(output["probabilities"]), seconds

    return classify


def main() -> None:
    """Answer orders until there are no more."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=["plain", "tiatoolbox"])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    answers = sys.stdout
    # Whatever a library prints must not be taken for an answer.
    with contextlib.redirect_stdout(io.StringIO()):
        network, config = load(arguments.bundle)
        classify = {"plain": plain, "tiatoolbox": tiatoolbox}[arguments.kind](network, config)
        print(json.dumps({"ready": True, "torch": torch.__version__}), file=answers, flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            points = np.load(order["points"])
            wall, cpu = time.perf_counter(), time.process_time()
            probabilities, seconds = classify(order["field"], points)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            np.save(order["output"], probabilities)
            print(json.dumps({"wall": wall, "cpu": cpu, "seconds": seconds}), file=answers, flush=True)


if __name__ == "__main__":
    main()
