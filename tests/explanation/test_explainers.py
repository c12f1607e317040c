"""The built-in explainers, held against truths that are known without them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from hematokit.errors import PluginError
from hematokit.models.classifier import Classifier
from hematokit.models.construction import build_backbone, choose_backbone
from hematokit.plugins import load_plugins, registered
from hematokit.plugins.specs import BackboneSpec, InputSpec
from hematokit.taxonomy import CellClass, Taxonomy

CLASSES = 4
METHODS = ("grad-cam", "smoothgrad", "integrated-gradients", "occlusion", "guided-grad-cam")
QUICK = {"smoothgrad": {"samples": 3}, "integrated-gradients": {"steps": 4}, "occlusion": {"window": 16, "stride": 16}}
SMALL_BACKBONES = ("coatnet:femto", "efficientnetv2:b0", "resnext50", "timm:test_resnet")


def make(method: str, **options: object) -> Any:
    spec = load_plugins().explainers.get(method)
    return spec.factory(**spec.resolve_options(options))


def taxonomy(classes: int = CLASSES) -> Taxonomy:
    return Taxonomy(
        "test", tuple(CellClass(f"C{place}", f"Class {place}", "none", "#123456") for place in range(classes))
    )


def classifier_of(backbone: nn.Module, size: int) -> Classifier:
    spec = InputSpec(size, divisor=1, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    return Classifier(backbone, taxonomy(), spec, size).eval()


class Linear(nn.Module):
    """Logits that are weighted sums of pixels: every gradient is known."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CLASSES, 3, size, size, generator=generator))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bihw,kihw->bk", images, self.weight)


