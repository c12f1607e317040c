"""``hematokit explain`` from the command line to the files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from PIL import Image

from hematokit.cli.main import main
from hematokit.errors import ExplanationError
from hematokit.explanation.running import explain_cells
from hematokit.models import load_model
from hematokit.pipelines.explain import explain
from hematokit.pipelines.explain_field import explain_field
from hematokit.plugins import load_plugins, registered
from hematokit.plugins.specs import DetectorSpec
from hematokit.store import open_store
from tinykit import write_crops

QUICK = ["--set", "smoothgrad.samples=3"]
Run = Callable[..., Any]


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command on the tiny run; gives the exit code, the JSON document or lines, and what went to errors."""

    def call(*words: object, output: str = "why") -> Any:
        arguments = ["explain", str(tiny_run), "--output", str(tmp_path / output), "--device", "cpu", *map(str, words)]
        code = main(arguments)
        said = capsys.readouterr()
        document = json.loads(said.out) if "--json" in arguments and code == 0 else said.out
        return code, document, said.err

    return call


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    group = zarr.open_group(folder / "attributions.zarr", mode="r")
    return {name: np.asarray(group[name]) for name in ("grad-cam", "smoothgrad")}


def test_maps_are_aligned_with_the_table_and_are_those_of_the_explainers(
    run: Run, tmp_path: Path, tiny_run: Path, tiny_store: Path
) -> None:
    code, document, _ = run("--per-class", 2, "--json", *QUICK)
    assert code == 0
    assert document["cells"] == 6
    assert document["paths"]["attributions"].endswith("attributions.zarr")

    cells = pd.read_parquet(tmp_path / "why" / "cells.parquet")
    model = load_model(tiny_run, "cpu")
    patches = open_store(tiny_store).patches(cells["cell_id"].tolist())
    expected = explain_cells(model, patches, options={"smoothgrad": {"samples": 3}})
    found = arrays_of(tmp_path / "why")
    for method, maps in expected.items():
        assert found[method].dtype == np.float32
        np.testing.assert_allclose(found[method], maps, rtol=1e-3, atol=1e-6)
    predictions = model.predict(patches)
    assert cells["predicted"].tolist() == predictions["predicted"].tolist() == cells["target"].tolist()
    np.testing.assert_allclose(cells["p_BLA"], predictions["p_BLA"], rtol=1e-4)
    assert cells["explained"].all()
    assert len(list((tmp_path / "why" / "cells").glob("*.png"))) == 6
    with Image.open(tmp_path / "why" / "classes.png") as figure:
        assert figure.width > 300


