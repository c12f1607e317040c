"""What computes a classifier: torch, or onnxruntime on the CPU, which is faster there and starts without torch.

A bundle is exported to ONNX once, held against torch on a few patches, and kept in the user's cache folder under a name
that changes with the weights, the configuration and the versions of everything involved. The cache may be deleted at
any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import os
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np
import pandas as pd

from hematokit.errors import ModelError
from hematokit.files import TEMPORARY_PREFIX, write_atomically
from hematokit.models.bundle import CONFIG, WEIGHTS, BundleConfig, Runtime, load_torch, read_config
from hematokit.models.predictions import check_patches, prediction_frame
from hematokit.progress import Progress, no_progress
from hematokit.specs import InputSpec
from hematokit.taxonomy import Taxonomy

if TYPE_CHECKING:
    import torch

    from hematokit.models.classifier import Classifier

__all__ = ["OnnxClassifier", "cache_folder", "load_with_runtime", "thread_count"]

_log = logging.getLogger(__name__)

BATCH: Final = 16
"""Patches that onnxruntime gets at a time: larger batches were slower on the CPU (caches), and their memory stays."""

_UNUSED_DAYS: Final = 90
_PACKAGES: Final = ("hematokit", "torch", "timm", "onnx", "onnxscript", "onnxruntime")
_INSTALL: Final = "run: pip install 'hematokit[onnx]'"


class OnnxClassifier:
    """A classifier that onnxruntime computes on the CPU; it predicts as `Classifier` does.

    Parameters
    ----------
    model : bytes or path
        An ONNX file as `hematokit.models.exporting.export_onnx` writes it, or its content.
    config : BundleConfig
        The bundle's configuration.

    Raises
    ------
    ModelError
        If onnxruntime is missing or cannot read the model.
    """

    runtime: Final = "onnxruntime"

    def __init__(self, model: bytes | str | Path, config: BundleConfig) -> None:
        self.config = config
        self.taxonomy = Taxonomy.from_dict(config.taxonomy, where=CONFIG)
        self.patch_size = config.input.patch_size
        self.temperature = config.temperature
        given = config.input
        self.input_spec = InputSpec(given.size, given.divisor, given.mean, given.std, given.fit)
        self.threads = thread_count()
        self._session = _open_session(model, self.threads)

    @property
    def codes(self) -> tuple[str, ...]:
        """Class codes in the order of the logits."""
        return self.taxonomy.codes

    @property
    def device(self) -> torch.device:
        """The CPU, as torch names it; asking imports torch."""
        import torch

        return torch.device("cpu")

    def logits(self, patches: np.ndarray, batch_size: int = 64, progress: Progress = no_progress) -> np.ndarray:
        """Return uncalibrated logits; may be called from several threads at once.

        Parameters
        ----------
        patches : ndarray, shape (n, P, P, 3), uint8
        batch_size : int
            Patches at a time; no more than 16 are taken, which is faster and keeps memory flat.
        progress : Progress
            Told after each batch.

        Returns
        -------
        ndarray, shape (n, C), float32

        Raises
        ------
        ModelError
            If the patches are of another shape or type than the model was trained on.
        """
        check_patches(patches, self.patch_size)
        step = min(batch_size, BATCH)
        parts = []
        for start in range(0, len(patches), step):
            batch = np.ascontiguousarray(patches[start : start + step])
            parts.append(self._session.run(None, {self._session.get_inputs()[0].name: batch})[0])
            progress(min(start + step, len(patches)), len(patches), "")
        return np.concatenate(parts) if parts else np.zeros((0, len(self.codes)), np.float32)

    def predict(self, patches: np.ndarray, batch_size: int = 64, progress: Progress = no_progress) -> pd.DataFrame:
        """Classify patches; parameters, result and errors as of `Classifier.predict`."""
        return prediction_frame(self.logits(patches, batch_size, progress), self.codes, self.temperature)


def load_with_runtime(folder: Path, device: str | torch.device, runtime: str) -> Classifier | OnnxClassifier:
    """Load a bundle for a runtime other than torch.

    Parameters
    ----------
    folder : Path
        Bundle folder.
    device : str or torch.device
        onnxruntime takes ``"auto"`` and ``"cpu"``.
    runtime : str
        ``"onnxruntime"``, or ``"auto"``: onnxruntime where it is installed and the device is the CPU, else torch.

    Raises
    ------
    ModelError
        If the runtime is unknown, not installed, cannot use the device or cannot compute the model exactly.
    """
    if runtime not in get_args(Runtime):
        raise ModelError(f"runtime {runtime!r} does not exist; choose among {', '.join(get_args(Runtime))}")
    if runtime == "onnxruntime":
        if str(device) not in ("auto", "cpu"):
            raise ModelError(f"runtime onnxruntime computes on the CPU, not on {device}; use --device cpu, or torch")
        return _load_onnx(folder)
    if _missing(("onnxruntime",)) or not _is_cpu(device):
        return load_torch(folder, device)
    try:
        return _load_onnx(folder)
    except ModelError as error:
        # Whatever is wrong with the bundle itself, torch says it next; all else it can do without onnxruntime.
        model = load_torch(folder, device)
        _log.warning("torch computes the model: %s", error)
        return model


def _is_cpu(device: str | torch.device) -> bool:
    if str(device) == "auto":
        from hematokit.models.devices import resolve_device

        return resolve_device("auto").type == "cpu"
    return str(device) == "cpu"


def _missing(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if importlib.util.find_spec(name) is None]


def _load_onnx(folder: Path) -> OnnxClassifier:
    missing = _missing(("onnxruntime",))
    if missing:
        raise ModelError(f"runtime onnxruntime needs the package onnxruntime; {_INSTALL}")
    config = read_config(folder)
    path = cache_folder() / "onnx" / f"{_fingerprint(folder, config)}.onnx"
    found = _from_cache(path, config)
    if found is not None:
        return found
    with _one_at_a_time(path):
        # Another process may have made it while this one waited.
        return _from_cache(path, config) or _export(folder, config, path)


def _fingerprint(folder: Path, config: BundleConfig) -> str:
    """What an exported model depends on, hashed: weights, configuration, versions."""
    versions = []
    for name in dict.fromkeys((*_PACKAGES, config.backbone.package)):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{name}=={metadata.version(name)}")
    digest = hashlib.sha256("\n".join(versions).encode())
    try:
        with (folder / WEIGHTS).open("rb") as file:
            weights = hashlib.file_digest(file, "sha256").digest()
        digest.update(weights + (folder / CONFIG).read_bytes())
    except OSError as error:
        raise ModelError(
            f"{folder / WEIGHTS} is missing or damaged ({error.strerror or error}); copy the bundle again"
        ) from error
    return digest.hexdigest()


def _from_cache(path: Path, config: BundleConfig) -> OnnxClassifier | None:
    """The exported model, if there is one that opens; a damaged one is made again."""
    try:
        made = OnnxClassifier(path.read_bytes(), config)
    except (OSError, ModelError):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # when it was last of use
    return made


def _export(folder: Path, config: BundleConfig, path: Path) -> OnnxClassifier:
    """Export, check, keep."""
    from hematokit.models.exporting import check_agreement, onnx_bytes

    reference = load_torch(folder, "cpu")
    data = onnx_bytes(reference)
    made = OnnxClassifier(data, config)
    check_agreement(reference.logits, made.logits, made.patch_size, "onnxruntime")
    try:
        _clear_unused(path.parent)
        write_atomically(path, data)
    except OSError as error:
        reason = error.strerror or error
        _log.warning(
            "%s cannot be written (%s): the model is exported anew each time; set HEMATOKIT_CACHE", path, reason
        )
    return made


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Hold other processes back that want to make the same file; where that cannot be done, each makes its own."""
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_suffix(".lock"), timeout=600)
    # Writing is atomic anyway: the lock saves work, it is not needed.
    with contextlib.suppress(OSError, NotImplementedError, Timeout):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _clear_unused(folder: Path) -> None:
    """Remove models that were not used for three months, and what killed processes left behind."""
    now = time.time()
    for path in folder.iterdir():
        days = 1 if path.name.startswith(TEMPORARY_PREFIX) else _UNUSED_DAYS
        with contextlib.suppress(OSError):
            if now - path.stat().st_mtime > days * 86400:
                path.unlink()


