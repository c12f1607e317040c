"""The layer of cells: colours, sizes, places, and following a review."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cellkit import made_up_cells
from hematokit.review.session import Review
from hematokit.taxonomy import MATEK_21
from napari_hematonet.cell_points import MOST_IN_VIEW, class_colours, rows_of
from napari_hematonet.cells_layer import add_cells_layer
from napari_hematonet.images import from_field, to_field
from napari_hematonet.state import FieldState, current_state, state_of


@pytest.fixture
def model() -> Any:
    """A viewer's layers and camera without a window."""
    from napari.components import ViewerModel

    return ViewerModel()


def as_hex(colours: Any) -> list[str]:
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in np.round(np.asarray(colours)[:, :3] * 255).astype(int)]


def test_every_class_has_the_taxonomys_colour() -> None:
    colours = class_colours(MATEK_21)
    assert as_hex(list(colours.values())) == [entry.colour for entry in MATEK_21]
    assert all(colour[3] == 1 for colour in colours.values())


def test_cells_stand_where_they_are_in_the_colours_of_their_classes(qapp: Any, model: Any) -> None:
    review = Review(made_up_cells(60), MATEK_21)
    layer = add_cells_layer(model, review)
    cells = review.cells
    assert np.allclose(layer.data, cells[["y", "x"]] - 0.5)  # napari counts from the middle of a pixel
    assert as_hex(layer.border_color) == [MATEK_21[code].colour for code in cells["predicted"]]
    assert as_hex(layer.face_color) == as_hex(layer.border_color)
    assert (layer.size >= 40).all()
    assert (layer.size <= 50).all()
    assert list(layer.features["label"]) == list(cells["predicted"])
    assert list(layer.features["label"].cat.categories) == list(MATEK_21.codes)
    assert "p_BLA" in layer.features


def test_low_confidence_cells_are_hollow(qapp: Any, model: Any) -> None:
    review = Review(made_up_cells(200), MATEK_21, min_probability=0.6)
    layer = add_cells_layer(model, review)
    low_confidence = (review.cells["probability"] < 0.6).to_numpy()
    assert 0 < low_confidence.sum() < 200
    assert (layer.face_color[low_confidence, 3] == 0).all()
    assert (layer.face_color[~low_confidence, 3] > 0).all()
    assert (layer.border_color[:, 3] == 1).all()


def test_it_follows_what_a_person_does(qapp: Any, model: Any) -> None:
    review = Review(made_up_cells(30), MATEK_21)
    layer = add_cells_layer(model, review)
    first, second, third = review.cells["cell_id"][:3]
    review.correct([second], "EOS")
    assert as_hex(layer.border_color)[1] == MATEK_21["EOS"].colour
    assert layer.features["label"][1] == "EOS"
    assert layer.face_color[1, 3] > 0
    assert str(layer.symbol[1]) != str(layer.symbol[0])  # reviewed cells are marked
    layer.selected_data = {1, 2}
    layer.shown = np.arange(30) != 5
    hidden = layer.features["cell_id"][5]
    review.delete([first])
    assert len(layer.data) == 29
    assert {layer.features["cell_id"][row] for row in layer.selected_data} == {second, third}
    assert list(layer.features["cell_id"][~layer.shown]) == [hidden]
    assert rows_of(layer, [third, first, second]) == [1, 0]
    review.undo()
    assert len(layer.data) == 30
    review.undo()
    assert as_hex(layer.border_color) == [MATEK_21[code].colour for code in review.cells["predicted"]]


def test_naparis_own_tools_do_not_lose_cells(qapp: Any, model: Any, told: list[tuple[str, str]]) -> None:
    review = Review(made_up_cells(10), MATEK_21)
    layer = add_cells_layer(model, review)
    places = layer.data.copy()
    gone = list(review.cells["cell_id"][[2, 5]])
    layer.selected_data = {2, 5}
    layer.remove_selected()
    assert not review.cells["cell_id"].isin(gone).any()
    assert review.undo() is not None
    assert np.allclose(layer.data, places)
    layer.add([[10.0, 10.0]])
    assert len(layer.data) == len(review.cells) == 10
    assert np.allclose(layer.data, places)
    assert "Review" in told[-1][1]
    layer.data = places + 7
    assert np.allclose(layer.data, places)
    assert list(layer.features["cell_id"]) == list(review.cells["cell_id"])


