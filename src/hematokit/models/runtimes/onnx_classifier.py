"""A classifier stored as an ONNX file; it predicts as `Classifier` does, without torch."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from hematokit.errors import ModelError, printable
from hematokit.models.config import ModelConfig, parse_config
from hematokit.models.integrity import read_onnx, sha256
from hematokit.models.model import (
    Patches,
    check_finite,
    check_patches,
    prediction_frame,
    probability_matrix,
    sorted_classes,
)
from hematokit.models.runtimes.engines import Engine, open_engine, stream_count
from hematokit.models.runtimes.onnx_graph import CONFIG_KEY, EMBEDDINGS, OUTPUT_NAME, PARITY_KEY
from hematokit.plugins.hookspecs import PROJECT
from hematokit.progress import Progress, no_progress

__all__ = ["OnnxClassifier"]

BATCH: Final = 8
"""Patches per batch; several batches run in parallel. Larger batches are no faster on the CPU and need more memory."""


class OnnxClassifier:
    """A classifier computed by onnxruntime or OpenVINO on the CPU; it predicts as `Classifier` does.

    Parameters
    ----------
    model : bytes or path
        An ONNX file written by ``hematokit export``, or its content.
    config : ModelConfig, optional
        Configuration of the bundle; by default that in the metadata of the file.
    engine : str
        ``"onnxruntime"`` or ``"openvino"``.
    what : str, optional
        Name for error messages; by default the path.
    identity : str, optional
        Content hash of the bundle that it was exported from; by default that of the file.

    Attributes
    ----------
    identity : str
        Content hash, as returned by `hematokit.models.bundle.bundle_identity`.

    Raises
    ------
    ModelError
        If the engine is missing or cannot read the model, the file was not written by hematokit, or it is damaged.
    """

    def __init__(
        self,
        model: bytes | str | Path,
        config: ModelConfig | None = None,
        engine: str = "onnxruntime",
        *,
        what: str = "",
        identity: str = "",
    ) -> None:
        content = model if isinstance(model, bytes) else read_onnx(Path(model))
        what = printable(what) or ("the exported model" if isinstance(model, bytes) else printable(str(model)))
        self.identity = identity or sha256(content)
        self._engine = open_engine(engine, content, what)
        self._streams = stream_count()
        self._pool = ThreadPoolExecutor(self._streams, "hematokit-engine")
        self.config = config if config is not None else _stated_config(self._engine, what)
        self.taxonomy = self.config.taxonomy
        self.patch_size = self.config.input.patch_size
        self.temperature = self.config.temperature
        self.runtime = engine
        self.input_spec = self.config.input.spec
        _check_ports(self._engine, self.patch_size, len(self.taxonomy), what)
        _check_engine(self._engine, what)

    @property
    def codes(self) -> tuple[str, ...]:
        """Class codes in the order of the logits."""
        return self.taxonomy.codes

    @property
    def classes_(self) -> np.ndarray:
        """Class codes in the order of the columns of `predict_proba`, which is sorted, as scikit-learn requires."""
        return sorted_classes(self.codes)

    @property
    def pixel_size_um(self) -> float | None:
        """Pixel size of the training images in micrometres; None if unknown."""
        return self.config.pixel_size_um

    @property
    def device(self) -> str:
        """Device of the computation: always ``"cpu"``."""
        return "cpu"

    def on_cpu(self) -> OnnxClassifier:
        """Return this model, which is on the CPU."""
        return self

    def logits(self, patches: Patches, batch_size: int = 64, progress: Progress = no_progress) -> np.ndarray:
        """Return uncalibrated logits; may be called from several threads at once.

        Parameters
        ----------
        patches : ndarray, shape (n, P, P, 3), or sequence of n arrays, shape (P, P, 3), uint8
        batch_size : int
            Number of patches per batch; limited to 8, which is as fast and needs less memory.
        progress : Progress
            Called after each batch.

        Returns
        -------
        ndarray, shape (n, C), float32

        Raises
        ------
        ModelError
            If the patches are of another shape or type than the model was trained on.
        ModelError, PluginError
            If a logit is not finite.
        """
        return self._compute(OUTPUT_NAME, len(self.codes), patches, batch_size, progress)

    def embed(self, patches: Patches, batch_size: int = 64, progress: Progress = no_progress) -> np.ndarray:
        """Return embeddings, the input of the backbone's last layer, with the parameters of `logits`.

        Returns
        -------
        ndarray, shape (n, D), float32

        Raises
        ------
        ModelError
            If the file was exported without embeddings.
        ModelError, PluginError
            As for `logits`.
        """
        port = next((port for port in self._engine.outputs if port.name == EMBEDDINGS), None)
        if port is None:
            raise ModelError("this ONNX file gives no embeddings; export it with --embeddings")
        return self._compute(EMBEDDINGS, port.shape[-1] or 0, patches, batch_size, progress)

    def _compute(self, output: str, width: int, patches: Patches, batch_size: int, progress: Progress) -> np.ndarray:
        patches = check_patches(patches, self.patch_size)
        total = len(patches)
        # A small number of patches is also distributed over all streams.
        step = max(1, min(batch_size, BATCH, -(-total // self._streams)))
        batches = (np.ascontiguousarray(patches[start : start + step]) for start in range(0, total, step))
        parts: list[np.ndarray] = []
        done = 0
        with closing(self._in_order(batches, output, alone=self._streams == 1 or total <= step)) as computed:
            for part in computed:
                parts.append(part)
                done += len(part)
                progress(done, total, "")
        found = np.concatenate(parts) if parts else np.zeros((0, width), np.float32)
        package = self.config.backbone.package
        check_finite(found, "" if package == PROJECT else f"backbone {self.config.backbone.name} of package {package}")
        return found

    def _in_order(self, batches: Iterable[np.ndarray], output: str, alone: bool) -> Generator[np.ndarray, None, None]:
        """Compute batches in parallel, one per stream of the engine; yield the results in the order of the batches."""
        if alone:
            yield from (self._engine.run(batch, output) for batch in batches)
            return
        running: deque[Future[np.ndarray]] = deque()
        try:
            for batch in batches:
                running.append(self._pool.submit(self._engine.run, batch, output))
                # One more than can run, so that a stream that finishes can start the next batch at once.
                if len(running) > self._streams:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            # After an error or an interruption, no batch may still be running.
            for future in running:
                future.cancel()
            wait(running)

    def predict(self, patches: Patches, batch_size: int = 64, progress: Progress = no_progress) -> pd.DataFrame:
        """Classify patches; parameters, result and errors as of `Classifier.predict`."""
        return prediction_frame(self.logits(patches, batch_size, progress), self.codes, self.temperature)

    def predict_proba(self, patches: Patches, batch_size: int = 64, progress: Progress = no_progress) -> np.ndarray:
        """Return calibrated probabilities, shape (n, C), float32, in the order of `classes_`; errors of `predict`."""
        return probability_matrix(self.predict(patches, batch_size, progress), self.classes_)


_EXPECTED: Final = "one input 'patches', uint8 of shape (n, P, P, 3), an output 'logits', float32 of shape (n, C)"
_EXPORT: Final = "make one with: hematokit export MODEL --format onnx"


def _stated_config(engine: Engine, what: str) -> ModelConfig:
    said = engine.metadata.get(CONFIG_KEY)
    if said is None:
        inputs = "; ".join(map(str, engine.inputs[:3])) or "nothing"
        raise ModelError(
            f"{what} was not exported by hematokit: it takes {inputs}; expected are {_EXPECTED} and the metadata "
            f"{CONFIG_KEY!r}, which says what the classes are; {_EXPORT}"
        )
    return parse_config(said, f"{what} (metadata {CONFIG_KEY})")


def _check_engine(engine: Engine, what: str) -> None:
    """Reject an engine whose results differed from torch when the file was exported, as recorded in its metadata."""
    try:
        said = json.loads(engine.metadata.get(PARITY_KEY, "{}"))
        refused = said.get(engine.name, {}).get("refused")
    except (ValueError, AttributeError):
        return
    if refused:
        raise ModelError(f"{what} is not for {engine.name}: {printable(str(refused))[:300]}")


def _check_ports(engine: Engine, side: int, classes: int, what: str) -> None:
    """Reject a graph whose inputs and outputs do not match its configuration."""
    patches, logits = ("uint8", (None, side, side, 3)), ("float32", (None, classes))
    found = [(port.kind, port.shape) for port in engine.outputs if port.name == OUTPUT_NAME]
    if [(port.kind, port.shape) for port in engine.inputs] == [patches] and found == [logits]:
        return
    if found == [logits] and len(engine.inputs) == 1 and engine.inputs[0].kind == "float32":
        raise ModelError(
            f"{what} takes {engine.inputs[0]}, which is for other programs; hematokit takes uint8 patches: export it "
            "with --input patches"
        )
    inputs = "; ".join(map(str, engine.inputs[:3])) or "nothing"
    outputs = "; ".join(map(str, engine.outputs[:4])) or "nothing"
    expected = _EXPECTED.replace("P", str(side)).replace("C", str(classes))
    raise ModelError(f"{what} takes {inputs} and gives {outputs}; expected are {expected}; {_EXPORT}")
