"""The report on a run of fields, and the histogram of cell types."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hematokit.differential.differential import Differential, count_differential
from hematokit.reports.fields import cell_types_figure, render_field_report
from hematokit.reports.rendering import to_png, to_svg
from hematokit.taxonomy import MATEK_21, CellClass, Taxonomy

VILE = "<script>alert('x')</script> & \"q\" #1?%"


class Page(HTMLParser):
    """Collects what a page holds."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name == "href":
                self.links.append(value or "")
            if name == "src":
                self.sources.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data


def counted(fields: int = 3, smears: bool = True) -> Differential:
    rng = np.random.default_rng(0)
    size = 60 * fields
    names = np.repeat([f"f{number}" for number in range(fields)], 60)
    cells = pd.DataFrame(
        {
            "field_id": names,
            "predicted": rng.choice(MATEK_21.codes, size),
            "probability": rng.uniform(0.4, 1, size),
            "smear_id": [f"{VILE}{name}" if smears else "" for name in names],
            "patient_id": "p 1" if smears else "",
        }
    )
    return count_differential(cells, MATEK_21)


def rows(*entries: dict[str, object]) -> pd.DataFrame:
    plain = {"source": "x.tif", "status": "done", "message": "", "cells": 60, "flag": "ok"}
    return pd.DataFrame([plain | entry for entry in entries])


def test_the_page_stands_alone_and_says_what_was_counted() -> None:
    found = counted()
    html = render_field_report(found, rows({"field_id": "f0"}, {"field_id": "f1"}, {"field_id": "f2"}))
    page = Page(html)
    assert not page.open
    assert "script" not in page.tags
    assert all(source.startswith("data:image/") for source in page.sources)
    assert all(not re.match(r"[a-z]+:", link) for link in page.links)
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
    assert page.text.count("For research use only") == 2
    assert f"{found.overall.counted:,}" in page.text
    for code in found.groups.counted:
        assert code in page.text
    assert "Patients" in page.text
    assert "p 1" in page.text
    assert VILE in page.text  # as text: the smears are named so
    assert "<script" not in html
    assert "None" not in page.text
    assert "nan" not in page.text.lower().replace("dominan", "")


def test_links_and_pictures_of_fields_with_strange_names(tmp_path: Path) -> None:
    name = "a b#1?%é<i>"
    picture = tmp_path / "fields" / name / "overlay.png"
    picture.parent.mkdir(parents=True)
    Image.fromarray(np.zeros((400, 2000, 3), np.uint8)).save(picture)
    broken = tmp_path / "fields" / "f1" / "overlay.png"
    broken.parent.mkdir()
    broken.write_bytes(b"no picture")
    html = render_field_report(
        counted(),
        rows({"field_id": name}, {"field_id": "f1"}),
        overlays={name: picture, "f1": broken},
        folder=tmp_path,
    )
    page = Page(html)
    link = next(link for link in page.links if "overlay" in link and "f1" not in link)
    assert (tmp_path / unquote(link)).samefile(picture)
    assert not set(link) & set(" #?<>")
    assert sum(source.startswith("data:image/jpeg") for source in page.sources) == 1


def test_failures_and_unfit_fields_are_named() -> None:
    fields = rows(
        {"field_id": "good", "pixel_size_um": 0.1, "height": 10, "width": 20},
        {"field_id": "blurred", "flag": "out-of-focus", "reasons": "sharpness 0.01", "pixel_size_um": np.nan},
        {"field_id": "bad", "status": "failed", "message": "bad.tif cannot be read <b>", "cells": 0},
    )
    page = Page(render_field_report(counted(), fields, notes=["a word from the caller"]))
    assert "1 of 3 fields failed" in page.text
    assert "bad.tif cannot be read <b>" in page.text
    assert "1 of 2 fields did not pass quality control" in page.text
    assert "sharpness 0.01" in page.text
    assert "A word from the caller" in page.text
    assert page.text.index("blurred") < page.text.index("good")


def test_a_thousand_fields_stay_readable() -> None:
    many = rows(*[{"field_id": f"f{number}", "source": f"folder/of/fields/f{number}.tif"} for number in range(1000)])
    bad = rows(*[{"field_id": f"b{number}", "status": "failed", "message": "broken"} for number in range(300)])
    html = render_field_report(counted(), pd.concat([many, bad], ignore_index=True))
    assert len(html) < 1_000_000
    assert "1,000 fields" in html
    assert "of which 200 are shown" in html
    assert "The first 50 of 300" in html
    assert "fields.csv" in Page(html).links


@pytest.mark.parametrize("cells", [0, 1])
def test_next_to_nothing_counted(cells: int) -> None:
    table = pd.DataFrame({"field_id": ["a"] * cells, "predicted": ["NGS"] * cells, "probability": [0.9] * cells})
    found = count_differential(table, MATEK_21, fields=[("a", "", "")])
    page = Page(render_field_report(found, rows({"field_id": "a", "cells": cells})))
    assert "Warning" in page.text
    assert "no erythroid cell was counted" in page.text or "no granulocytic" in page.text


def test_a_taxonomy_without_lineages() -> None:
    own = Taxonomy("lab", (CellClass("LONGCODE_1", "One"), CellClass("x", "Artefact")))
    table = pd.DataFrame({"field_id": ["a", "b"], "predicted": ["LONGCODE_1", "x"], "probability": 0.9})
    page = Page(render_field_report(count_differential(table, own), rows({"field_id": "a"})))
    assert "the taxonomy has no granulocytic class" in page.text
    assert "LONGCODE_1" in page.text


def test_the_histogram_has_a_bar_a_class_with_its_height_and_colour() -> None:
    found = counted()
    figure = cell_types_figure(found)
    axes = figure.axes[0]
    codes = [label.get_text() for label in axes.get_xticklabels()]
    assert codes == list(found.groups.counted)
    for code, bar in zip(codes, axes.patches, strict=True):
        assert bar.get_height() == pytest.approx(100 * (found.overall.classes[code].share or 0))
        assert tuple(round(255 * value) for value in bar.get_facecolor()[:3]) == tuple(
            bytes.fromhex(MATEK_21[code].colour[1:])
        )
    assert to_png(figure) == to_png(cell_types_figure(found))
    words = {text.get_text() for text in axes.texts}
    assert {"granulopoiesis", "lymphoid", "erythropoiesis"} <= words


def test_the_histogram_of_one_smear_and_of_nothing() -> None:
    found = counted()
    assert to_svg(cell_types_figure(found, found.smears[0])) != to_svg(cell_types_figure(found))
    nothing = count_differential(pd.DataFrame({"field_id": [], "predicted": [], "probability": []}), MATEK_21)
    assert to_svg(cell_types_figure(nothing, titled=False))
