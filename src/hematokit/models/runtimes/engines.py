"""Engines that compute ONNX graphs on the CPU, onnxruntime and OpenVINO, behind one interface. Neither needs torch."""

from __future__ import annotations

import importlib.util
import os
import queue
import sys
import threading
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from hematokit.errors import ModelError, printable
from hematokit.models.integrity import SEAL_KEY, check_seal, is_sealed

__all__ = [
    "ENGINES",
    "INSTALL",
    "Engine",
    "Port",
    "import_onnxruntime",
    "is_installed",
    "open_engine",
    "stream_count",
    "thread_count",
]

INSTALL: Final = {
    "onnxruntime": "run: pip install 'hematokit[onnx]'",
    "openvino": "run: pip install 'hematokit[openvino]'",
}
ENGINES: Final = tuple(INSTALL)

_STREAMS: Final = 4
"""No more batches than so many at once: a single one would have too few of many cores to itself."""


@dataclass(frozen=True)
class Port:
    """An input or output of a graph.

    Attributes
    ----------
    name : str
    kind : str
        Type of its numbers as numpy names it, or as the engine does where numpy has no name for it.
    shape : tuple of (int or None)
        None where any length goes.
    """

    name: str
    kind: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        sides = ", ".join("n" if side is None else str(side) for side in self.shape)
        return f"{printable(self.name)!r}, {self.kind} of shape ({sides})"


class Engine(Protocol):
    """A graph that is ready to compute; `run` may be called from several threads at once.

    One call has only some of the threads, and all are busy when `stream_count` calls run at a time: threads that share
    a batch wait for each other after every layer, which costs a tenth to a fifth of the time of a small network.
    """

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    metadata: dict[str, str]

    def run(self, batch: npt.NDArray[Any], output: str) -> npt.NDArray[np.float32]:
        """Compute one output of one batch, given to the only input."""


def is_installed(name: str) -> bool:
    """Whether an engine's package can be found; it is not imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # taken out by hand
        return False


def open_engine(name: str, content: bytes, what: str = "the exported model") -> Engine:
    """Open a graph.

    Parameters
    ----------
    name : str
        ``"onnxruntime"`` or ``"openvino"``.
    content : bytes
        An ONNX file. As content, not as a path: so a file can refer to no other file.
    what : str
        Its name, for errors.

    Raises
    ------
    ModelError
        If the engine is not installed or cannot open the graph, or the content is not what was exported.
    """
    check_seal(content, what)
    try:
        engine: Engine = _OnnxRuntime(content) if name == "onnxruntime" else _OpenVino(content, what)
    except ImportError as error:
        said = " ".join(str(error).split())[:120]
        raise ModelError(f"runtime {name} needs the package {name} ({said}); {INSTALL[name]}") from error
    except ModelError:
        raise
    except Exception as error:
        said = printable(" ".join(str(error).split())[:160])
        raise ModelError(
            f"{what} cannot be opened by {name} ({said}); it is damaged or no ONNX file that {name} knows: copy or "
            "export it again, or use the bundle that it was made from"
        ) from error
    if SEAL_KEY in engine.metadata and not is_sealed(content):
        raise ModelError(f"{what} was changed after hematokit exported it; export it again")
    return engine


class _OnnxRuntime:
    """The graph in an `onnxruntime.InferenceSession`."""

    name = "onnxruntime"

    def __init__(self, content: bytes) -> None:
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        # Named, or onnxruntime takes all cores and pins itself to them, whatever else runs there.
        options.intra_op_num_threads = thread_count() // stream_count()
        options.inter_op_num_threads = 1
        # Idle threads would go round in circles for a while, on cores that the next field's reading could use.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.inputs = tuple(map(_port, self._session.get_inputs()))
        self.outputs = tuple(map(_port, self._session.get_outputs()))
        self.metadata = dict(self._session.get_modelmeta().custom_metadata_map)

    def run(self, batch: npt.NDArray[Any], output: str) -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = self._session.run([output], {self.inputs[0].name: batch})[0]
        return found


def _port(given: Any) -> Port:
    kind = str(given.type).removeprefix("tensor(").removesuffix(")")
    shape = tuple(side if isinstance(side, int) and side > 0 else None for side in given.shape)
    return Port(given.name, {"float": "float32", "double": "float64"}.get(kind, kind), shape)


class _OpenVino:
    """The graph compiled by OpenVINO."""

    name = "openvino"

    def __init__(self, content: bytes, what: str) -> None:
        core = _import_openvino().Core()
        model = core.read_model(content)
        _refuse_nan(model, what)
        settings = {
            "INFERENCE_NUM_THREADS": thread_count(),
            "PERFORMANCE_HINT": "THROUGHPUT" if stream_count() > 1 else "LATENCY",
            "NUM_STREAMS": stream_count(),
            # Or it computes in bfloat16 on processors that have it, with other answers.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        compiled = core.compile_model(model, "CPU", settings)
        self._compiled = compiled
        # One request cannot serve two threads. More of them than streams would only wait inside.
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(stream_count()):
            self._requests.put(compiled.create_infer_request())
        self.inputs = tuple(map(_openvino_port, model.inputs))
        self.outputs = tuple(map(_openvino_port, model.outputs))
        said = model.get_rt_info(["framework"]).astype(dict) if model.has_rt_info(["framework"]) else {}
        self.metadata = {key: model.get_rt_info(["framework", key]).astype(str) for key in said}

    def run(self, batch: npt.NDArray[Any], output: str) -> npt.NDArray[np.float32]:
        request = self._requests.get()
        try:
            found = request.infer({0: batch}, share_inputs=True)
            return np.array(found[self._compiled.output(output)], np.float32)
        finally:
            self._requests.put(request)


def _refuse_nan(model: Any, what: str) -> None:
    """OpenVINO's ReLU makes NaN to 0, so weights that are NaN need not show in its answers."""
    for node in model.get_ops():
        if node.get_type_name() == "Constant" and node.data.dtype.kind == "f" and np.isnan(node.data).any():
            raise ModelError(
                f"{what} has weights that are not finite ({printable(node.get_friendly_name())}); copy or export it "
                "again, from a model that was trained without an error"
            )


