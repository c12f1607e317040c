"""Training of a classifier, from the settings to the bundle: ``hematokit train``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch

from hematokit.commands import CommandResult
from hematokit.errors import ModelError, TrainingError, shell_word
from hematokit.evaluation.calibration import fit_temperature
from hematokit.files import write_json
from hematokit.models.bundle import save_bundle
from hematokit.models.classifier import Classifier, describe_device, resolve_device
from hematokit.models.config import SplitRecord, TrainingRecord
from hematokit.models.construction import BackboneChoice, build_backbone, choose_backbone
from hematokit.overrides import TrainOverrides
from hematokit.progress import Progress, no_log, no_progress
from hematokit.store import PatchStore, open_store
from hematokit.training.augmenters import make_augmenters, recorded_options
from hematokit.training.data import PatchFeed, TrainingData, select_cells
from hematokit.training.loop import Loop, TrainingSetup, stop_on_signals
from hematokit.training.runs import RunFolder, environment
from hematokit.training.settings import TrainSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["TrainResult", "facts_at_start", "train"]

# Settings that may differ when a run is resumed: none of these changes what is computed.
RESUMABLE = {"epochs", "stop_after", "device", "workers", "cache", "compile", "patience", "output", "store"}


@dataclass(frozen=True)
class TrainResult(CommandResult):
    """Result of a training.

    Attributes
    ----------
    run : Path
        The run folder.
    bundle : Path or None
        The bundle, if the training is finished.
    finished : bool
        False if the training was stopped; ``resume=True`` continues it.
    epochs : int
        Epochs completed.
    best_epoch : int
        The epoch whose weights are in the bundle, counted from 1.
    best : float or None
        Its value of the monitored validation metric.
    seconds : float
        Time spent on training, over all calls.
    warnings : tuple of str
        Doubts about the training cells, one line each.
    """

    run: Path
    bundle: Path | None
    finished: bool
    epochs: int
    best_epoch: int
    best: float | None
    seconds: float
    warnings: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the files written and the next command."""
        if self.finished:
            return [
                f"Bundle: {self.bundle} (epoch {self.best_epoch} of {self.epochs})",
                f"Next: hematokit evaluate {shell_word(self.run)}",
            ]
        return [
            f"Stopped after {self.epochs} epochs. Continue with: "
            f"hematokit train --resume --output {shell_word(self.run)}"
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes, paths as text."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def train(
    store: str | Path | TrainSettings | None = None,
    output: str | Path | None = None,
    *,
    settings: TrainSettings | Mapping[str, Any] | None = None,
    resume: bool = False,
    progress: Progress = no_progress,
    log: Callable[[str], None] | None = None,
    command: Sequence[str] = (),
    **overrides: Unpack[TrainOverrides],
) -> TrainResult:
    """Train a classifier on the training split of a store.

    ``train(TrainSettings(...))``, ``train(store, output, epochs=3)`` and ``hematokit train --config`` do the same.

    Parameters
    ----------
    store : path or TrainSettings
        Patch store with a split; or all settings, store and output included. Not needed with `resume`: the run
        records its store.
    output : path
        Run folder to write; with `resume`, the run to continue.
    settings : TrainSettings or mapping, optional
        Settings; `overrides` take precedence.
    resume : bool
        Continue from the last checkpoint of `output`.
    progress : Progress
        Called after each step with the number of cells processed.
    log : callable, optional
        Called with one line of text after each epoch and for each message.
    command : sequence of str, optional
        The command line, recorded in the run and its bundle; a resumed run keeps its first one.
    **overrides
        Fields of `TrainSettings`.

    Returns
    -------
    TrainResult

    Raises
    ------
    TrainingError, StoreError, PluginError, ModelError
        One line each: settings that contradict each other, a store that cannot be trained on, a plugin or weights
        that are missing, a loss that is no longer finite.

    Examples
    --------
    >>> result = train("bm.zarr", "runs/tiny", backbone="timm:test_vit", epochs=1, image_size=160)
    >>> result.finished
    True
    """
    if isinstance(store, TrainSettings):
        settings, store = TrainSettings.combine(store, settings), None
    given = settings.model_dump(exclude_unset=True) if isinstance(settings, TrainSettings) else dict(settings or {})
    run, config, before = _settings(store, output, given | overrides, resume)
    with _accelerator(config) as accelerator, stop_on_signals() as request:
        main = accelerator.is_main_process
        say = log if log is not None and main else no_log
        shown = progress if main else no_progress

        # The data: classes and cells.
        patches = open_store(config.store)
        data = select_cells(patches, config.exclude, config.one_vs_rest)
        warnings = _warnings(data, patches.path.resolve())

        # The model, with its initial weights unless there is a checkpoint to resume from.
        choice = choose_backbone(config.backbone, config.variant, config.image_size, config.backbone_options)
        augmenter = make_augmenters(config.augmenter, config.augmenter_options)
        going_on = resume and run.checkpoint("last").is_file()
        classifier = _first_model(config, choice, data, patches.patch_size, trained=going_on)
        classifier.to(accelerator.device).to(memory_format=torch.channels_last)

        # The run folder: settings, and the metadata known before the first step.
        record = facts_at_start(patches, data, choice, accelerator.device) | {"processes": accelerator.num_processes}
        if words := before.command if resume else list(command):
            record |= {"command": words}
        if resume:
            _same_data(run, before, record)
        if main:
            (run.write_config if resume else run.start)(config, record)
        _announce(say, data, choice, record, warnings)
        accelerator.wait_for_everyone()

        # The loop: epochs of steps, validation, checkpoints.
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
        if "val" not in feeds:
            say("No validation cells: the epoch with the lowest training loss is kept, and nothing is calibrated")
        setup = TrainingSetup(config, classifier, data, feeds, augmenter, accelerator, run)
        loop = Loop(setup, request, shown, say)
        if going_on:
            loop.resume()
        elif resume:
            say("The run has no checkpoint yet: starting it from the beginning")
        finished = loop.run()

        # The best epoch, evaluated on the validation cells, calibrated, and written as a bundle.
        if finished:
            figures = _best_epoch(loop)
            if main:
                _write_bundle(loop, choice, record, figures)
            accelerator.wait_for_everyone()
        state = loop.state
        return TrainResult(
            run=run.path,
            bundle=run.bundle if finished else None,
            finished=finished,
            epochs=state.epoch,
            best_epoch=state.best_epoch,
            best=state.best,
            seconds=state.seconds,
            warnings=tuple(warnings),
        )


