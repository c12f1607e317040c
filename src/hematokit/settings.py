"""Settings of commands: one pydantic model per command is the only definition of its options.

From the fields of such a model come the keyword arguments of the Python function, the lines of a YAML file, the flags
of the command line, the forms of the viewer and the reference page. The text below a field is its description; the
first paragraph is the help of its flag.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from hematokit.errors import HematokitError
from hematokit.yaml_text import Scalar, parse_yaml, read_value, typed_text

__all__ = ["Names", "PathText", "Settings", "first_paragraph", "flag_name", "is_names", "split_names"]


def split_names(value: object) -> object:
    """Return text with commas as a list of names, ``none`` as an empty list, and anything else as it is."""
    if isinstance(value, str):
        return [] if value.strip().lower() == "none" else [part.strip() for part in value.split(",") if part.strip()]
    return value


Names = Annotated[list[str], BeforeValidator(split_names)]
"""Several names: a list, or text with commas between them (``"ART,OTH"``); ``"none"`` is an empty list."""

PathText = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]
"""A path, kept as text so that settings can be written to files."""


class Settings(BaseModel):
    """Options of one command.

    Attributes
    ----------
    error : type
        Error raised for a value that does not fit.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True, use_attribute_docstrings=True)

    error: ClassVar[type[HematokitError]] = HematokitError

    @classmethod
    def combine(cls, *layers: Settings | Mapping[str, object] | None) -> Self:
        """Merge layers of settings, of which later ones win, and validate them.

        Parameters
        ----------
        *layers : Settings, mapping or None
            Of settings only those that were given count, not their defaults. Options of plugins (``..._options``)
            are merged key by key.

        Returns
        -------
        Settings

        Raises
        ------
        HematokitError
            Of the type `error`: one line that names the first setting that does not fit.
        PluginError
            If an option of a plugin does not fit its declaration.
        """
        merged: dict[str, Any] = {}
        for layer in layers:
            given = layer.model_dump(exclude_unset=True) if isinstance(layer, Settings) else layer or {}
            for key, value in given.items():
                if key.endswith("options") and isinstance(value, Mapping):
                    merged[key] = {**merged.get(key, {}), **value}
                else:
                    merged[key] = value
        try:
            return cls(**merged)
        except ValidationError as error:
            raise cls.error(cls._first_problem(error)) from error

    @classmethod
    def _first_problem(cls, error: ValidationError) -> str:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            return f"setting {name!r} does not exist; settings: {', '.join(sorted(cls.model_fields))}"
        message = str(first["msg"]).removeprefix("Value error, ")
        return f"setting {name!r} ({flag_name(name)}): {message} (given: {first['input']!r})" if name else message

    @classmethod
    def read(cls, path: str | Path) -> dict[str, Any]:
        """Read settings from a YAML file; the ``config.yaml`` of a run works too.

        Parameters
        ----------
        path : path

        Returns
        -------
        dict
            The settings given, for `combine`.

        Raises
        ------
        HematokitError
            Of the type `error`, if the file cannot be read or is not a mapping.
        """
        where = f"configuration {path}"
        try:
            data = parse_yaml(Path(path).read_text(encoding="utf-8-sig"), where, cls.error)
        except (OSError, UnicodeDecodeError) as error:
            raise cls.error(
                f"{where} cannot be read ({getattr(error, 'strerror', None) or error}); give an existing YAML file"
            ) from error
        if not isinstance(data, dict):
            raise cls.error(f"{where} has no settings; write 'name: value' lines")
        # A run's config.yaml has the settings beside the metadata of the run.
        inner = data.get("settings", data)
        return cls.typed(inner if isinstance(inner, dict) else data, where)

    @classmethod
    def typed(cls, data: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Convert scalars read with `parse_yaml` to the declared types.

        Parameters
        ----------
        data : mapping
            Text stays text where text is declared. Options of plugins stay text until the plugin is known.
        where : str
            The file, for errors.

        Returns
        -------
        dict

        Raises
        ------
        HematokitError
            Of the type `error`, if a setting is empty that must not be.
        """
        return {
            str(name): cls._typed(cls.model_fields.get(str(name)), str(name), value, where)
            for name, value in data.items()
        }

    @classmethod
    def _typed(cls, field: FieldInfo | None, name: str, value: Any, where: str) -> Any:
        if isinstance(value, Mapping):
            return {
                str(key): None if _is_null(inner) else cls._typed(None, "", inner, where)
                for key, inner in value.items()
            }
        if isinstance(value, list):
            return list(map(str, value))
        if not isinstance(value, Scalar):
            return value
        declared = {field.annotation, *get_args(field.annotation)} if field else {str}
        if _is_null(value) and type(None) in declared:
            return None
        if declared & {bool, int, float}:
            return read_value(value)
        if not value and field:
            raise cls.error(f"{where}, line {value.line}: {name} is empty; give a value (in quotes if it has a '#')")
        return str(value)

    @classmethod
    def assignments(cls, given: Sequence[str]) -> dict[str, Any]:
        """Return the settings that ``--set`` gives: ``["lr=1e-3", "backbone.drop_path_rate=0.1"]``.

        Parameters
        ----------
        given : sequence of str
            ``NAME=VALUE`` for a setting, ``PLUGIN.NAME=VALUE`` for an option of a plugin (`assign_option`).

        Returns
        -------
        dict
            For `combine`. Options of plugins stay text until the plugin is known.

        Raises
        ------
        HematokitError
            Of the type `error`, if one has no ``=`` or names no setting.
        """
        settings: dict[str, Any] = {}
        for assignment in given:
            key, equals, text = assignment.partition("=")
            key = key.strip()
            if not equals or not key:
                raise cls.error(f"--set {assignment!r} is not KEY=VALUE; {cls.set_example()}")
            value: Any = typed_text(text)
            if value == text:
                value = parse_yaml(text, f"--set {key}", cls.error) if text[:1] in ("[", "{") else Scalar(text)
            if "." in key:
                # Braces hold the options of one of several plugins.
                option = cls._typed(None, "", value, "") if isinstance(value, dict) else typed_text(text)
                cls.assign_option(settings, key, option)
            else:
                settings |= cls.typed({key.replace("-", "_"): value}, f"--set {key}")
        return settings

    @classmethod
    def assign_option(cls, settings: dict[str, Any], key: str, value: Any) -> None:
        """Put an option of a plugin, ``--set PLUGIN.NAME=VALUE``, into the settings.

        The default is for commands with a field ``<plugin>_options``.

        Raises
        ------
        HematokitError
            Of the type `error`, if the command has no such plugin.
        """
        head, _, name = key.replace("-", "_").partition(".")
        heads = cls.plugin_types()
        if head not in heads or not name:
            known = " and ".join(f"{head}.NAME" for head in heads)
            raise cls.error(f"--set {key}: {f'only {known} have a dot' if heads else 'no setting has a dot'}")
        settings.setdefault(f"{head}_options", {})[name] = value

    @classmethod
    def plugin_types(cls) -> list[str]:
        """Return the types of plugins that have options in these settings: ``["backbone", "augmenter"]``."""
        return [name.removesuffix("_options") for name in cls.model_fields if name.endswith("_options")]

    @classmethod
    def set_example(cls) -> str:
        """Return an example of ``--set`` for messages."""
        heads = cls.plugin_types()
        return f"write for example --set {heads[0]}.NAME=VALUE" if heads else "write --set NAME=VALUE"

    def command_words(self, *, exclude: Collection[str] = ()) -> list[str]:
        """Return the flags of the command line that give these settings; defaults are left out.

        Parameters
        ----------
        exclude : collection of str
            Fields to leave out.

        Returns
        -------
        list of str
            ``["--min-probability", "0.7", "--set", "detector.min_diameter_um=5"]``.
        """
        words: list[str] = []
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name in exclude or value == field.get_default(call_default_factory=True):
                continue
            if isinstance(value, Mapping):
                head = name.removesuffix("options").rstrip("_")
                words += [word for key, item in _flat(value, head) for word in ("--set", f"{key}={item}")]
            elif isinstance(value, bool):
                words.append(flag_name(name) if value else f"--no-{flag_name(name).removeprefix('--')}")
            elif isinstance(value, list) and not is_names(field):
                words += [word for item in value for word in (flag_name(name), str(item))]
            else:
                words += [flag_name(name), (",".join(value) or "none") if isinstance(value, list) else str(value)]
        return words


def flag_name(field: str) -> str:
    """Return the flag of a field on the command line, without its unit: ``--pixel-size`` for ``pixel_size_um``."""
    return "--" + field.removesuffix("_um").replace("_", "-")


def is_names(field: FieldInfo) -> bool:
    """Return whether a field is `Names`, or `Names` or None: one text with commas on the command line."""
    inner = [item for part in get_args(field.annotation) for item in getattr(part, "__metadata__", ())]
    return any(isinstance(item, BeforeValidator) and item.func is split_names for item in [*field.metadata, *inner])


def _flat(values: Mapping[str, Any], head: str) -> Iterator[tuple[str, Any]]:
    """Yield nested options as ``("detector.min_diameter_um", 5)``."""
    for key, value in values.items():
        path = f"{head}.{key}" if head else key
        if isinstance(value, Mapping):
            yield from _flat(value, path)
        else:
            yield path, value


def _is_null(value: object) -> bool:
    return isinstance(value, Scalar) and value.is_null


def first_paragraph(text: str | None) -> str:
    """Return the first paragraph of a description as one line."""
    return " ".join((text or "").strip().split("\n\n")[0].split())
