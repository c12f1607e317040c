"""Training throughput: hematokit's own loop beside the limit and beside timm's loader, in turns.

- *hematokit* is an unchanged call of `hematokit.train`: store, cache, augmenter, loss, clipping, optimizer, progress,
  TensorBoard events. Its progress callback is where the turns change: it keeps the loop waiting while others work.
- *limit* is forward, loss, backward and optimizer step of the same backbone on one normalised random batch that is
  already on the device: same batch size, precision, memory layout and optimizer; no gradient clipping.
- *timm loader* is the limit's step fed by `timm.data.create_loader` on the JPEG folder, with timm's usual augmentation
  for training (random resized crop, flip, colour jitter) at the same image size. It decodes at every epoch, in worker
  processes that share this machine's cores.

Of each turn the first steps are not timed (``--warmup``): they refill caches and queues. All three are timed within
each round, and ratios are taken within a round. Afterwards the parts of one hematokit step are timed one by one.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from common import Clock, base_parser, crop_folder, finish, machine, say, spread, table, verdict, versions
from hematokit import load_plugins, open_store, train
from hematokit.models.classifier import Classifier, fit_to_input
from hematokit.models.construction import BackboneChoice, build_backbone, choose_backbone
from hematokit.training.data import PatchFeed, select_cells

GOAL = 0.97
LIMIT, OURS, TIMM = "limit", "hematokit", "timm loader"


class Enough(Exception):
    """Raised in the progress callback to end a training that has been timed."""


class Repeated(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """A data set over and over, so that an epoch's end, where loaders start anew, is not met in a short measurement."""

    def __init__(self, inner: Any, times: int) -> None:
        self.inner, self.times = inner, times

    def __len__(self) -> int:
        return len(self.inner) * self.times

    def __getitem__(self, index: int) -> Any:
        return self.inner[index % len(self.inner)]

    @property
    def transform(self) -> Any:
        """What timm's loader sets."""
        return self.inner.transform

    @transform.setter
    def transform(self, value: Any) -> None:
        self.inner.transform = value


