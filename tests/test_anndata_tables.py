"""Cells tables as AnnData: written by h5ad and read back, with classes and coordinates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import hematokit
from hematokit.anndata_tables import cells_to_anndata
from hematokit.taxonomy import MATEK_21

anndata = pytest.importorskip("anndata", reason="anndata is not installed; make test installs it")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*X.*:UserWarning")


def test_a_table_survives_a_file(tmp_path: Path) -> None:
    cells = pd.DataFrame(
        {
            "cell_id": ["a", "b"],
            "y": [2.0, 3.5],
            "x": [1.0, 4.0],
            "label": ["BLA", None],
            "p_BLA": [0.7, np.nan],
            "reviewed": [True, False],
            "contour": [np.zeros((4, 2)), None],
        }
    )
    made = cells_to_anndata(cells, MATEK_21, {"store_hash": "f00", "unknown": None})
    made.write_h5ad(tmp_path / "cells.h5ad")
    read = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert read.obs_names.tolist() == ["a", "b"]
    assert read.obs["label"].astype(str).tolist() == ["BLA", ""]
    assert read.obs["reviewed"].tolist() == [True, False]
    np.testing.assert_array_equal(read.obs["p_BLA"], [0.7, np.nan])
    np.testing.assert_array_equal(read.obsm["spatial"], [[1.0, 2.0], [4.0, 3.5]])
    own = read.uns["hematokit"]
    assert list(own["classes"]) == list(MATEK_21.codes)
    assert own["store_hash"] == "f00"
    assert "unknown" not in own


def test_a_store_has_its_cells_and_hash(tiny_store: Path, tmp_path: Path) -> None:
    store = hematokit.open_store(tiny_store)
    made = store.to_anndata()
    assert made.obs_names.tolist() == store.cells["cell_id"].tolist()
    assert made.obs["label"].tolist() == store.cells["label"].tolist()
    assert made.uns["hematokit"]["store_hash"] == store.content_hash
    made.write_h5ad(tmp_path / "store.h5ad")


def test_a_missing_anndata_is_one_line() -> None:
    code = (
        "import sys; sys.modules['anndata'] = None\n"
        "import pandas as pd\n"
        "from hematokit.anndata_tables import cells_to_anndata\n"
        "from hematokit.errors import HematokitError\n"
        "try:\n    cells_to_anndata(pd.DataFrame({'cell_id': []}), None, {})\n"
        "except HematokitError as error:\n    print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "anndata" in said
    assert said.count("\n") == 1