def test_cells_come_one_batch_after_another(qapp: Any, model: Any) -> None:
    cells = made_up_cells(90)
    review = Review(cells.iloc[:0], MATEK_21)
    layer = add_cells_layer(model, review)
    assert len(layer.data) == 0
    for start in (0, 30, 60):
        review.append(cells.iloc[start : start + 30])
        assert len(layer.data) == start + 30
    assert as_hex(layer.border_color) == [MATEK_21[code].colour for code in cells["predicted"]]
    assert np.allclose(layer.data, cells[["y", "x"]] - 0.5)
    review.delete(list(review.cells["cell_id"]))
    assert len(layer.data) == 0


def test_a_cell_without_a_class_is_grey(qapp: Any, model: Any) -> None:
    cells = made_up_cells(3).assign(predicted=["BLA", "", "NOT"])
    layer = add_cells_layer(model, Review(cells, MATEK_21))
    assert as_hex(layer.border_color)[1:] == ["#808080", "#808080"]
    assert list(layer.features["label"].isna()) == [False, True, True]


@pytest.mark.parametrize(
    "placement",
    [
        {},
        {"scale": (0.1, 0.1), "units": ("um", "um")},
        {"scale": (2, 2), "translate": (30, -50), "rotate": 30},
        {"affine": [[0, -0.5, 7], [0.5, 0, 3], [0, 0, 1]]},
    ],
)
def test_cells_lie_on_their_image(qapp: Any, model: Any, placement: dict[str, Any]) -> None:
    picture = np.zeros((400, 500, 3), np.uint8)
    image = model.add_image(picture, **placement)
    review = Review(made_up_cells(5, side=400), MATEK_21)
    layer = add_cells_layer(model, review, image=image)
    there = review.cells[["y", "x"]].to_numpy()
    for number, place in enumerate(there):
        assert np.allclose(layer.data_to_world(layer.data[number]), from_field(image, place))
        assert np.allclose(to_field(image, layer.data_to_world(layer.data[number])), place)
    # Drawn as wide as the cell is in the world: napari multiplies by the scale only.
    side = np.linalg.norm(from_field(image, [0.0, 40.0]) - from_field(image, [0.0, 0.0]))
    assert np.allclose(layer.size * layer.scale[-1], side * 1.15)
    assert state_of(layer).image_layer_name == image.name


def test_cells_of_a_plane_lie_in_it(qapp: Any, model: Any) -> None:
    image = model.add_image(np.zeros((4, 300, 300, 3), np.uint8), rgb=True)
    review = Review(made_up_cells(5, side=300), MATEK_21)
    layer = add_cells_layer(model, review, image=image, state=FieldState(review, plane=(2,)))
    assert layer.ndim == 3
    assert set(layer.data[:, 0]) == {2.0}


def test_the_scale_bar_is_in_micrometres(qapp: Any, model: Any) -> None:
    image = model.add_image(np.zeros((300, 300, 3), np.uint8), translate=(10, 20))
    region = model.add_shapes([[[20, 30], [60, 80]]])
    before = to_field(image, region.data_to_world(region.data[0][2]))
    review = Review(made_up_cells(5, side=300), MATEK_21, pixel_size_um=0.25)
    layer = add_cells_layer(model, review, image=image)
    assert model.scale_bar.visible
    assert {str(unit) for shown in model.layers for unit in shown.units} == {"micrometer"}
    assert np.allclose(image.scale, 0.25)
    # Nothing has moved against anything else.
    assert np.allclose(to_field(image, region.data_to_world(region.data[0][2])), before)
    place = review.cells.loc[0, ["y", "x"]].to_numpy(float)
    assert np.allclose(to_field(image, layer.data_to_world(layer.data[0])), place)