# --- settings ---------------------------------------------------------------------------------------------------------


def _settings(
    store: str | Path | None, output: str | Path | None, given: dict[str, Any], resume: bool
) -> tuple[RunFolder, TrainSettings, TrainingRecord]:
    """Return the run folder, the settings, and the record of the first start of a resumed run."""
    output = given.get("output") if output is None else output
    if output is None:
        raise TrainingError("no run folder given; name it with --output")
    given["output"] = str(output)
    if store is not None:
        given["store"] = str(store)
    run = RunFolder(output)
    if resume:
        return run, *_resumed(run, given)
    if "store" not in given:
        raise TrainingError("no store given; name the patch store that hematokit import wrote")
    return run, TrainSettings.combine(given), TrainingRecord()


def _resumed(run: RunFolder, given: dict[str, Any]) -> tuple[TrainSettings, TrainingRecord]:
    settings, facts = run.read_config()
    before = TrainSettings.combine(settings)
    given = {key: value for key, value in given.items() if value is not None}
    if "store" not in given and facts.store and Path(facts.store).is_dir():
        # The path in the settings may be relative to another working directory.
        given["store"] = facts.store
    # stop_after is for one call only.
    config = TrainSettings.combine(settings, {"stop_after": None}, given)
    for key in TrainSettings.model_fields:
        if key not in RESUMABLE and getattr(before, key) != getattr(config, key):
            raise TrainingError(
                f"run {run.path} was started with {key}={getattr(before, key)!r}, which --resume cannot change to "
                f"{getattr(config, key)!r}; drop that option or start a new run"
            )
    return config, facts


