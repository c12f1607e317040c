"""What a model records about itself: read from files of every version, and written as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hematokit.errors import ModelError
from hematokit.models import ModelConfig, TrainingRecord
from hematokit.models.bundle import read_config
from hematokit.models.config import SplitRecord, TrainingSettings, parse_config

EARLIER = sorted((Path(__file__).resolve().parents[1] / "earlier").glob("*/run/bundle"))


@pytest.mark.parametrize("bundle", EARLIER, ids=lambda path: path.parts[-3])
def test_a_configuration_is_written_as_it_was_read(bundle: Path) -> None:
    said = json.loads((bundle / "config.json").read_text())
    config = read_config(bundle)
    assert json.loads(config.to_json()) == said
    assert parse_config(config.to_json(), "again") == config
    training, given = config.training, said["training"]
    assert (training.store_hash, training.counts, training.seed) == (given["store_hash"], given["counts"], 0)
    assert training.split == SplitRecord(**given["split"])
    assert training.trained_split_hash == given["split"]["hash"]
    assert training.settings == TrainingSettings(**given["settings"])
    assert training.without_part == {"ART"}
    assert config.taxonomy.codes == tuple(training.classes or ())


def test_entries_of_a_plugin_are_kept_and_missing_ones_are_not_written() -> None:
    record = TrainingRecord(seed=3) | {"probe": {"penalty": 0.5}, "settings": {"depth": [1, 2]}}
    assert record.model_dump(mode="json", exclude_unset=True) == {
        "seed": 3,
        "settings": {"depth": [1, 2]},
        "probe": {"penalty": 0.5},
    }
    assert record.epochs is None
    assert record == TrainingRecord.read(json.loads(json.dumps(record.model_dump(mode="json", exclude_unset=True))))
    assert (record | {"seed": 4}).seed == 4
    assert record.seed == 3, "a record does not change"


def test_an_entry_of_a_wrong_type_is_named_and_counts_as_missing() -> None:
    record = TrainingRecord.read({"seed": 1, "counts": {"train": 3}, "settings": {"exclude": 5}})
    assert (record.seed, record.counts, record.settings) == (1, None, None)
    assert [line.split(":")[0] for line in record.faults] == ["counts.train", "settings.exclude"]
    assert record.without_folders().faults == record.faults
    with pytest.raises(ValueError, match="counts"):
        TrainingRecord(seed=1) | {"counts": "many"}


def test_a_record_leaves_this_computer_without_its_folders() -> None:
    record = TrainingRecord.read(
        {
            "store": "/home/me/marrow.zarr",
            "settings": {"store": "/home/me/marrow.zarr", "output": "/home/me/run", "weights": "C:\\own\\w.pth"},
        }
    ).without_folders()
    assert record.model_dump(exclude_unset=True) == {"store": "marrow.zarr", "settings": {"weights": "w.pth"}}


def test_what_decides_predictions_is_strict() -> None:
    said = json.loads((EARLIER[0] / "config.json").read_text())
    with pytest.raises(ModelError, match=r"^m: backbone\.trust: Extra inputs are not permitted"):
        parse_config(json.dumps(said | {"backbone": said["backbone"] | {"trust": True}}), "m")
    config = parse_config(json.dumps(said), "m")
    with pytest.raises(ValueError, match="frozen"):
        config.temperature = 2.0  # type: ignore[misc]
    assert isinstance(config, ModelConfig)
