"""Smaller numbers in an ONNX graph, float16 or int8, and what that costs: measured, never assumed.

int8 is static and per channel: scales of activations come from a calibration set (Jacob et al. 2018,
doi:10.1109/CVPR.2018.00286). Only products are quantised, and neither those that resize the patches nor the
first convolution.
"""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from hematokit.errors import ModelError, describe_error
from hematokit.models.runtimes.engines import import_onnxruntime

__all__ = ["Cost", "JudgedCrops", "Precision", "measure_cost", "to_fp16", "to_int8"]

Precision = Literal["fp32", "fp16", "int8"]

_BATCH: Final = 8
_INT8_OPERATORS: Final = ["Conv", "Gemm", "MatMul"]

Patches = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class JudgedCrops:
    """Crops on which a cost is measured.

    Attributes
    ----------
    patches : ndarray, shape (n, P, P, 3), uint8
    labels : ndarray of int, shape (n,), or None
        Classes in the order of the logits, -1 where none of them; None where no crop has a label.
    what : str
        Description for the card: ``"192 of 192 test cells"``.
    """

    patches: Patches
    labels: npt.NDArray[np.int64] | None
    what: str


@dataclass(frozen=True)
class Cost:
    """Effect of the precision on the predictions.

    Attributes
    ----------
    precision : str
    crops : str
        Description of the patches it was measured on.
    count : int
        How many.
    classes_changed : int
        Crops whose class is another one than with float32.
    max_logit_difference, max_probability_difference : float
    accuracy, accuracy_fp32 : float or None
        Share of labelled crops that got their label; None without labels.
    """

    precision: str
    crops: str
    count: int
    classes_changed: int
    max_logit_difference: float
    max_probability_difference: float
    accuracy: float | None
    accuracy_fp32: float | None

    def sentence(self) -> str:
        """The numbers for the card and the console."""
        said = (
            f"{self.precision} instead of fp32 changes the class of {self.classes_changed} of {self.count} crops "
            f"({self.crops}), probabilities by up to {self.max_probability_difference:.2g}"
        )
        if self.accuracy is None or self.accuracy_fp32 is None:
            return f"{said}; the accuracy was not measured, as no labels were at hand"
        change = 100 * (self.accuracy - self.accuracy_fp32)
        return f"{said}; accuracy {self.accuracy:.4f} instead of {self.accuracy_fp32:.4f} ({change:+.2f} points)"


def measure_cost(precision: str, expected: Logits, found: Logits, judged: JudgedCrops, temperature: float) -> Cost:
    """Compare the logits of smaller numbers with those of float32, on the same crops.

    Raises
    ------
    ModelError
        If one is no finite number.
    """
    if not np.isfinite(found).all():
        raise ModelError(
            f"{precision} gives numbers that are not finite with this model; export it without --{precision}"
        )
    apart = np.abs(_probabilities(found, temperature) - _probabilities(expected, temperature)).max()
    accuracy = accuracy_fp32 = None
    if judged.labels is not None and (judged.labels >= 0).any():
        known = judged.labels >= 0
        accuracy, accuracy_fp32 = (
            float((logits.argmax(axis=1) == judged.labels)[known].mean()) for logits in (found, expected)
        )
    return Cost(
        precision,
        judged.what,
        len(found),
        int((found.argmax(axis=1) != expected.argmax(axis=1)).sum()),
        float(np.abs(found - expected).max()),
        float(apart),
        accuracy,
        accuracy_fp32,
    )


def _probabilities(logits: Logits, temperature: float) -> npt.NDArray[np.float64]:
    scaled = np.asarray(logits, np.float64) / temperature
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    result: npt.NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return result


def to_fp16(content: bytes) -> bytes:
    """Return an ONNX file with float16 inside; its inputs and outputs stay what they are.

    Raises
    ------
    ModelError
        If the graph cannot be converted.
    """
    import onnx

    with _one_line("fp16"):
        import_onnxruntime()
        from onnxruntime.transformers.float16 import convert_float_to_float16
        from onnxruntime.transformers.onnx_model import OnnxModel

        model = OnnxModel(convert_float_to_float16(onnx.load_from_string(content), keep_io_types=True))
        # The converter puts its casts last, where ONNX wants them before what they feed.
        model.topological_sort()
        made: bytes = model.model.SerializeToString()
    return made


def to_int8(content: bytes, calibration: npt.NDArray[Any]) -> bytes:
    """Return an ONNX file whose products are computed in int8.

    Weights take seven of the eight bits, so that processors with and without VNNI give the same sums.

    Parameters
    ----------
    content : bytes
        An ONNX file in float32.
    calibration : ndarray, shape (n, ...)
        Input for the calibration: patches like those of its later use.

    Raises
    ------
    ModelError
        If the graph cannot be converted.
    """
    with _one_line("int8"), tempfile.TemporaryDirectory(prefix="hematokit-int8-") as name:
        import_onnxruntime()
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        folder = Path(name)
        (folder / "model.onnx").write_bytes(content)
        quant_pre_process(folder / "model.onnx", folder / "prepared.onnx", skip_symbolic_shape=True)
        port, kept = _look_at(folder / "prepared.onnx")

        class Crops(CalibrationDataReader):  # type: ignore[misc]
            """Hands out the calibration set in batches."""

            def __init__(self) -> None:
                self.batches = (calibration[start : start + _BATCH] for start in range(0, len(calibration), _BATCH))

            def get_next(self) -> dict[str, Any] | None:
                batch = next(self.batches, None)
                return None if batch is None else {port: batch}

        quantize_static(
            folder / "prepared.onnx",
            folder / "int8.onnx",
            Crops(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_INT8_OPERATORS,
            nodes_to_exclude=kept,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return (folder / "int8.onnx").read_bytes()


def _look_at(path: Path) -> tuple[str, list[str]]:
    """The name of the input, and of the products that stay as they are.

    These are those that resize, before the first thing that was learned, and the first convolution: OpenVINO computes
    that wrongly in int8 (logits 10 off, most classes changed), and it is a small part of the work.
    """
    import onnx

    graph = onnx.load(path).graph
    first = next((place for place, node in enumerate(graph.node) if node.op_type in ("Conv", "Sub")), 0)
    kept = [node.name for node in graph.node[:first] if node.op_type == "MatMul"]
    return graph.input[0].name, kept + [node.name for node in graph.node if node.op_type == "Conv"][:1]


@contextmanager
def _one_line(precision: str) -> Iterator[None]:
    """Without the converters' chatter, and their errors in one line."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        raise ModelError(
            f"the model cannot be converted to {precision} ({describe_error(error)}); export it without --{precision}"
        ) from error
    finally:
        logger.setLevel(level)
