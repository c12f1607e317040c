"""Folders of fields: everything is done once, what fails is said, and a stop costs one field at most."""

from __future__ import annotations

import html
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import hematokit
from hematokit.annotations.writing import read_parquet
from hematokit.cli.main import main
from hematokit.errors import FieldError, ImageError, PluginError
from hematokit.pipelines.field_run import FieldJob, prepare_run, run_fields
from hematokit.results.folder import outcome_table
from hematokit.results.reading import find_model_of, open_results
from hematokit.review.session import Review
from hematokit.synthetic import synthesize_field
from pluginkit import run_hematokit


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
    results = prepare_run([fields], job(tmp_path / "out", model=str(tiny_run)))
    outcomes = run_fields(*results)
    assert [outcome.status for outcome in outcomes] == ["done"] * 4
    assert len({outcome.field_id for outcome in outcomes}) == 4
    for outcome in outcomes:
        folder = tmp_path / "out" / "fields" / outcome.field_id
        assert {file.name for file in folder.iterdir()} == {
            "cells.parquet",
            "cells.csv",
            "cells.geojson",
            "overlay.png",
            "field.json",
        }
        cells = pd.read_parquet(folder / "cells.parquet")
        assert len(cells) == outcome.cells
        assert set(cells["field_id"]) <= {outcome.field_id}
        if len(cells):
            assert cells["predicted"].isin(["BLA", "LYT", "NGS"]).all()
            np.testing.assert_allclose(cells[["p_BLA", "p_LYT", "p_NGS"]].sum(axis=1), 1, atol=1e-5)
    predictions = results[1].read_predictions(outcomes)
    assert len(predictions) == sum(outcome.cells for outcome in outcomes) > 0
    table = outcome_table(outcomes)
    assert {"field_id", "status", "cells", "flag", "focus", "seconds", "seconds_detect"} <= set(table.columns)


def test_a_second_call_does_nothing_and_says_the_same(fields: Path, tmp_path: Path) -> None:
    first = run_fields(*prepare_run([fields], job(tmp_path / "out")))
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("fields/*/*")}
    second = run_fields(*prepare_run([fields], job(tmp_path / "out")))
    assert second == first
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("fields/*/*")} == before


def test_a_field_that_has_changed_is_done_again_and_only_that(tmp_path: Path) -> None:
    folder = tmp_path / "fields"
    folder.mkdir()
    for number in range(2):
        Image.fromarray(synthesize_field(300, 300, cells=2, seed=number).pixels).save(folder / f"f{number}.png")
    first = run_fields(*prepare_run([folder], job(tmp_path / "out")))
    Image.fromarray(np.full((300, 310, 3), 235, np.uint8)).save(folder / "f0.png")
    second = run_fields(*prepare_run([folder], job(tmp_path / "out")))
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
    outcomes = {o.field_id: o for o in run_fields(*prepare_run([folder], job(tmp_path / "out")))}
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
    run_fields(*prepare_run([one], job(tmp_path / "out")))
    with pytest.raises(FieldError, match="another model"):
        prepare_run([one], job(tmp_path / "out", model=str(tiny_run)))
    with pytest.raises(FieldError, match="another --pixel-size"):
        prepare_run([one], job(tmp_path / "out", pixel_size_um=0.1))
    # More fields of the same job are welcome.
    outcomes = run_fields(*prepare_run([fields], job(tmp_path / "out")))
    assert len(outcomes) == 4


def test_a_folder_of_something_else_is_left_alone(fields: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FieldError, match="holds something else"):
        prepare_run([fields], job(tmp_path))
    with pytest.raises(FieldError, match="is a file"):
        prepare_run([fields], job(tmp_path / "notes.txt"))
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_wrong_paths_and_detectors_are_errors_before_anything_is_written(fields: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="nowhere"):
        prepare_run([tmp_path / "nowhere"], job(tmp_path / "out"))
    with pytest.raises(PluginError, match="nosuch"):
        prepare_run([fields], job(tmp_path / "out", detector="nosuch"))
    with pytest.raises(PluginError, match="option"):
        prepare_run([fields], job(tmp_path / "out", detector_options={"nosuch": 1}))
    assert not (tmp_path / "out").exists()


