"""Whole fields in a store: each an OME-Zarr 0.5 image that napari, QuPath and Fiji open.

A field is written by bands of rows, so that its size does not matter, under a temporary name, and takes its own name
when it is whole. It counts once `StoreWriter.commit` has said so; what a killed writer left is removed by the next.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hematokit.arrays import open_array
from hematokit.errors import printable
from hematokit.files import TEMPORARY_PREFIX, hash_path, sync_folder, write_json
from hematokit.imaging.geometry import Box
from hematokit.progress import Progress, no_progress
from hematokit.store import schema

if TYPE_CHECKING:
    from hematokit.imaging.fieldfiles import Field

__all__ = [
    "field_folder",
    "field_pixel_sizes",
    "open_pixels",
    "remove_uncommitted_fields",
    "stored_orientation",
    "write_field",
]

_CHUNK: Final = 512
"""Side of a chunk in pixels, its three channels together; the pyramid ends with the first level that fits one."""

_BAND: Final = 2 * _CHUNK
"""Rows read at a time. Even, and a multiple of the chunk's side, so that bands halve into whole chunks."""

_COLUMNS: Final = 32 * _BAND
"""Columns read at a time; with `_BAND`, it bounds the memory to about 0.3 GB whatever the field."""

_READ_CACHE: Final = 128 * 1024 * 1024
"""Bytes of chunks kept while patches are cut: a row of cells across a field of 30,000 px reads each chunk once."""

_MARK: Final = "hematokit"
"""Attribute of the fields that were written here; nothing else under ``fields`` is ever removed."""


def field_folder(store: Path, field_id: str) -> Path:
    """Folder of a field's image in a store."""
    return store / schema.FIELDS_FOLDER / field_id


def field_pixel_sizes(cells: pd.DataFrame) -> dict[str, float]:
    """Return the pixel size of each field by id, as its cells have it: the median of those that are known."""
    known = cells.dropna(subset="pixel_size_um")
    return {str(name): float(size) for name, size in known.groupby("field_id")["pixel_size_um"].median().items()}


def write_field(
    store: Path, field_id: str, field: Field, *, source: str = "", progress: Progress = no_progress
) -> tuple[Path, str]:
    """Write a field as an OME-Zarr 0.5 image with a pyramid into a store.

    Only the holder of the store's lock may call this. A folder of that name that is there is replaced.

    Parameters
    ----------
    store : Path
        Folder of the store.
    field_id : str
        Identifies the field; must be fit for the name of a folder.
    field : Field
        The opened field.
    source : str
        The field's path as given; kept with the image.
    progress : Progress
        Called with the bands of rows done.

    Returns
    -------
    folder : Path
    sha256 : str
        Over the folder's files, as `hematokit.files.hash_path` takes it.

    Raises
    ------
    ImageError
        If the file is damaged.
    """
    fields = store / schema.FIELDS_FOLDER
    fields.mkdir(exist_ok=True)
    if not (fields / schema.ROOT_FILE).exists():
        write_json(fields / schema.ROOT_FILE, {"zarr_format": 3, "node_type": "group", "attributes": {}})
    temporary = fields / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    try:
        _write_image(temporary, field_id, field, source, progress)
        digest = hash_path(temporary, flush=True)
        target = field_folder(store, field_id)
        _discard_field(store, field_id)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(fields)
    return target, digest


def _write_image(folder: Path, field_id: str, field: Field, source: str, progress: Progress) -> None:
    import zarr
    from ome_zarr.format import FormatV05
    from ome_zarr.writer import write_multiscales_metadata
    from zarr.codecs import ZstdCodec

    group = zarr.open_group(folder, mode="w-", zarr_format=3)
    shapes = list(_level_shapes(field.height, field.width))
    arrays = [
        group.create_array(
            name=str(level),
            shape=(3, height, width),
            chunks=(3, min(_CHUNK, height), min(_CHUNK, width)),
            dtype="uint8",
            compressors=[ZstdCodec(level=1)],
            fill_value=0,
            dimension_names=("c", "y", "x"),
        )
        for level, (height, width) in enumerate(shapes)
    ]
    bands = [_bands(height, width) for height, width in shapes]
    total = sum(map(len, bands[:1])) + sum(map(len, bands[:-1]))
    done = 0
    for box in bands[0]:
        arrays[0][:, box.y0 : box.y1, box.x0 : box.x1] = np.moveaxis(field.read(box), 2, 0)
        done += 1
        progress(done, total, "")
    for above, below, boxes in zip(arrays, arrays[1:], bands, strict=False):
        for box in boxes:
            small = _halve(np.asarray(above[:, box.y0 : box.y1, box.x0 : box.x1]))
            y0, x0 = box.y0 // 2, box.x0 // 2
            below[:, y0 : y0 + small.shape[1], x0 : x0 + small.shape[2]] = small
            done += 1
            progress(done, total, "")
    size = field.pixel_size_um
    datasets = [
        {
            "path": str(level),
            "coordinateTransformations": [
                {"type": "scale", "scale": [1.0, (size or 1.0) * 2**level, (size or 1.0) * 2**level]}
            ],
        }
        for level in range(len(shapes))
    ]
    space: dict[str, str] = {"type": "space"} if size is None else {"type": "space", "unit": "micrometer"}
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}, {"name": "y", **space}, {"name": "x", **space}]
    write_multiscales_metadata(
        group, datasets, fmt=FormatV05(), axes=axes, name=field_id, metadata={"omero": _rendering(field_id)}
    )
    mark = {"field_id": field_id, "source": printable(source)}
    group.attrs[_MARK] = mark if field.orientation == 1 else {**mark, "orientation": field.orientation}


