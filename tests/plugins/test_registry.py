"""The registry, with real packages that pip installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import hematokit.hookspecs as old_hookspecs
import hematokit.specs as old_specs
from hematokit.errors import PluginError
from hematokit.plugins import PluginRegistry, hookspecs, load_plugins, registered, specs
from hematokit.plugins.specs import AugmenterSpec, BackboneSpec, Option, PathKind
from pluginkit import pip_install, run_hematokit, write_package

FIRST_NAMES = {
    "hematokit.specs": (
        *("DETECTION_COLUMNS", "AnySpec", "Augmenter", "AugmenterSpec", "BackboneSpec", "Detector", "DetectorSpec"),
        *("Explainer", "ExplainerSpec", "InputSpec", "Option", "PathKind", "Variant"),
    ),
    "hematokit.hookspecs": ("HOOKS", "PROJECT", "hookimpl", "hookspec"),
}
"""Public names of the modules in version 0.1.0."""

GOOD = """
import hematokit
# As plugins for hooks 1.x may import them.
from hematokit.hookspecs import HOOKS, hookimpl
from hematokit.specs import AugmenterSpec, BackboneSpec, InputSpec, Option, Variant

def build(model, *, num_classes, input_size, pretrained, width):
    import torch
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, width, 3, stride=4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(width, num_classes))

def augmenter():
    return lambda images, generator: images

@hookimpl
def register_backbones(register):
    register(BackboneSpec(
        name="thimble", description="A thimbleful of a network", factory=build,
        options={"width": Option(int, 8, "channels", 1, 64)},
        variants={"one": Variant("one", InputSpec(32, 8))}, default_variant="one"))

@hematokit.hookimpl
def register_augmenters(register):
    register(AugmenterSpec("still", "Does nothing", augmenter))

@hematokit.hookimpl
def register_commands(app):
    @app.command("greet")
    def greet():
        "Say hello."
        print("hello from a plugin")
"""
BROKEN_IMPORT = "import a_module_that_does_not_exist\n"
BROKEN_REGISTRATION = """
import hematokit
from hematokit.plugins.specs import AugmenterSpec
@hematokit.hookimpl
def register_augmenters(register):
    register(AugmenterSpec("half", "Registered before the failure", lambda: None))
    raise RuntimeError("no licence\\nfound")
"""
TAKEN_NAME = """
import hematokit
from hematokit.plugins.specs import AugmenterSpec
@hematokit.hookimpl
def register_augmenters(register):
    register(AugmenterSpec("flips", "Takes a name that exists", lambda: None))
