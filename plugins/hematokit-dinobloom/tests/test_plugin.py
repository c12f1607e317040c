"""The plugin in hematokit: its rules, training, probes, bundles, explanations, and the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hematokit_dinobloom import probe
from hematokit_dinobloom.probing import fit_linear

from hematokit import explain_cells, load_model, load_plugins, open_store, set_pixel_size, train
from hematokit.cli.main import main
from hematokit.conformance import check_plugin
from hematokit.errors import HematokitError

TINY: dict[str, Any] = {"variant": "tiny", "device": "cpu"}


@pytest.fixture(scope="module")
def bundles(store: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A linear and a k-NN probe of the same cells."""
    folder = tmp_path_factory.mktemp("probes")
    return {
        head: probe(store, folder / head, weights=checkpoint, head=head, neighbours=5, **TINY)
        for head in ("linear", "knn")
    }


@pytest.mark.parametrize("name", ["dinobloom:tiny", "attention-rollout"])
def test_it_passes_the_conformance_tests(name: str) -> None:
    results = check_plugin(name)
    assert [str(result) for result in results if result.outcome == "failed"] == []
    assert any(result.outcome == "passed" for result in results)


def test_the_second_head_uses_the_same_embeddings(bundles: dict[str, Any]) -> None:
    assert [bundles[head].cached for head in ("linear", "knn")] == [False, True]
    assert bundles["linear"].embeddings == bundles["knn"].embeddings


@pytest.mark.parametrize("head", ["linear", "knn"])
def test_a_probe_is_a_bundle_that_predicts(head: str, bundles: dict[str, Any], store: Path) -> None:
    classifier, cells = load_model(bundles[head].bundle, "cpu"), open_store(store)
    test = cells.cells[cells.cells["split"] == "test"]
    predicted = classifier.predict(cells.read_rows(test["row"].to_numpy(np.int64)))
    assert (predicted["predicted"].to_numpy() == test["label"].to_numpy()).mean() > 0.7
    assert bundles[head].validation["macro_f1"] > 0.6


def test_a_bundle_needs_no_weights_file(bundles: dict[str, Any], checkpoint: Path, tmp_path: Path) -> None:
    config = (bundles["linear"].bundle / "config.json").read_text()
    assert str(checkpoint.parent) not in config
    assert json.loads(config)["training"]["weights"]["from"] == checkpoint.name
    shutil.copytree(bundles["linear"].bundle, tmp_path / "elsewhere")
    assert set(load_model(tmp_path / "elsewhere", "cpu").codes) == {"BLA", "LYT", "NGS"}


@pytest.mark.parametrize("head", ["linear", "knn"])
def test_cells_are_explained(head: str, bundles: dict[str, Any], store: Path) -> None:
    classifier = load_model(bundles[head].bundle, "cpu", runtime="torch")
    patches = open_store(store).read_rows(np.arange(2))
    given = {"grad-cam": {"positive": False}}
    maps = explain_cells(classifier, patches, np.zeros(2, np.int64), ["grad-cam", "attention-rollout"], options=given)
    assert maps["grad-cam"].shape == maps["attention-rollout"].shape == (2, 56, 56)
    assert np.ptp(maps["attention-rollout"], axis=(1, 2)).min() > 0
    if head == "linear":
        assert np.ptp(maps["grad-cam"], axis=(1, 2)).min() > 0


def test_grad_cam_of_several_classes_is_that_of_each(bundles: dict[str, Any], store: Path) -> None:
    classifier = load_model(bundles["linear"].bundle, "cpu", runtime="torch")
    images = classifier.prepare(torch.from_numpy(open_store(store).read_rows(np.arange(3))))
    explainer = load_plugins().explainers.make("grad-cam", {"positive": False}).value
    targets = torch.tensor([[0, 1, 2]] * 3)
    together = explainer.attribute_many(classifier, images, targets)
    for number in range(3):
        alone = explainer.attribute(classifier, images, targets[:, number])
        assert torch.allclose(together[:, number], alone, atol=1e-6)


@pytest.mark.parametrize("freeze", [True, False])
def test_train_starts_from_the_checkpoint(freeze: bool, store: Path, checkpoint: Path, tmp_path: Path) -> None:
    result = train(
        store,
        tmp_path / "run",
        backbone="dinobloom:tiny",
        weights=str(checkpoint),
        backbone_options={"freeze": freeze},
        epochs=1,
        batch_size=12,
        lr=1e-4,
        target_per_class=12,
        device="cpu",
    )
    assert result.bundle is not None
    body = load_model(result.bundle, "cpu", runtime="torch").backbone.body  # type: ignore[union-attr]
    given = torch.load(checkpoint, weights_only=True)["teacher"]
    same = torch.equal(body.blocks[1].attn.qkv.weight, given["backbone.blocks.1.attn.qkv.weight"])
    assert same is freeze


