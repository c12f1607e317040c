"""Opening stores, results and fields."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from cellkit import made_up_cells
from hematokit.annotations.writing import write_parquet
from hematokit.cli.main import main
from hematokit.files import write_json
from hematokit.imaging.fieldfiles import open_field
from hematokit.pipelines.tile import tile
from hematokit.store import open_store
from hematokit.taxonomy import MATEK_21
from napari_hematonet import images
from napari_hematonet.files import get_reader, results_layers
from napari_hematonet.state import METADATA_KEY, current_state, state_of


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(1).integers(0, 256, (300, 400, 3), np.uint8)
    path = tmp_path / "fields" / "slide1.png"
    path.parent.mkdir()
    Picture.fromarray(pixels).save(path, dpi=(25400 / 0.2,) * 2)
    return path


def write_results(folder: Path, pictures: dict[str, Path]) -> Path:
    """What `hematokit classify` leaves behind, as far as reading goes."""
    for field_id in pictures:
        own = folder / "fields" / field_id
        own.mkdir(parents=True)
        cells = made_up_cells(12, side=300)
        cells = cells.assign(field_id=field_id, cell_id=[f"{field_id}-{n}" for n in range(12)])
        write_parquet(own / "cells.parquet", cells)
        write_json(own / "field.json", {"field_id": field_id, "status": "done", "pixel_size_um": 0.2})
    write_json(
        folder / "run.json",
        {
            "kind": "hematokit field results",
            "schema_version": 1,
            "job": {"min_probability": 0.7},
            "fields": {str(path): field_id for field_id, path in pictures.items()},
        },
    )
    write_json(folder / "differential.json", {"taxonomy": MATEK_21.to_dict()})
    return folder


def read(path: Path) -> list[Any]:
    reader = get_reader(str(path))
    assert reader is not None
    return reader(str(path))


def test_results_open_with_their_cells(qapp: Any, make_viewer: Any, picture: Path, tmp_path: Path) -> None:
    folder = write_results(tmp_path / "results", {"slide1": picture})
    viewer = make_viewer(show=False)
    image, cells = viewer.open(str(folder), plugin="hematokit")
    assert image.name == "slide1"
    assert np.allclose(image.scale, 0.2)
    assert {str(unit) for unit in image.units} == {"micrometer"}
    state = state_of(cells)
    assert state is not None
    assert (state.min_probability, state.pixel_size_um) == (0.7, pytest.approx(0.2))
    assert len(cells.data) == 12
    assert viewer.scale_bar.visible
    chosen = state.review.cells["cell_id"][3]
    state.review.correct([chosen], "EOS")
    assert cells.features["label"][3] == "EOS"
    # The correction stays with the results.
    assert (folder / "fields" / "slide1" / "corrections.jsonl").is_file()
    again = read(folder / "fields" / "slide1")[1][1]["metadata"][METADATA_KEY]
    assert again.review.shown_label()[3] == "EOS"


def test_a_picture_that_has_gone_leaves_the_cells(
    qapp: Any, told: list[tuple[str, str]], picture: Path, tmp_path: Path
) -> None:
    folder = write_results(tmp_path / "results", {"slide1": tmp_path / "gone.png"})
    layers = read(folder)
    assert [kind for _, _, kind in layers] == ["points"]
    assert any("only the cells" in message for _, message in told)


@pytest.mark.parametrize("oriented", [True, False])
def test_results_are_shown_in_the_orientation_of_their_cells(
    qapp: Any, told: list[tuple[str, str]], tmp_path: Path, oriented: bool
) -> None:
    exif = Picture.Exif()
    exif[274] = 6
    pixels = np.random.default_rng(1).integers(0, 256, (300, 400, 3), np.uint8)
    Picture.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    folder = write_results(tmp_path / "results", {"photo": tmp_path / "photo.png"})
    done = folder / "fields" / "photo" / "field.json"
    if oriented:
        write_json(done, json.loads(done.read_text()) | {"orientation": 6})
    image = read(folder)[0][0]
    assert np.array_equal(np.asarray(image), np.rot90(pixels, -1) if oriented else pixels)
    assert any("shown as stored" in message for _, message in told) != oriented


def test_many_fields_are_not_opened_at_once(
    qapp: Any, told: list[tuple[str, str]], picture: Path, tmp_path: Path
) -> None:
    pictures = {f"f{number:02}": picture.with_name(f"p{number}.png") for number in range(14)}
    for path in pictures.values():
        path.symlink_to(picture)
    folder = write_results(tmp_path / "results", pictures)
    layers = results_layers(folder)
    assert len(layers) == 24
    assert [options["visible"] for _, options, _ in layers] == [True] * 2 + [False] * 22
    assert any("14 fields" in message for _, message in told)
    assert len(results_layers(folder / "fields" / "f13")) == 2


@pytest.fixture
def store(picture: Path, tmp_path: Path) -> Path:
    """A store of two fields, with known cells."""
    Picture.open(picture).transpose(Picture.Transpose.ROTATE_180).save(picture.parent / "slide2.png")
    rows = ["slide1,100,120,BLA", "slide1,200,60,LYT", "slide2,150,150,NGS"]
    (tmp_path / "cells.csv").write_text("\n".join(["field_id,y,x,label", *rows]) + "\n")
    tile([picture.parent], tmp_path / "s.zarr", cells=tmp_path / "cells.csv", patch_size=64, pixel_size_um=0.2)
    return tmp_path / "s.zarr"


def test_a_store_opens_with_the_cells_of_each_field(qapp: Any, make_viewer: Any, store: Path) -> None:
    viewer = make_viewer(show=False)
    layers = viewer.open(str(store), plugin="hematokit")
    assert [layer.name for layer in layers] == ["slide1", "cells of slide1", "slide2", "cells of slide2"]
    assert [len(layer.data) for layer in (layers[1], layers[3])] == [2, 1]
    state = state_of(layers[1])
    assert state is not None
    state.review.correct([state.review.cells["cell_id"][0]], "PMO")
    assert open_store(store).cells["label"].tolist() == ["PMO", "LYT", "NGS"]
    assert state.review.summary().counted == 2
    (_, (_, options, _)) = read(store / "fields" / "slide1")
    assert options["metadata"][METADATA_KEY].review.shown_label().tolist() == ["PMO", "LYT"]


def test_a_store_of_crops_has_nothing_to_show(qapp: Any, told: list[tuple[str, str]], tiny_store: Path) -> None:
    assert read(tiny_store) == [(None,)]
    assert any("no whole fields" in message for _, message in told)


def test_an_ome_zarr_field_opens_with_its_pixel_size(qapp: Any, store: Path, picture: Path, tmp_path: Path) -> None:
    (store / "fields" / "slide1").rename(tmp_path / "alone.ome.zarr")
    ((pixels, options, kind),) = read(tmp_path / "alone.ome.zarr")
    assert (kind, options["name"]) == ("image", "alone")
    assert np.allclose(options["scale"], 0.2)
    assert (pixels == np.asarray(Picture.open(picture))).all()


def test_what_is_not_ours_is_left_to_others(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "run.json").write_text('{"kind": "other"}')
    assert get_reader(str(tmp_path / "folder")) is None
    assert get_reader(str(tmp_path)) is None
    assert get_reader([]) is None


def test_damage_is_a_notification_and_never_a_traceback(
    qapp: Any, make_viewer: Any, told: list[tuple[str, str]], picture: Path, tmp_path: Path
) -> None:
    viewer = make_viewer(show=False)
    broken = tmp_path / "broken.zarr"
    broken.mkdir()
    (broken / "zarr.json").write_text("{")
    torn = tmp_path / "torn.ome.tif"
    torn.write_bytes(b"II*\0nothing")
    folder = write_results(tmp_path / "results", {"slide1": picture})
    (folder / "differential.json").write_text("{")
    for path in (broken, torn, folder):
        told.clear()
        assert viewer.open(str(path), plugin="hematokit") == []
        assert [kind for kind, _ in told] == ["error"], path
        assert path.name in told[0][1]
    (folder / "run.json").write_text('{"kind": "hematokit field results", "fields": {"/a": "../../../etc"}}')
    told.clear()
    assert read(folder) == [(None,)]
    assert "no field" in told[0][1]


def test_a_large_field_is_read_where_it_is_looked_at(
    qapp: Any, make_viewer: Any, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_WHOLE", 1000)
    monkeypatch.setattr(images, "_OVERVIEW", 100)
    truth = np.asarray(Picture.open(picture))
    with open_field(picture) as field:
        full, small = images.layer_arrays(field)
        assert full.shape == truth.shape
        assert small.shape == (75, 100, 3)
        for key in ((slice(3, 50, 4), slice(None), slice(None)), (5, slice(1, 4)), ..., (slice(2, 2),), -1):
            assert (full[key] == truth[key]).all()
        assert (np.asarray(full) == truth).all()
        with pytest.raises(IndexError):
            full[300]
        viewer = make_viewer()
        layer = viewer.add_image([full, small], rgb=True, multiscale=True)
        viewer.reset_view()
        assert viewer.screenshot(flash=False).any()
        assert layer.multiscale


def test_the_sample_field_has_its_truth(qapp: Any, make_viewer: Any) -> None:
    viewer = make_viewer()
    viewer.open_sample("hematokit", "field-with-truth")
    image, cells = viewer.layers
    assert image.data.shape == (2056, 2452, 3)
    state = current_state(viewer)
    assert state is not None
    assert state.field is not None
    assert len(cells.data) == len(state.review.cells) > 80
    assert cells.features["label"].nunique() > 8
    assert state.review.summary().counted > 50
    # A nucleus is the darkest thing in a smear: the rings are around cells.
    grey = image.data.mean(axis=2)
    at = np.round(cells.data).astype(int).clip(0, [2055, 2451])
    assert np.median(grey[at[:, 0], at[:, 1]]) < np.median(grey) - 40
    viewer.open_sample("hematokit", "field")
    assert len(viewer.layers) == 3


def test_the_model_of_results_is_known_while_it_is_the_same(
    qapp: Any, picture: Path, tmp_path: Path, tiny_run: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    folder = tmp_path / "results"
    assert main(["classify", str(picture.parent), "--model", str(run), "--output", str(folder), "--device", "cpu"]) == 0

    def model() -> str:
        return str(read(folder)[1][1]["metadata"][METADATA_KEY].model_path)

    assert model() == str(run)
    config = run / "bundle" / "config.json"
    other = json.loads(config.read_text())
    other["temperature"] = 3.0
    config.write_text(json.dumps(other))
    assert model() == ""
    shutil.rmtree(run)
    assert model() == ""
