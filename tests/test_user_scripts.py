"""Scripts as a data scientist, a morphologist and a method developer write them."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from hematokit.synthetic import synthesize_field
from tinykit import write_crops

SCRIPTS = Path(__file__).parent / "user_scripts"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name: str) -> dict[str, Any]:
    """Run a script, and return its variables."""
    return runpy.run_path(str(SCRIPTS / f"{name}.py"))


def test_the_script_of_a_data_scientist(here: Path) -> None:
    write_crops(here / "crops", {"BLA": 30, "LYT": 24, "NGS": 18})
    found = run("data_scientist")
    assert set(found["mistakes"]["label"]) <= {"BLA", "LYT", "NGS"}
    assert len(found["comparison"].table)
    assert len(found["probabilities"]) == found["evaluation"].metrics["n"]
    assert found["probabilities"].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)


def test_the_script_of_a_morphologist(here: Path, tiny_run: Path) -> None:
    shutil.copytree(tiny_run, here / "runs" / "coatnet")
    (here / "fields").mkdir()
    Image.fromarray(synthesize_field(420, 520, cells=6, seed=0).pixels).save(here / "fields" / "field0.png")
    found = run("morphologist")
    assert "MON" not in found["before"].query("count > 0")["code"].tolist()
    assert "MON" in found["after"].query("count > 0")["code"].tolist()
    assert len(pd.read_csv(here / "corrected.csv")) == len(found["review"])


def test_the_script_of_a_method_developer(here: Path, tiny_store: Path) -> None:
    shutil.copytree(tiny_store, here / "bm.zarr")
    found = run("method_developer")
    assert {result.outcome for result in found["results"]} <= {"passed", "skipped"}
    assert found["run"].finished