def test_a_bundle_starts_another_training_of_other_classes(bundles: dict[str, Any]) -> None:
    from hematokit.models import build_backbone, choose_backbone

    file = bundles["linear"].bundle / "model.safetensors"
    network: Any = build_backbone(choose_backbone("dinobloom:tiny"), 5, weights=file)
    first: Any = load_model(bundles["linear"].bundle, "cpu", runtime="torch")
    assert torch.equal(network.body.cls_token, first.backbone.body.cls_token)
    assert network.head.weight.shape == (5, 48)


def test_the_knn_head_is_exported(bundles: dict[str, Any], store: Path, tmp_path: Path) -> None:
    from hematokit.models import export_onnx

    torch_model: Any = load_model(bundles["knn"].bundle, "cpu", runtime="torch")
    export_onnx(torch_model, tmp_path / "knn.onnx")
    other = load_model(tmp_path / "knn.onnx", "cpu", "onnxruntime")
    patches = open_store(store).read_rows(np.arange(7))
    assert np.allclose(torch_model.logits(patches), other.logits(patches), atol=1e-3)


def test_other_weights_are_not_served_from_the_cache(bundles: dict[str, Any], store: Path, tmp_path: Path) -> None:
    said: list[str] = []
    kept = tmp_path / "kept.safetensors"
    shutil.copy(bundles["linear"].embeddings, kept)
    result = probe(store, tmp_path / "random", embeddings=kept, log=said.append, **TINY)
    assert not result.cached
    assert any("random" in line for line in said)


def test_a_probe_records_the_pixel_size_of_its_cells(
    bundles: dict[str, Any], store: Path, checkpoint: Path, tmp_path: Path
) -> None:
    assert load_model(bundles["linear"].bundle, "cpu").config.pixel_size_um is None
    measured = Path(shutil.copytree(store, tmp_path / "measured.zarr"))
    set_pixel_size(measured, 0.09)
    said: list[str] = []
    for path, size in ((measured, 0.09), (store, None)):
        made = probe(path, tmp_path / path.stem, weights=checkpoint, log=said.append, **TINY)
        assert load_model(made.bundle, "cpu").config.pixel_size_um == size
    assert [line.split(",")[0] for line in said if line.startswith("Warning: ")] == [
        "Warning: the pixel size of the training cells is not known"
    ]


def test_what_is_wrong_is_one_line_and_leaves_nothing(store: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for output, given, said in (
        ("full", {}, "not empty"),
        ("a", {"weights": tmp_path / "none.pth"}, "does not exist"),
        ("b", {"image_size": 60}, "multiple of 14"),
        ("c", {"head": "forest"}, "none of linear, knn"),
    ):
        with pytest.raises(HematokitError, match=said) as caught:
            probe(store, tmp_path / output, **{"weights": checkpoint, **TINY, **given})
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_the_command_writes_a_bundle(
    store: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["dinobloom-probe", str(store), "--output", str(tmp_path / "bundle"), "--weights", str(checkpoint)]
    assert main([*words, "--variant", "tiny", "--device", "cpu", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["cells"] == 36
    assert (Path(said["bundle"]) / "config.json").is_file()


def test_a_head_does_not_blow_up_features_that_hardly_vary() -> None:
    """Rounding differs between engines: a bundle whose logits hang on it could not be exported."""
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    telling = torch.randn(60, 4) + 3 * torch.nn.functional.one_hot(labels, 4)
    for embeddings in (5 + 1e-6 * torch.randn(60, 4), torch.cat([telling, 5 + 1e-6 * torch.randn(60, 4)], 1)):
        weight, bias = fit_linear(embeddings, labels, 3, 1e-4)
        rounded = embeddings * (1 + 1e-7)
        torch.testing.assert_close(rounded @ weight.T + bias, embeddings @ weight.T + bias, atol=1e-3, rtol=0)
    assert (
        float(
            ((telling @ weight[:, :4].T + embeddings[:, 4:] @ weight[:, 4:].T + bias).argmax(1) == labels)
            .float()
            .mean()
        )
        > 0.9
    )
