"""Loading a trained model, whatever it is kept in: a bundle, a run or an ONNX file; computed by torch or without it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from hematokit.errors import ModelError, PluginError
from hematokit.imaging.reading import printable
from hematokit.models.bundle import WEIGHTS, ModelFiles, find_model, read_model
from hematokit.models.config import ModelConfig
from hematokit.plugins import load_plugins

if TYPE_CHECKING:
    # Only for annotations: a model that another runtime computes must open without torch.
    import torch

    from hematokit.models.classifier import Classifier
    from hematokit.models.construction import BackboneChoice
    from hematokit.models.runtimes.onnx_classifier import OnnxClassifier

__all__ = ["Runtime", "load_files", "load_model", "load_torch"]

Runtime = Literal["torch", "onnxruntime", "openvino", "auto"]


@overload
def load_model(path: str | Path, device: str | torch.device = "auto", *, runtime: Literal["torch"]) -> Classifier: ...


@overload
def load_model(
    path: str | Path, device: str | torch.device = "auto", runtime: str | None = None
) -> Classifier | OnnxClassifier: ...


def load_model(
    path: str | Path, device: str | torch.device = "auto", runtime: str | None = None
) -> Classifier | OnnxClassifier:
    """Load a classifier from a bundle, a run or an ONNX file. Nothing is unpickled, and no code of a model is run.

    Parameters
    ----------
    path : path
        Bundle folder, the run folder that holds one, or a file that ``hematokit export --format onnx`` wrote, which
        needs no torch.
    device : str or torch.device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ...
    runtime : str, optional
        What computes it: ``"torch"``; ``"onnxruntime"`` or ``"openvino"``, on the CPU, from a file that is exported and
        checked against torch at the first use and then kept (`hematokit.models.runtimes.choosing`); ``"auto"``, on the
        CPU onnxruntime where it is installed, else torch. By default torch, and for an ONNX file ``"auto"``.

    Returns
    -------
    Classifier or OnnxClassifier
        In evaluation mode, on the device; each is a `hematokit.models.Model`, whose ``identity`` is computed from what
        was loaded.

    Raises
    ------
    ModelError
        If files are missing, damaged or not those that were saved, the version is newer than this program, the ONNX
        file is none of hematokit's, or the runtime cannot be used.
    PluginError
        If the plugin that provides the backbone is not installed.
    """
    return load_files(read_model(find_model(path)), device, runtime)


def load_files(
    files: ModelFiles, device: str | torch.device = "auto", runtime: str | None = None
) -> Classifier | OnnxClassifier:
    """Load a classifier from files that were read; parameters, result and errors as of `load_model`."""
    if files.config is not None and runtime in (None, "torch"):
        return load_torch(files, device)
    from hematokit.models.runtimes.choosing import load_with_runtime

    return load_with_runtime(files, device, runtime or "auto")


def load_torch(files: ModelFiles, device: str | torch.device = "auto") -> Classifier:
    """Load the classifier of a bundle; parameters, result and errors as of `load_model`."""
    import torch

    from hematokit.models.classifier import Classifier
    from hematokit.models.construction import build_backbone
    from hematokit.models.devices import resolve_device

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
    # What the bundle was trained with counts, not what the plugin would choose today.
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
