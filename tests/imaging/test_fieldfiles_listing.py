"""Finding fields in folders, and what stands in the way there."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

from hematokit.errors import ImageError
from hematokit.imaging.fieldfiles import field_name, list_fields, open_field


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def write_zarr(path: Path) -> None:
    root = zarr.open_group(str(path), mode="w", zarr_format=3)
    root.create_array("0", data=np.ones((3, 8, 8), np.uint8))
    root.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": ["c", "y", "x"], "datasets": [{"path": "0"}]}]}


def names(paths: list[Path], folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in paths]


def reason(*paths: Path) -> str:
    with pytest.raises(ImageError) as caught:
        list_fields(paths)
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value) or "endings" in str(caught.value)
    return caught.value.reason


def test_folders_are_searched_to_the_ground_and_sorted(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "b.tif",
        "a.PNG",
        "c/d.jpeg",
        "c/b.czi",
        "notes.txt",
        "Thumbs.db",
        ".hidden.tif",
        "c/.git/e.tif",
        "z.bmp",
    )
    assert names(list_fields([tmp_path]), tmp_path) == ["a.PNG", "b.tif", "c/b.czi", "c/d.jpeg", "z.bmp"]


def test_an_ome_zarr_folder_is_one_field(tmp_path: Path) -> None:
    write_zarr(tmp_path / "in" / "b.ome.zarr")
    write_zarr(tmp_path / "in" / "field-without-ending")
    touch(tmp_path, "in/c.tif")
    expected = ["in/b.ome.zarr", "in/c.tif", "in/field-without-ending"]
    assert names(list_fields([tmp_path]), tmp_path) == expected
    assert list_fields([tmp_path / "in" / "b.ome.zarr"]) == [tmp_path / "in" / "b.ome.zarr"]


def test_a_store_stands_for_its_fields(tmp_path: Path, tiny_store: Path) -> None:
    store = tmp_path / "s.zarr"
    store.mkdir()
    (store / "zarr.json").write_bytes((tiny_store / "zarr.json").read_bytes())
    assert reason(store) == "no-fields"
    for name in ("f2", "f1", ".writing-f3"):
        write_zarr(store / "fields" / name)
    assert names(list_fields([store]), store) == ["fields/f1", "fields/f2"]
    assert names(list_fields([tmp_path]), store) == ["fields/f1", "fields/f2"]
    with open_field(store / "fields" / "f1") as field:
        assert field.name == "f1"


def test_order_and_repetition(tmp_path: Path) -> None:
    touch(tmp_path, "b.tif", "a.tif")
    paths = [tmp_path / "b.tif", tmp_path, tmp_path / "b.tif"]
    assert names(list_fields(paths), tmp_path) == ["b.tif", "a.tif"]


def test_what_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt", "none/readme.md")
    assert reason(tmp_path / "missing") == "missing"
    assert reason(tmp_path / "notes.txt") == "not-an-image"
    assert reason(tmp_path / "none") == "no-fields"
    assert reason() == "no-fields"


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    touch(tmp_path, "a/b.tif")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self.tif").symlink_to("self.tif")
    (tmp_path / "a" / "nowhere.tif").symlink_to("gone.tif")
    assert names(list_fields([tmp_path]), tmp_path) == ["a/b.tif"]
    assert reason(tmp_path / "a" / "self.tif") == "missing"
    with pytest.raises(ImageError) as caught:
        open_field(tmp_path / "a" / "self.tif")
    assert caught.value.reason == "unreadable"


def test_linked_files_and_folders_are_found(tmp_path: Path) -> None:
    touch(tmp_path, "archive/a.tif")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "linked").symlink_to(tmp_path / "archive")
    (tmp_path / "work" / "b.tif").symlink_to(tmp_path / "archive" / "a.tif")
    assert names(list_fields([tmp_path / "work"]), tmp_path / "work") == ["b.tif", "linked/a.tif"]


def test_a_named_pipe_is_passed_over_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tif")
    touch(tmp_path, "a.tif")
    assert names(list_fields([tmp_path]), tmp_path) == ["a.tif"]
    with pytest.raises(ImageError, match="not a regular file"):
        open_field(tmp_path / "pipe.tif")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_said(tmp_path: Path) -> None:
    touch(tmp_path, "a.tif")
    (tmp_path / "a.tif").chmod(0)
    with pytest.raises(ImageError, match="Permission denied"):
        open_field(tmp_path / "a.tif")


@pytest.mark.parametrize("path", ["missing.tif", "a\0b.tif", "x" * 5000])
def test_paths_that_lead_nowhere(path: str) -> None:
    with pytest.raises(ImageError) as caught:
        open_field(path)
    assert caught.value.reason in ("missing", "unreadable")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("slide1.ome.tif", "slide1"),
        ("slide1.OME.TIFF", "slide1"),
        ("slide1.ome.zarr", "slide1"),
        ("slide1.zarr", "slide1"),
        ("a.b.png", "a.b"),
        ("field-7", "field-7"),
        ("2.5um", "2.5um"),
        (".tif", ".tif"),
        (".ome.tif", ".ome"),
        ("x.czi", "x"),
    ],
)
def test_names(name: str, expected: str) -> None:
    assert field_name(Path("folder") / name) == expected


def test_real_folders(real_data: Path) -> None:
    found = list_fields([real_data / "bccd"])
    assert len(found) == 266
    assert found == sorted(found)
    with open_field(found[0]) as field:
        assert (field.height, field.width) == Image.open(found[0]).size[::-1]
