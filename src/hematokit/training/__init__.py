"""Training: settings, class balance, the loop, run folders and their resumption."""

from __future__ import annotations

from hematokit.training.config import TrainConfig, load_settings, make_config, parse_assignments
from hematokit.training.runner import TrainResult, train
from hematokit.training.runs import RunFolder

__all__ = ["RunFolder", "TrainConfig", "TrainResult", "load_settings", "make_config", "parse_assignments", "train"]
