"""One cache of models, by content: whoever computes says which model it was, and nobody gets another one unseen."""

from __future__ import annotations

import gc
import json
import os
import pickle
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from hematokit import HematokitError, classify, load_model
from hematokit.explanation.at_cells import explainable
from hematokit.models import cached_model, export_onnx
from hematokit.models.bundle import bundle_identity
from hematokit.models.runtimes.parity import sample_patches
from hematokit.pipelines.field_run import FieldJob, prepare_run, run_fields
from hematokit.results.reading import find_model_of, open_results
from hematokit.synthetic import synthesize_field
from tinykit import seal_bundle


@pytest.fixture
def bundle(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run / "bundle", tmp_path / "bundle"))


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fields")
    for number in range(2):
        Image.fromarray(synthesize_field(300, 400, cells=4, seed=number).pixels).save(folder / f"field{number}.png")
    return folder


def train_again(bundle: Path, seed: int = 0) -> str:
    """Put other weights in a bundle's place, with the time stamps of the old ones; returns the new identity."""
    random = torch.Generator().manual_seed(seed)
    times = {path: path.stat() for path in bundle.iterdir()}
    state = load_file(bundle / "model.safetensors")
    head = next(name for name in state if name.startswith("fc") and state[name].ndim == 2)
    state[head] = torch.randn(state[head].shape, generator=random) * 0.3
    save_file(state, bundle / "model.safetensors")
    seal_bundle(bundle)
    for path, about in times.items():
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    return bundle_identity(bundle)


def probabilities(output: Path) -> pd.DataFrame:
    tables = [pd.read_parquet(path) for path in sorted(output.glob("fields/*/cells.parquet"))]
    cells = pd.concat(tables, ignore_index=True)
    return cells[[name for name in cells if name.startswith("p_")]]


@pytest.mark.parametrize("runtime", ["torch", "auto"])
def test_a_model_trained_again_at_the_same_path_answers_and_is_recorded(
    bundle: Path, fields: Path, tmp_path: Path, runtime: str
) -> None:
    options: dict[str, Any] = {"device": "cpu", "runtime": runtime}
    first = bundle_identity(bundle)
    classify([fields], bundle, tmp_path / "one", **options)
    second = train_again(bundle)
    classify([fields], bundle, tmp_path / "two", **options)
    elsewhere = Path(shutil.copytree(bundle, tmp_path / "elsewhere"))
    classify([fields], elsewhere, tmp_path / "three", **options)
    said = [json.loads((tmp_path / name / "run.json").read_text())["job"]["model"]["sha256"] for name in ("one", "two")]
    assert said == [first, second]
    one, two, three = (probabilities(tmp_path / name) for name in ("one", "two", "three"))
    assert np.abs(one.to_numpy() - two.to_numpy()).max() > 0.1
    pd.testing.assert_frame_equal(two, three)
    assert find_model_of(open_results(tmp_path / "two")) == bundle
    assert find_model_of(open_results(tmp_path / "one")) is None
    with pytest.raises(HematokitError, match="results made with another model"):
        classify([fields], bundle, tmp_path / "one", **options)
    for name in ("pixel_size_um", "model_pixel_size_um", "min_probability"):
        option = "--" + name.removesuffix("_um").replace("_", "-")
        with pytest.raises(HematokitError, match=f"results made with another {option};"):
            classify([fields], bundle, tmp_path / "two", **options | {name: 0.2})


def test_a_model_replaced_during_the_work_does_not_take_part(bundle: Path, fields: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"device": "cpu", "runtime": "torch"}
    first = bundle_identity(bundle)
    classify([fields], Path(shutil.copytree(bundle, tmp_path / "kept")), tmp_path / "expected", **options)

    def replace(done: int, total: int | None, message: str) -> None:
        if done == 1:
            train_again(bundle)
            # What else happens in this process meanwhile: another model is the last one used.
            cached_model(bundle, "cpu", "torch")

    classify([fields], bundle, tmp_path / "out", progress=replace, **options)
    assert bundle_identity(bundle) != first
    assert json.loads((tmp_path / "out" / "run.json").read_text())["job"]["model"]["sha256"] == first
    pd.testing.assert_frame_equal(probabilities(tmp_path / "out"), probabilities(tmp_path / "expected"))


