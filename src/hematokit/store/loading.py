"""From one file of a source to one patch: read, decode, fit to the patch size, hash."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from PIL import Image

from hematokit.errors import ImageError
from hematokit.imaging.fieldfiles import stated_pixel_size
from hematokit.imaging.fieldfiles.pixelsize import choose
from hematokit.imaging.geometry import Box, pad_to_square, turn_pixels, whole_image_box
from hematokit.imaging.reading import decode_rgb, read_orientation
from hematokit.store.schema import hash_pixels
from hematokit.store.sources import Item

__all__ = ["CropFit", "LoadedCrop", "load_in_order"]

# Far below the limits for fields: with all threads on the largest crops, memory stays under 1 GB.
_MAX_CROP_BYTES = 64 * 1024 * 1024
_MAX_CROP_PIXELS = 16 * 1024 * 1024
_MAX_WORKERS = 4


@dataclass(frozen=True, slots=True)
class CropFit:
    """How a crop becomes a patch of ``patch_size x patch_size`` pixels, and what its pixel size is.

    Attributes
    ----------
    patch_size : int
    resize : bool
        Scale other sizes (Lanczos) so that the longer side fits; a crop that is not square needs `pad`, too, because
        scaling its sides differently would change the cell's shape.
    pad : bool
        Fill up smaller crops by reflection, the crop in the middle.
    given_um : float or None
        Micrometres per pixel of files that neither state it nor have it from a table.
    force_given : bool
        `given_um`, or the table's, wins over the files.
    """

    patch_size: int
    resize: bool = False
    pad: bool = False
    given_um: float | None = None
    force_given: bool = False

    @property
    def exact_size(self) -> tuple[int, int] | None:
        """The one size that fits, if no other can be made to."""
        return None if self.resize or self.pad else (self.patch_size, self.patch_size)

    def apply(self, image: npt.NDArray[np.uint8], name: str) -> npt.NDArray[np.uint8]:
        """Return the patch.

        Parameters
        ----------
        image : ndarray of uint8, shape (H, W, 3)
        name : str
            Name of the file in errors.

        Returns
        -------
        ndarray of uint8, shape (patch_size, patch_size, 3)
            `image` itself if it has this size.

        Raises
        ------
        ImageError
            ``"wrong-size"`` if the crop cannot be made to fit.
        """
        size = self.patch_size
        height, width = image.shape[:2]
        if self._scales(height, width):
            scale = size / max(height, width)
            shape = (max(1, round(width * scale)), max(1, round(height * scale)))
            image = np.asarray(Image.fromarray(image).resize(shape, Image.Resampling.LANCZOS))
        if self.pad and max(image.shape[:2]) <= size and image.shape[:2] != (size, size):
            image = pad_to_square(image, size)
        if image.shape[:2] != (size, size):
            raise ImageError("wrong-size", f"{name} is {width}x{height} px, not {size}x{size}")
        return image

    def _scales(self, height: int, width: int) -> bool:
        return self.resize and max(height, width) != self.patch_size and (height == width or self.pad)

    def pixel_size(self, file_um: float | None, height: float, width: float) -> float:
        """Micrometres per pixel of the patch of a crop of so many pixels of `file_um`; not a number where unknown."""
        if file_um is None:
            return float("nan")
        return file_um * max(height, width) / self.patch_size if self._scales(int(height), int(width)) else file_um

    @property
    def advice(self) -> str:
        """Return the remedy for a crop of the wrong size."""
        if self.resize and not self.pad:
            return "it is not square: --pad as well fills it up by reflection"
        if self.pad:
            return "it is larger: --resize as well scales it"
        return "--pad fills up smaller crops by reflection, --resize scales crops, --patch-size is for a new store"


@dataclass(slots=True)
class LoadedCrop:
    """Result of loading one item.

    Attributes
    ----------
    item : Item
    key : str
        Identifies the file by its path inside the source and its bytes; 32 hexadecimal digits.
    patch : ndarray of uint8, shape (P, P, 3), or None
        None if the file was refused, or is in the store already.
    pixel_sha256 : str
        Over the bytes of `patch` in C order.
    box : Box or None
        The crop before it was fitted to the patch size.
    problem : ImageError or None
        Why the file was refused.
    pixel_size_um : float or None
        Micrometres per pixel of the file, before it was fitted.
    notes : tuple of str
        Why a pixel size that the file or the user states was not used.
    """

    item: Item
    key: str = ""
    patch: npt.NDArray[np.uint8] | None = None
    pixel_sha256: str = ""
    box: Box | None = None
    problem: ImageError | None = None
    pixel_size_um: float | None = None
    notes: tuple[str, ...] = ()


def _load(item: Item, known: Mapping[str, str], fit: CropFit) -> LoadedCrop:
    try:
        if item.problem is not None:
            raise item.problem
        data = item.read(_MAX_CROP_BYTES)
        key = hashlib.sha256(item.name.encode() + b"\0" + hashlib.sha256(data).digest()).hexdigest()[:32]
        given = fit.given_um if item.pixel_size_um is None else item.pixel_size_um
        size, _, notes = choose(stated_pixel_size(data), given, force=fit.force_given)
        if key in known:
            _check_orientation(item.source, data, known[key], fit)
            return LoadedCrop(item, key, pixel_size_um=size, notes=notes)
        image = decode_rgb(data, name=item.source, max_pixels=_MAX_CROP_PIXELS, expect=fit.exact_size)
        patch = np.ascontiguousarray(fit.apply(image, item.source))
        box = whole_image_box(*image.shape[:2])
        return LoadedCrop(item, key, patch, hash_pixels(patch), box, pixel_size_um=size, notes=notes)
    except ImageError as error:
        if error.reason == "wrong-size":
            error = ImageError(error.reason, f"{error}; {fit.advice}")
        return LoadedCrop(item, problem=error)


def _check_orientation(source: str, data: bytes, pixel_sha256: str, fit: CropFit) -> None:
    """Refuse a file whose patch in the store is from before the orientation that the file states was applied."""
    orientation = read_orientation(data)
    if orientation == 1:
        return
    stored = decode_rgb(data, name=source, max_pixels=_MAX_CROP_PIXELS, orient=False)
    shown = turn_pixels(stored, orientation)
    try:
        before, now = (hash_pixels(np.ascontiguousarray(fit.apply(image, source))) for image in (stored, shown))
    except ImageError:
        return  # it was fitted otherwise then
    if pixel_sha256 == before != now:
        raise ImageError(
            "orientation-differs",
            f"{source} is in the store as the file stores it, not turned as its metadata state (orientation "
            f"{orientation}): it was taken before orientation was applied; the old patch stays: import into a new "
            "store to have it as it is shown",
        )


def load_in_order(items: Iterable[Item], known: Mapping[str, str], fit: CropFit) -> Iterator[LoadedCrop]:
    """Load items in a few threads and yield them in the order given.

    Only a few items are loaded ahead of the one yielded, so memory does not grow with their number.

    Parameters
    ----------
    items : iterable of Item
    known : mapping of str to str
        Keys of the files that the store has, which need not be decoded, and the hashes of their patches.
    fit : CropFit
    """
    workers = max(1, min(_MAX_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2))
    load = partial(_load, known=known, fit=fit)
    ahead: deque[Future[LoadedCrop]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="hematokit-import")
    try:
        for item in items:
            ahead.append(pool.submit(load, item))
            if len(ahead) >= 8 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
