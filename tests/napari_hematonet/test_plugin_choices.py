"""An installed package's explainer and detector are in the drop-downs, and do their work there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fieldkit import CENTRES, draw_field, open_classified, wait_for
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication

from napari_hematonet.classify_widget import ClassifyWidget
from napari_hematonet.explaining import WHY_LAYER
from napari_hematonet.state import WHY_KEY, cells_layers
from napari_hematonet.why_widget import WhyWidget
from pluginkit import pip_install, plugins_in_this_process, write_package

CODE = '''
import numpy as np
import pandas as pd

from hematokit import DetectorSpec, ExplainerSpec, hookimpl


class Corner:
    """Says that the top left quarter decided."""

    def attribute(self, classifier, images, targets):
        maps = images.mean(1) * 0
        side = maps.shape[-1] // 2
        maps[:, :side, :side] = 1.0
        return maps


class OneCell:
    """Finds the same cell in every field."""

    def detect(self, field, pixel_size_um):
        row = {"y": 60.0, "x": 60.0, "y0": 40, "x0": 40, "height": 40, "width": 40, "score": 1.0, "area": 900.0}
        return pd.DataFrame([{**row, "touches_border": False, "contour": None}])


@hookimpl
def register_explainers(register):
    register(ExplainerSpec("corner-map", "The top left quarter", lambda **options: Corner()))


@hookimpl
def register_detectors(register):
    register(DetectorSpec("one-cell", "The same cell in every field", lambda **options: OneCell()))
'''


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A package of somebody else's, installed by pip."""
    folder = tmp_path_factory.mktemp("stranger")
    pip_install(folder / "site", write_package(folder, "hemato-stranger", CODE))
    with plugins_in_this_process(folder / "site", "hemato-stranger"):
        yield


def choices(box: Any) -> list[str]:
    return [box.native.itemText(number) for number in range(box.native.count())]


def test_an_installed_explainer_is_offered_and_explains(
    installed: None, viewer: Any, tiny_run: Path, tmp_path: Path, told: list[tuple[str, str]]
) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    why = WhyWidget(viewer)
    viewer.window.add_dock_widget(why, name="Why", area="right")
    viewer.reset_view()
    QApplication.processEvents()
    assert {"grad-cam", "corner-map"} <= set(choices(why.method))
    tip = why.method.native.itemData(choices(why.method).index("corner-map"), Qt.ItemDataRole.ToolTipRole)
    assert tip == "The top left quarter"
    why.method.value = "corner-map"
    opened.click(*CENTRES[4])
    wait_for(lambda: WHY_LAYER in viewer.layers and not why.job.busy)
    layer = viewer.layers[WHY_LAYER]
    assert layer.metadata[WHY_KEY]["method"] == "corner-map"
    height, width = layer.data.shape
    assert layer.data[: height // 2 - 2, : width // 2 - 2].min() > 0.9
    assert layer.data[height // 2 + 2 :, width // 2 + 2 :].max() < 0.1
    assert told == []


def test_an_installed_detector_is_offered_and_finds(
    installed: None, viewer: Any, tiny_run: Path, told: list[tuple[str, str]]
) -> None:
    viewer.add_image(np.asarray(draw_field()), name="field")
    form = ClassifyWidget(viewer)
    viewer.window.add_dock_widget(form, name="Classify field", area="right")
    QApplication.processEvents()
    assert {"nuclei", "one-cell"} <= set(choices(form.detector))
    form.model.choose(str(tiny_run))
    form.detector.value = "one-cell"
    form.run_button.click()
    wait_for(lambda: cells_layers(viewer) and not form.running, 60)
    assert [severity for severity, _ in told if severity == "error"] == []
    (layer,) = cells_layers(viewer)
    assert len(layer.data) == 1
    assert layer.metadata["hematokit"].detector == "one-cell"