def test_another_process_with_another_model_refuses(bundle: Path, fields: Path, tmp_path: Path) -> None:
    """As on a cluster's worker, to which the job is sent."""
    job = FieldJob(str(tmp_path / "out"), model=str(bundle), device="cpu", runtime="torch")
    results = prepare_run([fields], job)
    (tmp_path / "sent").write_bytes(pickle.dumps((results[0], results[1].tasks[0])))
    train_again(bundle)
    code = (
        "import pickle, sys\n"
        "from hematokit import HematokitError\n"
        "job, task = pickle.load(open(sys.argv[1], 'rb'))\n"
        "try:\n    job.run(task)\n"
        "except HematokitError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "sent")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{bundle} is another model than the one used so far" in done.stdout
    assert done.stdout.count("\n") == 1
    # Here it is loaded, and answers for what was recorded.
    assert [outcome.status for outcome in run_fields(*results)] == ["done", "done"]


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
def test_a_loaded_model_says_which_it_is(bundle: Path, tmp_path: Path, runtime: str) -> None:
    if runtime != "torch":
        pytest.importorskip(runtime)
        export_onnx(load_model(bundle, "cpu", runtime="torch"), tmp_path / "m.onnx")
        assert load_model(tmp_path / "m.onnx", runtime=runtime).identity == bundle_identity(tmp_path / "m.onnx")
    identity = bundle_identity(bundle)
    model = load_model(bundle, "cpu", runtime=runtime)
    train_again(bundle)
    assert model.identity == identity != bundle_identity(bundle)


def test_one_copy_for_all_that_use_the_same_model(bundle: Path, tmp_path: Path) -> None:
    model = cached_model(bundle, "cpu", "torch")
    elsewhere = Path(shutil.copytree(bundle, tmp_path / "elsewhere"))
    assert cached_model(elsewhere, "cpu", "torch") is model
    if not torch.cuda.is_available():
        assert cached_model(bundle, "auto", "torch") is model
    identity = model.identity
    train_again(bundle)
    other = cached_model(bundle, "cpu", "torch")
    assert other is not model
    assert cached_model(bundle, "cpu", "torch", identity=identity) is model, "somebody uses it still"
    assert cached_model(bundle, "cpu", "torch") is other
    with pytest.raises(HematokitError, match="computes on the CPU, not on cuda"):
        cached_model(bundle, "cuda", "onnxruntime")


def test_only_the_last_model_is_kept(bundle: Path) -> None:
    seen = []
    for seed in range(3):
        train_again(bundle, seed)
        seen.append(weakref.ref(cached_model(bundle, "cpu", "torch")))
    gc.collect()
    assert [reference() is None for reference in seen] == [True, True, False]


def test_explaining_takes_the_model_that_classified(bundle: Path) -> None:
    """ONNX Runtime classified; torch, which explains, has to be of the same model."""
    pytest.importorskip("onnxruntime")
    classifier = load_model(bundle, "cpu", runtime="onnxruntime")
    found = explainable(classifier, str(bundle), device="cpu")
    assert (found.runtime, found.identity) == ("torch", classifier.identity)
    patches = sample_patches(64)
    assert np.abs(found.logits(patches) - classifier.logits(patches)).max() < 1e-4
    train_again(bundle)
    assert explainable(classifier, str(bundle), device="cpu") is found
    del found
    cached_model(bundle, "cpu", "torch")
    gc.collect()
    with pytest.raises(HematokitError, match="is another model than the one used so far"):
        explainable(classifier, str(bundle), device="cpu")


def test_a_bundle_that_a_later_version_writes_again_is_the_same_model(bundle: Path) -> None:
    before = bundle_identity(bundle)
    config = json.loads((bundle / "config.json").read_text())
    config["backbone"]["package_version"] = config["hematokit_version"] = "9.9.9"
    seal_bundle(bundle, config)
    assert bundle_identity(bundle) == before
    config["backbone"]["package"] = "another-package"
    seal_bundle(bundle, config)
    assert bundle_identity(bundle) != before
