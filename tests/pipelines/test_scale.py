"""Patches of a field have the scale that the model was trained at, whichever way the field is classified."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import hematokit
from hematokit.cli.main import main
from hematokit.detection.windows import make_detector
from hematokit.explanation.at_cells import cell_crop, explain_at, joined_map
from hematokit.imaging.fieldfiles import open_field
from hematokit.imaging.geometry import patch_box
from hematokit.models.field_cells import classify_cells, cut_patches, field_patch_side
from hematokit.pipelines.explain_field import explain_field
from hematokit.pipelines.interactive import classify_live
from hematokit.plugins import MadeExplainer
from hematokit.plugins.specs import ExplainerSpec
from hematokit.synthetic import PIXEL_SIZE_UM, synthesize_field
from tinykit import TINY, write_crops

FAST: dict[str, Any] = {"device": "cpu", "runtime": "torch"}
COARSE = 2 * PIXEL_SIZE_UM


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn field at twice the pixel size of the drawn crops, which its file does not state."""
    path = tmp_path_factory.mktemp("coarse") / "coarse.png"
    drawn = Image.fromarray(synthesize_field(1200, 1400, cells=20, seed=4).pixels)
    drawn.resize((700, 600), Image.Resampling.LANCZOS).save(path)
    return path


def scores(cells: pd.DataFrame) -> pd.DataFrame:
    table = cells.set_index("cell_id")
    return table[sorted(name for name in table.columns if name.startswith("p_"))].sort_index().astype(float)


def assert_same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(scores(one), scores(other), atol=2e-5, check_dtype=False)


