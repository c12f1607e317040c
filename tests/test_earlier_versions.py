"""What earlier versions left on disk still opens, goes on and answers the same; `tests/earlier/make.py` wrote it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hematokit
from hematokit.results.fields import file_stamp
from hematokit.results.reading import find_model_of, open_results
from hematokit.review.session import Review
from hematokit.store import split_store, verify_store

EARLIER = Path(__file__).resolve().parent / "earlier"


@pytest.fixture(params=sorted(path.name for path in EARLIER.iterdir() if (path / "run").is_dir()))
def earlier(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of what a version wrote, with this machine's paths in it."""
    root = tmp_path / "earlier"
    shutil.copytree(EARLIER / request.param, root)
    for name in ("results/run.json", "detections/run.json", "run/config.yaml"):
        path = root / name
        path.write_text(path.read_text().replace("@ROOT@", str(root)))
    return root


def test_stores_open_verify_split_and_grow(earlier: Path) -> None:
    store = hematokit.open_store(earlier / "crops.zarr")
    assert len(store) == 34
    assert store.cells["label"].value_counts().to_dict() == {"BLA": 12, "LYT": 10, "NGS": 8, "ART": 4}
    assert not verify_store(earlier / "crops.zarr").damaged
    split_store(earlier / "crops.zarr", fractions=(0.6, 0.2, 0.2), seed=1)
    assert store.cells["pixel_size_um"].isna().all()
    hematokit.set_pixel_size(earlier / "crops.zarr", 0.1)
    assert set(hematokit.open_store(earlier / "crops.zarr").cells["pixel_size_um"]) == {0.1}
    tiled = hematokit.open_store(earlier / "fields.zarr")
    assert len(tiled.fields) == 2
    assert set(tiled.cells["pixel_size_um"]) == set(tiled.fields["pixel_size_um"])
    before = len(tiled)
    hematokit.tile([earlier / "fields"], earlier / "fields.zarr")
    assert len(hematokit.open_store(earlier / "fields.zarr")) == before
    report = verify_store(earlier / "fields.zarr")
    assert not report.damaged
    assert not report.damaged_fields


@pytest.mark.parametrize("model", ["run", "run/bundle", "model.onnx"])
def test_models_answer_as_they_did(earlier: Path, model: str) -> None:
    store = hematokit.open_store(earlier / "crops.zarr")
    found = hematokit.load_model(earlier / model, "cpu").logits(store.patches(store.cells["cell_id"][:8]))
    np.testing.assert_allclose(found, np.load(earlier / "logits.npy"), atol=1e-4)


def test_runs_go_on_and_are_evaluated(earlier: Path) -> None:
    store = earlier / "crops.zarr"
    result = hematokit.train(store, earlier / "run", resume=True, epochs=3)
    assert result.finished
    assert result.epochs == 3
    assert len(hematokit.evaluate(earlier / "run", store=store).metrics["per_class"]) == 3


def test_results_open_with_their_corrections_and_go_on(earlier: Path) -> None:
    results = open_results(earlier / "results")
    assert [field.field_id for field in results.fields] == ["field_0", "field_1"]
    assert find_model_of(results) == earlier / "run", "it is the same model still"
    field = results.fields[0]
    review = Review(
        field.cells(), results.taxonomy, field_id=field.field_id, journal=field.folder / "corrections.jsonl"
    )
    assert review.cells["label_source"].isin(["corrected", "confirmed"]).sum() == 2
    assert len(review.deleted) == 1
    counted = hematokit.classify(
        [earlier / "fields"], earlier / "run", earlier / "results", runtime="torch", device="cpu"
    )
    found = sum(len(field.cells()) for field in results.fields)
    assert int(counted.fields["cells"].sum()) == found - len(review.deleted)


def test_detections_go_on(earlier: Path) -> None:
    found = hematokit.detect([earlier / "fields"], earlier / "detections")
    assert set(found.fields["status"]) == {"done"}
    assert json.loads((earlier / "detections" / "run.json").read_text())["fields"]


GO_ON = """
from importlib import metadata
import hematokit

print(metadata.version("hematokit"))
hematokit.classify(["fields"], "run", "results", device="cpu")
hematokit.detect(["fields/field_0.png"], "detections")
hematokit.tile(["fields"], "fields.zarr")
assert hematokit.open_store("fields.zarr").rejects.empty
hematokit.explain("run", store="crops.zarr", output="explained", split="test", per_class=1, figures=False)
"""


def test_an_upgrade_refuses_no_results(earlier: Path, tmp_path: Path) -> None:
    for path in earlier.glob("*/fields/*/field.json"):
        # A checkout gives the images another time.
        said = json.loads(path.read_text())
        path.write_text(json.dumps(said | {"stamp": file_stamp(earlier / "fields" / f"{said['field_id']}.png")}))
    # A folder of packages in which hematokit has a later version, as after pip install --upgrade.
    later = tmp_path / "site" / "hematokit-9.9.9.dist-info"
    later.mkdir(parents=True)
    (later / "METADATA").write_text("Metadata-Version: 2.1\nName: hematokit\nVersion: 9.9.9\n")
    made = [*earlier.glob("*/fields/*/cells.parquet"), *earlier.glob("explained/attributions.zarr/*/c/**/*")]
    before = {path: path.stat().st_mtime_ns for path in made}
    assert len(before) > 3
    # The second time it is the folders of a later version that are gone on with.
    for site, version in ((str(later.parent), "9.9.9"), ("", "")):
        paths = os.pathsep.join(filter(None, [site, os.environ.get("PYTHONPATH", "")]))
        done = subprocess.run(
            [sys.executable, "-c", GO_ON],
            cwd=earlier,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HEMATOKIT_PLUGINS": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(version)
        assert {path: path.stat().st_mtime_ns for path in made} == before
    for name, key in (("results/run.json", "job"), ("explained/explain.json", "made_with")):
        assert "9.9.9" not in json.dumps(json.loads((earlier / name).read_text())[key])


def test_an_option_that_is_newer_than_the_results_is_no_reason_to_refuse_them(earlier: Path) -> None:
    path = earlier / "detections" / "run.json"
    document = json.loads(path.read_text())
    del document["job"]["detector"]["options"]["margin_um"]
    path.write_text(json.dumps(document))
    hematokit.detect([earlier / "fields"], earlier / "detections")
    with pytest.raises(hematokit.HematokitError, match="another detector"):
        hematokit.detect([earlier / "fields"], earlier / "detections", detector_options={"margin_um": 3})
