"""The reports of the checks: what they say, that they open offline, and that nothing half-written is left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from checkkit import Fixed, InputGradient
from hematokit.errors import ExplanationError, PluginError
from hematokit.pipelines.check_explanations import CONTROL, check_faithfulness, check_sanity
from hematokit.plugins import registered
from hematokit.plugins.specs import DetectorSpec, ExplainerSpec, Option

TRICKY = "<b>layer</b> & $co"


class Links(HTMLParser):
    """Collects what a page would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take note of a tag."""
        self.tags.append(tag)
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]


def opens_offline(page: str) -> bool:
    reader = Links()
    reader.feed(page)
    return "script" not in reader.tags and all(link.startswith("data:image/") for link in reader.found)


def refuse(**options: Any) -> Any:
    def attribute(images: torch.Tensor) -> torch.Tensor:
        raise PluginError(f"this network has no such layer {TRICKY}; choose another method")

    return Fixed(attribute)


class MiddleDetector:
    """Finds one square nucleus in the middle of every patch."""

    def detect(self, field: Any, pixel_size_um: float | None) -> pd.DataFrame:
        """Return it."""
        contour = torch.tensor([[20.0, 20.0], [20.0, 44.0], [44.0, 44.0], [44.0, 20.0]]).numpy()
        return pd.DataFrame({"y": [32.0], "x": [32.0], "contour": pd.Series([contour], dtype=object)})


@pytest.fixture
def plugins() -> Iterator[None]:
    """Explainers and a detector for one test."""
    with registered(
        ExplainerSpec("gradient", "", lambda scale: InputGradient(), {"scale": Option(float, 1.0, "")}),
        ExplainerSpec("another", "", InputGradient),
        ExplainerSpec("impossible", "", refuse),
        DetectorSpec("middle", "", MiddleDetector),
    ):
        yield


def test_sanity_report_says_what_came_out(plugins: Any, tiny_run: Path, tiny_store: Path, tmp_path: Path) -> None:
    seen: list[str] = []
    result = check_sanity(
        tiny_run,
        tmp_path / "out",
        store=tiny_store,
        methods=["gradient", "another", "impossible"],
        options={"gradient": {"scale": 2}},
        per_class=3,
        training={"epochs": 2},
        train_per_class=8,
        other_seed=False,
        device="cpu",
        command="hematokit explain <model>",
        progress=lambda done, total, message: seen.append(message),
    )
    table = result.table.set_index("method")
    assert list(table.index) == ["gradient", "another", CONTROL, "impossible"]
    assert table.loc["gradient", "parameters"] == "sensitive"
    assert table.loc[CONTROL, "parameters"] == table.loc[CONTROL, "labels"] == "not sensitive"
    assert table.loc["impossible", "parameters"] == ""
    page = result.paths["report"].read_text(encoding="utf-8")
    assert opens_offline(page)
    assert "<b>layer</b>" not in page
    assert "this network has no such layer &lt;b&gt;layer&lt;/b&gt; &amp; $co" in page
    assert "hematokit explain &lt;model&gt;" in page
    assert "For research use only" in page
    document = json.loads(result.paths["json"].read_text(encoding="utf-8"))
    (model,) = document["models"]
    assert model["cells"] == 9
    assert model["trained"]["settings"]["epochs"] == 2
    steps = model["methods"]["gradient"]["parameters"]["steps"]
    assert steps[0]["block"] == "repeated"
    assert steps[-1]["randomised"] == pytest.approx(1)
    rows = pd.read_csv(result.paths["csv"])
    assert set(rows["check"]) == {"parameters", "labels"}
    assert any("sensitive to random weights" in line for line in result.lines())
    assert any("training on shuffled labels" in message for message in seen)
    assert json.dumps(result.to_dict(), allow_nan=False)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["sanity.csv", "sanity.html", "sanity.json"]


def test_faithfulness_report_has_areas_and_shares_for_several_models(
    plugins: Any, tiny_run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    result = check_faithfulness(
        [tiny_run, _copied(tiny_run, tmp_path / "again")],
        tmp_path / "out",
        store=tiny_store,
        methods=["gradient"],
        per_class=2,
        steps=5,
        detector="middle",
        device="cpu",
    )
    assert result.table["model"].tolist() == ["tiny"] * 4 + ["again"] * 4
    assert result.table["method"].tolist()[:4] == ["gradient", "random pixels", "random blobs", "centred Gaussian"]
    assert result.table["deletion"].between(0, 1).all()
    row = result.table.iloc[0]
    assert row["nucleus_area"] == pytest.approx((24 / 64) ** 2)
    assert row["cell"] >= row["nucleus"] > 0
    page = result.paths["report"].read_text(encoding="utf-8")
    assert opens_offline(page)
    assert "centred Gaussian" in page
    document = json.loads(result.paths["json"].read_text(encoding="utf-8"))
    assert [model["model"] for model in document["models"]] == ["tiny", "again"]
    cells = pd.read_csv(result.paths["cells"])
    assert len(cells) == 2 * 4 * 6
    labels = set(pd.read_csv(result.paths["localisation"])["label"].dropna())
    assert labels == {"BLA", "LYT", "NGS"}


def test_without_a_detector_there_is_no_localisation(
    plugins: Any, tiny_run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    result = check_faithfulness(
        tiny_run,
        tmp_path,
        store=tiny_store,
        methods=["gradient"],
        per_class=1,
        steps=3,
        detector=None,
        replacement="mean",
        device="cpu",
    )
    assert "localisation" not in result.paths
    assert "nucleus" not in result.table.columns
    assert "Does it look at the cell?" not in result.paths["report"].read_text(encoding="utf-8")


@pytest.mark.parametrize("check", [check_sanity, check_faithfulness])
def test_a_cancelled_check_writes_nothing(
    check: Any, plugins: Any, tiny_run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    calls = 0
    more = {} if check is check_sanity else {"detector": "middle"}

    def cancel(done: int, total: int | None, message: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(tiny_run, tmp_path / "out", store=tiny_store, methods=["gradient"], per_class=2, progress=cancel, **more)
    assert not (tmp_path / "out").exists()


def test_mistakes_are_said_in_one_line(plugins: Any, tiny_run: Path, tiny_store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExplanationError, match="is a file"):
        check_sanity(tiny_run, tmp_path / "file", store=tiny_store, methods=["gradient"])
    with pytest.raises(ExplanationError, match="named twice"):
        check_sanity([tiny_run, tiny_run / "bundle"], tmp_path / "out", store=tiny_store, methods=["gradient"])
    with pytest.raises(ExplanationError, match=r"none of the methods could be run: .*no such layer"):
        check_faithfulness(
            tiny_run, tmp_path / "out", store=tiny_store, methods=["impossible"], per_class=1, detector="middle"
        )
    with pytest.raises(ExplanationError, match=r"setting 'replacement' .*: Input should be 'blur' or 'mean'"):
        check_faithfulness(tiny_run, tmp_path / "out", store=tiny_store, methods=["gradient"], replacement="black")  # type: ignore[arg-type]
    with pytest.raises(PluginError, match="no explainer is called 'magic'"):
        check_sanity(tiny_run, tmp_path / "out", store=tiny_store, methods=["magic"])
    cell = "nothing-like-it"
    with pytest.raises(ExplanationError, match="no cell 'nothing-like-it'"):
        check_sanity(tiny_run, tmp_path / "out", store=tiny_store, methods=["gradient"], cells=[cell], device="cpu")
    assert not (tmp_path / "out").exists()


def _copied(run: Path, to: Path) -> Path:
    import shutil

    shutil.copytree(run / "bundle", to / "bundle")
    return to