@pytest.fixture(scope="module")
def expected(coarse: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Cells classified by the model that records no pixel size, which is given by hand."""
    out = tmp_path_factory.mktemp("expected") / "out"
    hematokit.classify([coarse], tiny_run, out, pixel_size_um=COARSE, model_pixel_size_um=PIXEL_SIZE_UM, **FAST)
    cells = pd.read_parquet(out / "fields" / "coarse" / "cells.parquet")
    assert len(cells) > 8
    return cells


def test_what_the_bundle_records_is_what_was_given_by_hand(
    coarse: Path, measured_run: Path, tiny_run: Path, expected: pd.DataFrame, tmp_path: Path
) -> None:
    known = hematokit.classify([coarse], measured_run, tmp_path / "known", pixel_size_um=COARSE, **FAST)
    assert_same(pd.read_parquet(tmp_path / "known" / "fields" / "coarse" / "cells.parquet"), expected)
    assert known.warnings == []
    assert "pixel size" not in (tmp_path / "known" / "report.html").read_text()
    unknown = hematokit.classify([coarse], tiny_run, tmp_path / "unknown", pixel_size_um=COARSE, **FAST)
    other = scores(pd.read_parquet(tmp_path / "unknown" / "fields" / "coarse" / "cells.parquet"))
    assert np.abs(other - scores(expected)).to_numpy().max() > 0.01
    assert len(unknown.warnings) == 1
    assert "pixel size that the model was trained at is not known" in unknown.warnings[0]


def test_every_way_cuts_the_same_patches(
    coarse: Path, measured_run: Path, expected: pd.DataFrame, tmp_path: Path
) -> None:
    model = hematokit.load_model(measured_run, device="cpu")
    with open_field(coarse, pixel_size_um=COARSE) as field:
        assert field_patch_side(field, model) == model.patch_size // 2
        plain = expected.drop(columns=[name for name in expected if name.startswith("p_")])
        plain = plain.drop(columns=["predicted", "probability", "reviewed"])
        assert_same(classify_cells(field, plain, model), expected)
        live = list(classify_live(field, make_detector("nuclei"), model, field_id="coarse"))
        assert_same(pd.concat(live[1:], ignore_index=True), expected)
        place = expected.iloc[0]
        one = hematokit.classify_one(field, model, place["y"], place["x"], field_id="coarse")
        assert scores(one).iloc[0].to_dict() == pytest.approx(
            scores(expected).loc[place["cell_id"]].to_dict(), abs=2e-5
        )
    explained = explain_field(
        coarse, measured_run, tmp_path / "why", methods=["grad-cam"], pixel_size_um=COARSE, figures=False, device="cpu"
    )
    assert explained.cells.set_index("cell_id")["probability"].to_dict() == pytest.approx(
        expected.set_index("cell_id")["probability"].to_dict(), abs=2e-5
    )
    assert not any("pixel size" in note for note in explained.notes)


def test_the_command_line_says_which_side_is_unknown(
    coarse: Path, measured_run: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    field, model = "the pixel size of 1 field is not known", "the pixel size that the model was trained at is not known"
    cases = [
        (measured_run, ["--pixel-size", COARSE], []),
        (measured_run, [], [field]),
        (tiny_run, ["--pixel-size", COARSE], [model]),
        (tiny_run, [], [field, model]),
        (tiny_run, ["--pixel-size", COARSE, "--model-pixel-size", PIXEL_SIZE_UM], []),
    ]
    for number, (run, options, warnings) in enumerate(cases):
        out = tmp_path / str(number)
        words = [coarse, "--model", run, "--output", out, "--device", "cpu", "--runtime", "torch", *options]
        assert main(["classify", *map(str, words)]) == 0
        said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Warning: the pixel size")]
        assert len(said) == len(warnings)
        assert all(f"Warning: {warning}" in line for line, warning in zip(said, warnings, strict=True))
        assert all("--pixel-size" in line or "--model-pixel-size" in line for line in said)
        assert all(warning[4:] in (out / "report.html").read_text() for warning in warnings)
        assert main(["classify", *map(str, words), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)["warnings"]
        assert [f"Warning: {warning}" for warning in told if "pixel size" in warning] == said
        notes = ["explain", str(run), "--field", str(coarse), "--output", str(tmp_path / f"why{number}")]
        notes += ["--methods", "grad-cam", "--device", "cpu", "--no-figures", *map(str, options)]
        assert main(notes) == 0
        explained = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Warning: the pixel")]
        assert explained == said


def test_a_pixel_size_of_a_model_that_is_none_is_refused(
    coarse: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for size in ("0", "-1", "nan"):
        words = ["classify", coarse, "--model", tiny_run, "--output", tmp_path / "out", "--model-pixel-size", size]
        assert main([str(word) for word in words]) == 2
        assert "not possible" in capsys.readouterr().err


def test_maps_land_on_the_cell(tmp_path: Path, measured_run: Path) -> None:
    """A field of 0.25 um per pixel, one dark square in it, and a map that is what is dark in the patch."""
    pixels = np.full((200, 260, 3), 230, np.uint8)
    pixels[60:80, 150:170] = 40
    Image.fromarray(pixels).save(tmp_path / "field.png")
    model = hematokit.load_model(measured_run, device="cpu", runtime="torch")
    model._config = model.config.model_copy(update={"pixel_size_um": 0.09})

    class Dark:
        def attribute(self, classifier: Any, images: Any, targets: Any) -> Any:
            return 1 - images.mean(1)

    cells = pd.DataFrame({"cell_id": ["a"], "y": [72.0], "x": [158.0], "height": [20], "width": [20]})
    with open_field(tmp_path / "field.png", pixel_size_um=0.25) as field:
        explainer = MadeExplainer(ExplainerSpec("dark", "", object), "tests", "1", {}, Dark(), {})
        explained = list(explain_at(field, cells, model, explainer, ["BLA"]))
        side = round(model.patch_size * 0.09 / 0.25)
        assert explained[0].box == patch_box(72.0, 158.0, side)
        np.testing.assert_array_equal(cell_crop(field, cells, model), explained[0].patch)
        box, layer = joined_map(explained, field.height, field.width)
    dark = np.zeros((200, 260), bool)
    dark[box.slices] = layer > layer.max() / 2
    right = pixels[..., 0] < 128
    right &= np.isin(np.arange(200), np.arange(box.y0, box.y1))[:, None]
    right &= np.isin(np.arange(260), np.arange(box.x0, box.x1))[None]
    assert right.sum() > 200
    assert (dark & right).sum() / (dark | right).sum() > 0.85


def test_real_crops_in_a_coarser_field_come_back(real_data: Path, tmp_path: Path) -> None:
    """Nine crops at 0.086 um per pixel, side by side, resampled to 0.25: patches have the crops' scale again."""
    files = [
        sorted((real_data / "matek_bm8" / code).glob("*.jpg"))[number]
        for code in ("BLA", "EOS", "NGS")
        for number in range(3)
    ]
    crops = np.stack([np.asarray(Image.open(file)) for file in files])
    mosaic = crops.reshape(3, 3, 250, 250, 3).swapaxes(1, 2).reshape(750, 750, 3)
    side = round(750 * 0.086 / 0.25)
    Image.fromarray(mosaic).resize((side, side), Image.Resampling.LANCZOS).save(tmp_path / "field.png")
    centres = (np.stack(np.mgrid[:3, :3], -1).reshape(-1, 2) + 0.5) * side / 3
    cells = pd.DataFrame(centres, columns=["y", "x"])
    # What such a field can still show of the crops.
    blurred = [Image.fromarray(crop).resize((86, 86), Image.Resampling.LANCZOS).resize((250, 250)) for crop in crops]
    best = np.abs(np.stack(blurred).astype(float) - crops).mean()
    errors = {}
    for known in (0.086, None):
        model: Any = SimpleNamespace(patch_size=250, pixel_size_um=known)
        with open_field(tmp_path / "field.png", pixel_size_um=0.25) as field:
            patches = cut_patches(field, cells, 250, side=field_patch_side(field, model))
        errors[known] = np.abs(patches.astype(float) - crops).mean()
    assert errors[0.086] < best + 2
    assert errors[None] > 5 * errors[0.086]


def test_from_import_to_patches_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Import and train as a user types it; a field of another pixel size; the patches that the model gets."""
    crops = write_crops(tmp_path / "crops", {"BLA": 16, "LYT": 16})
    store, run = tmp_path / "store.zarr", tmp_path / "run"
    drawn = Image.fromarray(synthesize_field(600, 800, cells=8, seed=5).pixels)
    dots = 25_400 / COARSE
    drawn.resize((400, 300), Image.Resampling.LANCZOS).save(tmp_path / "field.png", dpi=(dots, dots))
    settings = {key: value for key, value in TINY.items() if key not in ("backbone", "epochs")}
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    commands = [
        ["import", crops, store, "--patch-size", 64, "--pixel-size", 0.08625],
        ["split", store, "--fractions", 0.6, 0.2, 0.2],
        ["train", store, "--output", run, "--backbone", "timm:test_resnet", "--epochs", 1, *words],
        ["export", run, "--output", tmp_path / "model.onnx"],
        ["classify", tmp_path / "field.png", "--model", run, "--output", tmp_path / "a", "--runtime", "torch"],
        ["classify", tmp_path / "field.png", "--model", tmp_path / "model.onnx", "--output", tmp_path / "b"],
    ]
    for command in commands:
        assert main([str(word) for word in command]) == 0
        said = capsys.readouterr().out
        assert not [line for line in said.splitlines() if line.startswith("Warning: ") and "pixel" in line]
    found = pd.read_parquet(tmp_path / "a" / "fields" / "field" / "cells.parquet")
    assert_same(pd.read_parquet(tmp_path / "b" / "fields" / "field" / "cells.parquet"), found)
    model = hematokit.load_model(run, device="cpu")
    with open_field(tmp_path / "field.png") as field:
        patches = cut_patches(field, found, 64, side=32)
    direct = model.predict(patches)
    np.testing.assert_allclose(direct["p_BLA"], found["p_BLA"], atol=2e-5)
