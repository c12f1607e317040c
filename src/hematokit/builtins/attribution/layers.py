"""Finding the layer that an attribution looks at."""

from __future__ import annotations

import re
from typing import Any
from weakref import WeakKeyDictionary

import torch

from hematokit.builtins.attribution.frozen import INPUT_METHODS
from hematokit.errors import PluginError
from hematokit.registry import load_plugins

__all__ = ["LayerFinder", "find_layer", "spatial_layers"]


class LayerFinder:
    """`find_layer`, remembered for each network and size of input.

    Parameters
    ----------
    wanted : str
        As `find_layer` takes it.
    """

    def __init__(self, wanted: str) -> None:
        self.wanted = wanted
        self._found: WeakKeyDictionary[torch.nn.Module, dict[int, str]] = WeakKeyDictionary()

    def __call__(self, classifier: Any, size: int) -> torch.nn.Module:
        """Return the layer of a classifier's backbone for inputs of `size` pixels."""
        paths = self._found.setdefault(classifier.backbone, {})
        if size not in paths:
            # A path, not the module: a value that refers to its own key would keep a weak dictionary's entry alive.
            paths[size] = _path(classifier.backbone, find_layer(classifier, self.wanted, size))
        layer: torch.nn.Module = classifier.backbone.get_submodule(paths[size])
        return layer


def find_layer(classifier: Any, wanted: str, size: int) -> torch.nn.Module:
    """Find the layer of a classifier's backbone that a user names.

    Parameters
    ----------
    classifier : Classifier
        Its backbone is searched.
    wanted : str
        ``"auto"``: the backbone's own choice, its last stage. A module's path (``"stages.1"``). A size
        (``"28x28"``): the last stage that has it.
    size : int
        Side of the input in pixels; sizes of layers follow from it.

    Returns
    -------
    torch.nn.Module
        Its output is ``(B, c, h, w)``.

    Raises
    ------
    PluginError
        If there is no such layer, or its output has no height and width.
    """
    backbone = classifier.backbone
    if re.fullmatch(r"\d+x\d+", wanted):
        height, width = map(int, wanted.split("x"))
        found = spatial_layers(classifier, size)
        matching = [name for name, shape in found.items() if shape == (height, width)]
        if matching:
            module: torch.nn.Module = backbone.get_submodule(matching[-1])
            return module
        said = ", ".join(dict.fromkeys(f"{h}x{w}" for h, w in found.values())) or "none"
        raise PluginError(
            f"no stage of {_name(backbone)} is {wanted} at an input of {size} px; there are: {said}"
            + ("" if found else f"; choose {INPUT_METHODS}")
        )
    if wanted == "auto":
        layer = _own_choice(classifier)
    else:
        try:
            layer = backbone.get_submodule(wanted)
        except AttributeError:
            found = spatial_layers(classifier, size)
            raise PluginError(
                f"{_name(backbone)} has no layer {wanted!r}; its stages: {', '.join(found) or 'none'}"
            ) from None
    shape = _output_shape(classifier, layer, size)
    if shape is None or not _is_spatial(shape, _channels(backbone, layer)):
        said = "is not used" if shape is None else f"gives {_words(shape)}, not (batch, channels, height, width)"
        raise PluginError(
            f"layer {_path(backbone, layer)} of {_name(backbone)} {said}; name another layer, or choose {INPUT_METHODS}"
        )
    return layer


def spatial_layers(classifier: Any, size: int) -> dict[str, tuple[int, int]]:
    """Height and width of the stages of a backbone, in the order of computing.

    Parameters
    ----------
    classifier : Classifier
    size : int
        Side of the input in pixels.

    Returns
    -------
    dict of str to (int, int)
        By path. The stages are those that the network describes itself by, as timm's do; of any other, the modules of
        the first two levels. Only those with an output ``(B, c, h, w)``, h and w above 1.
    """
    backbone = classifier.backbone
    described = [str(entry["module"]) for entry in _features(backbone) if entry.get("module")]
    names = described or [name for name, _ in backbone.named_modules() if name and name.count(".") < 2]
    wanted = {}
    for name in names:
        try:
            wanted[backbone.get_submodule(name)] = name
        except AttributeError:
            continue
    shapes = _shapes(classifier, list(wanted), size)
    return {
        wanted[module]: (shape[2], shape[3])
        for module, shape in shapes.items()
        if _is_spatial(shape, _channels(backbone, module)) and shape[2] * shape[3] > 1
    }


def _own_choice(classifier: Any) -> torch.nn.Module:
    """The attribution layer that the backbone's plugin names; without a plugin, timm's last stage."""
    if getattr(classifier, "has_config", False):
        spec = load_plugins().backbones.get(classifier.config.backbone.name)
        if spec.attribution_layer is not None:
            return spec.attribution_layer(classifier.backbone)
    entries = _features(classifier.backbone)
    if not entries:
        raise PluginError(
            f"{_name(classifier.backbone)} names no layer for attributions; give the path of one "
            f"(--set grad-cam.layer=PATH), or choose {INPUT_METHODS}"
        )
    module: torch.nn.Module = classifier.backbone.get_submodule(entries[-1]["module"])
    return module


def _features(backbone: torch.nn.Module) -> list[dict[str, Any]]:
    """What timm says of a network's stages; empty for networks of others."""
    described = getattr(backbone, "feature_info", None)
    entries = getattr(described, "info", described)
    if not isinstance(entries, list | tuple):
        return []
    return [dict(entry) for entry in entries if isinstance(entry, dict) and "module" in entry]


def _channels(backbone: torch.nn.Module, layer: torch.nn.Module) -> int | None:
    path = _path(backbone, layer)
    return next((int(entry["num_chs"]) for entry in _features(backbone) if entry["module"] == path), None)


def _is_spatial(shape: tuple[int, ...], channels: int | None) -> bool:
    # Swin and its like give (B, h, w, c), which looks the same but for the place of the channels.
    return len(shape) == 4 and (channels is None or shape[1] == channels)


def _output_shape(classifier: Any, layer: torch.nn.Module, size: int) -> tuple[int, ...] | None:
    return _shapes(classifier, [layer], size).get(layer)


def _shapes(classifier: Any, layers: list[torch.nn.Module], size: int) -> dict[torch.nn.Module, tuple[int, ...]]:
    """Run one empty image and note what comes out of each layer."""
    seen: dict[torch.nn.Module, tuple[int, ...]] = {}

    def note(module: torch.nn.Module, _: object, output: object) -> None:
        seen.pop(module, None)  # the order of the last use
        seen[module] = tuple(output.shape) if isinstance(output, torch.Tensor) else ()

    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        with torch.no_grad():
            classifier(torch.zeros(1, 3, size, size, device=classifier.device))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _path(backbone: torch.nn.Module, layer: torch.nn.Module) -> str:
    return next((name for name, module in backbone.named_modules() if module is layer), "?")


def _name(backbone: torch.nn.Module) -> str:
    return type(backbone).__name__


def _words(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})" if shape else "no single tensor"
