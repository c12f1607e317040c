"""The conformance rules: what keeps them passes, and each of them notices what it is there for."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import SkipTest

import numpy as np
import pandas as pd
import pytest
import torch

from hematokit.conformance import ConformanceTest, RuleBroken, RuleResult, RuleWarning, check_plugin, conformance_tests
from hematokit.conformance.checking import RULES
from hematokit.conformance.rules import rule_name
from hematokit.errors import PluginError
from hematokit.models import Classifier, load_model, save_bundle
from hematokit.models.construction import build_backbone, choose_backbone
from hematokit.plugins import load_plugins, registered
from hematokit.plugins.specs import (
    AnySpec,
    AugmenterSpec,
    BackboneSpec,
    DetectorSpec,
    ExplainerSpec,
    InputSpec,
    Option,
    Variant,
)
from hematokit.taxonomy import MATEK_21


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def result_of(spec: AnySpec, rule: str) -> RuleResult:
    """The outcome of one rule for a spec."""
    with registered(spec):
        tests = conformance_tests(spec.name)
        return next(test for test in tests if str(test) == f"{spec.kind} {spec.name}: {rule}").result()


# --- backbones --------------------------------------------------------------------------------------------------------


class Network(torch.nn.Module):
    """Does everything right; the classes below each do one thing wrong."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = torch.nn.Conv2d(3, 8, 3, stride=4)
        self.head = torch.nn.Linear(8, classes)

    def get_classifier(self) -> torch.nn.Module:
        return self.head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images).relu().mean((2, 3)))


class Probabilities(Network):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).softmax(1)


class OneClass(Network):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images)[:, :1]


class Double(Network):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).double()


class AlwaysDropout(Network):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(super().forward(images), 0.5, training=True)


class BatchMean(Network):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = super().forward(images)
        return logits - logits.mean(0)


WEIGHTS = np.random.default_rng(0)


class NumpyWeights(Network):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.head.weight.data = torch.from_numpy(WEIGHTS.random((classes, 8), np.float32))


class FixedSize(Network):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[-1] == 64, "64 px only"
        return super().forward(images)


class Unused(Network):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.spare = torch.nn.Linear(2, 2)


class Frozen(Network):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.requires_grad_(False)


class Detached(Network):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images.detach())


