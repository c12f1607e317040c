"""A model that answers NaN or infinity gives no class: not in any runtime, nor anywhere that uses one."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from hematokit import HematokitError, explain_cells, load_model, open_store
from hematokit.cli.main import main
from hematokit.errors import ModelError, PluginError
from hematokit.evaluation.evaluating import evaluate_store
from hematokit.models import Classifier, OnnxClassifier
from hematokit.models.classifier import ORIGIN
from hematokit.models.formats.quantising import to_fp16
from hematokit.models.integrity import seal_onnx
from hematokit.models.model import prediction_frame
from hematokit.models.runtimes.onnx_graph import onnx_bytes
from hematokit.models.runtimes.parity import sample_patches
from hematokit.pipelines.train import train
from hematokit.plugins.specs import InputSpec
from hematokit.synthetic import synthesize_field
from tinykit import TINY, seal_bundle

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def bundle(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run / "bundle", tmp_path / "bundle"))


def broken(tiny_run: Path, value: float = math.nan) -> Classifier:
    """A loaded model whose last layer is spoilt, as damaged memory or a wrong conversion spoils it."""
    model = load_model(tiny_run, "cpu", runtime="torch")
    with torch.no_grad():
        model.backbone.get_classifier().bias[1] = value
    return model


@pytest.fixture(scope="module")
def nan_file(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nan") / "nan.onnx"
    path.write_bytes(seal_onnx(onnx_bytes(broken(tiny_run))))
    return path


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
def test_every_runtime_refuses_its_own_answer(tiny_run: Path, engine: str) -> None:
    pytest.importorskip(engine)
    model: Any = broken(tiny_run, math.inf if engine == "openvino" else math.nan)
    if engine != "torch":
        model = OnnxClassifier(onnx_bytes(model), model.config, engine)
    for ask in (model.logits, model.predict):
        with pytest.raises(ModelError, match=r"^the model gives numbers that are not finite .* for 7 of 7 patches"):
            ask(sample_patches(64))
    assert model.logits(sample_patches(64)[:0]).shape == (0, 3)


def test_weights_whose_nan_an_engine_hides_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    """Its ReLU makes NaN to 0, so every answer is finite."""
    pytest.importorskip("openvino")
    model = load_model(tiny_run, "cpu", runtime="torch")
    with torch.no_grad():
        next(model.backbone.parameters()).fill_(math.nan)
    (tmp_path / "nan.onnx").write_bytes(onnx_bytes(model))
    with pytest.raises(ModelError, match=r"nan\.onnx has weights that are not finite"):
        OnnxClassifier(tmp_path / "nan.onnx", model.config, "openvino")


def test_smaller_numbers_are_checked_as_well(tiny_run: Path) -> None:
    model = broken(tiny_run)
    smaller = OnnxClassifier(to_fp16(onnx_bytes(model)), model.config)
    with pytest.raises(ModelError, match="not finite"):
        smaller.predict(sample_patches(64))


def test_a_plugins_backbone_is_named(tiny_run: Path) -> None:
    model = broken(tiny_run)
    setattr(model.backbone, ORIGIN, "backbone spots of package hematokit-spots")
    with pytest.raises(PluginError, match=r"^backbone spots of package hematokit-spots gives numbers .* not finite"):
        model.predict(sample_patches(64))
    owned = model.config.backbone.model_copy(update={"name": "spots", "package": "hematokit-spots"})
    exported = OnnxClassifier(onnx_bytes(model), model.config.model_copy(update={"backbone": owned}))
    with pytest.raises(PluginError, match=r"^backbone spots of package hematokit-spots gives numbers .* not finite"):
        exported.predict(sample_patches(64))


def test_probabilities_that_overflow_are_refused() -> None:
    with pytest.raises(ModelError, match="not finite"):
        prediction_frame(np.array([[1e30, 2.0]]), ("BLA", "LYT"), 1e-300)


def test_evaluating_and_explaining_stop(tiny_run: Path, tiny_store: Path) -> None:
    model = broken(tiny_run)
    with pytest.raises(HematokitError, match="not finite"):
        evaluate_store(model, open_store(tiny_store))
    with pytest.raises(HematokitError, match="not finite"):
        explain_cells(model, sample_patches(64), methods=["smoothgrad"])


def test_classifying_fields_stops(nan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(synthesize_field(300, 400, cells=4, seed=0).pixels).save(tmp_path / "field.png")
    words = ["classify", str(tmp_path / "field.png"), "--model", str(nan_file), "--output", str(tmp_path / "out")]
    assert main(words) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("hematokit: the model gives numbers that are not finite")
    assert not list(tmp_path.glob("out/fields/*/cells.parquet"))


def test_training_stops_where_validation_is_not_finite(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses are finite: only in evaluation mode something overflows."""
    forward = Classifier.forward

    def overflowing(self: Classifier, images: torch.Tensor) -> torch.Tensor:
        return forward(self, images) * (1.0 if self.training else math.inf)

    monkeypatch.setattr(Classifier, "forward", overflowing)
    with pytest.raises(HematokitError, match=r"validation logits are not finite after epoch 1; .*lower --lr"):
        train(tiny_store, tmp_path / "run", settings=TINY)
    assert not (tmp_path / "run" / "bundle").exists()


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "auto"])
@pytest.mark.parametrize(("name", "value"), [("fc.weight", math.nan), ("conv1.1.running_var", math.inf)])
def test_weights_that_are_not_finite_are_refused(bundle: Path, runtime: str, name: str, value: float) -> None:
    state = load_file(bundle / "model.safetensors")
    state[name].view(-1)[0] = value
    save_file(state, bundle / "model.safetensors")
    seal_bundle(bundle)
    with pytest.raises(ModelError, match=rf"model\.safetensors has weights that are not finite \({name}\)") as caught:
        load_model(bundle, "cpu", runtime=runtime)
    assert "\n" not in str(caught.value)


