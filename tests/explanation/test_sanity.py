"""The sanity checks against explainers whose dependence on the network is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from checkkit import SIDE, Fixed, InputGradient, linear_classifier, noise_images, staged_classifier
from hematokit.errors import PluginError
from hematokit.explanation.checks.data_randomisation import (
    RetrainedModel,
    RetrainedModels,
    data_randomisation,
    shuffled_labels,
)
from hematokit.explanation.checks.faithfulness import centred_gaussian
from hematokit.explanation.checks.sanity import (
    EdgeDetector,
    network_blocks,
    parameter_randomisation,
    randomise_block,
    refit_norms,
)
from hematokit.pipelines.retrain import retrain_models
from hematokit.store import open_store
from tinykit import TINY


def targets(count: int) -> torch.Tensor:
    return torch.ones(count, dtype=torch.int64)


@pytest.fixture
def linear():
    return linear_classifier(np.random.default_rng(5).standard_normal((3, SIDE, SIDE)))


# Blocks


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("coatnet_pico_rw_224", ["head", "norm", "stages.3", "stages.2", "stages.1", "stages.0", "stem"]),
        ("resnet18", ["fc", "layer4", "layer3", "layer2", "layer1", "conv1 + bn1"]),
        (
            "tf_efficientnetv2_b0",
            ["classifier", "conv_head + bn2", *(f"blocks.{n}" for n in (5, 4, 3, 2, 1, 0)), "conv_stem + bn1"],
        ),
        (
            "vit_tiny_patch16_224",
            ["head", "norm", *(f"blocks.{n}" for n in range(11, -1, -1)), "patch_embed", "own parameters"],
        ),
    ],
)
def test_blocks_run_from_head_to_stem_and_hold_every_parameter(model: str, expected: list[str]) -> None:
    network = timm.create_model(model, num_classes=5)
    blocks = network_blocks(network)
    assert [block.name for block in blocks] == expected
    assert sum(block.parameters for block in blocks) == sum(p.numel() for p in network.parameters())


def test_more_blocks_on_demand_and_the_head_is_the_head_wherever_it_stands() -> None:
    network = timm.create_model("resnet18", num_classes=5)
    fine = network_blocks(network, fewest=9)
    assert len(fine) >= 9
    assert fine[0].name == "fc"
    assert sum(block.parameters for block in fine) == sum(p.numel() for p in network.parameters())
    classifier = staged_classifier()
    backwards = torch.nn.Module()
    backwards.head, backwards.body = classifier.backbone.head, classifier.backbone.stages
    backwards.get_classifier = lambda: backwards.head
    assert network_blocks(backwards)[0].name == "head"


@pytest.mark.parametrize("model", ["coatnet_pico_rw_224", "tf_efficientnetv2_b0", "test_vit"])
def test_every_weight_of_a_block_changes_and_no_other(model: str) -> None:
    network = timm.create_model(model, num_classes=5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))  # as trained: no norm at its start
    before = {name: value.clone() for name, value in network.state_dict().items()}
    blocks = network_blocks(network)
    randomise_block(network, blocks[1], (0, 1))
    touched = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    inside = {
        name for name, _ in network.named_parameters() if any(name.startswith(f"{path}.") for path in blocks[1].paths)
    }
    assert touched == inside
    for block in blocks:
        randomise_block(network, block, (0, 1))
    assert all(not torch.equal(value, before[name]) for name, value in network.named_parameters() if value.numel() > 1)


def test_the_same_seed_gives_the_same_weights_and_leaves_torchs_chance_alone() -> None:
    weights = []
    for seed in (1, 1, 2):
        network = staged_classifier().backbone
        torch.manual_seed(9)
        randomise_block(network, network_blocks(network)[0], (seed,))
        weights.append((network.head.weight.clone(), torch.rand(1)))
    assert torch.equal(weights[0][0], weights[1][0])
    assert not torch.equal(weights[0][0], weights[2][0])
    assert weights[0][1] == weights[2][1]


def test_norms_of_random_blocks_fit_their_input_again() -> None:
    classifier = staged_classifier()
    blocks = network_blocks(classifier.backbone)
    images = noise_images(32, 1)
    for block in blocks:
        randomise_block(classifier.backbone, block, (0,))
    refit_norms(classifier.backbone, blocks, classifier, [images])
    seen: list[torch.Tensor] = []
    norm = classifier.backbone.stages[1][1]
    hook = norm.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        classifier(images)
    hook.remove()
    assert not norm.training
    torch.testing.assert_close(seen[0].mean(dim=(0, 2, 3)), torch.zeros(12), atol=0.02, rtol=0)
    torch.testing.assert_close(seen[0].std(dim=(0, 2, 3)), torch.ones(12), atol=0.05, rtol=0)


# Random weights


def test_the_gradient_of_a_linear_network_is_sensitive(linear) -> None:
    found = parameter_randomisation(linear, InputGradient(), noise_images(16, 2), targets(16), examples=[0, 3])
    assert found.sensitivity.outcome == "sensitive", found.sensitivity
    assert found.signed
    assert found.answers_from == "1"  # its only layer
    repeated, random = found.table.iloc[0], found.table.iloc[-1]
    assert repeated["block"] == "repeated"
    assert repeated["spearman"] == pytest.approx(1.0)
    assert repeated["predictions_changed"] == 0
    assert abs(random["signed_spearman"]) < 0.1
    assert random["spearman_low"] <= random["spearman"] <= random["spearman_high"]
    assert random["randomised"] == 1
    assert found.examples["repeated"].shape == (2, SIDE, SIDE)


def test_an_edge_detector_is_not(linear) -> None:
    found = parameter_randomisation(linear, EdgeDetector(), noise_images(16, 2), targets(16))
    assert found.sensitivity.outcome == "not sensitive", found.sensitivity
    assert found.table["spearman"].tolist() == pytest.approx([1.0] * len(found.table))
    assert found.edges["spearman"].mean == pytest.approx(1.0)
    assert found.answers_from == ""
    assert np.isnan(found.table["signed_ssim"]).all()


def test_maps_that_are_the_same_for_all_cells_are_not(linear) -> None:
    hill = torch.from_numpy(centred_gaussian(SIDE))
    explainer = Fixed(lambda images: hill.expand(len(images), SIDE, SIDE))
    assert (
        parameter_randomisation(linear, explainer, noise_images(12, 3), targets(12)).sensitivity.outcome
        == "not sensitive"
    )


def test_maps_that_change_by_chance_are_not(linear) -> None:
    generator = torch.Generator().manual_seed(0)
    explainer = Fixed(lambda images: torch.rand(len(images), SIDE, SIDE, generator=generator))
    found = parameter_randomisation(linear, explainer, noise_images(12, 3), targets(12))
    assert found.table["spearman"].abs().max() < 0.2  # they change, but no more than when nothing is random
    assert found.sensitivity.outcome == "not sensitive"


def test_a_cascade_runs_through_all_blocks_and_leaves_the_network_alone() -> None:
    classifier = staged_classifier().train()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    calls: list[tuple[int, int | None, str]] = []
    found = parameter_randomisation(
        classifier,
        InputGradient(),
        noise_images(10, 4),
        targets(10),
        batch_size=4,
        draws=2,
        progress=lambda *call: calls.append(call),
    )
    assert found.table["block"].tolist() == ["repeated", "head", "norm", "stages.1", "stages.0", "stem"]
    assert found.table["randomised"].is_monotonic_increasing
    words = dict(zip(found.table["block"], found.table["verdict"], strict=True))
    if found.answers_from:
        assert words[found.answers_from] == words["stem"] == "sensitive"
    else:
        assert words["stem"] != "sensitive"
    assert classifier.training
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
    assert [call[0] for call in calls] == sorted(call[0] for call in calls)
    assert calls[-1][0] == calls[-1][1]
    again = parameter_randomisation(
        classifier, InputGradient(), noise_images(10, 4), targets(10), batch_size=4, draws=2
    )
    assert again.table.equals(found.table)


def test_an_explainer_that_returns_no_maps_is_named(linear) -> None:
    explainer = Fixed(lambda images: images)
    with pytest.raises(PluginError, match="Fixed"):
        parameter_randomisation(linear, explainer, noise_images(3, 0), targets(3))


# Shuffled labels


def test_shuffling_keeps_the_counts_and_nothing_else() -> None:
    labels = np.repeat(["BLA", "LYT", "NGS"], [50, 30, 20])
    mixed = shuffled_labels(labels, 1)
    assert sorted(mixed) == sorted(labels)
    assert 0.2 < (mixed == labels).mean() < 0.6
    assert (shuffled_labels(labels, 1) == mixed).all()


@pytest.fixture(scope="module")
def retrained(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("retrained")
    settings = {**TINY, "epochs": 12, "augmenter": "none", "balance": "none"}
    made = retrain_models(open_store(tiny_store), settings, per_class=20, device="cpu", folder=folder)
    assert list(folder.iterdir()) == []  # nothing is left behind
    return made


def test_retrained_models_learn_the_labels_they_were_given(retrained) -> None:
    assert retrained.cells > 30
    assert retrained.true.fit > 0.7  # colours tell the class, but for some that mislead
    assert retrained.true.fit > retrained.shuffled.fit + 0.1
    assert retrained.true.classifier.codes == retrained.shuffled.classifier.codes


def test_shuffled_labels_change_gradients_and_no_edges(retrained, tiny_store: Path) -> None:
    store = open_store(tiny_store)
    cells = store.cells
    cells = cells[(cells["split"] == "test") & (cells["label"] != "ART")]
    patches, labels = store.patches(cells["cell_id"].tolist()), cells["label"].tolist()
    gradient = data_randomisation(retrained, InputGradient(), patches, labels, examples=[0, 1])
    assert gradient.table["model"].tolist() == ["repeated", "shuffled labels", "other seed", "other cells"]
    assert gradient.table["spearman"].iloc[0] == pytest.approx(1)
    assert gradient.table["spearman"].iloc[1] < 0.6
    # Networks this small differ between seeds as much as between labels, and the check does not claim otherwise.
    assert gradient.sensitivity.outcome in ("sensitive", "unclear")
    assert list(gradient.examples) == ["true labels", "shuffled labels", "other seed"]
    edges = data_randomisation(retrained, EdgeDetector(), patches, labels)
    assert edges.sensitivity.outcome == "not sensitive"
    assert edges.seed_minus_shuffled["spearman"].mean == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("fit", "alike", "word", "said"),
    [
        (0.9, True, "sensitive", "falls"),
        (0.2, True, "unclear", "learned only 20 %"),
        (0.9, False, "unclear", "another seed"),
    ],
)
def test_a_change_counts_only_if_it_is_the_labels(fit: float, alike: bool, word: str, said: str) -> None:
    random = np.random.default_rng(6)
    true, shuffled, noise = random.standard_normal((3, 3, SIDE, SIDE))
    models = [linear_classifier(weights) for weights in (true, shuffled, true + 0.1 * noise if alike else noise)]
    made = RetrainedModels(
        RetrainedModel(models[0], 0.95), RetrainedModel(models[1], fit), RetrainedModel(models[2], 0.95), 100, {}
    )
    patches = random.integers(0, 256, (12, SIDE, SIDE, 3), dtype=np.uint8)
    found = data_randomisation(made, InputGradient(), patches, ["BBB"] * 12)
    assert found.sensitivity.outcome == word, found.sensitivity
    assert said in found.sensitivity.reason
