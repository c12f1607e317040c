"""The one cache of loaded models, for the command line, the viewer and the server."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, overload
from weakref import WeakValueDictionary

from hematokit.errors import ModelError
from hematokit.imaging.reading import printable
from hematokit.models.bundle import find_model, read_model
from hematokit.models.loading import load_files
from hematokit.models.model import Model
from hematokit.models.runtimes.choosing import choose_runtime

if TYPE_CHECKING:
    from hematokit.models.classifier import Classifier

__all__ = ["cached_model"]

_LOADED: Final[WeakValueDictionary[tuple[str, str, str], Model]] = WeakValueDictionary()
"""By identity, device and runtime: every model that something still uses."""
_LAST: Final[list[Model]] = []
"""The model used last, kept even if nothing uses it. Others are not: a process may use many models."""
_LOADING: Final = threading.RLock()


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
        The model that is wanted, as `hematokit.models.bundle.bundle_identity` gives it. If it is loaded, the files are
        not read again, and may have changed since.

    Returns
    -------
    Model
        Its ``identity`` is computed from the content that was loaded.

    Raises
    ------
    ModelError
        If the files are those of another model than `identity` says, or as of `hematokit.load_model`.
    PluginError
        As of `hematokit.load_model`.
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
            # Before the next one is loaded: two large ones may not fit into the memory.
            _LAST.clear()
            model = load_files(files, device, runtime)
            _LOADED[model.identity, str(model.device), model.runtime] = model
        _LOADED[wanted] = model
        _LAST[:] = [model]
        return model


def _computed_by(path: Path, device: str, runtime: str) -> tuple[str, str]:
    """Device and runtime as a loaded model states them."""
    chosen = choose_runtime(path, device, runtime)
    if chosen != "torch":
        return "cpu", chosen
    from hematokit.models.devices import resolve_device

    return str(resolve_device(device)), chosen
