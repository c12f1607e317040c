"""Training through its public interface, on a small store."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from hematokit import HematokitError, export, import_crops, load_model, open_store, set_pixel_size, split_store, train
from hematokit.errors import TrainingError
from hematokit.store import StoreWriter
from tinykit import TINY, write_crops


def bundle_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "bundle" / "model.safetensors")


def assert_same_weights(first: Path, second: Path) -> None:
    one, two = bundle_weights(first), bundle_weights(second)
    assert one.keys() == two.keys()
    different = [key for key in one if not torch.equal(one[key], two[key])]
    assert not different


def figures(run: Path) -> list[dict[str, str]]:
    """metrics.csv without the columns that tell time."""
    with (run / "metrics.csv").open() as file:
        return [
            {key: value for key, value in row.items() if key not in ("seconds", "images_per_second")}
            for row in csv.DictReader(file)
        ]


def test_a_run_holds_what_the_design_says(tiny_run: Path) -> None:
    config = yaml.safe_load((tiny_run / "config.yaml").read_text())
    assert config["settings"]["backbone"] == "timm:test_resnet"
    assert config["facts"]["versions"]["torch"] == torch.__version__
    assert re.fullmatch(r"[0-9a-f]{64}", config["facts"]["store_hash"])
    rows = figures(tiny_run)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert set(rows[0]) >= {"train_loss", "lr", "val_loss", "val_accuracy", "val_macro_f1"}
    assert list(tiny_run.glob("events.out.tfevents.*"))
    assert (tiny_run / "checkpoints" / "last.safetensors").is_file()
    assert (tiny_run / "checkpoints" / "best.safetensors").is_file()
    names = {"README.md", "SHA256SUMS", "config.json", "model.safetensors"}
    assert {path.name for path in (tiny_run / "bundle").iterdir()} == names


def test_it_learns_and_the_bundle_predicts(tiny_run: Path, tiny_store: Path) -> None:
    model = load_model(tiny_run, device="cpu")
    # The reject class is left out unless asked for, and stays in the store.
    assert model.codes == ("BLA", "NGS", "LYT")
    assert model.config.training.left_out == {"ART": 20}
    store = open_store(tiny_store)
    cells = store.cells.query("split == 'test' and label != 'ART'")
    predicted = model.predict(store.patches(cells["cell_id"]))
    assert list(predicted.columns) == ["predicted", "probability", "p_BLA", "p_NGS", "p_LYT"]
    assert np.allclose(predicted[["p_BLA", "p_NGS", "p_LYT"]].sum(axis=1), 1, atol=1e-5)
    assert (predicted["predicted"].to_numpy() == cells["label"].to_numpy()).mean() > 0.75
    card = (tiny_run / "bundle" / "README.md").read_text()
    assert "research use only" in card.lower()
    assert model.config.training.store_hash in card


def test_tensorboard_reads_the_events(tiny_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tiny_run))
    events.Reload()
    written = [event.value for event in events.Scalars("epoch/train_loss")]
    assert np.allclose(written, [float(row["train_loss"]) for row in figures(tiny_run)], atol=1e-5)


@pytest.mark.parametrize("batch_size", [16, 512])
def test_resuming_hides_no_events_of_what_was_done(tiny_store: Path, tmp_path: Path, batch_size: int) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = TINY | {"batch_size": batch_size}
    for parts in (False, True):
        run = tmp_path / str(parts)
        train(tiny_store, run, settings=settings, **({"stop_after": 2} if parts else {}))
        if parts:
            train(output=run, resume=True)
    read = []
    for parts in (False, True):
        events = EventAccumulator(str(tmp_path / str(parts)))
        events.Reload()
        read.append({tag: [event.step for event in events.Scalars(tag)] for tag in ("epoch/train_loss", "step/loss")})
    assert read[0] == read[1]
    assert read[0]["epoch/train_loss"] == [1, 2, 3]


def test_a_run_finds_its_store_from_any_folder(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_store.parent)
    train(tiny_store.name, tmp_path / "run", settings=TINY, stop_after=1)
    monkeypatch.chdir(tmp_path)
    assert train(output="run", resume=True).finished


def test_same_seed_same_model(tiny_store: Path, tiny_run: Path, tmp_path: Path) -> None:
    train(tiny_store, tmp_path / "again", settings=TINY)
    assert_same_weights(tiny_run, tmp_path / "again")
    train(tiny_store, tmp_path / "other", settings=TINY, seed=1)
    with pytest.raises(AssertionError):
        assert_same_weights(tiny_run, tmp_path / "other")


def test_nothing_of_a_training_is_left_to_the_next_one(tiny_store: Path, tiny_run: Path, tmp_path: Path) -> None:
    """Accelerate keeps device and precision for the whole process unless it is made to forget them."""
    from accelerate import Accelerator

    other = train(tiny_store, tmp_path / "bf16", settings=TINY, precision="bf16", epochs=1)
    assert other.finished
    train(tiny_store, tmp_path / "fp32", settings=TINY)
    assert_same_weights(tiny_run, tmp_path / "fp32")
    with pytest.raises(HematokitError, match="not finite"):
        train(tiny_store, tmp_path / "failed", settings=TINY, precision="bf16", lr=1e30, clip_grad=0)
    assert Accelerator(cpu=True, mixed_precision="no").mixed_precision == "no"


def test_stopped_and_resumed_is_the_same_as_never_stopped(tiny_store: Path, tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = train(tiny_store, run, settings=TINY, stop_after=1)
    assert not first.finished
    assert first.bundle is None
    assert not (run / "bundle").exists()
    second = train(output=run, resume=True)
    assert second.finished
    assert_same_weights(tiny_run, run)
    assert figures(run) == figures(tiny_run)


def test_patches_read_as_needed_train_the_same(tiny_store: Path, tiny_run: Path, tmp_path: Path) -> None:
    train(tiny_store, tmp_path / "run", settings=TINY, cache="none", workers=3)
    assert_same_weights(tiny_run, tmp_path / "run")


def keeps_patches(store: Path, run: Path, **settings: Any) -> bool:
    """Tell whether a training keeps its training cells in memory: then it reads them before it begins."""
    read: list[int] = []

    def progress(done: int, total: int | None, text: str) -> None:
        if text == "reading the store":
            read.append(total or 0)

    train(store, run, settings=TINY, epochs=1, progress=progress, **settings)
    # The validation cells are a third of that, and fit in any case.
    return (open_store(store).cells["split"] == "train").sum() * 0.8 < max(read, default=0)


@pytest.mark.parametrize("variable", ["LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"])
def test_processes_on_one_machine_share_its_memory(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    # The training cells need about 0.8 MB.
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=3_000_000))
    monkeypatch.setenv(variable, "1")
    assert keeps_patches(tiny_store, tmp_path / "one")
    monkeypatch.setenv(variable, "4")
    assert not keeps_patches(tiny_store, tmp_path / "four")
    with pytest.raises(HematokitError, match="for each of 4 processes do not fit"):
        train(tiny_store, tmp_path / "host", settings=TINY, cache="host")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("inside", [True, False], ids=["container", "job"])
def test_the_limit_of_a_container_or_job_counts(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, inside: bool
) -> None:
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    controller = "memory"
    if version == 2:
        names, controller = ("memory.max", "memory.current", "inactive_file"), ""
    limit, used, given_up = names
    root = tmp_path / "cgroup" / controller
    # A container sees its group as the root; a job of a cluster is a group below others, of which any may have a limit.
    group = root if inside else root / "slurm" / "job_7"
    group.mkdir(parents=True)
    (group / limit).write_text("2500000\n")
    (group / used).write_text("1900000\n")
    (tmp_path / "own").write_text(f"1:cpu:/\n0:{controller}:/{'docker/4c1d' if inside else 'slurm/job_7/step_0'}\n")
    monkeypatch.setattr("hematokit.training.data._OWN", tmp_path / "own")
    monkeypatch.setattr("hematokit.training.data._GROUPS", tmp_path / "cgroup")
    for index, reclaimable in enumerate((0, 1_800_000)):
        (group / "memory.stat").write_text(f"anon 5\n{given_up} {reclaimable}\n")
        assert keeps_patches(tiny_store, tmp_path / f"run{index}") == bool(reclaimable)


@pytest.mark.parametrize("epochs", [2, 4])
def test_a_finished_run_can_be_extended(tiny_store: Path, tmp_path: Path, epochs: int) -> None:
    """With one step an epoch and no warm-up the first step is that of any number of epochs, so the models are equal."""
    one_step: dict[str, Any] = {"batch_size": 512, "warmup": 0}
    run, whole = tmp_path / "run", tmp_path / "whole"
    train(tiny_store, run, settings=TINY | one_step, epochs=1)
    short = bundle_weights(run)
    result = train(output=run, resume=True, epochs=epochs)
    expected = train(tiny_store, whole, settings=TINY | one_step, epochs=epochs)
    assert (result.epochs, result.best_epoch, result.best) == (epochs, expected.best_epoch, expected.best)
    assert figures(run) == figures(whole)
    assert_same_weights(run, whole)
    for name in ("last", "best"):
        one, two = (load_file(folder / "checkpoints" / f"{name}.safetensors") for folder in (run, whole))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)
    # The bundle is that of the longer training, unless its first epoch was the best.
    assert any(not torch.equal(short[key], value) for key, value in bundle_weights(run).items()) == (
        expected.best_epoch > 1
    )


def test_extending_keeps_what_was_done_and_plans_the_rest_anew(tiny_store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_store, run, settings=TINY, epochs=1)
    (first,) = figures(run)
    assert train(output=run, resume=True, epochs=3).epochs == 3
    rows = figures(run)
    assert rows[0] == first
    # The second epoch goes on at the rate that it has in a training of three, higher than the end of one epoch.
    rates = [float(row["lr"]) for row in rows]
    assert rates[1] > rates[0] > rates[2]
    largest = open_store(tiny_store).cells.query("split == 'train'")["label"].value_counts().max()
    steps = -(-3 * largest // TINY["batch_size"])  # three classes, each as often as the largest
    cosine = [np.cos(np.pi * (epoch * steps - 1 - steps // 2) / (3 * steps - steps // 2)) for epoch in (2, 3)]
    assert rates[1:] == pytest.approx([TINY["lr"] * (0.01 + 0.99 * 0.5 * (1 + value)) for value in cosine])


def test_resuming_refuses_other_settings_and_other_data(tiny_store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_store, run, settings=TINY, stop_after=1)
    with pytest.raises(HematokitError, match=r"started with lr=0\.003, which --resume cannot change to 0\.1"):
        train(output=run, resume=True, lr=0.1)
    write_crops(tmp_path / "crops", {"BLA": 8, "LYT": 8}, seed=5)
    import_crops(tmp_path / "crops", tmp_path / "other.zarr", patch_size=64, near_duplicates=False)
    split_store(tmp_path / "other.zarr")
    with pytest.raises(HematokitError, match="cells or labels changed"):
        train(tmp_path / "other.zarr", run, resume=True)


def test_resuming_before_the_first_checkpoint_starts_from_the_same_weights(
    tiny_store: Path, tiny_run: Path, tmp_path: Path
) -> None:
    weights = tiny_run / "bundle" / "model.safetensors"
    whole, early = tmp_path / "whole", tmp_path / "early"
    train(tiny_store, whole, settings=TINY, epochs=1, weights=str(weights))
    # What a run holds that was killed in its first epoch.
    (early / "checkpoints").mkdir(parents=True)
    (early / "config.yaml").write_text((whole / "config.yaml").read_text())
    lines: list[str] = []
    train(output=early, resume=True, log=lines.append)
    assert any("no checkpoint yet" in line for line in lines)
    assert_same_weights(whole, early)


def test_early_stopping_keeps_the_best_epoch(tiny_store: Path, tmp_path: Path) -> None:
    # A learning rate of next to nothing: no epoch is better than the first.
    result = train(
        tiny_store,
        tmp_path / "run",
        settings=TINY,
        epochs=30,
        lr=1e-12,
        patience=2,
        monitor="accuracy",
        augmenter="none",
    )
    assert result.finished
    assert result.epochs < 30
    assert result.epochs == result.best_epoch + 2
    assert load_model(result.run, "cpu").config.training.best_epoch == result.best_epoch


def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(tiny_store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_store, run, settings=TINY, stop_after=1, clip_grad=0, lr=1e-3)
    good = (run / "checkpoints" / "last.safetensors").read_bytes()
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["settings"]["lr"] = 1e30
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(
        HematokitError, match=r"loss is not finite at epoch 2.*last good checkpoint is .*last\.safetensors"
    ):
        train(output=run, resume=True)
    assert (run / "checkpoints" / "last.safetensors").read_bytes() == good


def test_one_vs_rest(tiny_store: Path, tmp_path: Path) -> None:
    train(tiny_store, tmp_path / "run", settings=TINY, one_vs_rest="NGS", epochs=2)
    model = load_model(tmp_path / "run", "cpu")
    assert model.codes == ("NGS", "rest")
    counts = model.config.training.counts["train"]
    assert counts["rest"] > counts["NGS"] > 0
    store = open_store(tiny_store)
    assert set(model.predict(store.patches(store.cells["cell_id"][:4]))["predicted"]) <= {"NGS", "rest"}


def test_excluding_and_keeping_classes(tiny_store: Path, tmp_path: Path) -> None:
    train(tiny_store, tmp_path / "all", settings=TINY, epochs=1, exclude="none")
    assert set(load_model(tmp_path / "all", "cpu").codes) == {"BLA", "LYT", "NGS", "ART"}
    train(tiny_store, tmp_path / "two", settings=TINY, epochs=1, exclude="ART, NGS")
    assert set(load_model(tmp_path / "two", "cpu").codes) == {"BLA", "LYT"}


@pytest.mark.parametrize("balance", ["none", "weighted-loss", "logit-adjustment"])
def test_every_balance_trains(tiny_store: Path, tmp_path: Path, balance: str) -> None:
    result = train(tiny_store, tmp_path / "run", settings=TINY, epochs=1, balance=balance)
    assert result.bundle is not None
    assert json.loads((result.bundle / "config.json").read_text())["training"]["balance"] == balance


def test_configuration_of_a_run_repeats_it(tiny_run: Path, tiny_store: Path, tmp_path: Path) -> None:
    from hematokit.training.settings import TrainSettings

    settings = TrainSettings.read(tiny_run / "config.yaml")
    train(tiny_store, tmp_path / "run", settings=settings | {"output": str(tmp_path / "run")})
    assert_same_weights(tiny_run, tmp_path / "run")


def one_class(folder: Path) -> Path:
    write_crops(folder / "crops", {"BLA": 9})
    import_crops(folder / "crops", folder / "one.zarr", patch_size=64, near_duplicates=False)
    split_store(folder / "one.zarr")
    return folder / "one.zarr"


def unsplit(folder: Path) -> Path:
    write_crops(folder / "crops", {"BLA": 9, "LYT": 9})
    import_crops(folder / "crops", folder / "unsplit.zarr", patch_size=64, near_duplicates=False)
    return folder / "unsplit.zarr"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "coatnett"}, "no backbone is called 'coatnett'"),
        ({"backbone": "coatnet", "image_size": 250}, "image size 250 does not fit backbone coatnet"),
        ({"augmenter": "hemtonet"}, "no augmenter is called"),
        ({"augmenter_options": {"rotation": 400}}, "rotation: 400 is outside"),
        ({"epochs": 0}, "setting 'epochs' (--epochs): Input should be greater than or equal to 1"),
        ({"learning_rate": 1}, "setting 'learning_rate' does not exist; settings: augmenter, "),
        ({"lr": float("nan")}, "setting 'lr'"),
        ({"exclude": ["XYZ"]}, "class 'XYZ' is not in taxonomy"),
        ({"exclude": ["BLA", "LYT", "ART"]}, "1 class(es) with training cells (NGS"),
        ({"one_vs_rest": "MON"}, "needs training cells of MON"),
        ({"one_vs_rest": "NGS", "exclude": ["NGS"]}, "one_vs_rest names NGS, which exclude leaves out"),
        ({"balance": "none", "target_per_class": 10}, "target_per_class needs balance oversample"),
        ({"device": "cuda"}, "device 'cuda'"),
        ({"device": "toaster"}, "device 'toaster' is not available"),
        ({"precision": "fp16"}, "fp16 needs a GPU"),
        ({"backbone": "coatnet", "variant": "0", "pretrained": True}, "no pretrained weights exist for coatnet:0"),
        ({"weights": "nowhere.safetensors"}, "weights file nowhere.safetensors does not exist"),
        ({"weights": "a", "pretrained": True}, "both name a start"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    tiny_store: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("a GPU is here, so asking for it is no mistake")
    with pytest.raises(HematokitError, match=re.escape(message)) as caught:
        train(tiny_store, tmp_path / "run", settings=TINY | changes)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_stores_that_cannot_be_trained_on(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(HematokitError, match="1 class"):
        train(one_class(tmp_path / "a"), tmp_path / "run", settings=TINY)
    with pytest.raises(HematokitError, match="has no training split; run: hematokit split"):
        train(unsplit(tmp_path / "b"), tmp_path / "run", settings=TINY)
    with pytest.raises(HematokitError, match="missing"):
        train(tmp_path / "missing.zarr", tmp_path / "run", settings=TINY)


def test_a_split_that_divides_a_patient_or_a_group(tiny_store: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_store, tmp_path / "s.zarr")
    store = open_store(tmp_path / "s.zarr")
    cells = store.cells
    two = [cells.index[cells["split"] == split][0] for split in ("train", "test")]
    with StoreWriter(store) as writer:
        one = cells.query("split == 'val' and label == 'BLA'").index[0]
        outside = cells["split"].mask(cells.index == one, "")
        writer.replace_cells(cells.assign(group=cells["group"].mask(cells.index.isin(two), "one"), split=outside))
    said: list[str] = []
    train(tmp_path / "s.zarr", tmp_path / "run", settings=TINY, epochs=1, log=said.append)
    assert any(line.startswith("Warning: 1 labelled cells are in no split") for line in said)
    assert any(line.startswith("Warning: 1 groups of duplicates have cells on several sides") for line in said)
    with StoreWriter(store) as writer:
        writer.replace_cells(cells.assign(patient_id=cells["patient_id"].mask(cells.index.isin(two), "P1")))
    with pytest.raises(TrainingError, match=r"divides the cells of 1 patients \(P1\).*hematokit split"):
        train(tmp_path / "s.zarr", tmp_path / "run2", settings=TINY)
    assert not (tmp_path / "run2").exists()


def test_a_class_with_one_cell(tmp_path: Path) -> None:
    write_crops(tmp_path / "crops", {"BLA": 12, "LYT": 12, "NGS": 1})
    import_crops(tmp_path / "crops", tmp_path / "s.zarr", patch_size=64, near_duplicates=False)
    split_store(tmp_path / "s.zarr")
    train(tmp_path / "s.zarr", tmp_path / "run", settings=TINY, epochs=1)
    assert "NGS" in load_model(tmp_path / "run", "cpu").codes


def test_an_output_that_exists_is_not_touched(tiny_store: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("keep")
    with pytest.raises(HematokitError, match="exists and is not empty"):
        train(tiny_store, tmp_path / "run", settings=TINY)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]
    with pytest.raises(HematokitError, match="is not a run"):
        train(output=tmp_path / "run", resume=True)


def test_more_patience_goes_on_after_an_early_stop(tiny_store: Path, tmp_path: Path) -> None:
    still: dict[str, Any] = {"lr": 1e-12, "augmenter": "none", "epochs": 40}
    first = train(tiny_store, tmp_path / "run", settings=TINY | still, patience=1)
    assert first.epochs == first.best_epoch + 1
    assert train(output=tmp_path / "run", resume=True).epochs == first.epochs
    more = train(output=tmp_path / "run", resume=True, patience=2)
    assert first.epochs < more.epochs == more.best_epoch + 2 < 40


def test_the_scale_of_gradients_is_resumed(tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, with a scaler that changes its scale after each step, so that another scale rounds otherwise."""
    from hematokit.pipelines import train as runner

    make = runner._accelerator
    scalers: list[torch.amp.GradScaler] = []

    @contextmanager
    def scaled(config: Any) -> Iterator[Any]:
        with make(config) as accelerator:
            scalers.append(torch.amp.GradScaler("cpu", init_scale=3.0, growth_factor=1.01, growth_interval=1))
            accelerator.scaler = scalers[-1]
            yield accelerator

    monkeypatch.setattr(runner, "_accelerator", scaled)
    train(tiny_store, tmp_path / "whole", settings=TINY)
    train(tiny_store, tmp_path / "parts", settings=TINY, stop_after=1)
    train(output=tmp_path / "parts", resume=True)
    assert scalers[0].get_scale() == scalers[2].get_scale() > scalers[1].get_scale() > 3
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    # A checkpoint without a scaler, as version 0.1.0 writes it, is taken up with the scaler as it begins.
    monkeypatch.setattr(runner, "_accelerator", make)
    train(tiny_store, tmp_path / "old", settings=TINY, stop_after=1)
    monkeypatch.setattr(runner, "_accelerator", scaled)
    assert train(output=tmp_path / "old", resume=True).finished


