"""Bundles: a trained classifier as a few files that open without running anything.

``model.safetensors`` (the backbone's weights), ``config.json`` (everything else), ``README.md`` (the model card) and
``SHA256SUMS`` (hashes of the first two).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from hematokit._version import __version__
from hematokit.errors import ModelError, PluginError, printable
from hematokit.files import write_atomically
from hematokit.models.config import (
    BUNDLE_VERSION,
    BackboneConfig,
    InputConfig,
    ModelConfig,
    TrainingRecord,
    parse_config,
)
from hematokit.models.integrity import (
    MANIFEST,
    check_tensors,
    file_sha256,
    read_file,
    read_onnx,
    sha256,
    verify_manifest,
    write_manifest,
)
from hematokit.plugins import load_plugins
from hematokit.plugins.hookspecs import PROJECT

if TYPE_CHECKING:
    # Only for annotations: a bundle that another runtime computes must open without torch.
    import torch

    from hematokit.models.classifier import Classifier
    from hematokit.models.construction import BackboneChoice

__all__ = [
    "ModelFiles",
    "bundle_identity",
    "find_bundle",
    "find_model",
    "is_onnx",
    "open_bundle",
    "read_config",
    "read_model",
    "save_bundle",
]

_LARGEST_CONFIG = 64_000_000
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


def save_bundle(
    folder: str | Path,
    classifier: Classifier,
    choice: BackboneChoice,
    training: TrainingRecord | Mapping[str, Any],
    *,
    pixel_size_um: float | None = None,
) -> ModelConfig:
    """Write a bundle; each file is complete or not there.

    Parameters
    ----------
    folder : path
        Made if it does not exist; files of an older bundle in it are replaced.
    classifier : Classifier
        Classifier to save, with its temperature.
    choice : BackboneChoice
        How its backbone was built.
    training : TrainingRecord or mapping
        Record of its training.
    pixel_size_um : float, optional
        Pixel size of the training images.

    Returns
    -------
    ModelConfig
        Content of ``config.json``.

    Raises
    ------
    ModelError
        If a weight is not finite, or an entry of `training` is of a wrong type; nothing is written.
    """
    from safetensors.torch import save

    folder = Path(folder)
    try:
        record = training if isinstance(training, TrainingRecord) else TrainingRecord.model_validate(training)
    except ValidationError as error:
        first = error.errors()[0]
        raise ModelError(
            f"training.{'.'.join(map(str, first['loc']))}: {first['msg']}; no bundle is written"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    spec = classifier.input_spec
    config = ModelConfig(
        bundle_version=BUNDLE_VERSION,
        hematokit_version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        taxonomy=classifier.taxonomy,
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
            options=choice.spec.portable_options(choice.options),
            package=choice.package,
            package_version=choice.version,
        ),
        training=record,
    )
    for name, values in classifier.backbone.named_parameters():
        if not values.isfinite().all():
            raise ModelError(f"the weights {name} are not finite, so no bundle is written; lower --lr and train again")
    state = {key: value.detach().cpu().contiguous() for key, value in classifier.backbone.state_dict().items()}
    files = {CONFIG: config.to_json().encode(), WEIGHTS: save(state, metadata={"format": "pt"})}
    write_atomically(folder / WEIGHTS, files[WEIGHTS])
    write_atomically(folder / CARD, _readme(config).encode())
    write_manifest(folder, files)
    # Last: a folder without config.json is no bundle, so an interrupted save is never taken for one.
    write_atomically(folder / CONFIG, files[CONFIG])
    return config


def is_onnx(path: str | Path) -> bool:
    """Whether a path names an ONNX file; it need not exist."""
    path = Path(path)
    return path.suffix.lower() == ".onnx" and not path.is_dir()


def find_model(path: str | Path) -> Path:
    """Resolve what a model is given as: an ONNX file, a bundle folder, or a run folder that holds one.

    Returns
    -------
    Path
        The file, or the bundle's folder.

    Raises
    ------
    ModelError
        If there is none of them.
    """
    path = Path(path)
    if not is_onnx(path):
        return find_bundle(path)
    if not path.is_file():
        raise ModelError(f"{printable(str(path))} does not exist; give an ONNX file, or the folder of a run or bundle")
    return path


def find_bundle(path: str | Path) -> Path:
    """Resolve a bundle folder, or a run folder that holds one.

    Raises
    ------
    ModelError
        If there is neither.
    """
    path = Path(path)
    if is_onnx(path):
        raise ModelError(
            f"{printable(str(path))} is an ONNX file, and this needs the weights themselves; give the run or bundle "
            "that it was exported from"
        )
    for candidate in (path, path / "bundle"):
        if (candidate / CONFIG).is_file():
            return candidate
    if (path / "config.yaml").is_file():
        raise ModelError(
            f"run {path} has no bundle yet: its training has not ended; go on with hematokit train --resume"
        )
    raise ModelError(f"{path} is neither a run nor a bundle (no {CONFIG}); give the folder that hematokit train wrote")


def bundle_identity(path: Path) -> str:
    """Hash what decides a model's predictions: its weights, and of its configuration all but how it came about.

    A run that is resumed writes its bundle again, with another time of creation; it is the same model. An ONNX file is
    hashed as it is.

    Parameters
    ----------
    path : Path
        Bundle folder or ONNX file, as `find_model` returns it.

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    ModelError
        If the configuration or the weights cannot be read.
    """
    if path.is_file():
        return file_sha256(path)
    raw = _config_bytes(path)
    return _identity(raw, _parse_bytes(raw, path), file_sha256(path / WEIGHTS))


def _identity(raw: bytes, config: ModelConfig, weights_sha256: str) -> str:
    said = config.model_dump(mode="json", include={"input", "temperature", "pixel_size_um", "backbone"})
    # As it is written, since it was always hashed so: whoever edits the file may leave out what has a default.
    said["taxonomy"] = json.loads(raw)["taxonomy"]
    if config.backbone.package == PROJECT:
        # The version of hematokit does not decide predictions; version 0.1.0 hashed its own, so that is kept.
        said["backbone"]["package_version"] = "0.1.0"
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    digest.update(bytes.fromhex(weights_sha256))
    return digest.hexdigest()


@dataclass(frozen=True)
class ModelFiles:
    """A model's files, read once: what is loaded and what the identity is computed from are the same bytes.

    Attributes
    ----------
    path : Path
        Bundle folder or ONNX file.
    content : bytes
        The bundle's weights, or the ONNX file.
    config : ModelConfig or None
        None for an ONNX file, whose metadata have it.
    identity : str
        As `bundle_identity`.
    """

    path: Path
    content: bytes = field(repr=False)
    config: ModelConfig | None
    identity: str


def read_model(path: Path) -> ModelFiles:
    """Read the files of a model and check that they are those that were saved; nothing in them is run.

    Parameters
    ----------
    path : Path
        Bundle folder or ONNX file, as `find_model` returns it.

    Raises
    ------
    ModelError
        If a file is missing, cut off, differs from its hash in ``SHA256SUMS``, or is newer than this program.
    """
    if path.is_file():
        content = read_onnx(path)
        return ModelFiles(path, content, None, sha256(content))
    raw = _config_bytes(path)
    config = _parse_bytes(raw, path)
    weights = read_file(path / WEIGHTS)
    check_tensors(path / WEIGHTS, weights)
    hashes = {CONFIG: sha256(raw), WEIGHTS: sha256(weights)}
    if config.bundle_version > 1 or (path / MANIFEST).exists():
        verify_manifest(path, hashes)
    return ModelFiles(path, weights, config, _identity(raw, config, hashes[WEIGHTS]))


def read_config(folder: Path) -> ModelConfig:
    """Read the configuration of a bundle folder.

    Raises
    ------
    ModelError
        If it is missing, damaged, or newer than this program.
    """
    return _parse_bytes(_config_bytes(folder), folder)


def _config_bytes(folder: Path) -> bytes:
    try:
        with (folder / CONFIG).open("rb") as file:
            return file.read(_LARGEST_CONFIG)
    except OSError as error:
        raise _unreadable(folder, error) from error


def _parse_bytes(raw: bytes, folder: Path) -> ModelConfig:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unreadable(folder, error) from error
    return parse_config(text, str(folder / CONFIG))


def _unreadable(folder: Path, error: Exception) -> ModelError:
    return ModelError(f"{folder / CONFIG} cannot be read ({' '.join(str(error).split())}); copy the bundle again")


def open_bundle(files: ModelFiles, device: str | torch.device = "auto") -> Classifier:
    """Build the classifier of a bundle; nothing is unpickled, and no code of the bundle is run.

    Parameters
    ----------
    files : ModelFiles
        Of a bundle, as `read_model` returns them.
    device : str or torch.device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ...

    Returns
    -------
    Classifier
        In evaluation mode, on the device.

    Raises
    ------
    ModelError
        If the weights are damaged, not finite or of another backbone.
    PluginError
        If the plugin that provides the backbone is not installed.
    """
    import torch

    from hematokit.models.classifier import Classifier, resolve_device
    from hematokit.models.construction import build_backbone

    folder, config = files.path, files.config
    assert config is not None  # an ONNX file has no weights for torch
    choice = _rebuild_choice(folder, config)
    backbone = build_backbone(choice, len(config.taxonomy))
    _load_state(backbone, files)
    classifier = Classifier(
        backbone,
        config.taxonomy,
        choice.input,
        config.input.patch_size,
        config.temperature,
        config=config,
        identity=files.identity,
    )
    target = device if isinstance(device, torch.device) else resolve_device(device)
    return classifier.to(target).to(memory_format=torch.channels_last).eval()


def _rebuild_choice(folder: Path, config: ModelConfig) -> BackboneChoice:
    from hematokit.models.construction import choose_backbone

    wanted = config.backbone
    try:
        choice = choose_backbone(wanted.name, wanted.variant, config.input.size, wanted.options)
    except PluginError as error:
        if wanted.package != "hematokit" and wanted.name not in load_plugins().backbones:
            absence = load_plugins().explain_absence(wanted.package, wanted.package_version)
            raise PluginError(f"bundle {folder} needs backbone {wanted.name!r} of {absence}") from error
        raise
    # The options of the training are used, not the present defaults of the plugin.
    return replace(choice, input=config.input.spec)


def _load_state(backbone: torch.nn.Module, files: ModelFiles) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = files.path / WEIGHTS
    try:
        state = load(files.content)
    except SafetensorError as error:
        text = " ".join(str(error).split())
        raise ModelError(f"{path} is missing or damaged ({text}); copy the bundle again") from error
    _check_finite(backbone, state, path)
    try:
        backbone.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ModelError(
            f"{path} does not fit the backbone its config.json names ({' '.join(str(error).split())[:160]}); "
            "the two files are not of one bundle: copy it again"
        ) from error


def _check_finite(backbone: torch.nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Refuse weights that are not finite, except where the architecture itself has such a constant (a mask)."""
    own = backbone.state_dict()
    for name, values in state.items():
        if values.is_floating_point() and not values.isfinite().all():
            built = own.get(name)
            if built is None or not values.equal(built.to(values)):
                raise ModelError(
                    f"{path} has weights that are not finite ({printable(name)}); the training went wrong or the file "
                    "is damaged: copy the bundle again, or train the model again"
                )


