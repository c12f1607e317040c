"""Bundles: a trained classifier as three files that open without running anything.

``model.safetensors`` (the backbone's weights), ``config.json`` (everything else), ``README.md`` (the model card).
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hematokit import __version__
from hematokit.errors import ModelError, PluginError
from hematokit.files import write_atomically
from hematokit.registry import load_plugins
from hematokit.specs import InputSpec
from hematokit.taxonomy import Taxonomy

if TYPE_CHECKING:
    # Only for annotations: a bundle that another runtime computes must open without torch.
    import torch

    from hematokit.models.classifier import Classifier
    from hematokit.models.construction import BackboneChoice
    from hematokit.models.runtimes import OnnxClassifier

__all__ = [
    "BUNDLE_VERSION",
    "BundleConfig",
    "Runtime",
    "find_bundle",
    "load_model",
    "load_torch",
    "read_config",
    "save_bundle",
]

BUNDLE_VERSION = 1
Runtime = Literal["torch", "onnxruntime", "auto"]
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class InputConfig(_Strict):
    """How a patch becomes the input; the fields of `hematokit.specs.InputSpec` and the patch's side."""

    patch_size: int = Field(gt=0, le=4096)
    size: int = Field(gt=0, le=4096)
    divisor: int = Field(gt=0)
    fit: Literal["resize", "reflect-pad", "crop", "auto"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class BackboneConfig(_Strict):
    """Which backbone, and the package that provides it."""

    name: str
    variant: str
    model: str
    options: dict[str, Any] = {}
    package: str
    package_version: str = ""


class BundleConfig(_Strict):
    """The whole of ``config.json``.

    Attributes
    ----------
    taxonomy : dict
        Classes in the order of the logits, as `Taxonomy.to_dict` gives them.
    temperature : float
        Divides the logits before softmax.
    pixel_size_um : float or None
        Side of a pixel of the training images in micrometres, where known.
    training : dict
        What it was trained on and how; for people and reports, never needed to predict.
    """

    bundle_version: int
    hematokit_version: str
    created: str
    taxonomy: dict[str, Any]
    input: InputConfig
    temperature: float = Field(gt=0, allow_inf_nan=False)
    pixel_size_um: float | None = Field(default=None, gt=0)
    backbone: BackboneConfig
    training: dict[str, Any] = {}
    research_use_only: Literal[True] = True

    @field_validator("bundle_version")
    @classmethod
    def _known_version(cls, value: int) -> int:
        if not 1 <= value <= BUNDLE_VERSION:
            raise ValueError(f"bundle version {value} is not known to hematokit {__version__}; upgrade hematokit")
        return value


def save_bundle(
    folder: str | Path,
    classifier: Classifier,
    choice: BackboneChoice,
    training: dict[str, Any],
    *,
    pixel_size_um: float | None = None,
) -> BundleConfig:
    """Write a bundle; each file is complete or not there.

    Parameters
    ----------
    folder : path
        Made if it does not exist; files of an older bundle in it are replaced.
    classifier : Classifier
        What to save; its temperature goes along.
    choice : BackboneChoice
        How its backbone was built.
    training : dict
        JSON-able facts on data, settings and results.
    pixel_size_um : float, optional
        Pixel size of the training images.

    Returns
    -------
    BundleConfig
        What ``config.json`` says.
    """
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    owner = load_plugins().backbones.owner(choice.spec.name)
    spec = classifier.input_spec
    config = BundleConfig(
        bundle_version=BUNDLE_VERSION,
        hematokit_version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        taxonomy=classifier.taxonomy.to_dict(),
        input=InputConfig(
            patch_size=classifier.patch_size,
            size=spec.size,
            divisor=spec.divisor,
            fit=spec.fit,
            mean=spec.mean,
            std=spec.std,
        ),
        temperature=classifier.temperature,
        pixel_size_um=pixel_size_um,
        backbone=BackboneConfig(
            name=choice.spec.name,
            variant=choice.variant_name,
            model=choice.variant.model,
            options=choice.options,
            package=owner.package,
            package_version=owner.version,
        ),
        training=training,
    )
    state = {key: value.detach().cpu().contiguous() for key, value in classifier.backbone.state_dict().items()}
    write_atomically(folder / WEIGHTS, save(state, metadata={"format": "pt"}))
    write_atomically(folder / CARD, model_card(config, classifier.taxonomy).encode())
    # Last: a folder without config.json is no bundle, so an interrupted save is never taken for one.
    write_atomically(folder / CONFIG, config.model_dump_json(indent=2).encode())
    return config


def find_bundle(path: str | Path) -> Path:
    """Resolve a bundle folder, or a run folder that holds one.

    Raises
    ------
    ModelError
        If there is neither.
    """
    path = Path(path)
    for candidate in (path, path / "bundle"):
        if (candidate / CONFIG).is_file():
            return candidate
    if (path / "config.yaml").is_file():
        raise ModelError(
            f"run {path} has no bundle yet: its training has not ended; go on with hematokit train --resume"
        )
    raise ModelError(f"{path} is neither a run nor a bundle (no {CONFIG}); give the folder that hematokit train wrote")


@overload
def load_model(
    path: str | Path, device: str | torch.device = "auto", runtime: Literal["torch"] = "torch"
) -> Classifier: ...


@overload
def load_model(
    path: str | Path, device: str | torch.device = "auto", runtime: str = "torch"
) -> Classifier | OnnxClassifier: ...


def load_model(
    path: str | Path, device: str | torch.device = "auto", runtime: str = "torch"
) -> Classifier | OnnxClassifier:
    """Load a classifier from a bundle or a run. Nothing is unpickled.

    Parameters
    ----------
    path : path
        Bundle folder, or the run folder that holds one.
    device : str or torch.device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ...
    runtime : str
        What computes it: ``"torch"``; ``"onnxruntime"``, on the CPU, from a file that is exported and checked against
        torch at the first use and then kept (`hematokit.models.runtimes`); ``"auto"``, onnxruntime where it is
        installed and the device is the CPU, else torch.

    Returns
    -------
    Classifier or OnnxClassifier
        In evaluation mode, on the device; both have ``predict``, ``logits``, ``codes``, ``taxonomy``, ``patch_size``,
        ``temperature``, ``config``, ``device`` and ``runtime``, the name of what computes.

    Raises
    ------
    ModelError
        If files are missing or damaged, the version is newer than this program, or the runtime cannot be used.
    PluginError
        If the plugin that provides the backbone is not installed.
    """
    folder = find_bundle(path)
    if runtime == "torch":
        return load_torch(folder, device)
    from hematokit.models.runtimes import load_with_runtime

    return load_with_runtime(folder, device, runtime)


def load_torch(folder: Path, device: str | torch.device = "auto") -> Classifier:
    """Load the classifier of a bundle folder; parameters, result and errors as of `load_model`."""
    import torch

    from hematokit.models.classifier import Classifier
    from hematokit.models.construction import build_backbone
    from hematokit.models.devices import resolve_device

    config = read_config(folder)
    choice = _rebuild_choice(folder, config)
    taxonomy = Taxonomy.from_dict(config.taxonomy, where=str(folder / CONFIG))
    backbone = build_backbone(choice, len(taxonomy))
    _load_state(backbone, folder / WEIGHTS)
    classifier = Classifier(
        backbone, taxonomy, choice.input, config.input.patch_size, config.temperature, config=config
    )
    target = device if isinstance(device, torch.device) else resolve_device(device)
    return classifier.to(target).to(memory_format=torch.channels_last).eval()


def bundle_identity(folder: Path) -> str:
    """Hash what decides a bundle's predictions: its weights, and of its configuration all but how it came about.

    A run that is resumed writes its bundle again, with another time of creation; it is the same model.

    Parameters
    ----------
    folder : Path
        Bundle folder, as `find_bundle` returns it.

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    ModelError
        If the configuration cannot be read.
    """
    deciding = {"taxonomy", "input", "temperature", "pixel_size_um", "backbone"}
    config = read_config(folder).model_dump(mode="json", include=deciding)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    with (folder / WEIGHTS).open("rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def read_config(folder: Path) -> BundleConfig:
    """Read the configuration of a bundle folder.

    Raises
    ------
    ModelError
        If it is missing, damaged, or newer than this program.
    """
    try:
        text = (folder / CONFIG).read_text(encoding="utf-8")
        return BundleConfig.model_validate(json.loads(text))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(
            f"{folder / CONFIG} cannot be read ({' '.join(str(error).split())}); copy the bundle again"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ModelError(
            f"{folder / CONFIG}: {where}: {first['msg']}; copy the bundle again or mend that entry"
        ) from error


def _rebuild_choice(folder: Path, config: BundleConfig) -> BackboneChoice:
    from hematokit.models.construction import BackboneChoice, choose_backbone

    wanted = config.backbone
    try:
        choice = choose_backbone(wanted.name, wanted.variant, config.input.size, wanted.options)
    except PluginError as error:
        if wanted.package != "hematokit" and wanted.name not in load_plugins().backbones:
            raise PluginError(
                f"bundle {folder} needs backbone {wanted.name!r} of package {wanted.package} {wanted.package_version}, "
                f"which is not installed or did not load; run: pip install {wanted.package}"
            ) from error
        raise
    given = config.input
    # What the bundle was trained with counts, not what the plugin would choose today.
    spec = InputSpec(given.size, given.divisor, given.mean, given.std, given.fit)
    return BackboneChoice(choice.spec, choice.variant_name, choice.variant, spec, choice.options)


def _load_state(backbone: torch.nn.Module, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        text = " ".join(str(error).split())
        raise ModelError(f"{path} is missing or damaged ({text}); copy the bundle again") from error
    try:
        backbone.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ModelError(
            f"{path} does not fit the backbone its config.json names ({' '.join(str(error).split())[:160]}); "
            "the two files are not of one bundle: copy it again"
        ) from error


def model_card(config: BundleConfig, taxonomy: Taxonomy) -> str:
    """Return the bundle's README: what it is, what it was trained on, what it is not for."""
    training = config.training
    counts = training.get("counts", {})
    lines = [
        f"# {config.backbone.name} ({config.backbone.variant}) for {len(taxonomy)} cell classes",
        "",
        "**For research use only. Not a medical device; not for diagnosis or treatment.**",
        "",
        f"Trained with hematokit {config.hematokit_version} on {config.created}.",
        "",
        f"- Input: RGB patches of {config.input.patch_size} px, brought to {config.input.size} px",
        f"- Probabilities: softmax of the logits divided by {config.temperature:.4f}",
    ]
    for key in ("store_hash", "split", "seed", "epochs", "best_epoch", "augmenter", "balance", "device", "seconds"):
        if key in training:
            lines.append(f"- {key.replace('_', ' ')}: `{training[key]}`")
    lines += ["", "| code | class | training cells |", "|---|---|---|"]
    for entry in taxonomy:
        name = entry.name.replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| {entry.code} | {name} | {counts.get('train', {}).get(entry.code, '')} |")
    lines += ["", "Load it with `hematokit.load_model(folder)`.", ""]
    return "\n".join(lines)
