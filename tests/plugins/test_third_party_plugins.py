"""Third-party plugins that fail, as packages that pip installed: each is named in one line; everything else works."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hematokit import __version__, explain_cells, load_model, open_field
from hematokit.cli.main import main
from hematokit.detection.windows import detect_cells, make_detector
from hematokit.errors import PluginError
from hematokit.plugins import PluginRegistry, load_plugins
from pluginkit import pip_install, plugins_in_this_process, run_hematokit, write_package
from tinykit import TINY

AUGMENTER = """
import hematokit
@hematokit.hookimpl
def register_augmenters(register):
    register(hematokit.AugmenterSpec("{name}", "Does nothing", lambda: lambda images, generator: images))
"""
LOADING = {
    "hemato-fine": AUGMENTER.format(name="fine"),
    "hemato-exits": "import sys\nsys.exit(3)\n",
    "hemato-base": "class Odd(BaseException):\n    pass\nraise Odd('not even an Exception')\n",
    "hemato-prints": "print('welcome to my plugin')\n" + AUGMENTER.format(name="chatty"),
    "hemato-syntax": "def broken(:\n",
    "hemato-dict": "import hematokit\n@hematokit.hookimpl\ndef register_augmenters(register):\n"
    "    register({'name': 'mine'})\n",
    "hemato-twice": AUGMENTER.format(name="twice") + "    register(hematokit.AugmenterSpec('twice', 'Again', dict))\n",
    "hemato-arguments": "import hematokit\n@hematokit.hookimpl\ndef register_augmenters(register, more):\n    pass\n",
    "hemato-newer": 'HEMATOKIT_HOOKS = "9.1"\n' + AUGMENTER.format(name="newer"),
    "hemato-older": 'HEMATOKIT_HOOKS = "0.1"\n' + AUGMENTER.format(name="older"),
    "hemato-versionless": "HEMATOKIT_HOOKS = 1\n" + AUGMENTER.format(name="versionless"),
    "hemato-newer-import": "from hematokit import SegmenterSpec\n",
    "hemato-newer-name": "import hematokit\nhematokit.SegmenterSpec\n",
    "hemato-newer-hook": "import hematokit\n@hematokit.hookimpl\ndef register_segmenters(register):\n    pass\n",
    "hemato-command": AUGMENTER.format(name="with-command") + "@hematokit.hookimpl\ndef register_commands(app):\n"
    "    @app.command('train')\n    def train():\n        print('mine now')\n"
    "    @app.command('hello')\n    def hello():\n        print('hello')\n",
    "hemato-odd-command": "import hematokit\n@hematokit.hookimpl\ndef register_commands(app):\n"
    "    @app.command('odd')\n    def odd(value: list[dict[str, int]]):\n        pass\n",
}
# Entry points that name what is not there.
TARGETS = {"hemato-no-module": "hemato_nowhere", "hemato-no-object": "hemato_no_object:plugin"}
COMMANDS = """
import hematokit, typer
from hematokit import PluginError

@hematokit.hookimpl
def register_commands(app):
    @app.command("odd-bug")
    def bug():
        raise IndexError("list index\\nout of range")

    @app.command("odd-file")
    def file(path: str):
        open(path)

    @app.command("odd-user")
    def user():
        raise PluginError("no picture is called a.png; give one that exists")

    @app.command("odd-stop")
    def stop(code: int = typer.Option(4, min=1)):
        raise typer.Exit(code)

    group = typer.Typer()
    app.add_typer(group, name="odd-group")

    @group.command("inner")
    def inner():
        1 / 0

    @group.command("other")
    def other():
        print("other")
"""
INSIDE = """
import hematokit
from hematokit import AugmenterSpec, BackboneSpec, DetectorSpec, ExplainerSpec, InputSpec, Variant

def build(model, *, num_classes, input_size, pretrained):
    import torch
    if model == "building":
        raise RuntimeError("no licence\\nfound")
    if model == "nothing":
        return None
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(3, num_classes)
        def forward(self, images):
            logits = self.head(images.mean((2, 3)))
            if model == "forward":
                raise IndexError("out of luck")
            return logits[:, :1] if model == "shape" else logits
    return Network()

def failing():
    raise ValueError("cannot be made today")

def making(what):
    def make():
        if what == "augmenter":
            def augment(images, generator):
                raise ZeroDivisionError("in the middle of it")
            return augment
        class Broken:
            def attribute(self, classifier, images, targets):
                raise ZeroDivisionError("no map")
            def detect(self, field, pixel_size_um):
                raise ZeroDivisionError("no cells")
        return Broken()
    return make

@hematokit.hookimpl
def register_backbones(register):
    names = ("fine", "building", "nothing", "forward", "shape")
    register(BackboneSpec("inside", "Breaks inside", build, default_variant="fine",
        variants={name: Variant(name, InputSpec(64, 16)) for name in names}))

