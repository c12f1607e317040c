"""Every command takes a path however it is written: relative, with ``..``, through a link, with a slash at its end."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from hematokit.cli.main import main
from hematokit.synthetic import synthesize_field
from tinykit import write_crops

Write = Callable[[str], str]
Say = Callable[..., Any]

FORMS = {
    "absolute": "{base}/{name}",
    "parent": "../{name}",
    "dot": "./.././{name}",
    "absolute with parent": "{base}/sub/../{name}",
    "behind a link": "link/../{name}",
    "slash at the end": "../{name}/",
    "two slashes": "/{base}//{name}",
}


@pytest.fixture(params=FORMS)
def write(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return what a user in ``sub`` writes for a file of the folder above; ``sub/link`` points to its sibling."""
    for name in ("sub", "inner"):
        (tmp_path / name).mkdir()
    (tmp_path / "sub" / "link").symlink_to("../inner")
    monkeypatch.chdir(tmp_path / "sub")
    return lambda name: FORMS[request.param].format(base=tmp_path, name=name)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Run a command that ends well, and return its JSON document."""

    def call(*words: object) -> Any:
        code = main([*map(str, words), "--json"])
        said = capsys.readouterr()
        assert code == 0, said.err
        return json.loads(said.out)

    return call


def test_stores_are_made_and_read(write: Write, say: Say, tmp_path: Path) -> None:
    write_crops(tmp_path / "crops", {"BLA": 6, "LYT": 6}, size=32)
    assert say("import", write("crops"), write("s.zarr"), "--patch-size", 32)["added"] == 12
    assert say("import", write("crops"), write("s.zarr"))["present"] == 12
    say("split", write("s.zarr"), "--fractions", 0.5, 0.25, 0.25)
    info = say("store", "info", write("s.zarr"))
    assert sum(info["splits"].values()) == 12
    assert say("store", "verify", write("s.zarr"))["ok"]
    assert info["content_hash"] == say("store", "info", tmp_path / "s.zarr")["content_hash"]
    assert sorted(path.name for path in (tmp_path / "sub").iterdir()) == ["link"]


def test_fields_are_tiled_read_again_and_detected(write: Write, say: Say, tmp_path: Path) -> None:
    (tmp_path / "fields").mkdir()
    Image.fromarray(synthesize_field(500, 500, cells=4, seed=1).pixels).save(tmp_path / "fields" / "a.png")
    tiled = say("tile", write("fields"), write("f.zarr"), "--pixel-size", "0.1")
    assert tiled["fields"] == 1
    assert say("store", "verify", write("f.zarr"))["fields"] == 1
    # The store's own copy of the field, an OME-Zarr image.
    found = say("detect", write("f.zarr/fields/a"), "--output", write("found"), "--pixel-size", "0.1")
    assert found["fields"] == 1
    assert found["cells"] == tiled["added"]


@pytest.mark.parametrize("write", ["parent", "behind a link"], indirect=True)
def test_training_evaluation_explanation_and_export(
    write: Write, say: Say, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_store, tmp_path / "s.zarr")
    quick = ["--backbone", "timm:test_resnet", "--image-size", 64, "--epochs", 1, "--batch-size", 16, "--device", "cpu"]
    say("train", write("s.zarr"), "--output", write("run"), *quick)
    one = say("evaluate", write("run"), "--store", write("s.zarr"), "--device", "cpu", "--output", write("one"))
    say("explain", write("run"), "--store", write("s.zarr"), "--output", write("why"), "--device", "cpu",
        "--per-class", 1, "--methods", "grad-cam", "--no-figures")  # fmt: skip
    say("export", write("run"), "--output", write("model.onnx"))
    assert len(pd.read_parquet(tmp_path / "why" / "cells.parquet")) == 3
    assert (tmp_path / "model.onnx").is_file()
    # The run remembers where its store is, wherever the user goes.
    monkeypatch.chdir(tmp_path / "inner")
    two = say("evaluate", tmp_path / "run", "--device", "cpu", "--output", tmp_path / "two")
    assert one["per_class"] == two["per_class"]


NAMES = [
    "trailing ", " leading", "per%20cent", "per%cent", "what?", "h#sh", "ünïcode 😀", "http:", "s3:", "a|zarr3:",
    "new\nline", "{brace}", "~tilde", "star*", "dots..", "x" * 250,
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_unusual_names_work(name: str, say: Say, tmp_path: Path) -> None:
    write_crops(tmp_path / name / "crops", {"BLA": 2}, size=16)
    store = tmp_path / name / "s.zarr"
    assert say("import", tmp_path / name / "crops", store, "--patch-size", 16)["added"] == 2
    assert say("store", "verify", store)["ok"]


@pytest.mark.parametrize("name", ["back\\slash", "taken.__lock", os.fsdecode(b"latin-\xe9")])
def test_a_name_that_cannot_be_used_is_said_to_be_the_problem(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], say: Say
) -> None:
    write_crops(tmp_path / "crops", {"BLA": 2}, size=16)
    assert main(["import", str(tmp_path / "crops"), str(tmp_path / name), "--patch-size", "16"]) == 2
    error = capsys.readouterr().err
    assert "rename that folder" in error
    assert "damaged" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["crops"]
    # A store that was made under another name, and moved there.
    say("import", tmp_path / "crops", tmp_path / "s.zarr", "--patch-size", 16)
    (tmp_path / "s.zarr").rename(tmp_path / name)
    for words in (["store", "verify"], ["store", "info"], ["split"]):
        assert main([*words, str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert "rename that folder" in error
        assert "damaged" not in error


@pytest.mark.parametrize("name", ["x" * 300, "/".join(["x" * 200] * 25)])
def test_a_name_that_is_too_long_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_crops(tmp_path / "crops", {"BLA": 2}, size=16)
    for words in (["import", str(tmp_path / "crops")], ["store", "verify"], ["split"]):
        assert main([*words, str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert "File name too long" in error
        assert error.count("\n") == 1
        assert "damaged" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["crops"]


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("crops.zarr/zarr.json", "store info {}/crops.zarr"),
        ("crops.zarr/cells.parquet", "store verify {}/crops.zarr"),
        ("run/config.yaml", "train --resume --output {}/run"),
        ("run/checkpoints/last.safetensors", "train --resume --output {}/run --epochs 9"),
        ("run/bundle/SHA256SUMS", "evaluate {}/run --device cpu"),
        ("detections/run.json", "detect {}/fields --output {}/detections"),
    ],
)
def test_a_file_that_may_not_be_read_is_not_called_damaged(
    file: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "earlier"
    shutil.copytree(Path(__file__).parent.parent / "earlier" / "0.1.0", root)
    for name in ("detections/run.json", "run/config.yaml"):
        (root / name).write_text((root / name).read_text().replace("@ROOT@", str(root)))
    open_file = Path.open

    def refuse(path: Path, *arguments: Any, **more: Any) -> Any:
        if path == root / file:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open_file(path, *arguments, **more)

    monkeypatch.setattr(Path, "open", refuse)
    assert main(words.replace("{}", str(root)).split()) == 2
    error = capsys.readouterr().err
    assert "cannot be read (Permission denied" in error
    assert not any(wrong in error for wrong in ("damaged", "new run", "remove", "restore", "not a patch store"))
