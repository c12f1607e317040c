"""Grad-CAM and SmoothGrad, in maps per second and in peak memory, beside pytorch-grad-cam and captum used naively.

All contenders explain the same pictures by the same network (random weights: speed does not depend on them), and for
Grad-CAM at the same layer, for SmoothGrad with as many samples of the same noise level.

- *hematokit* is the built-in explainer, called with batches (``--batch``).
- *pytorch-grad-cam* is the package ``grad-cam`` from PyPI, called with the same batches. It is not installed by
  hematokit: ``pip install grad-cam``, or put it on ``PYTHONPATH``. It has no SmoothGrad.
- *captum, one by one* is ``LayerGradCam``, or ``NoiseTunnel`` around ``Saliency``, called image by image as in captum's
  tutorials, with the parameters' gradients left on as they are after loading.

Contenders take turns within each round. Peak memory is measured before the timing, each contender in a process of its
own that is forked from one with the loaded network: how much the resident memory grows over what it was after one
warm-up picture, for the number of pictures of a round and for four times as many. Needs a system that can fork.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import resource
import sys
from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch.nn import functional

from common import Clock, base_parser, finish, interleave, machine, say, spread, table, verdict, versions
from hematokit.explanation.gradcam import find_layer
from hematokit.explanation.running import make_explainer
from hematokit.models.classifier import Classifier
from hematokit.models.construction import build_backbone, choose_backbone
from hematokit.taxonomy import MATEK_21

OURS, PEER, NAIVE = "hematokit", "pytorch-grad-cam", "captum, one by one"
GOALS = {"grad-cam": 2.0, "smoothgrad": 1.5}

Contender = Callable[[torch.Tensor, torch.Tensor], object]


def make_classifier(backbone: str, size: int, device: str, seed: int) -> Classifier:
    """A classifier with random weights."""
    torch.manual_seed(seed)
    choice = choose_backbone(backbone, image_size=size)
    network = build_backbone(choice, len(MATEK_21)).to(memory_format=torch.channels_last)
    return Classifier(network, MATEK_21, choice.input, size).to(device).eval()


def in_batches(work: Contender, batch: int) -> Contender:
    """Call a contender with a few images at a time, as a program would that has many."""

    def whole(images: torch.Tensor, targets: torch.Tensor) -> object:
        parts = [work(*part) for part in zip(images.split(batch), targets.split(batch), strict=True)]
        return torch.cat([torch.as_tensor(part) for part in parts])

    return whole


def grad_cams(classifier: Classifier, size: int, batch: int) -> dict[str, Contender]:
    """The contenders of Grad-CAM; all return maps of the input's size."""
    from captum.attr import LayerGradCam

    own = make_explainer("grad-cam").value
    layer = find_layer(classifier, "auto", size)

    def naive(images: torch.Tensor, targets: torch.Tensor) -> object:
        method = LayerGradCam(classifier, layer)
        maps = []
        for image, target in zip(images, targets, strict=True):
            coarse = method.attribute(image[None], target=int(target), relu_attributions=True)
            maps.append(functional.interpolate(coarse, size=(size, size), mode="bilinear").detach())
        return torch.cat(maps)

    found = {OURS: in_batches(lambda images, targets: own.attribute(classifier, images, targets), batch)}
    if importlib.util.find_spec("pytorch_grad_cam"):
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        def peer(images: torch.Tensor, targets: torch.Tensor) -> object:
            with GradCAM(model=classifier, target_layers=[layer]) as method:
                return method(input_tensor=images, targets=[ClassifierOutputTarget(int(target)) for target in targets])

        found[PEER] = in_batches(peer, batch)
    found[NAIVE] = naive
    return found


