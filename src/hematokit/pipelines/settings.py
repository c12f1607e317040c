"""Settings of the commands, except those of a training (`hematokit.training.TrainSettings`).

Each class is the only definition of the options of its command; see `hematokit.settings`. Nothing heavy is imported
here, so that ``--help`` is quick. Pixel sizes have no limits here: `hematokit.imaging` checks them, wherever they are
from.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from hematokit.errors import EvaluationError, ExplanationError, FieldError, HematokitError, ModelError, PluginError
from hematokit.settings import Names, PathText, Settings

__all__ = [
    "ClassifySettings",
    "CompareSettings",
    "DemoSettings",
    "DetectSettings",
    "EvaluateSettings",
    "ExplainFieldSettings",
    "ExplainSettings",
    "ExportSettings",
    "FaithfulnessSettings",
    "SanitySettings",
    "StoreCorrectedSettings",
    "TileSettings",
]

Count = Annotated[int, BeforeValidator(lambda value: 0 if value is None else value)]
"""A number of cells, of which 0 or None means all."""


# --- whole fields -----------------------------------------------------------------------------------------------------


class FieldSettings(Settings):
    """Options of all commands that open fields and detect cells."""

    error: ClassVar[type[HematokitError]] = FieldError

    detector: str = "nuclei"
    """Detector; 'hematokit plugins' lists them."""

    detector_options: dict[str, Any] = Field(default_factory=dict)
    """Options of the detector."""

    pixel_size_um: float | None = None
    """Micrometres per pixel of fields whose file does not state it."""

    force_pixel_size: bool = False
    """Use the pixel size given also for files that state another one."""


class DetectSettings(FieldSettings):
    """Settings of `hematokit.detect` and of ``hematokit detect``."""

    smears: PathText | None = None
    """CSV that maps files to smears and patients: columns file, smear_id, patient_id."""

    scheduler: str = "local"
    """Where fields are processed: local, or the address of a Dask scheduler, such as tcp://HOST:8786."""


class ClassifySettings(DetectSettings):
    """Settings of `hematokit.classify` and of ``hematokit classify``."""

    min_probability: float = Field(default=0.5, ge=0, le=1)
    """Probability below which a cell is low-confidence; low-confidence cells are counted apart."""

    exclude_border: bool = False
    """Do not count cells that are cut by the border of their field; the tables contain them all the same."""

    model_pixel_size_um: float | None = None
    """Micrometres per pixel of the model's training images, where the model does not state it.

    Patches of fields of another pixel size are resampled to it.
    """

    runtime: str = "auto"
    """Runtime of the model: auto, torch, onnxruntime or openvino."""

    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, and so on."""

    batch_size: int = Field(default=64, ge=1)
    """Cells classified at a time."""


class TileSettings(FieldSettings):
    """Settings of `hematokit.tile` and of ``hematokit tile``."""

    class_map: list[str] = Field(default_factory=list)
    """NAME=CODE: the class of a name in the annotations; NAME= for no class; or a YAML file of such lines."""

    class_names: PathText | None = None
    """File of the names of YOLO classes; by default classes.txt or data.yaml beside the annotations."""

    only: list[str] = Field(default_factory=list)
    """Take only annotations of this class, a name or code; repeatable."""

    smears: PathText | None = None
    """CSV that maps files to smears and patients: columns file, smear_id, patient_id."""

    patch_size: int | None = None
    """Side of the patches of a new store in pixels; 250 by default."""

    codec: str | None = None
    """Codec of a new store: raw (faster, the default) or zstd (about a fifth smaller)."""

    near_duplicates: bool = True
    """Search for fields that show the same cell."""

    replace: bool = False
    """Replace the cells of fields that are already in the store.

    Without it such fields are refused. A cell at the same place keeps its id, and with it its corrections; new cells
    are in no split.
    """


class StoreCorrectedSettings(Settings):
    """Settings of `hematokit.store_corrected`."""

    error: ClassVar[type[HematokitError]] = FieldError

    others: bool = False
    """Also store the cells that nobody reviewed, without a label."""

    smears: PathText | None = None
    """CSV that maps files to smears and patients; by default those of the reviewed cells."""

    pixel_size_um: float | None = None
    """Micrometres per pixel of fields whose file does not state it; by default that of their review."""

    force_pixel_size: bool = False
    """Use the pixel size given also for files that state another one."""

    patch_size: int | None = None
    """Side of the patches of a new store in pixels; 250 by default."""

    codec: str | None = None
    """Codec of a new store: raw (faster, the default) or zstd (about a fifth smaller)."""

    near_duplicates: bool = True
    """Search for fields that show the same cell."""


# --- evaluation -------------------------------------------------------------------------------------------------------


class EvaluateSettings(Settings):
    """Settings of `hematokit.evaluate` and of ``hematokit evaluate``."""

    error: ClassVar[type[HematokitError]] = EvaluationError

    split: str = "test"
    """Split: train, val, test, or all for every cell."""

    runtime: str | None = None
    """Runtime of the model: torch, onnxruntime, openvino or auto; by default torch, for an ONNX file auto."""

    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, and so on."""

    batch_size: int = Field(default=64, ge=1)
    """Cells classified at a time."""

    seed: int = Field(default=0, ge=0)
    """Seed of the bootstrap."""

    bootstrap: int = Field(default=1000, ge=0)
    """Bootstrap resamples of the intervals; 0 for no intervals."""


