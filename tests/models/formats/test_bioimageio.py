"""The BioImage.IO package, validated by bioimageio.spec and run by bioimageio.core."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from formatkit import CARD, MakeModel, Patches, build_model, ignore
from hematokit.errors import ModelError
from hematokit.models import Classifier
from hematokit.models.formats.bioimageio import write
from hematokit.models.formats.packages import drawn_crops

core = pytest.importorskip("bioimageio.core")


def write_package(
    model: Classifier, folder: Path, samples: Patches, licence: str = "CC-BY-4.0"
) -> tuple[Path, dict[str, Any]]:
    package = folder / "model.zip"
    return package, write(model, package, card=CARD, samples=samples, log=ignore, licence=licence)


@dataclass(frozen=True)
class Written:
    model: Classifier
    folder: Path
    package: Path
    facts: dict[str, Any]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, crops: Callable[[int], Patches]) -> Written:
    folder = tmp_path_factory.mktemp("package")
    model = build_model(folder / "bundle", side=80, size=64)
    return Written(model, folder, *write_package(model, folder, crops(80)))


def test_the_package_passes_the_zoos_own_test_and_repeats_the_model(written: Written) -> None:
    assert written.facts["spec_status"] == "passed"
    assert written.facts["parity"]["max_logit_difference"] <= 1e-4
    assert written.facts["parity"]["classes_changed"] == 0
    # Left alone beside it: nothing.
    assert sorted(path.name for path in written.folder.iterdir()) == ["bundle", "model.zip"]


def test_bioimageio_core_predicts_as_the_model_does(written: Written, crops: Callable[[int], Patches]) -> None:
    model, given = written.model, crops(80)[:3]
    found = core.predict(model=core.load_model_description(written.package), inputs={"patches": given}).members
    values = {str(name): np.asarray(tensor.data) for name, tensor in found.items()}
    np.testing.assert_allclose(values["logits"], model.logits(given), atol=1e-4)
    expected = model.predict(given)[[f"p_{code}" for code in model.codes]].to_numpy()
    np.testing.assert_allclose(values["probabilities"], expected, atol=1e-5)


def test_the_description_says_classes_scale_and_research_use(written: Written) -> None:
    description = core.load_model_description(written.package)
    by_id = {str(axis.id): axis for axis in description.inputs[0].axes}
    assert (by_id["y"].size, by_id["y"].scale, by_id["y"].unit) == (80, 0.25, "micrometer")
    assert [str(code) for code in description.outputs[0].axes[1].channel_names] == ["BLA", "NGS", "LYT"]
    assert "research use only" in description.description
    assert description.config.hematokit["temperature"] == pytest.approx(1.7)
    assert str(description.license) == description.config.hematokit["license"] == "CC-BY-4.0"
    assert "research use only" in description.config.hematokit["notice"]


def test_a_licence_of_ones_own_becomes_a_file(tmp_path: Path, crops: Callable[[int], Patches]) -> None:
    model = build_model(tmp_path / "bundle")
    package, facts = write_package(model, tmp_path, crops(64), licence="Ask us before you use it")
    assert facts["spec_status"] == "passed"
    with zipfile.ZipFile(package) as archive:
        assert archive.read("LICENSE.txt").decode() == "Ask us before you use it\n"


def test_no_crop_of_the_training_set_is_in_the_package(written: Written) -> None:
    with zipfile.ZipFile(written.package) as archive:
        readme = archive.read("README.md").decode()
        assert "## Run it with bioimageio.core" in readme
        assert readme.endswith(CARD.partition("\n## ")[2])
        inside = np.load(archive.open("test_patches.npy"))
    drawn = drawn_crops(["BLA", "PMO", "NGS", "EOS", "MON", "LYT", "PLM", "EBO"], 80)
    np.testing.assert_array_equal(inside, drawn)


def test_without_bioimageio_one_line_says_what_to_install(
    make_model: MakeModel, crops: Callable[[int], Patches], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bioimageio.core", None)
    with pytest.raises(ModelError, match=r"pip install 'hematokit\[bioimageio\]'"):
        write_package(make_model(), tmp_path, crops(64))
    assert not (tmp_path / "model.zip").exists()


class Drifting(torch.nn.Module):
    """Gives other numbers each time it is asked, as no file can."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(3, 3)
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        logits: torch.Tensor = self.head(images.mean((2, 3)))
        return logits + self.calls


def test_a_package_that_does_not_repeat_the_model_is_not_kept(
    make_model: MakeModel, crops: Callable[[int], Patches], tmp_path: Path
) -> None:
    model = make_model()
    model.backbone = Drifting()
    with pytest.raises(ModelError, match="nothing was written") as caught:
        write_package(model, tmp_path, crops(64))
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]
