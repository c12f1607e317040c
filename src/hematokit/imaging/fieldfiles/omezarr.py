"""OME-Zarr images in local folders: 0.4 (Zarr v2) and 0.5 (Zarr v3), read with tensorstore.

Pixels are read with tensorstore, as the store's are: it reads in several threads outside of the interpreter lock,
caches decoded chunks, and has no codec that runs code from a file (zarr-python's ``pickle``). Of the metadata, a field
needs the axes, the scale and the paths of the levels; they are read without a model of the standard, because real
files are looser than it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hematokit.arrays import open_array, system_error
from hematokit.errors import ImageError, printable
from hematokit.imaging.fieldfiles.field import MAX_CACHE_BYTES, MAX_WHOLE_BYTES, Source, check_size
from hematokit.imaging.fieldfiles.pixelsize import PixelSize, from_lengths, nothing
from hematokit.imaging.geometry import Box
from hematokit.imaging.reading import read_bytes

__all__ = ["ZarrLevel", "is_image_folder", "open_omezarr", "stored_fields"]

_STORE_KIND = "hematokit patch store"  # as in hematokit.store.schema, a layer above this one
_MARKERS = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
_MAX_METADATA = 64 * 1024 * 1024  # bytes
_MAX_COUNTED = 1_000_000  # chunks; in larger arrays, missing chunks are not counted
_ABSENT = (FileNotFoundError, NotADirectoryError)
_LAYOUT = "bioformats2raw.layout"


class ZarrLevel:
    """One resolution of an OME-Zarr image.

    Parameters
    ----------
    array : tensorstore.TensorStore
        Axes in any order: y, x, three channels, and others of size 1.
    axes : sequence of str
        The names of its axes, one letter each.
    shown : str
        Name of the image in errors.

    Raises
    ------
    ImageError
        If the array is not of 8 or 16 bits, or its chunks are too large to decode.
    """

    def __init__(self, array: Any, axes: list[str], shown: str) -> None:
        sizes = dict(zip(axes, (int(size) for size in array.shape), strict=True))
        self.height, self.width = sizes["y"], sizes["x"]
        check_size(self.height, self.width, shown)
        self.dtype: np.dtype[Any] = np.dtype(array.dtype.numpy_dtype)
        if self.dtype not in (np.uint8, np.uint16):
            raise ImageError("not-rgb", f"{shown} has pixels of type {self.dtype}, not of 8 or 16 bits; convert it")
        piece = math.prod(array.chunk_layout.read_chunk.shape) * self.dtype.itemsize
        if piece > MAX_WHOLE_BYTES:
            raise ImageError(
                "too-large",
                f"{shown} has chunks of {piece:,} bytes, too large to read by windows; write it with smaller chunks",
            )
        self.array, self._axes = array, axes

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Return the pixels (h, w, 3) of a box inside the level."""
        parts = {"y": box.slices[0], "x": box.slices[1], "c": slice(0, 3)}
        view = self.array[tuple(parts.get(axis, 0) for axis in self._axes)]
        kept = [axis for axis in self._axes if axis in parts]
        # Transpose before reading, so that the pixels are copied only once.
        try:
            window = view.transpose([kept.index(axis) for axis in "yxc"]).read(order="C").result()
        except ValueError as error:
            raise system_error(error) or error from None
        return np.asarray(window)


class _Node(NamedTuple):
    attributes: Mapping[str, Any]
    version: int  # of the Zarr format


def _read_node(folder: Path, *, must_read: bool = False) -> _Node | None:
    """Return the attributes of a folder that is a Zarr array or group; None if it is neither or cannot be read.

    With `must_read`, metadata that exist and cannot be read raise an `ImageError`.
    """
    for name, version in (("zarr.json", 3), (".zattrs", 2)):
        try:
            document = json.loads(read_bytes(folder / name, max_bytes=_MAX_METADATA))
        except ImageError as error:
            if must_read and isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, _ABSENT):
                raise
            continue
        except (ValueError, RecursionError):
            continue
        attributes = document.get("attributes", {}) if isinstance(document, dict) and version == 3 else document
        if isinstance(attributes, dict):
            ome = attributes.get("ome")
            # OME-Zarr 0.5 moved its metadata into the key "ome": https://ngff.openmicroscopy.org/0.5/
            return _Node({**attributes, **ome} if version == 3 and isinstance(ome, dict) else attributes, version)
    if (folder / ".zgroup").is_file() or (folder / ".zarray").is_file():
        return _Node({}, 2)
    return None


