"""Run folders: what a training writes, and what a resumed one reads back.

``config.yaml`` (settings and what was found about data, versions and machine), ``metrics.csv``, TensorBoard events,
``checkpoints/{last,best}.safetensors``, ``bundle/``, ``evaluation/``. Checkpoints are safetensors files whose header
carries the progress as JSON: nothing is pickled.
"""

from __future__ import annotations

import csv
import io
import json
import platform
import shutil
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from hematokit._version import __version__
from hematokit.errors import TrainingError
from hematokit.files import one_line_read_errors, replace_file, write_atomically
from hematokit.models.config import TrainingRecord
from hematokit.training.settings import TrainSettings
from hematokit.yaml_text import parse_yaml

__all__ = ["Progressed", "RunFolder", "environment"]

CHECKPOINTS = "checkpoints"


@dataclass
class Progressed:
    """How far a training has come; everything besides tensors that resuming needs.

    Attributes
    ----------
    epoch : int
        Epoch that is under way or comes next, from 0.
    step : int
        Steps of that epoch that are done.
    total_loss, total_cells : float, int
        Of those steps.
    best, best_epoch : float or None, int
        Best value of the monitored figure, and where.
    accumulation : int
        Parts that a batch is computed in.
    seconds : float
        Time trained so far.
    rows : list of dict
        Lines of ``metrics.csv``.
    finished : bool
        The planned epochs are done or training stopped early.
    """

    epoch: int = 0
    step: int = 0
    total_loss: float = 0.0
    total_cells: int = 0
    best: float | None = None
    best_epoch: int = -1
    accumulation: int = 1
    seconds: float = 0.0
    rows: list[dict[str, float]] = field(default_factory=list)
    finished: bool = False


def environment() -> dict[str, str]:
    """Versions that a result depends on."""
    packages = ("torch", "timm", "accelerate", "numpy", "zarr", "tensorstore", "torchvision")
    versions = {"hematokit": __version__, "python": platform.python_version(), "platform": platform.platform()}
    versions |= {name: metadata.version(name) for name in packages}
    # The build counts too: 2.15.0+cpu and 2.15.0+cu132 differ in the last digits.
    return versions | {"torch": str(torch.__version__)}


