"""Folders of fields: everything is done once, what fails is said, and a stop costs one field at most."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hematokit.errors import FieldError, ImageError, PluginError
from hematokit.fields.folder import ResultsFolder, outcome_table, read_predictions, run_fields
from hematokit.fields.job import FieldJob
from hematokit.imaging.synthetic import synthesize_field
from pluginkit import pip_install, run_hematokit, write_package


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four small drawn fields, one in a folder of its own with the name of another."""
    folder = tmp_path_factory.mktemp("fields")
    for number in range(3):
        drawn = synthesize_field(420, 520, cells=4, seed=number)
        Image.fromarray(drawn.pixels).save(folder / f"field{number}.png")
    (folder / "more").mkdir()
    Image.fromarray(synthesize_field(400, 400, cells=3, seed=9).pixels).save(folder / "more" / "field0.png")
    return folder


def job(output: Path, **changed: object) -> FieldJob:
    settings: dict[str, object] = {"output": str(output), "device": "cpu", "runtime": "torch"}
    return FieldJob(**{**settings, **changed})  # type: ignore[arg-type]


def test_each_field_gets_a_folder_of_files(fields: Path, tiny_run: Path, tmp_path: Path) -> None:
    results = ResultsFolder.prepare([fields], job(tmp_path / "out", model=str(tiny_run)))
    outcomes = run_fields(results)
    assert [outcome.status for outcome in outcomes] == ["done"] * 4
    assert len({outcome.field_id for outcome in outcomes}) == 4
    for outcome in outcomes:
        folder = tmp_path / "out" / "fields" / outcome.field_id
        assert {file.name for file in folder.iterdir()} == {
            "cells.parquet",
            "cells.csv",
            "cells.geojson",
            "field.json",
        }
        cells = pd.read_parquet(folder / "cells.parquet")
        assert len(cells) == outcome.cells
        assert set(cells["field_id"]) <= {outcome.field_id}
        if len(cells):
            assert cells["predicted"].isin(["BLA", "LYT", "NGS"]).all()
            np.testing.assert_allclose(cells[["p_BLA", "p_LYT", "p_NGS"]].sum(axis=1), 1, atol=1e-5)
    predictions = read_predictions(results, outcomes)
    assert len(predictions) == sum(outcome.cells for outcome in outcomes) > 0
    table = outcome_table(outcomes)
    assert {"field_id", "status", "cells", "flag", "focus", "seconds", "seconds_detect"} <= set(table.columns)


def test_a_second_call_does_nothing_and_says_the_same(fields: Path, tmp_path: Path) -> None:
    first = run_fields(ResultsFolder.prepare([fields], job(tmp_path / "out")))
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("fields/*/*")}
    second = run_fields(ResultsFolder.prepare([fields], job(tmp_path / "out")))
    assert second == first
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("fields/*/*")} == before


def test_a_field_that_has_changed_is_done_again_and_only_that(tmp_path: Path) -> None:
    folder = tmp_path / "fields"
    folder.mkdir()
    for number in range(2):
        Image.fromarray(synthesize_field(300, 300, cells=2, seed=number).pixels).save(folder / f"f{number}.png")
    first = run_fields(ResultsFolder.prepare([folder], job(tmp_path / "out")))
    Image.fromarray(np.full((300, 310, 3), 235, np.uint8)).save(folder / "f0.png")
    second = run_fields(ResultsFolder.prepare([folder], job(tmp_path / "out")))
    assert second[1] == first[1]
    assert (second[0].width, second[0].cells) == (310, 0)


