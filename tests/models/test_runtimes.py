"""onnxruntime gives torch's answers, or says that it does not; the exported file is made once and never in the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from hematokit import MATEK_21, HematokitError, load_model, open_store
from hematokit.errors import ModelError
from hematokit.models import Classifier, OnnxClassifier, export_onnx
from hematokit.models.construction import build_backbone, choose_backbone
from hematokit.models.runtimes import exported as runtimes_module
from hematokit.models.runtimes.engines import thread_count
from hematokit.models.runtimes.exported import cache_folder
from hematokit.models.runtimes.onnx_graph import CONFIG_KEY, onnx_bytes
from hematokit.models.runtimes.parity import check_agreement, sample_patches
from hematokit.plugins.specs import InputSpec
from tinykit import seal_bundle

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    monkeypatch.setenv("HEMATOKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "onnx"


@pytest.fixture(scope="module")
def filled(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the tiny run's model."""
    folder = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEMATOKIT_CACHE", str(folder))
        load_model(tiny_run, runtime="onnxruntime")
    return folder


@pytest.fixture
def quick(filled: Path, monkeypatch: pytest.MonkeyPatch) -> list[Classifier]:
    """Exports of the tiny run come from the filled cache; the list says how many there were."""
    calls: list[Classifier] = []
    content = next((filled / "onnx").glob("*.onnx")).read_bytes()

    def export(classifier: Classifier, **more: object) -> bytes:
        calls.append(classifier)
        return content

    monkeypatch.setattr(runtimes_module, "onnx_bytes", export)
    return calls


@pytest.fixture
def patches(tiny_store: Path) -> np.ndarray:
    store = open_store(tiny_store)
    return store.patches(store.cells["cell_id"][:19])


def files(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*.onnx")) if cache.is_dir() else []


def untrained(backbone: torch.nn.Module, size: int, fit: str = "auto", patch: int = 250) -> Classifier:
    """A classifier whose batch norms have seen something, so that its logits differ."""
    model = Classifier(backbone, MATEK_21, InputSpec(size, fit=fit), patch).train()
    with torch.no_grad():
        model(model.prepare(torch.from_numpy(sample_patches(patch))))
    return model.eval()


def small_network(size: int) -> torch.nn.Module:
    """Every pixel counts, and its place."""
    torch.manual_seed(0)
    side = (size - 5) // 4 + 1
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 5, 4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * side**2, 21)
    )


def run_onnx(model: bytes | str, patches: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"patches": patches})[0]


def test_predictions_are_those_of_torch(tiny_run: Path, filled: Path, patches: np.ndarray, monkeypatch) -> None:
    monkeypatch.setenv("HEMATOKIT_CACHE", str(filled))
    expected = load_model(tiny_run, "cpu")
    model = load_model(tiny_run, "cpu", runtime="onnxruntime")
    assert isinstance(model, OnnxClassifier)
    assert (model.runtime, expected.runtime) == ("onnxruntime", "torch")
    assert np.abs(model.logits(patches) - expected.logits(patches)).max() < 1e-4
    found, wanted = model.predict(patches), expected.predict(patches)
    assert found["predicted"].tolist() == wanted["predicted"].tolist()
    pd.testing.assert_frame_equal(found, wanted, atol=1e-5)
    for name in ("codes", "taxonomy", "patch_size", "temperature", "config", "input_spec"):
        assert getattr(model, name) == getattr(expected, name), name
    assert model.device == str(expected.device) == "cpu"


def test_batches_do_not_matter(tiny_run: Path, filled: Path, patches: np.ndarray, monkeypatch) -> None:
    monkeypatch.setenv("HEMATOKIT_CACHE", str(filled))
    model = load_model(tiny_run, runtime="onnxruntime")
    told: list[int] = []
    whole = model.logits(patches, batch_size=64, progress=lambda done, total, message="": told.append(done))
    assert told[-1] == len(patches)
    assert np.allclose(whole, model.logits(patches, batch_size=1), atol=1e-5)
    assert np.allclose(whole, model.logits(patches[::-1], batch_size=5)[::-1], atol=1e-5)
    assert model.logits(patches[:0]).shape == (0, len(model.codes))
    assert list(model.predict(patches[:0]).columns)[:2] == ["predicted", "probability"]
    model.temperature = 50.0
    assert model.predict(patches)["probability"].max() < 0.5, "the temperature counts"