# --- pixel size ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "recorded", "warning"),
    [
        ([0.09], 0.09, ""),
        ([0.09, 0.0905, 0.091], 0.0905, ""),
        ([None], None, "the pixel size of the training cells is not known, so the model records none"),
        ([0.09, None], 0.09, r"of \d+ training cells is not known; the model records 0.09 um, that of the others"),
        ([0.09, 0.25], None, r"the training cells have different pixel sizes, 0.09 to 0.25 um, so the model records"),
        ([0.09, 0.25, None], None, r"is not known; the training cells have different pixel sizes, 0.09 to 0.25 um"),
    ],
)
def test_the_pixel_size_is_that_of_the_training_cells(
    tiny_store: Path, tmp_path: Path, sizes: list[float | None], recorded: float | None, warning: str
) -> None:
    store = Path(shutil.copytree(tiny_store, tmp_path / "copy.zarr"))
    cells = open_store(store).cells
    used = cells[(cells["split"] == "train") & (cells["label"] != "ART")]["cell_id"].tolist()
    # Cells that take no part in the training do not count.
    set_pixel_size(store, 3.0, cell_ids=sorted(set(cells["cell_id"]) - set(used)))
    for number, size in enumerate(sizes):
        if size is not None:
            set_pixel_size(store, size, cell_ids=used[number :: len(sizes)])
    said: list[str] = []
    result = train(store, tmp_path / "run", settings=TINY | {"epochs": 1}, log=said.append)
    model = load_model(result.run, device="cpu")
    assert model.config.pixel_size_um == recorded
    assert model.config.training.pixel_size_um == recorded
    assert yaml.safe_load((result.run / "config.yaml").read_text())["facts"]["pixel_size_um"] == recorded
    warnings = [line for line in said if line.startswith("Warning: ")]
    assert len(warnings) == bool(warning)
    assert re.search(warning, " ".join(warnings))
    assert [f"Warning: {line}" for line in result.warnings] == warnings
    card = (result.run / "bundle" / "README.md").read_text()
    assert ("Pixel size: not recorded" if recorded is None else f"Pixel size: {recorded:.4g} um") in card


def test_a_run_that_goes_on_records_what_the_store_says_since(tiny_store: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(tiny_store, tmp_path / "copy.zarr"))
    train(store, tmp_path / "run", settings=TINY | {"epochs": 1})
    assert load_model(tmp_path / "run", device="cpu").config.pixel_size_um is None
    weights = bundle_weights(tmp_path / "run")
    set_pixel_size(store, 0.09)
    train(output=tmp_path / "run", resume=True)
    model = load_model(tmp_path / "run", device="cpu")
    assert model.config.pixel_size_um == 0.09
    assert all(torch.equal(weights[key], value) for key, value in bundle_weights(tmp_path / "run").items())
    export(tmp_path / "run", tmp_path / "model.onnx", store=store)
    assert load_model(tmp_path / "model.onnx").config.pixel_size_um == 0.09
    with pytest.raises(HematokitError, match="pixel"):
        export(tmp_path / "run", tmp_path / "wsi", format="wsinfer", store=store, pixel_size_um=-1)
