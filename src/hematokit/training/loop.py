"""The training loop: epochs of steps, validation, checkpoints.

Two rules make a resumed training the same as one that was never stopped. Chance (augmentation, dropout, the order of
the cells) is seeded for every step from (seed, epoch, step, process), so there is no generator state to keep.
And the learning rate is a function of the step alone. Ctrl-C and SIGTERM are a request to stop after the step that is
under way.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from hematokit.errors import TrainingError
from hematokit.evaluation.metrics import validation_scores
from hematokit.models.classifier import Classifier
from hematokit.progress import Progress
from hematokit.training.augmenters import Augmenters
from hematokit.training.balance import BalancedLoss, epoch_batches, epoch_order
from hematokit.training.data import PatchFeed, TrainingData
from hematokit.training.runs import Progressed, RunFolder
from hematokit.training.settings import TrainSettings

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["Loop", "StopRequest", "TrainingSetup", "learning_rate", "stop_on_signals"]


CHECK_EVERY = 10
"""Steps between looks at the loss where a look costs something (a GPU, several processes)."""


@dataclass(frozen=True)
class TrainingSetup:
    """Everything that one training consists of.

    Attributes
    ----------
    config : TrainSettings
    classifier : Classifier
        On the accelerator's device.
    data : TrainingData
    feeds : dict of str to PatchFeed
        ``train`` and, where there are validation cells, ``val``.
    augmenter : Augmenters
    accelerator : Accelerator
    run : RunFolder
    """

    config: TrainSettings
    classifier: Classifier
    data: TrainingData
    feeds: dict[str, PatchFeed]
    augmenter: Augmenters
    accelerator: Accelerator
    run: RunFolder


class Loop:
    """One training under way.

    Parameters
    ----------
    setup : TrainingSetup
    request : StopRequest
        Looked at after each step.
    progress : Progress
        Called after each step with the number of cells that are done.
    log : callable
        Called with a line of text after each epoch and where something needs saying.

    Attributes
    ----------
    state : Progressed
        How far the training has come.
    """

    def __init__(
        self, setup: TrainingSetup, request: StopRequest, progress: Progress, log: Callable[[str], None]
    ) -> None:
        from timm.optim import param_groups_weight_decay

        config, classifier, data, accelerator = setup.config, setup.classifier, setup.data, setup.accelerator
        self.config = config
        self.classifier = classifier
        self.data = data
        self.feeds = setup.feeds
        self.augmenter = setup.augmenter
        self.accelerator = accelerator
        self.run_folder = setup.run
        self.request = request
        self.progress = progress
        self.log = log
        self.state = Progressed()
        self.device = accelerator.device
        self.writer: SummaryWriter | None = None
        if config.compile:
            # In place, so that names in the state stay what they are.
            classifier.backbone.compile()
        # Norms and biases are not decayed: shrinking them regularises nothing.
        groups = param_groups_weight_decay(classifier, config.weight_decay)
        # One fused kernel saves launches on a GPU, and is some three times faster on a CPU.
        optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=self.device.type in ("cuda", "cpu"))
        self.model, self.optimizer = accelerator.prepare(classifier, optimizer)
        labels = data.splits["train"].labels
        self.train_labels = torch.from_numpy(labels).to(self.device)
        self.loss = BalancedLoss(
            labels, len(data.taxonomy), balance=config.balance, label_smoothing=config.label_smoothing
        ).to(self.device)

    @property
    def planned(self) -> int:
        """Epochs to do in this call."""
        return min(self.config.epochs, self.config.stop_after or self.config.epochs)

    def run(self) -> bool:
        """Train until the planned end, an early stop, or a request.

        Returns
        -------
        bool
            Whether the training is finished; false if it was stopped and can be resumed.

        Raises
        ------
        TrainingError
            If the loss is no longer finite, memory does not suffice, or a checkpoint cannot be written.
        """
        if self.accelerator.is_main_process:
            from torch.utils.tensorboard import SummaryWriter

            # Events of steps that a resumed training does again are hidden by the purge, and no others.
            done = self.state.epoch * len(self._batches()) + self.state.step
            self.writer = SummaryWriter(str(self.run_folder.path), purge_step=done + 1)
        try:
            # A resumed run may already have done all epochs now requested.
            self.state.finished = self._complete()
            while not self.state.finished and self.state.epoch < self.planned:
                if not self._epoch():
                    self._save("last")
                    return False
            return self.state.finished
        finally:
            if self.writer is not None:
                self.writer.close()

    def resume(self) -> None:
        """Take up the last checkpoint."""
        inner = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        optimizer = _inner_optimizer(self.optimizer)
        self.state = self.run_folder.load_checkpoint("last", inner, optimizer, self.accelerator.scaler)
        if self.accelerator.is_main_process:
            # Write what a process that was killed between these files did not write.
            self._write_epoch()
        self.accelerator.wait_for_everyone()

    def _save(self, name: str) -> None:
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            inner = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            optimizer = _inner_optimizer(self.optimizer)
            self.run_folder.save_checkpoint(name, inner, optimizer, self.state, self.accelerator.scaler)
        self.accelerator.wait_for_everyone()

    def _write_epoch(self) -> None:
        """Write what follows from the checkpoint of an epoch's end: a copy of the best one, and the figures."""
        state = self.state
        if state.step == 0 and state.epoch == state.best_epoch:
            self.run_folder.copy_checkpoint("last", "best")
        self.run_folder.write_metrics(state.rows)

    def _complete(self) -> bool:
        """Whether all epochs are done, or `patience` of them were no better."""
        state, patience = self.state, self.config.patience
        stops = bool(patience) and state.best is not None and state.epoch - state.best_epoch >= patience
        return stops or state.epoch >= self.config.epochs

    def _batches(self) -> list[npt.NDArray[np.int64]]:
        """Positions of the cells of each batch of the current epoch."""
        order = epoch_order(
            self.data.splits["train"].labels,
            epoch=self.state.epoch,
            seed=self.config.seed,
            oversample=self.config.balance == "oversample",
            target=self.config.target_per_class,
        )
        return epoch_batches(order, self.config.batch_size)

    def _epoch(self) -> bool:
        """Do the rest of the current epoch; false if a stop was asked for in it."""
        config, state = self.config, self.state
        batches = self._batches()
        if self.accelerator.num_processes > min(map(len, batches)):
            raise TrainingError(
                f"batch size {config.batch_size} is less than one cell for each of {self.accelerator.num_processes} "
                "processes; raise --batch-size"
            )
        shares = [self._share(batch) for batch in batches]
        begun, done_before = time.monotonic(), state.total_cells
        images = self.feeds["train"].batches(shares[state.step :])
        self.model.train()
        # Summed on the device: asking for the number after every step would make a GPU wait.
        pending, pending_cells = torch.zeros((), device=self.device), 0
        for step in range(state.step, len(batches)):
            rate = learning_rate(
                state.epoch * len(batches) + step,
                per_epoch=len(batches),
                epochs=config.epochs,
                warmup=config.warmup,
                peak=config.lr,
            )
            pending += self._step(next(images), shares[step], len(batches[step]), step, rate)
            pending_cells += len(batches[step])
            look = self.accelerator.num_processes == 1 and self.device.type == "cpu"
            if look or (step + 1) % CHECK_EVERY == 0 or step + 1 == len(batches):
                total, stop = self._agree(pending)
                if not math.isfinite(total):
                    raise self._not_finite(f"the loss is not finite at epoch {state.epoch + 1}, step {step + 1}")
                state.total_loss += total
                state.total_cells += pending_cells
                state.step = step + 1
                pending, pending_cells = torch.zeros((), device=self.device), 0
                self._report(sum(map(len, batches)), len(batches), rate, begun, done_before)
                if stop and step + 1 < len(batches):
                    state.seconds += time.monotonic() - begun
                    return False
        self._end_epoch(rate, time.monotonic() - begun, state.total_cells - done_before)
        # The wish all processes agreed on at the last step: asked one by one, they could part ways here.
        return not stop or state.finished or state.epoch >= self.planned

    def _share(self, batch: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the part of a batch that is this process's."""
        processes, mine = self.accelerator.num_processes, self.accelerator.process_index
        share: npt.NDArray[np.int64] = np.array_split(batch, processes)[mine]
        return share

    def _step(
        self, patches: torch.Tensor, positions: npt.NDArray[np.int64], whole: int, step: int, rate: float
    ) -> torch.Tensor:
        """One optimizer step; returns the summed loss of this process's cells.

        A batch that does not fit into a GPU's memory is done again in twice as many parts.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        while True:
            try:
                return self._attempt(patches, positions, whole, step)
            except torch.OutOfMemoryError as error:
                parts = self.state.accumulation * 2
                if self.accelerator.num_processes > 1 or parts > len(positions):
                    raise TrainingError(
                        f"not enough memory on {self.device} even for {len(positions) // self.state.accumulation} "
                        "cells at a time; lower --batch-size or --image-size"
                    ) from error
                self.state.accumulation = parts
            # Outside the handler, where the failed step's tensors are no longer held by the exception.
            self.optimizer.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.log(
                f"Out of memory: batches of {self.config.batch_size} are now computed in {self.state.accumulation} "
                "parts with accumulated gradients"
            )

    def _attempt(self, patches: torch.Tensor, positions: npt.NDArray[np.int64], whole: int, step: int) -> torch.Tensor:
        accelerator, parts = self.accelerator, self.state.accumulation
        chance = np.random.SeedSequence([self.config.seed, self.state.epoch, step, accelerator.process_index])
        seed = int(chance.generate_state(1, np.uint32)[0])
        torch.manual_seed(seed)
        generator = torch.Generator(device=self.device).manual_seed(seed)
        targets = self.train_labels[torch.from_numpy(positions).to(self.device)]
        summed = torch.zeros((), device=self.device)
        for part, (chunk, target) in enumerate(
            zip(patches.tensor_split(parts), targets.tensor_split(parts), strict=True)
        ):
            last = part == parts - 1
            with nullcontext() if last else accelerator.no_sync(self.model):
                images = self.augmenter(self.classifier.prepare(chunk), generator)
                with accelerator.autocast():
                    logits = self.model(images)
                loss = self.loss(logits.float(), target)
                summed += loss.detach()
                # Gradients are averaged over processes whose shares may differ by a cell: scaled so that the average
                # is the mean over the whole batch.
                accelerator.backward(loss * (accelerator.num_processes / whole))
        if self.config.clip_grad:
            accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return summed

    def _agree(self, loss: torch.Tensor) -> tuple[float, bool]:
        """Sum the loss over processes, and learn whether any of them was asked to stop."""
        wish = torch.tensor(float(self.request.asked), device=self.device)
        both = self.accelerator.reduce(torch.stack([loss, wish]), reduction="sum")
        total, stop = both.tolist()
        return total, stop > 0

    def _not_finite(self, what: str) -> TrainingError:
        last = self.run_folder.checkpoint("last")
        kept = f"the last good checkpoint is {last}" if last.is_file() else "no epoch was finished before"
        return TrainingError(f"{what}; {kept}; lower --lr, or use --precision fp32")

    def _report(self, cells: int, steps: int, rate: float, begun: float, done_before: int) -> None:
        state = self.state
        speed = (state.total_cells - done_before) / max(1e-9, time.monotonic() - begun)
        self.progress(
            state.epoch * cells + state.total_cells,
            self.planned * cells,
            f"epoch {state.epoch + 1}/{self.config.epochs} loss {state.total_loss / state.total_cells:.3f} "
            f"lr {rate:.1e} {speed:.0f} images/s",
        )
        if self.writer is not None:
            step = state.epoch * steps + state.step
            self.writer.add_scalar("step/loss", state.total_loss / state.total_cells, step)
            self.writer.add_scalar("step/lr", rate, step)

    def _end_epoch(self, rate: float, seconds: float, cells: int) -> None:
        state, config = self.state, self.config
        row: dict[str, float] = {
            "epoch": state.epoch + 1,
            "train_loss": state.total_loss / state.total_cells,
            "lr": rate,
            "images_per_second": cells / max(1e-9, seconds),
        }
        if "val" in self.feeds:
            row |= self.validate()[1]
        state.seconds += seconds
        row["seconds"] = state.seconds
        state.rows.append(row)
        state.epoch, state.step, state.total_loss, state.total_cells = state.epoch + 1, 0, 0.0, 0
        value = row.get(f"val_{config.monitor}", row["train_loss"])
        lower_is_better = config.monitor == "loss" or "val" not in self.feeds
        better = state.best is None or (value < state.best if lower_is_better else value > state.best)
        if better:
            state.best, state.best_epoch = value, state.epoch
        state.finished = self._complete()
        if state.finished and state.epoch < config.epochs:
            self.log(f"Stopped early: no better {config.monitor} for {config.patience} epochs")
        self._save("last")
        if self.accelerator.is_main_process:
            self._write_epoch()
        if self.writer is not None:
            for key, figure in row.items():
                self.writer.add_scalar(f"epoch/{key}", figure, state.epoch)
        scores = " ".join(f"{key[4:]} {row[key]:.3f}" for key in ("val_accuracy", "val_macro_f1") if key in row)
        self.log(
            f"epoch {state.epoch}/{config.epochs} train loss {row['train_loss']:.3f} {scores} "
            f"({row['images_per_second']:.0f} images/s)" + (" best" if better else "")
        )

    @torch.inference_mode()
    def validate(self) -> tuple[npt.NDArray[np.float32], dict[str, float]]:
        """Return the logits (n, C) of all validation cells, and the figures."""
        self.model.eval()
        labels = self.data.splits["val"].labels
        batches = epoch_batches(np.arange(len(labels)), self.config.batch_size)
        mine = [batch for index, batch in enumerate(batches) if self._turn(index)]
        logits = torch.zeros((len(labels), len(self.data.taxonomy)), device=self.device)
        # The bare classifier, not the distributed wrapper: processes may have different numbers of batches.
        inner = self.accelerator.unwrap_model(self.model)
        for positions, patches in zip(mine, self.feeds["val"].batches(mine), strict=True):
            with self.accelerator.autocast():
                part = inner(inner.prepare(patches))
            logits[torch.from_numpy(positions).to(self.device)] = part.float()
        # Every row is filled by one process and zero on the others, so the sum is the whole.
        found = self.accelerator.reduce(logits, reduction="sum").cpu()
        if not found.isfinite().all():
            raise self._not_finite(f"the validation logits are not finite after epoch {self.state.epoch + 1}")
        loss = functional.cross_entropy(found, torch.from_numpy(labels)).item()
        figures: dict[str, Any] = {"loss": loss} | validation_scores(labels, found.numpy())
        return found.numpy(), {f"val_{key}": float(value) for key, value in figures.items()}

    def _turn(self, index: int) -> bool:
        return bool(index % self.accelerator.num_processes == self.accelerator.process_index)


def _inner_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside accelerate's wrapper."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


def learning_rate(step: int, *, per_epoch: int, epochs: int, warmup: float, peak: float) -> float:
    """Linear warm-up, then a cosine down to one hundredth of the peak (Loshchilov and Hutter 2017).

    Parameters
    ----------
    step : int
        Steps done before this one, over all epochs.
    per_epoch, epochs : int
        Length of the training.
    warmup : float
        Epochs of warm-up, half of the training at most.
    peak : float
        Highest learning rate.
    """
    total = max(1, per_epoch * epochs)
    rising = min(round(warmup * per_epoch), total // 2)
    if step < rising:
        return peak * (step + 1) / rising
    position = (step - rising) / max(1, total - rising)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, position))))


class StopRequest:
    """Whether a stop was requested."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request, and the second into the usual interruption.

    Off the main thread, where signals cannot be caught, the request is simply never made.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if request.asked:
            raise KeyboardInterrupt
        request.asked = True

    previous: dict[int, Any] = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
