"""What napari's File menu does with fields, results and cells: opening, saving, sample data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from hematokit.annotations.cells import name_cells
from hematokit.errors import HematokitError, ImageError, StoreError, describe_error, printable
from hematokit.imaging.fieldfiles import Field, file_orientation, open_field
from hematokit.imaging.fieldfiles.field import ArrayLevel, Source
from hematokit.imaging.fieldfiles.pixelsize import PixelSize
from hematokit.results.reading import FieldResult, Results, find_model_of, is_results_folder, open_results
from hematokit.review.session import Review, whole_taxonomy
from hematokit.store.corrections import CORRECTIONS_FILE
from hematokit.synthetic import PIXEL_SIZE_UM, SyntheticField, synthesize_field
from hematokit.taxonomy import MATEK_21
from napari_hematonet.cell_points import cells_layer_data
from napari_hematonet.cells_layer import watch_current_viewer, watch_layers
from napari_hematonet.images import field_placement, layer_arrays
from napari_hematonet.settings import reviewer
from napari_hematonet.state import METADATA_KEY, FieldState, notify

if TYPE_CHECKING:
    import napari
    from napari.layers import Layer
    from napari.types import LayerData

    from hematokit.store import PatchStore

__all__ = [
    "SAMPLE_NAME",
    "add_to_viewer",
    "get_reader",
    "results_layers",
    "sample_field",
    "sample_field_with_truth",
    "write_csv",
    "write_geojson",
    "write_parquet",
]

_MOST: Final = 12
"""Fields opened at once: beyond that, a list of layers helps nobody."""

_NOTHING: Final[list[LayerData]] = [(None,)]  # napari reads this as a path without layers


def get_reader(path: str | Sequence[str]) -> Callable[[str | Sequence[str]], list[LayerData]] | None:
    """Return the function that reads a path, or None if it is not a format of HematoNet; called by napari.

    Taken are stores of hematokit, folders of results, the folder of one field in either, OME-Zarr images, OME-TIFF, and
    vendors' files.
    """
    first = Path(path if isinstance(path, str) else path[0]) if path else None
    if first is None or (first.is_dir() and _kind(first) is None):
        return None
    return _read


def _kind(folder: Path) -> Callable[[Path], list[LayerData]] | None:
    from hematokit.imaging.fieldfiles.omezarr import is_image_folder, stored_fields

    if stored_fields(folder) is not None:
        return _store_layers
    if is_results_folder(folder) or (folder.parent.name == "fields" and is_results_folder(folder.parent.parent)):
        return results_layers
    if folder.parent.name == "fields" and stored_fields(folder.parent.parent) is not None:
        return _store_layers
    return _field_layers if is_image_folder(folder) else None


def _read(path: str | Sequence[str]) -> list[LayerData]:
    """Read paths; what is wrong with one is a notification, and the others are shown."""
    watch_current_viewer()
    layers: list[LayerData] = []
    for each in [path] if isinstance(path, str) else path:
        place = Path(each)
        try:
            kind = (_kind(place) if place.is_dir() else None) or _field_layers
            layers += kind(place)
        except HematokitError as error:
            notify(error, "error")
        except Exception as error:
            notify(f"{printable(each)} cannot be opened ({describe_error(error)}); please report it", "error")
    return layers or _NOTHING


def _field_layers(path: Path) -> list[LayerData]:
    """Return the layer of a field's image, with its pixel size.

    Raises
    ------
    ImageError
        As `hematokit.imaging.fieldfiles.open_field`.
    """
    return [_image_layer(open_field(path))]


def _image_layer(field: Field, name: str = "", *, visible: bool = True) -> LayerData:
    for note in field.notes:
        notify(f"{printable(field.path.name)}: {note}")
    arrays = layer_arrays(field)
    options: dict[str, Any] = {"name": name or field.name, "rgb": True, "visible": visible, **field_placement(field)}
    if len(arrays) > 1:
        options["multiscale"] = True
    return (arrays if len(arrays) > 1 else arrays[0], options, "image")


def results_layers(path: Path) -> list[LayerData]:
    """Return the images and cells of a folder of results, or of one field in it.

    Of more than twelve fields the first twelve are opened. A picture that has gone is left out; its cells are shown.

    Raises
    ------
    FieldError
        As `hematokit.results.reading.open_results`.
    """
    results = open_results(path)
    _tell_of_more(results.path, [field.field_id for field in results.fields])
    model = find_model_of(results)
    layers: list[LayerData] = []
    for number, field in enumerate(results.fields[:_MOST]):
        layers += _result_layers(results, field, "" if model is None else str(model), visible=number == 0)
    return layers


def _result_layers(results: Results, result: FieldResult, model: str, *, visible: bool) -> list[LayerData]:
    field = None
    placement: dict[str, Any] = {}
    layers: list[LayerData] = []
    try:
        field = open_field(
            result.image, pixel_size_um=result.pixel_size_um, force_pixel_size=True, orient=result.oriented
        )
        if not result.oriented and (stated := file_orientation(result.image)) != 1:
            notify(
                f"{printable(result.field_id)} is shown as stored: its cells were detected before the orientation "
                f"of the image ({stated}) was applied. Classify it into a new folder to see it rotated",
                "warning",
            )
        layers.append(_image_layer(field, result.field_id, visible=visible))
        placement = field_placement(field)
    except ImageError as error:
        notify(f"only the cells of {printable(result.field_id)} are shown: {error}", "warning")
    review = Review(
        result.cells(),
        whole_taxonomy(results.taxonomy),
        field_id=result.field_id,
        who=reviewer(),
        journal=result.folder / CORRECTIONS_FILE,
        min_probability=results.min_probability,
        pixel_size_um=result.pixel_size_um,
    )
    identity = results.model_identity if model else ""
    scale = results.model_pixel_size_um
    state = FieldState(
        review,
        result.field_id,
        field,
        model,
        pixel_size_um=review.pixel_size_um,
        model_identity=identity,
        model_pixel_size_um=scale,
    )
    return [*layers, _cells_layer(state, placement, visible)]


def _store_layers(path: Path) -> list[LayerData]:
    """Return the images and cells of a store's fields, or of one of them.

    Raises
    ------
    StoreError
        If the store is damaged, or keeps crops and no fields.
    ImageError
        If a field is damaged.
    """
    from hematokit.store import open_store

    only = None
    if path.parent.name == "fields":
        only, path = path.name, path.parent.parent
    store = open_store(path)
    names = [str(name) for name in store.fields["field_id"] if only in (None, str(name))]
    if not names:
        shown = printable(str(path))
        what = f"has no field {printable(only)}" if only else f"has {len(store):,} patches and no whole fields"
        raise StoreError(f"store {shown} {what}, so no layer can be shown; add fields with 'hematokit tile'")
    _tell_of_more(path, names)
    layers: list[LayerData] = []
    for number, name in enumerate(names[:_MOST]):
        layers += _stored_layers(store, name, visible=number == 0)
    return layers


def _stored_layers(store: PatchStore, name: str, *, visible: bool) -> list[LayerData]:
    from hematokit.store import open_stored_field

    field = open_stored_field(store, name)
    cells = store.cells
    review = Review(
        cells[cells["field_id"] == name],
        store.taxonomy,
        field_id=name,
        who=reviewer(),
        journal=store.path / CORRECTIONS_FILE,
        pixel_size_um=field.pixel_size_um,
    )
    state = FieldState(review, name, field, "", pixel_size_um=review.pixel_size_um)
    return [_image_layer(field, name, visible=visible), _cells_layer(state, field_placement(field), visible)]


def _cells_layer(state: FieldState, placement: dict[str, Any], visible: bool) -> LayerData:
    data, options, kind = cells_layer_data(state, name=f"cells of {state.image_layer_name}", placement=placement)
    return data, {**options, "visible": visible}, kind


def _tell_of_more(path: Path, names: Sequence[str]) -> None:
    if len(names) > _MOST:
        notify(
            f"{printable(str(path))} contains {len(names)} fields; the first {_MOST} are open. Open another with "
            f"File > Open Folder: its folder in {printable(str(path / 'fields'))}",
            "warning",
        )


def add_to_viewer(viewer: napari.Viewer, layers: Sequence[LayerData]) -> list[Layer]:
    """Add layers as a reader returns them, with what belongs to layers of cells."""
    from napari.layers import Layer

    watch_layers(viewer)
    return [viewer.add_layer(Layer.create(*entry)) for entry in layers if entry[0] is not None]


def write_csv(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Write the cells of a layer as CSV; of points that are no cells, what napari writes."""
    if not _is_cells(meta):
        # Points of other plugins are saved in the format of napari.
        from napari_builtins.io import napari_write_points  # type: ignore[import-untyped]

        written = napari_write_points(path, data, meta)
        return [written] if written else []
    return _export(path, meta, ".csv")