class Stray(Network):
    """Holds a tensor that neither moves nor is saved."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.scale = torch.rand(classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * self.scale


class NoHead(Network):
    get_classifier = None  # type: ignore[assignment]


class PythonLoop(Network):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = super().forward(images)
        return logits * 2 if float(logits.sum().item()) > 0 else logits


def backbone(network: Callable[[int], torch.nn.Module], **changed: Any) -> BackboneSpec:
    def build(model: str, *, num_classes: int, input_size: int, pretrained: bool) -> torch.nn.Module:
        return network(num_classes)

    given = {
        "name": "trial",
        "description": "A network on trial",
        "factory": build,
        "variants": {"one": Variant("one", InputSpec(64, 16))},
        "default_variant": "one",
        "attribution_layer": lambda module: module.features,
    }
    return BackboneSpec(**{**given, **changed})


@pytest.mark.parametrize("rule", [name for name in map(rule_name, RULES["backbone"]) if name != "onnx"])
def test_a_good_backbone_passes(rule: str) -> None:
    found = result_of(backbone(Network), rule)
    assert found.outcome == "passed", found


@pytest.mark.parametrize(
    ("network", "rule", "words"),
    [
        (Probabilities, "logits", "these are probabilities"),
        (OneClass, "shape", "1 images and 5 classes gave (1, 1)"),
        (Double, "shape", "torch.float64, not float32"),
        (AlwaysDropout, "determinism", "dropout"),
        (BatchMean, "determinism", "alone and in a batch"),
        (NumpyWeights, "builds", "other weights each time"),
        (FixedSize, "sizes", "64 px only"),
        (Unused, "gradients", "2 of 6 trained tensors get no gradient (spare.weight"),
        (Frozen, "gradients", "nothing can be trained"),
        (Stray, "bundle", "after loading, logits differ"),
        (Stray, "devices", "register tensors as buffers"),
        (PythonLoop, "onnx", "cannot be exported"),
    ],
)
def test_a_backbone_that_breaks_a_rule_fails_it(network: type[Network], rule: str, words: str) -> None:
    if rule == "devices" and torch.cuda.is_available():
        words = "same device"
    found = result_of(backbone(network), rule)
    assert found.outcome == "failed", found
    assert words in found.detail
    assert "\n" not in found.detail


@pytest.mark.parametrize(
    ("spec", "rule", "words"),
    [
        (backbone(Detached), "input-gradients", "no gradient reaches the image"),
        (backbone(NoHead), "weights", "give it get_classifier()"),
        (backbone(Network, attribution_layer=None), "attribution-layer", "names none"),
    ],
)
def test_what_people_may_stumble_over_is_a_warning(spec: BackboneSpec, rule: str, words: str) -> None:
    found = result_of(spec, rule)
    assert found.outcome == "warned", found
    assert words in found.detail


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (lambda module: torch.nn.ReLU(), "does not return a part of the module"),
        (lambda module: module.head, "gives (1, 5), not (B, c, h, w)"),
    ],
)
def test_attribution_layers_are_looked_at(layer: Callable[..., Any], words: str) -> None:
    found = result_of(backbone(Network, attribution_layer=layer), "attribution-layer")
    assert (found.outcome, words in found.detail) == ("failed", True), found


def guides_transformer(old: str = "", new: str = "") -> BackboneSpec:
    """The transformer that the guide shows, with a line of it changed."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "write-a-plugin.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class Transformer" in block)
    assert old in code
    namespace: dict[str, Any] = {}
    exec(code.replace(old, new) if old else code, namespace)
    return BackboneSpec(
        "trial",
        "The guide's",
        lambda model, *, num_classes, input_size, pretrained: namespace["Transformer"](num_classes, input_size // 16),
        variants={"one": Variant("one", InputSpec(64, 16))},
        default_variant="one",
        attribution_layer=namespace["attribution_layer"],
    )


@pytest.mark.parametrize("rule", ["shape", "determinism", "sizes", "gradients", "bundle", "attribution-layer", "onnx"])
def test_the_guides_transformer_passes(rule: str) -> None:
    found = result_of(guides_transformer(), rule)
    assert found.outcome == "passed", found


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("first = first.repeat_interleave(times, dim=0)", "pass", "must be repeated as often"),
        ("self.head(self.blocks[-1](tokens)[:, 0])", "self.head(tokens[:, 0])", "no gradient reaches the layer"),
    ],
)
def test_a_transformer_that_loses_its_token_fails(old: str, new: str, words: str) -> None:
    found = result_of(guides_transformer(old, new), "attribution-layer")
    assert (found.outcome, words in found.detail) == ("failed", True), found


def test_a_bundle_does_not_say_where_a_file_was(tmp_path: Path) -> None:
    seen = []

    def build(model: str, *, num_classes: int, input_size: int, pretrained: bool, start: str) -> torch.nn.Module:
        seen.append(start)
        return Network(num_classes)

    (tmp_path / "start.pt").write_text("")
    spec = backbone(Network, factory=build, options={"start": Option(str, "", "a file", path="file")})
    with registered(spec):
        choice = choose_backbone("trial", options={"start": str(tmp_path / "start.pt")})
        taxonomy = MATEK_21.subset(MATEK_21.codes[:2])
        classifier = Classifier(build_backbone(choice, 2), taxonomy, choice.input, 64)
        save_bundle(tmp_path / "bundle", classifier, choice, {})
        (tmp_path / "start.pt").unlink()
        load_model(tmp_path / "bundle", "cpu", "torch")
    assert seen == [str(tmp_path / "start.pt"), ""]
    assert str(tmp_path) not in (tmp_path / "bundle" / "config.json").read_text()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"description": ""}, "description is empty"),
        ({"description": "two\nlines"}, "more than one line"),
        ({"options": {"rate": Option(float, 3.0, "a rate", 0.0, 1.0)}}, "outside 0 to 1"),
        ({"options": {"rate": Option(float, 0.5, "")}}, "description of option rate is empty"),
        ({"options": {"sizes": Option(list, None, "sizes")}}, "can be typed after --set"),
        ({"options": {"head": Option(str, "c", "a head", choices=("a", "b"))}}, "'c' is none of a, b"),
        ({"options": {"size": Option(int, 1, "a size", choices=(1, "2"))}}, "choice '2' is not of type int"),
        ({"options": {"size": Option(int, 1, "a size", 0, 3, choices=(1, 2))}}, "has choices and limits"),
        ({"options": {"of": Option(str, "mine.pt", "a file", path="file")}}, "a path has no default"),
        ({"options": {"of": Option(int, None, "a file", path="file")}}, "its type is str"),
        ({"options": {"of": Option(str, "", "a file", path="disk")}}, "path 'disk' is none of file, folder"),  # type: ignore[arg-type]
        ({"variants": {"one": Variant("one", InputSpec(64, 16, std=(1.0, 1.0)))}}, "three numbers each"),  # type: ignore[arg-type]
    ],
)
def test_specs_are_read(changed: dict[str, Any], words: str) -> None:
    found = result_of(backbone(Network, **changed), "spec")
    assert words in found.detail, found


