"""Pixels of one TIFF image, decoded piece by piece: only the tiles or strips that a window needs.

`tifffile` reads the tags and, with `imagecodecs`, every compression, but fills missing or short pieces with zeros, as
in a black field. Here, a piece that is not in the file, or does not decode to its size, is an error. Pieces are read
with ``pread`` and decoded outside of any lock; the last ones are kept, so that neighbouring windows and patches in one
tile need one decoding.
"""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from hematokit.errors import ImageError
from hematokit.imaging.damage import join_jpeg_tables, jpeg_damage, jpeg_size
from hematokit.imaging.fieldfiles.field import MAX_CACHE_BYTES, MAX_WHOLE_BYTES, check_size, drop_alpha
from hematokit.imaging.geometry import Box

__all__ = ["COMPRESSIONS", "PieceCache", "TiffLevel"]

COMPRESSIONS = {
    1: "none", 5: "LZW", 7: "JPEG", 8: "Deflate", 32773: "PackBits", 32946: "Deflate", 33003: "JPEG 2000",
    33005: "JPEG 2000", 34712: "JPEG 2000", 34925: "LZMA", 34926: "Zstandard", 50000: "Zstandard", 50001: "WebP",
}  # fmt: skip
"""Supported compressions. Others are not for RGB, or their decoded size cannot be checked in advance."""

_JPEG = 7
_JPEG2000 = (33003, 33005, 34712)


