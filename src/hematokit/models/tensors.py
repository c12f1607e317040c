"""Reading a file of tensors without running anything in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hematokit.errors import ModelError

__all__ = ["read_tensor_file"]


def read_tensor_file(path: Path, give: str) -> Any:
    """Read a ``.safetensors`` file, or what ``torch.save`` wrote; nothing else is unpickled.

    For plugins whose weights have a form of their own; `hematokit.models.construction.load_weights` reads timm's.

    Parameters
    ----------
    path : Path
    give : str
        What to give instead, for the message.

    Returns
    -------
    Any
        Mostly a dict of tensors, or one with such a dict inside: the caller looks.

    Raises
    ------
    ModelError
        If it cannot be read so.
    """
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's own message goes on to recommend the unsafe way.
        reason = " ".join(str(error).split())[:100]
        raise ModelError(
            f"weights file {path} cannot be read safely ({type(error).__name__}: {reason}); give {give}"
        ) from error
