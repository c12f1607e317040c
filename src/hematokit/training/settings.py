"""Settings of a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from hematokit.errors import HematokitError, TrainingError
from hematokit.plugins import load_plugins
from hematokit.settings import Names, PathText, Settings
from hematokit.training.augmenters import declared_options

__all__ = ["TrainSettings"]


class TrainSettings(Settings):
    """All settings of a training.

    Examples
    --------
    >>> TrainSettings(store="bm.zarr", output="runs/coatnet", epochs=3).backbone
    'coatnet'
    """

    error: ClassVar[type[HematokitError]] = TrainingError

    store: PathText
    """Patch store with a split."""

    output: PathText
    """Run folder to write."""

    backbone: str = "coatnet"
    """Backbone: NAME, NAME:VARIANT, or timm:MODEL for any model of timm."""

    variant: str | None = None
    """Size of the backbone; 'hematokit plugins' lists the variants."""

    backbone_options: dict[str, Any] = Field(default_factory=dict)
    """Options of the backbone."""

    augmenter: str = "hematonet"
    """Augmenters, applied in this order: hematonet, flips, none, or one of a plugin; several with commas."""

    augmenter_options: dict[str, Any] = Field(default_factory=dict)
    """Options of the augmenters; with several, NAME.OPTION names the augmenter."""

    image_size: int | None = Field(default=None, gt=0, le=2048)
    """Side of the network's input in pixels; by default that of the variant."""

    pretrained: bool = False
    """Start from the weights that the authors of the backbone published, downloaded from a hub."""

    weights: PathText | None = None
    """Start from a local file of weights."""

    epochs: int = Field(default=30, ge=1)
    """Number of epochs; the learning-rate schedule covers them."""

    batch_size: int = Field(default=64, ge=1)
    """Cells per step, over all processes: results do not depend on the number of processes."""

    lr: float = Field(default=5e-4, gt=0, allow_inf_nan=False)
    """Highest learning rate of AdamW; it rises linearly over the warm-up and falls along a cosine."""

    weight_decay: float = Field(default=0.05, ge=0, allow_inf_nan=False)
    """Weight decay of AdamW; biases and parameters of normalisation layers are not decayed."""

    warmup: float = Field(default=2.0, ge=0, allow_inf_nan=False)
    """Epochs of rising learning rate; at most half of the epochs."""

    clip_grad: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Largest norm of the gradient; 0 disables clipping."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target probability that is spread evenly over all classes."""

    balance: Literal["none", "weighted-loss", "logit-adjustment", "oversample"] = "oversample"
    """Class balance: none, weighted-loss, logit-adjustment or oversample.

    See `hematokit.training.balance`.
    """

    target_per_class: int | None = Field(default=None, ge=1)
    """With oversample: cells drawn per class and epoch; by default the size of the largest class, at most 20,000."""

    exclude: Names | None = None
    """Class codes to leave out, such as ART,OTH,NIF, or none; by default the reject classes of the taxonomy."""

    one_vs_rest: str | None = None
    """Train a binary classifier of this class against all others."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the computation; auto is bf16 on GPUs that support it, otherwise fp32."""

    compile: bool = False
    """Use torch.compile."""

    workers: int = Field(default=2, ge=1, le=64)
    """Threads that read batches ahead where the patches are not kept in memory."""

    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of the initial weights, the order of the cells, augmentation and dropout."""

    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, and so on."""

    cache: Literal["auto", "device", "host", "none"] = "auto"
    """Where the training patches are kept: on the device, in host memory, or nowhere."""

    patience: int = Field(default=0, ge=0)
    """Epochs without improvement of the monitored metric before training stops; 0 never stops early."""

    monitor: Literal["macro_f1", "balanced_accuracy", "accuracy", "loss"] = "macro_f1"
    """Validation metric by which the best epoch is chosen."""

    stop_after: int | None = Field(default=None, ge=1)
    """Stop after this epoch; the run can be resumed, and the schedule is still that of all epochs."""

    @field_validator("augmenter", mode="before")
    @classmethod
    def _join_names(cls, value: object) -> object:
        """Accept a list beside ``"stain-hed,hematonet"``."""
        return ",".join(map(str, value)) if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _consistent(self) -> TrainSettings:
        if self.pretrained and self.weights:
            raise ValueError("pretrained and weights both name a start; give one of them")
        if self.target_per_class is not None and self.balance != "oversample":
            raise ValueError(f"target_per_class needs balance oversample, not {self.balance}")
        if self.one_vs_rest and self.one_vs_rest in (self.exclude or []):
            raise ValueError(f"one_vs_rest names {self.one_vs_rest}, which exclude leaves out")
        return self

    @classmethod
    def combine(cls, *layers: Settings | Mapping[str, object] | None) -> Self:
        """Merge and validate layers of settings, options of plugins included; see `Settings.combine`."""
        config = super().combine(*layers)
        if config.backbone_options:
            spec, _, _ = load_plugins().backbone(config.backbone, config.variant)
            config.backbone_options = spec.declared_options(config.backbone_options)
        if config.augmenter_options:
            config.augmenter_options = declared_options(config.augmenter, config.augmenter_options)
        return config