def test_several_threads_share_a_model(tiny_run: Path, filled: Path, patches: np.ndarray, monkeypatch) -> None:
    monkeypatch.setenv("HEMATOKIT_CACHE", str(filled))
    model = load_model(tiny_run, runtime="onnxruntime")
    expected, found = model.logits(patches), {}

    def work(number: int) -> None:
        found[number] = model.logits(patches, batch_size=number + 1)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0, 1, 2, 3]
    assert all(np.allclose(logits, expected, atol=1e-5) for logits in found.values())


@pytest.mark.parametrize("shape", [(2, 32, 32, 3), (64, 64, 3)])
def test_other_patches_are_refused(tiny_run: Path, filled: Path, shape: tuple[int, ...], monkeypatch) -> None:
    monkeypatch.setenv("HEMATOKIT_CACHE", str(filled))
    with pytest.raises(HematokitError, match=r"takes uint8 patches of shape \(n, 64, 64, 3\)"):
        load_model(tiny_run, runtime="onnxruntime").predict(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("size", "fit", "patch"),
    [
        (96, "auto", 250),
        (224, "auto", 250),
        (256, "auto", 250),
        (224, "crop", 250),
        (128, "resize", 64),
        (64, "auto", 64),
    ],
)
def test_every_way_to_the_input_is_inside_the_graph(size: int, fit: str, patch: int) -> None:
    """Antialiased resizing down and up, reflection, cropping, nothing at all."""
    model = untrained(small_network(size), size, fit, patch)
    patches = sample_patches(patch)
    expected = model.logits(patches)
    assert expected.std() > 1e-2
    found = run_onnx(onnx_bytes(model), patches)
    assert np.abs(found - expected).max() < 1e-4


def test_a_network_with_attention_is_repeated() -> None:
    torch.manual_seed(0)
    model = untrained(build_backbone(choose_backbone("coatnet:femto"), 21), 96)
    patches = sample_patches(250)
    assert np.abs(run_onnx(onnx_bytes(model), patches) - model.logits(patches)).max() < 1e-4


def test_the_file_says_what_its_logits_mean(tiny_run: Path, tmp_path: Path) -> None:
    model = load_model(tiny_run, "cpu").train()
    export_onnx(model, tmp_path / "model.onnx")
    assert model.training, "the classifier stays as it was"
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    said = json.loads(session.get_modelmeta().custom_metadata_map[CONFIG_KEY])
    assert said == model.config.model_dump(mode="json")
    assert [item.name for item in session.get_inputs()] == ["patches"]
    assert session.get_inputs()[0].shape[1:] == [64, 64, 3]


def test_a_file_that_cannot_be_written(tiny_run: Path, tmp_path: Path, quick: list[Classifier]) -> None:
    with pytest.raises(HematokitError, match=r"cannot be written .*give another folder"):
        export_onnx(load_model(tiny_run, "cpu"), tmp_path / "nowhere" / "model.onnx")


def test_a_backbone_that_cannot_be_exported(tiny_run: Path) -> None:
    class Odd(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            means = images.mean(dim=(2, 3))
            return means if float(means.sum()) > 0 else means + 1

    with pytest.raises(HematokitError, match=r"^Odd cannot be exported to ONNX \(.*\); use --runtime torch$"):
        onnx_bytes(untrained(Odd(), 64, patch=64))


def test_the_file_is_made_once(tiny_run: Path, cache: Path, quick: list[Classifier]) -> None:
    for _ in range(2):
        load_model(tiny_run, runtime="onnxruntime")
        assert len(files(cache)) == 1
        assert len(quick) == 1


def test_another_bundle_is_another_file(tiny_run: Path, cache: Path, quick: list[Classifier], tmp_path: Path) -> None:
    load_model(tiny_run, runtime="onnxruntime")
    bundle = Path(shutil.copytree(tiny_run / "bundle", tmp_path / "bundle"))
    config = json.loads((bundle / "config.json").read_text())
    seal_bundle(bundle, config | {"temperature": 7.0})
    assert load_model(bundle, runtime="onnxruntime").temperature == 7.0
    assert len(files(cache)) == len(quick) == 2
    state = load_file(bundle / "model.safetensors")
    state["conv1.0.weight"] += 1e-7
    save_file(state, bundle / "model.safetensors")
    seal_bundle(bundle)
    load_model(bundle, runtime="onnxruntime")
    assert len(files(cache)) == len(quick) == 3


def test_a_damaged_file_in_the_cache_is_made_again(
    tiny_run: Path, filled: Path, cache: Path, quick: list[Classifier]
) -> None:
    cache.mkdir(parents=True)
    source = next((filled / "onnx").glob("*.onnx"))
    shutil.copy(source.with_suffix(".json"), cache)
    whole = source.read_bytes()
    # A bit of the weights: onnxruntime itself opens such a file.
    flipped = whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :]
    for count, content in enumerate((whole[:1000], flipped), start=1):
        (cache / source.name).write_bytes(content)
        model = load_model(tiny_run, runtime="onnxruntime")
        assert model.logits(sample_patches(64)).shape == (7, len(model.codes))
        assert (cache / source.name).read_bytes() == whole
        assert len(quick) == count


