"""An exported ONNX file is a model: it says what it is, repeats torch, opens without torch, and strangers' are told."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hematokit import HematokitError, load_model, open_store
from hematokit.models import Classifier, OnnxClassifier
from hematokit.models.bundle import bundle_identity
from hematokit.models.formats import onnx_file
from hematokit.models.formats.onnx_file import CARD_KEY, OnnxSettings
from hematokit.models.formats.quantising import JudgedCrops, measure_cost
from hematokit.models.integrity import seal_onnx
from hematokit.models.runtimes.parity import measure_parity, sample_patches
from hematokit.taxonomy import Taxonomy

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

CARD = "# A card\n"


def write(classifier: Classifier, target: Path, licence: str = "", **settings: Any) -> dict[str, Any]:
    said: list[str] = []
    facts = onnx_file.write(
        classifier,
        target,
        card=CARD,
        samples=sample_patches(classifier.patch_size),
        log=said.append,
        licence=licence,
        settings=OnnxSettings(**settings),
    )
    assert "comparing with torch" in said
    return facts


@pytest.fixture(scope="module")
def classifier(tiny_run: Path) -> Classifier:
    return load_model(tiny_run, "cpu", runtime="torch")


@pytest.fixture(scope="module")
def exported(classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with everything that a file can have."""
    path = tmp_path_factory.mktemp("exported") / "tiny.onnx"
    write(classifier, path, embeddings=True, licence="CC-BY-4.0")
    return path


@pytest.fixture(scope="module")
def patches(tiny_store: Path) -> np.ndarray:
    store = open_store(tiny_store)
    return store.patches(store.cells["cell_id"][:19])


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_raw_patches_give_logits_probabilities_and_embeddings(
    exported: Path, classifier: Classifier, patches: np.ndarray
) -> None:
    opened = session(exported)
    assert [port.name for port in opened.get_outputs()] == ["logits", "probabilities", "embeddings"]
    frame = classifier.predict(patches)
    for count in (1, 2, 7, 19):
        logits, probabilities, embeddings = opened.run(None, {"patches": patches[:count]})
        assert np.abs(logits - classifier.logits(patches[:count])).max() < 1e-4
        wanted = frame[[f"p_{code}" for code in classifier.codes]].to_numpy()[:count]
        assert np.abs(probabilities - wanted).max() < 1e-5, "calibrated by the temperature"
        assert embeddings.shape[0] == count
    # The last layer on the embeddings gives the logits: they are what it sees.
    head = classifier.backbone.get_classifier()
    with torch.inference_mode():
        again = head(torch.from_numpy(embeddings)).numpy()
    assert np.abs(again - logits).max() < 1e-4
    assert np.abs(embeddings - classifier.embed(patches)).max() < 1e-4


def test_the_second_layout_takes_prepared_images(classifier: Classifier, patches: np.ndarray, tmp_path: Path) -> None:
    facts = write(classifier, tmp_path / "images.onnx", layout="images")
    opened = session(tmp_path / "images.onnx")
    size = classifier.input_spec.size
    assert opened.get_inputs()[0].shape[1:] == [3, size, size]
    images = classifier.prepare(torch.from_numpy(patches)).contiguous().numpy()
    assert np.abs(opened.run(["logits"], {"images": images})[0] - classifier.logits(patches)).max() < 1e-4
    assert facts["parity"]["onnxruntime"]["classes_changed"] == 0
    with pytest.raises(HematokitError, match=r"for other programs; .* export it with --input patches"):
        load_model(tmp_path / "images.onnx")


def test_the_file_says_what_it_is(exported: Path, classifier: Classifier) -> None:
    said = session(exported).get_modelmeta().custom_metadata_map
    assert said["classes"].split(",") == list(classifier.codes)
    assert said["colours"].split(",") == [entry.colour for entry in classifier.taxonomy]
    assert json.loads(said["class_names"]) == [entry.name for entry in classifier.taxonomy]
    assert (said["license"], said["precision"]) == ("CC-BY-4.0", "fp32")
    assert "research use only" in said["notice"]
    assert json.loads(said["hematokit.parity"])["onnxruntime"]["batches"] == [1, 2, 7]
    assert said[CARD_KEY].startswith(CARD.rstrip())
    assert "'patches', uint8 of shape (n, 64, 64, 3)" in said[CARD_KEY]


