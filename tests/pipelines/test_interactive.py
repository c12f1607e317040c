"""Cells as they come: the same as all at once, inside a region, with less memory, stopped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hematokit.annotations.cells import name_cells
from hematokit.detection.windows import Examination, examine_field, make_detector
from hematokit.errors import FieldError
from hematokit.imaging.fieldfiles import Field, open_field
from hematokit.models.field_cells import classify_cells
from hematokit.pipelines.interactive import classify_live, in_polygons
from hematokit.synthetic import synthesize_field
from hematokit.taxonomy import MATEK_21, Taxonomy

SQUARE = np.array([[100.0, 100.0], [100.0, 420.0], [420.0, 420.0], [420.0, 100.0]])


class Model:
    """Calls cells by the blue of their patches; may have too little memory."""

    patch_size = 64
    pixel_size_um = None
    taxonomy: Taxonomy = MATEK_21.subset(["BLA", "LYT"])

    def __init__(self, room: int = 1000, device: str = "cpu") -> None:
        self.room, self.device, self.sizes = room, device, []  # type: ignore[var-annotated]

    def predict(self, patches: np.ndarray, batch_size: int = 64) -> pd.DataFrame:
        if self.device != "cpu" and min(batch_size, len(patches)) > self.room:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.sizes.append(min(batch_size, len(patches)))
        share = patches[..., 2].mean(axis=(1, 2)) / 255
        called = np.where(share > 0.5, "BLA", "LYT")
        return pd.DataFrame(
            {"predicted": called, "probability": np.maximum(share, 1 - share), "p_BLA": share, "p_LYT": 1 - share}
        )

    def on_cpu(self) -> Model:
        self.copy = Model(self.room)
        return self.copy


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    path = tmp_path_factory.mktemp("field") / "a.png"
    Image.fromarray(synthesize_field(700, 800, cells=30, seed=3).pixels).save(path)
    with open_field(path, pixel_size_um=0.1) as opened:
        yield opened


def run(field: Field, model: Any, **options: Any) -> tuple[Examination, pd.DataFrame]:
    first, *rest = classify_live(field, make_detector(), model, field_id="a", **options)
    assert isinstance(first, Examination)
    assert all(isinstance(part, pd.DataFrame) for part in rest)
    return first, pd.concat(rest, ignore_index=True) if rest else pd.DataFrame()


def test_piece_by_piece_gives_what_all_at_once_gives(field: Field) -> None:
    examined, cells = run(field, Model(), largest_batch=16)
    at_once = classify_cells(field, name_cells(examine_field(field, make_detector()).cells, "a", ""), Model())
    assert len(cells) == len(examined.cells) > 15
    pd.testing.assert_frame_equal(cells.drop(columns="contour"), at_once.drop(columns="contour"))


def test_a_region_gives_the_cells_inside_it_where_they_are_in_the_whole(field: Field) -> None:
    _, everything = run(field, Model())
    _, inside = run(field, Model(), region=[SQUARE])
    expected = everything[in_polygons(everything[["y", "x"]], [SQUARE])]
    assert 0 < len(inside) < len(everything)
    near = [np.hypot(expected["y"] - cell.y, expected["x"] - cell.x).min() for cell in inside.itertuples()]
    assert max(near) < 3
    assert len(inside) == len(expected)
    corners = [contour.min(axis=0) for contour in inside["contour"]]
    assert np.abs(np.array(corners) - inside[["y0", "x0"]].to_numpy()).max() < 40


def test_a_region_beside_the_field_is_refused_in_one_line(field: Field) -> None:
    with pytest.raises(FieldError, match="outside the field; draw it on the image"):
        run(field, Model(), region=[SQUARE + 5000])


def test_a_full_graphics_processor_gets_less_at_a_time_then_the_cpu_takes_over(field: Field) -> None:
    notes: list[str] = []
    small = Model(room=2, device="cuda:0")
    _, cells = run(field, small, note=notes.append)
    assert max(small.sizes) <= 2
    assert small.device == "cuda:0"
    assert notes == ["GPU memory is full: continuing with 2 cells at a time"]
    notes.clear()
    none = Model(room=0, device="cuda:0")
    _, others = run(field, none, note=notes.append)
    assert none.device == "cuda:0", "the model is shared: it stays as it is"
    assert sum(none.copy.sizes) == len(others)
    assert "on the CPU" in notes[-1]
    assert others["predicted"].tolist() == cells["predicted"].tolist()


def test_other_failures_of_a_model_are_not_taken_for_little_memory(field: Field) -> None:
    class Broken(Model):
        def predict(self, patches: np.ndarray, batch_size: int = 64) -> pd.DataFrame:
            raise RuntimeError("no such operator")

    with pytest.raises(RuntimeError, match="no such operator"):
        run(field, Broken())


def test_raising_from_the_progress_stops_the_work(field: Field) -> None:
    def stop(done: int, total: int | None, message: str) -> None:
        if message == "classifying cells":
            raise KeyboardInterrupt

    model = Model()
    with pytest.raises(KeyboardInterrupt):
        run(field, model, progress=stop)
    assert len(model.sizes) == 1


def test_a_field_without_cells_gives_no_tables(tmp_path: Path) -> None:
    Image.new("RGB", (300, 300), (250, 248, 250)).save(tmp_path / "empty.png")
    with open_field(tmp_path / "empty.png") as empty:
        examined, cells = run(empty, Model())
    assert len(examined.cells) == len(cells) == 0
