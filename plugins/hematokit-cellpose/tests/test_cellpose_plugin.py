"""The plugin in hematokit: listed without cost, and used from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from conftest import discs
from hematokit.cli.main import main

HEAVY = ("torch", "cellpose", "cv2", "numba", "skimage")


def test_listing_it_imports_nothing_heavy() -> None:
    code = (
        "import sys; from hematokit.plugins import load_plugins; "
        "spec = load_plugins().detectors.get('cellpose'); assert 'diameter_um' in spec.options; "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_detect_writes_its_cells(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(discs([(50, 60), (120, 200)])).save(tmp_path / "field.png")
    words = ["detect", str(tmp_path / "field.png"), "--output", str(tmp_path / "cells"), "--detector", "cellpose"]
    assert main([*words, "--set", f"detector.model={weights}", "--set", "detector.device=cpu", "--json"]) == 0
    json.loads(capsys.readouterr().out)
    cells = pd.read_parquet(tmp_path / "cells" / "cells.parquet").sort_values("y")
    assert abs(cells[["y", "x"]].to_numpy() - [(50.5, 60.5), (120.5, 200.5)]).max() < 2.5


def test_a_mistake_is_one_line(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(discs([(50, 60)])).save(tmp_path / "field.png")
    words = ["detect", str(tmp_path / "field.png"), "--output", str(tmp_path / "cells"), "--detector", "cellpose"]
    for wrong, said in (
        ("detector.diameter=-3", "outside 0 to 2000"),
        ("detector.size=3", "no option 'size'"),
        (f"detector.model={tmp_path / 'none.pth'}", "set detector.model to a file of weights"),
    ):
        assert main([*words, "--set", wrong]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert said in " ".join(lines)
    assert not (tmp_path / "cells").exists()
