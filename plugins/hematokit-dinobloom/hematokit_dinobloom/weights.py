"""Reading checkpoints as DinoBloom and DINOv2 publish them; every tensor in the file is accounted for.

``DinoBloom-S.pth`` and its sisters are what DINOv2's training saves of the teacher: ``{"teacher": {...}}`` with the
transformer under ``backbone.`` beside the two projection heads of the training, ``dino_head.`` and ``ibot_head.``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from hematokit.errors import ModelError
from hematokit.models.construction import read_tensor_file

__all__ = ["Accounting", "load_weights", "read_checkpoint"]

_CONTAINERS: Final = ("teacher", "model", "state_dict")
_PREFIXES: Final = ("module.", "_fsdp_wrapped_module.", "backbone.")
_LEFT_OUT: Final = ("dino_head.", "ibot_head.", "mask_token")
"""What only DINOv2's training needs."""

_WIDTHS: Final = {48: "tiny", 384: "s", 768: "b", 1024: "l", 1536: "g"}

Tensors = dict[str, torch.Tensor]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Accounting:
    """What became of a checkpoint's tensors.

    Attributes
    ----------
    loaded : tuple of str
        Taken over, by the network's names.
    left_out : tuple of str
        Not needed, by the file's names: heads of the training that made it, a head of other classes.
    resized : tuple of str
        Those of `loaded` that were interpolated to the input's size.
    """

    loaded: tuple[str, ...]
    left_out: tuple[str, ...]
    resized: tuple[str, ...]


def load_weights(module: Any, path: Path) -> Accounting:
    """Load a checkpoint into a `DinoBloom` network.

    Parameters
    ----------
    module : DinoBloom
    path : Path
        A published checkpoint, or the ``model.safetensors`` of a bundle.

    Returns
    -------
    Accounting

    Raises
    ------
    ModelError
        If the file cannot be read without running code in it, or a tensor is missing, left over or of another shape;
        nothing is loaded then.
    """
    found = read_checkpoint(path)
    own: Tensors = module.state_dict()
    taken, left_out = _renamed(found, own)
    resized = _resize_positions(taken, own, module.tokens.height, module.tokens.width)
    wanted = {name for name in own if name.startswith("body.")}
    _refuse_another_width(path, taken, own)
    shapes = [
        f"{name} {tuple(value.shape)} for {tuple(own[name].shape)}"
        for name, value in taken.items()
        if name in own and value.shape != own[name].shape
    ]
    faults = [
        _listed("missing", sorted(wanted - set(taken))),
        _listed("unexpected", sorted(set(taken) - set(own))),
        _listed("of another shape", shapes),
    ]
    if any(faults):
        raise ModelError(
            f"weights file {path} does not fit: {'; '.join(filter(None, faults))}; "
            "give a DinoBloom or DINOv2 checkpoint without registers, of the chosen variant"
        )
    module.load_state_dict(taken, strict=False)
    _log.info("%s: %d tensors loaded, %d not needed, %s interpolated", path, len(taken), len(left_out), list(resized))
    return Accounting(tuple(sorted(taken)), tuple(sorted(left_out)), tuple(resized))


def read_checkpoint(path: Path) -> Tensors:
    """Read the tensors of a ``.safetensors`` or ``.pth`` file; nothing else is unpickled.

    Raises
    ------
    ModelError
        If that is not possible, or something in it is no tensor.
    """
    state = read_tensor_file(path, "the published .pth, or a .safetensors file")
    inner = next(
        (state[key] for key in _CONTAINERS if isinstance(state, dict) and isinstance(state.get(key), dict)), state
    )
    if not isinstance(inner, dict) or not inner:
        raise ModelError(f"weights file {path} holds no named tensors; give a DinoBloom or DINOv2 checkpoint")
    others = [str(key) for key, value in inner.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ModelError(f"weights file {path} holds more than tensors ({others[0]!r}, ...); give the published file")
    return dict(inner)


def _renamed(found: Tensors, own: Tensors) -> tuple[Tensors, list[str]]:
    """Bring a file's names to ours; the second result are those that are not needed."""
    taken: Tensors = {}
    left_out = []
    of_bundle = any(name.startswith("body.") for name in found)
    for name, value in found.items():
        short = name
        while prefix := next((one for one in _PREFIXES if short.startswith(one)), ""):
            short = short.removeprefix(prefix)
        short = short.replace("_fsdp_wrapped_module.", "")
        if of_bundle:
            if short.startswith("head.") and (short not in own or own[short].shape != value.shape):
                left_out.append(name)
            else:
                taken[short] = value
        elif short.startswith(_LEFT_OUT):
            left_out.append(name)
        else:
            taken[_timm_name(short)] = value
    return taken, left_out


def _timm_name(name: str) -> str:
    # Trained in chunks, a block has two numbers, and the second one counts through.
    name = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)
    # The giant's SwiGLU.
    name = re.sub(r"\.mlp\.w12\.", ".mlp.fc1.", name)
    return "body." + re.sub(r"\.mlp\.w3\.", ".mlp.fc2.", name)


def _resize_positions(taken: Tensors, own: Tensors, height: int, width: int) -> list[str]:
    """Interpolate position embeddings to another grid, in place; return their names."""
    from timm.layers import resample_abs_pos_embed

    name = "body.pos_embed"
    given = taken.get(name)
    if given is None or given.ndim != 3 or given.shape == own[name].shape or given.shape[2] != own[name].shape[2]:
        return []
    side = round((given.shape[1] - 1) ** 0.5)
    if side < 1 or side * side != given.shape[1] - 1:
        return []  # no square grid and a class token: named as of another shape
    taken[name] = resample_abs_pos_embed(given, new_size=[height, width], old_size=[side, side], num_prefix_tokens=1)
    return [name]


def _refuse_another_width(path: Path, taken: Tensors, own: Tensors) -> None:
    given, mine = taken.get("body.cls_token"), own["body.cls_token"]
    if given is None or given.shape == mine.shape:
        return
    width = given.shape[-1] if given.ndim else 0
    hint = f"choose dinobloom:{_WIDTHS[width]}" if width in _WIDTHS else "no variant has that width"
    raise ModelError(
        f"weights file {path} is of a transformer {width} wide, and dinobloom:{_WIDTHS[mine.shape[-1]]} is "
        f"{mine.shape[-1]} wide; {hint}"
    )


def _listed(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{more})"
