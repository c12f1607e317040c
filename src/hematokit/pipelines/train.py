"""Training from start to bundle; what ``hematokit train`` and `hematokit.train` call.

What is known of a training before it begins.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hematokit.errors import ModelError, TrainingError
from hematokit.evaluation.calibration import fit_temperature
from hematokit.files import shell_word, write_json
from hematokit.models.bundle import save_bundle
from hematokit.models.classifier import Classifier
from hematokit.models.config import SplitRecord, TrainingRecord
from hematokit.models.construction import BackboneChoice, build_backbone, choose_backbone
from hematokit.models.devices import describe_device, resolve_device
from hematokit.progress import Progress, no_progress
from hematokit.store import open_store
from hematokit.training.augmenters import make_augmenters, recorded_options
from hematokit.training.data import PatchFeed, TrainingData, select_cells
from hematokit.training.loop import Loop, TrainingSetup, stop_on_signals
from hematokit.training.runs import RunFolder, environment
from hematokit.training.settings import TrainConfig, make_config

if TYPE_CHECKING:
    import torch

    from hematokit.models.construction import BackboneChoice
    from hematokit.store import PatchStore
    from hematokit.training.data import TrainingData

__all__ = ["TrainResult", "facts_at_start", "train"]


def facts_at_start(
    store: PatchStore, data: TrainingData, choice: BackboneChoice, device: torch.device
) -> TrainingRecord:
    """Return what a bundle's ``training`` records wherever it comes from.

    Parameters
    ----------
    store : PatchStore
    data : TrainingData
    choice : BackboneChoice
    device : torch.device

    Returns
    -------
    TrainingRecord
        For ``config.yaml`` and `hematokit.models.save_bundle`; a plugin that trains in its own way adds its own
        entries: ``record | {"penalty": 0.1}``.
    """
    return TrainingRecord(
        store=str(store.path.resolve()),
        store_hash=store.content_hash,
        split=SplitRecord.model_validate(store.split_info or {}),
        backbone=choice.full_name,
        backbone_package=f"{choice.package} {choice.version}",
        image_size=choice.input.size,
        classes=list(data.taxonomy.codes),
        counts=data.counts(),
        left_out=data.left_out,
        pixel_size_um=data.pixel_size_um,
        device=describe_device(device),
        versions=environment(),
    )


# What may differ between the start of a run and its resumption: none of these changes what is computed.
RESUMABLE = {"epochs", "stop_after", "device", "workers", "cache", "compile", "patience", "output", "store"}


@dataclass(frozen=True)
class TrainResult:
    """What became of a training.

    Attributes
    ----------
    run : Path
        The run folder.
    bundle : Path or None
        The bundle, if the training is finished.
    finished : bool
        False if it was stopped; ``resume=True`` goes on.
    epochs : int
        Epochs done.
    best_epoch : int
        The epoch in the bundle, from 1.
    best : float or None
        Its monitored figure on the validation split.
    seconds : float
        Time trained, over all starts.
    warnings : tuple of str
        What is doubtful about the cells it was trained on, one line each.
    """

    run: Path
    bundle: Path | None
    finished: bool
    epochs: int
    best_epoch: int
    best: float | None
    seconds: float
    warnings: tuple[str, ...] = ()


def train(
    store: str | Path | None = None,
    output: str | Path | None = None,
    *,
    resume: bool = False,
    progress: Progress = no_progress,
    log: Callable[[str], None] | None = None,
    settings: Mapping[str, Any] | None = None,
    command: Sequence[str] = (),
    **more: Any,
) -> TrainResult:
    """Train a classifier on a store's training split.

    Parameters
    ----------
    store : path
        Patch store with a split. Needed unless `resume` (the run remembers it).
    output : path
        Run folder to write; with `resume`, the one to go on with.
    resume : bool
        Go on from the last checkpoint of `output`.
    progress : Progress
        Told after each step, in cells.
    log : callable, optional
        Given a line for people after each epoch and where something needs saying.
    command : sequence of str, optional
        The command line that asked for it, recorded in the run and its bundle; a resumed run keeps its first one.
    settings, **more
        Fields of `hematokit.training.settings.TrainConfig`.

    Returns
    -------
    TrainResult

    Raises
    ------
    TrainingError, StoreError, PluginError, ModelError
        One line each: settings that make no sense, a store that cannot be trained on, a plugin or weights that are
        missing, a loss that is no longer finite.

    Examples
    --------
    >>> result = hematokit.train("bm.zarr", "runs/coatnet", backbone="coatnet", epochs=30)  # doctest: +SKIP
    """
    given = {**(settings or {}), **more}
    if output is None:
        output = given.get("output")
    if output is None:
        raise TrainingError("no run folder given; name it with --output")
    given["output"] = str(output)
    if store is not None:
        given["store"] = str(store)
    run = RunFolder(output)
    config, facts = _resumed(run, given) if resume else (_fresh(given), TrainingRecord())
    say = log if log is not None else _quiet
    with _accelerator(config) as accelerator, stop_on_signals() as request:
        main = accelerator.is_main_process
        patches = open_store(config.store)
        data = select_cells(patches, config.exclude, config.one_vs_rest)
        choice = choose_backbone(config.backbone, config.variant, config.image_size, config.backbone_options)
        augmenter = make_augmenters(config.augmenter, config.augmenter_options)
        torch.manual_seed(config.seed)
        # A run that was stopped before its first checkpoint has nothing to go on from, so it starts as it would have.
        going_on = resume and run.checkpoint("last").is_file()
        backbone = build_backbone(
            choice,
            len(data.taxonomy),
            pretrained=config.pretrained and not going_on,
            weights=None if going_on else config.weights,
        )
        classifier = Classifier(backbone, data.taxonomy, choice.input, patches.patch_size)
        classifier.to(accelerator.device).to(memory_format=torch.channels_last)
        found = facts_at_start(patches, data, choice, accelerator.device) | {"processes": accelerator.num_processes}
        if words := facts.command if resume else list(command):
            found |= {"command": words}
        if resume:
            _same_data(run, facts, found)
        warnings = _warnings(data, patches.path.resolve())
        if main:
            if resume:
                run.write_config(config, found)
            else:
                run.start(config, found)
            _announce(say, data, choice, found, warnings)
        accelerator.wait_for_everyone()
        shown = progress if main else no_progress
        feeds = {
            name: PatchFeed(
                patches,
                data.splits[name].rows,
                choice.input,
                accelerator.device,
                cache=config.cache,
                workers=config.workers,
                progress=shown,
            )
            for name in ("train", "val")
            if len(data.splits[name])
        }
        if "val" not in feeds and main:
            say("No validation cells: the epoch with the lowest training loss is kept, and nothing is calibrated")
        setup = TrainingSetup(config, classifier, data, feeds, augmenter, accelerator, run)
        loop = Loop(setup, request, shown, say if main else _quiet)
        if going_on:
            loop.resume()
        elif resume and main:
            say("The run has no checkpoint yet: starting it from the beginning")
        finished = loop.run()
        bundle = None
        if finished:
            bundle = _finish(run, loop, choice, config, found, main)
        state = loop.state
        return TrainResult(
            run.path,
            bundle,
            finished,
            state.epoch,
            state.best_epoch,
            state.best,
            state.seconds,
            tuple(warnings),
        )


def _quiet(line: str) -> None:
    """Say nothing."""


def _fresh(given: dict[str, Any]) -> TrainConfig:
    if "store" not in given:
        raise TrainingError("no store given; name the patch store that hematokit import wrote")
    return make_config(given)


def _resumed(run: RunFolder, given: dict[str, Any]) -> tuple[TrainConfig, TrainingRecord]:
    settings, facts = run.read_config()
    before = make_config(settings)
    given = {key: value for key, value in given.items() if value is not None}
    if "store" not in given and facts.store and Path(facts.store).is_dir():
        # The path that was typed may be relative to another working directory.
        given["store"] = facts.store
    # How long the last call was meant to run says nothing about this one.
    config = make_config(settings, {"stop_after": None}, given)
    for key in TrainConfig.model_fields:
        if key not in RESUMABLE and getattr(before, key) != getattr(config, key):
            raise TrainingError(
                f"run {run.path} was started with {key}={getattr(before, key)!r}, which --resume cannot change to "
                f"{getattr(config, key)!r}; drop that option or start a new run"
            )
    return config, facts


class _accelerator:
    """accelerate's Accelerator, made for one training and forgotten after it.

    Its state is global to the process; left behind, a second training would silently get the first one's device.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.restore: str | None = None

    def __enter__(self) -> Any:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        config = self.config
        distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
        device = resolve_device(config.device)
        if distributed and ":" in config.device:
            raise TrainingError(
                f"device {config.device!r} is one device, but there are several processes; use cuda or cpu"
            )
        precision = config.precision
        if precision == "auto":
            # On CPUs without matrix units bf16 is some ten times slower than fp32.
            precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
        if precision == "fp16" and device.type == "cpu":
            raise ModelError("precision fp16 needs a GPU; use fp32 on the CPU")
        AcceleratorState._reset_state(reset_partial_state=not distributed)
        self.restore = os.environ.get("ACCELERATE_TORCH_DEVICE")
        if not distributed:
            os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
        return Accelerator(
            cpu=device.type == "cpu",
            mixed_precision="no" if precision == "fp32" else precision,
        )

    def __exit__(self, *error: object) -> None:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=int(os.environ.get("WORLD_SIZE", "1")) == 1)
        if self.restore is None:
            os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
        else:
            os.environ["ACCELERATE_TORCH_DEVICE"] = self.restore


