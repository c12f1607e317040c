"""Which device to compute on."""

from __future__ import annotations

import torch

from hematokit.errors import ModelError

__all__ = ["describe_device", "resolve_device"]


def resolve_device(name: str = "auto") -> torch.device:
    """Turn a user's word into a device.

    Parameters
    ----------
    name : str
        ``"auto"`` (a GPU where there is one, else the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.

    Raises
    ------
    ModelError
        If the device does not exist here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ModelError(f"device {name!r}: no usable NVIDIA GPU here; use --device cpu or auto")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"device {name!r} is not available here ({str(error).splitlines()[0]}); use auto or cpu"
        ) from None
    return device


def describe_device(device: torch.device) -> str:
    """Name a device for people: ``"cpu (2 threads)"``, ``"cuda (NVIDIA H100)"``."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        return f"cpu ({torch.get_num_threads()} threads)"
    return str(device)
