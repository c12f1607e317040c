"""Writing a classifier as an ONNX graph that takes raw patches, and holding a graph against its classifier.

The graph starts at uint8 patches ``(N, P, P, 3)`` and ends at logits ``(N, C)``: resizing or padding and normalisation
are inside, so that nobody who runs it has to repeat them. ONNX's ``Resize`` has torch's antialiased bilinear kernel
(``antialias``, since operator set 18), which is why that is possible.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from hematokit.errors import ModelError
from hematokit.files import write_atomically

if TYPE_CHECKING:
    import torch

    from hematokit.models.classifier import Classifier

__all__ = [
    "CONFIG_KEY",
    "INPUT_NAME",
    "OUTPUT_NAME",
    "check_agreement",
    "export_onnx",
    "onnx_bytes",
    "sample_patches",
]

INPUT_NAME: Final = "patches"
OUTPUT_NAME: Final = "logits"
CONFIG_KEY: Final = "hematokit.config"
"""Under this name the file's metadata hold the bundle's ``config.json``: the file says what its logits mean."""

TOLERANCE: Final = 1e-3
"""Largest difference of a logit that passes; rounding gives some 1e-6."""

_RELATIVE: Final = 1e-5
_TIE: Final = 1e-5

Patches = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]


def export_onnx(classifier: Classifier, path: str | Path) -> None:
    """Write a classifier as an ONNX file, atomically.

    Parameters
    ----------
    classifier : Classifier
        Its bundle configuration, if it has one, goes into the file's metadata.
    path : path
        File to write; its folder must exist.

    Raises
    ------
    ModelError
        If the packages are missing, the backbone cannot be exported, or the file cannot be written.
    """
    data = onnx_bytes(classifier)
    try:
        write_atomically(Path(path), data)
    except OSError as error:
        raise ModelError(f"{path} cannot be written ({error.strerror or error}); give a folder with room") from error


def onnx_bytes(classifier: Classifier) -> bytes:
    """Return a classifier as the content of an ONNX file: ``patches`` (N, P, P, 3) uint8 to ``logits`` (N, C) float32.

    Raises
    ------
    ModelError
        If the packages are missing or the backbone cannot be exported.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ModelError(f"exporting needs {error.name or 'onnx'}; run: pip install 'hematokit[onnx]'") from error
    import torch

    module = _raw_graph(classifier)
    side = classifier.patch_size
    # Two patches: an example of one would fix the batch to one.
    example = torch.zeros((2, side, side, 3), dtype=torch.uint8)
    try:
        with _quiet(), torch.inference_mode():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                verbose=False,
            )
            assert program is not None  # it is None only when the exporter writes a file itself
            graph = program.model_proto
    except Exception as error:
        # torch's own words run over many pages; the first line says which operator.
        text = " ".join(str(error.__cause__ or error).split())[:200]
        raise ModelError(
            f"{type(classifier.backbone).__name__} cannot be exported to ONNX ({type(error).__name__}: {text}); "
            "use --runtime torch"
        ) from error
    if classifier.has_config:
        entry = graph.metadata_props.add()
        entry.key, entry.value = CONFIG_KEY, json.dumps(classifier.config.model_dump(mode="json"))
    content: bytes = graph.SerializeToString()
    return content


def _raw_graph(classifier: Classifier) -> torch.nn.Module:
    """A module from raw patches to logits, on the CPU and in evaluation mode; the classifier stays as it is."""
    import torch

    class RawGraph(torch.nn.Module):
        def __init__(self, inner: Classifier) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, patches: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.inner(self.inner.prepare(patches))
            return logits.float()

    return RawGraph(copy.deepcopy(classifier).cpu()).eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from telling how it goes along: what comes of it is said once, in our words."""
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


def sample_patches(side: int) -> Patches:
    """Return seven unlike patches, always the same: blank, black, noise, a ramp, and three drawings of a stained cell.

    Parameters
    ----------
    side : int
        Pixels.

    Returns
    -------
    ndarray, uint8, shape (7, side, side, 3)
    """
    random = np.random.default_rng(0)
    place = (np.arange(side, dtype=np.float32) + 0.5) / side - 0.5
    rows, columns = np.meshgrid(place, place, indexing="ij")
    patches = np.empty((7, side, side, 3), np.uint8)
    patches[0], patches[1] = 255, 0
    patches[2] = random.integers(0, 256, patches.shape[1:], dtype=np.uint8)
    patches[3] = np.stack([rows, columns, -rows], axis=-1) * 255 + 127.5
    looks = (
        (0.30, 0.20, (95, 50, 140), (170, 175, 215)),
        (0.40, 0.33, (120, 70, 160), (205, 170, 205)),
        (0.20, 0.14, (60, 30, 100), (225, 150, 150)),
    )
    for index, (body, nucleus, dark, pale) in enumerate(looks, start=4):
        image = np.full((side, side, 3), (236, 228, 240), np.float32)
        for radius, colour in ((body, pale), (nucleus, dark)):
            bumps = 1 + 0.15 * np.sin((index - 2) * np.arctan2(rows, columns))
            inside = np.clip((radius * bumps - np.hypot(rows, columns)) * side, 0, 1)[..., None]
            image += inside * (np.asarray(colour, np.float32) - image)
        image += random.normal(0, 6, image.shape)
        patches[index] = image.clip(0, 255)
    return patches


def check_agreement(
    reference: Callable[[Patches], Logits], candidate: Callable[[Patches], Logits], side: int, what: str
) -> float:
    """Compare two ways of computing the same logits, at batches of 1, 2 and 7 patches.

    Parameters
    ----------
    reference, candidate : callable
        Patches (n, P, P, 3) uint8 to logits (n, C).
    side : int
        Side of the patches in pixels.
    what : str
        The candidate's name, for the error.

    Returns
    -------
    float
        Largest difference of a logit.

    Raises
    ------
    ModelError
        If a logit differs by more than 1e-3 (or, of large logits, by more than 1e-5 of it), or a class changes, other
        than between two that are equal but for rounding.
    """
    patches = sample_patches(side)
    expected = np.asarray(reference(patches))
    ranked = np.sort(expected, axis=1)
    tied = (ranked[:, -1] - ranked[:, -2] < _TIE) if expected.shape[1] > 1 else np.ones(len(expected), bool)
    worst, changed, apart = 0.0, 0, False
    for count in (1, 2, len(patches)):
        found, wanted = np.asarray(candidate(patches[:count])), expected[:count]
        if found.shape != wanted.shape:
            raise ModelError(
                f"{what} gives {found.shape} numbers where torch gives {wanted.shape}; use --runtime torch"
            )
        # Not Python's max, which lets a NaN slip through.
        worst = float(np.maximum(worst, np.abs(found - wanted).max()))
        apart |= not np.allclose(found, wanted, rtol=_RELATIVE, atol=TOLERANCE)
        changed += int(((found.argmax(axis=1) != wanted.argmax(axis=1)) & ~tied[:count]).sum())
    if apart or changed:
        raise ModelError(
            f"{what} does not repeat torch's answers: logits differ by up to {worst:.2g} (allowed {TOLERANCE:g}) and "
            f"{changed} of {3 + len(patches)} test patches change class; use --runtime torch"
        )
    return worst