def cache_folder() -> Path:
    """Where things are kept that can be made again: ``HEMATOKIT_CACHE``, else ``hematokit`` in the user's cache folder.

    Returns
    -------
    Path
        Need not exist.
    """
    own = os.environ.get("HEMATOKIT_CACHE")
    if own:
        return Path(own).expanduser()
    # A relative XDG path is invalid and to be ignored (XDG base directory specification).
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if Path(shared).is_absolute():
        return Path(shared) / "hematokit"
    try:
        home = Path.home()
    except RuntimeError:
        # Nobody's home, as in some containers: a place that cannot be written, so that nothing is kept.
        return Path(os.devnull) / "hematokit"
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "hematokit"


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


def _open_session(model: bytes | str | Path, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        said = " ".join(str(error).split())[:120]
        raise ModelError(f"runtime onnxruntime needs the package onnxruntime ({said}); {_INSTALL}") from error
    options = onnxruntime.SessionOptions()
    # Named, or onnxruntime takes all cores and pins itself to them, whatever else runs there.
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle threads would go round in circles for a while, on cores that the next field's reading could use.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    try:
        content = model if isinstance(model, bytes) else str(model)
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        what = "the exported model" if isinstance(model, bytes) else str(model)
        said = " ".join(str(error).split())[:160]
        raise ModelError(f"{what} cannot be opened by onnxruntime ({said}); use --runtime torch") from error
