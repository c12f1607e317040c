"""Every export format of trained models, made by the command line and read by the programs that it is for.

For each ``--model`` and each format, ``hematokit export`` is run in a process of its own, as a user runs it. What it
wrote is then loaded without hematokit, by the program that reads it, and its answers to real crops are held against
PyTorch's:

- *onnx*, *fp16*, *int8*: onnxruntime and OpenVINO, from raw patches; *images*: the layout for prepared pictures;
  *embeddings*: with the third output, which is compared, too.
- *bioimageio*: validated by bioimageio.spec, tested and computed by bioimageio.core.
- *wsinfer*: TorchScript, with the transforms that its ``config.json`` lists.
- *huggingface*: ``timm.create_model("local-dir:...")``, with hematokit's preparation and with timm's own.

The crops are as many of each class of the model from a folder that has one folder a class; by default those that
``HEMATOKIT_TEST_DATA`` names. The table is Markdown. Logits of WSInfer's files are divided by the temperature, so they
are compared with torch's divided by it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from common import base_parser, crop_folder, finish, machine, say, versions

BATCH = 7
Compute = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Format:
    """How a format is asked for, and who reads it."""

    words: tuple[str, ...]
    name: str
    readers: Callable[[Path, Any], Iterator[tuple[str, Compute]]]


def onnxruntime_reader(path: Path, given: str, output: str = "logits") -> Compute:
    """As a program that knows only onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda values: session.run([output], {given: values})[0]


def openvino_reader(path: Path) -> Compute:
    """As a program that knows only OpenVINO; in float32, which it leaves by itself on some processors."""
    import openvino

    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda values: compiled({0: values})["logits"]


def patches_readers(path: Path, model: Any) -> Iterator[tuple[str, Compute]]:
    yield "onnxruntime", onnxruntime_reader(path, "patches")
    yield "OpenVINO", openvino_reader(path)


def prepared(model: Any, patches: np.ndarray) -> np.ndarray:
    """Crops at the size of the network's input, from 0 to 1."""
    with torch.inference_mode():
        return model.prepare(torch.from_numpy(patches.copy())).contiguous().numpy()


def images_readers(path: Path, model: Any) -> Iterator[tuple[str, Compute]]:
    for name, compute in (("onnxruntime", onnxruntime_reader(path, "images")), ("OpenVINO", openvino_reader(path))):
        yield name, lambda patches, compute=compute: compute(prepared(model, patches))


def embeddings_readers(path: Path, model: Any) -> Iterator[tuple[str, Compute]]:
    yield "onnxruntime", onnxruntime_reader(path, "patches")
    yield "onnxruntime, embeddings", onnxruntime_reader(path, "patches", "embeddings")


def bioimageio_readers(path: Path, model: Any) -> Iterator[tuple[str, Compute]]:
    from bioimageio.core import load_model_description, predict, test_model
    from bioimageio.spec import load_description

    checked = load_description(path, format_version="latest").validation_summary
    tested = test_model(path)
    if (checked.status, tested.status) != ("valid-format", "passed"):
        sys.exit(f"{path}: bioimageio.spec says {checked.status}, bioimageio.core's test run {tested.status}")
    description = load_model_description(path)
    yield (
        "bioimageio.core",
        lambda patches: np.asarray(predict(model=description, inputs={"patches": patches}).members["logits"].data),
    )


def wsinfer_readers(path: Path, model: Any) -> Iterator[tuple[str, Compute]]:
    from torchvision import transforms

    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    steps = [getattr(transforms, step["name"])(**step.get("arguments", {})) for step in config["transform"]]
    prepare = transforms.Compose(steps)
    network = torch.jit.load(str(path / "torchscript_model.pt"), map_location="cpu").eval()

    def compute(patches: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.stack([prepare(Image.fromarray(patch)) for patch in patches])).numpy()

    yield "torch.jit", lambda patches: compute(patches) * model.temperature