@contextmanager
def _accelerator(config: TrainSettings) -> Iterator[Accelerator]:
    """Yield accelerate's Accelerator for one training, and reset its global state afterwards.

    Its state is global to the process: without the reset a second training would silently use the first one's device.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    device = resolve_device(config.device)
    if distributed and ":" in config.device:
        raise TrainingError(f"device {config.device!r} is one device, but there are several processes; use cuda or cpu")
    precision = config.precision
    if precision == "auto":
        # On CPUs without matrix units bf16 is some ten times slower than fp32.
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise ModelError("precision fp16 needs a GPU; use fp32 on the CPU")
    AcceleratorState._reset_state(reset_partial_state=not distributed)
    stated = os.environ.get("ACCELERATE_TORCH_DEVICE")
    if not distributed:
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    try:
        yield Accelerator(cpu=device.type == "cpu", mixed_precision="no" if precision == "fp32" else precision)
    finally:
        AcceleratorState._reset_state(reset_partial_state=not distributed)
        if stated is None:
            os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
        else:
            os.environ["ACCELERATE_TORCH_DEVICE"] = stated


# --- data and first weights -------------------------------------------------------------------------------------------


def _warnings(data: TrainingData, store: Path) -> list[str]:
    split = f"hematokit split {shell_word(store)}"
    found = [data.pixel_size_warning()]
    if data.outside_split:
        found.append(
            f"{data.outside_split} labelled cells are in no split and are not used; to divide them too: {split}"
        )
    if data.divided_groups:
        found.append(
            f"{data.divided_groups} groups of duplicates have cells on several sides of the split, because cells were "
            f"added after it, so figures may be too good; to split again: {split}"
        )
    return [*filter(None, found)]


def _first_model(
    config: TrainSettings, choice: BackboneChoice, data: TrainingData, patch_size: int, *, trained: bool
) -> Classifier:
    """Build the classifier with initial weights: random from the seed, or, unless `trained`, those of the settings."""
    torch.manual_seed(config.seed)
    backbone = build_backbone(
        choice,
        len(data.taxonomy),
        pretrained=config.pretrained and not trained,
        weights=None if trained else config.weights,
    )
    return Classifier(backbone, data.taxonomy, choice.input, patch_size)


# --- the run folder ---------------------------------------------------------------------------------------------------


def facts_at_start(
    store: PatchStore, data: TrainingData, choice: BackboneChoice, device: torch.device
) -> TrainingRecord:
    """Return the training metadata of a bundle that are known before the first step.

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
        say(f"{data.unlabelled} cells of the store have no label and are not used")
    for warning in warnings:
        say(f"Warning: {warning}")


# --- the bundle -------------------------------------------------------------------------------------------------------


def _best_epoch(loop: Loop) -> dict[str, float]:
    """Load the best epoch, fit its temperature, and return its metrics on the validation cells."""
    classifier = loop.accelerator.unwrap_model(loop.model, keep_torch_compile=False)
    best = "best" if loop.run_folder.checkpoint("best").is_file() else "last"
    loop.run_folder.load_checkpoint(best, classifier)
    if "val" not in loop.feeds:
        return {}
    logits, figures = loop.validate()
    classifier.temperature = fit_temperature(logits, loop.data.splits["val"].labels)
    return figures


def _write_bundle(loop: Loop, choice: BackboneChoice, record: TrainingRecord, figures: dict[str, float]) -> None:
    """Write the bundle, and the summary of the run beside it."""
    run, config, state = loop.run_folder, loop.config, loop.state
    classifier = loop.accelerator.unwrap_model(loop.model, keep_torch_compile=False)
    training = record | {
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
            f"bundle {run.bundle} cannot be written ({error.strerror}); free disk space there, then use --resume"
        ) from error
    summary = {
        "epochs": state.epoch,
        "best_epoch": state.best_epoch,
        "monitor": config.monitor,
        "best": state.best,
        "seconds": round(state.seconds, 1),
        "validation": figures,
    }
    write_json(run.path / "summary.json", summary)
