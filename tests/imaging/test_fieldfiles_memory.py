"""Fields larger than what may be in memory at once, each read in a process of its own whose peak is measured."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

SIDE, PIECE = 16_000, 500  # pixels: 732 MiB
LIMIT = 512  # MiB; with the interpreter, the libraries, and 256 MiB of decoded pieces. 300 to 430 were measured

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")

PROGRAM = """
import json, sys
from hematokit.imaging.fieldfiles import open_field
from hematokit.imaging.geometry import Box, windows
with open_field(sys.argv[1]) as field:
    corners = []
    for window in windows(field.height, field.width, 2048, 128):
        pixels = field.read(window.outer)
        corners.append(int(pixels[0, 0, 0]))
    small, scale = field.thumbnail(1000)
# Not ru_maxrss, which a process inherits from the one that started it.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([len(corners), sum(corners), small.shape, scale, small.mean(), int(peak.split()[1]) // 1024]))
"""


def piece() -> np.ndarray:
    y, x = np.mgrid[:PIECE, :PIECE]
    return np.stack([100 + x * 0, y // 4, x // 4], axis=-1).astype(np.uint8)


def write_tiled(path: Path) -> None:
    side = 512
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.tile(piece(), (2, 2, 1))[:side, :side])).save(buffer, "JPEG", quality=95)
    tiles = (buffer.getvalue() for _ in range((-(-SIDE // side)) ** 2))
    options = {"shape": (SIDE, SIDE, 3), "dtype": "uint8", "tile": (side, side), "photometric": "ycbcr"}
    tifffile.imwrite(path, tiles, compression="jpeg", subsampling=(2, 2), **options)


def write_strips(path: Path) -> None:
    # Every row of windows needs every strip in it, once for each window: decoded once, or it takes minutes.
    import imagecodecs

    rows = np.tile(piece()[:100], (1, SIDE // PIECE, 1))
    strips = (imagecodecs.zlib_encode(rows, level=1) for _ in range(SIDE // 100))
    options = {"shape": (SIDE, SIDE, 3), "dtype": "uint8", "rowsperstrip": 100, "photometric": "rgb"}
    tifffile.imwrite(path, strips, compression="zlib", **options)


def write_zarr(path: Path) -> None:
    root = zarr.open_group(str(path), mode="w", zarr_format=3)
    array = root.create_array("0", shape=(3, SIDE, SIDE), chunks=(3, PIECE, PIECE), dtype="uint8")
    array[:, :PIECE, :PIECE] = piece().transpose(2, 0, 1)
    chunk = path / "0" / "c" / "0" / "0" / "0"
    for y in range(SIDE // PIECE):
        for x in range(SIDE // PIECE):
            target = path / "0" / "c" / "0" / str(y) / str(x)
            target.parent.mkdir(exist_ok=True)
            if target != chunk:
                target.hardlink_to(chunk)
    root.attrs["ome"] = {"multiscales": [{"axes": ["c", "y", "x"], "datasets": [{"path": "0"}]}]}


@pytest.mark.parametrize(("name", "write"), [("a.tif", write_tiled), ("b.tif", write_strips), ("c.zarr", write_zarr)])
def test_windows_and_thumbnail_of_a_large_field_in_little_memory(name: str, write: object, tmp_path: Path) -> None:
    assert callable(write)
    write(tmp_path / name)
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / name)], capture_output=True, text=True, check=True
    )
    windows, corners, shape, scale, mean, peak = json.loads(result.stdout)
    assert (windows, shape, scale) == (64, [1000, 1000, 3], 16)
    assert corners == pytest.approx(64 * 100, abs=64 * 2)  # JPEG is off by little
    assert mean == pytest.approx(piece().mean() if name != "b.tif" else piece()[:100].mean(), abs=1.5)
    assert peak < LIMIT
