"""One settings model per command: flags, files, keyword arguments and reference pages follow from it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

import hematokit
from hematokit.cli.main import COMMANDS, build_app, main
from hematokit.commands import CommandResult, as_paths
from hematokit.pipelines import settings as models
from hematokit.pipelines.settings import ClassifySettings, ExplainSettings, SanitySettings, TileSettings
from hematokit.settings import Settings, flag_name
from hematokit.store.settings import ImportSettings
from hematokit.training.settings import TrainSettings

ROOT = Path(__file__).parents[1]
MODELS: list[type[Settings]] = [ImportSettings, TrainSettings, *(getattr(models, name) for name in models.__all__)]
WITH_COMMAND = [model for model in MODELS if model.__name__ != "StoreCorrectedSettings"]
COMMAND_OF = {"ExplainField": "explain", "Sanity": "explain", "Faithfulness": "explain"}


@pytest.fixture(scope="module")
def generated() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generated", ROOT / "docs/_ext/generated.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["generated"] = module
    spec.loader.exec_module(module)
    return module


def test_the_typed_keyword_arguments_are_those_of_the_models(generated: ModuleType) -> None:
    file = ROOT / "src/hematokit/overrides.py"
    made = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(file), "-"],
        input=generated.overrides_source(),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    ).stdout
    assert made == file.read_text(), "run: make overrides"


@pytest.mark.parametrize("model", WITH_COMMAND, ids=lambda model: model.__name__)
def test_every_field_has_a_flag_and_a_description(model: type[Settings]) -> None:
    stem = model.__name__.removesuffix("Settings")
    command = typer.main.get_command(build_app(COMMAND_OF.get(stem, stem.lower()))).commands[
        COMMAND_OF.get(stem, stem.lower())
    ]
    flags = {flag for parameter in command.params for flag in parameter.opts}
    for name, field in model.model_fields.items():
        assert field.description, name
        if field.annotation not in (dict[str, Any], dict[str, dict[str, Any]]) and name != "store":
            assert flag_name(name) in flags, name


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_one_command_is_that_of_the_whole_program(name: str) -> None:
    whole = typer.main.get_command(build_app()).commands[name]
    alone = typer.main.get_command(build_app(name)).commands[name]
    assert [parameter.name for parameter in alone.params] == [parameter.name for parameter in whole.params]


def test_the_list_of_commands_imports_none_of_them() -> None:
    code = "import sys; from hematokit.cli.main import main; main(['--help']); print(*sys.modules, sep='\\n')"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "Train a classifier" in said
    loaded = said.splitlines()
    assert not {"torch", "pandas", "pydantic", "hematokit.cli.train"} & set(loaded)


def test_later_layers_take_precedence_and_options_of_plugins_are_merged() -> None:
    first = ClassifySettings(min_probability=0.7, detector_options={"a": 1, "b": 2})
    made = ClassifySettings.combine(first, {"detector_options": {"b": 3}}, None, {"batch_size": 8})
    assert (made.min_probability, made.batch_size, made.detector_options) == (0.7, 8, {"a": 1, "b": 3})
    # Only what was given counts: defaults of a later model do not undo an earlier one.
    assert ClassifySettings.combine(first, ClassifySettings(batch_size=2)).min_probability == 0.7


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (ClassifySettings, {"min_probability": 2}, "'min_probability' (--min-probability)"),
        (ClassifySettings, {"nonsense": 1}, "'nonsense' does not exist; settings: batch_size"),
        (TrainSettings, {"store": "a", "output": "b", "balance": "some"}, "'balance' (--balance)"),
        (SanitySettings, {"retrain": False, "training": {"epochs": 1}}, "training needs retrain"),
    ],
)
def test_a_value_that_does_not_fit_is_one_line(model: type[Settings], given: dict[str, Any], message: str) -> None:
    with pytest.raises(model.error) as caught:
        model.combine(given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        ClassifySettings(
            min_probability=0.7, exclude_border=True, pixel_size_um=0.25, detector_options={"min_diameter_um": 5}
        ),
        TileSettings(near_duplicates=False, only=["a", "b c"], class_map=["x=BLA"]),
        ExplainSettings(methods=["grad-cam"], figures=False, options={"grad-cam": {"layer": "8x8"}}),
    ],
    ids=lambda settings: type(settings).__name__,
)
def test_the_words_of_a_command_give_the_same_settings(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = type(settings).__name__.removesuffix("Settings").lower()
    caught: list[dict[str, Any]] = []

    def catch(*positional: object, **given: Any) -> None:
        caught.append({key: value for key, value in given.items() if key in type(settings).model_fields})
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module(f"hematokit.pipelines.{name}"), name, catch)
    fixed = {
        "classify": ["fields", "--model", "run", "--output", "out"],
        "tile": ["fields", "store.zarr"],
        "explain": ["run", "--output", "out"],
    }[name]
    assert main([name, *fixed, *settings.command_words()]) == 130
    made = type(settings).combine(caught[0])
    if isinstance(settings, ClassifySettings):
        # The type of an option is known only where its plugin is.
        assert made.detector_options == {"min_diameter_um": "5"}
        made.detector_options = settings.detector_options  # type: ignore[attr-defined]
    assert made == settings


def test_a_file_a_flag_and_python_are_the_same(tiny_store: Path, tmp_path: Path) -> None:
    given = {"backbone": "timm:test_vit", "image_size": 160, "epochs": 1, "batch_size": 8, "seed": 3, "device": "cpu"}
    (tmp_path / "lab.yaml").write_text("\n".join(f"{key}: {value}" for key, value in given.items()))
    ways = [
        hematokit.train(TrainSettings(store=str(tiny_store), output=str(tmp_path / "a"), **given)),
        hematokit.train(tiny_store, tmp_path / "b", **given),
    ]
    words = ["train", str(tiny_store), "--output", str(tmp_path / "c"), "--config", str(tmp_path / "lab.yaml")]
    assert main(words) == 0
    model = hematokit.load_model(tmp_path / "c" / "bundle", "cpu")
    for result in ways:
        assert result.finished
        other = hematokit.load_model(result.bundle, "cpu")
        assert all(
            (a == b).all() for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True)
        )


def test_one_string_is_one_path() -> None:
    assert as_paths("fields") == as_paths(Path("fields")) == [Path("fields")]
    assert as_paths(["a", Path("b")]) == [Path("a"), Path("b")]


def test_results_are_readable_as_text_json_and_html() -> None:
    class Escaped(CommandResult):
        def lines(self) -> list[str]:
            return ["a < b", "c"]

        def to_dict(self) -> dict[str, Any]:
            return {}

    assert Escaped().summary() == "a < b\nc"
    assert Escaped()._repr_html_() == "<pre>a &lt; b\nc</pre>"


def test_no_public_function_has_more_than_eight_parameters() -> None:
    many = {
        name: len(inspect.signature(value).parameters)
        for name in hematokit.__all__
        if inspect.isfunction(value := getattr(hematokit, name)) and len(inspect.signature(value).parameters) > 8
    }
    assert many == {}
