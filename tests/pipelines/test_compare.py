"""Comparing run folders, and what is written and printed."""

from __future__ import annotations

import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from hematokit.cli.compare import print_comparison
from hematokit.errors import EvaluationError
from hematokit.pipelines.compare import CompareResult, compare
from hematokit.pipelines.evaluate import evaluate
from tinykit import seal_bundle


@pytest.fixture(scope="module")
def runs(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three runs: one evaluated, one not yet, one that calls every cell its first class."""
    folder = tmp_path_factory.mktemp("compared")
    paths = [folder / name for name in ("good", "double", "[bold]<i>poor")]
    for path in paths:
        shutil.copytree(tiny_run, path)
    evaluate(paths[0], device="cpu", bootstrap=0)
    poor = evaluate(paths[2], device="cpu", bootstrap=0)
    table = poor.predictions.assign(predicted="BLA", p_BLA=0.8, p_NGS=0.1, p_LYT=0.1)
    table.to_parquet(poor.paths["predictions"])
    return paths


@pytest.fixture(scope="module")
def compared(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> CompareResult:
    return compare(runs, output=tmp_path_factory.mktemp("comparison") / "new", device="cpu")


def test_the_best_is_named_and_the_missing_evaluation_made(compared: CompareResult, runs: list[Path]) -> None:
    assert (runs[1] / "evaluation" / "test" / "report.html").is_file()
    assert compared.comparison.best in ("good", "double")
    assert "is not significant" in compared.comparison.verdict
    assert "more than chance" in compared.comparison.verdict
    pairs = {(pair.first, pair.second): pair for pair in compared.comparison.pairs}
    assert not pairs["good", "double"].significant
    assert pairs["good", "[bold]<i>poor"].significant


def test_json_csv_and_html_agree(compared: CompareResult) -> None:
    data = json.loads(compared.paths["json"].read_text())
    assert data["best"] == compared.comparison.best
    assert set(data["runs"]) == set(compared.comparison.scores)
    table = pd.read_csv(compared.paths["csv"]).set_index("code")
    for code, row in table.iterrows():
        assert row["good:recall"] == pytest.approx(data["runs"]["good"]["per_class"][code]["recall"])
    source = compared.paths["report"].read_text(encoding="utf-8")
    assert data["verdict"].split(".")[0] in source
    assert "For research use only" in source

    tags: list[str] = []

    class Page(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)

    Page().feed(source)
    assert {"i", "script", "link"}.isdisjoint(tags)


def test_the_console_shows_names_as_they_are(compared: CompareResult) -> None:
    out = io.StringIO()
    print_comparison(compared, Console(file=out))
    printed = out.getvalue()
    for phrase in ("[bold]<i>poor", "Macro F1", "McNemar", compared.comparison.verdict, "comparison.html", "BLA *"):
        assert phrase in printed


def test_predictions_of_an_older_bundle_are_made_again(runs: list[Path], tmp_path: Path) -> None:
    run = tmp_path / "resumed"
    shutil.copytree(runs[2], run)
    config = json.loads((run / "bundle" / "config.json").read_text())
    config["created"] = "2030-01-01T00:00:00+00:00"
    seal_bundle(run / "bundle", config)
    result = compare([runs[0], run], output=tmp_path / "out", device="cpu")
    # The doctored predictions are gone: both runs are the same model again.
    assert result.comparison.pairs[0].macro_f1_difference == 0.0


@pytest.mark.parametrize("key", ["store_hash", "split_hash"])
def test_predictions_of_a_store_that_has_changed_are_made_again(runs: list[Path], tmp_path: Path, key: str) -> None:
    run = tmp_path / "changed"
    shutil.copytree(runs[2], run)
    path = run / "evaluation" / "test" / "metrics.json"
    document = json.loads(path.read_text())
    assert document["evaluated"][key]
    document["evaluated"][key] = "of the labels, or the split, at that time"
    path.write_text(json.dumps(document))
    result = compare([runs[0], run], output=tmp_path / "out", device="cpu")
    assert result.comparison.pairs[0].macro_f1_difference == 0.0


def test_runs_of_one_name_are_told_apart(runs: list[Path], tmp_path: Path) -> None:
    again = tmp_path / "elsewhere" / "good"
    shutil.copytree(runs[0], again)
    result = compare([runs[0], again], output=tmp_path / "out", device="cpu")
    assert set(result.comparison.scores) == {f"{runs[0].parent.name}/good", "elsewhere/good"}


def test_mistakes_of_use_are_one_line(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="two or more models"):
        compare(runs[:1], output=tmp_path)
    with pytest.raises(EvaluationError, match="given twice"):
        compare([runs[0], runs[0] / "bundle"], output=tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EvaluationError, match="cannot write to"):
        compare(runs[:2], output=tmp_path / "file", device="cpu")