def write_geojson(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Write the cells of a layer as GeoJSON, as QuPath imports it."""
    return _export(path, meta, ".geojson")


def write_parquet(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Write the cells of a layer as Parquet, with outlines."""
    return _export(path, meta, ".parquet")


def _is_cells(meta: dict[str, Any]) -> bool:
    return isinstance(meta.get("metadata", {}).get(METADATA_KEY), FieldState)


def _export(path: str, meta: dict[str, Any], ending: str) -> list[str]:
    name = printable(str(meta.get("name", "")))
    if not _is_cells(meta):
        notify(f"layer '{name}' has no cells of HematoNet; save the layer of cells instead", "error")
        return []
    if not meta.get("visible", True):
        notify(f"layer '{name}' is hidden; its cells were saved anyway", "warning")
    target = Path(path) if path.lower().endswith(ending) else Path(path + ending)
    try:
        meta["metadata"][METADATA_KEY].review.export(target)
    except HematokitError as error:
        notify(error, "error")
        return []
    return [str(target)]


SAMPLE_NAME: Final = "marrow smear (drawn)"
_CELLS: Final = 120
_SEED: Final = 7

_drawn: dict[int, SyntheticField] = {}


def _draw() -> SyntheticField:
    # Drawing takes some seconds; the same field serves both samples.
    if _SEED not in _drawn:
        _drawn[_SEED] = synthesize_field(cells=_CELLS, seed=_SEED)
    return _drawn[_SEED]


def _placement() -> dict[str, Any]:
    return {"scale": (PIXEL_SIZE_UM, PIXEL_SIZE_UM), "units": ("micrometer", "micrometer")}


def sample_field() -> list[LayerData]:
    """Draw a field of 2452x2056 px, as a camera on a microscope takes it."""
    return [(_draw().pixels, {"name": SAMPLE_NAME, "rgb": True, **_placement()}, "image")]


def sample_field_with_truth() -> list[LayerData]:
    """Draw the same field, with a layer of its cells and their true classes."""
    watch_current_viewer()
    field = _draw()
    return [*sample_field(), cells_layer_data(_true_state(field), name="true cells", placement=_placement())]


def _true_state(drawn: SyntheticField) -> FieldState:
    source = Source((ArrayLevel(drawn.pixels),), PixelSize(PIXEL_SIZE_UM))
    review = Review(_true_cells(drawn), MATEK_21, field_id="sample", pixel_size_um=PIXEL_SIZE_UM)
    return FieldState(
        review,
        image_layer_name=SAMPLE_NAME,
        field=Field(Path(SAMPLE_NAME), SAMPLE_NAME, source),
        detector="truth",
        pixel_size_um=PIXEL_SIZE_UM,
    )


def _true_cells(drawn: SyntheticField) -> pd.DataFrame:
    truth = drawn.table().rename(columns={"nucleus_area": "area"})
    outlines = [max(cell.contours, key=len, default=None) for cell in drawn.cells]
    truth["contour"] = pd.Series(outlines, index=truth.index, dtype=object)
    truth = truth.assign(score=1.0, label_source="drawn")
    return name_cells(truth, "sample", SAMPLE_NAME, smear_id=drawn.smear_id, patient_id=drawn.patient_id)
