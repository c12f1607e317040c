"""Options that several commands share, and the options of plugins as text for ``--help``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hematokit.errors import PluginError
from hematokit.plugins import load_plugins
from hematokit.yaml_text import typed_text

if TYPE_CHECKING:
    from hematokit.plugins.specs import Option

__all__ = [
    "BatchSizeOption",
    "CodecOption",
    "DetectorOption",
    "DeviceOption",
    "FieldsArgument",
    "ForcePixelSizeOption",
    "ModelPixelSizeOption",
    "PatchSizeOption",
    "PixelSizeOption",
    "RuntimeOption",
    "SchedulerOption",
    "SetOption",
    "SmearsOption",
    "MinProbabilityOption",
    "describe_option",
    "options_help",
    "plugin_options",
]

FieldsArgument = Annotated[
    list[Path],
    typer.Argument(metavar="FIELDS...", help="Images of fields (TIFF, OME-TIFF, OME-Zarr, PNG, JPEG), or folders."),
]
DetectorOption = Annotated[str, typer.Option(help="Detector; hematokit plugins lists them.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="detector.NAME=VALUE", help="An option of the detector."),
]
PixelSizeOption = Annotated[
    float | None,
    typer.Option(help="Micrometres per pixel, for fields whose file does not say."),
]
ForcePixelSizeOption = Annotated[
    bool, typer.Option("--force-pixel-size", help="Take --pixel-size even where the file says otherwise.")
]
SmearsOption = Annotated[
    Path | None,
    typer.Option(help="CSV that maps files to smear and patient: columns file, smear_id, patient_id."),
]
SchedulerOption = Annotated[str, typer.Option(help="local, or the address of a Dask scheduler: tcp://HOST:8786.")]
RuntimeOption = Annotated[str, typer.Option(help="auto, torch, onnxruntime or openvino.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")]
BatchSizeOption = Annotated[int, typer.Option(min=1, help="Cells classified at a time.")]
ModelPixelSizeOption = Annotated[
    float | None,
    typer.Option(help="Micrometres per pixel of the images the model was trained on, if it does not say."),
]
MinProbabilityOption = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Probability below which a cell counts as low-confidence.")
]
PatchSizeOption = Annotated[int | None, typer.Option(help="Side of a new store's patches in px [default: 250].")]
CodecOption = Annotated[
    str | None, typer.Option(help="raw (faster) or zstd (about a fifth smaller), for a new store [default: raw].")
]

_TYPES = {int: "whole number", float: "number", bool: "true or false", str: "text"}
_PATHS = {
    "file": "a file that exists",
    "folder": "a folder that exists",
    "existing": "a file or folder that exists",
    "any": "a path",
}


def describe_option(option: Option) -> str:
    """Return type, limits and default of an option as text: ``number, 0 to 0.5, default 0.1``."""
    if option.choices:
        parts = [f"one of {' | '.join(map(str, option.choices))}"]
    elif option.path is not None:
        parts = [_PATHS[option.path]]
    else:
        parts = [_TYPES.get(option.type, option.type.__name__)]
    low, high = option.minimum, option.maximum
    if low is not None and high is not None:
        parts.append(f"{low:g} to {high:g}")
    elif low is not None:
        parts.append(f"{low:g} or more")
    elif high is not None:
        parts.append(f"up to {high:g}")
    if option.default is not None:
        default = str(option.default).lower() if option.type is bool else str(option.default)
        parts.append(f"default {default or 'empty'}")
    return ", ".join(parts)


def options_help(*kinds: str) -> str:
    """Return the end of a command's help: every option of the plugins of some kinds, by its name for ``--set``.

    Parameters
    ----------
    *kinds : str
        ``"backbone"``, ``"augmenter"``, ``"explainer"``, ``"detector"``. Options of explainers begin with the
        explainer's name, those of the others with the kind.
    """
    registry = load_plugins()
    # Options that several plugins share, as timm's families do, are listed once.
    shared: dict[tuple[str, str], list[str]] = {}
    for kind in kinds:
        for spec in registry.kinds[f"{kind}s"]:
            for name, option in spec.options.items():
                head = spec.name if kind == "explainer" else kind
                line = f"{option.description}; {describe_option(option)}"
                shared.setdefault((f"{head}.{name}", line), []).append(spec.name)
    if not shared:
        return ""
    lines = ["\b", "Options of plugins, for --set:"]
    for (key, line), owners in shared.items():
        of = "" if key.split(".")[0] in owners else f" ({', '.join(owners)})"
        lines.append(f"  {key}{of}: {line}")
    return "\n".join(lines)


def plugin_options(assignments: Sequence[str], kind: str) -> dict[str, Any]:
    """Return the options of a plugin from ``--set``: ``{"min_diameter_um": "5"}`` for ``detector.min_diameter_um=5``.

    Parameters
    ----------
    assignments : sequence of str
        The values of ``--set``.
    kind : str
        The type of plugin whose options may be given: ``"detector"``.

    Returns
    -------
    dict of str to str
        Text by name; the option's declared type decides its value later.

    Raises
    ------
    PluginError
        If one is not ``KIND.NAME=VALUE``.
    """
    options: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        head, dot, name = key.strip().replace("-", "_").partition(".")
        if not equals or head != kind or not dot or not name:
            raise PluginError(f"--set {assignment!r} is not {kind}.NAME=VALUE; 'hematokit plugins' lists the options")
        options[name] = typed_text(text)
    return options