def test_the_same_seed_gives_the_same_maps_and_another_seed_other_cells(run: Run, tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        run("--per-class", 3, "--seed", seed, "--no-figures", *QUICK, output=name)
    one, two = arrays_of(tmp_path / "one"), arrays_of(tmp_path / "two")
    assert all(np.array_equal(one[method], two[method]) for method in one)
    ids = [pd.read_parquet(tmp_path / name / "cells.parquet")["cell_id"].tolist() for name in ("one", "three")]
    assert ids[0] != ids[1]
    assert not (tmp_path / "one" / "cells").exists()


def test_work_that_was_stopped_goes_on_where_it_was(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int, total: int | None, message: str) -> None:
        if done == 4 and not message:
            raise KeyboardInterrupt

    settings: dict[str, Any] = {
        "per_class": 3,
        "options": {"smoothgrad": {"samples": 3}},
        "batch_size": 2,
        "device": "cpu",
    }
    with pytest.raises(KeyboardInterrupt):
        explain(tiny_run, tmp_path / "why", progress=stop, **settings)
    half = pd.read_parquet(tmp_path / "why" / "cells.parquet")
    assert half["explained"].sum() == 4
    assert len(list((tmp_path / "why" / "cells").iterdir())) == 4

    calls: list[int] = []
    spec = load_plugins().explainers.get("grad-cam")
    explainer = type(spec.factory(**spec.resolve_options({})))
    original = explainer.attribute
    monkeypatch.setattr(
        explainer,
        "attribute",
        lambda self, model, images, targets: (calls.append(len(images)), original(self, model, images, targets))[1],
    )
    result = explain(tiny_run, tmp_path / "why", **settings)
    whole = explain(tiny_run, tmp_path / "whole", **settings)

    assert result.done_before == 4
    assert sum(calls) == 5 + 9
    for method in result.methods:
        np.testing.assert_array_equal(result.maps(method), whole.maps(method))
    pd.testing.assert_frame_equal(result.cells, whole.cells)


def test_other_settings_or_other_content_are_never_mixed_in(run: Run, tmp_path: Path) -> None:
    run("--per-class", 1, *QUICK)
    code, _, error = run("--per-class", 1, "--set", "smoothgrad.samples=4")
    assert code == 2
    assert "made with other methods; give another --output" in error
    code, _, error = run("--per-class", 2, *QUICK)
    assert "made with other cells" in error
    code, _, error = run("--per-class", 1, "--target", "BLA", *QUICK)
    assert "made with other target" in error
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    code, _, error = run("--per-class", 1, output="full")
    assert code == 2
    assert "holds something else" in error
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_images_may_be_listed_as_a_shell_does_it(run: Run, tmp_path: Path) -> None:
    write_crops(tmp_path / "crops", {"BLA": 2, "NGS": 1})
    files = sorted((tmp_path / "crops").rglob("*.png"))
    code, document, _ = run("--images", *files, "--methods", "grad-cam", "--target", "true", "--json")
    assert code == 0
    assert document["targets"] == {"BLA": 2, "NGS": 1}


def test_uncertain_cells_show_both_classes_and_their_maps(
    run: Run, tmp_path: Path, tiny_run: Path, tiny_store: Path
) -> None:
    words = ["--split", "all", "--per-class", 4, "--uncertain", "--min-probability", 1.0, "--methods", "grad-cam"]
    code, document, _ = run(*words, "--json")
    assert code == 0
    assert document["uncertain"] == 12
    doubtful = pd.read_parquet(tmp_path / "why" / "uncertain.parquet")
    maps = np.asarray(zarr.open_group(tmp_path / "why" / "uncertain.zarr", mode="r")["grad-cam"])
    model = load_model(tiny_run, "cpu")
    images = model.prepare(torch.from_numpy(open_store(tiny_store).patches(doubtful["cell_id"].tolist())))
    spec = load_plugins().explainers.get("grad-cam")
    explainer = spec.factory(**spec.resolve_options({}))
    for place, column in enumerate(("first", "second")):
        targets = torch.tensor([model.codes.index(code) for code in doubtful[column]])
        np.testing.assert_allclose(maps[:, place], explainer.attribute(model, images, targets), rtol=1e-3, atol=1e-6)
    assert sorted(path.name for path in (tmp_path / "why" / "uncertain").iterdir()) == [
        "sheet-001.png",
        "sheet-002.png",
    ]
    # Another threshold is another list of cells, not a fault of the folder.
    code, document, _ = run(*words[:-4], "--min-probability", 0.0, "--methods", "grad-cam", "--json")
    assert code == 0
    assert document["uncertain"] < 12


def test_a_call_that_failed_before_its_first_cell_can_be_corrected(run: Run) -> None:
    words = ["--per-class", 1, "--methods", "grad-cam", "--set"]
    assert run(*words, "grad-cam.layer=99x99")[0] == 2
    assert run(*words, "grad-cam.layer=8x8")[0] == 0
    assert run(*words, "grad-cam.layer=4x4")[0] == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--methods", "grad-kam"], "no explainer is called 'grad-kam'"),
        (["--methods", "grad-cam", "--set", "smoothgrad.samples=3"], "not among the methods"),
        (["--set", "samples=3"], "setting 'samples' does not exist"),
        (["--set", "smoothgrad.samples=many"], "is not a whole number"),
        (["--set", "grad-cam.layer=99x99"], "there are:"),
        (["--cells", "BLA_9999"], "has no cell 'BLA_9999'"),
        (["--target", "MON"], "no class 'MON'"),
        (["--split", "tset"], "no cell in a split 'tset'"),
        (["stray.png"], "images are given with --images"),
        (["--images", "stray.png", "--cells", "a"], "give one of --images and --store"),
        (["--field", "f.png", "--images", "a.png"], "give one of --field"),
        (["--sanity", "--uncertain"], "--uncertain has no effect"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(run: Run, tmp_path: Path, words: list[str], said: str) -> None:
    code, _, error = run(*words)
    assert code == 2
    assert said in error
    assert len(error.strip().splitlines()) == 1
    if "99x99" not in words[-1]:
        assert not (tmp_path / "why").exists()


PLACES = [(40.0, 50.0), (44.0, 90.0), (150.0, 170.0)]


class Knows:
    def detect(self, field: np.ndarray, pixel_size_um: float | None) -> pd.DataFrame:
        rows = [
            {"y": y, "x": x, "y0": y - 20, "x0": x - 20, "height": 40, "width": 40, "score": 1.0} for y, x in PLACES
        ]
        return pd.DataFrame(rows)


@pytest.fixture
def knows() -> Iterator[None]:
    with registered(DetectorSpec("knows", "for tests", Knows)):
        yield


@pytest.mark.usefixtures("knows")
def test_a_field_is_found_explained_and_laid_over(tiny_run: Path, tiny_store: Path, tmp_path: Path) -> None:
    """A detector that knows where the cells are, on a field of which every patch is known."""
    pixels = np.random.default_rng(0).integers(0, 256, (200, 230, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "field.png")
    settings: dict[str, Any] = {"methods": ["smoothgrad"], "options": {"smoothgrad": {"samples": 2}}, "device": "cpu"}

    whole = explain_field(tmp_path / "field.png", tiny_run, tmp_path / "all", detector="knows", **settings)
    assert whole.cells["cell_id"].tolist() == ["field-00040-00050", "field-00044-00090", "field-00150-00170"]
    padded = np.pad(pixels, ((64, 64), (64, 64), (0, 0)), mode="reflect")
    patches = np.stack([padded[int(y) + 32 : int(y) + 96, int(x) + 32 : int(x) + 96] for y, x in PLACES])
    expected = explain_cells(load_model(tiny_run, "cpu"), patches, methods=["smoothgrad"], options=settings["options"])
    np.testing.assert_allclose(whole.maps("smoothgrad"), expected["smoothgrad"], rtol=1e-3, atol=1e-6)

    layer = np.asarray(zarr.open_array(tmp_path / "all" / "saliency" / "smoothgrad.ome.zarr" / "0", mode="r")[:])
    assert layer.shape == (200, 230)
    alone = expected["smoothgrad"][2] / np.percentile(expected["smoothgrad"][2], 99)
    np.testing.assert_allclose(layer[118:182, 138:202], alone, rtol=1e-3)
    with Image.open(tmp_path / "all" / "saliency" / "smoothgrad.png") as overlay:
        assert overlay.size == (230, 200)

    one = explain_field(
        tmp_path / "field.png", tiny_run, tmp_path / "one", detector="knows", cells=["field-00150-00170"], **settings
    )
    assert len(one.cells) == 1
    only = np.asarray(zarr.open_array(tmp_path / "one" / "saliency" / "smoothgrad.ome.zarr" / "0", mode="r")[:])
    np.testing.assert_allclose(only[118:182, 138:202], alone, rtol=1e-3)
    assert not only[:118].any()
    low_confidence = explain_field(
        tmp_path / "field.png",
        tiny_run,
        tmp_path / "low_confidence",
        detector="knows",
        cells="low-confidence",
        min_probability=1.0,
        **settings,
    )
    assert len(low_confidence.cells) == 3
    with pytest.raises(ExplanationError, match="has no cell 'nobody'; ids are those of hematokit classify"):
        explain_field(tmp_path / "field.png", tiny_run, tmp_path / "x", detector="knows", cells=["nobody"], **settings)
    with pytest.raises(ExplanationError, match=r"no cell of .* is low-confidence"):
        explain_field(
            tmp_path / "field.png",
            tiny_run,
            tmp_path / "x",
            detector="knows",
            cells="low-confidence",
            min_probability=0.0,
            **settings,
        )
