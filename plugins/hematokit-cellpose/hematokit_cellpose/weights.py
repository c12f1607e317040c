"""Finding a checkpoint, reading it without running anything in it, and building the network that it is of.

cellpose's own loaders are not used: some versions let a file run code while it is read, and all fit the file to a
network of one fixed size. The networks themselves are cellpose's.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch

from hematokit.errors import ModelError, PluginError
from hematokit.models.construction import read_tensor_file

__all__ = ["Network", "find_weights", "library", "load_network", "read_checkpoint", "usual_model"]

_SIZES: Final = ("diam_mean", "diam_labels")
_FIRST: Final = "downsample.down.res_down_0.conv.conv_0.2.weight"
_LEVELS: Final = re.compile(r"downsample\.down\.res_down_(\d+)\.conv\.conv_0\.2\.weight")
_NUMBERED: Final = ("cyto", "cyto2", "nuclei")
"""Published networks whose files are called ``cyto2torch_0`` and so on."""

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Network:
    """A network ready to run.

    Attributes
    ----------
    module : torch.nn.Module
        Images (B, `channels`, H, W) to flows along y and x and the logit of being cell, (B, 3, H, W); first of a tuple.
    channels : int
        2: the mean of the colours and an empty channel; 3: the colours.
    tile : int
        Largest side of its input in px.
    step : int
        What sides are multiples of; equal to `tile` where the network takes no other size.
    scale_px : float
        Diameter in px that cells have in its input.
    cells_px : float
        Diameter of the cells that it was trained on, in their own pixels.
    """

    module: torch.nn.Module
    channels: int
    tile: int
    step: int
    scale_px: float
    cells_px: float


def library(part: str) -> Any:
    """Import a part of cellpose.

    Raises
    ------
    PluginError
        If cellpose is not installed, or does not work.
    """
    try:
        importlib.import_module("cellpose")
        return importlib.import_module(f"cellpose.{part}")
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "cellpose":
            raise PluginError(
                "detector cellpose: the package cellpose is not installed; run pip install 'cellpose>=3.0.8,<5'"
            ) from error
        raise PluginError(
            f"detector cellpose: the installed cellpose {_version()} does not work here ({error}); "
            "run pip install --upgrade 'cellpose>=3.0.8,<5'"
        ) from error


def _version() -> str:
    try:
        return metadata.version("cellpose")
    except metadata.PackageNotFoundError:
        return ""


def usual_model() -> str:
    """Name of the published network that the installed cellpose uses where none is named."""
    return "cyto3" if _version().startswith("3.") else "cpsam_v2"


def find_weights(model: str, *, download: bool = False) -> Path:
    """Find the file of a network.

    Parameters
    ----------
    model : str
        A file, or a published name; empty: `usual_model`.
    download : bool
        Whether published weights may be fetched.

    Returns
    -------
    Path

    Raises
    ------
    ModelError
        If there is none, or it cannot be fetched.
    """
    name = model.strip() or usual_model()
    given = Path(name).expanduser()
    if given.is_file():
        return given
    if given.is_dir():
        raise ModelError(f"detector cellpose: model {name} is a folder; give a file of weights in it")
    models = library("models")
    names = set(models.MODEL_NAMES)
    if name not in names:
        known = ", ".join(sorted(names))
        raise ModelError(
            f"detector cellpose: model {name} is neither a file nor a network that cellpose {_version()} publishes "
            f"({known}); set detector.model to a file of weights"
        )
    folder = Path(os.environ.get("CELLPOSE_LOCAL_MODELS_PATH") or Path.home() / ".cellpose" / "models")
    path = folder / (f"{name}torch_0" if name in _NUMBERED else name)
    if path.is_file():
        return path
    if not download:
        raise ModelError(
            f"detector cellpose: no weights of {name} at {path}; set detector.model to a file of weights, or "
            "detector.download=true to fetch the published ones"
        )
    try:
        fetched = models.cache_model_path(path.name)
    except Exception as error:  # whatever a connection can do
        raise ModelError(
            f"detector cellpose: the weights of {name} cannot be fetched ({' '.join(str(error).split())[:100]}); "
            f"bring the file {path.name} from a machine with a connection and set detector.model to it"
        ) from error
    return Path(fetched)


def read_checkpoint(path: Path) -> Tensors:
    """Read the tensors of a file; nothing else is unpickled.

    Raises
    ------
    ModelError
        If that is not possible, or something in it is no tensor.
    """
    state = read_tensor_file(path, "a checkpoint of cellpose 3 or 4, or a .safetensors file")
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"weights file {path} is no table of tensors; give a checkpoint of cellpose 3 or 4")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def load_network(path: Path, device: torch.device) -> Network:
    """Build the network that a file is of, and load it.

    Parameters
    ----------
    path : Path
        A checkpoint of cellpose 3 (``CPnet``, of any width and depth) or 4 (Cellpose-SAM).
    device : torch.device

    Returns
    -------
    Network

    Raises
    ------
    ModelError
        If the file is no such checkpoint, or the installed cellpose is of the other generation.
    PluginError
        If cellpose is not installed.
    """
    state = read_checkpoint(path)
    if _FIRST in state:
        module, channels, tile, step = _convolutional(path, state)
        scale, cells = (float(state[name].reshape(-1)[0]) if name in state else 30.0 for name in _SIZES)
    elif "W2" in state and "encoder.pos_embed" in state:
        module, channels, tile, step = _transformer(path)
        # Whatever it was trained on: cellpose 4 knows no other size.
        scale = cells = 30.0
    elif "encoder.cls_token" in state:
        raise ModelError(f"weights file {path} is of Cellpose-DINO, which is not supported; give cpsam_v2, or cyto3")
    else:
        raise ModelError(
            f"weights file {path} is no Cellpose network that is known here (first tensor {next(iter(state))!r}); "
            "give a checkpoint of cellpose 3 (CPnet) or 4 (Cellpose-SAM)"
        )
    _fill(path, module, state)
    if not (0 < scale < 1e4 and 0 < cells < 1e4):
        raise ModelError(f"weights file {path} says that cells are {cells:g} px wide; train or save it again")
    return Network(module.to(device).eval(), channels, tile, step, scale, cells)


def _convolutional(path: Path, state: Tensors) -> tuple[torch.nn.Module, int, int, int]:
    try:
        resnet = library("resnet_torch")
    except PluginError as error:
        if not _version().startswith("4."):
            raise
        raise ModelError(
            f"weights file {path} is of cellpose 3 and cellpose {_version()} is installed; run pip install 'cellpose<4'"
        ) from error
    first = state[_FIRST]
    levels = sorted((int(found[1]), name) for name in state if (found := _LEVELS.fullmatch(name)))
    widths = [int(first.shape[1]), *(int(state[name].shape[0]) for _, name in levels)]
    outputs = state.get("output.2.weight")
    if first.ndim != 4 or widths[0] not in (2, 3) or outputs is None or outputs.shape[0] != 3:
        raise ModelError(
            f"weights file {path} takes {widths[0]} channels or gives another number of outputs than 3; "
            "give a network of cellpose 3 that finds cells in pictures"
        )
    return resnet.CPnet(widths, 3, int(first.shape[-1])), widths[0], 224, 2 ** max(4, len(levels) - 1)


def _transformer(path: Path) -> tuple[torch.nn.Module, int, int, int]:
    if _version().startswith("3."):
        raise ModelError(
            f"weights file {path} is of cellpose 4 and cellpose {_version()} is installed; "
            "run pip install 'cellpose>=4,<5'"
        )
    try:
        made: torch.nn.Module = library("vit").CPSAM()
    except PluginError:
        # Its name before cellpose 4.2.
        made = library("vit_sam").Transformer()
    return made, 3, 256, 256


def _fill(path: Path, module: torch.nn.Module, state: Tensors) -> None:
    """Load all tensors; refuse what is missing, left over or of another shape."""
    own = module.state_dict()
    optional = {name for name in own if name in _SIZES or name.endswith("num_batches_tracked")}
    shapes = [
        f"{name} {tuple(value.shape)} for {tuple(own[name].shape)}"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape and name not in optional
    ]
    faults = [
        _listed("missing", sorted(set(own) - set(state) - optional)),
        _listed("unexpected", sorted(set(state) - set(own))),
        _listed("of another shape", shapes),
    ]
    if any(faults):
        raise ModelError(
            f"weights file {path} does not fit its network: {'; '.join(filter(None, faults))}; "
            "give a checkpoint as cellpose saves it"
        )
    module.load_state_dict({name: value for name, value in state.items() if name not in optional}, strict=False)


def _listed(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{more})"
