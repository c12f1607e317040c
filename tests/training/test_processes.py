"""Training as real processes: stopped, killed, several at once, out of memory."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from hematokit import load_model, open_store, train
from pluginkit import pip_install, run_hematokit, write_package
from tinykit import TINY

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HEMATOKIT_PLUGINS": ""}


def arguments(store: Path, run: Path, **changes: object) -> list[str]:
    """Command-line options of a tiny training."""
    settings = TINY | changes
    options = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
    return ["train", str(store), "--output", str(run), *options]


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hematokit", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
    )


def wait_for_line(process: subprocess.Popen[str], words: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return
    pytest.fail(f"the process ended without saying {words!r}")


def assert_equal_bundles(first: Path, second: Path) -> None:
    one, two = (load_file(run / "bundle" / "model.safetensors") for run in (first, second))
    assert [key for key in one if not torch.equal(one[key], two[key])] == []


def test_interrupting_saves_and_resuming_gives_the_same_model(tiny_store: Path, tmp_path: Path) -> None:
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    process = start(arguments(tiny_store, stopped, epochs=12))
    wait_for_line(process, "epoch 2/12")
    # Some steps into the next epoch, so that the middle of one is tried as well.
    time.sleep(0.15)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Continue with: hematokit train --resume" in output
    assert "Traceback" not in output
    assert not (stopped / "bundle").exists()
    resumed = run_hematokit("train", "--resume", "--output", str(stopped))
    assert resumed.returncode == 0, resumed.stderr
    train(tiny_store, whole, settings=TINY, epochs=12)
    assert_equal_bundles(stopped, whole)


def test_killed_and_resumed_gives_the_same_model(tiny_store: Path, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(arguments(tiny_store, killed, epochs=10))
    wait_for_line(process, "epoch 2/10")
    process.kill()
    process.communicate(timeout=60)
    resumed = run_hematokit("train", "--resume", "--output", str(killed))
    assert resumed.returncode == 0, resumed.stderr
    train(tiny_store, whole, settings=TINY, epochs=10)
    assert_equal_bundles(killed, whole)


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes_train_what_one_does(tiny_store: Path, tmp_path: Path, launcher: str) -> None:
    """Without batch norm and augmentation nothing depends on how a batch is shared out."""
    same = {"backbone": "timm:test_vit", "image_size": 160, "epochs": 2, "augmenter": "none", "cache": "none"}
    # Sixteen per batch: shares of the last batches differ by one cell, which the loss must make up for.
    one, two = tmp_path / "one", tmp_path / "two"
    train(tiny_store, one, settings=TINY | same)
    module = {
        "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node=2"],
        # accelerate starts several CPU processes only through MPI, or so: the device is ours to choose.
        "accelerate": [
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes=2",
            "--num_machines=1",
            "--mixed_precision=no",
            "--dynamo_backend=no",
            "--main_process_port=0",
        ],
    }[launcher]
    done = subprocess.run(
        [sys.executable, "-m", *module, "-m", "hematokit", *arguments(tiny_store, two, **same)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Bundle: ") == 1, "only one of the processes speaks"
    assert yaml.safe_load((two / "config.yaml").read_text())["facts"]["processes"] == 2
    store = open_store(tiny_store)
    patches = store.patches(store.cells["cell_id"][:40])
    expected, found = (load_model(run, "cpu").logits(patches) for run in (one, two))
    # Sums in another order: close, not equal. A wrong share or a gradient not averaged is off by far more.
    assert np.abs(expected - found).max() < 2e-3


def test_a_full_disk_is_one_line_and_the_earlier_checkpoint_stays(tiny_store: Path, tmp_path: Path) -> None:
    """A limit on file sizes stands in for a full disk: writing fails in the same way."""
    run = tmp_path / "run"
    train(tiny_store, run, settings=TINY, stop_after=1)
    checkpoint = run / "checkpoints" / "last.safetensors"
    good = checkpoint.read_bytes()
    limit = len(good) // 2

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-m", "hematokit", "train", "--resume", "--output", str(run)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
        preexec_fn=limited,
    )
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert checkpoint.read_bytes() == good
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["best.safetensors", "last.safetensors"]
    assert run_hematokit("train", "--resume", "--output", str(run)).returncode == 0


HUNGRY = """
import hematokit
from hematokit.plugins.specs import BackboneSpec, InputSpec, Variant