def test_bad_fields_are_said_and_the_rest_goes_on(fields: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "good.png").write_bytes((fields / "field0.png").read_bytes())
    (folder / "cut.png").write_bytes((fields / "field1.png").read_bytes()[:2000])
    (folder / "empty.tif").write_bytes(b"")
    Image.fromarray(np.zeros((50, 50), np.uint8)).save(folder / "grey.png")
    Image.fromarray(np.zeros((50, 50, 4), np.uint8), "CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.zeros((60, 60, 3), np.uint8)).save(folder / "black.png")
    Image.fromarray(np.full((1, 1, 3), 200, np.uint8)).save(folder / "tiny.png")
    outcomes = {o.field_id: o for o in run_fields(ResultsFolder.prepare([folder], job(tmp_path / "out")))}
    failed = {name for name, outcome in outcomes.items() if outcome.status == "failed"}
    assert failed == {"cut", "empty", "grey", "cmyk"}
    for name in failed:
        assert name in outcomes[name].message
        assert "\n" not in outcomes[name].message
    assert outcomes["good"].cells > 0
    for name in ("black", "tiny"):
        assert outcomes[name].cells == 0
        assert outcomes[name].flag != "ok"
        assert outcomes[name].reasons


def test_results_of_other_settings_are_never_mixed(fields: Path, tiny_run: Path, tmp_path: Path) -> None:
    one = fields / "field0.png"
    run_fields(ResultsFolder.prepare([one], job(tmp_path / "out")))
    with pytest.raises(FieldError, match="another model"):
        ResultsFolder.prepare([one], job(tmp_path / "out", model=str(tiny_run)))
    with pytest.raises(FieldError, match="another pixel size"):
        ResultsFolder.prepare([one], job(tmp_path / "out", pixel_size_um=0.1))
    # More fields of the same job are welcome.
    outcomes = run_fields(ResultsFolder.prepare([fields], job(tmp_path / "out")))
    assert len(outcomes) == 4


def test_a_folder_of_something_else_is_left_alone(fields: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FieldError, match="holds something else"):
        ResultsFolder.prepare([fields], job(tmp_path))
    with pytest.raises(FieldError, match="is a file"):
        ResultsFolder.prepare([fields], job(tmp_path / "notes.txt"))
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_wrong_paths_and_detectors_are_errors_before_anything_is_written(fields: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="nowhere"):
        ResultsFolder.prepare([tmp_path / "nowhere"], job(tmp_path / "out"))
    with pytest.raises(PluginError, match="nosuch"):
        ResultsFolder.prepare([fields], job(tmp_path / "out", detector="nosuch"))
    with pytest.raises(PluginError, match="option"):
        ResultsFolder.prepare([fields], job(tmp_path / "out", detector_options={"nosuch": 1}))
    assert not (tmp_path / "out").exists()


def test_the_progress_callback_can_stop_the_work_and_it_goes_on_later(fields: Path, tmp_path: Path) -> None:
    def stop_after_two(done: int, total: int | None, message: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_fields(ResultsFolder.prepare([fields], job(tmp_path / "out")), progress=stop_after_two)
    assert len(list(tmp_path.rglob("field.json"))) == 2
    calls: list[tuple[int, str]] = []
    outcomes = run_fields(
        ResultsFolder.prepare([fields], job(tmp_path / "out")),
        progress=lambda done, total, message: calls.append((done, message)),
    )
    assert calls[0] == (2, "2 done before")
    assert [outcome.status for outcome in outcomes] == ["done"] * 4


def test_a_field_of_many_windows_says_how_far_it_is_and_can_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hematokit.fields.detection as detection

    Image.fromarray(synthesize_field(300, 700, cells=4, seed=2).pixels).save(tmp_path / "wide.png")
    monkeypatch.setattr(detection, "WINDOW_SIDE", 300)
    said: list[str] = []

    def listen(done: int, total: int | None, message: str) -> None:
        said.append(message)
        if "2 of 3" in message:
            raise KeyboardInterrupt

    results = ResultsFolder.prepare([tmp_path / "wide.png"], job(tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt):
        run_fields(results, progress=listen)
    assert "wide: 1 of 3 windows" in said
    assert not list(tmp_path.rglob("field.json"))


KILLED = """
import sys
from pathlib import Path
from hematokit.fields.folder import ResultsFolder, run_fields
from hematokit.fields.job import FieldJob
run_fields(ResultsFolder.prepare([Path(sys.argv[1])], FieldJob(sys.argv[2])))
"""


def test_killed_at_any_moment_the_same_call_ends_with_the_same_results(fields: Path, tmp_path: Path) -> None:
    whole = run_fields(ResultsFolder.prepare([fields], job(tmp_path / "whole")))
    for wanted in (0, 1, 3):
        output = tmp_path / f"killed-{wanted}"
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(fields), str(output)])
        deadline = time.monotonic() + 120
        while len(list(output.glob("fields/*/field.json"))) < wanted or not (output / "run.json").exists():
            assert time.monotonic() < deadline, "the process wrote nothing"
            if process.poll() is not None:
                break
            time.sleep(0.002)
        process.kill()
        assert process.wait() in (0, -signal.SIGKILL)
        outcomes = run_fields(ResultsFolder.prepare([fields], job(output)))
        assert [(o.field_id, o.cells, o.flag) for o in outcomes] == [(o.field_id, o.cells, o.flag) for o in whole]
        for outcome in outcomes:
            name = f"fields/{outcome.field_id}/cells.parquet"
            pd.testing.assert_frame_equal(pd.read_parquet(output / name), pd.read_parquet(tmp_path / "whole" / name))
        assert not list(output.rglob(".writing-*"))


def test_a_full_disk_stops_the_work_and_keeps_what_is_done(
    fields: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hematokit.fields.job as module

    real, written = module.write_parquet, []

    def full(path: Path, cells: pd.DataFrame) -> None:
        if written:
            raise OSError(28, "No space left on device", str(path))
        written.append(path)
        real(path, cells)

    monkeypatch.setattr(module, "write_parquet", full)
    with pytest.raises(FieldError, match=r"No space left on device.*make room"):
        run_fields(ResultsFolder.prepare([fields], job(tmp_path / "out")))
    monkeypatch.undo()
    assert len(list(tmp_path.rglob("field.json"))) == 1
    outcomes = run_fields(ResultsFolder.prepare([fields], job(tmp_path / "out")))
    assert [outcome.status for outcome in outcomes] == ["done"] * 4


def test_results_say_what_they_were_made_with(fields: Path, tiny_run: Path, tmp_path: Path) -> None:
    ResultsFolder.prepare([fields], job(tmp_path / "out", model=str(tiny_run)))
    said = json.loads((tmp_path / "out" / "run.json").read_text())
    assert said["job"]["detector"]["name"] == "nuclei"
    assert len(said["job"]["model"]["sha256"]) == 64
    assert said["research_use_only"] is True


DOTS = """
import hematokit

def make():
    import pandas as pd

    class Nothing:
        def detect(self, field, pixel_size_um):
            return pd.DataFrame({name: [] for name in ("y", "x", "y0", "x0", "height", "width", "score")})

    return Nothing()

@hematokit.hookimpl
def register_detectors(register):
    register(hematokit.DetectorSpec("dots", "Finds nothing", make STATED))
"""


def test_results_of_another_version_of_a_detector_are_refused_with_both_named(fields: Path, tmp_path: Path) -> None:
    def detect(package: str, stated: str) -> subprocess.CompletedProcess[str]:
        site = tmp_path / f"{package}{stated}"
        code = DOTS.replace(" STATED", f", version={stated!r}" if stated else "")
        pip_install(site, write_package(site / "source", "hemato-dots", code, version=package))
        output = str(tmp_path / "out")
        return run_hematokit("detect", str(fields), "--output", output, "--detector", "dots", site=site)

    assert detect("1.2.3", "").returncode == 0
    # A package that states nothing of the algorithm: its own version counts, as it did.
    refused = detect("1.2.4", "")
    assert refused.returncode == 2
    assert "results of detector 'dots' version 1.2.3, and this is version 1.2.4" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    # One that says that nothing changed for the algorithm, whatever the package's version.
    assert detect("1.2.4", "1.2.3").returncode == 0
    assert detect("2.0", "1.2.3").returncode == 0
    assert "version 1.2.3, and this is version 3" in detect("2.0", "3").stderr
