"""Batches of patches from many requests to one model: one thread computes, the callers wait for their rows."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hematokit.errors import BusyError, ModelError, ServingError
from hematokit.models.model import Patches, check_patches, prediction_frame, probability_matrix, sorted_classes

if TYPE_CHECKING:
    from hematokit.models.model import Model

__all__ = ["Batcher", "QueuedModel", "Rows"]

_log = logging.getLogger(__name__)

Batch = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Rows:
    """The predictions for some patches: a part of those for a whole batch.

    The table is converted once per batch rather than once per request, because slicing and reading a table takes
    longer than a small request.

    Attributes
    ----------
    table : DataFrame
        Predictions of the whole batch, as returned by `Classifier.predict`.
    entries : sequence of dict
        One per patch: ``predicted``, ``probability`` and ``probabilities`` by class code, as plain data.
    start : int
        Row of the first patch in `table`.
    """

    table: pd.DataFrame
    entries: Sequence[dict[str, Any]]
    start: int = 0

    @classmethod
    def of(cls, table: pd.DataFrame) -> Rows:
        """Return the rows of a table of predictions."""
        columns = [name for name in table.columns if name.startswith("p_")]
        codes = [name.removeprefix("p_") for name in columns]
        probabilities = table[columns].to_numpy(np.float64).round(6).tolist()
        best = table["probability"].to_numpy(np.float64).round(6).tolist()
        entries = [
            {"predicted": code, "probability": highest, "probabilities": dict(zip(codes, each, strict=True))}
            for code, highest, each in zip(table["predicted"].tolist(), best, probabilities, strict=True)
        ]
        return cls(table, entries)

    def __len__(self) -> int:
        return len(self.entries)

    def part(self, start: int, stop: int) -> Rows:
        """Some of these rows."""
        return Rows(self.table, self.entries[start:stop], self.start + start)

    def frame(self) -> pd.DataFrame:
        """These rows as a table."""
        return self.table.iloc[self.start : self.start + len(self.entries)]


@dataclass(frozen=True)
class _Job:
    patches: Sequence[Batch] | Batch
    answer: Future[Rows] = field(default_factory=Future)


def _nothing(patches: int, requests: int, seconds: float) -> None:
    """Note nothing."""


def _stopping() -> ServingError:
    return ServingError("the server is stopping; try again later", "stopping", 503)


class Batcher:
    """Collects patches and passes them to a model in batches, in a separate thread.

    While a batch is being computed, requests pile up and become the next one: the more there is to do, the larger the
    batches. Only where nothing waits, the first patch waits a little for others.

    Parameters
    ----------
    predict : callable
        ``(n, P, P, 3) uint8 -> DataFrame`` with a row a patch. Called from one thread only.
    largest : int
        Patches in a batch, and in what is submitted at once.
    window_s : float
        How long the first patch of a batch waits for others, in seconds.
    most_waiting : int
        Patches that may wait; above that, `submit` refuses.
    on_batch : callable
        Called with ``(patches, requests, seconds)`` after each batch.
    """

    def __init__(
        self,
        predict: Callable[[Batch], pd.DataFrame],
        *,
        largest: int = 64,
        window_s: float = 0.004,
        most_waiting: int = 1024,
        on_batch: Callable[[int, int, float], None] = _nothing,
    ) -> None:
        self.largest = largest
        self._predict, self._window, self._most_waiting, self._on_batch = predict, window_s, most_waiting, on_batch
        self._queue: deque[_Job] = deque()
        self._waiting = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="hematokit-batches", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of patches in the queue."""
        return self._waiting

    def submit(self, patches: Sequence[Batch] | Batch, *, patient: bool = False) -> Future[Rows]:
        """Append patches to the queue.

        Parameters
        ----------
        patches : sequence of ndarray of uint8, shape (P, P, 3); or one of shape (n, P, P, 3)
            At most `largest`, so that no request blocks the others for long.
        patient : bool
            Ignore the limit of the queue; for requests that were accepted already.

        Returns
        -------
        Future
            Rows of the patches, in order. If cancelled before its batch begins, nothing is computed.

        Raises
        ------
        BusyError
            If the queue is full.
        ServingError
            If the server is stopping.
        """
        if len(patches) > self.largest:
            raise ValueError(f"{len(patches)} patches at once; split them into at most {self.largest}")
        job = _Job(patches)
        with self._changed:
            if self._closed:
                raise _stopping()
            if not patient and self._waiting + len(patches) > self._most_waiting:
                raise BusyError(f"{self._waiting:,} cells wait to be classified; try again in a moment")
            self._queue.append(job)
            self._waiting += len(patches)
            self._changed.notify()
        return job.answer

    def close(self) -> None:
        """Finish the current batch, reject the patches in the queue, and stop the thread."""
        with self._changed:
            self._closed = True
            left = list(self._queue)
            self._queue.clear()
            self._waiting = 0
            self._changed.notify()
        for job in left:
            if job.answer.set_running_or_notify_cancel():
                job.answer.set_exception(_stopping())
        self._thread.join(timeout=60)

    def _work(self) -> None:
        while (jobs := self._next()) is not None:
            wanted = [job for job in jobs if job.answer.set_running_or_notify_cancel()]
            if wanted:
                self._compute(wanted)

    def _next(self) -> list[_Job] | None:
        """Return the jobs of the next batch; None after `close`."""
        with self._changed:
            if not self._queue:
                # No patches arrived during the last batch.
                while not self._queue and not self._closed:
                    self._changed.wait()
                until = time.monotonic() + self._window
                while self._waiting < self.largest and not self._closed:
                    left = until - time.monotonic()
                    if left <= 0:
                        break
                    self._changed.wait(left)
            if self._closed:
                return None
            jobs: list[_Job] = []
            patches = 0
            while self._queue and (not jobs or patches + len(self._queue[0].patches) <= self.largest):
                job = self._queue.popleft()
                jobs.append(job)
                patches += len(job.patches)
            self._waiting -= patches
            return jobs

    def _compute(self, jobs: list[_Job]) -> None:
        patches = np.stack([patch for job in jobs for patch in job.patches])
        started = time.perf_counter()
        try:
            rows = Rows.of(self._predict(patches))
            if len(rows) != len(patches):
                raise RuntimeError(f"the model gave {len(rows)} rows for {len(patches)} patches")
        except BaseException as error:
            if len(jobs) == 1:
                _log.exception("a batch of %d patches failed", len(patches))
                jobs[0].answer.set_exception(error)
                return
            # One job may have caused the error, or the batch may not fit in memory: each job is computed alone.
            for job in jobs:
                self._compute([job])
            return
        self._on_batch(len(patches), len(jobs), time.perf_counter() - started)
        start = 0
        for job in jobs:
            job.answer.set_result(rows.part(start, start + len(job.patches)))
            start += len(job.patches)