def build(model, *, num_classes, input_size, pretrained):
    import torch

    class Hungry(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.GroupNorm(1, 3)
            self.head = torch.nn.Linear(3, num_classes)

        def forward(self, images):
            if self.training and len(images) > LIMIT:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate too much")
            return self.head(self.norm(images).mean((2, 3)))

    return Hungry()

@hematokit.hookimpl
def register_backbones(register):
    register(BackboneSpec(name="hungry", description="Runs out of memory", factory=build,
                          variants={"one": Variant("one", InputSpec(64, 8))}, default_variant="one"))
"""


@pytest.mark.parametrize(("limit", "parts"), [(5, 4), (0, None)])
def test_out_of_memory_halves_the_batch(tiny_store: Path, tmp_path: Path, limit: int, parts: int | None) -> None:
    site = tmp_path / "site"
    pip_install(site, write_package(tmp_path, "hemato-hungry", HUNGRY.replace("LIMIT", str(limit))))
    run = tmp_path / "run"
    command = arguments(tiny_store, run, backbone="hungry", epochs=1, augmenter="none")
    done = run_hematokit(*command, site=site)
    if parts is None:
        assert done.returncode == 2
        assert "not enough memory on cpu even for 1 cells at a time" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        return
    assert done.returncode == 0, done.stderr
    assert f"batches of 16 are now computed in {parts} parts" in done.stdout
    assert (run / "bundle" / "config.json").is_file()


def test_a_bundle_names_the_package_it_needs(tiny_store: Path, tmp_path: Path) -> None:
    site, run = tmp_path / "site", tmp_path / "run"
    pip_install(site, write_package(tmp_path, "hemato-hungry", HUNGRY.replace("LIMIT", "99")))
    assert run_hematokit(*arguments(tiny_store, run, backbone="hungry", epochs=1), site=site).returncode == 0
    without = run_hematokit("evaluate", str(run))
    assert without.returncode == 2
    assert "needs backbone 'hungry' of package hemato-hungry 1.2.3" in without.stderr
    assert "pip install hemato-hungry" in without.stderr


STOPPED = """
import os, signal, sys

import hematokit.training.loop, hematokit.pipelines.train
from hematokit.cli.main import main

place, name, nth, number = sys.argv[1:5]
owner = {"loop": hematokit.training.loop.Loop, "run": hematokit.training.loop.RunFolder}.get(
    place, hematokit.pipelines.train
)
whole, calls = getattr(owner, name), []

def stopping(*args, **kwargs):
    calls.append(name)
    if len(calls) == int(nth):
        os.kill(os.getpid(), int(number))
    return whole(*args, **kwargs)

setattr(owner, name, stopping)
sys.exit(main(sys.argv[5:]))
"""

# Hardly any epoch is better than the one before, so patience soon ends; and each epoch is one step.
TIRED = {"epochs": 30, "patience": 2, "lr": 1e-12, "augmenter": "none", "batch_size": 512}


@pytest.fixture(scope="module")
def tired_run(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A run that stopped early without being disturbed, and its epochs."""
    result = train(tiny_store, tmp_path_factory.mktemp("tired") / "run", settings=TINY | TIRED)
    assert result.epochs == result.best_epoch + 2 < 30
    return result.run, result.epochs


@pytest.mark.parametrize(
    ("place", "name", "number", "code"),
    [
        ("loop", "_step", signal.SIGINT, 0),
        ("runner", "save_bundle", signal.SIGINT, 0),
        ("run", "copy_checkpoint", signal.SIGKILL, -9),
        ("run", "write_metrics", signal.SIGKILL, -9),
        ("runner", "write_json", signal.SIGKILL, -9),
    ],
)
def test_whenever_early_stopping_is_stopped_the_bundle_comes(
    tiny_store: Path, tired_run: tuple[Path, int], tmp_path: Path, place: str, name: str, number: int, code: int
) -> None:
    """In the step in which patience ends, and between the files that are written after it."""
    run, (whole, epochs) = tmp_path / "run", tired_run
    nth = 1 if place == "runner" or name == "copy_checkpoint" else epochs
    command = [sys.executable, "-c", STOPPED, place, name, str(nth), str(int(number))]
    done = subprocess.run(
        [*command, *arguments(tiny_store, run, **TIRED)], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert done.returncode == code, done.stderr
    if code:
        train(output=run, resume=True)
    assert_equal_bundles(run, whole)
    assert load_model(run, "cpu").config.training.best_epoch == epochs - 2
    assert len((run / "metrics.csv").read_text().splitlines()) == epochs + 1
    assert (run / "summary.json").is_file()


def test_a_slice_that_was_interrupted_is_not_taken_for_a_whole_one(tiny_store: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", STOPPED, "loop", "_step", "2", str(int(signal.SIGTERM))]
    options = arguments(tiny_store, tmp_path / "run", epochs=4, stop_after=2)
    done = subprocess.run([*command, *options], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 130, done.stderr
    resumed = run_hematokit("train", "--resume", "--output", str(tmp_path / "run"), "--stop-after", "2")
    assert resumed.returncode == 0, resumed.stderr
    assert "Stopped after 2 epochs" in resumed.stdout
