"""Where corrections of an image without a store go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hematokit.errors import StoreError
from hematokit.imaging.fieldfiles import open_field
from hematokit.review.journal import data_folder, journal_of


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (500, 700)) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def journal(path: Path, name: str = "a") -> Path:
    with open_field(path) as field:
        return journal_of(field, name)


def test_the_same_pixels_have_the_same_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEMATOKIT_DATA", str(tmp_path / "data"))
    found = journal(write_image(tmp_path / "a.png"))
    (tmp_path / "elsewhere").mkdir()
    assert journal(write_image(tmp_path / "elsewhere" / "b.tif")) == found
    assert found.parent == tmp_path / "data" / "corrections"
    assert not found.exists()
    others = [
        journal(write_image(tmp_path / "c.png", seed=1)),
        journal(write_image(tmp_path / "d.png", size=(500, 701))),
        journal(tmp_path / "a.png", "another name"),
    ]
    assert len({found, *others}) == 4


def test_the_folder_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEMATOKIT_DATA", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert data_folder() == tmp_path / "hematokit"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert data_folder().is_relative_to(tmp_path)
    monkeypatch.setenv("HEMATOKIT_DATA", str(tmp_path / "file"))
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreError, match="HEMATOKIT_DATA"):
        journal(write_image(tmp_path / "a.png"))
