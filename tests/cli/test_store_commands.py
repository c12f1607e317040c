"""The commands import, store and split, as a user types them."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hematokit.cli.main import main
from hematokit.store import open_store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty blasts, ten promyelocytes, one broken file."""
    root = tmp_path / "my crops ü"
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)):
        path = root / ("BLA" if i < 20 else "PMO") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (root / "PMO" / "broken.png").write_text("no image")
    return root


class Run:
    """What a command printed, and its exit code."""

    def __init__(self, capsys: pytest.CaptureFixture[str], arguments: Sequence[str | Path]) -> None:
        capsys.readouterr()
        self.code = main([str(argument) for argument in arguments])
        self.out, self.err = capsys.readouterr()


def test_the_way_from_a_folder_to_a_split(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store.zarr"
    run = Run(capsys, ["import", folder, store, "--patch-size", "16"])
    assert (run.code, run.err) == (0, "")
    assert "30 cells added" in run.out
    assert "1 unreadable" in run.out

    run = Run(capsys, ["import", folder, store, "--json"])
    summary = json.loads(run.out)
    assert (summary["added"], summary["present"], summary["rejected"]) == (0, 30, {"unreadable": 1})

    run = Run(capsys, ["split", store, "--fractions", "0.6", "0.2", "0.2", "--seed", "3"])
    assert run.code == 0
    run = Run(capsys, ["split", store, "--json"])
    split = json.loads(run.out)
    assert split["counts"]["train"] == {"BLA": 14, "PMO": 7}
    assert split["replaced"]["seed"] == 3
    assert "replaced the split with fractions 0.7 0.15 0.15" in Run(capsys, ["split", store, "--seed", "1"]).out

    info = json.loads(Run(capsys, ["store", "info", store, "--json"]).out)
    assert info["classes"] == {"BLA": 20, "PMO": 10}
    assert info["split_info"]["seed"] == 1
    assert info["rejects"] == {"unreadable": 1}
    run = Run(capsys, ["store", "info", store, "--rejects"])
    assert "broken.png" in run.out
    assert info["content_hash"] in run.out

    run = Run(capsys, ["store", "verify", store])
    assert (run.code, run.out.count("\n")) == (0, 1)


def test_cells_that_come_after_a_split_are_pointed_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store.zarr"
    Run(capsys, ["import", folder, store, "--patch-size", "16"])
    Run(capsys, ["split", store])
    Image.new("RGB", (16, 16), "red").save(folder / "BLA" / "new.png")
    assert "1 cells are in no split yet" in Run(capsys, ["import", folder, store]).out
    assert "in none 1" in Run(capsys, ["store", "info", store]).out


def test_verify_names_damaged_cells_and_exits_with_1(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store.zarr"
    Run(capsys, ["import", folder, store, "--patch-size", "16"])
    shard = store / "patches" / "c" / "0" / "0" / "0" / "0"
    os.truncate(shard, shard.stat().st_size // 2)
    run = Run(capsys, ["store", "verify", store])
    assert (run.code, run.err) == (1, "")
    assert "30 of 30 patches" in run.out
    run = Run(capsys, ["store", "verify", store, "--json"])
    report = json.loads(run.out)
    assert (run.code, report["ok"], len(report["damaged"])) == (1, False, 30)


def test_a_taxonomy_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lab.yaml").write_text(
        "name: our-lab\nclasses:\n  - {code: bla, name: '<script>x</script>'}\n  - {code: PMO}\n  - {code: ZZZ}\n"
    )
    (folder / "ZZZ").mkdir()
    Image.new("RGB", (16, 16), "red").save(folder / "ZZZ" / "z.png")
    store = tmp_path / "store.zarr"
    run = Run(capsys, ["import", folder, store, "--patch-size", "16"])
    assert run.code == 2
    assert "'ZZZ'" in run.err
    assert "--taxonomy" in run.err
    run = Run(capsys, ["import", folder, store, "--patch-size", "16", "--taxonomy", tmp_path / "lab.yaml", "--json"])
    assert json.loads(run.out)["classes"] == {"bla": 20, "PMO": 10, "ZZZ": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import", "{}/nothing", "{}/store.zarr"], "does not exist"),
        (["import", "{}/void", "{}/store.zarr"], "holds no JPEG"),
        (["import", "{}/my crops ü", "{}/my crops ü"], "not empty"),
        (["import", "{}/my crops ü", "{}/store.zarr", "--codec", "zip"], "codec"),
        (["import", "{}/my crops ü", "{}/store.zarr", "--taxonomy", "{}/none.yaml"], "taxonomy file"),
        (["store", "info", "{}/void"], "not a patch store"),
        (["store", "verify", "{}/nothing"], "does not exist"),
        (["split", "{}/nothing"], "does not exist"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "void").mkdir()
    run = Run(capsys, [argument.format(tmp_path) for argument in arguments])
    assert (run.code, run.out, run.err.count("\n")) == (2, "", 1)
    assert message in run.err
    assert "; " in run.err, "says what to do"


def test_fractions_must_sum_to_1(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store.zarr"
    Run(capsys, ["import", folder, store, "--patch-size", "16"])
    run = Run(capsys, ["split", store, "--fractions", "0.5", "0.5", "0.5"])
    assert run.code == 2
    assert "sum to 1.5, not 1" in run.err


@pytest.mark.parametrize("command", [["import"], ["split"], ["store", "info"], ["store", "verify"]])
def test_help_has_an_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(capsys, [*command, "--help"])
    assert run.code == 0
    assert f"hematokit {' '.join(command)} " in run.out.split("Example:")[1]


def test_the_pixel_size_is_given_at_import_or_stated_later(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, other = tmp_path / "store.zarr", tmp_path / "other.zarr"
    run = Run(capsys, ["import", folder, store, "--patch-size", "16", "--pixel-size", "0.09"])
    assert "Warning" not in run.out
    assert "pixel size 0.09 um" in Run(capsys, ["store", "info", store]).out
    run = Run(capsys, ["import", folder, other, "--patch-size", "16"])
    assert (
        f"Warning: the pixel size of the cells is not known; state it with 'hematokit store set-pixel-size {other}"
        in run.out
    )
    assert "Warning: the pixel size of the cells is not known" in Run(capsys, ["store", "info", other]).out
    run = Run(capsys, ["store", "set-pixel-size", other, "0.25", "--json"])
    assert (json.loads(run.out)["changed"], run.code) == (30, 0)
    run = Run(capsys, ["store", "set-pixel-size", other, "0.09"])
    assert "Warning: 30 cells have another pixel size" in run.out
    run = Run(capsys, ["store", "set-pixel-size", other, "0.09", "--force"])
    assert "pixel size of 30 cells set to 0.09 um" in run.out
    assert json.loads(Run(capsys, ["store", "info", other, "--json"]).out)["pixel_sizes"]["median"] == 0.09
    for value in ("0", "86", "nan"):  # 86: nanometres
        run = Run(capsys, ["store", "set-pixel-size", other, value])
        assert (run.code, run.err.count("\n")) == (2, 1)
        assert f"a pixel size of {value} um is not possible; give micrometres" in run.err
    run = Run(capsys, ["import", folder, tmp_path / "none.zarr", "--pixel-size", "-1"])
    assert (run.code, run.err.count("\n")) == (2, 1)
    assert not (tmp_path / "none.zarr").exists()


def test_advice_can_be_run_as_it_is_written(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The path has a space and a quote."""
    store = tmp_path / "the lab's.zarr"
    run = Run(capsys, ["import", folder, store, "--patch-size", "16"])
    advice = next(line for line in run.out.splitlines() if "set-pixel-size" in line)
    command = advice.partition("'hematokit ")[2].partition("', so that")[0].replace("UM", "0.09")
    assert Run(capsys, shlex.split(command)).code == 0
    run = Run(capsys, ["train", store, "--output", tmp_path / "run"])
    assert run.code == 2
    assert Run(capsys, shlex.split(run.err.partition("run: hematokit ")[2])).code == 0
    assert open_store(store).split_info is not None


def test_a_table_that_does_not_exist_is_not_called_wrongly_encoded(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, missing = tmp_path / "store.zarr", tmp_path / "none.csv"
    assert Run(capsys, ["import", folder, store, "--patch-size", "16"]).code == 0
    for words in (["store", "set-smears", store, missing], ["import", folder, store, "--labels", missing]):
        run = Run(capsys, words)
        assert (run.code, run.err.count("\n")) == (2, 1)
        assert "none.csv cannot be read (No such file or directory); give" in run.err