@hematokit.hookimpl
def register_augmenters(register):
    register(AugmenterSpec("unmade", "Cannot be made", failing))
    register(AugmenterSpec("breaking", "Breaks", making("augmenter")))
    register(AugmenterSpec("halving", "Loses images", lambda: lambda images, generator: images[:1]))

@hematokit.hookimpl
def register_explainers(register):
    register(ExplainerSpec("breaking", "Breaks", making("explainer")))

@hematokit.hookimpl
def register_detectors(register):
    register(DetectorSpec("breaking", "Breaks", making("detector")))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources, target = tmp_path_factory.mktemp("packages"), tmp_path_factory.mktemp("site")
    packages = {**LOADING, **dict.fromkeys(TARGETS, ""), "hemato-inside": INSIDE, "hemato-commands": COMMANDS}
    made = [write_package(sources, name, code, target=TARGETS.get(name, "")) for name, code in packages.items()]
    pip_install(target, *made)
    return target


# --- while loading ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def listing(site: Path) -> dict:
    done = run_hematokit("plugins", "--json", site=site)
    assert done.returncode == 0, done.stderr
    return {"stderr": done.stderr, **json.loads(done.stdout)}


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("hemato-exits", "import: SystemExit: 3"),
        ("hemato-syntax", "import: SyntaxError: "),
        ("hemato-no-module", "import: ModuleNotFoundError: No module named 'hemato_nowhere'"),
        ("hemato-no-object", "import: AttributeError: module 'hemato_no_object' has no attribute 'plugin'"),
        ("hemato-dict", "registered a dict as augmenter; it takes an AugmenterSpec"),
        ("hemato-twice", "augmenter 'twice' is registered twice by package hemato-twice"),
        ("hemato-arguments", "registration: PluginValidationError: "),
        ("hemato-base", "import: Odd: not even an Exception"),
        ("hemato-newer", f"registration: needs hooks 9.1; hematokit {__version__} has hooks 1."),
        ("hemato-older", "is written for hooks 0.1"),
        ("hemato-versionless", "HEMATOKIT_HOOKS is 1, not a version like '1."),
        ("hemato-newer-import", "if the plugin is newer, run: pip install --upgrade hematokit"),
        ("hemato-newer-name", "if the plugin is newer, run: pip install --upgrade hematokit"),
        (
            "hemato-newer-hook",
            f"implements the hook register_segmenters, which is not known here; hematokit {__version__} has",
        ),
        ("hemato-command", "register_commands: the command 'train' is already there, from package hematokit"),
        ("hemato-odd-command", "register_commands: AssertionError: List types"),
    ],
)
def test_what_fails_is_said_in_one_line(listing: dict, package: str, words: str) -> None:
    info = next(item for item in listing["plugins"] if item["package"] == package)
    assert (info["status"], info["provides"]) == ("failed", {})
    assert words in info["reason"]
    assert "\n" not in info["reason"]


def test_everything_else_works(listing: dict) -> None:
    augmenters = {item["name"]: item["package"] for item in listing["augmenters"]}
    assert augmenters["fine"] == "hemato-fine"
    assert augmenters["chatty"] == "hemato-prints"
    assert {"newer", "older", "versionless", "with-command"}.isdisjoint(augmenters)
    assert {"coatnet", "timm"} <= {item["name"] for item in listing["backbones"]}


def test_what_a_plugin_prints_does_not_spoil_json(listing: dict) -> None:
    assert "welcome to my plugin" in listing["stderr"]


