"""Forms use the default, limits, choices and tooltip of the settings models."""

from __future__ import annotations

from typing import Any

import napari
import pytest

from hematokit.pipelines.settings import ClassifySettings, ExportSettings, FaithfulnessSettings
from napari_hematonet.forms import option_widget


@pytest.mark.parametrize("dock", ["Classify field", "Classify folder"])
def test_the_docks_show_the_options_of_the_settings(viewer: napari.Viewer, dock: str) -> None:
    _, form = viewer.window.add_plugin_dock_widget("hematokit", dock)
    fields = ClassifySettings.model_fields
    names = {"threshold": "min_probability", "detector": "detector", "runtime": "runtime"}
    names |= {"border": "exclude_border"} if dock == "Classify folder" else {"pixel_size": "pixel_size_um"}
    for attribute, name in names.items():
        tooltip = getattr(form, attribute).tooltip.splitlines()[0]
        assert str(fields[name].description).startswith(f"{tooltip}."), name
    assert form.detector.value == fields["detector"].default
    assert (form.threshold.value, form.threshold.min, form.threshold.max) == (fields["min_probability"].default, 0, 1)
    if dock == "Classify folder":
        assert form.border.value is fields["exclude_border"].default
    else:
        assert form.device.value == fields["device"].default
        assert form.pixel_size.value == form.model_pixel_size.value == 0


def test_types_of_options_decide_the_widget(qapp: Any) -> None:
    layout = option_widget(ExportSettings, "layout", "Layout")
    assert (layout.choices, layout.value, layout.label) == (("patches", "images"), "patches", "Layout")
    steps = option_widget(FaithfulnessSettings, "steps", "Steps", note="More steps take longer")
    assert (steps.value, steps.min) == (24, 2)
    assert steps.tooltip == "Steps of the deletion and insertion curves\nMore steps take longer"
    assert option_widget(ExportSettings, "overwrite", "Overwrite").value is False


def test_a_value_that_is_not_offered_falls_back_to_the_default(qapp: Any) -> None:
    detector = option_widget(ClassifySettings, "detector", "Detector", choices=["a", "nuclei"], value="gone")
    assert detector.value == "nuclei"
    assert option_widget(ClassifySettings, "detector", "Detector", choices=["a", "b"], value="gone").value == "a"