def smooth_grads(classifier: Classifier, samples: int, noise: float, batch: int) -> dict[str, Contender]:
    """The contenders of SmoothGrad."""
    from captum.attr import NoiseTunnel, Saliency

    own = make_explainer("smoothgrad", {"samples": samples, "noise": noise}).value

    def naive(images: torch.Tensor, targets: torch.Tensor) -> object:
        method = NoiseTunnel(Saliency(classifier))
        maps = []
        for image, target in zip(images, targets, strict=True):
            gradient = method.attribute(
                image[None], nt_type="smoothgrad", nt_samples=samples, stdevs=noise, target=int(target), abs=False
            )
            maps.append(gradient.abs().sum(1).detach())
        return torch.cat(maps)

    return {OURS: in_batches(lambda images, targets: own.attribute(classifier, images, targets), batch), NAIVE: naive}


def agreement(contenders: dict[str, Contender], images: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """Correlation of each peer's maps with hematokit's: a peer that computes something else is no peer."""
    maps = {name: torch.as_tensor(work(images, targets)).float().flatten(1) for name, work in contenders.items()}
    own = maps.pop(OURS)
    found = {}
    for name, other in maps.items():
        # Constant maps (nothing speaks for the class) have no correlation and are passed over.
        pairs = [torch.stack(pair) for pair in zip(own, other, strict=True) if min(part.std() for part in pair) > 0]
        values = [float(torch.corrcoef(pair)[0, 1]) for pair in pairs]
        found[name] = sum(values) / len(values) if values else float("nan")
    return found


def growth(work: Contender, images: torch.Tensor, targets: torch.Tensor) -> float | None:
    """Peak growth of resident memory in MB, in a forked process; None where that is not possible."""
    if "fork" not in multiprocessing.get_all_start_methods() or images.device.type != "cpu":
        return None
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)

    def measure() -> None:
        work(images[:1], targets[:1])
        before = psutil.Process().memory_info().rss
        work(images, targets)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        writer.send(max(0, peak - before) / 1e6)

    process = context.Process(target=measure)
    process.start()
    writer.close()
    try:
        value: float = reader.recv()
    except EOFError:
        return None
    finally:
        process.join()
    return value


def compare(
    method: str, contenders: dict[str, Contender], images: torch.Tensor, targets: torch.Tensor, rounds: int
) -> dict[str, Any]:
    """Time one method on one network."""
    agreeing = agreement(contenders, images[:4], targets[:4])
    times = interleave(rounds, {name: _turn(work, images, targets) for name, work in contenders.items()})
    speeds = {name: spread([len(images) / clock.wall for clock in clocks]) for name, clocks in times.items()}
    peers = [name for name in contenders if name != OURS]
    fastest = max(peers, key=lambda name: speeds[name]["median"])
    return {
        "method": method,
        "maps_per_second": speeds,
        "ratios": {name: spread(_ratios(times, name)) for name in peers},
        "cpu_ratios": {name: spread(_ratios(times, name, cpu=True)) for name in peers},
        "fastest_peer": fastest,
        "agreement": agreeing,
    }


def _turn(work: Contender, images: torch.Tensor, targets: torch.Tensor) -> Callable[[], None]:
    def turn() -> None:
        work(images, targets)
        if images.device.type == "cuda":
            torch.cuda.synchronize()

    return turn


def _ratios(times: dict[str, list[Clock]], peer: str, *, cpu: bool = False) -> list[float]:
    """How many times faster hematokit is, round by round."""
    pairs = zip(times[peer], times[OURS], strict=True)
    return [other.cpu / own.cpu if cpu else other.wall / own.wall for other, own in pairs]


def _rows(results: list[dict[str, Any]]) -> list[list[str]]:
    rows = [
        ["network, method, contender", "maps/s", "hematokit is faster by", "processor time", "memory", "memory, 4x"]
    ]
    for result in results:
        for name, speed in result["maps_per_second"].items():
            ratio, cpu = result["ratios"].get(name), result["cpu_ratios"].get(name)
            grown = result["memory_growth_mb"].get(name, [None, None])
            rows.append(
                [
                    f"{result['backbone']}, {result['method']}, {name}",
                    f"{speed['median']:.2f} ({speed['low']:.2f}-{speed['high']:.2f})",
                    f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})" if ratio else "",
                    f"{cpu['median']:.2f} ({cpu['low']:.2f}-{cpu['high']:.2f})" if cpu else "",
                    *("–" if value is None else f"{value:.0f} MB" for value in grown),
                ]
            )
    return rows


