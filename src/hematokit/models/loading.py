"""Loading a trained model from a bundle, a run or an ONNX file, for torch or another runtime.

`load_model` loads a model; `cached_model` returns it from the only cache of models, which the command line, the viewer
and the server share.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args, overload
from weakref import WeakValueDictionary

from hematokit.errors import ModelError, printable
from hematokit.models.bundle import ModelFiles, find_model, open_bundle, read_model
from hematokit.models.model import Model
from hematokit.models.runtimes.engines import ENGINES, INSTALL, is_installed
from hematokit.models.runtimes.exported import open_exported
from hematokit.models.runtimes.onnx_classifier import OnnxClassifier

if TYPE_CHECKING:
    # Only for annotations: a model that another runtime computes must open without torch.
    import torch

    from hematokit.models.classifier import Classifier

__all__ = ["Runtime", "cached_model", "load_model"]

_log = logging.getLogger(__name__)

Runtime = Literal["torch", "onnxruntime", "openvino", "auto"]

_AUTO: Final = "onnxruntime"
_LOADED: Final[WeakValueDictionary[tuple[str, str, str], Model]] = WeakValueDictionary()
"""All models in use, by identity, device and runtime."""
_LAST: Final[list[Model]] = []
"""The model used last, which stays in memory. Others are freed when unused: a process may use many models."""
_LOADING: Final = threading.RLock()


@overload
def load_model(path: str | Path, device: str | torch.device = "auto", *, runtime: Literal["torch"]) -> Classifier: ...


@overload
def load_model(
    path: str | Path, device: str | torch.device = "auto", runtime: str | None = None
) -> Classifier | OnnxClassifier: ...


def load_model(
    path: str | Path, device: str | torch.device = "auto", runtime: str | None = None
) -> Classifier | OnnxClassifier:
    """Load a classifier from a bundle, a run or an ONNX file. Nothing is unpickled, and no code of a model is run.

    Parameters
    ----------
    path : path
        Bundle folder, run folder with a bundle, or a file written by ``hematokit export --format onnx``, which does
        not need torch.
    device : str or torch.device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ...
    runtime : str, optional
        ``"torch"``; ``"onnxruntime"`` or ``"openvino"``, on the CPU, from a file that is exported and compared with
        torch at the first use and then cached (`hematokit.models.runtimes.exported`); ``"auto"``: onnxruntime if it is
        installed and the device is the CPU, else torch. By default torch; for an ONNX file, ``"auto"``.

    Returns
    -------
    Classifier or OnnxClassifier
        In evaluation mode, on the device; both are a `hematokit.models.Model`, whose ``identity`` is computed from the
        loaded content.

    Raises
    ------
    ModelError
        If files are missing, damaged or modified, the version is newer than this program, the ONNX file was not written
        by hematokit, or the runtime cannot be used.
    PluginError
        If the plugin that provides the backbone is not installed.
    """
    return _load(read_model(find_model(path)), device, runtime)


def _load(files: ModelFiles, device: str | torch.device, runtime: str | None) -> Classifier | OnnxClassifier:
    default = "auto" if files.config is None else "torch"
    engine = _choose_runtime(files.path, device, runtime or default)
    if engine == "torch":
        return open_bundle(files, device)
    if files.config is None:
        return OnnxClassifier(files.content, engine=engine, what=str(files.path))
    try:
        return open_exported(files, files.config, engine)
    except ModelError as error:
        if runtime != "auto":
            raise
        model = open_bundle(files, device)
        _log.warning("torch computes the model: %s", error)
        return model


@overload
def cached_model(path: str | Path, device: str, runtime: Literal["torch"], *, identity: str = "") -> Classifier: ...


@overload
def cached_model(path: str | Path, device: str = "auto", runtime: str = "auto", *, identity: str = "") -> Model: ...


def cached_model(path: str | Path, device: str = "auto", runtime: str = "auto", *, identity: str = "") -> Model:
    """Load a model, or return the loaded one with the same content. It is shared, so it must not be changed.

    Parameters
    ----------
    path : path
        Bundle, run or ONNX file.
    device : str
        As `hematokit.load_model` takes it.
    runtime : str
        As `hematokit.load_model` takes it.
    identity : str, optional
        Content hash of the model, as returned by `hematokit.models.bundle.bundle_identity`. If that model is loaded,
        the files are not read again, even if they have changed since.

    Returns
    -------
    Model
        Its ``identity`` is computed from the content that was loaded.

    Raises
    ------
    ModelError
        If the files have another content hash than `identity`, or as for `hematokit.load_model`.
    PluginError
        As for `hematokit.load_model`.
    """
    with _LOADING:
        wanted = (identity, device, runtime)
        model = _LOADED.get(wanted) if identity else None
        if model is None:
            files = read_model(find_model(path))
            if identity not in ("", files.identity):
                raise ModelError(
                    f"{printable(str(path))} is another model than the one used so far (SHA-256 "
                    f"{files.identity[:12]}, not {identity[:12]}): it was trained again or replaced; restore it, or "
                    "classify again into another folder"
                )
            wanted = (files.identity, device, runtime)
            model = _LOADED.get(wanted) or _LOADED.get((files.identity, *_computed_by(files.path, device, runtime)))
        if model is None:
            # Freed before the next model is loaded: two large models may not fit in memory.
            _LAST.clear()
            model = _load(files, device, runtime)
            _LOADED[model.identity, str(model.device), model.runtime] = model
        _LOADED[wanted] = model
        _LAST[:] = [model]
        return model


def _computed_by(path: Path, device: str, runtime: str) -> tuple[str, str]:
    """Return the device and the runtime of the loaded model."""
    chosen = _choose_runtime(path, device, runtime)
    if chosen != "torch":
        return "cpu", chosen
    from hematokit.models.classifier import resolve_device

    return str(resolve_device(device)), chosen


def _choose_runtime(path: Path, device: str | torch.device, runtime: str) -> str:
    """Return the runtime of a model.

    Parameters
    ----------
    path : Path
        Bundle folder or ONNX file, as `hematokit.models.find_model` returns it.
    device : str or torch.device
        onnxruntime and OpenVINO take ``"auto"`` and ``"cpu"``.
    runtime : str
        As `load_model` takes it.

    Returns
    -------
    str
        ``"torch"``, ``"onnxruntime"`` or ``"openvino"``.

    Raises
    ------
    ModelError
        If the runtime is unknown, not installed, cannot use the device or cannot compute such a file.
    """
    if runtime not in get_args(Runtime):
        raise ModelError(f"runtime {runtime!r} does not exist; choose among {', '.join(get_args(Runtime))}")
    onnx = path.is_file()
    if onnx and runtime == "torch":
        raise ModelError(
            f"{path} is an ONNX file, which torch does not compute; use --runtime auto, or give the bundle"
        )
    if runtime == "auto" and not onnx and not (is_installed(_AUTO) and _is_cpu(device)):
        return "torch"
    engine = _AUTO if runtime == "auto" else runtime
    if engine not in ENGINES:
        return engine
    if str(device) not in ("auto", "cpu"):
        raise ModelError(f"runtime {engine} computes on the CPU, not on {device}; use --device cpu, or torch")
    if not is_installed(engine):
        others = [name for name in ENGINES if is_installed(name)] if runtime == "auto" else []
        hint = f", or use --runtime {others[0]}" if others else ""
        raise ModelError(f"runtime {engine} needs the package {engine}; {INSTALL[engine]}{hint}")
    return engine


def _is_cpu(device: str | torch.device) -> bool:
    if str(device) == "auto":
        from hematokit.models.classifier import resolve_device

        return resolve_device("auto").type == "cpu"
    return str(device) == "cpu"