def test_a_built_in_command_is_not_replaced(site: Path) -> None:
    env = {"HEMATOKIT_PLUGINS": "hemato-command,hemato-odd-command,hemato-fine"}
    shown = run_hematokit("train", "--help", site=site, env=env)
    assert "mine now" not in shown.stdout
    assert "--backbone" in shown.stdout
    # Nothing of a package whose commands are not all right.
    assert run_hematokit("hello", site=site, env=env).returncode == 2


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["odd-bug"], 2, "command 'odd-bug' of package hemato-commands failed: IndexError: list index out of range"),
        (["odd-file", "no-such"], 2, "command 'odd-file' of package hemato-commands failed: FileNotFoundError: "),
        (["odd-group", "inner"], 2, "command 'inner' of package hemato-commands failed: ZeroDivisionError: "),
        (["odd-user"], 2, "no picture is called a.png; give one that exists"),
        (["odd-stop"], 4, ""),
        (["odd-group", "other"], 0, ""),
    ],
)
def test_a_command_that_breaks_names_its_package(
    site: Path, words: list[str], code: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with plugins_in_this_process(site, "hemato-commands"):
        capfd.readouterr()
        assert main(words) == code
    error = capfd.readouterr().err
    assert error.startswith(f"hematokit: {said}" if said else "")
    assert error.count("\n") == (1 if said else 0)


def test_the_parser_still_speaks_for_a_plugins_command(site: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with plugins_in_this_process(site, "hemato-commands"):
        assert main(["odd-stop", "--code", "0"]) == 2
        assert main(["odd-file"]) == 2
    error = capfd.readouterr().err
    assert "Invalid value for '--code'" in error
    assert "Missing argument 'path'" in error
    assert "of package" not in error


# --- in the middle of work --------------------------------------------------------------------------------------------


@pytest.fixture
def inside(site: Path) -> Iterator[None]:
    with plugins_in_this_process(site, "hemato-inside"):
        assert "inside" in load_plugins().backbones
        yield


def train_with(store: Path, output: Path, **settings: object) -> int:
    given = {**TINY, "epochs": 1, **settings}
    options = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
    return main(["train", str(store), "--output", str(output), *options])


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"backbone": "inside:building"}, "inside:building of package hemato-inside failed to build (RuntimeError: no"),
        ({"backbone": "inside:nothing"}, "of package hemato-inside is a NoneType, not a torch.nn.Module"),
        ({"backbone": "inside:forward"}, "inside:forward of package hemato-inside failed: IndexError: out of luck"),
        ({"backbone": "inside:shape"}, "of package hemato-inside returned (15, 1), not logits (batch, 3)"),
        ({"augmenter": "unmade"}, "'unmade' of package hemato-inside cannot be made: ValueError: cannot be made today"),
        ({"augmenter": "breaking"}, "'breaking' of package hemato-inside failed: ZeroDivisionError: in the middle"),
        ({"augmenter": "halving"}, "'halving' of package hemato-inside returned (1, 3, 64, 64), not images"),
    ],
)
def test_what_breaks_in_training_names_its_package(
    settings: dict, words: str, tiny_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train_with(tiny_store, tmp_path / "run", **settings) == 2
    error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("hematokit: ")]
    assert len(error) == 1
    assert words in error[0]


@pytest.mark.usefixtures("inside")
def test_what_breaks_in_use_names_its_package(tiny_run: Path, tmp_path: Path) -> None:
    model = load_model(tiny_run, "cpu", "torch")
    with pytest.raises(PluginError, match=r"explainer 'breaking' of package hemato-inside failed: ZeroDivisionError"):
        explain_cells(model, np.zeros((1, 64, 64, 3), np.uint8), methods=["breaking"])
    Image.fromarray(np.full((80, 90, 3), 235, np.uint8)).save(tmp_path / "field.png")
    with pytest.raises(PluginError, match=r"detector 'breaking' of package hemato-inside failed: ZeroDivisionError"):
        detect_cells(open_field(tmp_path / "field.png"), make_detector("breaking"))


# --- bundles ----------------------------------------------------------------------------------------------------------


def test_a_bundle_says_where_its_plugin_is(
    site: Path, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with plugins_in_this_process(site, "hemato-inside"):
        assert train_with(tiny_store, run, backbone="inside") == 0
        # A third-party backbone goes wherever a built-in one does.
        assert main(["evaluate", str(run), "--device", "cpu"]) == 0
        explained = ["--output", str(tmp_path / "why"), "--per-class", "1", "--methods", "smoothgrad"]
        assert main(["explain", str(run), *explained, "--set", "smoothgrad.samples=2"]) == 0
        assert main(["export", str(run), "--format", "onnx", "--output", str(tmp_path / "model.onnx")]) == 0
    config = json.loads((run / "bundle" / "config.json").read_text())
    assert (config["backbone"]["package"], config["backbone"]["package_version"]) == ("hemato-inside", "1.2.3")

    def refused(environment: dict[str, str]) -> str:
        for name in ("HEMATOKIT_PLUGINS", "HEMATOKIT_BLOCK_PLUGINS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        load_plugins.cache_clear()
        capfd.readouterr()
        assert main(["evaluate", str(run), "--device", "cpu"]) == 2
        load_plugins.cache_clear()
        return capfd.readouterr().err

    assert load_model(tmp_path / "model.onnx", "cpu", "onnxruntime").codes == ("BLA", "NGS", "LYT")
    assert "hemato-inside 1.2.3, which is not installed; run: pip install hemato-inside" in refused({})
    monkeypatch.syspath_prepend(str(site))
    said = refused({"HEMATOKIT_PLUGINS": "hemato-fine"})
    assert "hemato-inside 1.2.3, which may not load here (HEMATOKIT_PLUGINS does not name it)" in said


def test_spelling_of_packages_does_not_matter(site: Path) -> None:
    with plugins_in_this_process(site, "hemato-fine"):
        registry = PluginRegistry({"HEMATOKIT_PLUGINS": "Hemato_Fine"})
        assert [info.status for info in registry.of_package("hemato.fine")] == ["loaded"]