_USAGE_REPORTS: Final = "openvino_telemetry"
_NO_USAGE_REPORTS: Final = "ORT_DISABLE_TELEMETRY"
_IMPORTING: Final = threading.Lock()


def import_onnxruntime() -> Any:
    """Import onnxruntime without its usage reports, which it sends over the network since version 1.29.

    It looks at the environment variable once, when it is imported. Whoever sets that variable decides; where another
    program imported onnxruntime before, it is as that program had it.
    """
    with _IMPORTING:
        stated = _NO_USAGE_REPORTS in os.environ
        os.environ.setdefault(_NO_USAGE_REPORTS, "1")
        try:
            import onnxruntime
        finally:
            if not stated:
                del os.environ[_NO_USAGE_REPORTS]
        return onnxruntime


def _import_openvino() -> Any:
    """Import OpenVINO without its usage reports, and make its bindings ready for several threads.

    With that package, `import openvino` sends a report over the network, and forks to do so, in a thread, whatever
    the other threads hold at that moment: the whole process can hang. OpenVINO does without where the package is not
    installed, which is what it is made to believe here; where it was imported before, both have happened already.

    Its bindings make their table of element types at the first use. Two threads that do so together, in their first
    `infer`, each wait for the lock that the other holds, for ever: so one thread makes it here.
    """
    with _IMPORTING:
        if "openvino" in sys.modules or _USAGE_REPORTS in sys.modules:
            import openvino
        else:
            sys.modules[_USAGE_REPORTS] = None  # type: ignore[assignment]
            try:
                import openvino
            finally:
                sys.modules.pop(_USAGE_REPORTS, None)
        openvino.Type.f32.to_dtype()
        return openvino


def _openvino_port(given: Any) -> Port:
    kind = {"u8": "uint8", "f32": "float32", "f64": "float64", "f16": "float16", "i64": "int64", "i32": "int32"}
    word = given.get_element_type().get_type_name()
    shape = tuple(side.get_length() if side.is_static else None for side in given.get_partial_shape())
    return Port(given.get_any_name(), kind.get(word, word), shape)


def thread_count() -> int:
    """Threads to compute with: torch's number where it is loaded, else ``OMP_NUM_THREADS``, else one per core."""
    loaded = sys.modules.get("torch")
    if loaded is not None and hasattr(loaded, "get_num_threads"):
        return int(loaded.get_num_threads())
    word = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if word.isdigit() and int(word) > 0:
        return int(word)
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, psutil.cpu_count(logical=False) or usable)


def stream_count() -> int:
    """Batches that an engine computes at a time; each has an equal part of the threads."""
    return max(1, min(thread_count(), _STREAMS))
