"""Models as the viewer knows them, and as the worker process loads them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from hematokit.errors import ExplanationError, FieldError
from hematokit.progress import no_log

if TYPE_CHECKING:
    from hematokit.models import Classifier, Model
    from hematokit.progress import Progress
    from hematokit.taxonomy import Taxonomy
    from napari_hematonet.state import FieldState

__all__ = ["ModelInfo", "WantedModel", "get_model", "runtime_choices", "warm_up"]

M = TypeVar("M", bound="Model")


_RECENT: Final[deque[Model]] = deque(maxlen=3)
"""Models used last: each stays loaded while a layer of its cells is likely to be looked at."""


@dataclass(frozen=True)
class ModelInfo:
    """Metadata of a model that is loaded in the worker process.

    Attributes
    ----------
    path : str
        Run, bundle or ONNX file.
    identity, runtime, taxonomy, patch_size, pixel_size_um
        As of `hematokit.models.Model`.
    device : str
    computed_by : str
        Runtime and device, for people: ``"onnxruntime on the CPU"``.
    """

    path: str
    identity: str
    runtime: str
    device: str
    taxonomy: Taxonomy
    patch_size: int
    pixel_size_um: float | None
    computed_by: str

    @property
    def codes(self) -> tuple[str, ...]:
        """Class codes in the order of the logits."""
        return self.taxonomy.codes

    @classmethod
    def of(cls, model: Model, path: str) -> ModelInfo:
        """Describe a loaded model."""
        device = str(model.device)
        name = "the CPU" if device == "cpu" else device
        if device.startswith("cuda"):
            import torch

            name = f"the GPU ({torch.cuda.get_device_name(model.device)})"
        text = f"{model.runtime} on {name}"
        known = (model.taxonomy, model.patch_size, model.pixel_size_um)
        return cls(path, model.identity, model.runtime, device, *known, text)


@dataclass(frozen=True)
class WantedModel:
    """Model to load.

    Attributes
    ----------
    path : str
        Run, bundle or ONNX file.
    device, runtime : str
        As `hematokit.load_model` takes them.
    identity : str
        Of the model that classified the cells; empty where any will do.
    model : Model or None
        The model itself, where somebody gave one to the viewer that comes from no file.
    """

    path: str
    device: str = "auto"
    runtime: str = "torch"
    identity: str = ""
    model: Model | None = None

    @classmethod
    def of(cls, state: FieldState) -> WantedModel:
        """Return the model that classified the cells of a layer."""
        known = state.classifier
        if known is None:
            return cls(state.model_path, identity=state.model_identity)
        if not state.model_path:
            return cls("", runtime=known.runtime, model=known)
        return cls(state.model_path, str(getattr(known, "device", "auto")), known.runtime, known.identity)

    def load(self) -> Model:
        """Return the model; load it if necessary.

        Raises
        ------
        FieldError
            If the cells come without a model.
        ModelError, PluginError
            As `hematokit.models.cached_model`.
        """
        if self.model is not None:
            return self.model
        if not self.path:
            raise FieldError("these cells have no model, so a missed cell cannot be classified; classify the field")
        return get_model(self.path, self.device, self.runtime, identity=self.identity)

    def load_explainable(self) -> Classifier:
        """Return the model with the torch runtime.

        Raises
        ------
        ExplanationError
            If the cells come without a model, or it has gone.
        ModelError, PluginError
            As `hematokit.models.cached_model`; also of an ONNX file, which computes no gradients.
        """
        from hematokit.explanation.at_cells import explainable

        if self.model is None and self.path and self.runtime == "torch" and self.device != "auto":
            return explainable(self.load(), self.path, identity=self.identity)
        if self.model is None and self.path and not Path(self.path).exists():
            raise ExplanationError(
                f"the model of these cells is no longer there, so they cannot be explained: {self.path}"
            )
        return _recent(explainable(self.model, self.path, identity=self.identity))


def get_model(
    path: str,
    device: str = "auto",
    runtime: str = "torch",
    note: Callable[[str], None] = no_log,
    *,
    identity: str = "",
) -> Model:
    """Load a model, or return the one that is loaded (`hematokit.models.cached_model`).

    Parameters
    ----------
    path : str
        Run, bundle or ONNX file.
    device, runtime : str
        As `hematokit.load_model` takes them; of an ONNX file, torch stands for whatever is installed.
    note : callable
        Called with a line if a graphics processor has too little memory for it, and the CPU computes.
    identity : str, optional
        The model that is wanted, where that is known.

    Raises
    ------
    ModelError, PluginError
        As `hematokit.models.cached_model`.
    """
    from hematokit.models import cached_model
    from hematokit.models.bundle import is_onnx
    from hematokit.pipelines.interactive import is_out_of_memory

    if runtime == "torch" and is_onnx(path):
        runtime = "auto"
    try:
        return _recent(cached_model(path, device, runtime, identity=identity))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # Outside the handler, because the error keeps the loaded part of the model in memory.
    note("the graphics processor's memory is full: continuing on the CPU, which is slower")
    return _recent(cached_model(path, "cpu", runtime, identity=identity))


def _recent(model: M) -> M:
    """Keep a model as one of those used last."""
    if model in _RECENT:
        _RECENT.remove(model)
    _RECENT.append(model)
    return model


def detector_names() -> list[str]:
    """Return the names of all registered detectors, including those of plugins."""
    from hematokit.plugins import load_plugins

    return load_plugins().detectors.names()


def runtime_choices() -> list[tuple[str, str]]:
    """Return the installed runtimes as pairs of label and name for `hematokit.load_model`, torch first.

    All but torch compute on the CPU, from a file that is exported at the first use.
    """
    from hematokit.models.runtimes.engines import ENGINES, is_installed

    others = [engine for engine in ENGINES if is_installed(engine)]
    words = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
    return [
        ("PyTorch", "torch"),
        *((f"{words.get(engine, engine)} (CPU)", engine) for engine in others),
        *([("automatic", "auto")] if others else []),
    ]


def warm_up(*, tell: Progress) -> Iterator[object]:
    """Import the modules for classifying in advance, and list the devices.

    Yields
    ------
    list of (str, str)
        Name of a device and what to call it; ``auto`` first.
    """
    tell(0, None, "loading torch")
    import timm  # noqa: F401
    import torch

    import hematokit.models.classifier
    import hematokit.pipelines.interactive  # noqa: F401
    from hematokit.models import resolve_device

    gpus = [(f"cuda:{n}", f"GPU {n}: {torch.cuda.get_device_name(n)}") for n in range(torch.cuda.device_count())]
    chosen = resolve_device("auto").type
    best = {"cuda": gpus[0][1] if gpus else "GPU", "mps": "Apple GPU"}.get(chosen, "CPU")
    others = [("mps", "Apple GPU")] if chosen == "mps" else []
    yield [("auto", f"automatic ({best})"), *gpus, *others, ("cpu", "CPU")]