def test_a_cache_that_cannot_be_written_is_no_failure(
    tiny_run: Path, tmp_path: Path, quick: list[Classifier], monkeypatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HEMATOKIT_CACHE", str(tmp_path / "file"))
    model = load_model(tiny_run, runtime="onnxruntime")
    assert model.logits(sample_patches(64)).shape == (7, len(model.codes))
    assert "exported again each time; set HEMATOKIT_CACHE" in caplog.text


def test_old_files_leave_the_cache(tiny_run: Path, cache: Path, quick: list[Classifier]) -> None:
    cache.mkdir(parents=True)
    for name, days in (("old.onnx", 200), ("recent.onnx", 20), (".writing-killed", 2), (".writing-now", 0)):
        (cache / name).write_text("")
        moment = (cache / name).stat().st_mtime - days * 86400
        os.utime(cache / name, (moment, moment))
    load_model(tiny_run, runtime="onnxruntime")
    left = {path.name for path in cache.iterdir()}
    assert {"recent.onnx", ".writing-now"} < left
    assert not {"old.onnx", ".writing-killed"} & left
    assert len(files(cache)) == 2


def test_two_processes_at_once(tiny_run: Path, cache: Path) -> None:
    code = (
        "import sys, numpy as np; from hematokit import load_model\n"
        "from hematokit.models.runtimes.parity import sample_patches\n"
        "model = load_model(sys.argv[1], runtime='onnxruntime')\n"
        "print(model.logits(sample_patches(64)).argmax(axis=1).tolist())"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tiny_run)], stdout=-1, stderr=-1, text=True, env=environment)
        for _ in range(2)
    ]
    results = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    expected = load_model(tiny_run, "cpu").logits(sample_patches(64)).argmax(axis=1).tolist()
    # The exporter's chatter is kept to itself: nothing but the answer is printed.
    assert [out.strip() for out, _ in results] == [str(expected)] * 2
    assert [err for _, err in results] == ["", ""]
    assert len(files(cache)) == 1