"""
WRITES_A_MARK = "import pathlib, os\npathlib.Path(os.environ['MARK']).write_text('imported')\n"


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources, target = tmp_path_factory.mktemp("packages"), tmp_path_factory.mktemp("site")
    pip_install(
        target,
        write_package(sources, "hemato-good", GOOD),
        write_package(sources, "hemato-broken", BROKEN_IMPORT),
        write_package(sources, "hemato-raises", BROKEN_REGISTRATION),
        write_package(sources, "hemato-taken", TAKEN_NAME),
        write_package(sources, "hemato-marks", WRITES_A_MARK),
    )
    return target


@pytest.fixture(scope="session")
def listing(site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    mark = tmp_path_factory.mktemp("mark") / "mark"
    done = run_hematokit("plugins", "--json", site=site, env={"MARK": str(mark)})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def by_package(listing: dict, package: str) -> dict:
    return next(item for item in listing["plugins"] if item["package"] == package)


def test_the_modules_of_hooks_1_pass_on_all_public_names() -> None:
    for old, new in ((old_specs, specs), (old_hookspecs, hookspecs)):
        missing = [name for name in FIRST_NAMES[old.__name__] if getattr(old, name) is not getattr(new, name)]
        assert not missing
        assert set(FIRST_NAMES[old.__name__]) <= set(old.__all__)


def test_an_installed_package_appears(listing: dict) -> None:
    info = by_package(listing, "hemato-good")
    assert info["status"] == "loaded"
    assert info["version"] == "1.2.3"
    thimble = next(item for item in listing["backbones"] if item["name"] == "thimble")
    assert thimble["package"] == "hemato-good"
    assert thimble["options"]["width"]["default"] == 8
    assert any(item["name"] == "still" for item in listing["augmenters"])


def test_its_command_appears(site: Path, tmp_path: Path) -> None:
    done = run_hematokit("greet", site=site, env={"MARK": str(tmp_path / "m")})
    assert done.stdout == "hello from a plugin\n"


def test_failures_are_reported_and_everything_else_works(listing: dict) -> None:
    broken = by_package(listing, "hemato-broken")
    assert broken["status"] == "failed"
    assert "a_module_that_does_not_exist" in broken["reason"]
    raises = by_package(listing, "hemato-raises")
    assert raises["status"] == "failed"
    assert "no licence found" in raises["reason"]
    # What it had registered before it failed is not half-there.
    assert not any(item["name"] == "half" for item in listing["augmenters"])
    assert {"coatnet", "efficientnetv2", "resnext50", "timm"} <= {item["name"] for item in listing["backbones"]}


def test_a_taken_name_names_both_packages(listing: dict) -> None:
    taken = by_package(listing, "hemato-taken")
    assert taken["status"] == "failed"
    assert "hemato-taken" in taken["reason"]
    assert "package hematokit" in taken["reason"]
    flips = [item for item in listing["augmenters"] if item["name"] == "flips"]
    assert [item["package"] for item in flips] == ["hematokit"]


def test_failures_stand_in_the_readable_listing(site: Path, tmp_path: Path) -> None:
    done = run_hematokit("plugins", site=site, env={"MARK": str(tmp_path / "m")})
    assert done.returncode == 0
    line = next(line for line in done.stdout.splitlines() if "hemato-broken" in line)
    assert line.startswith("failed: hemato-broken 1.2.3")


@pytest.mark.parametrize(
    ("variables", "imported"),
    [
        ({}, True),
        ({"HEMATOKIT_PLUGINS": ""}, False),
        ({"HEMATOKIT_PLUGINS": "hemato-good"}, False),
        ({"HEMATOKIT_PLUGINS": "hemato-good,Hemato_Marks"}, True),
        ({"HEMATOKIT_BLOCK_PLUGINS": "hemato-marks"}, False),
    ],
)
def test_a_blocked_plugin_is_never_imported(
    site: Path, tmp_path: Path, variables: dict[str, str], imported: bool
) -> None:
    mark = tmp_path / "mark"
    done = run_hematokit("plugins", "--json", site=site, env={"MARK": str(mark), **variables})
    assert done.returncode == 0
    assert mark.exists() is imported
    info = by_package(json.loads(done.stdout), "hemato-marks")
    assert info["status"] == ("loaded" if imported else "blocked")


def test_unknown_names_say_what_there_is() -> None:
    registry = PluginRegistry({"HEMATOKIT_PLUGINS": ""})
    with pytest.raises(PluginError, match=r"no backbone is called 'coatnett'; there are: coatnet, "):
        registry.backbone("coatnett")
    with pytest.raises(PluginError, match=r"no variant 'huge'; its variants: 0, 1"):
        registry.backbone("coatnet:huge")
    with pytest.raises(PluginError, match="disagree"):
        registry.backbone("coatnet:nano", "pico")


def test_variants_resolve() -> None:
    registry = PluginRegistry({"HEMATOKIT_PLUGINS": ""})
    assert registry.backbone("coatnet")[2].model == "coatnet_0_224"
    assert registry.backbone("coatnet", "nano")[2].model == "coatnet_nano_rw_224"
    assert registry.backbone("timm:resnet18")[2].model == "resnet18"
    with pytest.raises(PluginError, match="timm has no model 'resnet1888'"):
        registry.backbone("timm:resnet1888")


def test_options_are_checked() -> None:
    spec = AugmenterSpec("x", "x", lambda: None, {"share": Option(float, 0.5, "a share", 0.0, 1.0)})
    assert spec.resolve_options({}) == {"share": 0.5}
    assert spec.resolve_options({"share": "0.25"}) == {"share": 0.25}
    with pytest.raises(PluginError, match="outside 0 to 1"):
        spec.resolve_options({"share": 2})
    with pytest.raises(PluginError, match="outside 0 to 1"):
        spec.resolve_options({"share": float("nan")})
    with pytest.raises(PluginError, match="not a number"):
        spec.resolve_options({"share": "much"})
    with pytest.raises(PluginError, match="no option 'shares'; its options: share"):
        spec.resolve_options({"shares": 1})


def test_an_option_with_choices_takes_only_those() -> None:
    options = {
        "head": Option(str, "linear", "the head", choices=("linear", "knn")),
        "n": Option(int, 1, "n", choices=(1, 2)),
    }
    spec = AugmenterSpec("x", "x", lambda: None, options)
    assert spec.resolve_options({"head": "knn", "n": "2"}) == {"head": "knn", "n": 2}
    with pytest.raises(PluginError, match="option head: 'forest' is none of linear, knn; the head"):
        spec.resolve_options({"head": "forest"})
    with pytest.raises(PluginError, match="option n: 3 is none of 1, 2"):
        spec.resolve_options({"n": 3})


def test_a_path_is_looked_for_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here.txt").write_text("")
    (tmp_path / "folder").mkdir()

    def convert(path: str | None, kind: PathKind) -> str:
        return str(Option(str, "", "pictures", path=kind).convert("of", path))

    assert convert("here.txt", "file") == convert("here.txt", "existing") == "here.txt"
    assert convert("~/here.txt", "file") == str(tmp_path / "here.txt")
    assert convert("folder", "folder") == convert("folder", "existing") == "folder"
    assert convert("new.txt", "any") == "new.txt"
    assert convert("", "file") == convert(None, "file") == ""
    for path, kind, what in (
        ("folder", "file", "file"),
        ("here.txt", "folder", "folder"),
        ("x", "existing", "file or"),
    ):
        with pytest.raises(PluginError, match=f"option of: there is no {what}.* {path}; pictures"):
            convert(path, kind)


def test_only_specs_register() -> None:
    registry = PluginRegistry({"HEMATOKIT_PLUGINS": ""})
    info = registry.backbones.owner("coatnet")
    with pytest.raises(PluginError, match="takes a BackboneSpec"):
        registry.backbones.check(AugmenterSpec("a", "b", lambda: None), info)  # type: ignore[arg-type]
    with pytest.raises(PluginError, match="not usable"):
        registry.backbones.check(BackboneSpec("Bad Name", "b", lambda: None), info)


def test_the_listing_needs_no_extra(tmp_path: Path) -> None:
    """As where hematokit is installed alone: what the extras bring cannot be imported, nor can torch be needed."""
    blocked = "bioio dask distributed onnx onnxruntime onnxscript openvino bioimageio fastapi uvicorn napari magicgui"
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        f"BLOCKED = set({blocked.split()!r} + ['qtpy', 'PyQt6', 'hatchling', 'httpx', 'torch', 'timm'])\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in BLOCKED:\n"
        "            raise ModuleNotFoundError('blocked: ' + name, name=name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
    )
    env = {"HEMATOKIT_PLUGINS": ""}
    done = run_hematokit("plugins", "--json", site=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert {item["status"] for item in json.loads(done.stdout)["plugins"]} <= {"loaded", "blocked"}
    assert run_hematokit("train", "--help", site=tmp_path, env=env).returncode == 0
    # Proof that the blocker works.
    assert "torch" in run_hematokit("plugins", "check", "flips", site=tmp_path, env=env).stderr


def still(**options: object) -> object:
    return lambda images, generator: images


def test_specs_are_registered_for_the_length_of_a_block() -> None:
    registry = load_plugins()
    before = registry.augmenters.names()
    with registered(AugmenterSpec("still", "Nothing", still), package="their-package", version="3.1"):
        assert registry.augmenters.owner("still").package == "their-package"
        assert [info.version for info in registry.of_package("their_package")] == ["3.1"]
        with (
            pytest.raises(PluginError, match="already registered by package their-package"),
            registered(AugmenterSpec("other", "Nothing", still), AugmenterSpec("still", "Nothing", still)),
        ):
            pass
        assert "other" not in registry.augmenters
    assert registry.augmenters.names() == before
    assert registry.of_package("their-package") == []


def test_a_made_plugin_has_its_options_and_its_identity(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for folder, text in (("a", "one"), ("b", "one"), (".", "two")):
        (tmp_path / folder / "stains.txt").write_text(text)
    options = {"of": Option(str, "", "a file", path="file"), "share": Option(float, 0.5, "a share")}
    with registered(AugmenterSpec("still", "Nothing", still, options), package="their-package", version="3.1"):
        registry = load_plugins().augmenters
        first, again, other = (
            registry.make("still", {"of": str(tmp_path / folder / "stains.txt")}) for folder in ("a", "b", ".")
        )
    assert first.title == "augmenter 'still' of package their-package"
    assert first.options == {"of": str(tmp_path / "a" / "stains.txt"), "share": 0.5}
    assert {**first.identity(), "options": None} == {
        "name": "still",
        "package": "their-package",
        "version": "3.1",
        "options": None,
    }
    assert first.identity() == again.identity() != other.identity()
    assert str(tmp_path) not in str(first.identity())
