"""The choice of cells to explain, of the class explained, and of uncertain cells."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hematokit.annotations.cells import low_confidence_cells
from hematokit.errors import EvaluationError, ExplanationError, ImageError, printable
from hematokit.evaluation.sources import ALL_CELLS, StoreCells, open_training_store
from hematokit.imaging.fieldfiles import stated_pixel_size
from hematokit.imaging.reading import IMAGE_SUFFIXES, decode_rgb, read_bytes
from hematokit.models.field_cells import cut_patches
from hematokit.results.fields import file_stamp

if TYPE_CHECKING:
    from hematokit.imaging.fieldfiles import Field
    from hematokit.models import Classifier
    from hematokit.store import PatchStore

__all__ = [
    "ALL",
    "PREDICTED",
    "TRUE",
    "LOW_CONFIDENCE",
    "ChosenCells",
    "cells_of_field",
    "cells_of_images",
    "cells_of_store",
    "leading_classes",
    "open_cells_store",
    "read_cell_ids",
    "target_chooser",
    "uncertain_cells",
]

ALL: Final = "all"
LOW_CONFIDENCE: Final = "low-confidence"
PREDICTED: Final = "predicted"
TRUE: Final = "true"
_COLUMNS: Final = (
    "cell_id",
    "field_id",
    "source",
    "label",
    "smear_id",
    "patient_id",
    "group",
    "split",
    "pixel_size_um",
)

Positions = npt.NDArray[np.int64]
Patches = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ChosenCells:
    """Cells to explain.

    Attributes
    ----------
    cells : DataFrame
        One row a cell, at least ``cell_id``, ``source`` and ``label`` (empty where unknown).
    read : callable
        ``read(positions) -> patches (n, P, P, 3) uint8``.
    content : str
        Hash over identity and content of the cells, in their order.
    """

    cells: pd.DataFrame
    read: Callable[[Positions], Patches]
    content: str

    def __len__(self) -> int:
        return len(self.cells)


def open_cells_store(classifier: Classifier, model: Path, store: str | Path | None) -> PatchStore:
    """Open the store with the cells to explain; by default the one that the model was trained on.

    Parameters
    ----------
    classifier : Classifier
    model : Path
        Where it was loaded from, for messages.
    store : path, optional

    Raises
    ------
    ExplanationError
        If there is no store, or its patches are of another size than the model takes.
    StoreError
        If the store cannot be opened.
    """
    opened = open_training_store(classifier, model, store, ExplanationError)
    if opened.patch_size != classifier.patch_size:
        raise ExplanationError(
            f"store {opened.path} has patches of {opened.patch_size} px and {model} takes {classifier.patch_size} px; "
            "import the images again with that patch size"
        )
    return opened


def read_cell_ids(given: Sequence[str]) -> list[str]:
    """Return ids of cells; an entry that is a text file (.txt or .csv) is replaced by the ids in it, one per line.

    Raises
    ------
    ExplanationError
        If there are none, or a file is not UTF-8 text.
    """
    ids: list[str] = []
    for entry in given:
        path = Path(entry)
        if path.suffix.lower() in {".txt", ".csv"} and path.is_file():
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
            except UnicodeDecodeError as error:
                raise ExplanationError(f"{path} is not UTF-8 text; give a file with one cell id per line") from error
            ids += [line.strip() for line in lines if line.strip()]
        else:
            ids.append(entry)
    if not ids:
        raise ExplanationError("no cell was named; give ids with --cells ID,ID")
    return ids


def cells_of_store(
    store: PatchStore,
    codes: Sequence[str],
    *,
    cell_ids: Sequence[str] | None = None,
    split: str = "test",
    per_class: int | None = None,
    seed: int = 0,
) -> ChosenCells:
    """Choose cells of a store.

    Parameters
    ----------
    store : PatchStore
    codes : sequence of str
        The model's classes, in its order; with `per_class`, classes come in this order.
    cell_ids : sequence of str, optional
        Exactly these, in this order.
    split : str
        Without `cell_ids`: the cells of ``"train"``, ``"val"``, ``"test"`` or ``"all"``.
    per_class : int, optional
        Of these, so many of each of the model's classes, drawn at random.
    seed : int
        Of the draw.

    Raises
    ------
    ExplanationError
        If a cell does not exist, or nothing is left.
    EvaluationError
        If there is no such split.
    """
    if cell_ids is not None:
        table = store.cells.set_index("cell_id", drop=False)
        unknown = [cell_id for cell_id in cell_ids if cell_id not in table.index]
        if unknown:
            more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
            raise ExplanationError(
                f"store {store.path} has no cell {printable(unknown[0])!r}{more}; the column 'cell_id' of its cells "
                "lists them"
            )
        cells = table.loc[list(dict.fromkeys(cell_ids))].reset_index(drop=True)
    else:
        try:
            cells = StoreCells(store, split).cells
        except EvaluationError as error:
            raise ExplanationError(str(error).replace("evaluate every cell", "explain every cell")) from error
        if per_class is not None:
            cells = _some_of_each(cells, codes, per_class, seed)
    if not len(cells):
        where = "the whole store" if split == ALL_CELLS else f"split {split!r}"
        raise ExplanationError(f"{where} of {store.path} has no cell of the model's classes ({', '.join(codes)})")
    rows = cells["row"].to_numpy(np.int64)
    content = _digest(cells["cell_id"], cells["pixel_sha256"])
    kept = cells[[name for name in _COLUMNS if name in cells.columns]].reset_index(drop=True)
    return ChosenCells(kept, lambda positions: store.read_rows(rows[positions]), content)


def _some_of_each(cells: pd.DataFrame, codes: Sequence[str], count: int, seed: int) -> pd.DataFrame:
    if count < 1:
        raise ExplanationError(f"{count} cells of each class are none; give --per-class 1 or more")
    parts = []
    for code in codes:
        of_class = cells[cells["label"] == code]
        # Each class draws for itself: one class more or less does not change which cells of another are chosen.
        entropy = int.from_bytes(hashlib.sha256(code.encode()).digest()[:4])
        chosen = np.random.default_rng([seed, entropy]).permutation(len(of_class))[:count]
        # In the order drawn, so that fewer cells a class are the first of more.
        parts.append(of_class.iloc[chosen])
    return pd.concat(parts, ignore_index=True) if parts else cells.iloc[:0]


def cells_of_images(paths: Iterable[Path], codes: Sequence[str], patch_size: int) -> ChosenCells:
    """Return image files as cells; a folder means the images in it, at any depth.

    Parameters
    ----------
    paths : iterable of Path
        Files and folders.
    codes : sequence of str
        The model's classes: an image in a folder named after one has that label.
    patch_size : int
        Side that an image must have, in pixels.

    Raises
    ------
    ImageError
        If a file is missing, unreadable or of another size.
    ExplanationError
        If there is no image.
    """
    files = list(_image_files(paths))
    if not files:
        raise ExplanationError(f"no image files were given ({', '.join(sorted(IMAGE_SUFFIXES))})")
    by_name = {code.casefold(): code for code in codes}
    labels, digests, ids = [], [], []
    for root, file in files:
        # All of them now, so that a wrong one is known before the work begins.
        digests.append(hashlib.sha256(_read_image(file, patch_size).tobytes()).hexdigest())
        inside = file.parent.parts[-1:] if root is None else (root.name, *file.relative_to(root).parent.parts)
        folders = [part.casefold() for part in reversed(inside)]
        labels.append(next((by_name[part] for part in folders if part in by_name), ""))
        ids.append(printable(file.relative_to(root).as_posix() if root is not None else file.name))
    if len(set(ids)) < len(ids):
        ids = [printable(str(file)) for _, file in files]
    cells = pd.DataFrame(
        {"cell_id": ids, "source": [printable(str(file)) for _, file in files], "label": labels}, dtype=object
    )
    cells["pixel_size_um"] = np.array([stated_pixel_size(read_bytes(file)).um for _, file in files], np.float64)

    def read(positions: Positions) -> Patches:
        return np.stack([_read_image(files[place][1], patch_size) for place in positions.tolist()])

    return ChosenCells(cells, read, _digest(cells["cell_id"], digests))


def cells_of_field(
    field: Field,
    path: Path,
    cells: pd.DataFrame,
    wanted: Sequence[str] | str = ALL,
    *,
    patch_size: int,
    side: int,
    min_probability: float = 0.5,
) -> ChosenCells:
    """Choose cells of an open field.

    Parameters
    ----------
    field : Field
        The opened field; patches are cut from it as they are read.
    path : Path
        Its file or folder.
    cells : DataFrame
        Its cells, classified.
    wanted : sequence of str or str
        Ids of cells; ``"all"``; or ``"low-confidence"``, those below the threshold.
    patch_size : int
        Side of the model's patches in pixels.
    side : int
        Pixels of the field that a patch takes.
    min_probability : float
        Probability of the predicted class below which a cell has low confidence.

    Raises
    ------
    ExplanationError
        If a cell does not exist, or none has low confidence.
    """
    name = printable(str(path))
    given = [wanted] if isinstance(wanted, str) else list(dict.fromkeys(wanted))
    if given == [LOW_CONFIDENCE]:
        cells = cells[low_confidence_cells(cells, min_probability)]
        if not len(cells):
            raise ExplanationError(
                f"no cell of {name} is low-confidence: all have a probability of {min_probability:g} or more; raise "
                "--min-probability, or name cells"
            )
    elif given != [ALL]:
        table = cells.set_index("cell_id", drop=False)
        unknown = [cell_id for cell_id in given if cell_id not in table.index]
        if unknown:
            raise ExplanationError(
                f"{name} has no cell {printable(unknown[0])!r}; ids are those of hematokit classify, such as "
                f"{cells['cell_id'].iloc[0]}, or take {ALL} or {LOW_CONFIDENCE}"
            )
        cells = table.loc[given]
    # Contours are for figures of detection; a plain table opens everywhere.
    chosen = cells.drop(columns=["contour", "reviewed"], errors="ignore").reset_index(drop=True)

    def read(positions: Positions) -> Patches:
        return cut_patches(field, chosen.iloc[positions], patch_size, side=side)

    digest = hashlib.sha256(f"{file_stamp(path)}\n{side}\n".encode())
    digest.update("\n".join(chosen["cell_id"]).encode("utf-8", "surrogateescape"))
    if field.orientation != 1:
        # Earlier versions ignored the orientation: their maps are of other pixels under the same ids.
        digest.update(f"\norientation {field.orientation}".encode())
    return ChosenCells(chosen, read, digest.hexdigest())


def _image_files(paths: Iterable[Path]) -> list[tuple[Path | None, Path]]:
    """Return each image with the folder that it is in; None for a file that was named itself."""
    found: dict[Path, tuple[Path | None, Path]] = {}
    for path in paths:
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
                if file.suffix.lower() in IMAGE_SUFFIXES and not hidden and file.is_file() and not file.is_symlink():
                    found.setdefault(file.resolve(), (path, file))
        else:
            found.setdefault(path.resolve(), (None, path))
    return list(found.values())


def _read_image(path: Path, side: int) -> Patches:
    try:
        return decode_rgb(read_bytes(path), name=str(path), expect=(side, side))
    except ImageError as error:
        if error.reason == "wrong-size":
            raise ImageError("wrong-size", f"{error}, which the model takes; crop, pad or resize it") from error
        raise


def _digest(*columns: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for row in zip(*columns, strict=True):
        digest.update("\t".join(map(str, row)).encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()


def target_chooser(
    target: str, cells: pd.DataFrame, codes: Sequence[str]
) -> Callable[[Positions, npt.NDArray[np.float32]], npt.NDArray[np.int64]]:
    """Return a function that returns the class to explain for each cell.

    Parameters
    ----------
    target : str
        ``"predicted"``, ``"true"`` (the cell's label), or a class code.
    cells : DataFrame
        With ``cell_id`` and ``label``.
    codes : sequence of str
        The model's classes, in the order of its logits.

    Returns
    -------
    callable
        From positions of cells and their logits (n, C) to positions of classes (n,).

    Raises
    ------
    ExplanationError
        If the model has no such class, or the true class of a cell is unknown to it.
    """
    places = {code: place for place, code in enumerate(codes)}
    if target == PREDICTED:
        return lambda _positions, logits: np.asarray(logits.argmax(1), np.int64)
    if target == TRUE:
        wrong = cells[~cells["label"].isin(places)]
        if len(wrong):
            first = wrong.iloc[0]
            label = f"of class {first['label']}, which the model does not know" if first["label"] else "without a label"
            raise ExplanationError(
                f"cell {printable(str(first['cell_id']))} is {label} ({len(wrong)} such cells); leave them out or take "
                f"--target {PREDICTED}"
            )
        wanted = np.array([places[label] for label in cells["label"]], np.int64)
        return lambda positions, _logits: wanted[positions]
    by_case = {code.casefold(): code for code in codes}
    code = target if target in places else by_case.get(target.casefold())
    if code is None:
        raise ExplanationError(
            f"the model has no class {printable(target)!r}; give --target {PREDICTED}, {TRUE}, or one of "
            f"{', '.join(codes)}"
        )
    return lambda positions, _logits: np.full(len(positions), places[code], dtype=np.int64)


def leading_classes(probabilities: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Return positions (n, 2) of the two largest probabilities (n, C), the larger first; in ties, the earlier class."""
    if probabilities.shape[1] < 2:
        raise ExplanationError("doubt is between two classes, and the model has only one")
    order = np.argsort(-probabilities, axis=1, kind="stable")
    return np.asarray(order[:, :2], np.int64)


def uncertain_cells(predictions: pd.DataFrame, codes: Sequence[str], *, min_probability: float = 0.5) -> pd.DataFrame:
    """Choose the cells that a person should look at: misclassified, or of low confidence.

    Parameters
    ----------
    predictions : DataFrame
        ``label`` (empty where unknown), ``predicted``, ``probability`` and one ``p_<CODE>`` a class.
    codes : sequence of str
        The model's classes.
    min_probability : float
        Probability of the predicted class below which a cell has low confidence.

    Returns
    -------
    DataFrame
        Rows of `predictions`, keeping their index, with ``first`` and ``second`` (codes of the two leading classes),
        ``p_first``, ``p_second`` and ``reason`` (``"misclassified"``, ``"low-confidence"`` or both). Misclassified come
        first, the most confident of them at the top; then those of low confidence, the most ambiguous at the top. A
        label that the model does not know is no misclassification.
    """
    known = predictions["label"].isin(list(codes))
    wrong = known & (predictions["label"] != predictions["predicted"])
    low_confidence = pd.Series(low_confidence_cells(predictions, min_probability), index=predictions.index)
    columns = [f"p_{code}" for code in codes]
    chosen = predictions[wrong | low_confidence]
    probabilities = chosen[columns].to_numpy(np.float64)
    leading = leading_classes(probabilities) if len(chosen) else np.zeros((0, 2), np.int64)
    rows = np.arange(len(chosen))
    first, second = probabilities[rows, leading[:, 0]], probabilities[rows, leading[:, 1]]
    reasons = [
        ", ".join(reason for reason, holds in (("misclassified", w), ("low-confidence", u)) if holds)
        for w, u in zip(wrong[chosen.index], low_confidence[chosen.index], strict=True)
    ]
    chosen = chosen.assign(
        first=[codes[place] for place in leading[:, 0]],
        second=[codes[place] for place in leading[:, 1]],
        p_first=first,
        p_second=second,
        reason=reasons,
    )
    is_wrong = wrong[chosen.index].to_numpy()
    order = np.lexsort((np.where(is_wrong, -first, first - second), ~is_wrong))
    return chosen.iloc[order]
