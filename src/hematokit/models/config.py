"""The content of a model's ``config.json``: how its predictions are computed, and how it was trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PureWindowsPath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
)
from pydantic_core import PydanticKnownError

from hematokit._version import __version__
from hematokit.errors import ModelError, printable
from hematokit.plugins.specs import InputSpec
from hematokit.taxonomy import Taxonomy

__all__ = [
    "BUNDLE_VERSION",
    "BackboneConfig",
    "InputConfig",
    "ModelConfig",
    "SplitRecord",
    "TrainingRecord",
    "TrainingSettings",
    "parse_config",
]

BUNDLE_VERSION = 2
"""2 since ``SHA256SUMS`` belongs to it; bundles of version 1, which have none, load as ever."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Config(BaseModel):
    """Entries that decide predictions: unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Record(BaseModel):
    """Metadata: all entries may be missing, unknown ones are kept, and only given ones are written."""

    model_config = ConfigDict(extra="allow", frozen=True, coerce_numbers_to_str=True)

    def __or__(self, entries: Mapping[str, object]) -> Self:
        """Return the record with further or other entries."""
        return type(self).model_validate(self.model_dump(exclude_unset=True) | dict(entries))


class InputConfig(_Config):
    """How a patch becomes the input; the fields of `hematokit.plugins.specs.InputSpec` and the patch's side."""

    patch_size: int = Field(gt=0, le=4096)
    size: int = Field(gt=0, le=4096)
    divisor: int = Field(gt=0)
    fit: Literal["resize", "reflect-pad", "crop", "auto"]
    mean: tuple[Finite, Finite, Finite]
    std: tuple[Positive, Positive, Positive]

    @property
    def spec(self) -> InputSpec:
        """The specification of the input."""
        return InputSpec(self.size, self.divisor, self.mean, self.std, self.fit)


class BackboneConfig(_Config):
    """Which backbone, and the package that provides it."""

    name: str
    variant: str
    model: str
    options: dict[str, Any] = {}
    package: str
    package_version: str = ""

    def __str__(self) -> str:
        return f"{self.name}:{self.variant}"


class SplitRecord(_Record):
    """How the store was split; entries as `hematokit.store.split_store` records them."""

    fractions: tuple[float, ...] | None = None
    seed: int | None = None
    by: str | None = None
    hash: str | None = None
    content_hash: str | None = None


class TrainingSettings(_Record):
    """The settings of a training as a bundle records them; see `hematokit.training.settings.TrainSettings`."""

    store: str | None = None
    output: str | None = None
    backbone: str | None = None
    variant: str | None = None
    backbone_options: dict[str, JsonValue] | None = None
    augmenter: str | None = None
    augmenter_options: dict[str, JsonValue] | None = None
    image_size: int | None = None
    pretrained: bool | None = None
    weights: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    weight_decay: float | None = None
    warmup: float | None = None
    clip_grad: float | None = None
    label_smoothing: float | None = None
    balance: str | None = None
    target_per_class: int | None = None
    exclude: list[str] | None = None
    one_vs_rest: str | None = None
    precision: str | None = None
    compile: bool | None = None
    workers: int | None = None
    seed: int | None = None
    device: str | None = None
    cache: str | None = None
    patience: int | None = None
    monitor: str | None = None
    stop_after: int | None = None


def _words(given: object) -> object:
    """Return the words of a command; None for the line of text of older versions."""
    return given if isinstance(given, list | tuple) and all(isinstance(word, str) for word in given) else None


