"""The folder for WSInfer and QuPath, read as they read it: torch.jit.load and config.json, nothing of this project."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from formatkit import CARD, FAMILIES, MakeModel, Patches, ignore
from hematokit.errors import ModelError
from hematokit.models.formats.wsinfer import write

CONSUMER = """
import json, sys
import numpy as np
for name in ("hematokit", "timm"):
    sys.modules[name] = None
import torch
from PIL import Image
from torchvision import transforms

folder, crops, result = sys.argv[1:]
config = json.load(open(folder + "/config.json"))
steps = []
for step in config["transform"]:
    assert step["name"] in ("Resize", "ToTensor", "Normalize"), step
    steps.append(getattr(transforms, step["name"])(**step.get("arguments", {})))
prepare = transforms.Compose(steps)
model = torch.jit.load(folder + "/torchscript_model.pt", map_location="cpu").eval()
images = torch.stack([prepare(Image.fromarray(crop)) for crop in np.load(crops)])
with torch.inference_mode():
    logits = model(images)
np.save(result, torch.softmax(logits, 1).numpy())
"""


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_traced_and_repeated_at_every_batch(
    name: str, make_model: MakeModel, crops: Callable[[int], Patches], tmp_path: Path
) -> None:
    facts = write(make_model(name, side=80), tmp_path / "out", card=CARD, samples=crops(80), log=ignore)
    assert facts["parity"]["classes_changed"] == 0
    assert facts["parity"]["max_logit_difference"] <= 1e-4
    assert facts["parity"]["batches"] == [1, 2, 7]


def test_a_consumer_without_this_project_gets_the_same_probabilities(
    make_model: MakeModel, crops: Callable[[int], Patches], tmp_path: Path
) -> None:
    model, given = make_model("coatnet:femto", side=80), crops(80)
    write(model, tmp_path / "out", card=CARD, samples=given, log=ignore)
    np.save(tmp_path / "crops.npy", given)
    result = tmp_path / "result.npy"
    arguments = [str(tmp_path / "out"), str(tmp_path / "crops.npy"), str(result)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CONSUMER, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = model.predict(given)[[f"p_{code}" for code in model.codes]].to_numpy()
    np.testing.assert_allclose(np.load(result), expected, atol=1e-5)


def test_the_configuration_has_what_the_zoo_asks_for(
    make_model: MakeModel, crops: Callable[[int], Patches], tmp_path: Path
) -> None:
    write(make_model(), tmp_path / "out", card=CARD, samples=crops(64), log=ignore, licence="CC-BY-4.0")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["spec_version"] == "1.0"
    assert isinstance(config["architecture"], str)
    assert (config["num_classes"], config["class_names"]) == (3, ["BLA", "NGS", "LYT"])
    assert (config["patch_size_pixels"], config["spacing_um_px"]) == (64, 0.25)
    assert {step["name"] for step in config["transform"]} <= {"Resize", "ToTensor", "Normalize"}
    assert config["hematokit"]["research_use_only"] is True
    assert "research use only" in config["hematokit"]["notice"]
    assert config["hematokit"]["license"] == "CC-BY-4.0"
    assert config["hematokit"]["taxonomy"]["classes"][0]["colour"].startswith("#")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "torchscript_model.pt",
    ]


def test_the_readme_says_that_the_temperature_is_inside(
    make_model: MakeModel, crops: Callable[[int], Patches], tmp_path: Path
) -> None:
    """The card's table names a temperature: a reader who divided by it once more would have other probabilities."""
    write(make_model(), tmp_path / "out", card=CARD, samples=crops(64), log=ignore)
    text = " ".join((tmp_path / "out" / "README.md").read_text().split())
    assert text.index("do not divide by the temperature again") < text.index("## Validation")
    assert "squares of 16 µm (64 px of 0.25 µm)" in text


def test_wsinfers_own_schema_takes_the_configuration(
    make_model: MakeModel, crops: Callable[[int], Patches], tmp_path: Path
) -> None:
    client = pytest.importorskip("wsinfer_zoo.client")
    write(make_model(), tmp_path / "out", card=CARD, samples=crops(64), log=ignore)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert client.validate_config_json(config) is True
    assert client.ModelConfiguration.from_dict(config).get_slide_patch_size(0.125) == 128


def test_a_model_without_a_pixel_size_is_refused_before_anything_is_written(
    make_model: MakeModel, crops: Callable[[int], Patches], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="--pixel-size"):
        write(make_model(pixel_size_um=None), tmp_path / "out", card=CARD, samples=crops(64), log=ignore)
    assert not (tmp_path / "out").exists()


class Branching(torch.nn.Module):
    """Decides by what it sees which way to go, which a trace cannot repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(3, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(images.mean((2, 3)))
        return logits if float(images[0].mean()) > 0 else 5 - logits


def test_a_network_that_a_trace_does_not_repeat_is_refused_with_the_numbers(
    make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model()
    model.backbone = Branching()
    bright_and_dark = np.stack([np.full((64, 64, 3), value, np.uint8) for value in (255, 0)])
    with pytest.raises(ModelError, match=r"logits differ by up to .* and [12] of 2 crops change class"):
        write(model, tmp_path / "out", card=CARD, samples=bright_and_dark, log=ignore)


class Untraceable(torch.nn.Module):
    """Gives what no trace can hold."""

    def forward(self, images: torch.Tensor) -> object:
        return object()


def test_a_network_that_cannot_be_traced_is_named_in_one_line(
    make_model: MakeModel, crops: Callable[[int], Patches], tmp_path: Path
) -> None:
    model = make_model()
    model.backbone = Untraceable()
    with pytest.raises(ModelError, match="Untraceable cannot be traced") as caught:
        write(model, tmp_path / "out", card=CARD, samples=crops(64), log=ignore)
    assert "\n" not in str(caught.value)