def main() -> None:
    """Measure and print."""
    parser = base_parser(__doc__.splitlines()[0])
    parser.add_argument("--backbones", default="coatnet:pico,efficientnetv2:b0,resnext50:32x4d", help="with commas")
    parser.add_argument("--size", type=int, default=96, help="side of the input in pixels")
    parser.add_argument("--images", type=int, default=16, help="pictures in a turn of Grad-CAM")
    parser.add_argument("--smooth-images", type=int, default=1, help="pictures in a turn of SmoothGrad")
    parser.add_argument("--batch", type=int, default=16, help="pictures at a time, where a contender takes batches")
    parser.add_argument("--samples", type=int, default=25, help="of SmoothGrad")
    parser.add_argument("--noise", type=float, default=0.15, help="of SmoothGrad, as a share of the input's range")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender, after one that is not timed")
    parser.add_argument("--threads", type=int, default=1, help="torch's")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    host = machine()
    generator = torch.Generator().manual_seed(arguments.seed)
    images = torch.rand(arguments.images, 3, arguments.size, arguments.size, generator=generator).to(arguments.device)
    targets = torch.randint(len(MATEK_21), (arguments.images,), generator=generator).to(arguments.device)
    few = min(arguments.smooth_images, arguments.images)
    tasks = []
    for backbone in arguments.backbones.split(","):
        classifier = make_classifier(backbone, arguments.size, arguments.device, arguments.seed)
        cams = grad_cams(classifier, arguments.size, arguments.batch)
        smooth = smooth_grads(classifier, arguments.samples, arguments.noise, arguments.batch)
        tasks += [(backbone, "grad-cam", cams, len(images)), (backbone, "smoothgrad", smooth, few)]
    memory: list[dict[str, list[float | None]]] = []
    # Before anything is timed: what this process has used and given back, its children would use unseen.
    for backbone, method, contenders, count in tasks:
        say(f"memory of {backbone}, {method}")
        part, places = images[:count], targets[:count]
        grown: dict[str, list[float | None]] = {}
        for name, work in ({} if arguments.no_memory else contenders).items():
            many = growth(work, part.repeat(4, 1, 1, 1), places.repeat(4))
            grown[name] = [growth(work, part, places), many]
        memory.append(grown)
    results = []
    for (backbone, method, contenders, count), grown in zip(tasks, memory, strict=True):
        say(f"speed of {backbone}, {method}: {', '.join(contenders)}")
        found = compare(method, contenders, images[:count], targets[:count], arguments.rounds)
        results.append({"backbone": backbone, **found, "memory_growth_mb": grown})
    lines = [table(_rows(results)), "", "Times faster in wall and in processor time; memory: growth while explaining."]
    if not importlib.util.find_spec("pytorch_grad_cam"):
        lines.append(f"{PEER} is not installed, so it is not among the contenders: pip install grad-cam")
    lines.append("")
    for result in results:
        peer, goal = result["fastest_peer"], GOALS[result["method"]]
        said = verdict(result["ratios"][peer], goal)
        lines.append(f"{result['backbone']}, {result['method']} against {peer}, goal {goal}: {said}")
        agreeing = ", ".join(f"{name} {value:.3f}" for name, value in result["agreement"].items())
        lines.append(f"    correlation with hematokit's maps: {agreeing}")
    settings = {key: value for key, value in vars(arguments).items() if key != "json"}
    document = {
        "machine": host,
        "versions": versions("torch", "timm", "captum", "grad-cam"),
        "settings": settings,
        "goals": GOALS,
        "results": results,
    }
    finish(arguments, document, lines)


if __name__ == "__main__":
    main()
