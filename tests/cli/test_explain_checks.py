"""The checks of explanations from the command line: ``hematokit explain --sanity`` and ``--faithfulness``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from hematokit.cli.main import main


def test_two_models_are_retrained_and_checked_in_one_report(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_run, other)
    output = tmp_path / "checks"
    words = ["explain", tiny_run, "--also", other, "--sanity", "--methods", "grad-cam", "--per-class", "2", "--json"]
    words += ["--train-per-class", "12", "--set", "training.epochs=2", "--output", output, "--device", "cpu"]
    assert main([str(word) for word in words]) == 0
    found = json.loads(capsys.readouterr().out)["sanity"]

    table = pd.read_csv(output / "sanity.csv")
    assert set(table["model"]) == {tiny_run.name, "other"}
    assert set(table["method"]) >= {"grad-cam"}
    # Both halves were run: the random weights, and the retraining on shuffled labels.
    assert set(table["check"]) == {"parameters", "labels"}
    assert set(table["verdict"]) <= {"sensitive", "not sensitive", "unclear"}
    assert "training.epochs=2" in (output / "sanity.html").read_text(encoding="utf-8")
    assert Path(found["paths"]["report"]) == output / "sanity.html"


def test_faithfulness_is_written_from_the_command_line(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "checks"
    words = ["explain", tiny_run, "--faithfulness", "--methods", "grad-cam", "--per-class", "2", "--device", "cpu"]
    assert main([*map(str, words), "--output", str(output)]) == 0
    said = capsys.readouterr().out
    table = pd.read_csv(output / "faithfulness.csv")
    assert {"grad-cam", "random pixels", "random blobs", "centred Gaussian"} <= set(table["method"])
    assert str(output / "faithfulness.html") in said
    assert not (output / "sanity.html").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--also", "OTHER"], "--also is for --sanity and --faithfulness"),
        (["--sanity", "--also", "SAME"], "a model was named twice"),
        (["--faithfulness", "--set", "training.epochs=2"], "--set training.NAME is for the models"),
        (["--sanity", "--no-retrain", "--set", "training.epochs=2"], "training needs retrain"),
        (["--sanity", "--set", "training.nonsense=2"], "nonsense"),
    ],
)
def test_a_mistake_is_one_line(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    given = [str(tiny_run) if word == "SAME" else word for word in words]
    code = main(
        ["explain", str(tiny_run), "--methods", "grad-cam", "--per-class", "1", "--output", str(tmp_path / "x"), *given]
    )
    err = capsys.readouterr().err
    assert code == 2
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "x" / "sanity.html").exists()