def _readme(config: ModelConfig) -> str:
    """Return the bundle's README: what it is, what it was trained on, what it is not for."""
    training = config.training
    lines = [
        f"# {config.backbone.name} ({config.backbone.variant}) for {len(config.taxonomy)} cell classes",
        "",
        "**For research use only. Not a medical device; not for diagnosis or treatment.**",
        "",
        f"Trained with hematokit {config.hematokit_version} on {config.created}.",
        "",
        f"- Input: RGB patches of {config.input.patch_size} px, brought to {config.input.size} px",
        f"- Pixel size: {'not recorded' if config.pixel_size_um is None else f'{config.pixel_size_um:.4g} um'}",
        f"- Probabilities: softmax of the logits divided by {config.temperature:.4f}",
    ]
    shown = {"store_hash", "split", "seed", "epochs", "best_epoch", "augmenter", "balance", "device", "seconds"}
    for key, value in training.model_dump(mode="json", include=shown, exclude_unset=True).items():
        lines.append(f"- {key.replace('_', ' ')}: `{value}`")
    counted = (training.counts or {}).get("train", {})
    lines += ["", "| code | class | training cells |", "|---|---|---|"]
    for entry in config.taxonomy:
        name = entry.name.replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| {entry.code} | {name} | {counted.get(entry.code, '')} |")
    lines += ["", "Load it with `hematokit.load_model(folder)`.", ""]
    return "\n".join(lines)
