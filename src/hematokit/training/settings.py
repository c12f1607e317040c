"""Settings of a training: one validated model for the command line, YAML files and Python alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hematokit.errors import TrainingError
from hematokit.plugins import load_plugins
from hematokit.training.augmenters import declared_options
from hematokit.yaml_text import Scalar, parse_yaml, read_value, typed_text

__all__ = ["TrainConfig", "load_settings", "make_config", "parse_assignments"]


class TrainConfig(BaseModel):
    """Everything that decides what a training does.

    Attributes
    ----------
    store : str
        Patch store.
    output : str
        Run folder to write.
    backbone, variant : str
        What to train; ``variant`` may be part of ``backbone`` (``"coatnet:nano"``).
    backbone_options, augmenter_options : dict
        Options of the plugins. With several augmenters, ``NAME.OPTION`` says whose option it is.
    augmenter : str or list of str
        What changes the training images at random: a name, or several with commas, first things first.
    image_size : int or None
        Side of the input in pixels; the variant's own by default.
    pretrained : bool
        Start from weights that the backbone's authors published, fetched from a hub.
    weights : str or None
        Start from a local weights file instead.
    epochs : int
        Epochs in all; the schedule is planned for them.
    batch_size : int
        Cells per step over all processes: results do not depend on how many there are.
    lr : float
        Highest learning rate of AdamW; it rises over the warm-up and falls along a cosine.
    weight_decay : float
        AdamW's, on weights; norms and biases are not decayed.
    warmup : float
        Epochs of rising learning rate, half of the training at most.
    clip_grad : float
        Largest norm of the gradient; 0 switches clipping off.
    label_smoothing : float
        Share of a cell's label that is spread over all classes, 0 to 1.
    balance : str
        ``none``, ``weighted-loss``, ``logit-adjustment`` or ``oversample``; see `hematokit.training.balance`.
    target_per_class : int or None
        With ``oversample``: draws per class and epoch. By default the largest class, 20,000 at most (the paper's).
    exclude : list of str or None
        Classes left out; by default those that the taxonomy marks as rejects.
    one_vs_rest : str or None
        Train a binary classifier of this class against all others.
    precision : str
        ``auto`` (bf16 on GPUs that have it, else fp32), ``fp32``, ``bf16`` or ``fp16``.
    compile : bool
        Use torch.compile.
    workers : int
        Threads that read batches ahead, where the store is not kept in memory.
    cache : str
        Where to keep the training patches: ``auto``, ``device``, ``host`` or ``none``.
    patience : int
        Epochs without improvement of ``monitor`` after which training stops; 0 never stops early.
    monitor : str
        Validation figure that decides which epoch is best.
    stop_after : int or None
        Stop, resumable, after this many epochs; the schedule is still that of ``epochs``.
    seed : int
        Of everything random: first weights, order of the cells, augmentation, dropout.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ...
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    store: str
    output: str
    backbone: str = "coatnet"
    variant: str | None = None
    backbone_options: dict[str, Any] = Field(default_factory=dict)
    augmenter: str = "hematonet"
    augmenter_options: dict[str, Any] = Field(default_factory=dict)
    image_size: int | None = Field(default=None, gt=0, le=2048)
    pretrained: bool = False
    weights: str | None = None
    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=64, ge=1)
    lr: float = Field(default=5e-4, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(default=0.05, ge=0, allow_inf_nan=False)
    warmup: float = Field(default=2.0, ge=0, allow_inf_nan=False)
    clip_grad: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    balance: Literal["none", "weighted-loss", "logit-adjustment", "oversample"] = "oversample"
    target_per_class: int | None = Field(default=None, ge=1)
    exclude: list[str] | None = None
    one_vs_rest: str | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    workers: int = Field(default=2, ge=1, le=64)
    seed: int = Field(default=0, ge=0, lt=2**31)
    device: str = "auto"
    cache: Literal["auto", "device", "host", "none"] = "auto"
    patience: int = Field(default=0, ge=0)
    monitor: Literal["macro_f1", "balanced_accuracy", "accuracy", "loss"] = "macro_f1"
    stop_after: int | None = Field(default=None, ge=1)

    @field_validator("exclude", mode="before")
    @classmethod
    def _split_codes(cls, value: object) -> object:
        """Accept ``"ART,OTH"`` and ``"none"`` beside a list."""
        if isinstance(value, str):
            return (
                [] if value.strip().lower() == "none" else [part.strip() for part in value.split(",") if part.strip()]
            )
        return value

    @field_validator("augmenter", mode="before")
    @classmethod
    def _join_names(cls, value: object) -> object:
        """Accept a list beside ``"stain-hed,hematonet"``."""
        return ",".join(map(str, value)) if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.pretrained and self.weights:
            raise ValueError("pretrained and weights both name a start; give one of them")
        if self.target_per_class is not None and self.balance != "oversample":
            raise ValueError(f"target_per_class needs balance oversample, not {self.balance}")
        if self.one_vs_rest and self.one_vs_rest in (self.exclude or []):
            raise ValueError(f"one_vs_rest names {self.one_vs_rest}, which exclude leaves out")
        return self


def declared_settings(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Give settings read with `parse_yaml` the types that `TrainConfig` declares.

    Parameters
    ----------
    data : mapping
        Settings; text stays text where text is declared. Options of plugins stay text until the plugin is known.
    where : str
        The file, for errors.

    Raises
    ------
    TrainingError
        If a setting is empty that may not be.
    """
    return {str(name): _declared(str(name), value, where) for name, value in data.items()}


def _declared(name: str, value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        return {str(key): None if _is_null(inner) else _declared("", inner, where) for key, inner in value.items()}
    if isinstance(value, list):
        return list(map(str, value))
    if not isinstance(value, Scalar):
        return value
    field = TrainConfig.model_fields.get(name)
    declared = {field.annotation, *get_args(field.annotation)} if field else {str}
    if _is_null(value) and type(None) in declared:
        return None
    if declared & {bool, int, float}:
        return read_value(value)
    if not value and field:
        raise TrainingError(f"{where}, line {value.line}: {name} is empty; give a value (in quotes if it has a '#')")
    return str(value)


def _is_null(value: object) -> bool:
    return isinstance(value, Scalar) and value.is_null


def load_settings(path: str | Path) -> dict[str, Any]:
    """Read settings from a YAML file; the ``config.yaml`` of a run works too.

    Raises
    ------
    TrainingError
        If the file cannot be read or is not a mapping.
    """
    where = f"configuration {path}"
    try:
        data = parse_yaml(Path(path).read_text(encoding="utf-8-sig"), where, TrainingError)
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(
            f"{where} cannot be read ({getattr(error, 'strerror', None) or error}); give an existing YAML file"
        ) from error
    if not isinstance(data, dict):
        raise TrainingError(f"{where} holds no settings; write 'name: value' lines")
    # A run's own file keeps the settings beside what was found out about the data.
    inner = data.get("settings", data)
    return declared_settings(inner if isinstance(inner, dict) else data, where)


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Turn ``["lr=1e-3", "backbone.drop_path_rate=0.1"]`` into settings.

    ``backbone.NAME`` and ``augmenter.NAME`` are options of the plugins, ``augmenter.AUGMENTER.NAME`` of one of several
    augmenters; they stay text, as typed, until `make_config` knows the plugin.

    Raises
    ------
    TrainingError
        If one has no ``=``.
    """
    settings: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise TrainingError(f"--set {assignment!r} is not KEY=VALUE; write for example --set lr=0.001")
        head, dot, rest = key.partition(".")
        given: Any = typed_text(text)
        if given == text:
            given = parse_yaml(text, f"--set {key}", TrainingError) if text[:1] in ("[", "{") else Scalar(text)
        if not dot:
            settings |= declared_settings({key: given}, f"--set {key}")
        elif head not in ("backbone", "augmenter"):
            raise TrainingError(f"--set {assignment!r}: only backbone.NAME and augmenter.NAME have a dot")
        else:
            # Braces hold the options of one of several augmenters.
            options = _declared("", given, "") if isinstance(given, dict) else typed_text(text)
            settings.setdefault(f"{head}_options", {})[rest] = options
    return settings


def make_config(*layers: Mapping[str, Any]) -> TrainConfig:
    """Merge layers of settings (later ones win; plugin options merge key by key) and validate them.

    Raises
    ------
    TrainingError
        One line that names the first setting that is wrong.
    PluginError
        If an option of a plugin does not fit what the plugin declares.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if key.endswith("_options") and isinstance(value, Mapping):
                merged[key] = {**merged.get(key, {}), **value}
            else:
                merged[key] = value
    try:
        config = TrainConfig(**merged)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            known = ", ".join(sorted(TrainConfig.model_fields))
            raise TrainingError(f"setting {name!r} does not exist; settings: {known}") from error
        message = str(first["msg"]).removeprefix("Value error, ")
        where = f"setting {name!r}: " if name else ""
        given = f" (given: {first['input']!r})" if name else ""
        raise TrainingError(f"{where}{message}{given}") from error
    if config.backbone_options:
        spec, _, _ = load_plugins().backbone(config.backbone, config.variant)
        config.backbone_options = spec.declared_options(config.backbone_options)
    if config.augmenter_options:
        config.augmenter_options = declared_options(config.augmenter, config.augmenter_options)
    return config