def _rendering(name: str) -> dict[str, Any]:
    """Return the metadata from which viewers show the three channels as one colour image."""
    window = {"start": 0, "end": 255, "min": 0, "max": 255}
    colours = {"red": "FF0000", "green": "00FF00", "blue": "0000FF"}
    channels = [
        {"label": label, "color": colour, "active": True, "coefficient": 1, "family": "linear", "window": dict(window)}
        for label, colour in colours.items()
    ]
    return {"name": name, "channels": channels, "rdefs": {"model": "color"}}


def _level_shapes(height: int, width: int) -> Iterator[tuple[int, int]]:
    yield height, width
    while max(height, width) > _CHUNK:
        height, width = -(-height // 2), -(-width // 2)
        yield height, width


def _bands(height: int, width: int) -> list[Box]:
    return [
        Box(y0, x0, min(_BAND, height - y0), min(_COLUMNS, width - x0))
        for y0 in range(0, height, _BAND)
        for x0 in range(0, width, _COLUMNS)
    ]


def _halve(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the mean of 2x2 pixels (3, h, w), rounded; the last row or column of an odd size counts twice."""
    odd = ((0, 0), (0, pixels.shape[1] % 2), (0, pixels.shape[2] % 2))
    wide = np.pad(pixels, odd, mode="edge").astype(np.uint16)
    total = wide[:, ::2, ::2] + wide[:, 1::2, ::2] + wide[:, ::2, 1::2] + wide[:, 1::2, 1::2]
    return ((total + 2) // 4).astype(np.uint8)


def open_pixels(folder: Path) -> Callable[[Box], npt.NDArray[np.uint8]]:
    """Return a function that reads boxes (h, w, 3) of a stored field's full resolution, fast in any order.

    Parameters
    ----------
    folder : Path
        From `field_folder`.
    """
    array = open_array(folder / "0", cache_bytes=_READ_CACHE)

    def read(box: Box) -> npt.NDArray[np.uint8]:
        pixels: npt.NDArray[np.uint8] = array[:, box.y0 : box.y1, box.x0 : box.x1].read().result()
        return np.moveaxis(pixels, 0, 2)

    return read


def _discard_field(store: Path, field_id: str) -> None:
    """Remove the image of a field that is not committed. Only the holder of the store's lock may call this."""
    folder = field_folder(store, field_id)
    if folder.is_dir():
        # Renamed first: a removal that is killed half-way must not leave a part under the field's name.
        doomed = folder.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def remove_uncommitted_fields(store: Path, committed: int, first: int = 0) -> None:
    """Remove what killed writers left under ``fields``. Only the holder of the store's lock may call this.

    Parameters
    ----------
    store : Path
        Folder of the store.
    committed : int
        Number of committed fields.
    first : int
        First row of ``fields.parquet`` that is of a committed field.
    """
    fields = store / schema.FIELDS_FOLDER
    if not fields.is_dir():
        return
    known = set(schema.read_fields(store, committed, first)["field_id"].to_pylist())
    for folder in fields.iterdir():
        if folder.name.startswith(TEMPORARY_PREFIX):
            if folder.is_dir():
                shutil.rmtree(folder, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    folder.unlink()
        elif folder.name not in known and _is_ours(folder):
            _discard_field(store, folder.name)


def _is_ours(folder: Path) -> bool:
    return _read_mark(folder) is not None


def stored_orientation(store: Path, field_id: str) -> int:
    """Return the orientation of a field's file that was applied when it was stored; 1 where none was."""
    mark = _read_mark(field_folder(store, field_id))
    return int(mark.get("orientation", 1)) if isinstance(mark, dict) else 1


def _read_mark(folder: Path) -> Any:
    try:
        document: Mapping[str, Any] = json.loads((folder / schema.ROOT_FILE).read_text(encoding="utf-8"))
        return document["attributes"][_MARK]
    except (OSError, ValueError, KeyError, TypeError):
        return None