def _same_data(run: RunFolder, before: TrainingRecord, now: TrainingRecord) -> None:
    for what, then, found in (
        ("cells or labels", before.store_hash, now.store_hash),
        ("split", before.split, now.split),
        ("classes", before.classes, now.classes),
    ):
        if then != found:
            raise TrainingError(
                f"the store's {what} changed since run {run.path} was started, so it cannot be resumed; start a new run"
            )


def _announce(
    say: Callable[[str], None],
    data: TrainingData,
    choice: BackboneChoice,
    facts: TrainingRecord,
    warnings: Sequence[str],
) -> None:
    sizes = ", ".join(f"{len(part)} {name}" for name, part in data.splits.items())
    say(f"{facts.backbone} at {choice.input.size} px on {facts.device}: {len(data.taxonomy)} classes, {sizes} cells")
    if data.left_out:
        listed = ", ".join(f"{code} ({count})" for code, count in sorted(data.left_out.items()))
        say(f"Left out: {listed}; --exclude none keeps reject classes in")
    if data.unlabelled:
        say(f"{data.unlabelled} cells of the store have no label and take no part")
    for warning in warnings:
        say(f"Warning: {warning}")


def _warnings(data: TrainingData, store: Path) -> list[str]:
    split = f"hematokit split {shell_word(store)}"
    found = [data.pixel_size_warning()]
    if data.outside_split:
        found.append(
            f"{data.outside_split} labelled cells are in no split and take no part; to divide them too: {split}"
        )
    if data.divided_groups:
        found.append(
            f"{data.divided_groups} groups of duplicates have cells on several sides of the split, because cells were "
            f"added after it, so figures may be too good; to split again: {split}"
        )
    return [*filter(None, found)]


