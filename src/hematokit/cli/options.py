"""Command-line options from settings models, and the options of plugins as text for ``--help``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from hematokit.errors import PluginError
from hematokit.plugins import load_plugins
from hematokit.settings import first_paragraph, flag_name, is_names
from hematokit.yaml_text import typed_text

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from hematokit.plugins.specs import Option
    from hematokit.settings import Settings

__all__ = [
    "DetectorOption",
    "DeviceOption",
    "InputsArgument",
    "ModelPixelSizeOption",
    "RuntimeOption",
    "SetOption",
    "add_command",
    "combine_given",
    "describe_option",
    "options_help",
    "plugin_options",
]

InputsArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="FIELDS...", help="Images of fields (TIFF, OME-TIFF, OME-Zarr, PNG, JPEG), or folders of them."
    ),
]

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="detector.NAME=VALUE", help="An option of the detector."),
]
ModelPixelSizeOption = Annotated[
    float | None,
    typer.Option(help="Micrometres per pixel of the model's training images, where it does not state it."),
]
RuntimeOption = Annotated[str, typer.Option(help="auto, torch, onnxruntime or openvino.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")]
DetectorOption = Annotated[str, typer.Option(help="Detector; hematokit plugins lists them.")]


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
    """Return the end of the help of a command: the options of plugins of some types, by their names for ``--set``.

    Parameters
    ----------
    *kinds : str
        ``"backbone"``, ``"augmenter"``, ``"explainer"``, ``"detector"``. Options of explainers begin with the
        explainer's name, those of the others with the type.
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


# --- options from settings --------------------------------------------------------------------------------------------


def add_command(
    app: typer.Typer, name: str, function: Callable[..., None], *models: type[Settings], plugins: Sequence[str] = ()
) -> None:
    """Add a command whose options are the parameters of a function and the fields of settings models.

    Parameters
    ----------
    app : typer.Typer
    name : str
        The command's name.
    function : callable
        Called with its own parameters and with ``given``, a dict of the settings that the user gave: those of the file
        ``--config``, then those of ``--set``, then flags; later ones take precedence. Its docstring is the help.
    *models : type
        Settings models. A field ``pixel_size_um`` becomes the flag ``--pixel-size``, a field that is true or false
        ``--name`` or, where the default is true, ``--name/--no-name``. Options of plugins are given with ``--set``.
    plugins : sequence of str
        Types of plugins whose options the help lists, as for `options_help`.
    """
    fields = {key: field for model in reversed(models) for key, field in model.model_fields.items()}
    signature = inspect.signature(function, eval_str=True)
    own = [parameter for key, parameter in signature.parameters.items() if key != "given"]
    # A field that is a parameter of the function, as the store of a training, gets no second option.
    # Options of plugins are given with --set.
    flags = {
        key: _flag(key, field)
        for key, field in fields.items()
        if key not in signature.parameters and get_origin(field.annotation) is not dict
    }

    def command(**values: Any) -> None:
        config, assigned = values.pop("config"), values.pop("assignments") or []
        given = combine_given(models, config, assigned, {key: values.pop(key) for key in flags})
        function(**values, given=given)

    parameters = [
        *own,
        *flags.values(),
        _keyword("config", Annotated[Path | None, typer.Option(help="YAML file of settings.")]),
        _keyword(
            "assignments",
            Annotated[
                list[str] | None,
                typer.Option(
                    "--set", metavar="NAME=VALUE", help="A setting; PLUGIN.NAME=VALUE for an option of a plugin."
                ),
            ],
        ),
    ]
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    # --json comes last, as everywhere.
    parameters.sort(key=lambda parameter: parameter.name == "as_json")
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = function.__doc__
    app.command(name, epilog=options_help(*plugins) if plugins else None)(command)


def combine_given(
    models: Sequence[type[Settings]], config: Path | None, assignments: Sequence[str], flags: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings that the user gave, in a file, with ``--set`` and as flags; later ones take precedence."""
    read = models[0].read(config) if config is not None else {}
    typed: dict[str, Any] = models[0].assignments(assignments)
    given = dict(read)
    for layer in (typed, {key: value for key, value in flags.items() if value is not None}):
        for key, value in layer.items():
            given[key] = {**given.get(key, {}), **value} if isinstance(value, dict) else value
    return given


def _flag(name: str, field: FieldInfo) -> inspect.Parameter:
    """Return the option of a settings field."""
    annotation: Any = field.annotation
    parts = [part for part in get_args(annotation) if part is not type(None)]
    if type(None) in get_args(annotation) and len(parts) == 1:
        annotation = parts[0]
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    default = field.get_default(call_default_factory=True)
    shown = ",".join(map(str, default)) if isinstance(default, list) else default
    help_text = first_paragraph(field.description).rstrip(".") + "."
    help_text += "" if shown in (None, False, True, "") else f" [default: {shown}]"
    flag = flag_name(name)
    if get_origin(annotation) is list:
        # Names are one text with commas; anything else is repeated.
        annotation = str if is_names(field) else list[str]
    if annotation is bool:
        flag = f"{flag}/--no-{flag.removeprefix('--')}" if default is True else flag
    metavar = None
    if get_origin(annotation) is Literal:
        # The settings model checks the choice, so that the message is that of a file or of Python.
        annotation, metavar = str, f"<{'|'.join(get_args(annotation))}>"
    return _keyword(name, Annotated[annotation | None, typer.Option(flag, help=help_text, metavar=metavar)])


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
