"""Writing a classifier as an ONNX graph that takes raw patches.

The graph starts at uint8 patches ``(N, P, P, 3)`` and ends at logits and calibrated probabilities ``(N, C)``: resizing
or padding, normalisation and temperature are inside, so that callers need not repeat them. Resizing is written
as products with the matrices of torch's antialiased kernel: ONNX's ``Resize`` has that kernel, too, but not every
runtime implements it (OpenVINO 2026.4 leaves the antialiasing out). The matrices are mostly zeros, so each product is
made of a few narrow ones: whole, they would take a fifth of the time of a small network.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from hematokit.errors import ModelError
from hematokit.files import write_atomically
from hematokit.models.integrity import seal_onnx

if TYPE_CHECKING:
    import torch

    from hematokit.models.classifier import Classifier

__all__ = [
    "CONFIG_KEY",
    "EMBEDDINGS",
    "IMAGES",
    "INPUT_NAME",
    "OUTPUT_NAME",
    "PARITY_KEY",
    "PROBABILITIES",
    "Layout",
    "export_onnx",
    "onnx_bytes",
    "raw_graph",
]

INPUT_NAME: Final = "patches"
IMAGES: Final = "images"
OUTPUT_NAME: Final = "logits"
PROBABILITIES: Final = "probabilities"
EMBEDDINGS: Final = "embeddings"
PARITY_KEY: Final = "hematokit.parity"
"""Metadata key of the comparison with torch, by engine."""

CONFIG_KEY: Final = "hematokit.config"
"""Metadata key of the bundle's ``config.json``, which defines the classes of the logits."""

Layout = Literal["patches", "images"]
"""Input of a graph: ``"patches"``, uint8 (N, P, P, 3), or ``"images"``, float32 (N, 3, S, S) in [0, 1]."""

_USE_TORCH: Final = "use --runtime torch"

_ROW_BANDS: Final = 12
_COLUMN_BANDS: Final = 6
"""Numbers of narrow products into which the two products of a resizing are split; more of them are slower."""


def export_onnx(
    classifier: Classifier, path: str | Path, *, layout: Layout = "patches", embeddings: bool = False
) -> None:
    """Write a classifier as an ONNX file, atomically; nothing is compared (`hematokit.pipelines.export.export` does).

    Parameters
    ----------
    classifier : Classifier
        Its bundle configuration, if it has one, goes into the file's metadata.
    path : path
        File to write; its folder must exist.
    layout, embeddings
        As of `onnx_bytes`.

    Raises
    ------
    ModelError
        If the packages are missing, the backbone cannot be exported, or the file cannot be written.
    """
    data = seal_onnx(onnx_bytes(classifier, layout=layout, embeddings=embeddings))
    try:
        write_atomically(Path(path), data)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be written ({error.strerror or error}); free disk space or give another folder"
        ) from error


def onnx_bytes(
    classifier: Classifier, *, layout: Layout = "patches", embeddings: bool = False, advice: str = _USE_TORCH
) -> bytes:
    """Return a classifier as the content of an ONNX file; `hematokit.models.integrity.seal_onnx` adds its hash.

    Its outputs are ``logits`` (N, C), uncalibrated, and ``probabilities`` (N, C), softmax of the logits divided by the
    temperature; all float32. The number of patches is free.

    Parameters
    ----------
    classifier : Classifier
        Stays as it is.
    layout : str
        ``"patches"``: the input is ``patches``, uint8 (N, P, P, 3). ``"images"``: it is ``images``, float32
        (N, 3, S, S) in [0, 1], resized to the input size by the caller; normalisation is inside.
    embeddings : bool
        Add the output ``embeddings`` (N, F), the input of the backbone's last layer.
    advice : str
        Remedy named in the error if the backbone cannot be exported.

    Raises
    ------
    ModelError
        If the packages are missing, the backbone cannot be exported, or it does not provide embeddings.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ModelError(f"exporting needs {error.name or 'onnx'}; run: pip install 'hematokit[onnx]'") from error
    import torch

    module = raw_graph(classifier, layout=layout, embeddings=embeddings)
    side, size = classifier.patch_size, classifier.input_spec.size
    # Two patches: an example of one would fix the batch to one.
    shapes = {"patches": ((2, side, side, 3), torch.uint8), "images": ((2, 3, size, size), torch.float32)}
    shape, kind = shapes[layout]
    names = [OUTPUT_NAME, PROBABILITIES, *([EMBEDDINGS] if embeddings else [])]
    try:
        with _quiet(), torch.inference_mode():
            program = torch.onnx.export(
                module,
                (torch.zeros(shape, dtype=kind),),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=[INPUT_NAME if layout == "patches" else IMAGES],
                output_names=names,
                verbose=False,
            )
            assert program is not None  # it is None only when the exporter writes a file itself
            graph = program.model_proto
    except Exception as error:
        # The messages of torch are several pages long; the first line names the operator.
        text = " ".join(str(error.__cause__ or error).split())[:200]
        raise ModelError(
            f"{type(classifier.backbone).__name__} cannot be exported to ONNX ({type(error).__name__}: {text}); "
            f"{advice}"
        ) from error
    _strip(graph)
    if classifier.has_config:
        entry = graph.metadata_props.add()
        entry.key, entry.value = CONFIG_KEY, json.dumps(classifier.config.model_dump(mode="json"))
    content: bytes = graph.SerializeToString()
    return content


def _strip(message: Any) -> None:
    """Remove the exporter's notes: stack traces with paths of this machine, and documentation."""
    for name in ("metadata_props", "doc_string"):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if hasattr(value, "__len__") else [value]:
                _strip(part)


