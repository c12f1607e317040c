"""Background jobs, as generators that yield their steps.

They run in the worker process, except where their docstring states otherwise. This module does not import napari or
Qt, and only the functions that compute import torch. Arguments and yielded values can be pickled. ``tell`` is the
`Progress` of a job; raising from it ends the job.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from hematokit.errors import FieldError, StoreError, shell_word
from napari_hematonet.models import ModelInfo, WantedModel, get_model
from napari_hematonet.worker import Note

if TYPE_CHECKING:
    import pandas as pd

    from hematokit.detection.windows import Examination
    from hematokit.explanation.at_cells import ExplainedCell
    from hematokit.imaging.fieldfiles import Field
    from hematokit.models import Model
    from hematokit.plugins import MadeExplainer
    from hematokit.progress import Progress
    from napari_hematonet.state import FieldState

__all__ = [
    "DEMO_NAME",
    "Cells",
    "ClassifyRequest",
    "Doing",
    "ExplainRequest",
    "FolderDone",
    "Found",
    "Loaded",
    "Moved",
    "Stored",
    "classified_cell",
    "classified_folder",
    "classify_steps",
    "demo_folder",
    "explained_cells",
    "find_demo_model",
    "make_demo_model",
    "stored_cells",
]


_EXPLAINERS: Final[WeakKeyDictionary[Model, dict[str, MadeExplainer]]] = WeakKeyDictionary()
"""Explainers made for each model; they keep what they computed about it."""


@dataclass(frozen=True)
class ClassifyRequest:
    """Image, model and options of a classification.

    Attributes
    ----------
    field_id, source : str
    model_path : str
    device : str
    detector : str
    region : tuple of ndarray (n, 2)
        Polygons in pixels of the field; empty for the whole field.
    runtime : str
        Runtime of the model, as for `hematokit.load_model`.
    model_pixel_size_um : float, optional
        Pixel size of the training images; replaces the one that the model records.
    """

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
    """Message that the model is loaded.

    Attributes
    ----------
    model : ModelInfo
    journal : Path or None
        File of the corrections of the image; None if they cannot be kept.
    earlier : int
        Number of cells with corrections in it.
    """

    model: ModelInfo
    journal: Path | None = None
    earlier: int = 0


@dataclass(frozen=True)
class Moved:
    """Message that a copy of the model continues on the CPU."""

    model: ModelInfo


@dataclass(frozen=True)
class Found:
    """Message that the cells are detected, but not classified yet."""

    examination: Examination


@dataclass(frozen=True)
class Cells:
    """Further classified cells."""

    table: pd.DataFrame


def classify_steps(request: ClassifyRequest, *, field: Field, tell: Progress) -> Iterator[object]:
    """Load the model, detect the cells and classify them.

    Parameters
    ----------
    request : ClassifyRequest
    field : Field
    tell : Progress

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

    tell(0, None, "loading the model")
    detector = make_detector(request.detector)
    journal, earlier = _journal(field, request.field_id, note)
    model = get_model(request.model_path, request.device, request.runtime, note)
    yield from _taken(notes)
    yield Loaded(ModelInfo.of(model, request.model_path), journal, earlier)
    tell(0, None, "looking for cells")
    parts = classify_live(
        field,
        detector,
        model,
        field_id=request.field_id,
        source=request.source,
        region=request.region,
        model_pixel_size_um=request.model_pixel_size_um,
        progress=tell,
        note=note,
        moved=lambda copy: notes.append(Moved(ModelInfo.of(copy, request.model_path))),
    )
    for part in parts:
        yield from _taken(notes)
        if isinstance(part, Examination):
            # The first batch takes a while; until then the form would still display the detection.
            tell(0, len(part.cells), "classifying cells")
            yield Found(part)
        else:
            yield Cells(part)
    yield from _taken(notes)


