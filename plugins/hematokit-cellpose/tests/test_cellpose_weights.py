"""Checkpoints: found, read without running anything in them, refused by name where they do not fit."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hematokit_cellpose.weights import load_network
from safetensors.torch import save_file

from conftest import INSTALLED, StandIn, discs, put_stand_in
from hematokit.detection.windows import make_detector
from hematokit.errors import HematokitError, ModelError, PluginError

CPU = torch.device("cpu")
State = dict[str, Any]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> State:
    """Tensors of the stand-in's network; no published weights are on this machine."""
    put_stand_in(monkeypatch)
    monkeypatch.setenv("CELLPOSE_LOCAL_MODELS_PATH", str(tmp_path / "published"))
    network = StandIn([3, 4], 3, 3)
    network.see_dark()
    return dict(network.state_dict())


def refused(**options: Any) -> str:
    with pytest.raises(HematokitError) as caught:
        make_detector("cellpose", {"device": "cpu", **options})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_cellpose_one_line_says_what_to_install(
    stand_in: State, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.save(stand_in, tmp_path / "weights.pth")
    for name in [name for name in sys.modules if name.startswith("cellpose.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cellpose", None)
    for options in ({}, {"model": "cyto3"}, {"model": str(tmp_path / "weights.pth")}):
        assert "pip install 'cellpose>=3.0.8,<5'" in refused(**options)


def test_weights_that_are_not_there(stand_in: State, tmp_path: Path) -> None:
    said = refused()
    assert "no weights of cyto3" in said
    assert str(tmp_path / "published") in said
    assert "detector.download=true" in said
    assert "cannot be fetched (no route to nucleitorch_0)" in refused(model="nuclei", download=True)
    assert "neither a file nor a network" in refused(model="cyto9")
    assert "is a folder" in refused(model=str(tmp_path))


def test_published_weights_are_found_where_cellpose_keeps_them(stand_in: State, tmp_path: Path) -> None:
    (tmp_path / "published").mkdir()
    torch.save(stand_in, tmp_path / "published" / "cyto3")
    torch.save(stand_in, tmp_path / "published" / "nucleitorch_0")
    for options in ({}, {"model": "cyto3"}, {"model": "nuclei"}):
        made = make_detector("cellpose", {"device": "cpu", **options})
        assert len(made.value.detect(discs([(50, 60)]), None)) == 1


def _as_safetensors(state: State, path: Path) -> Path:
    save_file(state, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def _of_several_devices(state: State, path: Path) -> Path:
    torch.save({f"module.{name}": value for name, value in state.items()}, path)
    return path


def _without_sizes(state: State, path: Path) -> Path:
    torch.save({name: value for name, value in state.items() if not name.startswith("diam_")}, path)
    return path


@pytest.mark.parametrize("form", [_as_safetensors, _of_several_devices, _without_sizes])
def test_other_spellings_give_the_same_network(
    form: Callable[[State, Path], Path], stand_in: State, tmp_path: Path
) -> None:
    network = load_network(form(stand_in, tmp_path / "weights.pth"), CPU)
    assert (network.channels, network.scale_px, network.cells_px) == (3, 30.0, 30.0)
    assert torch.equal(network.module.output[2].weight, stand_in["output.2.weight"])  # type: ignore[index,union-attr]


def test_the_size_of_cells_is_the_files(stand_in: State, tmp_path: Path) -> None:
    torch.save({**stand_in, "diam_labels": torch.tensor([90.0])}, tmp_path / "weights.pth")
    made = make_detector("cellpose", {"device": "cpu", "model": str(tmp_path / "weights.pth")})
    assert made.value.detect(discs([(130, 170)], radius=45), None)["width"].between(75, 115).all()


def test_a_network_of_two_channels_sees_the_mean_of_the_colours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put_stand_in(monkeypatch)
    network = StandIn([2, 4], 3, 3)
    network.see_dark()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    made = make_detector("cellpose", {"device": "cpu", "model": str(tmp_path / "weights.pth")})
    cells = made.value.detect(discs([(50, 60), (100, 200)]), None)
    assert np.abs(cells[["y", "x"]].to_numpy() - [(50.5, 60.5), (100.5, 200.5)]).max() < 1


def _missing(state: State) -> None:
    del state["output.2.bias"]


def _more(state: State) -> None:
    state["output.3.weight"] = torch.zeros(3)


def _other_shape(state: State) -> None:
    state["output.0.weight"] = torch.zeros(9)


def _other_outputs(state: State) -> None:
    state["output.2.weight"] = torch.zeros(1, 4, 1, 1)


def _of_a_classifier(state: State) -> None:
    state.clear()
    state["stem.weight"] = torch.zeros(3)


def _of_dino(state: State) -> None:
    state.clear()
    state |= {"encoder.cls_token": torch.zeros(1), "W2": torch.zeros(1)}


def _of_cellpose_4(state: State) -> None:
    state.clear()
    state |= {"encoder.pos_embed": torch.zeros(1), "W2": torch.zeros(1)}


def _no_size(state: State) -> None:
    state["diam_labels"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_missing, "1 missing (output.2.bias)"),
        (_more, "1 unexpected (output.3.weight)"),
        (_other_shape, "1 of another shape (output.0.weight (9,) for (4,))"),
        (_other_outputs, "another number of outputs than 3"),
        (_of_a_classifier, "no Cellpose network that is known here (first tensor 'stem.weight')"),
        (_of_dino, "Cellpose-DINO, which is not supported"),
        (_of_cellpose_4, "cellpose 3.0.9 is installed; run pip install 'cellpose>=4,<5'"),
        (_no_size, "cells are 0 px wide"),
    ],
)
def test_what_does_not_fit_is_named(spoil: Callable[[State], None], said: str, stand_in: State, tmp_path: Path) -> None:
    spoil(stand_in)
    torch.save(stand_in, tmp_path / "spoilt.pth")
    with pytest.raises(ModelError) as caught:
        load_network(tmp_path / "spoilt.pth", CPU)
    assert said in str(caught.value)
    assert "spoilt.pth" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_network_of_cellpose_3_needs_it(stand_in: State, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.save(stand_in, tmp_path / "weights.pth")
    put_stand_in(monkeypatch, version="4.2.1")
    monkeypatch.delitem(sys.modules, "cellpose.resnet_torch")
    with pytest.raises(ModelError, match=r"cellpose 4\.2\.1 is installed; run pip install 'cellpose<4'"):
        load_network(tmp_path / "weights.pth", CPU)


class _Harmful:
    ran = False

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (_run, ("x",))


def _run(_: str) -> None:
    _Harmful.ran = True


def test_nothing_in_a_file_is_run(stand_in: State, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    torch.save({**stand_in, "harm": _Harmful()}, files / "zip.pth")
    (files / "pickle").write_bytes(pickle.dumps(_Harmful()))
    (files / "text.pth").write_text("not a checkpoint")
    (files / "cut.safetensors").write_bytes(b"\x10\x00")
    for path in sorted(files.iterdir()):
        assert "cannot be read safely" in refused(model=str(path))
    assert not _Harmful.ran
    torch.save([1, 2], tmp_path / "list.pth")
    assert "no table of tensors" in refused(model=str(tmp_path / "list.pth"))


def test_a_device_that_is_not_there(stand_in: State) -> None:
    for device in ("quantum", "cuda:99"):
        with pytest.raises(PluginError, match=f"device {device} cannot be used here"):
            make_detector("cellpose", {"device": device})


@pytest.mark.skipif(not INSTALLED.startswith("4."), reason=f"needs cellpose 4; installed: {INSTALLED or 'none'}")
def test_a_transformer_of_cellpose_4_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from cellpose import vit
    from segment_anything.build_sam import _build_sam

    # The published one has 24 blocks of 1024 channels; with two of 64 the same code runs in a moment.
    small = {"vit_l": lambda _: _build_sam(64, 2, 2, [0, 1])}
    monkeypatch.setattr(vit, "sam_model_registry", small)
    torch.manual_seed(0)
    torch.save(vit.CPSAM().state_dict(), tmp_path / "cpsam")
    network = load_network(tmp_path / "cpsam", CPU)
    assert (network.channels, network.tile, network.step) == (3, 256, 256)
    options = {"model": str(tmp_path / "cpsam"), "device": "cpu", "cellprob_threshold": -20.0, "flow_threshold": 0.0}
    cells = make_detector("cellpose", options).value.detect(discs([(50, 60)], 300, 340), None)
    assert cells["score"].between(0, 1).all()