# --- augmenters -------------------------------------------------------------------------------------------------------


def jitter(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return (images * (0.9 + 0.2 * torch.rand(len(images), 1, 1, 1, generator=generator))).clamp(0, 1)


def augmenter(augment: Callable[..., torch.Tensor], options: dict[str, Option] | None = None) -> AugmenterSpec:
    return AugmenterSpec("trial", "An augmenter on trial", lambda **given: augment, options or {})


@pytest.mark.parametrize("rule", [name for name in map(rule_name, RULES["augmenter"]) if name != "devices"])
def test_a_good_augmenter_passes(rule: str) -> None:
    found = result_of(augmenter(jitter), rule)
    assert found.outcome == "passed", found


@pytest.mark.parametrize(
    ("augment", "rule", "words"),
    [
        (lambda images, generator: images[:, :, 1:], "shape", "came back as (5, 3, 95, 96)"),
        (lambda images, generator: images.double(), "shape", "torch.float64"),
        (lambda images, generator: images.numpy(), "shape", "ndarray"),
        (lambda images, generator: images * 1.5, "range", "clamp them"),
        (lambda images, generator: images / images.std((1, 2, 3), keepdim=True), "range", "not finite"),
        (lambda images, generator: images * torch.rand(len(images), 1, 1, 1), "determinism", "generator=generator"),
        (lambda images, generator: images * torch.rand(1, generator=generator), "per-image", "for each"),
    ],
)
def test_an_augmenter_that_breaks_a_rule_fails_it(augment: Callable[..., Any], rule: str, words: str) -> None:
    found = result_of(augmenter(augment), rule)
    assert (found.outcome, words in found.detail) == ("failed", True), found


def test_an_augmenter_is_tried_with_each_choice() -> None:
    def make(way: str) -> Callable[..., torch.Tensor]:
        return lambda images, generator: images[:1] if way == "lost" else images

    spec = AugmenterSpec("trial", "On trial", make, {"way": Option(str, "kept", "way", choices=("kept", "lost"))})
    found = result_of(spec, "options")
    assert found.outcome == "failed"
    assert "way=lost" in found.detail


def test_an_augmenter_is_tried_at_the_ends_of_its_options() -> None:
    def make(strength: float) -> Callable[..., torch.Tensor]:
        return lambda images, generator: images / (1 - strength)

    spec = AugmenterSpec("trial", "On trial", make, {"strength": Option(float, 0.1, "strength", 0.0, 1.0)})
    found = result_of(spec, "options")
    assert (found.outcome, "strength=1.0" in found.detail) == ("failed", True), found


# --- explainers -------------------------------------------------------------------------------------------------------


class Gradient:
    """Does everything right; `change` does something besides."""

    def __init__(self, change: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        self.change = change

    def attribute(self, classifier: Any, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        images = images.detach().clone().requires_grad_()
        logits = classifier(images).gather(1, targets[:, None])
        return self.change(classifier, torch.autograd.grad(logits.sum(), images)[0].sum(1))


def explainer(change: Callable[[Any, torch.Tensor], torch.Tensor]) -> ExplainerSpec:
    return ExplainerSpec("trial", "An explainer on trial", lambda: Gradient(change))


def leave_hook(classifier: Any, maps: torch.Tensor) -> torch.Tensor:
    classifier.backbone.register_forward_hook(lambda *given: None)
    return maps


def leave_gradients(classifier: Any, maps: torch.Tensor) -> torch.Tensor:
    classifier(torch.rand(1, 3, 64, 64)).sum().backward()
    return maps


def leave_training(classifier: Any, maps: torch.Tensor) -> torch.Tensor:
    classifier.train()
    return maps


@pytest.mark.parametrize("rule", [name for name in map(rule_name, RULES["explainer"]) if name != "devices"])
def test_a_good_explainer_passes(rule: str) -> None:
    found = result_of(explainer(lambda classifier, maps: maps), rule)
    assert found.outcome == "passed", found


@pytest.mark.parametrize(
    ("change", "rule", "outcome", "words"),
    [
        (lambda classifier, maps: maps[:, ::2], "shape", "failed", "not maps"),
        (lambda classifier, maps: maps * float("nan"), "shape", "failed", "not finite"),
        (lambda classifier, maps: maps.double(), "dtype", "failed", "float64"),
        (lambda classifier, maps: maps + torch.rand(()), "determinism", "failed", "option seed"),
        (lambda classifier, maps: maps / maps.abs().sum(), "determinism", "failed", "alone and in a batch"),
        (leave_hook, "leaves-model", "failed", "left a hook"),
        (leave_gradients, "leaves-model", "failed", "left gradients"),
        (leave_training, "leaves-model", "failed", "training mode"),
        (lambda classifier, maps: torch.ones_like(maps), "target", "warned", "does not depend on the class"),
        (lambda classifier, maps: torch.ones_like(maps), "weights", "warned", "different weights"),
    ],
)
def test_an_explainer_that_breaks_a_rule_fails_it(
    change: Callable[..., torch.Tensor], rule: str, outcome: str, words: str
) -> None:
    found = result_of(explainer(change), rule)
    assert (found.outcome, words in found.detail) == (outcome, True), found


def test_an_explainer_may_refuse_a_network() -> None:
    class Attention(Gradient):
        def attribute(self, classifier: Any, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            if not hasattr(classifier.backbone, "blocks"):
                raise PluginError("this network has no attention; choose grad-cam")
            return super().attribute(classifier, images, targets)

    found = result_of(ExplainerSpec("trial", "On trial", lambda: Attention(lambda _, maps: maps)), "shape")
    assert found.outcome == "passed"
    assert "refuses timm:test_resnet: this network has no attention" in found.detail


# --- detectors --------------------------------------------------------------------------------------------------------


def detector(detect: Callable[[np.ndarray, float | None], Any]) -> DetectorSpec:
    return DetectorSpec("trial", "A detector on trial", lambda: SimpleNamespace(detect=detect))


def one_cell(field: np.ndarray, pixel_size_um: float | None, **changed: Any) -> pd.DataFrame:
    row = {"y": 10.0, "x": 10.0, "y0": 0, "x0": 0, "height": 20, "width": 20, "score": 0.5} | changed
    return pd.DataFrame([row])


def nuclei(field: np.ndarray, pixel_size_um: float | None) -> pd.DataFrame:
    return load_plugins().detectors.make("nuclei").value.detect(field, pixel_size_um)


def writing(field: np.ndarray, pixel_size_um: float | None) -> pd.DataFrame:
    if field.flags.writeable:
        field[:] = 0
    return one_cell(field, pixel_size_um)


RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("detect", "rule", "outcome", "words"),
    [
        (nuclei, "table", "passed", "cells without a pixel size"),
        (nuclei, "finds", "passed", "of 10 drawn cells"),
        (nuclei, "empty", "passed", "no cells"),
        (lambda field, size: [], "table", "failed", "returned list, not a DataFrame"),
        (lambda field, size: one_cell(field, size).drop(columns="score"), "table", "failed", "no column 'score'"),
        (lambda field, size: one_cell(field, size, y0=9000), "table", "failed", "outside the image"),
        (lambda field, size: one_cell(field, size * 2), "table", "failed", "TypeError"),
        (lambda field, size: one_cell(field, size)[:0], "finds", "warned", "none of 10 drawn cells"),
        (one_cell, "finds", "warned", "of 10 drawn cells"),
        (lambda field, size: one_cell(field, size, y=RANDOM.random()), "determinism", "failed", "two calls"),
        (writing, "input", "failed", "it changed the field's pixels"),
        (one_cell, "empty", "warned", "1 cells were found in an empty field"),
    ],
)
def test_detectors_are_judged(detect: Callable[..., Any], rule: str, outcome: str, words: str) -> None:
    found = result_of(detector(detect), rule)
    assert (found.outcome, words in found.detail) == (outcome, True), found


def test_a_deviation_of_nothing_is_refused_where_it_is_written() -> None:
    with pytest.raises(PluginError, match="std"):
        InputSpec(64, 16, std=(0.0, 1.0, 1.0))


def test_the_version_of_an_algorithm_is_text() -> None:
    spec = DetectorSpec("trial", "A detector on trial", lambda: SimpleNamespace(detect=one_cell), version=2)  # type: ignore[arg-type]
    assert "version is of type int" in result_of(spec, "spec").detail


# --- all together -----------------------------------------------------------------------------------------------------


def test_what_cannot_be_made_is_not_tried() -> None:
    def make() -> None:
        raise PluginError("weights cells.pt do not exist; fetch them first")

    with registered(DetectorSpec("weightless", "Needs weights", make)):
        found = [each for each in check_plugin("weightless") if each.subject == "detector weightless"]
    outcomes = {each.rule: each.outcome for each in found}
    assert outcomes["builds"] == "failed"
    assert {outcomes[rule] for rule in ("table", "finds", "empty")} == {"skipped"}
    assert "weights cells.pt do not exist" in next(each.detail for each in found if each.rule == "builds")


def test_built_in_ones_pass() -> None:
    for name in ("flips", "none", "grad-cam"):
        assert [str(each) for each in check_plugin(name) if each.outcome in ("failed", "warned")] == []


def test_names_that_are_not_there() -> None:
    with pytest.raises(PluginError, match="no installed package and no part of one is called 'nothing'"):
        check_plugin("nothing")
    with pytest.raises(PluginError, match=r"--set augmenter.colour: no augmenter under trial has it \(flips\)"):
        check_plugin("flips", {"augmenter": {"colour": 1}})
    with pytest.raises(PluginError, match="'painter' is no kind of plugin"):
        check_plugin("flips", {"painter": {"colour": 1}})
    assert [each.outcome for each in check_plugin("timm") if each.subject == "backbone timm"] == ["skipped"]


# --- as tests of pytest -----------------------------------------------------------------------------------------------


def conformance_test(name: str, rule: str) -> ConformanceTest:
    return next(test for test in conformance_tests(name) if str(test).endswith(f" {name}: {rule}"))


def test_a_broken_rule_fails_the_test_with_what_to_do() -> None:
    with registered(augmenter(lambda images, generator: images * 1.5)):
        conformance_test("trial", "shape")()
        with pytest.raises(RuleBroken, match="clamp them to 0 and 1"):
            conformance_test("trial", "range")()


def test_a_plugins_own_error_is_raised_as_it_is() -> None:
    def fail(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        raise ZeroDivisionError("by an image")

    with registered(augmenter(fail)), pytest.raises(ZeroDivisionError, match="by an image"):
        conformance_test("trial", "shape")()


def test_a_warning_does_not_fail_the_test() -> None:
    flips = augmenter(lambda images, generator: images.flip(2))
    with registered(flips), pytest.warns(RuleWarning, match="two seeds gave the same batch"):
        conformance_test("trial", "determinism")()


def test_what_cannot_be_tested_is_skipped() -> None:
    with registered(augmenter(lambda images, generator: images)), pytest.raises(SkipTest, match="it changes nothing"):
        conformance_test("trial", "per-image")()


def test_rules_after_a_broken_one_that_they_need_are_skipped() -> None:
    with registered(augmenter(lambda images, generator: images[:1])):
        tests = {str(test).split(": ")[1]: test for test in conformance_tests("trial") if test.subject[0] == "a"}
        with pytest.raises(RuleBroken, match="came back as"):
            tests["shape"]()
        with pytest.raises(SkipTest, match="shape failed"):
            tests["range"]()
