"""Importing from zip files: streamed, limited, and never outside."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hematokit.errors import StoreError
from hematokit.store import import_crops, open_store


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def reasons(store: Path) -> dict[str, str]:
    rejects = open_store(store).rejects
    return dict(zip(rejects["source"], rejects["reason"], strict=True))


def test_a_zip_is_the_same_as_its_folder(crop: Callable[..., np.ndarray], tmp_path: Path) -> None:
    files = {f"data set/{code}/0001-1000/{n} ü.png": png(crop(i)) for i, (code, n) in enumerate(["BP", "BQ", "PP"])}
    files = {name.replace("/B/", "/BLA/").replace("/P/", "/PMO/"): data for name, data in files.items()}
    archive = tmp_path / "crops.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in reversed(files.items()):
            file.writestr(name, data)
        file.writestr("__MACOSX/data set/BLA/._x.png", b"x")
        file.writestr("notes.txt", b"x")
    for name, data in files.items():
        (tmp_path / "crops" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "crops" / name).write_bytes(data)
    zipped = import_crops(archive, tmp_path / "zip.zarr", patch_size=16)
    import_crops(tmp_path / "crops", tmp_path / "folder.zarr", patch_size=16)
    one, two = open_store(tmp_path / "zip.zarr"), open_store(tmp_path / "folder.zarr")
    assert zipped.ignored == {".txt": 1}
    assert zipped.added == 3
    assert one.content_hash == two.content_hash
    assert one.cells["source"].iloc[0].startswith(str(archive))
    assert import_crops(archive, tmp_path / "folder.zarr").added == 0, "the same files, whichever way they come"
    assert {p.name for p in tmp_path.iterdir()} == {"crops", "crops.zip", "zip.zarr", "folder.zarr"}


def test_entries_that_leave_the_archive_are_refused(crop: Callable[..., np.ndarray], tmp_path: Path) -> None:
    archive = tmp_path / "evil.zip"
    link = zipfile.ZipInfo("BLA/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("BLA/good.png", png(crop(1)))
        file.writestr("BLA\\windows.png", png(crop(2)))
        for name in ("../BLA/up.png", "/BLA/root.png", "BLA/../../x.png", "C:/BLA/drive.png", "..\\BLA\\back.png"):
            file.writestr(name, png(crop(3)))
        file.writestr(link, "/etc/passwd")
    store = tmp_path / "store.zarr"
    summary = import_crops(archive, store, patch_size=16)
    assert open_store(store).cells["cell_id"].tolist() == ["good", "windows"]
    assert summary.rejected == {"outside-folder": 6}
    assert {p.name for p in tmp_path.iterdir()} == {"evil.zip", "store.zarr"}
    assert not [p for p in tmp_path.parent.rglob("*.png") if p.name in {"up.png", "x.png", "back.png"}]


def test_bombs_are_stopped_by_declared_and_by_real_size(crop: Callable[..., np.ndarray], tmp_path: Path) -> None:
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("BLA/good.png", png(crop(1)))
        with file.open("BLA/honest.png", "w", force_zip64=True) as entry:
            for _ in range(70):
                entry.write(bytes(1 << 20))
        with file.open("BLA/liar.png", "w", force_zip64=True) as entry:
            for _ in range(70):
                entry.write(bytes(1 << 20))
    data = bytearray(archive.read_bytes())
    # The liar declares 1,000 bytes in the central directory.
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"BLA/liar.png"))
    struct.pack_into("<I", data, at + 24, 1000)
    archive.write_bytes(data)
    import_crops(archive, tmp_path / "store.zarr", patch_size=16)
    found = {Path(source).name: reason for source, reason in reasons(tmp_path / "store.zarr").items()}
    assert found["honest.png"] == "too-large"
    assert found["liar.png"] in {"too-large", "unreadable"}
    assert len(open_store(tmp_path / "store.zarr")) == 1


def test_damaged_entries_become_rejects(crop: Callable[..., np.ndarray], tmp_path: Path) -> None:
    archive = tmp_path / "crops.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("BLA/a.png", png(crop(1)))
        file.writestr("BLA/b.png", png(crop(2)))
        file.writestr("BLA/c.png", b"")
    data = bytearray(archive.read_bytes())
    data[data.index(b"BLA/b.png") + 200] ^= 0xFF  # its checksum no longer fits
    archive.write_bytes(data)
    import_crops(archive, tmp_path / "store.zarr", patch_size=16)
    found = {Path(source).name: reason for source, reason in reasons(tmp_path / "store.zarr").items()}
    assert found == {"b.png": "unreadable", "c.png": "empty"}


def test_labels_beside_a_zip(crop: Callable[..., np.ndarray], tmp_path: Path) -> None:
    archive = tmp_path / "crops.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("x/a.png", png(crop(1)))
        file.writestr("x/b.png", png(crop(2)))
    (tmp_path / "labels.csv").write_text("path,label,patient_id\nx/a.png,BLA,p1\nx/none.png,BLA,p1\n../x,BLA,p1\n")
    summary = import_crops(archive, tmp_path / "store.zarr", labels=tmp_path / "labels.csv", patch_size=16)
    assert (summary.added, summary.rejected) == (1, {"outside-folder": 1, "unreadable": 1})


def test_what_is_no_zip_is_told_in_one_line(crop: Callable[..., np.ndarray], tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(StoreError, match="cannot be read as a zip file"):
        import_crops(tmp_path / "text.zip", tmp_path / "store.zarr")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(StoreError, match="holds no JPEG"):
        import_crops(tmp_path / "empty.zip", tmp_path / "store.zarr")
    with zipfile.ZipFile(tmp_path / "unknown.zip", "w") as file:
        file.writestr("WHAT/a.png", png(crop(1)))
    with pytest.raises(StoreError, match="'WHAT'"):
        import_crops(tmp_path / "unknown.zip", tmp_path / "store.zarr")
    assert not (tmp_path / "store.zarr").exists()
