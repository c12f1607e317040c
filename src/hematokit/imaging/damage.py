"""Detection of damaged and incomplete image files.

JPEG decoders fill in missing or damaged pixels and only warn; PNG decoders need not verify the checksums of the pixels.
The functions in this module decide from the bytes of a file whether its pixels are those that were saved, as far as the
format allows. They do not return pixels.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["find_damage", "jpeg_damage", "jpeg_size", "join_jpeg_tables"]

_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # 00 is a stuffed byte, D0 to D7 restart an entropy-coded segment
_END_OF_IMAGE, _START_OF_SCAN, _HUFFMAN_TABLES, _COMMENT = 0xD9, 0xDA, 0xC4, 0xFE
_APPLICATION = range(0xE0, 0xF0)
_ZEROS = bytes(64)
_STRAY_BYTES = 4
"""Largest number of bytes between the pixels and the end marker that is not damage: some cameras write one or two.
Each of 1,200 deliberately damaged crops had more."""

_MOST_SCANS = 500
"""Largest number of scans in a JPEG. Encoders write about ten; each takes as long to decode as a whole image."""

_NOT_JUDGED = ("subsampling", "precision", "SOF type")
"""Parts of the decoder's messages about unsupported variants of JPEG, which are not damage."""

_PNG_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_TIFF_LOSSLESS = (5, 8, 32773, 32946, 34925, 34926, 50000)
_TIFF_JPEG = 7
_LARGEST_TILE = 4096 * 4096


def find_damage(data: bytes, kind: str) -> str | None:
    """Return the damage in the bytes of an image file whose header is intact.

    Parameters
    ----------
    data : bytes
        The whole file.
    kind : str
        Pillow's name of its format.

    Returns
    -------
    str or None
        Short description of the damage; None if no damage is detected. Changed bytes cannot be detected in BMP,
        uncompressed TIFF and the lossy codecs WebP and JPEG 2000, which have no redundancy.
    """
    if kind in ("JPEG", "MPO"):
        return jpeg_damage(data)
    if kind == "PNG":
        return _png_damage(data)
    return _tiff_damage(data) if kind == "TIFF" else None


# --- JPEG ----------------------------------------------------------------------------------------------------------


def jpeg_damage(data: bytes) -> str | None:
    """Return the damage of a JPEG, as the message of a decoder that stops at warnings; None if it is complete.

    These are not damage: any bytes after the end marker, stray bytes between segments, application segments with any
    content, up to four stray bytes or any number of zeros before the end marker, and unusual sampling factors.
    """
    # Embedded previews and films have the same two bytes, so scans must be counted from the structure of the file.
    if data.count(b"\xff\xda") > _MOST_SCANS and _bare_jpeg(data).count(b"\xff\xda") > _MOST_SCANS:
        return f"more than {_MOST_SCANS} scans"
    problem = _jpeg_warning(data)
    if problem is None:
        return "its pixels were overwritten with zeros" if _ZEROS in data and _has_zeros(data) else None
    bare = _bare_jpeg(data)
    again = _jpeg_warning(bare)
    left_over = re.search(r"(\d+) extraneous bytes before marker 0xd9", again or "")
    if left_over and int(left_over[1]) > _STRAY_BYTES:
        # Zeros may be padding or overwritten pixels. Without the zeros, overwritten pixels are missing.
        again = _jpeg_warning(bare[:-2].rstrip(b"\0") + bare[-2:])
    elif left_over:
        again = None
    return again and problem


def _jpeg_warning(data: bytes) -> str | None:
    import simplejpeg

    try:
        # At an eighth of the size, all bits of the pixels are decoded but little is computed.
        simplejpeg.decode_jpeg(data, colorspace="GRAY", min_height=1, min_width=1, min_factor=8)
    except ValueError as error:
        message = " ".join(str(error).split())
        return None if any(part in message for part in _NOT_JUDGED) else message
    return None


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) from a JPEG's header; None if it is unreadable."""
    import simplejpeg

    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data, strict=False)
    except ValueError:
        return None
    return int(height), int(width)