def _finish(
    run: RunFolder, loop: Loop, choice: BackboneChoice, config: TrainConfig, facts: TrainingRecord, main: bool
) -> Path:
    """Load the best epoch, fit the temperature, write the bundle."""
    classifier = loop.accelerator.unwrap_model(loop.model, keep_torch_compile=False)
    best = "best" if run.checkpoint("best").is_file() else "last"
    run.load_checkpoint(best, classifier)
    figures: dict[str, float] = {}
    if "val" in loop.feeds:
        logits, figures = loop.validate()
        classifier.temperature = fit_temperature(logits, loop.data.splits["val"].labels)
    if main:
        state = loop.state
        training = facts | {
            "augmenter": config.augmenter,
            "balance": config.balance,
            "exclude": sorted(loop.data.left_out) if config.exclude is None else config.exclude,
            "one_vs_rest": config.one_vs_rest,
            "seed": config.seed,
            "epochs": state.epoch,
            "best_epoch": state.best_epoch,
            "monitor": config.monitor,
            "validation": figures,
            "seconds": round(state.seconds, 1),
            "settings": {
                **config.model_dump(),
                "backbone_options": choice.spec.portable_options(config.backbone_options),
                "augmenter_options": recorded_options(config.augmenter, config.augmenter_options),
            },
        }
        try:
            save_bundle(run.bundle, classifier, choice, training, pixel_size_um=loop.data.pixel_size_um)
        except OSError as error:
            raise TrainingError(
                f"bundle {run.bundle} cannot be written ({error.strerror}); make room there, then --resume"
            ) from error
        write_json(run.path / "summary.json", _summary(loop, figures))
    loop.accelerator.wait_for_everyone()
    return run.bundle


def _summary(loop: Loop, figures: dict[str, float]) -> dict[str, Any]:
    state = loop.state
    return {
        "epochs": state.epoch,
        "best_epoch": state.best_epoch,
        "monitor": loop.config.monitor,
        "best": state.best,
        "seconds": round(state.seconds, 1),
        "validation": figures,
    }
