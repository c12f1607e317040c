"""The folder for timm, loaded by timm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from formatkit import CARD, FAMILIES, MakeModel, Patches, ignore
from hematokit.errors import ModelError
from hematokit.models.formats.huggingface import write


@pytest.mark.parametrize("name", FAMILIES)
def test_timm_loads_the_folder_and_repeats_the_answers(
    name: str, make_model: MakeModel, crops: Callable[[int], Patches], tmp_path: Path
) -> None:
    # CoAtNet femto is a configuration of our own: timm has to build it from what the folder says.
    model = make_model(name, side=64, size=64)
    facts = write(model, tmp_path / "out", card=CARD, samples=crops(64), log=ignore)
    assert facts["parity"]["classes_changed"] == 0
    assert facts["parity"]["max_logit_difference"] <= 1e-4

    network = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    data = timm.data.resolve_model_data_config(network)
    assert data["input_size"] == (3, 64, 64)
    assert tuple(data["mean"]) == pytest.approx(model.input_spec.mean)
    assert tuple(data["std"]) == pytest.approx(model.input_spec.std)
    prepare = timm.data.create_transform(**data, is_training=False)
    with torch.inference_mode():
        found = network(torch.stack([prepare(Image.fromarray(crop)) for crop in crops(64)])).numpy()
    np.testing.assert_allclose(found, model.logits(crops(64)), atol=1e-4)
    assert network.num_classes == 3
    assert network.pretrained_cfg["label_names"] == ["BLA", "NGS", "LYT"]
    assert network.pretrained_cfg["label_descriptions"]["NGS"] == "Segmented neutrophil"


def test_the_folder_holds_no_pickle_and_says_what_the_numbers_mean(
    make_model: MakeModel, crops: Callable[[int], Patches], tmp_path: Path
) -> None:
    write(make_model(), tmp_path / "out", card=CARD, samples=crops(64), log=ignore)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1, "every file is as readable as the others"
    own = json.loads((tmp_path / "out" / "config.json").read_text())["hematokit"]
    assert own["temperature"] == pytest.approx(1.7)
    assert own["research_use_only"] is True
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\n")
    assert 'timm.create_model("local-dir:' in card
    assert "divide them by 1.7" in card
    assert card.index("Load it with timm") < card.index("## Validation")


@pytest.mark.parametrize(
    ("licence", "front"),
    [
        ("CC-BY-4.0", {"license": "cc-by-4.0"}),
        ('Ours: "ask" first', {"license": "other", "license_name": 'Ours: "ask" first'}),
        ("", {}),
    ],
)
def test_the_licence_stands_where_the_hub_reads_it(
    make_model: MakeModel, crops: Callable[[int], Patches], tmp_path: Path, licence: str, front: dict[str, str]
) -> None:
    write(make_model(), tmp_path / "out", card=CARD, samples=crops(64), log=ignore, licence=licence)
    head = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n")[1])
    assert {key: value for key, value in head.items() if key.startswith("license")} == front
    read = ModelCard.load(tmp_path / "out" / "README.md").data
    assert (read.license, read.get("license_name")) == (front.get("license"), front.get("license_name"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["hematokit"]["license"] == (licence or "not stated")
    assert "research use only" in config["hematokit"]["notice"]


@pytest.mark.parametrize("side", [72, 93, 99])
def test_timms_own_transform_cuts_the_same_middle_out(
    side: int, make_model: MakeModel, crops: Callable[[int], Patches], tmp_path: Path
) -> None:
    facts = write(make_model(side=side, fit="crop"), tmp_path / "out", card=CARD, samples=crops(side), log=ignore)
    # Odd margins leave a choice of half a pixel; even ones do not.
    assert facts["timm_transform"]["patches"] == 8
    if (side - 64) % 2 == 0:
        assert facts["timm_transform"]["max_logit_difference"] <= 1e-4


def test_padding_by_reflection_is_said_to_be_out_of_timms_reach(
    make_model: MakeModel, crops: Callable[[int], Patches], tmp_path: Path
) -> None:
    facts = write(make_model(side=60, size=64), tmp_path / "out", card=CARD, samples=crops(60), log=ignore)
    assert facts["parity"]["max_logit_difference"] <= 1e-4
    assert "padded by reflection" in (tmp_path / "out" / "README.md").read_text()


def test_a_backbone_that_timm_did_not_make_is_refused_before_anything_is_written(
    make_model: MakeModel, crops: Callable[[int], Patches], tmp_path: Path
) -> None:
    model = make_model()
    model.backbone = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 3))
    with pytest.raises(ModelError, match="is no timm model"):
        write(model, tmp_path / "out", card=CARD, samples=crops(64), log=ignore)
    assert not (tmp_path / "out").exists()
