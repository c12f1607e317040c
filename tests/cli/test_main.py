"""The command line as a whole: quick help, one-line errors, exit codes."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from hematokit.cli.main import COMMANDS, build_app, main
from hematokit.errors import describe_missing_module
from pluginkit import run_hematokit
from tinykit import TINY


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom hematokit.cli.main import main\nassert main(['--help']) == 0\n"
        "heavy = {'torch', 'zarr', 'tensorstore', 'pandas', 'numpy', 'timm', 'matplotlib', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_import_of_the_package_is_light() -> None:
    code = "import sys, hematokit\nassert not {'torch', 'zarr', 'pandas', 'pluggy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("command", sorted(name.rstrip("_") for name in COMMANDS))
def test_every_command_helps_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    output = capsys.readouterr().out
    assert command == "store" or "Example: hematokit" in " ".join(output.split())


def test_the_commands_are_all_there() -> None:
    import typer

    names = set(typer.main.get_command(build_app()).commands)  # type: ignore[attr-defined]
    assert {command.rstrip("_") for command in COMMANDS} <= names


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "nowhere.zarr", "--output", "run"], "nowhere.zarr"),
        (["train", "--output", "run"], "no store given"),
        (["train", "x.zarr"], "no run folder given"),
        (["train", "x.zarr", "--output", "r", "--set", "lr"], "is not KEY=VALUE"),
        (["train", "x.zarr", "--output", "r", "--set", "nonsense=1"], "setting 'nonsense' does not exist"),
        (["train", "x.zarr", "--output", "r", "--config", "none.yaml"], "none.yaml cannot be read"),
        (["train", "x.zarr", "--output", "r", "--balance", "some"], "setting 'balance'"),
        (["evaluate", "nowhere"], "neither a run nor a bundle"),
        (["store", "info", "nowhere.zarr"], "nowhere.zarr"),
        (["split", "nowhere.zarr"], "nowhere.zarr"),
        (["import", "nowhere", "new.zarr"], "nowhere"),
    ],
)
def test_a_users_mistake_is_one_line_and_code_2(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    errors = capfd.readouterr().err.strip()
    assert words in errors
    assert len(errors.splitlines()) == 1
    assert errors.startswith("hematokit: ")
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("skimage", "this needs scikit-image, which is not installed; run: pip install scikit-image"),
        ("PIL", "this needs pillow, which is not installed; run: pip install pillow"),
        ("yaml", "this needs pyyaml, which is not installed; run: pip install pyyaml"),
        ("captum", "this needs captum, which is not installed; run: pip install captum"),
        ("ome_zarr", "this needs ome-zarr, which is not installed; run: pip install ome-zarr"),
        ("fastapi", "this needs fastapi, which is not installed; run: pip install 'hematokit[serve]'"),
        ("distributed", "this needs distributed, which is not installed; run: pip install 'hematokit[distributed]'"),
        ("nobodys_module", "module nobodys_module is missing; install the package that provides it"),
    ],
)
def test_a_missing_package_is_called_as_pip_calls_it(
    module: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever a command needs: its module has another name than its package, or belongs to an extra."""

    def needs_it(*given: object, **more: object) -> None:
        importlib.import_module(module)

    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("hematokit.cli.main.build_app", needs_it)
    assert main(["store", "info", "x.zarr"]) == 2
    assert capsys.readouterr().err == f"hematokit: {said}\n"


def test_who_needs_a_missing_module_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody knows its package, the one that imports it is named, and no name for pip is made up."""
    (tmp_path / "a_dependency.py").write_text("import deep_inside\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"a_dependency": ["a-dependency"]})
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module("a_dependency")
    said = describe_missing_module(caught.value)
    assert said.startswith("module deep_inside is missing, which package a-dependency needs; ")
    assert "pip install" not in said


def test_unknown_options_are_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--nonsense"]) == 2
    assert "--nonsense" in capsys.readouterr().err


def test_debug_shows_where(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path), "--debug"]) == 2
    assert "Traceback" in capfd.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from hematokit import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hematokit {__version__}\n"


def test_train_from_flags_file_and_set(tiny_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Flags win over --set, which wins over the file; options of plugins merge."""
    import yaml

    settings = TINY | {"epochs": 9, "lr": 0.5, "batch_size": 4, "augmenter_options": {"rotation": 10}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    run = tmp_path / "a run with spaces ü"
    code = main(
        ["train", str(tiny_store), "--output", str(run), "--config", str(tmp_path / "c.yaml"), "--epochs", "1", "--set",
         "lr=1e-3", "--set", "epochs=5", "--set", "batch_size=32", "--set", "augmenter.flip=false", "--json"]
    )  # fmt: skip
    captured = capfd.readouterr()
    assert code == 0, captured.err
    answer = json.loads(captured.out)
    assert answer["finished"] is True
    assert answer["epochs"] == 1
    written = yaml.safe_load((run / "config.yaml").read_text())["settings"]
    assert written["lr"] == 0.001
    assert written["batch_size"] == 32
    assert written["augmenter_options"] == {"rotation": 10, "flip": False}


def test_demo_runs_and_goes_on(tmp_path: Path) -> None:
    """The demonstration in small; a second call finds everything done."""
    folder = tmp_path / "demo"
    first = run_hematokit("demo", "--output", str(folder), "--epochs", "1", "--device", "cpu", "--json")
    assert first.returncode == 0, first.stderr
    answer = json.loads(first.stdout)
    assert Path(answer["report"]).read_text().lower().count("research use only") >= 1
    assert Path(answer["picture"]).read_bytes()[:4] == b"\x89PNG"
    assert 0 <= answer["accuracy"] <= 1
    bundle = (folder / "run" / "bundle" / "config.json").read_bytes()
    second = run_hematokit("demo", "--output", str(folder), "--epochs", "1", "--device", "cpu", "--json")
    assert second.returncode == 0, second.stderr
    assert json.loads(second.stdout)["accuracy"] == answer["accuracy"]
    assert json.loads((folder / "run" / "bundle" / "config.json").read_text())["training"]["epochs"] == 1
    assert bundle


def test_demo_leaves_other_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    done = run_hematokit("demo", "--output", str(tmp_path))
    assert done.returncode == 2
    assert "contains something else" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