def _journal(field: Field, field_id: str, note: Callable[[str], None]) -> tuple[Path | None, int]:
    """Return the file for corrections of the image, and the number of cells that have corrections in it.

    Raises
    ------
    StoreError
        If the file is damaged. Raised before the classification, not at the first correction.
    """
    from hematokit.review.journal import journal_of
    from hematokit.store.corrections import read_corrections, standing_corrections

    try:
        path = journal_of(field, field_id)
    except StoreError as error:
        note(f"corrections of this image are kept only until you close the viewer: {error}")
        return None, 0
    return path, len({entry.cell_id for entry in standing_corrections(read_corrections(path))})


def _taken(notes: list[Note | Moved]) -> list[Note | Moved]:
    taken = list(notes)
    notes.clear()
    return taken


@dataclass(frozen=True)
class Stored:
    """Message that a store has been written."""

    message: str


def classified_cell(
    wanted: WantedModel,
    cells: pd.DataFrame,
    place: tuple[float, float],
    field_id: str,
    model_pixel_size_um: float | None,
    *,
    field: Field,
    tell: Progress,
) -> Iterator[ModelInfo | pd.DataFrame]:
    """Add a cell at a position ``(y, x)`` in pixels of the field, and classify it.

    Yields
    ------
    ModelInfo, DataFrame
        The model; the cell, one row of a cells table.

    Raises
    ------
    FieldError
        If there is no model, or the place is outside the image.
    ModelError
        If the model cannot be loaded.
    """
    from hematokit.pipelines.interactive import classify_one

    tell(0, None, "classifying the cell")
    model = wanted.load()
    yield ModelInfo.of(model, wanted.path)
    yield classify_one(field, model, *place, cells=cells, field_id=field_id, model_pixel_size_um=model_pixel_size_um)


def stored_cells(state: FieldState, store: Path, tell: Progress) -> Iterator[Stored]:
    """Write the reviewed cells of a field to a store. Runs in the process of the viewer, because it reads its review.

    Raises
    ------
    FieldError, ImageError, StoreError
        As `hematokit.pipelines.store_corrected.store_corrected`.
    """
    from hematokit.pipelines.store_corrected import store_corrected

    if state.field is None:
        raise FieldError("the image of these cells is not open; open the image again")
    summary = store_corrected(
        state.review,
        _image_of(state.field, state.plane),
        store,
        pixel_size_um=state.pixel_size_um,
        patch_size=None if store.exists() else getattr(state.classifier, "patch_size", None),
        progress=tell,
    )
    # Messages about pixel sizes name an option of the command line that the viewer does not have.
    messages = [note for note in summary.notes if "--pixel-size" not in note]
    if len(messages) < len(summary.notes):
        messages.append("without a pixel size, because it is unknown")
    messages += [warning for warning in summary.warnings if "set-pixel-size" not in warning]
    notes = "".join(f"; {note}" for note in messages)
    count = "1 cell" if summary.added == 1 else f"{summary.added:,} cells"
    name = shell_word(store)
    yield Stored(
        f"{count} added to {store.name}{notes}. "
        f"Next, in a terminal: hematokit split {name}, then hematokit train {name} --output runs/corrected"
    )


def _image_of(field: Field, plane: tuple[int, ...]) -> Path | Field:
    """Return the file of a field, or the field if it has no file, is a plane of a stack, or is shown rotated."""
    from hematokit.imaging.fieldfiles import field_name, file_orientation

    path = Path(field.path)
    own = path.exists() and not plane and (path.is_file() or field_name(path) == field.name)
    own = own and file_orientation(path) == field.orientation
    return path if own else field


DEMO_NAME: Final = "demo model (drawn cells)"


def demo_folder() -> Path:
    """Return the folder of the demo model; it need not exist."""
    from hematokit.models.runtimes.exported import cache_folder

    return cache_folder() / "demo"


def find_demo_model() -> Path | None:
    """Return the run of the demo model if its training is complete, else None."""
    run = demo_folder() / "run"
    return run if (run / "bundle" / "config.json").is_file() else None


