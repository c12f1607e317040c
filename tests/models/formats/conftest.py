"""Models of all three families, too small to be good at anything, and crops for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from formatkit import MakeModel, Patches, build_model
from hematokit.models.formats.packages import drawn_crops


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """Build a classifier; arguments as of `formatkit.build_model`, but for the folder."""
    return partial(build_model, tmp_path / "bundle")


@pytest.fixture(scope="session")
def crops() -> Callable[[int], Patches]:
    """Drawn cells of a given side."""
    return partial(drawn_crops, ["BLA", "EOS", "NGS", "PLM", "LYT", "EBO", "MON", "BAS"])