def huggingface_readers(path: Path, model: Any) -> Iterator[tuple[str, Compute]]:
    import timm

    network = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    data = timm.data.resolve_model_data_config(network)
    mean, std = (torch.tensor(data[key]).view(3, 1, 1) for key in ("mean", "std"))
    own = timm.data.create_transform(**data, is_training=False)

    def same(patches: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network((torch.from_numpy(prepared(model, patches)) - mean) / std).numpy()

    def timms(patches: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.stack([own(Image.fromarray(patch)) for patch in patches])).numpy()

    yield "timm", same
    yield "timm, its own transform", timms


FORMATS = {
    "onnx": Format((), "model.onnx", patches_readers),
    "images": Format(("--layout", "images"), "images.onnx", images_readers),
    "embeddings": Format(("--embeddings",), "embeddings.onnx", embeddings_readers),
    "fp16": Format(
        (
            "--precision",
            "fp16",
        ),
        "fp16.onnx",
        patches_readers,
    ),
    "int8": Format(
        (
            "--precision",
            "int8",
        ),
        "int8.onnx",
        patches_readers,
    ),
    "bioimageio": Format(("--format", "bioimageio"), "bioimageio.zip", bioimageio_readers),
    "wsinfer": Format(("--format", "wsinfer"), "wsinfer", wsinfer_readers),
    "huggingface": Format(("--format", "huggingface"), "huggingface", huggingface_readers),
}


def read_crops(folder: Path, codes: tuple[str, ...], side: int, count: int) -> np.ndarray:
    """The last `count` crops of each class of the model that has a folder."""
    files = [path for code in codes for path in sorted((folder / code).glob("*.jpg"))[-count:]]
    crops = [np.asarray(Image.open(path).convert("RGB")) for path in files]
    fitting = [crop for crop in crops if crop.shape == (side, side, 3)]
    if not fitting:
        sys.exit(f"{folder} has no crops of {side} px of the model's classes {', '.join(codes)}")
    return np.stack(fitting)


def in_batches(compute: Compute, patches: np.ndarray) -> np.ndarray:
    return np.concatenate([compute(patches[start : start + BATCH]) for start in range(0, len(patches), BATCH)])


def embeddings_of(model: Any, patches: np.ndarray) -> np.ndarray:
    """What the last layer sees, in torch."""
    network = model.backbone
    with torch.inference_mode():
        images = (torch.from_numpy(prepared(model, patches)) - model.mean) / model.std
        return network.forward_head(network.forward_features(images), pre_logits=True).flatten(1).numpy()


def export(path: Path, chosen: Format, target: Path, more: list[str]) -> tuple[dict[str, Any], float]:
    """Run the command line; returns what it says, and its seconds, start of Python included."""
    words = [sys.executable, "-m", "hematokit", "export", str(path), *chosen.words, "--output", str(target), *more]
    started = time.monotonic()
    done = subprocess.run([*words, "--json"], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{path}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout), time.monotonic() - started


def measure(path: Path, names: list[str], place: Path, crops: Path, count: int, more: list[str]) -> dict[str, Any]:
    """All formats of one model."""
    from hematokit import load_model

    model: Any = load_model(path, "cpu", runtime="torch")
    patches = read_crops(crops, model.codes, model.patch_size, count)
    expected = in_batches(model.logits, patches)
    pixel_size = [] if model.config.pixel_size_um is not None else ["--pixel-size", "0.1"]
    found: dict[str, Any] = {}
    for name in names:
        chosen = FORMATS[name]
        target = place / chosen.name
        said, seconds = export(path, chosen, target, [*more, *(pixel_size if name == "wsinfer" else [])])
        readers = {}
        for reader, compute in chosen.readers(target, model):
            of_embeddings = reader.endswith("embeddings")
            wanted = in_batches(lambda part: embeddings_of(model, part), patches) if of_embeddings else expected
            got = in_batches(compute, patches)
            readers[reader] = {
                "max_difference": float(np.abs(got - wanted).max()),
                "classes_changed": None if of_embeddings else int((got.argmax(1) != wanted.argmax(1)).sum()),
            }
        found[name] = {"megabytes": said["bytes"] / 1e6, "seconds": seconds, "readers": readers, "said": said}
        say(f"{path}, {name}: {seconds:.0f} s, {readers}")
    return {"formats": found, "crops": len(patches), "classes": list(model.codes)}


def lines_of(path: str, found: dict[str, Any]) -> list[str]:
    """The Markdown table of one model."""
    lines = [
        f"{path}, {found['crops']} crops of {len(found['classes'])} classes",
        "",
        "| format | read by | logits differ by at most | classes changed | MB | s |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in found["formats"].items():
        for number, (reader, figures) in enumerate(one["readers"].items()):
            changed = "" if figures["classes_changed"] is None else figures["classes_changed"]
            size = ("", "") if number else (f"{one['megabytes']:.1f}", f"{one['seconds']:.0f}")
            cells = ("" if number else name, reader, f"{figures['max_difference']:.1e}", changed, *size)
            lines.append(f"| {' | '.join(map(str, cells))} |")
        cost = one["said"].get("cost")
        if cost:
            lines.append(f"| | {cost['sentence']} | | | | |")
    return [*lines, ""]


def main() -> None:
    parser = base_parser(__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, action="append", required=True, help="run or bundle; several times")
    parser.add_argument("--format", choices=list(FORMATS), action="append", help="default: all")
    parser.add_argument("--store", type=Path, default=None, help="training store; default: the one the model names")
    parser.add_argument("--crops", type=Path, default=None, help="folder of crops, one folder a class")
    parser.add_argument("--per-class", type=int, default=8, help="crops of each class")
    parser.add_argument("--output", type=Path, default=None, help="keep the files in this folder")
    arguments = parser.parse_args()
    started = time.monotonic()
    crops = arguments.crops or crop_folder()
    more = [] if arguments.store is None else ["--store", str(arguments.store)]
    with TemporaryDirectory() as temporary:
        models = {}
        for number, path in enumerate(arguments.model):
            place = (arguments.output or Path(temporary)) / f"{number}-{path.name}"
            names = arguments.format or list(FORMATS)
            models[str(path)] = measure(path, names, place, crops, arguments.per_class, more)
    result: dict[str, Any] = {
        "machine": machine(),
        "versions": versions("torch", "timm", "onnx", "onnxruntime", "openvino", "bioimageio.core", "bioimageio.spec"),
        "settings": {key: str(value) for key, value in vars(arguments).items() if key not in ("model", "json")},
        "models": models,
        "seconds": time.monotonic() - started,
    }
    finish(arguments, result, [line for path, found in models.items() for line in lines_of(path, found)])


if __name__ == "__main__":
    main()