class CompareSettings(Settings):
    """Settings of `hematokit.compare` and of ``hematokit compare``."""

    error: ClassVar[type[HematokitError]] = EvaluationError

    split: str = "test"
    """Split: train, val, test, or all for every cell."""

    common: bool = False
    """Compare the cells in common where the models were evaluated on different ones."""

    device: str = "auto"
    """Device for models that are not evaluated yet: auto, cpu, cuda, and so on."""

    batch_size: int = Field(default=64, ge=1)
    """Cells classified at a time."""

    seed: int = Field(default=0, ge=0)
    """Seed of the resampling."""


# --- explanation ------------------------------------------------------------------------------------------------------


class MapSettings(Settings):
    """Options of all commands that compute attribution maps."""

    error: ClassVar[type[HematokitError]] = ExplanationError

    methods: Names = Field(default_factory=lambda: ["grad-cam", "smoothgrad"])
    """Explainers, with commas between; 'hematokit plugins' lists them."""

    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Options of the explainers, by the explainer's name."""

    target: str = "predicted"
    """Class to explain: predicted, true, or a class code."""

    cells: Names | None = None
    """Ids of cells, with commas between, or a text file with one id per line; of a field also all or low-confidence."""

    device: str = "auto"
    """Device: auto, cpu, cuda, cuda:1, and so on."""

    batch_size: int = Field(default=16, ge=1)
    """Cells explained at a time."""

    seed: int = Field(default=0, ge=0)
    """Seed of the choice of cells and of the noise."""

    @classmethod
    def assign_option(cls, settings: dict[str, Any], key: str, value: Any) -> None:
        """Put ``--set EXPLAINER.NAME=VALUE`` into the settings."""
        # The last dot separates: names of explainers may have dots, those of options have none.
        method, _, name = key.rpartition(".")
        if not method or not name:
            raise PluginError(f"--set {key} is not EXPLAINER.NAME=VALUE, as in smoothgrad.samples=25")
        settings.setdefault("options", {}).setdefault(method, {})[name.replace("-", "_")] = value

    @classmethod
    def set_example(cls) -> str:
        """Return an example of ``--set`` for messages."""
        return "write for example --set smoothgrad.samples=25"


class StoreCellsSettings(MapSettings):
    """Options that choose cells of a store."""

    split: str = "test"
    """Split the cells are from: train, val, test, or all."""

    per_class: Count = Field(default=4, ge=0)
    """Cells of each class, chosen at random; 0 for all."""


class ExplainSettings(StoreCellsSettings):
    """Settings of `hematokit.explain` and of ``hematokit explain``."""

    uncertain: bool = False
    """Also draw sheets of misclassified and low-confidence cells, with maps of the two most probable classes."""

    min_probability: float = Field(default=0.5, ge=0, le=1)
    """Probability below which a cell is low-confidence."""

    figures: bool = True
    """Draw a figure of each cell."""


