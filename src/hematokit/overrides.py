"""Keyword arguments of the commands, from which editors complete names. Made by ``make overrides``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict


class ImportOverrides(TypedDict, total=False):
    """Fields of `ImportSettings`."""

    labels: str | Path | None
    patch_size: int | None
    resize: bool
    pad: bool
    codec: str | None
    near_duplicates: bool
    pixel_size_um: float | None
    force_pixel_size: bool


class TrainOverrides(TypedDict, total=False):
    """Fields of `TrainSettings`."""

    backbone: str
    variant: str | None
    backbone_options: Mapping[str, Any]
    augmenter: str
    augmenter_options: Mapping[str, Any]
    image_size: int | None
    pretrained: bool
    weights: str | Path | None
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup: float
    clip_grad: float
    label_smoothing: float
    balance: Literal["none", "weighted-loss", "logit-adjustment", "oversample"]
    target_per_class: int | None
    exclude: str | Sequence[str] | None
    one_vs_rest: str | None
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    compile: bool
    workers: int
    seed: int
    device: str
    cache: Literal["auto", "device", "host", "none"]
    patience: int
    monitor: Literal["macro_f1", "balanced_accuracy", "accuracy", "loss"]
    stop_after: int | None


class ClassifyOverrides(TypedDict, total=False):
    """Fields of `ClassifySettings`."""

    detector: str
    detector_options: Mapping[str, Any]
    pixel_size_um: float | None
    force_pixel_size: bool
    smears: str | Path | None
    scheduler: str
    min_probability: float
    exclude_border: bool
    model_pixel_size_um: float | None
    runtime: str
    device: str
    batch_size: int


class CompareOverrides(TypedDict, total=False):
    """Fields of `CompareSettings`."""

    split: str
    common: bool
    device: str
    batch_size: int
    seed: int


class DemoOverrides(TypedDict, total=False):
    """Fields of `DemoSettings`."""

    seed: int
    epochs: int
    device: str


class DetectOverrides(TypedDict, total=False):
    """Fields of `DetectSettings`."""

    detector: str
    detector_options: Mapping[str, Any]
    pixel_size_um: float | None
    force_pixel_size: bool
    smears: str | Path | None
    scheduler: str


class EvaluateOverrides(TypedDict, total=False):
    """Fields of `EvaluateSettings`."""

    split: str
    runtime: str | None
    device: str
    batch_size: int
    seed: int
    bootstrap: int


class ExplainFieldOverrides(TypedDict, total=False):
    """Fields of `ExplainFieldSettings`."""

    detector: str
    detector_options: Mapping[str, Any]
    pixel_size_um: float | None
    force_pixel_size: bool
    methods: str | Sequence[str]
    options: Mapping[str, Mapping[str, Any]]
    target: str
    cells: str | Sequence[str] | None
    device: str
    batch_size: int
    seed: int
    uncertain: bool
    min_probability: float
    figures: bool
    model_pixel_size_um: float | None


class ExplainOverrides(TypedDict, total=False):
    """Fields of `ExplainSettings`."""

    methods: str | Sequence[str]
    options: Mapping[str, Mapping[str, Any]]
    target: str
    cells: str | Sequence[str] | None
    device: str
    batch_size: int
    seed: int
    split: str
    per_class: int
    uncertain: bool
    min_probability: float
    figures: bool


class ExportOverrides(TypedDict, total=False):
    """Fields of `ExportSettings`."""

    format: Literal["onnx", "bioimageio", "wsinfer", "huggingface"]
    layout: Literal["patches", "images"]
    embeddings: bool
    precision: Literal["fp32", "fp16", "int8"]
    licence: str
    store: str | Path | None
    taxonomy: str | Path | None
    pixel_size_um: float | None
    overwrite: bool


class FaithfulnessOverrides(TypedDict, total=False):
    """Fields of `FaithfulnessSettings`."""

    methods: str | Sequence[str]
    options: Mapping[str, Mapping[str, Any]]
    target: str
    cells: str | Sequence[str] | None
    device: str
    batch_size: int
    seed: int
    split: str
    per_class: int
    steps: int
    replacement: Literal["blur", "mean"]
    order: Literal["value", "magnitude"]
    detector: str | None
    detector_options: Mapping[str, Any]
    pixel_size_um: float | None


class SanityOverrides(TypedDict, total=False):
    """Fields of `SanitySettings`."""

    methods: str | Sequence[str]
    options: Mapping[str, Mapping[str, Any]]
    target: str
    cells: str | Sequence[str] | None
    device: str
    batch_size: int
    seed: int
    split: str
    per_class: int
    blocks: int
    draws: int
    retrain: bool
    training: Mapping[str, Any]
    train_per_class: int
    other_seed: bool
    examples: int


class StoreCorrectedOverrides(TypedDict, total=False):
    """Fields of `StoreCorrectedSettings`."""

    others: bool
    smears: str | Path | None
    pixel_size_um: float | None
    force_pixel_size: bool
    patch_size: int | None
    codec: str | None
    near_duplicates: bool


class TileOverrides(TypedDict, total=False):
    """Fields of `TileSettings`."""

    detector: str
    detector_options: Mapping[str, Any]
    pixel_size_um: float | None
    force_pixel_size: bool
    class_map: Sequence[str]
    class_names: str | Path | None
    only: Sequence[str]
    smears: str | Path | None
    patch_size: int | None
    codec: str | None
    near_duplicates: bool
    replace: bool