class RunFolder:
    """One training's folder.

    Parameters
    ----------
    path : Path
        The folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def config_file(self) -> Path:
        """Where the settings are."""
        return self.path / "config.yaml"

    @property
    def bundle(self) -> Path:
        """Where the bundle goes."""
        return self.path / "bundle"

    def checkpoint(self, name: str) -> Path:
        """Path of the checkpoint ``last`` or ``best``."""
        return self.path / CHECKPOINTS / f"{name}.safetensors"

    def start(self, config: TrainSettings, facts: TrainingRecord) -> None:
        """Make the folder and write ``config.yaml``.

        Raises
        ------
        TrainingError
            If the folder already holds something.
        """
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise TrainingError(
                f"output {self.path} exists and is not empty; give another --output, or --resume to go on with that run"
            )
        (self.path / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        self.write_config(config, facts)

    def write_config(self, config: TrainSettings, facts: TrainingRecord) -> None:
        """Write ``config.yaml``."""
        found = facts.model_dump(mode="json", exclude_unset=True, exclude={"command"})
        data = {"settings": config.model_dump(), "facts": found, "command": facts.command or []}
        write_atomically(self.config_file, yaml.safe_dump(data, sort_keys=False, allow_unicode=True))

    def read_config(self) -> tuple[dict[str, Any], TrainingRecord]:
        """Return the settings and the metadata of an earlier start.

        Raises
        ------
        TrainingError
            If this is no run.
        """
        if not self.config_file.is_file():
            raise TrainingError(
                f"{self.path} is not a run (no config.yaml), so there is nothing to resume; drop --resume"
            )
        try:
            with one_line_read_errors(self.config_file, TrainingError):
                text, where = self.config_file.read_text(encoding="utf-8"), str(self.config_file)
            settings = TrainSettings.typed(parse_yaml(text, where, TrainingError)["settings"], where)
            data = parse_yaml(text, where, TrainingError, typed=True)
            facts = dict(data["facts"])
            # Older runs have a line of text there, with the folders of whoever wrote it.
            if isinstance(data.get("command"), list):
                facts["command"] = data["command"]
            return settings, TrainingRecord.read(facts)
        except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise TrainingError(f"{self.config_file} is damaged ({type(error).__name__}); start a new run") from error

    def save_checkpoint(
        self,
        name: str,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer | None,
        progress: Progressed,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        """Write a checkpoint; an older one stays whole until the new one is.

        Parameters
        ----------
        name : str
            ``"last"`` or ``"best"``.
        model, optimizer, progress
            Model to save.
        scaler : torch.amp.GradScaler, optional
            Of the gradients, where training in fp16 has one.

        Raises
        ------
        TrainingError
            If the disk is full or the folder cannot be written.
        """
        from safetensors.torch import save

        tensors = {f"model.{key}": value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        if optimizer is not None:
            for index, state in optimizer.state_dict()["state"].items():
                for key, value in state.items():
                    tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value).detach().cpu().contiguous()
        about = {"progress": json.dumps(asdict(progress))}
        if scaler is not None:
            about["scaler"] = json.dumps(scaler.state_dict())
        try:
            write_atomically(self.checkpoint(name), save(tensors, metadata=about))
        except OSError as error:
            raise TrainingError(
                f"checkpoint {self.checkpoint(name)} cannot be written ({error.strerror}); make room there, then "
                "--resume: the earlier checkpoint is whole"
            ) from error

    def copy_checkpoint(self, source: str, target: str) -> None:
        """Make one checkpoint a copy of another.

        Raises
        ------
        TrainingError
            If it cannot be written, as on a full disk; an older copy is then still whole.
        """
        try:
            with self.checkpoint(source).open("rb") as original:
                replace_file(self.checkpoint(target), lambda copy: shutil.copyfileobj(original, copy))
        except OSError as error:
            raise TrainingError(
                f"checkpoint {self.checkpoint(target)} cannot be written ({error.strerror}); make room there, then "
                "--resume: the earlier checkpoint is whole"
            ) from error

    def load_checkpoint(
        self,
        name: str,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> Progressed:
        """Read a checkpoint back into model, optimizer and scaler, and return the progress.

        A scaler stays as it is where the checkpoint has none: those of version 0.1.0, and of runs in another precision.

        Raises
        ------
        TrainingError
            If it is missing, damaged, or of another model.
        """
        from safetensors import SafetensorError, safe_open

        path = self.checkpoint(name)
        try:
            with one_line_read_errors(path, TrainingError):
                path.open("rb").close()  # safetensors does not state why it cannot read a file
            with safe_open(path, framework="pt", device="cpu") as file:
                about = file.metadata() or {}
                progress = Progressed(**json.loads(about["progress"]))
                scaling = json.loads(about.get("scaler", "{}"))
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise TrainingError(
                f"checkpoint {path} is missing or damaged ({type(error).__name__}); start a new run"
            ) from error
        try:
            model.load_state_dict({key[6:]: value for key, value in tensors.items() if key.startswith("model.")})
        except RuntimeError as error:
            raise TrainingError(
                f"checkpoint {path} is of another model than config.yaml names; start a new run"
            ) from error
        if scaler is not None and scaling:
            scaler.load_state_dict(scaling)
        if optimizer is not None:
            state: dict[int, dict[str, torch.Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith("optimizer."):
                    _, index, entry = key.split(".", 2)
                    state.setdefault(int(index), {})[entry] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
            # Files hold plain layout, parameters are channels_last: a fused optimizer goes through both in the order of
            # memory, and would give each weight the momentum of another.
            for parameter, kept in optimizer.state.items():
                for key, value in kept.items():
                    if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                        kept[key] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
        return progress

    def write_metrics(self, rows: list[dict[str, float]]) -> None:
        """Write ``metrics.csv``, one line per epoch."""
        if not rows:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path / "metrics.csv", text.getvalue())
