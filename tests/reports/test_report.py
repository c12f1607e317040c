"""The evaluation report of a real, tiny run."""

from __future__ import annotations

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import markupsafe
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hematokit.errors import EvaluationError
from hematokit.evaluation.evaluating import Evaluation
from hematokit.models import TrainingRecord, load_model
from hematokit.pipelines.evaluate import evaluate
from hematokit.reports import evaluation as figures
from hematokit.reports import text
from hematokit.reports.evaluation import render_report
from hematokit.store import open_store
from tinykit import seal_bundle, write_crops


@pytest.fixture(scope="module")
def evaluated(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return evaluate(tiny_run, output=tmp_path_factory.mktemp("evaluated") / "test", device="cpu", bootstrap=100)


class Page(HTMLParser):
    """Collects the tags and the addresses that a page refers to."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_everything_is_written_and_agrees(evaluated: Evaluation, tiny_store: Path) -> None:
    assert set(evaluated.paths) == {"metrics", "predictions", "table2", "report", "picture"}
    metrics = json.loads(evaluated.paths["metrics"].read_text())
    assert metrics == json.loads(json.dumps(evaluated.metrics))
    predictions = pd.read_parquet(evaluated.paths["predictions"])
    assert metrics["n"] == len(predictions)
    assert metrics["accuracy"] == pytest.approx((predictions["label"] == predictions["predicted"]).mean())
    assert metrics["accuracy"] > 0.5
    assert metrics["left_out"]["ART"] > 0
    table = pd.read_csv(evaluated.paths["table2"])
    assert list(table["code"]) == list(metrics["per_class"])
    for row in table.itertuples():
        entry = metrics["per_class"][row.code]
        assert row.recall == pytest.approx(entry["recall"])
        assert [row.recall_low, row.recall_high] == pytest.approx(entry["intervals"]["recall"])
    picture = Image.open(evaluated.paths["picture"])
    assert picture.width > 1000
    # Not an empty sheet.
    assert np.asarray(picture.convert("L")).std() > 5


def test_predictions_are_those_of_the_bundle(evaluated: Evaluation, tiny_run: Path, tiny_store: Path) -> None:
    table = evaluated.predictions
    model = load_model(tiny_run, device="cpu")
    again = model.predict(open_store(tiny_store).patches(list(table["cell_id"])))
    assert list(again["predicted"]) == list(table["predicted"])
    assert np.allclose(again["probability"], table["probability"], atol=1e-5)


def test_the_report_opens_offline_and_says_what_a_reader_needs(evaluated: Evaluation) -> None:
    source = evaluated.paths["report"].read_text(encoding="utf-8")
    page = Page(source)
    assert {"script", "link", "iframe", "object", "form"}.isdisjoint(page.tags)
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert not re.findall(r"url\(|@import|http:|https:", re.sub(r"data:[^\"]*", "", source))
    for phrase in (
        "For research use only",
        "One-vs-rest accuracy",
        "Precision-recall curves",
        "Confusion matrix",
        "Class distribution",
        "What the model was trained on",
        "timm:test_resnet",
        "hematokit evaluate",
        text.figure(evaluated.metrics["macro_f1"]),
        "Lymphocyte",
    ):
        assert phrase in page.text, phrase
    left_out = evaluated.metrics["left_out"]["ART"]
    assert f"ART {left_out}" in page.text
    svg = [item for item in page.addresses if item.startswith("data:image/svg")]
    assert len(svg) == 5
    for item in svg:
        assert b"<svg" in base64.b64decode(item.partition(",")[2])[:600]


def test_worst_mistakes_show_the_right_cells(tiny_run: Path, tiny_store: Path, tmp_path: Path) -> None:
    crops = write_crops(tmp_path / "crops", {"BLA": 6, "LYT": 6}, seed=5)
    (crops / "LYT").rename(crops / "NGS")  # wrong labels make sure mistakes
    result = evaluate(tiny_run, images=crops, output=tmp_path / "out", device="cpu", bootstrap=20)
    table = result.predictions
    wrong = table[table["label"] != table["predicted"]].sort_values("probability", ascending=False)
    assert len(wrong) >= 4
    page = Page(result.paths["report"].read_text(encoding="utf-8"))
    shown = [item for item in page.addresses if item.startswith("data:image/jpeg")]
    first = Image.open(BytesIO(base64.b64decode(shown[0].partition(",")[2])))
    truth = np.asarray(Image.open(wrong["source"].iloc[0]), dtype=float)
    assert np.abs(np.asarray(first, dtype=float).mean(axis=(0, 1)) - truth.mean(axis=(0, 1))).max() < 6
    assert page.text.index(wrong["cell_id"].iloc[0]) < page.text.index(wrong["cell_id"].iloc[1])


def test_other_peoples_text_is_never_markup(tiny_run: Path, tmp_path: Path) -> None:
    evil = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&$\\frac{"
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    config = json.loads((run / "bundle" / "config.json").read_text())
    config["taxonomy"]["classes"][0]["name"] = evil
    config["training"]["device"] = evil
    config["training"]["left_out"] = {evil: 3}
    seal_bundle(run / "bundle", config)
    crops = write_crops(tmp_path / "<b onclick=alert(1)>crops", {"BLA": 4, "LYT": 4})
    (crops / "LYT").rename(crops / "NGS")
    (crops / "BLA" / "<script>.png").write_bytes(b"broken")
    result = evaluate(run, images=crops, device="cpu", bootstrap=20)
    source = result.paths["report"].read_text(encoding="utf-8")
    page = Page(source)
    assert {"script", "b onclick"}.isdisjoint(page.tags)
    assert str(markupsafe.escape(evil)) in source
    assert evil in page.text
    assert result.paths["report"].parent.parent.parent == run


def test_predictions_without_labels_make_a_report_without_scores(tiny_run: Path, tmp_path: Path) -> None:
    crops = write_crops(tmp_path / "crops", {"BLA": 3})
    (crops / "BLA").rename(crops / "somewhere")
    result = evaluate(tiny_run, images=crops, device="cpu", output=tmp_path / "out")
    assert set(result.paths) == {"predictions", "report"}
    page = Page(result.paths["report"].read_text(encoding="utf-8"))
    assert "predictions only" in page.text
    assert "None" not in page.text


def test_the_same_evaluation_makes_the_same_figures(evaluated: Evaluation, tiny_run: Path, tmp_path: Path) -> None:
    again = evaluate(tiny_run, output=tmp_path / "again", device="cpu", bootstrap=100)
    first, second = dict(evaluated.metrics), dict(again.metrics)
    first.pop("evaluated")
    second.pop("evaluated")
    assert first == second
    assert render_report(again, "x", []) == render_report(again, "x", [])


def test_results_go_into_the_run_unless_told(tiny_run: Path, tiny_store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    assert evaluate(run, split="val", device="cpu", bootstrap=0).paths["metrics"] == run / "evaluation/val/metrics.json"
    other = evaluate(run / "bundle", store=tiny_store, split="test", device="cpu", bootstrap=0)
    assert other.paths["metrics"] == run / "evaluation/tiny-test/metrics.json"


def test_mistakes_of_use_are_one_line(tiny_run: Path, tiny_store: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="one of --store and --images"):
        evaluate(tiny_run, store=tiny_store, images=tmp_path)
    bundle = tmp_path / "model"
    shutil.copytree(tiny_run / "bundle", bundle)
    with pytest.raises(EvaluationError, match=r"not part of a run.*--output"):
        evaluate(bundle)
    config = json.loads((bundle / "config.json").read_text())
    config["training"]["store"] = str(tmp_path / "gone.zarr")
    seal_bundle(bundle, config)
    with pytest.raises(EvaluationError, match=r"gone\.zarr, on which .* was trained, is not there any more"):
        evaluate(bundle, output=tmp_path / "out", device="cpu")
    del config["training"]["store"]
    seal_bundle(bundle, config)
    with pytest.raises(EvaluationError, match="does not say which store"):
        evaluate(bundle, output=tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_precision_recall_curve_encloses_its_average_precision() -> None:
    random = np.random.default_rng(0)
    positive = random.random(3000) < 0.1
    scores = random.normal(size=3000) + 2 * positive
    scores = 1 / (1 + np.exp(-scores))
    precision, recall = figures._curve(positive, scores)
    area = float((np.diff(recall) * precision[1:]).sum())
    order = np.argsort(-scores)
    hits = positive[order]
    exact = float((np.cumsum(hits) / np.arange(1, 3001))[hits].mean())
    assert area == pytest.approx(exact, abs=0.005)


def test_figures_read_honestly() -> None:
    assert text.figure(None) == "–"
    assert text.figure(1.0) == "1.000"
    assert text.figure(0.9999) == "0.999+"
    assert text.interval((0.61259, 0.70011)) == "0.612–0.701"
    assert text.interval((0.25, 1.0)) == "0.250–1.000"
    assert text.interval(None) == ""
    assert text.p_value(0.0004) == "< 0.001"
    assert text.command("hematokit", "evaluate", Path("a b")) == "hematokit evaluate 'a b'"
    assert text.duration(3725) == "1 h 02 min"
    assert text.training_facts(TrainingRecord()) == []