_SETTLED: Final = 5.0
"""Seconds after which the speed of a step suffices to estimate the remaining time."""


def make_demo_model(device: str = "auto", *, tell: Progress) -> Iterator[Path]:
    """Train the demo model, or resume its training.

    Parameters
    ----------
    device : str
        Device to train on.
    tell : Progress

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
        from hematokit.pipelines.demo import train_demo

        going = _Going(tell)
        made = train_demo(demo_folder(), device=device, progress=going.tell, step=going.begin)
    yield made


class _Going:
    """Progress with the current step and the remaining time."""

    def __init__(self, tell: Progress) -> None:
        self._tell = tell
        self.begin("Drawing cells")

    def begin(self, step: str) -> None:
        """Begin a step."""
        self._step = step
        self._first: tuple[float, int] | None = None
        self._tell(0, None, step)

    def tell(self, done: int, total: int | None, message: str) -> None:
        """Report progress; the message of the step is for a terminal and not used."""
        now = time.monotonic()
        # A resumed training does not start at 0.
        begun, first = self._first = self._first or (now, done)
        text = self._step
        if total and done > first and now - begun > _SETTLED:
            text = f"{text}, {_left((now - begun) / (done - first) * (total - done))}"
        self._tell(done, total, text)


def _left(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return "less than a minute left" if minutes <= 1 else f"about {minutes} minutes left"


@dataclass(frozen=True)
class FolderDone:
    """Message that the fields of a folder have been classified.

    Attributes
    ----------
    output : Path
        Folder of the results.
    lines : tuple of str
        Summary, as the command prints it.
    """

    output: Path
    lines: tuple[str, ...]


def classified_folder(
    folder: Path, model: str, output: Path, options: dict[str, Any], *, tell: Progress
) -> Iterator[FolderDone]:
    """Classify the fields of a folder, as ``hematokit classify`` does.

    Raises
    ------
    HematokitError
        As `hematokit.classify`.
    """
    from hematokit.pipelines.classify import classify

    result = classify([folder], model, output, progress=tell, **options)
    yield FolderDone(result.output, tuple(result.lines()))


@dataclass(frozen=True)
class ExplainRequest:
    """Cells to explain, with model, classes and explainer.

    Attributes
    ----------
    wanted : WantedModel
    cells : DataFrame
        Rows of the cells table.
    targets : tuple of str
        Code of the class to explain, for each cell.
    method : str
        Name of the explainer.
    model_pixel_size_um : float or None
        Pixel size of the training images; replaces the one that the model records.
    """

    wanted: WantedModel
    cells: pd.DataFrame
    targets: tuple[str, ...]
    method: str
    model_pixel_size_um: float | None


@dataclass(frozen=True)
class Doing:
    """Text that describes the current step."""

    text: str


def explained_cells(request: ExplainRequest, *, field: Field, tell: Progress) -> Iterator[Doing | Note | ExplainedCell]:
    """Explain cells of a field one after the other.

    Raises
    ------
    ExplanationError, ModelError, PluginError
        As `WantedModel.load_explainable` and `hematokit.explanation.at_cells.explain_at`.
    """
    from hematokit.explanation.at_cells import explain_at
    from hematokit.explanation.running import make_explainer

    yield Doing("Loading the model …")
    classifier = request.wanted.load_explainable()
    made = _EXPLAINERS.setdefault(classifier, {})
    if request.method not in made:
        made[request.method] = make_explainer(request.method)
    yield Doing(f"Computing {request.method} …")
    notes: list[str] = []
    for explained in explain_at(
        field,
        request.cells,
        classifier,
        made[request.method],
        request.targets,
        model_pixel_size_um=request.model_pixel_size_um,
        progress=tell,
        log=notes.append,
    ):
        yield from (Note(text) for text in notes)
        notes.clear()
        yield explained