@pytest.mark.parametrize("runtime", [None, "onnxruntime", "openvino", "auto"])
def test_the_file_is_a_model(exported: Path, classifier: Classifier, patches: np.ndarray, runtime: str | None) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    model = load_model(exported, runtime=runtime)
    assert isinstance(model, OnnxClassifier)
    assert model.runtime == ("onnxruntime" if runtime in (None, "auto") else runtime)
    assert np.abs(model.logits(patches) - classifier.logits(patches)).max() < 1e-4
    assert model.predict(patches)["predicted"].tolist() == classifier.predict(patches)["predicted"].tolist()
    embeddings = classifier.embed(patches)
    assert embeddings.shape[0] == len(patches)
    assert np.abs(model.embed(list(patches), batch_size=4) - embeddings).max() < 1e-4
    assert model.embed([]).shape == classifier.embed([]).shape == (0, embeddings.shape[1])
    assert np.abs(model.predict_proba(patches) - classifier.predict_proba(patches)).max() < 1e-5
    assert model.classes_.tolist() == classifier.classes_.tolist() == sorted(classifier.codes)
    assert (model.codes, model.patch_size, model.temperature) == (classifier.codes, 64, classifier.temperature)
    assert model.config == classifier.config


def test_the_file_is_a_model_without_torch(exported: Path, tmp_path: Path) -> None:
    """As on a machine that has no torch: classifying a field, files and report included."""
    from PIL import Image

    from hematokit.synthetic import synthesize_field

    Image.fromarray(synthesize_field(300, 300, cells=3, seed=1).pixels).save(tmp_path / "field.png")
    code = (
        "import sys\n"
        "class Forbid:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'torchvision', 'timm', 'accelerate', 'captum'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Forbid())\n"
        "from hematokit.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["classify", "field.png", "--model", str(exported), "--output", "results", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HEMATOKIT_PLUGINS": ""}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fields"] == 1
    assert (tmp_path / "results" / "report.html").is_file()
    again = [sys.executable, "-c", code, "train", "no.zarr", "--output", "run"]
    refused = subprocess.run(again, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert refused.returncode == 2
    assert "this needs " in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_file_that_torch_or_a_gpu_should_compute(exported: Path) -> None:
    with pytest.raises(HematokitError, match="is an ONNX file, which torch does not compute"):
        load_model(exported, runtime="torch")
    with pytest.raises(HematokitError, match="computes on the CPU, not on cuda"):
        load_model(exported, "cuda")


def stranger(path: Path, kind: int, shape: list[Any], metadata: dict[str, str] | None = None) -> Path:
    """An ONNX file that somebody else made."""
    given = onnx.helper.make_tensor_value_info("input.1", kind, shape)
    result = onnx.helper.make_tensor_value_info("out", kind, shape)
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["input.1"], ["out"])], "g", [given], [result])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_file_from_elsewhere_is_told_what_was_expected(tmp_path: Path, exported: Path, runtime: str) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    path = stranger(tmp_path / "resnet.onnx", onnx.TensorProto.FLOAT, ["N", 3, 224, 224])
    with pytest.raises(HematokitError) as caught:
        load_model(path, runtime=runtime)
    message = str(caught.value)
    assert "'input.1', float32 of shape (n, 3, 224, 224)" in message
    assert "expected are one input 'patches', uint8 of shape (n, P, P, 3)" in message
    assert "\n" not in message
    config = session(exported).get_modelmeta().custom_metadata_map["hematokit.config"]
    path = stranger(tmp_path / "b.onnx", onnx.TensorProto.INT64, ["N", 4], {"hematokit.config": config})
    with pytest.raises(HematokitError, match=r"takes 'input.1', int64 .* expected are one input 'patches', .* 64, 64"):
        load_model(path, runtime=runtime)


