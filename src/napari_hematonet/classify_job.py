"""Classifying a field in the background: what is asked, what comes of it, and how it is stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hematokit.errors import StoreError
from napari_hematonet._libraries import keep_triton_out, loading_beside_the_window
from napari_hematonet.background import Background, Note

if TYPE_CHECKING:
    import pandas as pd

    from hematokit.detection.windows import Examination
    from hematokit.imaging.fieldfiles import Field

__all__ = [
    "Cells",
    "ClassifyRequest",
    "Found",
    "Loaded",
    "Moved",
    "classify_steps",
    "get_model",
    "runtime_choices",
    "warm_up",
]


@dataclass(frozen=True)
class ClassifyRequest:
    """What is to be classified, with what.

    Attributes
    ----------
    field : Field
    field_id, source : str
    model_path : str
    device : str
    detector : str
    region : tuple of ndarray (n, 2)
        Polygons in pixels of the field; empty for the whole of it.
    runtime : str
        What computes the model, as `hematokit.load_model` takes it.
    model_pixel_size_um : float, optional
        Pixel size the model was trained at, instead of what it records.
    """

    field: Field
    field_id: str
    source: str
    model_path: str
    device: str = "auto"
    detector: str = "nuclei"
    region: tuple[npt.NDArray[np.float64], ...] = ()
    runtime: str = "torch"
    model_pixel_size_um: float | None = None


@dataclass(frozen=True)
class Loaded:
    """The model is ready.

    Attributes
    ----------
    model : Classifier or OnnxClassifier
    computed_by : str
        Runtime and device, for people.
    journal : Path or None
        Where the corrections of the image are kept; None if they cannot be.
    earlier : int
        Corrections that it holds already.
    """

    model: Any
    computed_by: str
    journal: Path | None = None
    earlier: int = 0


@dataclass(frozen=True)
class Moved:
    """Another copy of the model goes on, on the CPU.

    Attributes
    ----------
    model : Classifier
    """

    model: Any


@dataclass(frozen=True)
class Found:
    """The cells have been found; they are not classified yet."""

    examination: Examination


@dataclass(frozen=True)
class Cells:
    """Some more cells have their classes."""

    table: pd.DataFrame


def classify_steps(request: ClassifyRequest, background: Background) -> Iterator[object]:
    """Load the model, find the cells, classify them.

    Parameters
    ----------
    request : ClassifyRequest
    background : Background
        Told how far it is.

    Yields
    ------
    Loaded, Found, Cells, Note, Moved
        In this order; any number of the last three.

    Raises
    ------
    HematokitError
        Of any kind, as `hematokit.load_model` and `hematokit.pipelines.live.classify_live` raise them.
    """
    from hematokit.detection.windows import Examination, make_detector
    from hematokit.pipelines.live import classify_live

    notes: list[Note | Moved] = []

    def note(text: str) -> None:
        notes.append(Note(text))

    background.tell(0, None, "loading the model")
    detector = make_detector(request.detector)
    journal, earlier = _journal(request, note)
    model = get_model(request.model_path, request.device, request.runtime, note)
    yield from _taken(notes)
    yield Loaded(model, computed_by(model), journal, earlier)
    background.tell(0, None, "looking for cells")
    parts = classify_live(
        request.field,
        detector,
        model,
        field_id=request.field_id,
        source=request.source,
        region=request.region,
        model_pixel_size_um=request.model_pixel_size_um,
        progress=background.tell,
        note=note,
        moved=lambda copy: notes.append(Moved(copy)),
    )
    for part in parts:
        yield from _taken(notes)
        if isinstance(part, Examination):
            # The first batch takes a while; meanwhile the form would say that cells are looked for.
            background.tell(0, len(part.cells), "classifying cells")
            yield Found(part)
            background.wait()
        else:
            yield Cells(part)
    yield from _taken(notes)


def _journal(request: ClassifyRequest, note: Callable[[str], None]) -> tuple[Path | None, int]:
    """Where the corrections of the image go, and how many cells it speaks of already.

    Raises
    ------
    StoreError
        If the file is damaged: said before the work, not when the first correction cannot be saved.
    """
    from hematokit.review.journal import journal_of
    from hematokit.store.corrections import read_corrections, standing_corrections

    try:
        path = journal_of(request.field, request.field_id)
    except StoreError as error:
        note(f"corrections of this image are kept only until you close the viewer: {error}")
        return None, 0
    return path, len({entry.cell_id for entry in standing_corrections(read_corrections(path))})


def _taken(notes: list[Note | Moved]) -> list[Note | Moved]:
    taken = list(notes)
    notes.clear()
    return taken


def get_model(
    path: str,
    device: str = "auto",
    runtime: str = "torch",
    note: Callable[[str], None] = lambda text: None,
    *,
    identity: str = "",
) -> Any:
    """Load a model, or return the one that is loaded (`hematokit.models.cached_model`).

    Parameters
    ----------
    path : str
        Run, bundle or ONNX file.
    device, runtime : str
        As `hematokit.load_model` takes them; of an ONNX file, torch stands for whatever is installed.
    note : callable
        Told if a graphics processor has too little memory for it, and the CPU computes.
    identity : str, optional
        The model that is wanted, where that is known.

    Raises
    ------
    ModelError, PluginError
        As `hematokit.models.cached_model`.
    """
    keep_triton_out()
    from hematokit.models import cached_model
    from hematokit.models.bundle import is_onnx
    from hematokit.pipelines.live import is_out_of_memory

    if runtime == "torch" and is_onnx(path):
        runtime = "auto"
    try:
        return cached_model(path, device, runtime, identity=identity)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # Outside the handler, where the error no longer holds the half of the model that did fit.
    note("the graphics processor's memory is full: going on on the CPU, which takes longer")
    return cached_model(path, "cpu", runtime, identity=identity)


def runtime_choices() -> list[tuple[str, str]]:
    """Return what may compute a model here, as words and name for `hematokit.load_model`; torch, which all have, first.

    The others compute on the CPU, from a file that is exported at the first use.
    """
    from hematokit.models.runtimes.engines import ENGINES, is_installed

    others = [engine for engine in ENGINES if is_installed(engine)]
    words = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
    return [
        ("PyTorch", "torch"),
        *((f"{words.get(engine, engine)} (CPU)", engine) for engine in others),
        *([("automatic", "auto")] if others else []),
    ]


def computed_by(model: Any) -> str:
    """Say which runtime and device compute a model: ``"onnxruntime on the CPU"``."""
    device = str(model.device)
    name = "the CPU" if device == "cpu" else device
    if device.startswith("cuda"):
        import torch

        name = f"the GPU ({torch.cuda.get_device_name(model.device)})"
    return f"{getattr(model, 'runtime', 'torch')} on {name}"


def warm_up() -> Iterator[object]:
    """Import what classifying needs, before the user wants it, and say which devices there are.

    Yields
    ------
    list of (str, str)
        Name of a device and what to call it; ``auto`` first.
    """
    with loading_beside_the_window():
        import timm  # noqa: F401
        import torch

        from hematokit.models import resolve_device

    gpus = [(f"cuda:{n}", f"GPU {n}: {torch.cuda.get_device_name(n)}") for n in range(torch.cuda.device_count())]
    chosen = resolve_device("auto").type
    best = {"cuda": gpus[0][1] if gpus else "GPU", "mps": "Apple GPU"}.get(chosen, "CPU")
    others = [("mps", "Apple GPU")] if chosen == "mps" else []
    yield [("auto", f"automatic ({best})"), *gpus, *others, ("cpu", "CPU")]