class PieceCache:
    """Cache of decoded pieces of a file; the least recently used piece is dropped first.

    Parameters
    ----------
    limit : int
        Size in bytes; the newest piece is kept even if it is larger.
    """

    def __init__(self, limit: int = MAX_CACHE_BYTES) -> None:
        self._limit = limit
        self._bytes = 0
        self._pieces: OrderedDict[tuple[int, int], npt.NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[int, int], decode: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """Return the piece of `key`, decoding it if it is not cached.

        Two threads that need the same piece at the same time both decode it, which is faster than waiting.
        """
        with self._lock:
            if key in self._pieces:
                self._pieces.move_to_end(key)
                return self._pieces[key]
        piece = decode()
        with self._lock:
            if key not in self._pieces:
                self._pieces[key] = piece
                self._bytes += piece.nbytes
                while self._bytes > self._limit and len(self._pieces) > 1:
                    self._bytes -= self._pieces.popitem(last=False)[1].nbytes
        return piece


class TiffLevel:
    """One resolution of a TIFF.

    Parameters
    ----------
    pages : sequence of tifffile.TiffPage
        One page with three (or four) samples per pixel, or three pages of one: red, green and blue.
    descriptor : int
        The open file.
    file_size : int
        Its size in bytes.
    cache : PieceCache
        Shared by the levels of a file.
    shown : str
        The file's name in errors.

    Raises
    ------
    ImageError
        If a piece of the image is not in the file, or is too large to decode.
    """

    def __init__(self, pages: list[Any], descriptor: int, file_size: int, cache: PieceCache, shown: str) -> None:
        page = pages[0]
        self.height, self.width = int(page.imagelength), int(page.imagewidth)
        check_size(self.height, self.width, shown)
        self.dtype: np.dtype[Any] = np.dtype(page.dtype)
        self._pages, self._descriptor, self._cache, self._shown = pages, descriptor, cache, shown
        self._decoders = [page.decode for page in pages]
        self._offsets = [[int(offset) for offset in page.dataoffsets] for page in pages]
        self._counts = [[int(count) for count in page.databytecounts] for page in pages]
        self._tables = [(page.jpegtables, page.jpegheader) for page in pages]
        self._stored = int(page.samplesperpixel) if int(page.planarconfig) == 1 else 1  # samples in a piece's pixel
        self._planes = len(pages) if len(pages) > 1 else int(page.samplesperpixel) // self._stored
        self._samples = self._planes * self._stored
        self._tall, self._wide = (
            (int(page.tilelength), int(page.tilewidth))
            if page.is_tiled
            else (min(int(page.rowsperstrip), self.height), self.width)
        )
        if self._tall < 1 or self._wide < 1:
            raise self._damaged("its tiles have no size")
        self._across, self._down = math.ceil(self.width / self._wide), math.ceil(self.height / self._tall)
        # Rows of such a file are read directly, however large its strips are.
        self._raw = len(pages) == 1 and self._stored == self._samples and bool(page.is_final) and not page.is_tiled
        self._itemsize = self.dtype.itemsize
        self._stored_dtype = self.dtype.newbyteorder(page.parent.byteorder)
        self._check(file_size)

    def _damaged(self, what: str) -> ImageError:
        return ImageError(
            "unreadable", f"{self._shown} is damaged or was cut short ({what}); copy or export the file again"
        )

    def _check(self, file_size: int) -> None:
        """Raise an error if pixels are missing in the file, or can be decoded only as one very large piece."""
        pieces = self._across * self._down * (self._planes if len(self._pages) == 1 else 1)
        size = self._tall * self._wide * self._stored * self._itemsize
        uncompressed = int(self._pages[0].compression) == 1
        for offsets, counts in zip(self._offsets, self._counts, strict=True):
            if len(offsets) < pieces or len(counts) < pieces:
                raise self._damaged(f"{min(len(offsets), len(counts))} of {pieces} tiles or strips are listed")
            for offset, count in zip(offsets[:pieces], counts[:pieces], strict=True):
                # Some writers give the size of a full strip for the last, shorter strip.
                needed = min(count, 1) if uncompressed and count > size else count
                if offset <= 0 or count <= 0:
                    raise self._damaged("a tile or strip is missing")
                if offset + needed > file_size:
                    raise self._damaged(f"pixels should go on to byte {offset + needed:,} of {file_size:,}")
        if self._raw:
            end = self._offsets[0][0] + self.height * self.width * self._stored * self._itemsize
            if end > file_size:
                raise self._damaged(f"pixels should go on to byte {end:,} of {file_size:,}")
        elif size > MAX_WHOLE_BYTES:
            kind = "tiles" if self._pages[0].is_tiled else "strips"
            raise ImageError(
                "too-large",
                f"{self._shown} is {self.width}x{self.height} px in {kind} of {self._wide}x{self._tall} px, too large "
                "to read by windows; convert it to a tiled TIFF, for example: "
                "vips tiffsave IN OUT --tile --pyramid --compression deflate",
            )

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Return the pixels (h, w, 3) of a box inside the level."""
        pixels = self._read_rows(box) if self._raw else self._read_pieces(box)
        if self._samples == 4:
            return drop_alpha(pixels, int(np.iinfo(self.dtype).max), self._shown)
        return pixels

    def _read_rows(self, box: Box) -> npt.NDArray[Any]:
        pixel = self._stored * self._itemsize
        start = self._offsets[0][0]
        rows = bytearray(box.height * box.width * pixel)
        length = box.width * pixel
        for row in range(box.height):
            offset = start + ((box.y0 + row) * self.width + box.x0) * pixel
            rows[row * length : (row + 1) * length] = self._bytes(offset, length)
        pixels = np.frombuffer(rows, self._stored_dtype).reshape(box.height, box.width, self._stored)
        return pixels.astype(self.dtype, copy=False)

    def _read_pieces(self, box: Box) -> npt.NDArray[Any]:
        pixels = np.empty((box.height, box.width, self._samples), self.dtype)
        for plane in range(self._planes):
            samples = slice(plane * self._stored, (plane + 1) * self._stored)
            for row in range(box.y0 // self._tall, (box.y1 - 1) // self._tall + 1):
                for column in range(box.x0 // self._wide, (box.x1 - 1) // self._wide + 1):
                    piece = self._piece(plane, row, column)
                    y, x = row * self._tall, column * self._wide
                    y0, y1 = max(box.y0, y), min(box.y1, y + self._tall)
                    x0, x1 = max(box.x0, x), min(box.x1, x + self._wide)
                    target = pixels[y0 - box.y0 : y1 - box.y0, x0 - box.x0 : x1 - box.x0, samples]
                    target[...] = piece[y0 - y : y1 - y, x0 - x : x1 - x]
        return pixels

    def _piece(self, plane: int, row: int, column: int) -> npt.NDArray[Any]:
        page = plane if len(self._pages) > 1 else 0
        index = row * self._across + column
        if page == 0:
            index += plane * self._across * self._down
        key = (self._offsets[page][index], index)
        return self._cache.get(key, lambda: self._decode(page, index, row, column))

    def _decode(self, page: int, index: int, row: int, column: int) -> npt.NDArray[Any]:
        count = self._counts[page][index]
        if int(self._pages[page].compression) == 1:
            rows = self._tall if self._pages[page].is_tiled else min(self._tall, self.height - row * self._tall)
            bits = int(self._pages[page].bitspersample)
            count = min(count, rows * math.ceil(self._wide * self._stored * bits / 8))
        data = self._bytes(self._offsets[page][index], count)
        tables, header = self._tables[page]
        self._check_inner_size(page, data, header)
        decoded, _, _ = self._decoders[page](data, index, jpegtables=tables, jpegheader=header)
        if decoded is None:
            raise self._damaged("a tile or strip is missing")
        piece: npt.NDArray[Any] = np.asarray(decoded)[0]
        tall = min(self._tall, self.height - row * self._tall)
        wide = min(self._wide, self.width - column * self._wide)
        if piece.ndim != 3 or piece.shape[0] < tall or piece.shape[1] < wide or piece.shape[2] != self._stored:
            raise self._damaged(f"a tile or strip decodes to {piece.shape}")
        if piece.dtype != self.dtype:
            raise self._damaged(f"a tile or strip decodes to {piece.dtype}")
        return piece

    def _check_inner_size(self, page: int, data: bytes, header: bytes | None) -> None:
        """Raise an error for a tile whose header has far more pixels than the TIFF, and for a damaged JPEG."""
        compression = int(self._pages[page].compression)
        if compression == _JPEG:
            whole = join_jpeg_tables(data, self._tables[page][0])
            size = jpeg_size(whole) if header is None else None
        elif compression in _JPEG2000:
            size = jpeg2000_size(data)
        else:
            return
        if size is not None and (size[0] > max(self._tall, 8) * 2 or size[1] > max(self._wide, 8) * 2):
            raise self._damaged(f"a tile or strip claims to be {size[1]}x{size[0]} px")
        if compression == _JPEG and header is None and (problem := jpeg_damage(whole)):
            raise self._damaged(problem)

    def _bytes(self, offset: int, count: int) -> bytes:
        data = os.pread(self._descriptor, count, offset)
        if len(data) < count:
            raise self._damaged("a tile or strip is not all there")
        return data


def jpeg2000_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) from the SIZ marker of a JPEG 2000 codestream; None if it has no SIZ marker."""
    at = data.find(b"\xff\x4f\xff\x51", 0, 4096)
    if at < 0 or len(data) < at + 24:
        return None
    x1, y1, x0, y0 = (int.from_bytes(data[at + 8 + 4 * i : at + 12 + 4 * i], "big") for i in range(4))
    return y1 - y0, x1 - x0