class Convolutional(nn.Module):
    """Two convolutions, a mean over positions, a linear layer."""

    def __init__(self, generator: torch.Generator, *, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.act1 = activation()
        self.features = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.act2 = activation()
        self.head = nn.Linear(8, CLASSES)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.4

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.act2(self.features(self.act1(self.first(images))))
        logits: torch.Tensor = self.head(maps.mean((2, 3)))
        return logits


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def images_of(generator: torch.Generator, count: int = 3, size: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(count, 3, size, size, generator=generator)
    return images, torch.randint(CLASSES, (count,), generator=generator)


# A linear model, whose gradients are its weights


def test_smoothgrad_of_a_linear_model_is_its_weights(generator: torch.Generator) -> None:
    classifier = classifier_of(Linear(12, generator), 12)
    images, targets = images_of(generator)
    gradient = classifier.backbone.weight.detach()[targets] / classifier.std

    signed = make("smoothgrad", magnitude=False, noise=0.5, samples=7).attribute(classifier, images, targets)
    magnitude = make("smoothgrad", noise=0.5, samples=7).attribute(classifier, images, targets)

    torch.testing.assert_close(signed, gradient.sum(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(magnitude, gradient.abs().sum(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("baseline", "value"), [("white", 1.0), ("black", 0.0)])
def test_integrated_gradients_of_a_linear_model_are_the_way_times_its_weights(
    generator: torch.Generator, baseline: str, value: float
) -> None:
    classifier = classifier_of(Linear(12, generator), 12)
    images, targets = images_of(generator)
    expected = ((images - value) * classifier.backbone.weight.detach()[targets] / classifier.std).sum(1)

    found = make("integrated-gradients", baseline=baseline, steps=5).attribute(classifier, images, targets)

    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_occlusion_of_a_linear_model_is_what_each_pixel_adds(generator: torch.Generator) -> None:
    classifier = classifier_of(Linear(8, generator), 8)
    images, targets = images_of(generator, size=8)
    grey = images.mean((2, 3), keepdim=True)
    expected = ((images - grey) * classifier.backbone.weight.detach()[targets] / classifier.std).sum(1)

    found = make("occlusion", window=1, stride=1, baseline="mean").attribute(classifier, images, targets)

    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


# Formulas, in plain torch


@pytest.mark.parametrize("positive", [True, False])
def test_grad_cam_is_the_papers_formula(generator: torch.Generator, positive: bool) -> None:
    network = Convolutional(generator)
    classifier = classifier_of(network, 12)
    images, targets = images_of(generator)

    normalised = (images - classifier.mean) / classifier.std
    activations = network.features(network.act1(network.first(normalised))).detach().requires_grad_()
    score = network.head(network.act2(activations).mean((2, 3))).gather(1, targets[:, None]).sum()
    (gradients,) = torch.autograd.grad(score, activations)
    coarse = (gradients.mean((2, 3), keepdim=True) * activations).sum(1, keepdim=True)
    coarse = functional.relu(coarse) if positive else coarse
    expected = functional.interpolate(coarse, size=(12, 12), mode="bilinear", align_corners=False)[:, 0]

    found = make("grad-cam", layer="features", positive=positive).attribute(classifier, images, targets)

    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)


def test_smoothgrad_is_the_mean_gradient_over_the_noise_it_drew(generator: torch.Generator) -> None:
    classifier = classifier_of(Convolutional(generator, activation=nn.SiLU), 12)
    images, targets = images_of(generator, count=1)
    seen: list[torch.Tensor] = []
    hook = classifier.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach().clone()))
    found = make("smoothgrad", samples=40, per_pass=16, noise=0.2, magnitude=False, seed=5).attribute(
        classifier, images, targets
    )
    hook.remove()

    noisy = torch.cat(seen).requires_grad_()
    (gradients,) = torch.autograd.grad(classifier(noisy)[:, targets[0]].sum(), noisy)

    assert [len(part) for part in seen] == [16, 16, 8]
    torch.testing.assert_close(found[0], gradients.mean(0).sum(0), rtol=1e-4, atol=1e-5)
    noise = noisy.detach() - images
    assert float(noise.std()) == pytest.approx(0.2, rel=0.05)
    assert abs(float(noise.mean())) < 0.01


def test_integrated_gradients_add_up_to_the_rise_of_the_logit(generator: torch.Generator) -> None:
    classifier = classifier_of(Convolutional(generator, activation=nn.Tanh), 12)
    images, targets = images_of(generator)
    with torch.no_grad():
        rise = (classifier(images) - classifier(torch.ones_like(images))).gather(1, targets[:, None])[:, 0]

    found = make("integrated-gradients", steps=200).attribute(classifier, images, targets)

    torch.testing.assert_close(found.sum((1, 2)), rise, rtol=1e-3, atol=1e-3)


def test_guided_grad_cam_of_a_relu_network_is_captums(generator: torch.Generator) -> None:
    from captum.attr import GuidedGradCam

    network = Convolutional(generator)
    classifier = classifier_of(network, 12)
    images, targets = images_of(generator)
    expected = GuidedGradCam(classifier, network.features).attribute(
        images.clone().requires_grad_(), target=targets, interpolate_mode="bilinear"
    )

    found = make("guided-grad-cam", layer="features", activations="relu").attribute(classifier, images, targets)

    torch.testing.assert_close(found, expected.detach().sum(1))


# Activations that guided backpropagation was not made for


def test_guided_grad_cam_never_gives_plain_gradients_under_its_name(generator: torch.Generator) -> None:
    network = Convolutional(generator, activation=nn.SiLU)
    classifier = classifier_of(network, 12)
    images, targets = images_of(generator)
    plain = make("smoothgrad", samples=1, noise=0.0, magnitude=False).attribute(classifier, images, targets)
    regions = make("grad-cam", layer="features").attribute(classifier, images, targets)

    explainer = make("guided-grad-cam", layer="features")
    found = explainer.attribute(classifier, images, targets)

    assert not torch.allclose(found, plain * regions, rtol=1e-3, atol=1e-6)
    assert any("SiLU" in note for note in explainer.notes(classifier))
    with pytest.raises(PluginError, match=r"knows ReLU only, and Convolutional has SiLU"):
        make("guided-grad-cam", layer="features", activations="relu").attribute(classifier, images, targets)


def test_guided_grad_cam_refuses_a_network_without_activations(generator: torch.Generator) -> None:
    classifier = classifier_of(Linear(8, generator), 8)
    images, targets = images_of(generator, size=8)
    with pytest.raises(PluginError, match=r"no activation modules.*smoothgrad"):
        make("guided-grad-cam").attribute(classifier, images, targets)


# What holds for every method


@pytest.mark.parametrize("method", METHODS)
def test_the_map_of_a_mirrored_picture_is_the_mirrored_map(generator: torch.Generator, method: str) -> None:
    network = Convolutional(generator)
    network.features.stride = (1, 1)
    for convolution in (network.first, network.features):
        # Kernels that are their own mirror image make a network that does not know left from right.
        convolution.weight.data += convolution.weight.data.flip(3)
    classifier = classifier_of(network, 12)
    images, targets = images_of(generator)
    options: dict[str, object] = {"layer": "features"} if "cam" in method else {}
    if method == "smoothgrad":
        options = {"noise": 0.0, "samples": 1}
    if method == "occlusion":
        options = {"window": 4, "stride": 2}
    explainer = make(method, **options)

    straight = explainer.attribute(classifier, images, targets)
    mirrored = explainer.attribute(classifier, images.flip(3), targets)

    torch.testing.assert_close(mirrored, straight.flip(2), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_map_depends_neither_on_its_neighbours_nor_on_the_pass(generator: torch.Generator, method: str) -> None:
    classifier = classifier_of(Convolutional(generator), 12)
    images, targets = images_of(generator, count=5)
    options: dict[str, object] = {"layer": "features"} if "cam" in method else {}
    together = make(method, **options).attribute(classifier, images, targets)
    small = options if method == "grad-cam" else {**options, "per_pass": 2}
    backwards = make(method, **small).attribute(classifier, images.flip(0), targets.flip(0)).flip(0)
    alone = torch.cat([make(method, **options).attribute(classifier, images[[i]], targets[[i]]) for i in range(5)])

    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(backwards, together, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["grad-cam", "smoothgrad"])
def test_several_classes_at_once_are_the_classes_one_by_one(generator: torch.Generator, method: str) -> None:
    classifier = classifier_of(Convolutional(generator), 12)
    images, _ = images_of(generator, count=4)
    targets = torch.stack([torch.randperm(CLASSES, generator=generator)[:3] for _ in range(4)])
    explainer = make(method, **({"layer": "features"} if method == "grad-cam" else {}))

    many = explainer.attribute_many(classifier, images, targets)
    single = torch.stack([explainer.attribute(classifier, images, column) for column in targets.unbind(1)], dim=1)

    torch.testing.assert_close(many, single, rtol=1e-4, atol=1e-6)


def test_the_seed_decides_the_noise(generator: torch.Generator) -> None:
    classifier = classifier_of(Convolutional(generator), 12)
    images, targets = images_of(generator)
    first, again, other = (
        make("smoothgrad", samples=4, seed=seed).attribute(classifier, images, targets) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, rtol=1e-2)


@pytest.mark.parametrize("backbone", SMALL_BACKBONES)
def test_every_method_explains_every_backbone(generator: torch.Generator, backbone: str) -> None:
    size = 64
    choice = choose_backbone(backbone, image_size=size)
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        classifier = Classifier(build_backbone(choice, CLASSES), taxonomy(), choice.input, size).train()
        other = Classifier(build_backbone(choice, CLASSES), taxonomy(), choice.input, size)
    first = next(classifier.parameters())
    first.requires_grad_(False)
    images, targets = images_of(generator, count=2, size=size)
    for method in METHODS:
        explainer = make(method, **QUICK.get(method, {}))
        with torch.inference_mode():
            made_in_inference = images.clone()
        maps = explainer.attribute(classifier, made_in_inference, targets)
        assert maps.shape == (2, size, size)
        assert maps.dtype == torch.float32
        assert torch.isfinite(maps).all()
        assert not maps.requires_grad
        if "cam" not in method:
            assert maps.std() > 0
            changed = explainer.attribute(other, images, targets)
            assert not torch.allclose(maps, changed, rtol=1e-2), f"{method} does not see the weights"
    # Grad-CAM without its ReLU, because a random network may have no region that speaks for a class.
    signed = make("grad-cam", positive=False)
    assert not torch.allclose(
        signed.attribute(classifier, images, targets), signed.attribute(other, images, targets), rtol=1e-2
    )
    assert classifier.training
    assert not first.requires_grad
    assert sum(parameter.requires_grad for parameter in classifier.parameters()) > 10
    assert all(parameter.grad is None for parameter in classifier.parameters())


# Layers


def small_classifier(backbone: str, size: int) -> Classifier:
    choice = choose_backbone(backbone, image_size=size)
    return Classifier(build_backbone(choice, CLASSES), taxonomy(), choice.input, size).eval()


def test_a_layer_is_chosen_by_its_size_or_path(generator: torch.Generator) -> None:
    classifier = small_classifier("coatnet:femto", 96)
    images, targets = images_of(generator, count=2, size=96)
    by_size = make("grad-cam", layer="12x12", positive=False).attribute(classifier, images, targets)
    by_path = make("grad-cam", layer="stages.1", positive=False).attribute(classifier, images, targets)
    own = make("grad-cam", positive=False).attribute(classifier, images, targets)
    last = make("grad-cam", layer="3x3", positive=False).attribute(classifier, images, targets)

    torch.testing.assert_close(by_size, by_path)
    torch.testing.assert_close(own, last)
    assert not torch.allclose(by_size, own, rtol=1e-2)


def test_a_layer_that_is_not_there_is_said_with_those_that_are(generator: torch.Generator) -> None:
    classifier = small_classifier("coatnet:femto", 96)
    images, targets = images_of(generator, count=1, size=96)
    with pytest.raises(PluginError, match=r"is 7x7 at an input of 96 px; there are: 48x48, 24x24, 12x12, 6x6, 3x3$"):
        make("grad-cam", layer="7x7").attribute(classifier, images, targets)
    with pytest.raises(PluginError, match=r"has no layer 'stages.9'; its stages: stem, stages.0"):
        make("grad-cam", layer="stages.9").attribute(classifier, images, targets)


@pytest.mark.parametrize("method", ["grad-cam", "guided-grad-cam"])
def test_a_network_without_a_spatial_layer_names_other_methods(generator: torch.Generator, method: str) -> None:
    classifier = small_classifier("timm:test_vit", 160)
    images, targets = images_of(generator, count=1, size=160)
    with pytest.raises(PluginError, match=r"not \(batch, channels, height, width\).*choose smoothgrad, integrated"):
        make(method).attribute(classifier, images, targets)
    maps = make("smoothgrad", samples=2).attribute(classifier, images, targets)
    assert maps.std() > 0


def test_channels_in_the_last_place_are_not_taken_for_a_height(generator: torch.Generator) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stage = nn.Conv2d(3, 5, 4, stride=4)
            self.turned = nn.Identity()
            self.head = nn.Linear(5, CLASSES)
            self.feature_info = [{"module": "turned", "num_chs": 5, "reduction": 4}]

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.turned(self.stage(images).permute(0, 2, 3, 1)).mean((1, 2)))
            return logits

    classifier = classifier_of(Last(), 16)
    images, targets = images_of(generator, size=16)
    with pytest.raises(PluginError, match=r"layer turned of Last gives \(1, 4, 4, 5\)"):
        make("grad-cam").attribute(classifier, images, targets)
    assert make("grad-cam", layer="stage").attribute(classifier, images, targets).shape == (3, 16, 16)


def test_the_plugins_own_choice_of_layer_comes_first(generator: torch.Generator) -> None:
    network = Convolutional(generator)
    classifier = classifier_of(network, 12)
    classifier._config = SimpleNamespace(backbone=SimpleNamespace(name="strange"))  # type: ignore[assignment]
    spec = BackboneSpec("strange", "", object, attribution_layer=lambda module: module.first)
    images, targets = images_of(generator)

    with registered(spec):
        own = make("grad-cam", positive=False).attribute(classifier, images, targets)
    named = make("grad-cam", layer="first", positive=False).attribute(classifier, images, targets)

    torch.testing.assert_close(own, named)


# Options and targets


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("smoothgrad", {"samples": 0}, r"samples: 0 is outside"),
        ("smoothgrad", {"colour": 1}, r"colour"),
        ("integrated-gradients", {"baseline": "pink"}, r"'pink' is none of white, black, mean"),
        ("guided-grad-cam", {"activations": "some"}, r"'some' is none of all, relu"),
    ],
)
def test_wrong_options_are_one_line(method: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        make(method, **options)


def test_a_target_that_is_no_class_is_refused(generator: torch.Generator) -> None:
    classifier = classifier_of(Convolutional(generator), 12)
    images, _ = images_of(generator)
    with pytest.raises(ValueError, match=r"0 \.\. 3"):
        make("smoothgrad").attribute(classifier, images, torch.tensor([0, 4, 1]))
