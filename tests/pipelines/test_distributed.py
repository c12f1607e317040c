"""The same job on a cluster of two processes, one of which is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from hematokit.errors import FieldError, HematokitError
from hematokit.pipelines.field_run import FieldJob, prepare_run, run_fields
from hematokit.synthetic import synthesize_field
from tinykit import seal_bundle

distributed = pytest.importorskip("distributed")

FIELDS = 10


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fields")
    for number in range(FIELDS):
        Image.fromarray(synthesize_field(400, 500, cells=4, seed=number).pixels).save(folder / f"field{number}.png")
    return folder


@pytest.fixture
def cluster() -> Iterator[distributed.LocalCluster]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as running:
        yield running


def job(output: Path, run: Path) -> FieldJob:
    return FieldJob(str(output), model=str(run), device="cpu", runtime="torch")


def assert_same_files(one: Path, other: Path) -> None:
    names = sorted(file.relative_to(one) for file in one.rglob("cells.*"))
    assert len(names) == 3 * FIELDS
    for name in names:
        if name.suffix == ".parquet":
            pd.testing.assert_frame_equal(pd.read_parquet(one / name), pd.read_parquet(other / name))
        else:
            assert (one / name).read_bytes() == (other / name).read_bytes()


def test_a_killed_worker_costs_no_field_and_the_results_are_those_of_one_process(
    fields: Path, tiny_run: Path, tmp_path: Path, cluster: distributed.LocalCluster
) -> None:
    local = run_fields(*prepare_run([fields], job(tmp_path / "local", tiny_run)))
    victim = next(iter(cluster.workers.values())).pid
    killed: list[int] = []

    def kill_one(done: int, total: int | None, message: str) -> None:
        if done >= 2 and not killed:
            os.kill(victim, signal.SIGKILL)
            killed.append(done)

    results = prepare_run([fields], job(tmp_path / "spread", tiny_run))
    spread = run_fields(*results, scheduler=cluster.scheduler_address, progress=kill_one)
    assert killed
    assert killed[0] < FIELDS
    assert [(o.field_id, o.status, o.cells, o.low_confidence) for o in spread] == [
        (o.field_id, o.status, o.cells, o.low_confidence) for o in local
    ]
    assert_same_files(tmp_path / "local", tmp_path / "spread")


def test_a_model_that_cannot_be_loaded_is_one_line_here_too(
    fields: Path, tmp_path: Path, cluster: distributed.LocalCluster
) -> None:
    with pytest.raises(HematokitError, match="nothing-here"):
        run_fields(
            *prepare_run([fields], job(tmp_path / "out", tmp_path / "nothing-here")),
            scheduler=cluster.scheduler_address,
        )


def test_a_worker_that_finds_another_model_refuses(
    fields: Path, tiny_run: Path, tmp_path: Path, cluster: distributed.LocalCluster
) -> None:
    """Trained again after the results folder recorded which model it is for."""
    bundle = Path(shutil.copytree(tiny_run / "bundle", tmp_path / "bundle"))
    results = prepare_run([fields], job(tmp_path / "out", bundle))
    config = json.loads((bundle / "config.json").read_text())
    seal_bundle(bundle, config | {"temperature": 7.0})
    with pytest.raises(HematokitError, match="is another model than the one used so far") as caught:
        run_fields(*results, scheduler=cluster.scheduler_address)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out/fields/*/cells.parquet"))


def test_an_address_without_a_scheduler_is_one_line(fields: Path, tmp_path: Path) -> None:
    results = prepare_run([fields], FieldJob(str(tmp_path / "out")))
    for address in ("tcp://127.0.0.1:9", "nonsense"):
        with pytest.raises(FieldError, match="cannot reach a Dask scheduler") as caught:
            run_fields(*results, scheduler=address)
        assert "\n" not in str(caught.value)