class QueuedModel:
    """A model whose patches go through the queue of a `Batcher`.

    Parameters
    ----------
    model : Model
    batcher : Batcher
        Queue of the model.
    """

    def __init__(self, model: Model, batcher: Batcher) -> None:
        self.config, self.identity = model.config, model.identity
        self.taxonomy, self.codes, self.temperature = model.taxonomy, model.codes, model.temperature
        self.patch_size, self.pixel_size_um = model.patch_size, model.pixel_size_um
        self.runtime, self.device = model.runtime, model.device
        self.batcher = batcher

    def on_cpu(self) -> QueuedModel:
        """Return this model: the server chooses the device."""
        return self

    def predict(self, patches: Patches, batch_size: int = 64) -> pd.DataFrame:
        """Classify patches (n, P, P, 3); blocks until they are classified. Not to be called by the computing thread."""
        patches = check_patches(patches, self.patch_size)
        step = min(batch_size, self.batcher.largest)
        if not len(patches):
            return prediction_frame(np.zeros((0, len(self.taxonomy)), np.float32), self.taxonomy.codes)
        parts = [
            self.batcher.submit(patches[start : start + step], patient=True).result().frame()
            for start in range(0, len(patches), step)
        ]
        return pd.concat(parts, ignore_index=True)

    @property
    def classes_(self) -> np.ndarray:
        """Class codes in the order of the columns of `predict_proba`."""
        return sorted_classes(self.codes)

    def predict_proba(self, patches: Patches, batch_size: int = 64) -> np.ndarray:
        """Return calibrated probabilities, shape (n, C), float32, in the order of `classes_`."""
        return probability_matrix(self.predict(patches, batch_size), self.classes_)

    def embed(self, patches: Patches, batch_size: int = 64) -> np.ndarray:
        """Raise ModelError: the queue computes predictions only."""
        raise ModelError("the queue of the server gives no embeddings; open the model with load_model")