class ExplainFieldSettings(MapSettings, FieldSettings):
    """Settings of `hematokit.explain_field` and of ``hematokit explain --field``."""

    error: ClassVar[type[HematokitError]] = ExplanationError

    uncertain: bool = False
    """Also draw sheets of low-confidence cells, with maps of the two most probable classes."""

    min_probability: float = Field(default=0.5, ge=0, le=1)
    """Probability below which a cell is low-confidence."""

    figures: bool = True
    """Draw a figure of each cell."""

    model_pixel_size_um: float | None = None
    """Micrometres per pixel of the model's training images, where the model does not state it."""


class SanitySettings(StoreCellsSettings):
    """Settings of `hematokit.check_sanity` and of ``hematokit explain --sanity``."""

    blocks: int = Field(default=5, ge=1)
    """Blocks of layers that are randomised one after the other; the network is divided into at least so many."""

    draws: int = Field(default=1, ge=1)
    """Random draws of the weights that are averaged."""

    retrain: bool = True
    """Also do the data-randomisation test, which trains two or three small models per model."""

    training: dict[str, Any] = Field(default_factory=dict)
    """Settings of these trainings: fields of TrainSettings."""

    train_per_class: Count = Field(default=100, ge=0)
    """Training cells of each class for these trainings; 0 for all."""

    other_seed: bool = True
    """Also train a third model with another seed, which shows how far the maps of two models differ anyway."""

    examples: int = Field(default=2, ge=0)
    """Cells whose maps the report shows."""

    @model_validator(mode="after")
    def _consistent(self) -> SanitySettings:
        if self.training and not self.retrain:
            raise ValueError("training needs retrain: its settings are for the models that are trained again")
        return self

    @classmethod
    def assign_option(cls, settings: dict[str, Any], key: str, value: Any) -> None:
        """Put ``--set training.NAME=VALUE`` and ``--set EXPLAINER.NAME=VALUE`` into the settings."""
        head, _, name = key.partition(".")
        if head != "training":
            super().assign_option(settings, key, value)
            return
        from hematokit.training.settings import TrainSettings

        settings.setdefault("training", {}).update(TrainSettings.assignments([f"{name}={value}"]))


class FaithfulnessSettings(StoreCellsSettings):
    """Settings of `hematokit.check_faithfulness` and of ``hematokit explain --faithfulness``."""

    steps: int = Field(default=24, ge=2)
    """Steps of the deletion and insertion curves."""

    replacement: Literal["blur", "mean"] = "blur"
    """Replacement of deleted pixels: blur, or the mean colour."""

    order: Literal["value", "magnitude"] = "value"
    """Order in which pixels are deleted: by the value of the map, or by its magnitude."""

    detector: str | None = "nuclei"
    """Detector of the cell and its nucleus in each patch; none in Python (None) skips the localisation."""

    detector_options: dict[str, Any] = Field(default_factory=dict)
    """Options of the detector."""

    pixel_size_um: float | None = None
    """Micrometres per pixel of the patches; by default that of the store, else of the model."""


# --- others -----------------------------------------------------------------------------------------------------------


class ExportSettings(Settings):
    """Settings of `hematokit.export` and of ``hematokit export``."""

    error: ClassVar[type[HematokitError]] = ModelError

    format: Literal["onnx", "bioimageio", "wsinfer", "huggingface"] = "onnx"
    """File format."""

    layout: Literal["patches", "images"] = "patches"
    """Input of an ONNX model: patches, uint8 (N, P, P, 3), or images, float32 (N, 3, S, S) from 0 to 1."""

    embeddings: bool = False
    """ONNX: add a third output, the embeddings."""

    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    """ONNX: fp32; fp16, half the size; int8, a quarter. The effect on the predictions is measured."""

    licence: str = ""
    """Licence of the weights, such as CC-BY-4.0; written into every format."""

    store: PathText | None = None
    """Training store, if it is not at the path in the model: patches to compare and calibrate on."""

    taxonomy: PathText | None = None
    """Taxonomy file whose names and colours replace those of the model."""

    pixel_size_um: float | None = None
    """Micrometres per pixel of the training images, where the model does not state it."""

    overwrite: bool = False
    """Replace an existing file."""


class DemoSettings(Settings):
    """Settings of ``hematokit demo``."""

    seed: int = Field(default=0, ge=0)
    """Seed of the sample, the split and the training."""

    epochs: int = Field(default=9, ge=1)
    """Epochs of the training."""

    device: str = "auto"
    """Device: auto, cpu, cuda, and so on."""