def test_openvino_sends_no_reports_and_forks_nothing(tiny_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    code = (
        "import os, sys\n"
        "sys.addaudithook(lambda event, args: event in ('os.fork', 'socket.connect') and os._exit(3))\n"
        "from hematokit.models.runtimes.engines import open_engine\n"
        "open_engine('openvino', open(sys.argv[1], 'rb').read())\n"
        "assert 'openvino_telemetry' not in sys.modules"
    )
    export_onnx(load_model(tiny_run, "cpu"), tmp_path / "model.onnx")
    # A consent of this user's own is not to matter.
    environment = os.environ | {"HOME": str(tmp_path)}
    command = [sys.executable, "-c", code, str(tmp_path / "model.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "intel").exists()


def test_onnxruntime_sends_no_reports(tmp_path: Path) -> None:
    # With its reports it writes an identifier of the machine into the home folder; not where it takes this for a test.
    model = Path(__file__).parent.parent / "earlier" / "0.1.0" / "model.onnx"
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}

    def written(code: str, name: str) -> list[str]:
        home = tmp_path / name
        home.mkdir()
        command = [sys.executable, "-c", code, str(model)]
        subprocess.run(command, check=True, env=kept | {"HOME": str(home)}, capture_output=True)
        return [path.name for path in home.rglob("*") if "Microsoft" in path.parts]

    ours = "import os, sys, hematokit; hematokit.load_model(sys.argv[1], 'cpu', 'onnxruntime'); " + (
        "assert 'ORT_DISABLE_TELEMETRY' not in os.environ"
    )
    assert written(ours, "ours") == []
    if not written("import onnxruntime", "theirs"):
        pytest.skip("this onnxruntime sends no reports by itself")


def test_a_kept_model_opens_without_torch(tiny_run: Path, filled: Path) -> None:
    code = (
        "import sys, numpy as np; from hematokit import load_model\n"
        "model = load_model(sys.argv[1], device='cpu', runtime='auto')\n"
        "model.predict(np.zeros((2, 64, 64, 3), np.uint8))\n"
        "assert model.runtime == 'onnxruntime'\n"
        "assert not {'torch', 'timm'} & set(sys.modules), 'torch was imported'"
    )
    environment = os.environ | {"HEMATOKIT_CACHE": str(filled), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, str(tiny_run)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_other_answers_are_never_given_silently(
    tiny_run: Path, cache: Path, quick: list[Classifier], monkeypatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As if the exporter had got a weight wrong."""
    import onnx

    graph = onnx.load_from_string(onnx_bytes(load_model(tiny_run, "cpu")))
    weight = max(graph.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.3), weight.name))
    monkeypatch.setattr(runtimes_module, "onnx_bytes", lambda classifier: graph.SerializeToString())
    with pytest.raises(
        HematokitError, match=r"does not repeat torch's answers: logits differ by up to [\d.]+ .* torch$"
    ):
        load_model(tiny_run, runtime="onnxruntime")
    assert files(cache) == [], "what is wrong is not kept"
    model = load_model(tiny_run, device="cpu", runtime="auto")
    assert model.runtime == "torch"
    assert "does not repeat torch's answers" in caplog.text


def test_agreement_is_judged_by_logits_and_classes() -> None:
    expected = np.tile(np.array([2.0, 0.0, -1.0], np.float32), (7, 1))

    def shifted(by: float):
        return lambda patches: expected[: len(patches)] + np.float32([0, by, 0])

    assert check_agreement(shifted(0), shifted(5e-4), 64, "x") == pytest.approx(5e-4, rel=0.01)
    with pytest.raises(HematokitError, match=r"up to 0.002"):
        check_agreement(shifted(0), shifted(2e-3), 64, "x")
    # A class may change only where rounding decides between two equal ones.
    with pytest.raises(HematokitError, match=r"7 of 7 test patches change class"):
        check_agreement(shifted(1.9998), shifted(2.0002), 64, "x")
    check_agreement(shifted(2.0), shifted(2.000001), 64, "x")
    with pytest.raises(HematokitError, match="nan"):
        check_agreement(shifted(0), shifted(float("nan")), 64, "x")
    with pytest.raises(HematokitError, match="numbers where torch gives"):
        check_agreement(shifted(0), lambda patches: expected[:1], 64, "x")


def test_test_patches_are_unlike() -> None:
    patches = sample_patches(250)
    assert patches.shape == (7, 250, 250, 3)
    assert np.array_equal(patches, sample_patches(250)), "always the same"
    apart = [np.abs(a.astype(int) - b).mean() for i, a in enumerate(patches) for b in patches[:i]]
    assert min(apart) > 5


def test_wrong_words_and_devices_are_told(tiny_run: Path) -> None:
    with pytest.raises(
        HematokitError, match="runtime 'tensorrt' does not exist; choose among torch, onnxruntime, openvino, auto"
    ):
        load_model(tiny_run, runtime="tensorrt")
    with pytest.raises(HematokitError, match="computes on the CPU, not on cuda"):
        load_model(tiny_run, device="cuda", runtime="onnxruntime")


def test_without_onnxruntime(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(HematokitError, match=r"pip install 'hematokit\[onnx\]'$"):
        load_model(tiny_run, runtime="onnxruntime")
    assert load_model(tiny_run, device="cpu", runtime="auto").runtime == "torch"


def test_openvino_repeats_torch(tiny_run: Path, filled: Path, patches: np.ndarray, monkeypatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv("HEMATOKIT_CACHE", str(filled))
    model, expected = load_model(tiny_run, runtime="openvino"), load_model(tiny_run, "cpu")
    assert model.runtime == "openvino"
    assert np.abs(model.logits(patches) - expected.logits(patches)).max() < 1e-4
    found: dict[int, np.ndarray] = {}

    def work(number: int) -> None:
        found[number] = model.logits(patches, batch_size=number + 1)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.allclose(found[number], expected.logits(patches), atol=1e-4) for number in range(4))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(HematokitError, match=r"pip install 'hematokit\[openvino\]'$"):
        load_model(tiny_run, runtime="openvino")


def test_auto_is_onnxruntime_and_each_engine_is_compared(
    tiny_run: Path, cache: Path, quick: list[Classifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO is used where it is named; an engine with other answers is refused, now and the next time."""
    pytest.importorskip("openvino")
    assert load_model(tiny_run, "cpu", runtime="auto").runtime == "onnxruntime"
    agreement = runtimes_module.check_agreement

    def disagree(*given: object) -> float:
        if given[-1] == "openvino":
            raise ModelError("openvino does not repeat torch's answers")
        return agreement(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(runtimes_module, "check_agreement", disagree)
    with pytest.raises(HematokitError, match="openvino does not repeat"):
        load_model(tiny_run, "cpu", runtime="openvino")


def test_an_engine_that_was_refused_is_not_tried_again(
    tiny_run: Path, cache: Path, quick: list[Classifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    def disagree(*given: object) -> float:
        raise ModelError("onnxruntime does not repeat torch's answers")

    monkeypatch.setattr(runtimes_module, "check_agreement", disagree)
    for _ in range(2):
        with pytest.raises(HematokitError, match="does not repeat"):
            load_model(tiny_run, "cpu", runtime="onnxruntime")
    assert len(quick) == 1
    assert load_model(tiny_run, "cpu", runtime="auto").runtime == "torch"


FIRST_TOGETHER = """
import sys, threading
import numpy as np
from hematokit import load_model
model = load_model(sys.argv[1], runtime="openvino")
patches, gate = np.zeros((1, 64, 64, 3), np.uint8), threading.Barrier(2)
def infer():
    gate.wait()
    model.logits(patches)
threads = [threading.Thread(target=infer, daemon=True) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
sys.stdout.write("done")
"""


def test_two_threads_that_infer_first_together_do_not_hang(tiny_run: Path, tmp_path: Path) -> None:
    """OpenVINO's bindings hung in about every second process."""
    pytest.importorskip("openvino")
    export_onnx(load_model(tiny_run, "cpu", runtime="torch"), tmp_path / "model.onnx")
    # Two streams: with one, a thread waits for the other before it infers.
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", FIRST_TOGETHER, str(tmp_path / "model.onnx")]
    for _ in range(3):
        pair = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
        try:
            assert [process.communicate(timeout=120)[0] for process in pair] == ["done", "done"]
        finally:
            for process in pair:
                process.kill()


def test_whoever_stops_early_finds_nothing_running(tiny_run: Path, filled: Path, monkeypatch) -> None:
    monkeypatch.setenv("HEMATOKIT_CACHE", str(filled))
    monkeypatch.setattr("hematokit.models.runtimes.engines.thread_count", lambda: 2)
    model = load_model(tiny_run, runtime="onnxruntime")
    patches = sample_patches(64)[np.arange(60) % 7]
    running: list[int] = []
    run = model._engine.run

    def counted(batch: np.ndarray, output: str) -> np.ndarray:
        running.append(1)
        try:
            return run(batch, output)
        finally:
            running.pop()

    monkeypatch.setattr(model._engine, "run", counted)

    def stop(done: int, total: int | None, text: str = "") -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.logits(patches, progress=stop)
    assert running == []
    told: list[int] = []
    whole = model.logits(patches, progress=lambda done, total, text="": told.append(done))
    assert told == [8, 16, 24, 32, 40, 48, 56, 60]
    assert np.allclose(whole[:7], whole[7:14], atol=1e-5), "in the order given"


def test_without_the_exporter(tiny_run: Path, filled: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(HematokitError, match=r"exporting needs onnxscript; run: pip install 'hematokit\[onnx\]'$"):
        load_model(tiny_run, runtime="onnxruntime")
    assert load_model(tiny_run, device="cpu", runtime="auto").runtime == "torch"
    assert "pip install 'hematokit[onnx]'" in caplog.text


def test_damaged_bundles_are_told(tiny_run: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_run / "bundle", tmp_path / "bundle"))
    (bundle / "model.safetensors").unlink()
    for runtime in ("onnxruntime", "auto"):
        with pytest.raises(HematokitError, match=r"model\.safetensors is missing or damaged"):
            load_model(bundle, device="cpu", runtime=runtime)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HEMATOKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "hematokit"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder().parent.parent == tmp_path or cache_folder().parent.parent.parent == tmp_path
    monkeypatch.setenv("HEMATOKIT_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"


def test_threads_follow_torch_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert thread_count() == torch.get_num_threads()
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert thread_count() == 3
    for word in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", word)
        assert 1 <= thread_count() <= (os.cpu_count() or 1)
