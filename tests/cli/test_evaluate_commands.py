"""``hematokit evaluate`` and ``hematokit compare``, as typed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hematokit.cli.main import main


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "a run"))


def test_evaluate_prints_figures_and_where_the_report_lies(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "Macro F1" in printed
    assert f"Report: {run / 'evaluation' / 'test' / 'report.html'}" in printed
    assert "research use" in printed


def test_evaluate_json_is_one_document(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--device", "cpu", "--split", "val", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == data | json.loads(Path(data["paths"]["metrics"]).read_text())


def test_compare_prints_a_verdict_and_json(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = shutil.copytree(run, tmp_path / "other")
    assert main(["compare", str(run), str(other), "--device", "cpu"]) == 0
    assert "has the highest macro F1" in capsys.readouterr().out
    assert (tmp_path / "comparison" / "comparison.csv").is_file()
    assert main(["compare", str(run), str(other), "--output", "again", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["best"] == "a run"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["evaluate", "{run}", "--split", "nope"], "no cell in a split 'nope'"),
        (["evaluate", "{run}", "--store", "gone.zarr"], "gone.zarr does not exist"),
        (["evaluate", "nowhere"], "neither a run nor a bundle"),
        (["evaluate", "{run}", "--images", "gone"], "does not exist"),
        (["compare", "{run}"], "two or more models"),
        (["compare", "{run}", "nowhere"], "neither a run nor a bundle"),
    ],
)
def test_mistakes_are_one_line_and_code_two(
    run: Path, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([argument.format(run=run) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert line in captured.err
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"Example: hematokit {command} runs/coatnet" in capsys.readouterr().out


def test_train_json_has_the_warnings(tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--backbone", "timm:test_resnet", "--image-size", "64", "--epochs", "1", "--device", "cpu", "--json"]
    assert main(["train", str(tiny_store), "--output", str(tmp_path / "run"), *words]) == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert [warning.partition(",")[0] for warning in warnings] == ["the pixel size of the training cells is not known"]
