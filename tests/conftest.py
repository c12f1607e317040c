"""Fixtures that several rooms of the tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real images; the test skips, saying so, where it is absent (a user's checkout has none)."""
    folder = Path(os.environ.get("HEMATOKIT_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
    if not (folder / "matek_bm8").is_dir():
        pytest.skip(f"no real images at {folder}; set HEMATOKIT_TEST_DATA to a folder that has matek_bm8/")
    return folder