def raw_graph(classifier: Classifier, *, layout: Layout = "patches", embeddings: bool = False) -> torch.nn.Module:
    """Return a module from raw patches to a tuple of logits, probabilities and, if requested, embeddings.

    It is a copy, on the CPU and in evaluation mode, made of plain operations only, so that every exporter supports it;
    it is used by `hematokit.models.formats`. The classifier is not modified.

    Parameters
    ----------
    classifier, layout, embeddings
        As of `onnx_bytes`.

    Raises
    ------
    ModelError
        If the backbone does not give embeddings.
    """
    import torch

    from hematokit.models.classifier import fit_to_input, penultimate, resizing_matrix

    if embeddings:
        _check_embeddings(classifier)

    class RawGraph(torch.nn.Module):
        def __init__(self, inner: Classifier) -> None:
            super().__init__()
            self.inner = inner
            matrix = resizing_matrix(inner.patch_size, inner.input_spec)
            self.resizes = matrix is not None
            self.rows = self._bands("rows", matrix / 255.0, _ROW_BANDS) if matrix is not None else []
            self.columns = self._bands("columns", matrix, _COLUMN_BANDS) if matrix is not None else []

        def _bands(self, name: str, matrix: torch.Tensor, count: int) -> list[tuple[str, slice]]:
            """Store a matrix as bands of rows without zeros on both sides; return their names and columns."""
            found = []
            for index, band in enumerate(matrix.tensor_split(min(count, len(matrix)))):
                used = torch.nonzero(band.abs().sum(0)).flatten()
                place = slice(int(used[0]), int(used[-1]) + 1)
                self.register_buffer(f"{name}_{index}", band[:, place].clone(), persistent=False)
                found.append((f"{name}_{index}", place))
            return found

        def prepare(self, patches: torch.Tensor) -> torch.Tensor:
            if not self.resizes:
                return fit_to_input(patches.permute(0, 3, 1, 2).float() / 255.0, self.inner.input_spec)
            side, size = self.inner.patch_size, self.inner.input_spec.size
            # Rows first, with the channels last: the large array is never transposed.
            given = patches.reshape(-1, side, side * 3)
            low = torch.cat([getattr(self, name) @ given[:, place].float() for name, place in self.rows], dim=1)
            low = low.reshape(-1, size, side, 3).permute(0, 3, 1, 2)
            small = torch.cat([low[..., place] @ getattr(self, name).T for name, place in self.columns], dim=3)
            # Flattened, because OpenVINO otherwise fuses the next operation with the product and fails on its channels.
            return small.flatten(1).clamp(0.0, 1.0).reshape(-1, 3, size, size)

        def forward(self, given: torch.Tensor) -> tuple[torch.Tensor, ...]:
            images = self.prepare(given) if layout == "patches" else given
            seen: tuple[torch.Tensor, ...] = ()
            if embeddings:
                backbone: Any = self.inner.backbone
                features = backbone.forward_features((images - self.inner.mean) / self.inner.std)
                seen = (penultimate(backbone, features),)
                logits = backbone.forward_head(features).float()
            else:
                logits = self.inner(images).float()
            return logits, torch.softmax(logits / self.inner.temperature, dim=1), *seen

    return RawGraph(classifier.on_cpu()).eval()


def _check_embeddings(classifier: Classifier) -> None:
    """Reject a backbone without embeddings before the graph is built."""
    import torch

    size = classifier.input_spec.size
    try:
        with torch.inference_mode():
            classifier.on_cpu().eval().embed_images(torch.zeros(1, 3, size, size))
    except ModelError as error:
        raise ModelError(f"{error}; export it without --embeddings") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the output of the exporter; errors are reported in one line."""
    names = ("torch.onnx", "torch.export", "torch._dynamo", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
