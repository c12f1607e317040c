"""The form "Classify folder": the command line's job, and what it wrote opened in the viewer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import napari
import pandas as pd
import pytest
from PIL import Image

from hematokit.errors import FieldError
from hematokit.synthetic import synthesize_field
from napari_hematonet.folder_widget import FolderWidget
from napari_hematonet.state import cells_layers


@pytest.fixture
def form(viewer: napari.Viewer, tiny_run: Path) -> FolderWidget:
    _, widget = viewer.window.add_plugin_dock_widget("hematokit", "Classify folder")
    widget.model.choose(tiny_run)
    return widget


def test_fields_are_classified_listed_and_opened(
    viewer: napari.Viewer, form: FolderWidget, tmp_path: Path, qtbot: Any, told: list[tuple[str, str]]
) -> None:
    fields = tmp_path / "fields"
    fields.mkdir()
    for name in ("a", "b"):
        Image.fromarray(synthesize_field(400, 500, cells=8, seed=ord(name)).pixels).save(fields / f"{name}.png")
    (fields / "c.png").write_bytes(b"no picture")
    form.folder.value = fields
    assert Path(form.output.value) == tmp_path / "fields-results"
    form.run_button.click()
    assert form.running
    qtbot.waitUntil(lambda: not form.running, timeout=90_000)
    results = tmp_path / "fields-results"
    assert (results / "report.html").is_file()
    listed = [form.table.item(row, 0).text() for row in range(form.table.rowCount())]
    assert listed == ["a", "b"]
    assert "c.png" in form.status.text()
    form.table.selectRow(1)
    form.open_button.click()
    (layer,) = cells_layers(viewer)
    written = pd.read_parquet(results / "fields" / "b" / "cells.parquet")
    assert layer.features["cell_id"].tolist() == written["cell_id"].tolist()
    assert form.table.item(1, 1).text() == str(len(written))
    assert not [message for severity, message in told if severity == "error"]


def test_the_runtime_chosen_is_what_computes(
    form: FolderWidget, tmp_path: Path, qtbot: Any, monkeypatch: pytest.MonkeyPatch, told: list[tuple[str, str]]
) -> None:
    asked: list[dict[str, Any]] = []

    def classify(sources: Any, model: Any, output: Any, **options: Any) -> Any:
        asked.append({"sources": sources, "model": str(model), "output": output, **options})
        raise FieldError("enough is known")

    monkeypatch.setattr("hematokit.pipelines.classify.classify", classify)
    (tmp_path / "fields").mkdir()
    form.folder.value = tmp_path / "fields"
    for runtime in form.runtime.choices:
        form.runtime.value = runtime
        form.run_button.click()
        qtbot.waitUntil(lambda: not form.running, timeout=60_000)
    assert [options["runtime"] for options in asked] == list(form.runtime.choices)
    assert form.runtime.choices[0] == "torch"
    assert asked[0]["sources"] == [tmp_path / "fields"]
    assert asked[0]["model"] == form.model.path
    assert told[-1] == ("error", "enough is known")


def test_what_is_missing_is_told(form: FolderWidget, tmp_path: Path, told: list[tuple[str, str]], qtbot: Any) -> None:
    form.run_button.click()
    assert "no folder of fields is chosen" in told[-1][1]
    (tmp_path / "empty").mkdir()
    form.folder.value = tmp_path / "empty"
    form.run_button.click()
    qtbot.waitUntil(lambda: not form.running, timeout=60_000)
    assert told[-1][0] == "error"
    assert str(tmp_path / "empty") in told[-1][1]
    assert not (tmp_path / "empty-results").exists()
    form.show_results(tmp_path)
    assert "no folder of results" in told[-1][1]
