"""Images per second of a trained model, by what computes it, in turns and with the agreement beside each.

Contestants, all on the CPU, from raw uint8 patches to logits, with the same number of threads:

- *eager*: the network as torch runs it, inputs in their usual order of axes. All ratios are to this one.
- *channels_last*: what ``--runtime torch`` is.
- *torch.compile*: channels_last, compiled by inductor (left out with ``--no-compile``; it needs a C++ compiler).
- *onnxruntime*, *openvino*: what these runtimes are; the file is exported and checked at the first use.
- *int8*: onnxruntime on a file as ``hematokit export --int8`` writes it, calibrated on training crops.
- *auto*: the one of the above that ``--runtime auto`` chose.

They take turns, each round starting with another one; ratios are taken within a round. Loading, exporting, compiling
and the first turn are not timed. Agreement is with eager torch on the test crops: largest difference of a logit, and
how many crops got another class. Times of both clocks; on a machine that others use, processor time is the steadier.

``--model`` takes runs or bundles, several times; crops are of the store they name, or of ``--store``. ``--image-size``
measures the same networks with another input: the weights that fit are taken, which is enough for times and for how far
the answers lie apart, and says nothing about how right they are.
"""

from __future__ import annotations

import copy
import faulthandler
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from common import base_parser, finish, interleave, machine, say, spread, table, verdict, versions

GOAL = 2.0
SILENCE = 300
"""Seconds after which, again and again, every thread says where it is: a run that stands still is to show why."""
EAGER = "eager"
Compute = Callable[[np.ndarray], np.ndarray]


def eager(model: Any) -> Compute:
    """The network in torch's usual order of axes."""
    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format).eval()

    @torch.inference_mode()
    def compute(patches: np.ndarray) -> np.ndarray:
        images = plain.prepare(torch.from_numpy(patches)).contiguous()
        logits: torch.Tensor = plain.backbone(((images - plain.mean) / plain.std).contiguous())
        return logits.numpy()

    return compute


def compiled(model: Any) -> Compute:
    """The whole classifier compiled."""
    network = torch.compile(copy.deepcopy(model))

    @torch.inference_mode()
    def compute(patches: np.ndarray) -> np.ndarray:
        logits: torch.Tensor = network(model.prepare(torch.from_numpy(patches)))
        return logits.numpy()

    return compute


def int8(model: Any, calibration: np.ndarray) -> Compute:
    """A quantised file, as the export makes it, its batches side by side as those of the other engines."""
    from hematokit.models.formats.quantising import to_int8
    from hematokit.models.runtimes.onnx_classifier import OnnxClassifier
    from hematokit.models.runtimes.onnx_graph import onnx_bytes

    return OnnxClassifier(to_int8(onnx_bytes(model), calibration), model.config).logits


def contestants(path: Path, model: Any, calibration: np.ndarray | None, with_compile: bool) -> dict[str, Compute]:
    """All that can compute here."""
    from hematokit import HematokitError, load_model

    found: dict[str, Compute] = {
        EAGER: eager(model),
        "channels_last": lambda patches: model.logits(patches, len(patches)),
    }
    if with_compile:
        found["torch.compile"] = compiled(model)
    for runtime in ("onnxruntime", "openvino"):
        try:
            loaded = load_model(path, "cpu", runtime)
        except HematokitError as error:
            say(f"{runtime} is left out: {error}")
            continue
        found[runtime] = loaded.logits
    if calibration is not None:
        found["int8"] = int8(model, calibration)
    return found


def with_image_size(path: Path, size: int, folder: Path) -> Path:
    """A bundle of the same network for another side of the input, written into a folder."""
    from hematokit import load_model
    from hematokit.models.bundle import save_bundle
    from hematokit.models.classifier import Classifier
    from hematokit.models.construction import build_backbone, choose_backbone

    model = load_model(path, "cpu", runtime="torch")
    own = model.config.backbone
    choice = choose_backbone(own.name, own.variant, size, own.options)
    torch.manual_seed(0)
    backbone = build_backbone(choice, len(model.codes))
    fresh = backbone.state_dict()
    fitting = {
        name: values
        for name, values in model.backbone.state_dict().items()
        if name in fresh and fresh[name].shape == values.shape
    }
    backbone.load_state_dict(fitting, strict=False)
    say(f"{path} at {size} px: {len(fitting)} of {len(fresh)} tensors are the model's, the others drawn")
    changed = Classifier(backbone, model.taxonomy, choice.input, model.patch_size, model.temperature)
    save_bundle(folder, changed, choice, model.config.training, pixel_size_um=model.config.pixel_size_um)
    return folder


