"""Running explainers over cells, including third-party ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hematokit.errors import ExplanationError, ModelError, PluginError
from hematokit.explanation.running import attribute_targets, explain_cells, make_explainer, make_explainers
from hematokit.models import load_model
from hematokit.plugins import MadeExplainer
from hematokit.plugins.specs import Explainer, ExplainerSpec, complete_explainer
from hematokit.store import open_store


class Brightness:
    """A third-party explainer: the mean over colours, plus the target."""

    def __init__(self, wrong: str = "") -> None:
        self.wrong = wrong

    def attribute(self, classifier: Any, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if self.wrong == "raises":
            raise RuntimeError("two\nlines")
        maps = images.mean(1) + targets[:, None, None]
        if self.wrong == "nan":
            maps[0, 0, 0] = torch.nan
        return maps[:, :-1] if self.wrong == "shape" else maps


def named(explainer: object) -> dict[str, MadeExplainer]:
    return {
        "brightness": MadeExplainer(ExplainerSpec("brightness", "", object), "strange-package", "1", {}, explainer, {})
    }  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> Any:
    return load_model(tiny_run, "cpu")


@pytest.fixture(scope="module")
def patches(tiny_store: Path) -> np.ndarray:
    store = open_store(tiny_store)
    chosen = np.random.default_rng(0).choice(len(store), 7, replace=False)
    return store.patches(store.cells["cell_id"].to_numpy()[chosen].tolist())


def test_a_third_party_explainer_gets_images_and_the_predicted_classes(model: Any, patches: np.ndarray) -> None:
    predicted = model.logits(patches).argmax(1)
    images = model.prepare(torch.from_numpy(patches)).numpy()
    maps = explain_cells(model, patches, methods=named(Brightness()), batch_size=3)["brightness"]
    np.testing.assert_allclose(maps, images.mean(1) + predicted[:, None, None], rtol=1e-5)


def test_maps_do_not_depend_on_the_batches(model: Any, patches: np.ndarray) -> None:
    options = {"smoothgrad": {"samples": 4}}
    once = explain_cells(model, patches, options=options, batch_size=7, seed=3)
    parts = explain_cells(model, patches, options=options, batch_size=2, seed=3)
    for method in ("grad-cam", "smoothgrad"):
        assert once[method].shape == (7, 64, 64)
        np.testing.assert_allclose(parts[method], once[method], rtol=1e-3, atol=1e-6)


def test_several_targets_of_an_explainer_that_knows_one_at_a_time(model: Any, patches: np.ndarray) -> None:
    targets = np.array([[0, 2]] * len(patches))
    maps = explain_cells(model, patches, targets, named(Brightness()))["brightness"]
    np.testing.assert_allclose(maps[:, 1] - maps[:, 0], 2.0, rtol=1e-5)
    images = model.prepare(torch.from_numpy(patches))
    direct = attribute_targets(Brightness(), model, images, torch.from_numpy(targets))
    np.testing.assert_allclose(direct.numpy(), maps)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("raises", "failed: RuntimeError: two lines"),
        ("nan", "not finite"),
        ("shape", r"\(7, 63, 64\), not maps \(7, 64"),
    ],
)
def test_an_error_of_a_third_party_explainer_names_its_package(
    model: Any, patches: np.ndarray, wrong: str, said: str
) -> None:
    with pytest.raises(PluginError, match=f"explainer 'brightness' of package strange-package.*{said}"):
        explain_cells(model, patches, methods=named(Brightness(wrong)))


def test_a_model_answers_as_ever_while_an_explainer_has_hooks_on_it(model: Any, patches: np.ndarray) -> None:
    before = model.logits(patches)
    meanwhile = []

    class Hooked:
        def attribute(self, classifier: Any, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            handle = classifier.backbone.register_forward_hook(lambda module, given, output: 2 * output)
            # As another thread would ask.
            meanwhile.append(model.logits(patches))
            handle.remove()
            return images.mean(1)

    explain_cells(model, patches, methods=named(Hooked()))
    np.testing.assert_array_equal(meanwhile[0], before)


def test_no_cells_give_no_maps(model: Any) -> None:
    maps = explain_cells(model, np.zeros((0, 64, 64, 3), np.uint8), methods=named(Brightness()))
    assert maps["brightness"].shape == (0, 64, 64)


def test_patches_of_another_size_and_impossible_batches_are_refused(model: Any, patches: np.ndarray) -> None:
    with pytest.raises(ModelError, match="64"):
        explain_cells(model, patches[:, :60, :60], methods=["grad-cam"])
    with pytest.raises(ExplanationError, match="--batch-size"):
        explain_cells(model, patches, methods=["grad-cam"], batch_size=0)


def test_the_seed_goes_to_those_that_have_chance_unless_told_otherwise() -> None:
    made = make_explainers(["smoothgrad", "grad-cam"], {"smoothgrad": {"samples": 3}}, seed=8)
    assert made["smoothgrad"].options["seed"] == 8
    assert made["smoothgrad"].options["samples"] == 3
    assert "seed" not in made["grad-cam"].options
    assert make_explainer("smoothgrad", {"seed": 2}, seed=8).options["seed"] == 2


@pytest.mark.parametrize(
    ("methods", "options", "said"),
    [
        (["grad-kam"], {}, "no explainer is called 'grad-kam'; there are: grad-cam"),
        ([], {}, "no method was named"),
        (["grad-cam"], {"smoothgrad": {"samples": 3}}, "set for smoothgrad, which is not among the methods"),
        (["grad-cam"], {"smothgrad": {"samples": 3}}, "no explainer is called 'smothgrad'"),
    ],
)
def test_methods_that_are_not_there(methods: list[str], options: dict[str, dict[str, object]], said: str) -> None:
    with pytest.raises(PluginError, match=said):
        make_explainers(methods, options)


class Inheriting(Explainer):
    """A third-party explainer that inherits the default methods."""

    def attribute(self, classifier: Any, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return Brightness().attribute(classifier, images, targets)


class WithNotes(Brightness):
    """An explainer of hooks 1.0 with one of the optional methods."""

    def notes(self, classifier: Any) -> list[str]:
        return ["of the plugin"]


@pytest.mark.parametrize("explainer", [Brightness(), WithNotes(), Inheriting()])
def test_explainers_with_attribute_alone_have_the_defaults_of_the_other_methods(explainer: Any) -> None:
    images, targets = torch.rand(2, 3, 4, 4), torch.tensor([[0, 1, 2], [3, 4, 5]])
    complete = complete_explainer(explainer)
    maps = complete.attribute_many(None, images, targets)
    torch.testing.assert_close(maps, images.mean(1)[:, None] + targets[:, :, None, None])
    torch.testing.assert_close(complete.attribute(None, images, targets[:, 1]), maps[:, 1])
    assert list(complete.notes(None)) == (["of the plugin"] if isinstance(explainer, WithNotes) else [])


def test_a_complete_explainer_is_used_as_it_is() -> None:
    explainer = Inheriting()
    assert complete_explainer(explainer) is explainer