def test_damaged_files_are_told(tmp_path: Path, exported: Path) -> None:
    whole = exported.read_bytes()
    for name, content in {"cut": whole[: len(whole) // 2], "text": b"hello", "empty": b""}.items():
        (tmp_path / f"{name}.onnx").write_bytes(content)
        with pytest.raises(HematokitError, match=rf"{name}\.onnx .*(cannot be opened|no ONNX file's size)") as caught:
            load_model(tmp_path / f"{name}.onnx", runtime="onnxruntime")
        assert "\n" not in str(caught.value)
    with pytest.raises(HematokitError, match="does not exist; give an ONNX file"):
        load_model(tmp_path / "none.onnx")
    bad = stranger(
        tmp_path / "bad.onnx", onnx.TensorProto.FLOAT, ["N", 3], {"hematokit.config": '{"bundle_version": 9}'}
    )
    with pytest.raises(
        HematokitError, match=r"bad\.onnx \(metadata hematokit\.config\): bundle version 9 is not known"
    ):
        load_model(bad, runtime="onnxruntime")


def flipped(content: bytes, place: int, bit: int = 0) -> bytes:
    return content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_single_bit_that_differs_is_noticed(tmp_path: Path, exported: Path, runtime: str) -> None:
    """Anywhere in the graph or the weights; engines themselves open most of these files and answer otherwise."""
    pytest.importorskip(runtime)
    whole = exported.read_bytes()
    random = np.random.default_rng(0)
    raw = max((tensor.raw_data for tensor in onnx.load(exported).graph.initializer), key=len)
    inside = whole.index(raw) + len(raw) // 2
    content_ends = len(whole) - len(seal_onnx(b""))
    for place in [0, inside, content_ends - 1, *random.integers(0, content_ends, 12)]:
        (tmp_path / "m.onnx").write_bytes(flipped(whole, int(place), int(random.integers(8))))
        with pytest.raises(HematokitError, match=r"m\.onnx is damaged: its content differs from the SHA-256") as caught:
            load_model(tmp_path / "m.onnx", runtime=runtime)
        assert "\n" not in str(caught.value)
    # The hash itself.
    (tmp_path / "m.onnx").write_bytes(flipped(whole, len(whole) - 1))
    with pytest.raises(HematokitError, match="is damaged"):
        load_model(tmp_path / "m.onnx", runtime=runtime)


def test_files_with_and_without_a_hash(tmp_path: Path, exported: Path, patches: np.ndarray) -> None:
    """Older files have none; what another program changed is not what was exported."""
    onnx.checker.check_model(onnx.load(exported), full_check=True)
    model = onnx.load(exported)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    assert entries.pop("hematokit.sha256") == hashlib.sha256(exported.read_bytes()[: -len(seal_onnx(b""))]).hexdigest()
    onnx.helper.set_model_props(model, {**entries, "note": "changed"})
    onnx.save(model, tmp_path / "older.onnx")
    expected = load_model(exported, runtime="onnxruntime").logits(patches)
    assert np.array_equal(load_model(tmp_path / "older.onnx", runtime="onnxruntime").logits(patches), expected)
    onnx.helper.set_model_props(model, {"hematokit.sha256": "0" * 64, **entries})
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(HematokitError, match=r"changed\.onnx was changed after hematokit exported it"):
        load_model(tmp_path / "changed.onnx", runtime="onnxruntime")


def test_a_file_refers_to_no_other_file(tmp_path: Path) -> None:
    """Weights beside the file could be any file of the computer."""
    (tmp_path / "secret").write_bytes(b"0123")
    path = stranger(tmp_path / "model.onnx", onnx.TensorProto.FLOAT, ["N", 3])
    model = onnx.load(path)
    weight = onnx.TensorProto(
        name="w", data_type=onnx.TensorProto.FLOAT, dims=[1], data_location=onnx.TensorProto.EXTERNAL
    )
    weight.external_data.add(key="location", value="secret")
    model.graph.initializer.append(weight)
    model.graph.node.append(onnx.helper.make_node("Identity", ["w"], ["leak"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("leak", onnx.TensorProto.FLOAT, [1]))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(HematokitError, match="cannot be opened by onnxruntime"):
        load_model(path, runtime="onnxruntime")


def test_files_have_an_identity(tiny_run: Path, exported: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(exported, tmp_path / "copy.onnx"))
    assert bundle_identity(copy) == bundle_identity(exported) != bundle_identity(tiny_run / "bundle")


def test_int8_says_what_it_costs(classifier: Classifier, tiny_store: Path, tmp_path: Path) -> None:
    store = open_store(tiny_store)
    cells = store.cells[store.cells["label"].isin(classifier.codes)]
    crops = store.patches(cells["cell_id"])
    labels = np.array([classifier.codes.index(label) for label in cells["label"]])
    judged = JudgedCrops(crops, labels, "all of them")
    facts = write(classifier, tmp_path / "int8.onnx", precision="int8", calibration=crops[:16], judged=judged)
    cost = facts["cost"]
    model = load_model(tmp_path / "int8.onnx", runtime="onnxruntime")
    found, wanted = model.logits(crops), classifier.logits(crops)
    assert cost["classes_changed"] == (found.argmax(1) != wanted.argmax(1)).sum()
    assert cost["accuracy"] == pytest.approx((found.argmax(1) == labels).mean())
    assert cost["accuracy_fp32"] == pytest.approx((wanted.argmax(1) == labels).mean())
    assert cost["max_logit_difference"] == pytest.approx(np.abs(found - wanted).max(), rel=0.05)
    assert cost["max_logit_difference"] > 1e-4, "smaller numbers are others"
    assert cost["sentence"] in facts["card"]
    with pytest.raises(HematokitError, match="gives no embeddings; export it with --embeddings"):
        model.embed(crops)
    kinds = {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}
    assert "QuantizeLinear" in kinds
    with pytest.raises(HematokitError, match="int8 is calibrated on training crops, and there are none"):
        write(classifier, tmp_path / "none.onnx", precision="int8")


def test_openvino_computes_int8_as_onnxruntime_does(
    classifier: Classifier, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where it does not, the export, the card and loading say so."""
    pytest.importorskip("openvino")
    store = open_store(tiny_store)
    crops = store.patches(store.cells["cell_id"][:32])
    judged = JudgedCrops(crops, None, "some")
    facts = write(classifier, tmp_path / "a.onnx", precision="int8", calibration=crops[:16], judged=judged)
    assert facts["parity"]["openvino"]["compared_with"] == "onnxruntime, int8"
    found, wanted = (
        load_model(tmp_path / "a.onnx", runtime=name).logits(crops) for name in ("openvino", "onnxruntime")
    )
    assert (found.argmax(1) == wanted.argmax(1)).mean() > 0.9

    monkeypatch.setattr(onnx_file, "_OTHERWISE", -1)
    facts = write(classifier, tmp_path / "b.onnx", precision="int8", calibration=crops[:16], judged=judged)
    assert "OpenVINO gives other answers than onnxruntime with this int8 file" in facts["card"]
    with pytest.raises(HematokitError, match=r"b\.onnx is not for openvino: .* compute it with onnxruntime$"):
        load_model(tmp_path / "b.onnx", runtime="openvino")
    assert load_model(tmp_path / "b.onnx").runtime == "onnxruntime"


def test_what_an_installation_without_torch_takes_is_what_the_page_says() -> None:
    """The page lists the dependencies, as pip cannot leave any out."""
    root = Path(__file__).resolve().parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.match(r"[\w.-]+", line)[0] for line in project["dependencies"]}
    names -= {"torch", "torchvision", "torchmetrics", "timm", "accelerate", "captum", "tensorboard", "huggingface_hub"}
    page = (root / "docs" / "how-to" / "export.md").read_text(encoding="utf-8")
    listed = re.search(r"\$ pip install onnxruntime (.*?)\n```", page, re.DOTALL)
    assert set(listed[1].replace("\\\n", " ").split()) == names


def test_fp16_halves_the_weights(classifier: Classifier, tmp_path: Path) -> None:
    facts = write(classifier, tmp_path / "fp16.onnx", precision="fp16", layout="images")
    assert facts["cost"]["accuracy"] is None
    assert 0 < facts["cost"]["max_logit_difference"] < 0.1
    weights = onnx.load(tmp_path / "fp16.onnx").graph.initializer
    kinds = {tensor.data_type for tensor in weights if len(tensor.dims) == 4}
    assert onnx.TensorProto.FLOAT16 in kinds
    assert onnx.TensorProto.FLOAT not in kinds


def test_numbers_that_are_not_finite_are_refused() -> None:
    logits = np.zeros((3, 2), np.float32)
    judged = JudgedCrops(np.zeros((3, 8, 8, 3), np.uint8), None, "three")
    with pytest.raises(HematokitError, match="fp16 gives numbers that are not finite"):
        measure_cost("fp16", logits, logits + np.float32(np.inf), judged, 1.0)


def test_a_graph_that_answers_otherwise_is_refused(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = onnx_file.onnx_bytes

    def wrong(*given: Any, **more: Any) -> bytes:
        model = onnx.load_from_string(whole(*given, **more))
        weight = max(model.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
        values = onnx.numpy_helper.to_array(weight) * np.float32(1.3)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        return bytes(model.SerializeToString())

    monkeypatch.setattr(onnx_file, "onnx_bytes", wrong)
    with pytest.raises(HematokitError, match=r"logits differ by up to [\d.e-]+ \(allowed 0\.0001\) .* nothing was"):
        write(classifier, tmp_path / "wrong.onnx")
    assert list(tmp_path.iterdir()) == []


def test_parity_counts_every_batch() -> None:
    """A graph that mixes the patches of a batch shows at 2 and 7, not at 1."""
    patches = sample_patches(16)

    def right(given: np.ndarray) -> np.ndarray:
        means = given.mean(axis=(1, 2)).astype(np.float32)
        return np.stack([means[:, 0] - 100, 100 - means[:, 0]], axis=1)

    def mixing(given: np.ndarray) -> np.ndarray:
        return right(given[::-1])

    assert measure_parity(right, right, patches, "x").within(0.0)
    assert measure_parity(right, mixing, patches, "x", batches=(1,)).within(0.0)
    found = measure_parity(right, mixing, patches, "x")
    assert found.classes_changed > 0
    assert not found.within(1e6)


def test_large_logits_are_judged_by_their_size(classifier: Classifier) -> None:
    base = measure_parity(classifier.logits, classifier.logits, sample_patches(64), "x")
    assert replace(base, max_logit_difference=9e-5, largest_logit=5.0).within(1e-4)
    assert not replace(base, max_logit_difference=2e-4, largest_logit=5.0).within(1e-4)
    assert replace(base, max_logit_difference=2e-4, largest_logit=40.0).within(1e-4)
    assert not replace(base, max_logit_difference=float("nan")).within(1e-4)
    assert not replace(base, classes_changed=1).within(1e-4)


class NoHalves(torch.nn.Module):
    """A third-party backbone: one piece."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(images.mean(dim=(2, 3)))


class Unsupported(NoHalves):
    """Decides by what it sees, which a graph cannot."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = super().forward(images)
        return logits if float(logits.sum()) > 0 else -logits


def around(backbone: torch.nn.Module, like: Classifier, taxonomy: Taxonomy | None = None) -> Classifier:
    return Classifier(
        backbone, taxonomy or like.taxonomy, like.input_spec, like.patch_size, like.temperature, config=like.config
    ).eval()


def test_backbones_that_cannot_do_it_are_told(classifier: Classifier, tmp_path: Path) -> None:
    classes = len(classifier.codes)
    write(around(NoHalves(classes), classifier), tmp_path / "ok.onnx")
    with pytest.raises(HematokitError, match=r"^NoHalves gives no embeddings: .* export it without --embeddings$"):
        write(around(NoHalves(classes), classifier), tmp_path / "e.onnx", embeddings=True)
    with pytest.raises(HematokitError, match=r"^Unsupported cannot be exported to ONNX \(.*\); have its") as caught:
        write(around(Unsupported(classes), classifier), tmp_path / "u.onnx")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["ok.onnx"]