def test_whose_cells_are_meant(qapp: Any, model: Any) -> None:
    assert current_state(model) is None
    images = [model.add_image(np.zeros((300, 300, 3), np.uint8), name=name) for name in ("a", "b")]
    layers = [add_cells_layer(model, Review(made_up_cells(3), MATEK_21), image=image) for image in images]
    states = [state_of(layer) for layer in layers]
    for active, meant in ((images[0], 0), (images[1], 1), (layers[0], 0), (layers[1], 1), (None, 1)):
        model.layers.selection.active = active
        assert current_state(model) is states[meant]
    model.layers.remove(layers[1])
    assert current_state(model) is states[0]
    assert state_of(images[0]) is None


def test_a_copy_of_the_layer_shows_the_same_cells(qapp: Any, model: Any) -> None:
    from napari.layers import Layer

    review = Review(made_up_cells(20), MATEK_21)
    layer = add_cells_layer(model, review)
    data, options, kind = layer.as_layer_data_tuple()
    twin = model.add_layer(Layer.create(copy.deepcopy(data), copy.deepcopy({**options, "name": "twin"}), kind))
    review.correct([review.cells["cell_id"][0]], "EOS")
    assert as_hex(twin.border_color)[0] == as_hex(layer.border_color)[0] == MATEK_21["EOS"].colour


def test_codes_are_written_beside_cells_once_few_are_in_view(qtbot: Any, make_viewer: Callable[..., Any]) -> None:
    viewer = make_viewer()
    viewer.add_image(np.full((2000, 2000, 3), 255, np.uint8))
    review = Review(made_up_cells(600, side=2000), MATEK_21)
    layer = add_cells_layer(viewer, review)
    viewer.reset_view()

    def written() -> int:
        values = np.atleast_1d(layer.text.values)
        return int((values != "").sum())

    assert written() == 0
    layer.text.visible = True
    qtbot.wait(400)
    assert written() == 0  # 600 at once would make every move slow
    viewer.camera.zoom *= 5
    qtbot.waitUntil(lambda: 0 < written() <= MOST_IN_VIEW, timeout=5000)
    shown = np.flatnonzero(np.asarray(layer.text.values) != "")
    assert list(np.asarray(layer.text.values)[shown]) == list(review.cells["predicted"].iloc[shown])
    chosen = review.cells["cell_id"][int(shown[0])]
    review.correct([chosen], "EOS")
    qtbot.waitUntil(lambda: np.asarray(layer.text.values)[shown[0]] == "EOS", timeout=5000)
    layer.text.visible = False
    qtbot.waitUntil(lambda: written() == 0, timeout=5000)


def test_the_picture_has_the_colours(qtbot: Any, make_viewer: Callable[..., Any]) -> None:
    """Screenshot: rings in the colours of known classes at known places."""
    viewer = make_viewer()
    viewer.add_image(np.full((600, 600, 3), 255, np.uint8))
    cells = made_up_cells(4).assign(
        y=[150.0, 150.0, 450.0, 450.0],
        x=[150.0, 450.0, 150.0, 450.0],
        height=120,
        width=120,
        predicted=["BLA", "LYT", "NGS", "EOS"],
        probability=[0.9, 0.9, 0.9, 0.1],
    )
    add_cells_layer(viewer, Review(cells, MATEK_21))
    viewer.scale_bar.visible = False
    viewer.reset_view()
    viewer.camera.center, viewer.camera.zoom = (0, 300, 300), 1.0
    qtbot.wait(100)
    picture = viewer.screenshot(canvas_only=True, flash=False)[..., :3].astype(int)
    middle = np.array(picture.shape[:2]) // 2
    ratio = picture.shape[0] / viewer.window._qt_viewer.canvas.size[0]
    for cell in cells.itertuples():
        colour = np.array([int(MATEK_21[cell.predicted].colour[at : at + 2], 16) for at in (1, 3, 5)])
        # The ring lies around the cell: its line is met a little outside of the cell's radius.
        along = middle[1] + np.round((cell.x - 300 + np.arange(58, 76, 0.5)) * ratio).astype(int)
        line = picture[int(middle[0] + round((cell.y - 300) * ratio)), along]
        assert np.abs(line - colour).max(axis=1).min() < 25, cell.predicted
        inside = picture[tuple(np.round(middle + np.array([cell.y - 300, cell.x - 300]) * ratio).astype(int))]
        assert (inside > 250).all() == (cell.probability < 0.5)  # sure cells are tinted, low-confidence ones hollow