class _Segment(NamedTuple):
    """A segment of a JPEG: its marker, start and stop, and for a scan the end of its coded pixels."""

    kind: int
    start: int
    stop: int
    end: int


def _segments(data: bytes) -> Iterator[_Segment]:
    """Yield the segments of a JPEG up to its end marker; there may be stray bytes between them."""
    at = 2
    while marker := _MARKER.search(data, at):
        kind, stop = data[marker.end() - 1], marker.end()
        if kind != _END_OF_IMAGE:
            stop += int.from_bytes(data[stop : stop + 2], "big")
        at = stop
        if kind == _START_OF_SCAN:
            behind = _MARKER.search(data, stop)
            at = behind.start() if behind else len(data)
        yield _Segment(kind, marker.start(), stop, at)
        if kind == _END_OF_IMAGE:
            return


def _bare_jpeg(data: bytes) -> bytes:
    """Return a JPEG up to its end marker, without stray bytes before the pixels and segments irrelevant to pixels."""
    kept, last, in_scans = [b"\xff\xd8"], 2, False
    for kind, start, _, end in _segments(data):
        if kind != _COMMENT and kind not in _APPLICATION:
            # After the first scan, bytes outside of segments may be a scan that was overwritten.
            kept.append(data[last if in_scans else start : end])
        in_scans |= kind == _START_OF_SCAN
        last = end
    return b"".join(kept)


def _has_zeros(data: bytes) -> bool:
    """Return whether pixels of a sequential JPEG were overwritten with zeros.

    A decoder may accept zeros as blocks in which every coefficient is -1, unless the shortest code means the end of a
    block; so the message of the decoder is not sufficient.
    """
    sequential, first = False, {}
    for kind, start, stop, end in _segments(data):
        body = data[start + 4 : stop]
        sequential |= kind in (0xC0, 0xC1)
        while kind == _HUFFMAN_TABLES and len(body) > 17:
            first[body[0]] = body[17]
            body = body[17 + sum(body[1:17]) :]
        if kind == _START_OF_SCAN and sequential and _ZEROS in data[stop:end]:
            tables = body[2 : 1 + 2 * body[0] : 2]
            return any(first.get(0x10 | table & 15, 0) for table in tables)
    return False


def join_jpeg_tables(data: bytes, tables: bytes | None) -> bytes:
    """Return a complete JPEG from a tile or strip of a TIFF and the tables shared by its pieces."""
    return data if not tables else tables.removesuffix(b"\xff\xd9") + data.removeprefix(b"\xff\xd8")


# --- PNG and TIFF --------------------------------------------------------------------------------------------------


def _png_damage(data: bytes) -> str | None:
    at = 8
    while at + 12 <= len(data):
        kind, end = data[at + 4 : at + 8], at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        checksum = int.from_bytes(data[end : end + 4], "big")
        if kind in _PNG_CRITICAL and zlib.crc32(memoryview(data)[at + 4 : end]) != checksum:
            return f"the checksum of a part ({kind.decode()}) is wrong"
        if kind == b"IEND":
            return None
        at = end + 4
    return "its end is missing"


def _tiff_damage(data: bytes) -> str | None:
    """Return the damage of a TIFF: Pillow continues where libtiff cannot decode a tile or strip."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages[0]
        compression = int(page.compression)
        luma_and_chroma = int(page.photometric) == 6 and compression != _TIFF_JPEG  # no decoder in tifffile
        if compression not in (_TIFF_JPEG, *_TIFF_LOSSLESS) or luma_and_chroma:
            return None
        for index, (offset, count) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
            piece = data[offset : offset + count]
            if not piece:
                return "a tile or strip is missing"
            if compression == _TIFF_JPEG:
                whole = join_jpeg_tables(piece, page.jpegtables)
                height, width = jpeg_size(whole) or (0, 0)
                if height * width > 4 * page.imagelength * page.imagewidth + _LARGEST_TILE:
                    return f"a tile or strip claims to be {width}x{height} px"
                if problem := jpeg_damage(whole):
                    return problem
            else:
                page.decode(piece, index)
    return None
