"""The work that takes time, as generators that yield their steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from hematokit.errors import FieldError, StoreError
from hematokit.files import shell_word
from napari_hematonet._libraries import keep_triton_out, loading_beside_the_window
from napari_hematonet.background import Background, Note

if TYPE_CHECKING:
    import pandas as pd

    from hematokit.detection.windows import Examination
    from hematokit.imaging.fieldfiles import Field
    from hematokit.pipelines.field_run import FieldsResult
    from hematokit.progress import Progress
    from napari_hematonet.state import FieldState

__all__ = [
    "Added",
    "Cells",
    "ClassifyRequest",
    "DEMO_NAME",
    "Found",
    "Loaded",
    "Moved",
    "Stored",
    "classified_cell",
    "classified_folder",
    "classify_steps",
    "computed_by",
    "demo_folder",
    "find_demo_model",
    "get_model",
    "make_demo_model",
    "runtime_choices",
    "stored_cells",
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
        Of any kind, as `hematokit.load_model` and `hematokit.pipelines.interactive.classify_live` raise them.
    """
    from hematokit.detection.windows import Examination, make_detector
    from hematokit.pipelines.interactive import classify_live

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
    from hematokit.pipelines.interactive import is_out_of_memory

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

        import hematokit.models.classifier
        import hematokit.pipelines.interactive  # noqa: F401
        from hematokit.models import resolve_device

    gpus = [(f"cuda:{n}", f"GPU {n}: {torch.cuda.get_device_name(n)}") for n in range(torch.cuda.device_count())]
    chosen = resolve_device("auto").type
    best = {"cuda": gpus[0][1] if gpus else "GPU", "mps": "Apple GPU"}.get(chosen, "CPU")
    others = [("mps", "Apple GPU")] if chosen == "mps" else []
    yield [("auto", f"automatic ({best})"), *gpus, *others, ("cpu", "CPU")]


@dataclass(frozen=True)
class Added:
    """A missed cell with its class: one row of a cells table."""

    state: FieldState
    row: pd.DataFrame


@dataclass(frozen=True)
class Stored:
    """A store has been written; what is said of it."""

    message: str


def classified_cell(state: FieldState, y: float, x: float) -> Iterator[Added]:
    """Make a cell at a place, in pixels of the field, and classify it at once.

    Raises
    ------
    FieldError
        If the image or the model has gone, or the place is outside the image.
    ModelError
        If the model cannot be loaded.
    """
    from hematokit.pipelines.interactive import classify_one

    if state.field is None:
        raise FieldError("the image of these cells is not there; open the image again")
    if state.classifier is None and state.model_path:
        state.classifier = get_model(state.model_path, identity=state.model_identity)
    model = state.classifier
    if model is None:
        raise FieldError("these cells come without a model, so a missed one cannot be classified; classify the field")
    row = classify_one(
        state.field,
        model,
        y,
        x,
        cells=state.review.cells,
        field_id=state.review.field_id,
        model_pixel_size_um=state.model_pixel_size_um,
    )
    yield Added(state, row)


def stored_cells(state: FieldState, store: Path, tell: Progress) -> Iterator[Stored]:
    """Write the reviewed cells of a field to a store.

    Raises
    ------
    FieldError, ImageError, StoreError
        As `hematokit.pipelines.store_corrected.store_corrected`.
    """
    from hematokit.pipelines.store_corrected import store_corrected

    if state.field is None:
        raise FieldError("the image of these cells is not there; open the image again")
    summary = store_corrected(
        state.review,
        _image_of(state.field, state.plane),
        store,
        pixel_size_um=state.pixel_size_um,
        patch_size=None if store.exists() else getattr(state.classifier, "patch_size", None),
        progress=tell,
    )
    # What the command line says of pixel sizes names an option that nobody has here.
    said = [note for note in summary.notes if "--pixel-size" not in note]
    if len(said) < len(summary.notes):
        said.append("without a pixel size, as nobody knows it")
    said += [warning for warning in summary.warnings if "set-pixel-size" not in warning]
    notes = "".join(f"; {note}" for note in said)
    count = "1 cell" if summary.added == 1 else f"{summary.added:,} cells"
    name = shell_word(store)
    yield Stored(
        f"{count} added to {store.name}{notes}. "
        f"Next, in a terminal: hematokit split {name}, then hematokit train {name} --output runs/corrected"
    )


def _image_of(field: Field, plane: tuple[int, ...]) -> Path | Field:
    """The file of a field; the field itself if it has none, is one of a stack, or is shown in another orientation."""
    from hematokit.imaging.fieldfiles import field_name, file_orientation

    path = Path(field.path)
    own = path.exists() and not plane and (path.is_file() or field_name(path) == field.name)
    own = own and file_orientation(path) == field.orientation
    return path if own else field


DEMO_NAME: Final = "demo model (drawn cells)"


def demo_folder() -> Path:
    """Where the demonstration is kept; need not exist."""
    from hematokit.models.runtimes.exported import cache_folder

    return cache_folder() / "demo"


def find_demo_model() -> Path | None:
    """Return the run of the demonstration if its training has ended, else None."""
    run = demo_folder() / "run"
    return run if (run / "bundle" / "config.json").is_file() else None


_SETTLED: Final = 5.0
"""Seconds after which the pace of a step is known well enough to say when it ends."""


def make_demo_model(background: Background, device: str = "auto") -> Iterator[object]:
    """Train the demonstration's model, or go on where that was stopped.

    Parameters
    ----------
    background : Background
        Told how far it is.
    device : str
        Device to train on.

    Yields
    ------
    Path
        The run.

    Raises
    ------
    HematokitError
        As `hematokit.pipelines.demo.train_demo`.
    """
    made = find_demo_model()
    if made is None:
        keep_triton_out()
        from hematokit.pipelines.demo import train_demo

        going = _Going(background)
        made = train_demo(demo_folder(), device=device, progress=going.tell, step=going.begin)
    yield made


class _Going:
    """Says what is being done, and how long that takes yet."""

    def __init__(self, background: Background) -> None:
        self._background = background
        self.begin("Drawing cells")

    def begin(self, step: str) -> None:
        """Take note of what begins."""
        self._step = step
        self._first: tuple[float, int] | None = None
        self._background.tell(0, None, step)

    def tell(self, done: int, total: int | None, message: str) -> None:
        """Tell how far it is; what the step itself says is for a terminal."""
        now = time.monotonic()
        # A training that goes on does not begin at nothing.
        begun, first = self._first = self._first or (now, done)
        words = self._step
        if total and done > first and now - begun > _SETTLED:
            words = f"{words}, {_left((now - begun) / (done - first) * (total - done))}"
        self._background.tell(done, total, words)


def _left(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return "less than a minute left" if minutes <= 1 else f"some {minutes} minutes left"


def classified_folder(
    job: Background, folder: Path, model: str, output: Path, options: dict[str, Any]
) -> Iterator[FieldsResult]:
    keep_triton_out()
    from hematokit.pipelines.classify import classify

    yield classify([folder], model, output, progress=job.tell, **options)
