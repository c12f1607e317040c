"""Single cells of an open field."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from hematokit.errors import ExplanationError, ModelError
from hematokit.explanation.at_cells import ExplainedCell, explain_at, explainable, joined_map
from hematokit.explanation.field_map import maps_to_patch
from hematokit.explanation.running import explain_cells, make_explainer
from hematokit.imaging.fieldfiles import open_field
from hematokit.imaging.geometry import Box, patch_box
from hematokit.models import load_model
from hematokit.models.field_cells import cut_patches
from hematokit.models.runtimes.parity import sample_patches
from hematokit.plugins import MadeExplainer
from hematokit.plugins.specs import ExplainerSpec


@pytest.fixture
def field(tmp_path: Path) -> Any:
    random = np.random.default_rng(3)
    Image.fromarray(random.integers(0, 255, (150, 200, 3), np.uint8)).save(tmp_path / "field.png")
    with open_field(tmp_path / "field.png") as opened:
        yield opened


CELLS = pd.DataFrame({"cell_id": ["a", "b", "c"], "y": [75.0, 10.0, 140.0], "x": [100.0, 5.0, 190.0]})


def made(explainer: Any) -> MadeExplainer:
    return MadeExplainer(ExplainerSpec("own", "", object), "some-package", "1.0", {}, explainer, {})


def test_maps_are_those_of_the_patches_in_the_fields_pixels(field: Any, tiny_run: Path) -> None:
    model = load_model(tiny_run, device="cpu")
    targets = ["BLA", "NGS", "LYT"]
    found = list(explain_at(field, CELLS, model, make_explainer("grad-cam"), targets, batch_size=2))
    patches = cut_patches(field, CELLS, model.patch_size)
    expected = explain_cells(model, patches, [model.codes.index(code) for code in targets], ["grad-cam"])["grad-cam"]
    for number, cell in enumerate(found):
        assert (cell.cell_id, cell.target) == (CELLS["cell_id"][number], targets[number])
        assert cell.box == patch_box(CELLS["y"][number], CELLS["x"][number], model.patch_size)
        np.testing.assert_array_equal(cell.patch, patches[number])
        placed = maps_to_patch(expected[number], model.patch_size, model.input_spec)
        np.testing.assert_allclose(cell.map, placed, atol=1e-5)


def test_a_field_of_other_pixels_gets_maps_in_its_own(field: Any, tiny_run: Path) -> None:
    model = load_model(tiny_run, device="cpu")
    field.pixel_size_um = 0.2
    (cell,) = explain_at(field, CELLS.iloc[:1], model, make_explainer("grad-cam"), ["BLA"], model_pixel_size_um=0.1)
    assert (cell.box.height, cell.map.shape) == (model.patch_size // 2, (model.patch_size // 2,) * 2)
    assert cell.patch_map.shape == cell.patch.shape[:2] == (model.patch_size,) * 2


def test_the_classifier_stays_free_for_others(field: Any, tiny_run: Path) -> None:
    model = load_model(tiny_run, device="cpu")
    seen = []

    class Watching:
        def attribute(self, classifier: Any, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            classifier.backbone.register_forward_hook(lambda *_: seen.append(1))
            assert next(classifier.parameters()).data_ptr() == next(model.parameters()).data_ptr()
            model(images)
            return images.mean(1)

    list(explain_at(field, CELLS.iloc[:1], model, made(Watching()), ["BLA"]))
    model.predict(cut_patches(field, CELLS, model.patch_size))
    assert not seen


def test_a_cell_is_explained_with_one_forward_pass(field: Any, tiny_run: Path) -> None:
    model = load_model(tiny_run, device="cpu")
    explainer, passes = make_explainer("grad-cam"), []
    # Copies of a module keep its hooks.
    model.backbone.register_forward_hook(lambda *_: passes.append(1))
    counts = []
    for cell in ("a", "b", "c"):
        passes.clear()
        list(explain_at(field, CELLS[CELLS["cell_id"] == cell], model, explainer, ["BLA"]))
        counts.append(len(passes))
    # At first the explainer looks for its layer, with an empty image.
    assert counts == [2, 1, 1]


def test_progress_can_stop_it_between_passes(field: Any, tiny_run: Path) -> None:
    model = load_model(tiny_run, device="cpu")
    told = []

    def progress(done: int, total: int | None, message: str) -> None:
        told.append(done)
        if len(told) == 5:
            raise KeyboardInterrupt

    explainer = make_explainer("occlusion", {"per_pass": 4})
    with pytest.raises(KeyboardInterrupt):
        list(explain_at(field, CELLS, model, explainer, ["BLA"] * 3, progress=progress))
    assert told == [0] * 5


def test_too_little_memory_on_the_accelerator_goes_on_on_the_cpu(
    field: Any, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(tiny_run, device="cpu")
    monkeypatch.setattr(torch.Tensor, "__deepcopy__", full)
    monkeypatch.setattr(torch.nn.Parameter, "__deepcopy__", full)
    calls, said = [], []

    class Hungry:
        def attribute(self, classifier: Any, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            calls.append(len(images))
            if len(calls) == 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return images.mean(1)

    found = list(explain_at(field, CELLS, model, made(Hungry()), ["BLA"] * 3, batch_size=1, log=said.append))
    assert [cell.cell_id for cell in found] == ["a", "b", "c"]
    assert len(said) == 1
    assert "not enough memory" in said[0]


def full(*given: Any) -> Any:
    """What copying a tensor where it is does on a device whose memory is full."""
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_the_copy_on_the_cpu_is_not_made_on_the_device(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(tiny_run, device="cpu", runtime="torch")
    before = {name: values.clone() for name, values in model.state_dict().items()}
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "__deepcopy__", full)
        patch.setattr(torch.nn.Parameter, "__deepcopy__", full)
        copied = model.on_cpu()
    patches = sample_patches(64)
    assert np.array_equal(copied.logits(patches), model.logits(patches))
    assert (copied.identity, copied.device, copied.config) == (model.identity, model.device, model.config)
    with torch.no_grad():
        for tensor in (*copied.parameters(), *copied.buffers()):
            tensor.add_(1)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())


def test_a_class_that_the_model_does_not_have(field: Any, tiny_run: Path) -> None:
    model = load_model(tiny_run, device="cpu")
    with pytest.raises(ExplanationError, match=r"'XYZ' is no class of this model; ask about one of BLA"):
        list(explain_at(field, CELLS, model, make_explainer("grad-cam"), ["BLA", "XYZ", "BLA"]))


def test_which_classifier_can_be_explained(tiny_run: Path, tmp_path: Path) -> None:
    model = load_model(tiny_run, device="cpu")
    assert explainable(model, "") is model
    other = SimpleNamespace(runtime="onnxruntime", identity="")
    assert explainable(other, str(tiny_run), device="cpu").runtime == "torch"
    with pytest.raises(ExplanationError, match="without their model"):
        explainable(None, "")
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    with pytest.raises(ModelError, match=r"ONNX"):
        explainable(other, str(tmp_path / "model.onnx"))


def explained(y0: int, x0: int, values: float) -> ExplainedCell:
    flat = np.full((10, 10), values, np.float32)
    return ExplainedCell("a", "m", "BLA", np.zeros((10, 10, 3), np.uint8), Box(y0, x0, 10, 10), flat, flat)


def test_joined_maps_are_relative_and_end_at_the_field() -> None:
    box, joined = joined_map([explained(-5, 2, 3.0), explained(2, 40, 7.0)], 100, 45)
    assert box == Box(0, 2, 12, 43)
    np.testing.assert_allclose(joined[:5, :10], 1.0, rtol=1e-6)
    np.testing.assert_allclose(joined[2:, 38:], 1.0, rtol=1e-6)
    assert not joined[:, 10:38].any()


def test_cells_too_far_apart_for_one_map() -> None:
    with pytest.raises(ExplanationError, match="too far for one map"):
        joined_map([explained(0, 0, 1.0), explained(30_000, 30_000, 1.0)], 40_000, 40_000)