WRONG = [
    ("input", "std", [0.5, 0.0, 0.5]),
    ("input", "std", [0.5, math.nan, 0.5]),
    ("input", "std", [0.5, -1.0, 0.5]),
    ("input", "std", [0.5, math.inf, 0.5]),
    ("input", "mean", [0.5, math.nan, 0.5]),
    ("input", "mean", [math.inf, 0.5, 0.5]),
    ("", "temperature", math.nan),
    ("", "temperature", math.inf),
    ("", "temperature", 0.0),
    ("", "pixel_size_um", math.inf),
]


@pytest.mark.parametrize(("part", "entry", "value"), WRONG)
def test_a_configuration_that_is_not_finite_is_refused(
    bundle: Path, nan_file: Path, tmp_path: Path, part: str, entry: str, value: object
) -> None:
    config = json.loads((bundle / "config.json").read_text())
    (config[part] if part else config)[entry] = value
    seal_bundle(bundle, config)
    with pytest.raises(ModelError, match=rf"config\.json: {part}\.?{entry}"):
        load_model(bundle, "cpu")
    model = onnx.load(nan_file)
    onnx.helper.set_model_props(model, {"hematokit.config": json.dumps(config)})
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=rf"m\.onnx \(metadata hematokit\.config\): {part}\.?{entry}"):
        load_model(tmp_path / "m.onnx", runtime="onnxruntime")


def test_a_specification_that_is_not_finite_is_refused() -> None:
    for part, entry, value in WRONG:
        if part == "input":
            with pytest.raises(PluginError, match=f"^{entry} "):
                InputSpec(64, **{entry: tuple(value)})  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_temperature_is_refused(tiny_run: Path, temperature: float) -> None:
    model = load_model(tiny_run, "cpu", runtime="torch")
    with pytest.raises(ModelError, match="temperature"):
        Classifier(model.backbone, model.taxonomy, model.input_spec, model.patch_size, temperature)