class TrainingRecord(_Record):
    """Metadata of the training of a model; not needed for predictions.

    A plugin that trains in its own way may add entries; they are kept. Every entry may be None.

    Attributes
    ----------
    store, store_hash : str
        Path of the store, and the hash of its content.
    split : SplitRecord
        How the store was split; `split_hash` in records that hold the hash alone.
    backbone, backbone_package : str
        ``"name:variant"``; package and version that provide it.
    image_size : int
        Side of the input in pixels.
    classes : list of str
        Codes in the order of the logits.
    counts : dict
        Split to code to number of cells.
    left_out : dict
        Code to number of cells that took no part.
    pixel_size_um : float
        Side of a pixel of the training images in micrometres.
    device : str
    versions : dict
        Package to version.
    processes : int
    augmenter, balance : str
    exclude : list of str
        Codes that were left out by choice.
    one_vs_rest : str
        The class that was trained against all others.
    seed, epochs, best_epoch : int
        Epochs count from 1.
    monitor : str
        Figure that chose the best epoch.
    validation : dict
        Figures of the best epoch on the validation split.
    seconds : float
        Time trained.
    settings : TrainingSettings
    command : list of str
        The command line, without folders of absolute paths.
    """

    store: str | None = None
    store_hash: str | None = None
    split: SplitRecord | None = None
    split_hash: str | None = None
    backbone: str | None = None
    backbone_package: str | None = None
    image_size: int | None = None
    classes: list[str] | None = None
    counts: dict[str, dict[str, int]] | None = None
    left_out: dict[str, int] | None = None
    pixel_size_um: float | None = None
    device: str | None = None
    versions: dict[str, str] | None = None
    processes: int | None = None
    augmenter: str | None = None
    balance: str | None = None
    exclude: list[str] | None = None
    one_vs_rest: str | None = None
    seed: int | None = None
    epochs: int | None = None
    best_epoch: int | None = None
    monitor: str | None = None
    validation: dict[str, float | None] | None = None
    seconds: float | None = None
    settings: TrainingSettings | None = None
    command: Annotated[list[str] | None, BeforeValidator(_words)] = None

    _faults: tuple[str, ...] = PrivateAttr(())

    @property
    def faults(self) -> tuple[str, ...]:
        """Why entries were not read, one line each; such an entry is None."""
        return self._faults

    @property
    def trained_split_hash(self) -> str | None:
        """Hash of the split that was trained on."""
        return self.split_hash or (self.split.hash if self.split is not None else None)

    @property
    def without_part(self) -> frozenset[str]:
        """Codes that took no part in training: by choice, or because their cells could not be used."""
        return frozenset({*(self.exclude or ()), *(self.left_out or ())})

    def without_folders(self) -> Self:
        """Return the record as it may leave this computer: of paths only their last part, none of the output."""
        entries = self.model_dump(exclude_unset=True)
        settings = entries.get("settings") or {}
        for name in ("store", "output"):
            settings.pop(name, None)
        for holder, name in ((entries, "store"), (settings, "weights")):
            if holder.get(name):
                # Whichever system wrote the path.
                holder[name] = PureWindowsPath(holder[name]).name or holder[name]
        made = type(self).model_validate(entries)
        made._faults = self._faults
        return made

    @classmethod
    def read(cls, entries: Mapping[str, object]) -> Self:
        """Read a record from a file: an entry of a wrong type counts as missing, and `faults` names it."""
        try:
            return cls.model_validate(entries)
        except ValidationError as error:
            found = {str(fault["loc"][0]): fault for fault in error.errors()}
            made = cls.model_validate({key: value for key, value in entries.items() if key not in found})
            made._faults = tuple(f"{_place(fault['loc'])}: {fault['msg']}" for fault in found.values())
            return made


def _place(loc: tuple[int | str, ...]) -> str:
    return printable(".".join(map(str, loc)))


def _read_taxonomy(given: object, info: ValidationInfo) -> Taxonomy:
    if isinstance(given, Taxonomy):
        return given
    if not isinstance(given, Mapping):
        raise PydanticKnownError("dict_type")
    return Taxonomy.from_dict(given, where=(info.context or {}).get("where", "taxonomy"))


def _read_training(given: object) -> TrainingRecord:
    if isinstance(given, TrainingRecord):
        return given
    if not isinstance(given, Mapping):
        raise PydanticKnownError("dict_type")
    return TrainingRecord.read(given)


def _stated(record: TrainingRecord) -> dict[str, Any]:
    return record.model_dump(mode="json", exclude_unset=True)


class ModelConfig(_Config):
    """The whole of ``config.json``.

    Attributes
    ----------
    bundle_version : int
        Version of the layout, see `BUNDLE_VERSION`.
    hematokit_version, created : str
        By what and when it was written.
    taxonomy : Taxonomy
        Classes in the order of the logits.
    input : InputConfig
    temperature : float
        Divides the logits before softmax.
    pixel_size_um : float or None
        Side of a pixel of the training images in micrometres, where known.
    backbone : BackboneConfig
    training : TrainingRecord
    research_use_only : bool
        Always true.
    """

    bundle_version: int
    hematokit_version: str
    created: str
    taxonomy: Annotated[Taxonomy, PlainValidator(_read_taxonomy), PlainSerializer(Taxonomy.to_dict)]
    input: InputConfig
    temperature: Positive
    pixel_size_um: Positive | None = None
    backbone: BackboneConfig
    training: Annotated[TrainingRecord, PlainValidator(_read_training), PlainSerializer(_stated)] = TrainingRecord()
    research_use_only: Literal[True] = True

    def to_json(self) -> str:
        """The content of ``config.json``."""
        return self.model_dump_json(indent=2)


def parse_config(text: str, where: str) -> ModelConfig:
    """Read a model's configuration from its JSON.

    Parameters
    ----------
    text : str
    where : str
        Named in errors: the file it came from.

    Raises
    ------
    ModelError
        If it is damaged, or newer than this program.
    TaxonomyError
        If its classes are none.
    """
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where} cannot be read ({' '.join(str(error).split())}); copy the model again") from error
    version = said.get("bundle_version") if isinstance(said, dict) else None
    # Before the schema: what a later version added must not be called a mistake.
    if isinstance(version, int) and not 1 <= version <= BUNDLE_VERSION:
        writer = printable(str(said.get("hematokit_version", "unknown")))[:40]
        raise ModelError(
            f"{where}: bundle version {version} is not known to hematokit {__version__} (versions 1 to "
            f"{BUNDLE_VERSION} are); hematokit {writer} wrote it: upgrade hematokit to that version or later"
        )
    try:
        return ModelConfig.model_validate(said, context={"where": where})
    except ValidationError as error:
        first = error.errors()[0]
        entry = _place(first["loc"]) or "the file"
        raise ModelError(f"{where}: {entry}: {first['msg']}; copy the model again or mend that entry") from error
