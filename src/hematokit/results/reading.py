"""Reading a folder of results: finished fields, paths of their images and cells, and classes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from hematokit.annotations.cells import MIN_PROBABILITY
from hematokit.annotations.writing import read_parquet
from hematokit.errors import FieldError, HematokitError, TaxonomyError, printable
from hematokit.files import one_line_read_errors
from hematokit.results.fields import CELLS, DONE, FIELDS_FOLDER, FieldFolders
from hematokit.results.folder import RUN_FILE, path_from
from hematokit.taxonomy import MATEK_21, Taxonomy

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["FieldResult", "Results", "find_model_of", "is_results_folder", "open_results"]

_KIND = "hematokit field results"
_DIFFERENTIAL = "differential.json"


@dataclass(frozen=True)
class FieldResult:
    """A field that is done.

    Attributes
    ----------
    field_id : str
    image : Path
        The image; it may have moved since.
    folder : Path
        Of its results.
    pixel_size_um : float or None
    oriented : bool
        Whether the image's orientation was applied, so that cells fit it as it is shown; earlier versions took
        images as stored.
    """

    field_id: str
    image: Path
    folder: Path
    pixel_size_um: float | None
    oriented: bool = True

    def cells(self) -> pd.DataFrame:
        """Read its cells table.

        Raises
        ------
        FieldError
            If the file is missing or damaged.
        """
        return read_parquet(self.folder / CELLS)


@dataclass(frozen=True)
class Results:
    """A folder of results, for reading.

    Attributes
    ----------
    path : Path
    fields : list of FieldResult
        Those that are done, by name.
    taxonomy : Taxonomy
        The classes that were counted; `MATEK_21` where cells were only detected.
    min_probability : float
    model : Path or None
        Path of the model that classified the cells; None if unknown. See `find_model_of`.
    model_identity : str
        Which model that was, as `hematokit.models.bundle.bundle_identity` gives it; empty where that is not known.
    model_pixel_size_um : float or None
        Pixel size of the model that was given instead of what the model records.
    """

    path: Path
    fields: list[FieldResult]
    taxonomy: Taxonomy
    min_probability: float
    model: Path | None = None
    model_identity: str = ""
    model_pixel_size_um: float | None = None

    @cached_property
    def cells(self) -> pd.DataFrame:
        """All cells of all fields, with corrections; after classification with ``predicted`` and probabilities.

        Raises
        ------
        FieldError
            If a file is missing or damaged.
        """
        folders = FieldFolders(self.path)
        parts = [folders.corrected(field.field_id) for field in self.fields]
        filled = [part for part in parts if len(part)]
        table: pd.DataFrame = pd.concat(filled, ignore_index=True) if filled else parts[0]
        return table

    def to_anndata(self) -> AnnData:
        """Return `cells` as AnnData, without contours.

        Raises
        ------
        HematokitError
            If anndata is not installed: ``pip install 'hematokit[anndata]'``.
        """
        from hematokit.anndata_tables import cells_to_anndata

        return cells_to_anndata(self.cells, self.taxonomy, {"model_sha256": self.model_identity or None})


def is_results_folder(path: Path) -> bool:
    """Return whether a folder was written by `hematokit detect` or `classify`."""
    try:
        return (path / RUN_FILE).is_file() and _document(path / RUN_FILE).get("kind") == _KIND
    except (FieldError, OSError):
        return False


def open_results(folder: str | Path) -> Results:
    """Open what `hematokit detect` or `classify` wrote.

    Parameters
    ----------
    folder : path
        The folder of results, or the folder of one of its fields.

    Returns
    -------
    Results
        With all its fields that are done, or the one.

    Raises
    ------
    FieldError
        If the folder is none of these, is damaged, or has no field that is done.
    """
    path = Path(folder)
    only = None
    if path.parent.name == FIELDS_FOLDER and is_results_folder(path.parent.parent):
        only, path = path.name, path.parent.parent
    shown = printable(str(path))
    if not (path / RUN_FILE).is_file():
        raise FieldError(f"{shown} is no folder of results: it has no {RUN_FILE}; give what 'hematokit classify' wrote")
    run = _document(path / RUN_FILE)
    known = run.get("fields")
    if run.get("kind") != _KIND or not isinstance(known, dict):
        raise FieldError(f"{shown} holds no results of fields; give what 'hematokit classify' wrote")

    def place(recorded: str) -> Path:
        """Where something was, or is if it was moved together with the results."""
        together = path_from(run, path.resolve(), recorded)
        return together if together.exists() else Path(recorded)

    images = {str(field_id): place(str(image)) for image, field_id in known.items()}
    fields = []
    for field_id in sorted(images):
        # Ids become names of folders; the run.json of others must not lead elsewhere.
        if Path(field_id).name != field_id or (only is not None and field_id != only):
            continue
        own = path / FIELDS_FOLDER / field_id
        if not (own / DONE).is_file():
            continue
        said = _document(own / DONE)
        if said.get("status") == "done":
            size = said.get("pixel_size_um")
            size = float(size) if isinstance(size, int | float) else None
            oriented = said.get("orientation") is not None
            fields.append(FieldResult(field_id, images[field_id], own, size, oriented))
    if not fields:
        raise FieldError(f"no field of {shown} is done; run 'hematokit classify' to its end")
    job = run.get("job")
    # The second name is that of version 0.1.
    threshold = job.get("min_probability", job.get("unsure_below")) if isinstance(job, dict) else None
    threshold = float(threshold) if isinstance(threshold, int | float) else MIN_PROBABILITY
    model = run.get("model")
    used = job.get("model") if isinstance(job, dict) else None
    identity = used.get("sha256") if isinstance(used, dict) else None
    scale = used.get("pixel_size_um") if isinstance(used, dict) else None
    return Results(
        path,
        fields,
        _taxonomy(path),
        threshold,
        place(model) if isinstance(model, str) and model else None,
        identity if isinstance(identity, str) else "",
        float(scale) if isinstance(scale, int | float) else None,
    )


def find_model_of(results: Results) -> Path | None:
    """Return the model that classified the cells, if it still exists at its path and is the same.

    Parameters
    ----------
    results : Results

    Returns
    -------
    Path or None
        None if it does not exist, was trained again, or is unknown.
    """
    if results.model is None or not results.model_identity or not results.model.exists():
        return None
    from hematokit.models.bundle import bundle_identity, find_model

    try:
        same = results.model_identity == bundle_identity(find_model(results.model))
    except (HematokitError, OSError):
        return None
    return results.model if same else None


def _taxonomy(folder: Path) -> Taxonomy:
    if not (folder / _DIFFERENTIAL).is_file():
        return MATEK_21
    try:
        return Taxonomy.from_dict(_document(folder / _DIFFERENTIAL)["taxonomy"])
    except (KeyError, TypeError, ValueError, TaxonomyError) as error:
        shown = printable(str(folder / _DIFFERENTIAL))
        raise FieldError(f"{shown} does not say its classes; classify the fields again") from error


def _document(path: Path) -> dict[str, Any]:
    try:
        with one_line_read_errors(path, FieldError):
            document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FieldError(f"{printable(str(path))} is damaged; classify the fields again") from error
    return document if isinstance(document, dict) else {}