def is_image_folder(folder: Path) -> bool:
    """Return whether a folder is one OME-Zarr image rather than a folder of files."""
    if folder.suffix.lower() == ".zarr":
        return True
    if not any((folder / name).exists() for name in _MARKERS):
        return False
    node = _read_node(folder)
    return node is not None and ("multiscales" in node.attributes or _LAYOUT in node.attributes)


def stored_fields(folder: Path) -> list[Path] | None:
    """Return the fields in a hematokit store, sorted by name; None if the folder is not a store."""
    node = _read_node(folder)
    if node is None or node.attributes.get("kind") != _STORE_KIND:
        return None
    return list(_children(folder / "fields"))


def _children(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        for path in sorted(folder.iterdir(), key=lambda path: path.name):
            if not path.name.startswith(".") and path.is_dir() and is_image_folder(path):
                yield path


def open_omezarr(path: Path) -> Source:
    """Open an OME-Zarr image.

    Raises
    ------
    ImageError
        ``"not-an-image"`` for another folder, ``"not-rgb"``, ``"several-images"``, ``"empty"``, ``"too-large"``, or
        ``"unreadable"`` for one that is damaged.
    """
    shown = printable(str(path))
    try:
        return _open(path, shown)
    except ImageError:
        raise
    except OSError as error:
        raise ImageError(
            "unreadable", f"{shown} cannot be read ({error.strerror or error}); correct that and open it again"
        ) from error
    except Exception as error:
        # Malformed metadata can raise anywhere; the messages of tensorstore have several lines.
        detail = printable(" ".join(str(error).split()).split(" [", maxsplit=1)[0][:200]) or type(error).__name__
        raise ImageError(
            "unreadable", f"{shown} is not a readable OME-Zarr image ({detail}); copy or export it again"
        ) from error


def _open(path: Path, shown: str) -> Source:
    node = _read_node(path, must_read=True)
    if node is None:
        raise ImageError(
            "not-an-image", f"{shown} is a folder but not an OME-Zarr image; give a file, or a folder of fields"
        )
    if node.attributes.get("kind") == _STORE_KIND:
        raise ImageError(
            "not-an-image", f"{shown} is a hematokit store, not an image; its fields are in {shown}{os.sep}fields"
        )
    if "multiscales" not in node.attributes and _LAYOUT in node.attributes:
        inside = list(_children(path))
        if len(inside) != 1:
            raise ImageError("several-images", f"{shown} holds {len(inside)} images; give the folder of one of them")
        path, node = inside[0], _read_node(inside[0]) or node
    if "plate" in node.attributes:
        raise ImageError("several-images", f"{shown} is a plate; give the folder of one of its images")
    if "multiscales" not in node.attributes:
        raise ImageError(
            "not-an-image",
            f"{shown} is Zarr without the metadata of an OME-Zarr image; export it as OME-Zarr 0.4 or 0.5",
        )
    scales = node.attributes["multiscales"]
    if len(scales) != 1:
        raise ImageError("several-images", f"{shown} holds {len(scales)} images; save the one that is the field")
    return _open_image(path, scales[0], node.version, shown)


def _open_image(path: Path, image: Mapping[str, Any], version: int, shown: str) -> Source:
    axes = [str(axis["name"]).lower() if isinstance(axis, dict) else str(axis).lower() for axis in image["axes"]]
    if len(set(axes)) != len(axes) or not {"y", "x"} <= set(axes) <= set("tczyx"):
        raise ImageError("unreadable", f"{shown} has the axes {printable(str(axes))}; a field has c, y and x")
    levels: list[ZarrLevel] = []
    for number, dataset in enumerate(image["datasets"]):
        try:
            array = _open_array(path, str(dataset["path"]), version)
            _check_axes(array, axes, shown)
            level = ZarrLevel(array, axes, shown)
        except Exception as error:
            if number == 0 or (isinstance(error, OSError) and not isinstance(error, _ABSENT)):
                raise
            # Skip a damaged level of the pyramid; the full resolution does not depend on it.
            continue
        if not levels or (level.dtype == levels[0].dtype and _is_smaller(levels[-1], level)):
            levels.append(level)
    if not levels:
        raise ImageError("empty", f"{shown} lists no array of pixels; export it again")
    folder = path / str(image["datasets"][0]["path"])
    return Source(tuple(levels), _pixel_size(image, axes), _missing(folder, levels[0].array))


def _open_array(folder: Path, name: str, version: int) -> Any:
    inside = PurePosixPath(name.replace("\\", "/"))
    if inside.is_absolute() or ".." in inside.parts:
        raise ValueError(f"the path {name!r} leads out of the image")
    driver = "zarr3" if version == 3 else "zarr"
    return open_array(folder / inside, driver=driver, cache_bytes=MAX_CACHE_BYTES // 4)


def _check_axes(array: Any, axes: list[str], shown: str) -> None:
    if len(axes) != len(array.shape):
        raise ImageError("unreadable", f"{shown} names {len(axes)} axes for {len(array.shape)}; export it again")
    sizes = dict(zip(axes, array.shape, strict=True))
    channels = sizes.get("c", 1)
    if sizes.get("t", 1) * sizes.get("z", 1) > 1:
        what = f"{sizes.get('t', 1)} time points and {sizes.get('z', 1)} z planes"
        raise ImageError("several-images", f"{shown} holds {what}; save the one image that is the field by itself")
    if channels != 3:
        what = "is greyscale" if channels == 1 else f"has {channels} channels, not red, green and blue"
        raise ImageError("not-rgb", f"{shown} {what}; convert it to RGB")


def _is_smaller(last: ZarrLevel, level: ZarrLevel) -> bool:
    return level.height < last.height and level.width < last.width


def _pixel_size(image: Mapping[str, Any], axes: list[str]) -> PixelSize:
    """Return the pixel size from the scales of the image and of its first level, which are multiplied."""
    sides = {"y": 1.0, "x": 1.0}
    units = dict.fromkeys(sides, "")
    try:
        for axis, about in zip(axes, image["axes"], strict=True):
            if axis in units and isinstance(about, dict):
                units[axis] = str(about.get("unit") or "")
        steps = [*(image["datasets"][0].get("coordinateTransformations") or ())]
        steps += image.get("coordinateTransformations") or ()
        scales = [step["scale"] for step in steps if step.get("type") == "scale"]
        for scale in scales:
            for axis in sides:
                sides[axis] *= float(scale[axes.index(axis)])
    except (TypeError, ValueError, LookupError, AttributeError):
        return PixelSize(None, ("pixel size ignored: the scale in its metadata is damaged",))
    if not scales or (not all(units.values()) and sides == {"y": 1.0, "x": 1.0}):
        return nothing
    if not all(units.values()):
        return PixelSize(None, (f"pixel size ignored: its scale, {sides['x']:g} x {sides['y']:g}, has no unit",))
    return from_lengths(sides["x"], sides["y"], units["x"], units["y"], "its scale")


def _missing(folder: Path, array: Any) -> tuple[str, ...]:
    """Return a note about missing chunks, which are empty by the standard but may be from an incomplete copy."""
    chunk = array.chunk_layout.write_chunk.shape
    expected = math.prod(math.ceil(size / side) for size, side in zip(array.shape, chunk, strict=True))
    if expected > _MAX_COUNTED:
        return ()
    found = 0
    for _, _, files in os.walk(folder):
        found += sum(name not in _MARKERS for name in files)
    if found >= expected:
        return ()
    return (f"{expected - found} of {expected} chunks are not in the folder and count as empty; is the copy complete?",)