def test_the_progress_callback_can_stop_the_work_and_it_goes_on_later(fields: Path, tmp_path: Path) -> None:
    def stop_after_two(done: int, total: int | None, message: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_fields(*prepare_run([fields], job(tmp_path / "out")), progress=stop_after_two)
    assert len(list(tmp_path.rglob("field.json"))) == 2
    calls: list[tuple[int, str]] = []
    outcomes = run_fields(
        *prepare_run([fields], job(tmp_path / "out")),
        progress=lambda done, total, message: calls.append((done, message)),
    )
    assert calls[0] == (2, "2 done before")
    assert [outcome.status for outcome in outcomes] == ["done"] * 4


def test_a_field_of_many_windows_says_how_far_it_is_and_can_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hematokit.detection.windows as detection

    Image.fromarray(synthesize_field(300, 700, cells=4, seed=2).pixels).save(tmp_path / "wide.png")
    monkeypatch.setattr(detection, "WINDOW_SIDE", 300)
    said: list[str] = []

    def listen(done: int, total: int | None, message: str) -> None:
        said.append(message)
        if "2 of 3" in message:
            raise KeyboardInterrupt

    results = prepare_run([tmp_path / "wide.png"], job(tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt):
        run_fields(*results, progress=listen)
    assert "wide: 1 of 3 windows" in said
    assert not list(tmp_path.rglob("field.json"))


KILLED = """
import sys
from pathlib import Path
from hematokit.pipelines.field_run import FieldJob, prepare_run, run_fields
run_fields(*prepare_run([Path(sys.argv[1])], FieldJob(sys.argv[2])))
"""


def test_killed_at_any_moment_the_same_call_ends_with_the_same_results(fields: Path, tmp_path: Path) -> None:
    whole = run_fields(*prepare_run([fields], job(tmp_path / "whole")))
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
        outcomes = run_fields(*prepare_run([fields], job(output)))
        assert [(o.field_id, o.cells, o.flag) for o in outcomes] == [(o.field_id, o.cells, o.flag) for o in whole]
        for outcome in outcomes:
            name = f"fields/{outcome.field_id}/cells.parquet"
            pd.testing.assert_frame_equal(pd.read_parquet(output / name), pd.read_parquet(tmp_path / "whole" / name))
        assert not list(output.rglob(".writing-*"))


def test_a_full_disk_stops_the_work_and_keeps_what_is_done(
    fields: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hematokit.results.fields as module

    real, written = module.write_parquet, []

    def full(path: Path, cells: pd.DataFrame) -> None:
        if written:
            raise OSError(28, "No space left on device", str(path))
        written.append(path)
        real(path, cells)

    monkeypatch.setattr(module, "write_parquet", full)
    with pytest.raises(FieldError, match=r"No space left on device"):
        run_fields(*prepare_run([fields], job(tmp_path / "out")))
    monkeypatch.undo()
    assert len(list(tmp_path.rglob("field.json"))) == 1
    outcomes = run_fields(*prepare_run([fields], job(tmp_path / "out")))
    assert [outcome.status for outcome in outcomes] == ["done"] * 4


def test_results_say_what_they_were_made_with(fields: Path, tiny_run: Path, tmp_path: Path) -> None:
    prepare_run([fields], job(tmp_path / "out", model=str(tiny_run)))
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
        about = site / f"hemato_dots-{package}.dist-info"
        about.mkdir(parents=True)
        (site / "hemato_dots.py").write_text(code)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: hemato-dots\nVersion: {package}\n")
        (about / "entry_points.txt").write_text("[hematokit]\nmain = hemato_dots\n")
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


def test_results_of_other_weights_at_the_same_path_are_refused(fields: Path, tmp_path: Path) -> None:
    site, weights, output = tmp_path / "site", tmp_path / "weights.pt", str(tmp_path / "out")
    code = DOTS.replace("def make():", "def make(weights):").replace(
        " STATED", ', {"weights": hematokit.Option(str, "", "file of weights")}'
    )
    about = site / "hemato_dots-1.dist-info"
    about.mkdir(parents=True)
    (site / "hemato_dots.py").write_text(code)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: hemato-dots\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[hematokit]\nmain = hemato_dots\n")

    def detect(path: Path) -> subprocess.CompletedProcess[str]:
        options = ["--detector", "dots", "--set", f"detector.weights={path}"]
        return run_hematokit("detect", str(fields), "--output", output, *options, site=site)

    weights.write_bytes(b"trained once")
    first = detect(weights)
    assert first.returncode == 0, first.stderr
    copy = weights.rename(tmp_path / "moved.pt")
    assert detect(copy).returncode == 0
    weights.write_bytes(b"trained again")
    refused = detect(weights)
    assert refused.returncode == 2
    assert "made with another detector" in refused.stderr


def draw(folder: Path, *names: str, seed: int = 0) -> Path:
    """Write a folder of small drawn fields."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.fromarray(synthesize_field(420, 520, cells=6, seed=seed + number).pixels).save(folder / name)
    return folder


def counts_in(output: Path) -> tuple[str, dict[str, int]]:
    """What the files of a folder of results say of its fields and classes, in no order."""
    table = pd.read_csv(output / "fields.csv").sort_values("field_id")
    classes = json.loads((output / "differential.json").read_text())["all"]["classes"]
    columns = ["field_id", "status", "cells", "low_confidence"]
    return table[columns].to_csv(index=False), {share["code"]: share["count"] for share in classes}


def test_the_report_covers_the_fields_of_all_calls(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    one, two = draw(tmp_path / "one", "a.png", "b.png"), draw(tmp_path / "two", "c.png", seed=7)
    (two / "cut.png").write_bytes((one / "a.png").read_bytes()[:900])
    hematokit.classify([one, two], tiny_run, tmp_path / "whole", device="cpu", runtime="torch")
    output = tmp_path / "parts"
    first = hematokit.classify([two], tiny_run, output, device="cpu", runtime="torch")
    assert first.worked == len(first.fields) == 2
    shutil.rmtree(two)
    second = hematokit.classify([one], tiny_run, output, device="cpu", runtime="torch")
    assert second.worked == 2
    assert set(second.fields["field_id"]) == {"a", "b", "c", "cut"}
    assert list(second.failed["field_id"]) == ["cut"]
    assert "2 fields processed in this call, the others before" in second.lines()
    assert any(line.startswith("Failed: ") and "cut.png" in line for line in second.lines())
    assert counts_in(tmp_path / "whole") == counts_in(output)
    page = (output / "report.html").read_text()
    assert all(f"fields/{name}/overlay.png" in page for name in "abc")
    assert "1 of 4 fields failed" in page
    # A field is taken out by removing its folder.
    shutil.rmtree(output / "fields" / "c")
    shutil.rmtree(output / "fields" / "cut")
    third = hematokit.classify([one], tiny_run, output, device="cpu", runtime="torch")
    assert (list(third.fields["field_id"]), third.worked, len(third.failed)) == (["a", "b"], 0, 0)
    assert third.differential is not None
    assert third.differential.overall.fields == 2


def test_detections_of_all_calls_are_in_one_table(tmp_path: Path) -> None:
    one, two = draw(tmp_path / "one", "a.png"), draw(tmp_path / "two", "c.png", seed=7)
    output = tmp_path / "out"
    cells = sum(int(hematokit.detect([path], output).fields["cells"].iloc[-1]) for path in (one, two))
    for table in (pd.read_csv(output / "cells.csv"), pd.read_parquet(output / "cells.parquet")):
        assert len(table) == cells
        assert set(table["field_id"]) == {"a", "c"}


def test_a_call_of_which_nothing_can_be_done_fails_and_keeps_the_report_of_the_others(
    tiny_run: Path, tmp_path: Path
) -> None:
    output, good = tmp_path / "out", draw(tmp_path / "good", "a.png")
    hematokit.classify([good], tiny_run, output, device="cpu", runtime="torch")
    (tmp_path / "bad.png").write_bytes((good / "a.png").read_bytes()[:900])
    with pytest.raises(FieldError, match=r"bad\.png"):
        hematokit.classify([tmp_path / "bad.png"], tiny_run, output, device="cpu", runtime="torch")
    table = pd.read_csv(output / "fields.csv").set_index("field_id")["status"].to_dict()
    assert table == {"a": "done", "bad": "failed"}
    assert "1 of 2 fields failed" in (output / "report.html").read_text()


def test_smears_stay_and_change_everywhere(tiny_run: Path, tmp_path: Path) -> None:
    one, two = draw(tmp_path / "one", "a.png", "b.png"), draw(tmp_path / "two", "c.png", seed=7)
    output = tmp_path / "out"
    (tmp_path / "first.csv").write_text("file,smear_id,patient_id\none/a.png,S1,P1\none/b.png,S1,P1\n")
    settings: dict[str, Any] = {"device": "cpu", "runtime": "torch"}
    hematokit.classify([one], tiny_run, output, smears=tmp_path / "first.csv", **settings)
    # A call without a table takes nothing away.
    plain = hematokit.classify([one, two], tiny_run, output, **settings)
    assert plain.worked == 1
    assert plain.fields.set_index("field_id")["patient_id"].to_dict() == {"a": "P1", "b": "P1", "c": ""}
    # One that names an earlier field by its path changes it, though its image is gone.
    shutil.rmtree(one)
    (tmp_path / "second.csv").write_text("file,smear_id,patient_id\none/a.png,S2,P2\ntwo/c.png,S2,P2\n")
    changed = hematokit.classify([two], tiny_run, output, smears=tmp_path / "second.csv", **settings)
    assert changed.worked == 0
    expected = {"a": ("S2", "P2"), "b": ("S1", "P1"), "c": ("S2", "P2")}
    assert changed.differential is not None
    assert {entry.field_id: (entry.smear_id, entry.patient_id) for entry in changed.differential.fields} == expected
    for field_id, (smear, patient) in expected.items():
        folder = output / "fields" / field_id
        for table in (pd.read_parquet(folder / "cells.parquet"), pd.read_csv(folder / "cells.csv")):
            assert len(table)
            assert set(zip(table["smear_id"], table["patient_id"], strict=True)) == {(smear, patient)}


def test_moved_images_and_folders_are_not_done_twice(tmp_path: Path) -> None:
    one = draw(tmp_path / "project" / "images", "a.png", "b.png")
    output = tmp_path / "project" / "out"
    hematokit.detect([one], output)
    # Images and results together, with other times, as a copy to another machine may give them.
    (tmp_path / "project").rename(tmp_path / "moved")
    os.utime(tmp_path / "moved" / "images" / "a.png", (1, 1))
    together = hematokit.detect([tmp_path / "moved" / "images"], tmp_path / "moved" / "out")
    assert (sorted(together.fields["field_id"]), together.worked) == (["a", "b"], 1)
    # The images alone.
    (tmp_path / "moved" / "images").rename(tmp_path / "elsewhere")
    alone = hematokit.detect([tmp_path / "elsewhere"], tmp_path / "moved" / "out")
    assert (sorted(alone.fields["field_id"]), alone.worked) == (["a", "b"], 0)
    # Spelt otherwise.
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    spelt = hematokit.detect([tmp_path / "link" / ".." / "link"], tmp_path / "moved" / "out")
    assert (sorted(spelt.fields["field_id"]), spelt.worked) == (["a", "b"], 0)
    # A copy beside the first is another field.
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "copy")
    copied = hematokit.detect([tmp_path / "copy"], tmp_path / "moved" / "out")
    assert (len(copied.fields), copied.worked) == (4, 2)


@pytest.mark.parametrize("border", [False, True])
def test_all_files_say_the_same_after_corrections(tiny_run: Path, tmp_path: Path, border: bool) -> None:
    images, output = draw(tmp_path / "images", "a.png", "b.png"), tmp_path / "out"
    settings: dict[str, Any] = {"device": "cpu", "runtime": "torch", "min_probability": 0.9, "exclude_border": border}
    hematokit.classify([images], tiny_run, output, **settings)
    results = open_results(output)
    folder = results.fields[0].folder
    review = Review(results.fields[0].cells(), results.taxonomy, journal=folder / "corrections.jsonl")
    ids = review.cells["cell_id"].tolist()
    # The least sure cell is corrected, another one deleted: neither counts as below the threshold any more.
    least = review.cells.sort_values("probability")["cell_id"].tolist()
    review.correct(least[:1], "LYT")
    review.delete(least[1:2])
    picture = (folder / "overlay.png").read_bytes()
    counted = hematokit.classify([images], tiny_run, output, **settings)
    assert counted.worked == 0
    parts = [pd.read_csv(output / "fields" / name / "cells.csv", keep_default_na=False) for name in ("a", "b")]
    whole = pd.concat(parts, ignore_index=True)
    pd.testing.assert_frame_equal(pd.read_csv(output / "cells.csv", keep_default_na=False), whole)
    for table in (counted.cells, open_results(output).cells, read_parquet(output / "cells.parquet")):
        assert table["cell_id"].tolist() == whole["cell_id"].tolist()
        assert table["label"].fillna("").tolist() == whole["label"].tolist()
        assert table["reviewed"].sum() == 1
    assert "<table" in counted._repr_html_()
    low_confidence, cells = 0, 0
    for field_id in ("a", "b"):
        table = pd.read_csv(output / "fields" / field_id / "cells.csv", keep_default_na=False)
        called = table["label"].where(table["reviewed"], table["predicted"])
        features = json.loads((output / "fields" / field_id / "cells.geojson").read_text())["features"]
        names = [feature["properties"]["classification"]["name"] for feature in features]
        assert sorted(name.split()[0] for name in names) == sorted(called)
        table = table[~table["touches_border"]] if border else table
        below = int(((table["probability"].astype(float) < 0.9) & ~table["reviewed"]).sum())
        row = counted.fields.set_index("field_id").loc[field_id]
        entry = next(entry for entry in counted.differential.fields if entry.field_id == field_id)  # type: ignore[union-attr]
        assert (row["cells"], row["low_confidence"]) == (entry.cells, entry.low_confidence) == (len(table), below)
        low_confidence, cells = low_confidence + below, cells + len(table)
    if border:
        assert "cells cut by the border of their field are excluded" in "".join(counted.lines())
    else:
        assert cells == len(ids) - 1 + len(results.fields[1].cells())
    stated = json.loads((output / "differential.json").read_text())["all"]
    assert (stated["cells"], stated["low_confidence"]) == (cells, low_confidence)
    page = (output / "report.html").read_text()
    assert f"<span>Low-confidence</span><b>{low_confidence}</b>" in page
    assert f"{cells} cells in 2 fields" in page
    assert (folder / "overlay.png").read_bytes() != picture
    # Nothing is drawn a second time, and a picture that cannot be drawn again is not shown.
    before = {file: file.stat().st_mtime_ns for file in output.rglob("fields/*/*")}
    hematokit.classify([images], tiny_run, output, **settings)
    assert {file: file.stat().st_mtime_ns for file in output.rglob("fields/*/*")} == before
    review.correct(least[2:3], "NGS")
    (images / "a.png").rename(tmp_path / "gone.png")
    hematokit.classify([images], tiny_run, output, **settings)
    page = (output / "report.html").read_text()
    assert "fields/a/overlay.png" not in page
    assert "fields/b/overlay.png" in page
    assert "no longer where they were (a is one)" in page


def test_corrections_of_another_image_do_not_count(tiny_run: Path, tmp_path: Path) -> None:
    images, output = draw(tmp_path / "images", "a.png"), tmp_path / "out"
    settings: dict[str, Any] = {"device": "cpu", "runtime": "torch"}
    hematokit.classify([images], tiny_run, output, **settings)
    results = open_results(output)
    folder = results.fields[0].folder
    review = Review(results.fields[0].cells(), results.taxonomy, journal=folder / "corrections.jsonl")
    review.correct(review.cells["cell_id"].tolist(), "LYT")
    os.utime(images / "a.png", (5, 5))
    again = hematokit.classify([images], tiny_run, output, **settings)
    assert again.worked == 1
    assert pd.read_csv(folder / "cells.csv")["reviewed"].all(), "the same cells are found: their labels stay"
    draw(images, "a.png", seed=3)
    other = hematokit.classify([images], tiny_run, output, **settings)
    assert not pd.read_csv(folder / "cells.csv")["reviewed"].any()
    assert "corrections are in corrections-before-" in other.fields["message"].iloc[0]
    assert len(list(folder.glob("corrections-before-*.jsonl"))) == 1


def test_damaged_descriptions_of_results_are_one_line_or_worked_on_again(tmp_path: Path) -> None:
    images, output = draw(tmp_path / "images", "a.png"), tmp_path / "out"
    hematokit.detect([images], output)
    field, run = output / "fields" / "a" / "field.json", output / "run.json"
    for damage in ({"field_id": "../../../escaped"}, {"field_id": None}, {"seconds": None}, {"cells": "many"}):
        field.write_text(json.dumps(json.loads(field.read_text()) | damage))
        assert hematokit.detect([images], output).worked == 1
        assert json.loads(field.read_text())["field_id"] == "a"
    whole = json.loads(run.read_text())
    key = next(iter(whole["fields"]))
    for damage in ({"inputs": None}, {"fields": 3}, {"fields": {key: "\0"}}, {"fields": {key: "../a"}}):
        run.write_text(json.dumps(whole | damage))
        with pytest.raises(FieldError, match=r"run\.json is damaged"):
            hematokit.detect([images], output)


def test_a_table_of_smears_that_leaves_a_smear_empty_keeps_it(tmp_path: Path) -> None:
    images, output = draw(tmp_path / "images", "a.png", "b.png"), tmp_path / "out"
    (tmp_path / "smears.csv").write_text("file,smear_id\na.png,S1\nb.png,S2\n")
    hematokit.detect([images], output, smears=tmp_path / "smears.csv")
    (tmp_path / "patients.csv").write_text("file,patient_id\nimages/a.png,P1\nimages/b.png,P2\n")
    found = hematokit.detect([images / "a.png"], output, smears=tmp_path / "patients.csv")
    assert dict(zip(found.fields["smear_id"], found.fields["patient_id"], strict=True)) == {"S1": "P1", "S2": "P2"}


def test_corrections_that_are_set_aside_overwrite_no_others(tiny_run: Path, tmp_path: Path) -> None:
    images, output = draw(tmp_path / "images", "a.png"), tmp_path / "out"
    versions = [(images / "a.png").read_bytes(), (draw(tmp_path / "other", "a.png", seed=3) / "a.png").read_bytes()]
    kept = []
    for turn in range(5):
        (images / "a.png").write_bytes(versions[turn % 2])
        os.utime(images / "a.png", (turn % 2, turn % 2))
        hematokit.classify([images], tiny_run, output, device="cpu", runtime="torch")
        journal = open_results(output).fields[0].folder / "corrections.jsonl"
        assert not journal.exists()
        assert sorted(file.read_bytes() for file in journal.parent.glob("corrections-before-*")) == sorted(kept)
        review = Review(open_results(output).fields[0].cells(), open_results(output).taxonomy, journal=journal)
        review.correct(review.cells["cell_id"].tolist()[:1], "LYT")
        kept.append(journal.read_bytes())


def test_a_detector_takes_text_that_is_longer_than_a_file_name() -> None:
    with pytest.raises(hematokit.HematokitError, match="nuclei"):
        FieldJob("", detector_options={"words": "a" * 5000}).make_detector()
    spec = hematokit.DetectorSpec("words", "Words", object, options={"words": hematokit.Option(str, "", "any text")})
    for text in ("a" * 5000, "~nobody-of-this-name/x"):
        assert spec.deciding_options({"words": text}) == {"words": text}


def test_results_that_were_moved_with_their_images_and_model_find_them(tiny_run: Path, tmp_path: Path) -> None:
    images = draw(tmp_path / "project" / "images", "a.png")
    shutil.copytree(tiny_run, tmp_path / "project" / "run")
    settings: dict[str, Any] = {"device": "cpu", "runtime": "torch"}
    hematokit.classify([images], tmp_path / "project" / "run", tmp_path / "project" / "out", **settings)
    moved = (tmp_path / "project").rename(tmp_path / "moved")
    results = open_results(moved / "out")
    assert results.fields[0].image == moved / "images" / "a.png"
    assert find_model_of(results) == moved / "run"


def test_the_report_says_the_command_that_makes_it_again(tiny_run: Path, tmp_path: Path) -> None:
    one, two = draw(tmp_path / "o n e", "a.png"), draw(tmp_path / "two", "c.png", seed=7)
    smears = tmp_path / "smears.csv"
    smears.write_text("file,patient_id\na.png,P1\nc.png,P2\n")
    settings: dict[str, Any] = {
        "min_probability": 0.9,
        "exclude_border": True,
        "pixel_size_um": 0.1,
        "force_pixel_size": True,
        "detector_options": {"min_score": 0.6},
        "runtime": "torch",
        "smears": smears,
    }
    for path in (one, two):
        hematokit.classify([path], tiny_run, tmp_path / "out", **settings)
    page = (tmp_path / "out" / "report.html").read_text()
    line = html.unescape(next(line for line in page.splitlines() if "hematokit classify" in line))
    words = shlex.split(line.split("<pre>")[-1].split("</pre>")[0])
    words[words.index("--output") + 1] = str(tmp_path / "again")
    assert main([*words[1:], "--runtime", "torch"]) == 0
    assert counts_in(tmp_path / "again") == counts_in(tmp_path / "out")
    jobs = [json.loads((tmp_path / name / "run.json").read_text())["job"] for name in ("out", "again")]
    assert jobs[0] == jobs[1]


def test_fields_that_an_earlier_call_did_not_come_to_are_a_warning(tmp_path: Path) -> None:
    one, two, output = draw(tmp_path / "one", "a.png", "b.png"), draw(tmp_path / "two", "c.png"), tmp_path / "out"

    def stop(done: int, total: int | None, message: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hematokit.detect([one], output, progress=stop)
    result = hematokit.detect([two], output)
    assert sorted(result.fields["field_id"]) == ["a", "c"]
    assert any(
        line.startswith("Warning: not finished in an earlier call, so not counted: b;") for line in result.lines()
    )
    (output / "fields" / "a" / "field.json").write_text("{")
    assert any("so not counted: a, b;" in line for line in hematokit.detect([two], output).lines())
    for field_id in "ab":
        shutil.rmtree(output / "fields" / field_id)
    assert not any("so not counted" in line for line in hematokit.detect([two], output).lines())
