"""The examples in the docstrings run, in a folder that holds what they name: a store, a run and a field."""

from __future__ import annotations

import doctest
import shutil
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

import hematokit
from hematokit.synthetic import synthesize_field

SOURCES = Path(hematokit.__file__).parent
MODULES = sorted(
    ".".join(("hematokit", *path.relative_to(SOURCES).with_suffix("").parts)).removesuffix(".__init__")
    for path in SOURCES.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8") and "templates" not in path.parts
)


@pytest.fixture
def here(tiny_store: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with ``bm.zarr``, ``runs/coatnet`` and ``fields/field0.png``."""
    shutil.copytree(tiny_store, tmp_path / "bm.zarr")
    shutil.copytree(tiny_run, tmp_path / "runs" / "coatnet")
    (tmp_path / "fields").mkdir()
    Image.fromarray(synthesize_field(420, 520, cells=4, seed=0).pixels).save(tmp_path / "fields" / "field0.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.usefixtures("here")
def test_examples_run(name: str) -> None:
    results = doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.attempted
    assert not results.failed


def test_no_example_is_skipped() -> None:
    assert [path.name for path in SOURCES.rglob("*.py") if "doctest: +SKIP" in path.read_text(encoding="utf-8")] == []
