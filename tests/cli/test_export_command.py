"""``hematokit export``: a file that is kept was compared, and whatever goes wrong is one line and leaves nothing."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import hematokit
from formatkit import build_model
from hematokit.cli.main import main
from hematokit.pipelines import export as exporting
from hematokit.pipelines.export import FORMATS
from pluginkit import pip_install, plugins_in_this_process, write_package
from tinykit import seal_bundle

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def change(bundle: Path, **entries: Any) -> None:
    config = json.loads((bundle / "config.json").read_text())
    seal_bundle(bundle, config | entries)


@pytest.fixture
def bundle(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run / "bundle", tmp_path / "bundle"))


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The line that a wrong call ends with."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    errors = [line for line in said.err.splitlines() if line.startswith("hematokit: ")]
    assert len(errors) == 1
    return errors[0]


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is checked before any work needs none."""

    def too_late(*given: object) -> None:
        pytest.fail("the model was loaded before the call was checked")

    monkeypatch.setattr(exporting, "load_model", too_late)


def test_export_evaluate_classify(
    tiny_run: Path, tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file leaves home and scores as the run does, on the crops of the store."""
    target = tmp_path / "new" / "folder" / "tiny.onnx"
    assert main(["export", str(tiny_run), "--output", str(target), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["path"], said["format"], said["compared_on"]) == (str(target), "onnx", f"of {tiny_store.name}")
    assert said["parity"]["onnxruntime"]["patches"] == 21
    assert said["parity"]["onnxruntime"]["max_logit_difference"] < 1e-4
    assert said["bytes"] == target.stat().st_size
    assert sorted(path.name for path in target.parent.iterdir()) == ["tiny.md", "tiny.onnx"]
    card = target.with_suffix(".md").read_text()
    assert "research use only" in card.lower()
    assert "## This ONNX file" in card

    words = ["--store", str(tiny_store), "--output", str(tmp_path / "scores"), "--json"]
    assert main(["evaluate", str(target), *words]) == 0
    found = json.loads(capsys.readouterr().out)
    run = hematokit.evaluate(tiny_run, output=tmp_path / "run-scores", device="cpu", bootstrap=10).metrics
    assert (found["n"], found["accuracy"], found["macro_f1"]) == (run["n"], run["accuracy"], run["macro_f1"])

    # Nothing in the file says where on this computer the training was.
    content = target.read_bytes()
    assert str(tiny_store.parent).encode() not in content
    assert str(tiny_run.parent).encode() not in content
    assert "give a folder with --output" in refused(capsys, "evaluate", target)
    assert "needs the weights themselves" in refused(capsys, "explain", target, "--output", tmp_path / "why")
    assert f"{target} exists; give another --output, or --overwrite" in refused(
        capsys, "export", tiny_run, "--output", target
    )


def test_wrong_calls_are_told_before_any_work(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_work: None
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "old.onnx").write_text("old")
    (tmp_path / "file").write_text("")

    def to(*words: object) -> str:
        return refused(capsys, "export", tiny_run, "--output", *words)

    assert "does not end in .onnx; give --output" in to(tmp_path / "model")
    assert "exists; give an --output that does not" in to(tmp_path / "there", "--format", "wsinfer")
    assert "old.onnx exists; give another --output, or --overwrite" in to(tmp_path / "old.onnx")
    assert "cannot write to" in to(tmp_path / "file" / "model.onnx")
    assert "cannot write to /proc" in to("/proc/model.onnx")
    assert "--precision" in to(tmp_path / "m.onnx", "--precision", "int4")
    assert "go with --format onnx, not with huggingface" in to(
        tmp_path / "m", "--format", "huggingface", "--precision", "int8"
    )
    assert "neither a run nor a bundle" in refused(
        capsys, "export", tmp_path / "there", "--output", tmp_path / "m.onnx"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "old.onnx", "there"]
    assert (tmp_path / "old.onnx").read_text() == "old"


@pytest.mark.parametrize(
    "words", [[], ["--precision", "fp16"], ["--precision", "int8"], ["--format", "wsinfer", "--pixel-size", "0.1"]]
)
def test_files_have_no_paths_of_this_machine(tiny_run: Path, tmp_path: Path, words: list[str]) -> None:
    """Neither of the data nor of the programs: exporters write stack traces."""
    target = tmp_path / ("out" if "wsinfer" in words else "out.onnx")
    assert main(["export", str(tiny_run), "--output", str(target), *words]) == 0
    written = [path for path in (target, *target.rglob("*")) if path.is_file()]
    for path in written:
        # TorchScript is a zip file, whose entries are compressed or not.
        entries = [path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                entries += [archive.read(name) for name in archive.namelist()]
        for content in entries:
            for place in (Path(hematokit.__file__).parent, Path(torch.__file__).parents[1], tmp_path, tiny_run.parent):
                assert str(place).encode() not in content, path
    assert written


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_every_format_has_a_writer(format: str) -> None:
    writer = importlib.import_module(FORMATS[format])
    assert callable(writer.write)
    assert writer.SUFFIX in ("", ".onnx", ".zip")


class Writer:
    """Stands in for a format: writes a part, then fails."""

    SUFFIX = ""

    def __init__(self, fails: bool = True) -> None:
        self.fails = fails
        self.given: dict[str, Any] = {}

    def write(self, classifier: hematokit.Classifier, target: Path, **given: Any) -> dict[str, Any]:
        self.given = {"classifier": classifier, **given}
        target.mkdir()
        (target / "part").write_text("half")
        if self.fails:
            raise hematokit.errors.ModelError("it went wrong; try something else")
        return {"parity": {}}


def stand_in(monkeypatch: pytest.MonkeyPatch, writer: Writer) -> None:
    real = importlib.import_module
    monkeypatch.setattr(
        exporting.importlib, "import_module", lambda name: writer if name == FORMATS["wsinfer"] else real(name)
    )
    monkeypatch.setattr(exporting, "model_card", lambda *given, **more: "# Card\n")


def test_nothing_half_written_is_left(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, Writer())
    target = tmp_path / "new" / "model"
    assert "it went wrong" in refused(capsys, "export", tiny_run, "--format", "wsinfer", "--output", target)
    assert list(tmp_path.iterdir()) == []


def test_colours_and_pixel_size_can_be_added(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer(fails=False)
    stand_in(monkeypatch, writer)
    config = json.loads((bundle / "config.json").read_text())
    for entry in config["taxonomy"]["classes"]:
        entry["colour"] = "#7f7f7f"
    change(bundle, taxonomy=config["taxonomy"])
    words = ["export", str(bundle), "--format", "wsinfer", "--output", str(tmp_path / "out")]
    codes = [entry["code"] for entry in config["taxonomy"]["classes"]]
    assert f"classes {', '.join(codes)} of the model's taxonomy have no colour" in refused(capsys, *words)
    few = tmp_path / "few.yaml"
    few.write_text("name: few\nclasses:\n  - {code: BLA, name: Blast, colour: '#112233'}\n")
    assert f"lacks {', '.join(codes[1:])}" in refused(capsys, *words, "--taxonomy", few)
    assert main([*words, "--taxonomy", "matek-21", "--pixel-size", "0.1"]) == 0
    made = writer.given["classifier"]
    assert made.codes == tuple(codes), "the order of the logits stays"
    assert made.taxonomy["BLA"].colour == hematokit.MATEK_21["BLA"].colour
    assert made.config.pixel_size_um == 0.1
    assert (tmp_path / "out" / "part").is_file()
    assert "0 um is not possible" in refused(capsys, *words[:-1], tmp_path / "o2", "--pixel-size", "0")


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"counts": "many"}, "training.counts"),
        ({"counts": {"train": 3}}, "training.counts.train"),
        ({"left_out": ["ART"]}, "training.left_out"),
        ({"split": "by hand"}, "training.split"),
        ({"split": {"fractions": 3}}, "training.split.fractions"),
        ({"settings": {"exclude": 3}}, "training.settings.exclude"),
        ({"validation": [1]}, "training.validation"),
        ({"versions": "new"}, "training.versions"),
        ({"seconds": "long"}, "training.seconds"),
    ],
)
def test_a_training_that_is_described_wrongly(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], entries: dict[str, Any], said: str
) -> None:
    """It predicts all the same; only a card cannot be made of it."""
    config = json.loads((bundle / "config.json").read_text())
    change(bundle, training=config["training"] | entries)
    line = refused(capsys, "export", bundle, "--output", tmp_path / "m.onnx")
    assert f"config.json: {said}: Input should be" in line
    assert "mend that entry" in line
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    hematokit.load_model(bundle, "cpu", runtime="torch")


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"temperature": "hot"}, "temperature: Input should be a valid number"),
        ({"taxonomy": [1]}, "taxonomy: Input should be a valid dictionary"),
        ({"taxonomy": {"name": "x", "classes": [{"code": "../x", "name": "x"}]}}, "class code '../x' is not usable"),
        ({"training": [1]}, "training: Input should be a valid dictionary"),
        ({"bundle_version": 99}, "bundle version 99 is not known"),
    ],
    ids=["text", "list", "path", "training", "newer"],
)
def test_a_configuration_of_wrong_types(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], entries: dict[str, Any], said: str
) -> None:
    change(bundle, **entries)
    assert said in refused(capsys, "export", bundle, "--output", tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd"])
def test_a_backbone_whose_name_is_a_path(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    config = json.loads((bundle / "config.json").read_text())
    change(bundle, backbone={**config["backbone"], "name": name})
    assert f"no backbone is called '{name}'" in refused(capsys, "export", bundle, "--output", tmp_path / "m.onnx")


def test_killed_while_exporting(tiny_run: Path, tmp_path: Path) -> None:
    """No file of that name is there, and the next export makes it."""
    target = tmp_path / "tiny.onnx"
    code = (
        "import os, signal, sys; from hematokit import export\n"
        "def log(text):\n"
        "    if text.startswith('comparing'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "export(sys.argv[1], sys.argv[2], log=log)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny_run), str(target)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
    assert main(["export", str(tiny_run), "--output", str(target)]) == 0
    assert target.is_file()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shut").mkdir(mode=0o500)
    said = refused(capsys, "export", tiny_run, "--output", tmp_path / "shut" / "m.onnx")
    assert f"cannot write to {tmp_path / 'shut'}" in said


def test_a_bundle_of_a_plugin_that_is_not_installed(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((bundle / "config.json").read_text())
    change(bundle, backbone={**config["backbone"], "name": "cellnet", "package": "hematokit-cellnet"})
    said = refused(capsys, "export", bundle, "--output", tmp_path / "m.onnx")
    assert "pip install hematokit-cellnet" in said
    assert not (tmp_path / "m.onnx").exists()


ODD_BACKBONE = """
import hematokit
from hematokit.plugins.specs import BackboneSpec, InputSpec, Variant

def build(model, *, num_classes, input_size, pretrained):
    import torch

    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(3, num_classes)

        def forward(self, images):
            means = images.mean((2, 3))
            return self.head(means + torch.special.bessel_j0(means))

    return Odd()

@hematokit.hookimpl
def register_backbones(register):
    register(BackboneSpec(name="odd", description="Has an operator that ONNX lacks", factory=build,
        variants={"one": Variant("one", InputSpec(64, 8))}, default_variant="one"))
"""


def test_a_plugins_operator_that_onnx_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is named, the format that can is named, that one works, and nothing else is left; without the plugin, pip."""
    site = tmp_path / "site"
    pip_install(site, write_package(tmp_path / "source", "hemato-odd", ODD_BACKBONE))
    out = tmp_path / "out"
    with plugins_in_this_process(site, "hemato-odd"):
        bundle = tmp_path / "bundle"
        build_model(bundle, "odd")
        said = refused(capsys, "export", bundle, "--output", out / "odd.onnx")
        assert "Odd cannot be exported to ONNX" in said
        assert "bessel_j0" in said
        assert "--format wsinfer" in said
        assert not out.exists()
        assert main(["export", str(bundle), "--format", "wsinfer", "--output", str(out / "odd")]) == 0
        assert [path.name for path in out.iterdir()] == ["odd"]
    with plugins_in_this_process(tmp_path / "nothing"):
        said = refused(capsys, "export", bundle, "--output", out / "odd.onnx")
    assert "pip install" in said
    assert "hemato-odd" in said


def test_files_that_classify_cannot_take(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From elsewhere, cut off, or none: one line, and no folder of results."""
    onnx = pytest.importorskip("onnx")
    Image.fromarray(np.full((300, 300, 3), 230, np.uint8)).save(tmp_path / "field.png")
    ports = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 3, 224, 224]) for name in ("x", "y")
    ]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", ports[:1], ports[1:])
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(made, tmp_path / "resnet.onnx")
    assert main(["export", str(tiny_run), "--output", str(tmp_path / "whole.onnx")]) == 0
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "whole.onnx").read_bytes()[:5000])

    def classify(model: str) -> str:
        words = [tmp_path / "field.png", "--model", tmp_path / model, "--output", tmp_path / "results"]
        line = refused(capsys, "classify", *words)
        assert not (tmp_path / "results").exists()
        return line

    said = classify("resnet.onnx")
    assert "'x', float32 of shape (n, 3, 224, 224)" in said
    assert "expected are one input 'patches', uint8 of shape (n, P, P, 3)" in said
    assert "cut.onnx cannot be opened by" in classify("cut.onnx")
    assert "none.onnx does not exist" in classify("none.onnx")


@pytest.mark.parametrize("format", ["wsinfer", "huggingface"])
def test_killed_while_writing_a_folder(tiny_run: Path, tmp_path: Path, format: str) -> None:
    target = tmp_path / "folder"
    code = (
        "import os, signal, sys; from hematokit import export\n"
        "def log(text):\n"
        "    if text.startswith('comparing'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "export(sys.argv[1], sys.argv[2], format=sys.argv[3], pixel_size_um=0.1, log=log)"
    )
    words = [sys.executable, "-c", code, str(tiny_run), str(target), format]
    assert subprocess.run(words, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert not target.exists()


def test_a_folder_that_fails_at_the_last_moment(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Model and card are both written before either has its name."""

    def full(path: Path, data: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "write_atomically", full)
    assert "No space left on device" in refused(capsys, "export", tiny_run, "--output", tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
