"""The metrics and plots of scikit-learn accept the probabilities and the classes of a model."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch

from hematokit import load_model, open_store
from hematokit.errors import ModelError
from hematokit.models import Classifier
from hematokit.taxonomy import Taxonomy


class Reversed(torch.nn.Module):
    """A backbone whose logits are those of another one in reverse order, without embeddings."""

    def __init__(self, backbone: torch.nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.backbone(images).flip(1)


@pytest.fixture(scope="module")
def classifier(tiny_run: Path) -> Classifier:
    """The tiny model with its classes in an order that is not sorted."""
    model = load_model(tiny_run, "cpu", runtime="torch")
    ordered = tuple(sorted(model.taxonomy.classes, key=lambda entry: entry.code))
    codes = [entry.code for entry in ordered]
    order = [model.codes.index(code) for code in codes]
    head = model.backbone.get_classifier()
    with torch.no_grad():
        head.weight.copy_(head.weight[order].clone())
        head.bias.copy_(head.bias[order].clone())
    taxonomy = Taxonomy(model.taxonomy.name, ordered[::-1])
    return Classifier(Reversed(model.backbone), taxonomy, model.input_spec, model.patch_size, model.temperature)


@pytest.fixture(scope="module")
def patches(tiny_store: Path) -> np.ndarray:
    store = open_store(tiny_store)
    return store.patches(store.cells["cell_id"][:19])


def test_columns_follow_classes(classifier: Classifier, patches: np.ndarray, tiny_run: Path) -> None:
    probabilities = classifier.predict_proba(patches, batch_size=4)
    predictions = classifier.predict(list(patches))
    assert (probabilities.dtype, probabilities.shape) == (np.float32, (len(patches), len(classifier.codes)))
    assert classifier.classes_.tolist() == sorted(classifier.codes) != list(classifier.codes)
    for column, code in enumerate(classifier.classes_):
        assert np.allclose(probabilities[:, column], predictions[f"p_{code}"], atol=1e-6)
    assert classifier.classes_[probabilities.argmax(axis=1)].tolist() == predictions["predicted"].tolist()
    expected = load_model(tiny_run, "cpu", runtime="torch").predict_proba(patches)
    assert np.allclose(probabilities, expected, atol=1e-5), "the order of the logits does not matter"
    assert classifier.predict_proba([]).shape == (0, len(classifier.codes))


def test_metrics_and_plots(classifier: Classifier, patches: np.ndarray) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    calibration = pytest.importorskip("sklearn.calibration")
    probabilities, classes = classifier.predict_proba(patches), classifier.classes_
    labels = np.random.default_rng(0).choice(classes, len(patches))
    column = np.searchsorted(classes, labels)
    of_label = probabilities[np.arange(len(labels)), column].astype(float)
    assert metrics.log_loss(labels, probabilities, labels=classes) == pytest.approx(-np.log(of_label).mean(), rel=1e-4)
    best_two = np.argsort(-probabilities, axis=1)[:, :2]
    expected = (best_two == column[:, None]).any(axis=1).mean()
    assert metrics.top_k_accuracy_score(labels, probabilities, k=2, labels=classes) == pytest.approx(expected)
    predicted = classifier.predict(patches)["predicted"]
    assert metrics.confusion_matrix(labels, predicted, labels=classes).sum() == len(patches)
    with mpl.rc_context({"backend": "agg"}):
        display = calibration.CalibrationDisplay.from_predictions(labels == classes[0], probabilities[:, 0], n_bins=3)
    assert len(display.prob_true) == len(display.prob_pred)


def test_patches_of_different_sizes_are_rejected(classifier: Classifier, patches: np.ndarray) -> None:
    with pytest.raises(ModelError, match=r"shape \(64, 64, 3\), not of shape \(64, 32, 3\); cut or resize them to 64"):
        classifier.predict([patches[0], patches[0][:, :32]])
    with pytest.raises(ModelError, match=r"not float64"):
        classifier.predict_proba([patches[0].astype(float)])


def test_a_backbone_without_embeddings_is_rejected(classifier: Classifier, patches: np.ndarray) -> None:
    with pytest.raises(ModelError, match=r"^Reversed gives no embeddings: it has no forward_features"):
        classifier.embed(patches)