class Bare:
    """Model and optimizer as the loop makes them, stepped by hand."""

    def __init__(self, choice: BackboneChoice, classes: int, device: torch.device, precision: str, seed: int) -> None:
        from timm.optim import param_groups_weight_decay

        torch.manual_seed(seed)
        self.model = build_backbone(choice, classes).to(device).to(memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.AdamW(
            param_groups_weight_decay(self.model, 0.05), lr=5e-4, fused=device.type in ("cuda", "cpu")
        )
        self.device, self.precision = device, precision

    def autocast(self) -> Any:
        """The precision that the training has."""
        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        return torch.autocast(self.device.type, kinds[self.precision]) if self.precision in kinds else nullcontext()

    def step(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        """Forward, loss, backward, optimizer."""
        with self.autocast():
            logits = self.model(images)
        functional.cross_entropy(logits.float(), targets).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def timm_batches(
    folder: Path, choice: BackboneChoice, batch: int, workers: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The loader of timm for training, at its defaults but for size and normalisation."""
    from timm.data import ImageDataset, create_loader

    on_gpu = device.type == "cuda"
    loader = create_loader(
        Repeated(ImageDataset(str(folder)), 1000),
        input_size=(3, choice.input.size, choice.input.size),
        batch_size=batch,
        is_training=True,
        mean=choice.input.mean,
        std=choice.input.std,
        num_workers=workers,
        use_prefetcher=on_gpu,
        pin_memory=on_gpu,
        device=device,
    )
    for images, targets in loader:
        yield images.to(device, memory_format=torch.channels_last), targets.to(device)


def wait_for(device: torch.device) -> None:
    """Let the GPU finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Turns:
    """The progress callback of the training: times its steps, and lets the others have their turns between.

    Parameters
    ----------
    others : dict of str to callable
        Each does one step.
    rounds, warmup, steps, batch : int
    device : torch.device
    """

    others: dict[str, Callable[[], None]]
    rounds: int
    warmup: int
    steps: int
    batch: int
    device: torch.device
    times: dict[str, list[Clock]] = field(default_factory=dict)
    images: dict[str, list[int]] = field(default_factory=dict)
    _first: int = -1
    _begun: tuple[float, float, int] | None = None

    def __call__(self, done: int, total: int, message: str = "") -> None:
        """Take note of one report of the loop; on a GPU one comes every ten steps, after waiting for the device."""
        wait_for(self.device)
        now = (time.perf_counter(), time.process_time(), done)
        if self._first < 0:
            self._first = done - self.batch
        if self._begun is None:
            if done - self._first >= self.warmup * self.batch - self.batch // 2:
                self._begun = now
            return
        if done - self._begun[2] < self.steps * self.batch - self.batch // 2:
            return
        wall, cpu, before = self._begun
        self._note(OURS, Clock(now[0] - wall, now[1] - cpu), done - before)
        names = list(self.others)
        start = len(self.times[OURS]) % len(names)
        for name in names[start:] + names[:start]:
            for _ in range(self.warmup):
                self.others[name]()
            wait_for(self.device)
            self._note(name, Clock.of(lambda name=name: self._run(name)), self.steps * self.batch)
            # timm's workers go on until their queue is full; the next one is not to pay for it.
            time.sleep(0.5 if name == TIMM else 0.0)
        say(f"round {len(self.times[OURS])} of {self.rounds}")
        if len(self.times[OURS]) == self.rounds:
            raise Enough
        self._begun, self._first = None, done

    def _run(self, name: str) -> None:
        for _ in range(self.steps):
            self.others[name]()
        wait_for(self.device)

    def _note(self, name: str, clock: Clock, images: int) -> None:
        self.times.setdefault(name, []).append(clock)
        self.images.setdefault(name, []).append(images)

    def speeds(self, name: str, clock: str = "wall") -> list[float]:
        """Images per second, by round."""
        pairs = zip(self.images[name], self.times[name], strict=True)
        return [count / max(getattr(time_, clock), 1e-9) for count, time_ in pairs]


def profile(bare: Bare, choice: BackboneChoice, store: Path, arguments: Any, repeats: int) -> dict[str, float]:
    """Median milliseconds of each part of a hematokit step, the device waited for after each."""
    import numpy as np
    from torch.utils.tensorboard import SummaryWriter

    device = bare.device
    opened = open_store(store)
    data = select_cells(opened, [])
    feed = PatchFeed(opened, data.splits["train"].rows, choice.input, device, cache=arguments.cache)
    classifier = Classifier(bare.model, data.taxonomy, choice.input, opened.patch_size).to(device)
    spec = load_plugins().augmenters.get(arguments.augmenter)
    augmenter = spec.factory(**spec.resolve_options({}))
    labels = torch.from_numpy(data.splits["train"].labels).to(device)
    random = np.random.default_rng(arguments.seed)
    plan = [random.integers(0, len(labels), arguments.batch_size) for _ in range(repeats + 1)]
    parts: dict[str, list[float]] = {}
    last = time.perf_counter()

    def mark(name: str) -> None:
        nonlocal last
        wait_for(device)
        now = time.perf_counter()
        parts.setdefault(name, []).append(1e3 * (now - last))
        last = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        writer = SummaryWriter(folder)
        batches = feed.batches(plan)
        generator = torch.Generator(device=device)
        for step, positions in enumerate(plan):
            last = time.perf_counter()
            patches = next(batches)
            mark("read: patches from the cache or store")
            targets = labels[torch.from_numpy(positions).to(device)]
            generator.manual_seed(step)
            torch.manual_seed(step)
            mark("seeds and targets")
            images = patches.permute(0, 3, 1, 2).float().div_(255.0)
            mark("uint8 to float32")
            images = fit_to_input(images, choice.input)
            mark("resize, pad or crop to the input")
            images = augmenter(images, generator)
            mark("augmenter")
            images = ((images - classifier.mean) / classifier.std).contiguous(memory_format=torch.channels_last)
            mark("normalise, channels_last")
            with bare.autocast():
                logits = bare.model(images)
            mark("forward")
            loss = functional.cross_entropy(logits.float(), targets, reduction="sum")
            mark("loss")
            (loss / len(positions)).backward()
            mark("backward")
            torch.nn.utils.clip_grad_norm_(bare.model.parameters(), 1.0)
            mark("clip gradients")
            bare.optimizer.step()
            bare.optimizer.zero_grad(set_to_none=True)
            mark("optimizer")
            writer.add_scalar("step/loss", loss.item(), step)
            writer.add_scalar("step/lr", 0.0, step)
            mark("loss to the host, TensorBoard")
        writer.close()
    return {name: statistics.median(values[1:]) for name, values in parts.items()}


def main() -> None:
    parser = base_parser(__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="coatnet")
    parser.add_argument("--variant", default=None, help="default: femto on a CPU, the backbone's own on a GPU")
    parser.add_argument("--image-size", type=int, default=None)
    parser.add_argument("--batch-size", type=int, default=None, help="default: 16 on a CPU, 64 on a GPU")
    parser.add_argument("--augmenter", default="hematonet")
    parser.add_argument("--cache", default="auto", choices=["auto", "device", "host", "none"])
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument(
        "--warmup", type=int, default=None, help="steps at a turn's start; default: 1 on a CPU, 10 on a GPU"
    )
    parser.add_argument(
        "--steps", type=int, default=None, help="timed steps in a turn; default: 2 on a CPU, 50 on a GPU"
    )
    parser.add_argument("--workers", type=int, default=2, help="of timm's loader, and of hematokit's without a cache")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=None, help="torch's, 0 its own choice; default: 1 on a CPU")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    on_gpu = device.type == "cuda"
    # Two threads that wait for each other at every operation measure the other users of a shared machine.
    threads = arguments.threads if arguments.threads is not None else (0 if on_gpu else 1)
    if threads:
        torch.set_num_threads(threads)
    variant = arguments.variant or ("femto" if arguments.backbone == "coatnet" and not on_gpu else None)
    batch = arguments.batch_size = arguments.batch_size or (64 if on_gpu else 16)
    warmup = arguments.warmup or (10 if on_gpu else 1)
    steps = arguments.steps or (50 if on_gpu else 2)
    precision = arguments.precision
    if precision == "auto":
        precision = "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "fp32"
    choice = choose_backbone(arguments.backbone, variant, arguments.image_size)
    crops = crop_folder()
    with tempfile.TemporaryDirectory(prefix="hematokit-bench-") as temporary:
        folder = Path(temporary)
        say(f"importing {crops.name}")
        # In a process of its own: timm's workers are forked from this one, which must not have tensorstore's threads
        # yet.
        code = (
            "import sys, hematokit as h; h.import_crops(sys.argv[1], sys.argv[2], near_duplicates=False); "
            "h.split_store(sys.argv[2])"
        )
        subprocess.run([sys.executable, "-c", code, str(crops), str(folder / "crops.zarr")], check=True)
        batches = timm_batches(crops, choice, batch, arguments.workers, device)
        next(batches)
        classes = len({path.parent.name for path in crops.glob("*/*.jpg")})
        bare = Bare(choice, classes, device, precision, arguments.seed)
        size = choice.input.size
        images = torch.randn((batch, 3, size, size), device=device).contiguous(memory_format=torch.channels_last)
        targets = torch.randint(0, classes, (batch,), device=device)
        turns = Turns(
            {LIMIT: lambda: bare.step(images, targets), TIMM: lambda: bare.step(*next(batches))},
            arguments.rounds,
            warmup,
            steps,
            batch,
            device,
        )
        with suppress(Enough):
            train(
                folder / "crops.zarr",
                folder / "run",
                progress=turns,
                backbone=arguments.backbone,
                variant=variant,
                image_size=arguments.image_size,
                augmenter=arguments.augmenter,
                batch_size=batch,
                precision=precision,
                cache=arguments.cache,
                workers=arguments.workers,
                device=arguments.device,
                seed=arguments.seed,
                exclude="none",
                epochs=1,
                # One epoch longer than the measurement, so that no validation falls into a turn; a whole number of
                # batches, so that all of them are full.
                balance="oversample",
                target_per_class=batch * 1000,
            )
        say("timing the parts of a step")
        parts = profile(bare, choice, folder / "crops.zarr", arguments, 8 if not on_gpu else 50)
    result: dict[str, Any] = {
        "machine": machine(),
        "versions": versions("torch", "timm", "accelerate", "tensorstore", "torchvision"),
        "settings": {
            "backbone": f"{choice.spec.name}:{choice.variant_name}",
            "image_size": size,
            "batch": batch,
            "precision": precision,
            "device": arguments.device,
            "threads": torch.get_num_threads(),
            "augmenter": arguments.augmenter,
            "cache": arguments.cache,
            "timm_workers": arguments.workers,
            "rounds": arguments.rounds,
            "warmup_steps": warmup,
            "timed_steps": steps,
            "seed": arguments.seed,
        },
        "images_per_second": {name: spread(turns.speeds(name)) for name in turns.times},
    }
    ratios = {}
    for clock in ("wall", "cpu"):
        ours, limit, timm = (turns.speeds(name, clock) for name in (OURS, LIMIT, TIMM))
        ratios[f"{OURS} / {LIMIT}, {clock}"] = spread([a / b for a, b in zip(ours, limit, strict=True)])
        if clock == "wall":  # the processor time of timm's workers is not this process's
            ratios[f"{TIMM} / {LIMIT}, {clock}"] = spread([a / b for a, b in zip(timm, limit, strict=True)])
            ratios[f"{OURS} / {TIMM}, {clock}"] = spread([a / b for a, b in zip(ours, timm, strict=True)])
    result["ratios"] = ratios
    result["parts_ms"] = parts
    whole = sum(parts.values())
    bare_parts = sum(parts[name] for name in ("forward", "loss", "backward", "optimizer"))
    result["limit_share_of_parts"] = bare_parts / whole
    ratio = ratios[f"{OURS} / {LIMIT}, wall"]["median"]
    result["goal"] = {"ratio": ratio, "wanted": GOAL, "met": ratio >= GOAL}
    rows = [["contestant", "images/s", "quartiles"]]
    for name, speed in result["images_per_second"].items():
        rows.append([name, f"{speed['median']:.1f}", f"{speed['low']:.1f}-{speed['high']:.1f}"])
    lines = [table(rows), ""]
    rows = [["ratio within a round", "median", "quartiles"]]
    rows += [[name, f"{r['median']:.3f}", f"{r['low']:.3f}-{r['high']:.3f}"] for name, r in ratios.items()]
    lines += [table(rows), ""]
    rows = [["part of a hematokit step, each waited for", "ms", "share"]]
    rows += [[name, f"{ms:.2f}", f"{100 * ms / whole:.2f} %"] for name, ms in parts.items()]
    lines += [table(rows), f"forward, loss, backward and optimizer together: {100 * bare_parts / whole:.2f} %", ""]
    for clock in ("wall", "cpu"):
        found = ratios[f"{OURS} / {LIMIT}, {clock}"]
        lines.append(f"Goal, hematokit at least {GOAL} of the limit, {clock} time: {verdict(found, GOAL)}")
    finish(arguments, result, lines)


if __name__ == "__main__":
    main()