def measure(path: Path, arguments: Any) -> dict[str, Any]:
    """All contestants on one model."""
    from hematokit import load_model
    from hematokit.models.runtimes.parity import sample_patches
    from hematokit.pipelines.export import ExportCrops

    model = load_model(path, "cpu", runtime="torch")
    crops = ExportCrops.find(model, arguments.store)
    judged = crops.judged()
    patches = judged.patches if judged is not None else sample_patches(model.patch_size)
    take = np.arange(arguments.images) % len(patches)
    turn = np.ascontiguousarray(patches[take])
    say(f"{path}: preparing")
    calibration = None if arguments.no_int8 else crops.calibration()
    made = contestants(path, model, calibration, not arguments.no_compile)
    batches = [turn[start : start + arguments.batch] for start in range(0, len(turn), arguments.batch)]

    def whole(compute: Compute) -> Callable[[], np.ndarray]:
        return lambda: np.concatenate([compute(batch) for batch in batches])

    reference, result = whole(made[EAGER])(), {}
    for name, compute in made.items():
        found = whole(compute)()
        result[name] = {
            "max_logit_difference": float(np.abs(found - reference).max()),
            "classes_changed": int((found.argmax(1) != reference.argmax(1)).sum()),
            "of": len(reference),
        }
    say(f"{path}: {arguments.rounds} rounds")
    times = interleave(arguments.rounds, {name: whole(compute) for name, compute in made.items()})
    for name in made:
        for clock in ("wall", "cpu"):
            seconds = [getattr(turn_, clock) for turn_ in times[name]]
            base = [getattr(turn_, clock) for turn_ in times[EAGER]]
            result[name][f"images_per_second_{clock}"] = spread([len(turn) / second for second in seconds])
            result[name][f"ratio_{clock}"] = spread([one / other for one, other in zip(base, seconds, strict=True)])
    chosen = load_model(path, "cpu", "auto").runtime
    return {"contestants": result, "auto": chosen, "crops": judged.what if judged is not None else "drawn patches"}


def lines_of(name: str, found: dict[str, Any]) -> list[str]:
    """The table of one model."""
    rows = [["", "images/s", "quartiles", "ratio", "ratio, cpu", "logits differ", "classes changed"]]
    for who, one in found["contestants"].items():
        speed = one["images_per_second_wall"]
        rows.append(
            [
                who,
                f"{speed['median']:.0f}",
                f"{speed['low']:.0f}-{speed['high']:.0f}",
                f"{one['ratio_wall']['median']:.2f}",
                f"{one['ratio_cpu']['median']:.2f}",
                f"{one['max_logit_difference']:.1e}",
                f"{one['classes_changed']} of {one['of']}",
            ]
        )
    chosen = found["contestants"].get(found["auto"], found["contestants"]["channels_last"])
    ratio = chosen["ratio_wall"]
    return [
        f"{name} ({found['crops']})",
        table(rows),
        f"auto is {found['auto']}; goal, at least {GOAL:g} times eager: {verdict(ratio, GOAL)}",
        "",
    ]


def main() -> None:
    parser = base_parser(__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, action="append", required=True, help="run or bundle; several times")
    parser.add_argument("--store", type=Path, default=None, help="crops; default: the store that the model names")
    parser.add_argument("--image-size", type=int, default=None, help="side of the input; default: the model's own")
    parser.add_argument("--images", type=int, default=64, help="patches in a turn")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2, help="of every contestant")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--no-int8", action="store_true")
    arguments = parser.parse_args()
    faulthandler.dump_traceback_later(SILENCE, repeat=True)
    torch.set_num_threads(arguments.threads)
    started = time.monotonic()
    with TemporaryDirectory() as place:
        models = {}
        for number, path in enumerate(arguments.model):
            if arguments.image_size is None:
                models[str(path)] = measure(path, arguments)
                continue
            changed = with_image_size(path, arguments.image_size, Path(place) / str(number))
            models[f"{path} at {arguments.image_size} px"] = measure(changed, arguments)
    result: dict[str, Any] = {
        "machine": machine(),
        "versions": versions("torch", "timm", "onnx", "onnxruntime", "openvino"),
        "settings": {key: str(value) for key, value in vars(arguments).items() if key not in ("model", "json")},
        "models": models,
        "goal": GOAL,
        "seconds": time.monotonic() - started,
    }
    finish(arguments, result, [line for name, found in models.items() for line in lines_of(name, found)])


if __name__ == "__main__":
    main()
