"""Pages of the reference that are generated from the program, so that they are always up to date.

A line ``<!-- generated: NAME -->`` in a page is replaced, when Sphinx reads the page, by what the function of that
name returns. The functions need hematokit only, not Sphinx, so that tests can call them.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

__all__ = [
    "GENERATORS",
    "cli_reference",
    "commands",
    "expand",
    "hooks_reference",
    "overrides_source",
    "plugin_reference",
    "settings_models",
    "settings_reference",
    "setup",
]

MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
WIDTH = 96


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command as typed (``"hematokit store info"``) and its parser, groups before their members."""
    import typer

    from hematokit.cli.main import build_app

    def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        yield name, command
        for key, member in getattr(command, "commands", {}).items():
            yield from walk(f"{name} {key}", member)

    yield from walk("hematokit", typer.main.get_command(build_app()))


def cli_reference() -> str:
    """Return the help text of each command under a heading."""
    sections = []
    for name, command in commands():
        context = command.context_class(command, info_name=name, terminal_width=WIDTH, max_content_width=WIDTH)
        sections.append(f"## {name}\n\n```text\n{command.get_help(context).rstrip()}\n```\n")
    return "\n".join(sections)


def settings_models() -> list[type[Any]]:
    """Return all settings models, that of a training first."""
    from hematokit.pipelines import settings
    from hematokit.store.settings import ImportSettings
    from hematokit.training.settings import TrainSettings

    return [ImportSettings, TrainSettings, *(getattr(settings, name) for name in settings.__all__)]


def settings_reference() -> str:
    """Return all fields of the settings models: type, limits, default, option of the command, meaning."""
    from pydantic_core import PydanticUndefined

    names = [model.__name__ for model in settings_models()]
    sections = [", ".join(f"[{name}](#{name.lower()})" for name in names) + ".\n"]
    for model in settings_models():
        rows = []
        for name, field in model.model_fields.items():
            plugin = name.removesuffix("options").strip("_")
            if name.endswith("options"):
                typed = f"`--set {plugin or 'EXPLAINER'}.NAME=`"
            elif field.annotation == dict[str, Any]:
                typed = f"`--set {name}.NAME=`"
            elif name == "store" and field.is_required():
                typed = "`STORE`"
            else:
                typed = f"`--{name.removesuffix('_um').replace('_', '-')}`"
            if field.is_required():
                default = "required"
            else:
                value = field.get_default(call_default_factory=True)
                default = "" if value in (None, {}, [], PydanticUndefined) else f"`{_yaml(value)}`"
            rows.append((f"`{name}`", _type(field), default, typed, " ".join((field.description or "").split())))
        head = f"## {model.__name__}\n\n{(model.__doc__ or '').strip().splitlines()[0]}\n\n".replace("``", "`")
        sections.append(head + _table(("setting", "type", "default", "on the command line", "meaning"), rows))
    return "\n".join(sections)


def overrides_source() -> str:
    """Return the source of ``hematokit/overrides.py``; ``make overrides`` writes it."""
    import typing

    classes = []
    for model in settings_models():
        hints = typing.get_type_hints(model, include_extras=True)
        name = model.__name__.removesuffix("Settings") + "Overrides"
        lines = [f"class {name}(TypedDict, total=False):", f'    """Fields of `{model.__name__}`."""', ""]
        # Store and output of a training are parameters of their own.
        lines += [
            f"    {key}: {_source(hints[key])}" for key, field in model.model_fields.items() if not field.is_required()
        ]
        classes.append("\n".join(lines))
    head = '"""Keyword arguments of the commands, from which editors complete names. Made by ``make overrides``."""'
    imports = """from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict"""
    return "\n\n".join([head, imports, ""]) + "\n" + "\n\n\n".join(classes) + "\n"


def write_overrides(file: str) -> None:
    """Write the source of ``hematokit/overrides.py``, also where the present file lacks a class."""
    import sys
    import types

    class StandIn(types.ModuleType):
        def __getattr__(self, name: str) -> type[Any]:
            if name.endswith("Overrides"):
                return dict
            raise AttributeError(name)

    sys.modules["hematokit.overrides"] = StandIn("hematokit.overrides")
    source = overrides_source()
    Path(file).write_text(source, encoding="utf-8")


def _source(annotation: Any) -> str:
    """Return an annotation as source text, with all types that the field's validator accepts."""
    from hematokit.settings import Names, PathText

    if annotation == Names:
        return "str | Sequence[str]"
    if annotation == PathText:
        return "str | Path"
    if hasattr(annotation, "__metadata__"):
        return _source(annotation.__origin__)
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return f"Literal[{', '.join(map(_quoted, arguments))}]"
    if type(None) in arguments:
        return " | ".join([*(_source(part) for part in arguments if part is not type(None)), "None"])
    if get_origin(annotation) in (dict, list):
        name = {dict: "Mapping", list: "Sequence"}[get_origin(annotation)]
        return f"{name}[{', '.join(map(_source, arguments))}]"
    return "Any" if annotation is Any else str(annotation.__name__)


def _quoted(text: str) -> str:
    return f'"{text}"'


def plugin_reference() -> str:
    """Return the built-in plugins with variants and options."""
    from hematokit.plugins import load_plugins

    registry = load_plugins()
    parts = ["## Backbones\n"]
    for backbone in registry.backbones:
        default = f" The default variant is `{backbone.default_variant}`." if backbone.default_variant else ""
        parts.append(f"### {backbone.name}\n\n{backbone.description}.{default}\n")
        if backbone.variants:
            rows = []
            for name, item in backbone.variants.items():
                published = "yes" if item.pretrained else "no"
                rows.append((f"`{name}`", f"`{item.model}`", f"{item.input.size} px", published, item.description))
            parts.append(_table(("variant", "model", "input", "published weights", ""), rows))
        parts.append(_options("backbone", backbone.options))
    parts.append("## Augmenters\n")
    for augmenter in registry.augmenters:
        parts.append(f"### {augmenter.name}\n\n{augmenter.description}.\n")
        parts.append(_options("augmenter", augmenter.options))
    return "\n".join(part for part in parts if part)


def hooks_reference() -> str:
    """Return each hook with its spec and conformance rules, then the classes that specs use."""
    from hematokit.conformance.checking import RULES
    from hematokit.conformance.rules import rule_description, rule_name
    from hematokit.plugins import hookspecs, specs

    def rules(kind: str) -> str:
        rows = [(f"`{rule_name(rule)}`", _markdown(rule_description(rule))) for rule in RULES[kind]]
        return _table(("rule", "what it asks for"), rows)

    parts = [f"Version of the hooks: **{hookspecs.HOOKS}** (`hematokit.plugins.hookspecs.HOOKS`).\n"]
    for name, hook in vars(hookspecs).items():
        if not hasattr(hook, f"{hookspecs.PROJECT}_spec"):
            continue
        parts.append(f"## {name}\n\n```python\n@hematokit.hookimpl\ndef {name}{_signature(hook)}:\n```\n")
        parts.append(_markdown(inspect.getdoc(hook)) + "\n")
        found = re.search(r"\[(\w+)Spec\]", str(hook.__annotations__))
        if found:
            parts.append(f"### {found[1]}Spec\n\n{_fields(getattr(specs, f'{found[1]}Spec'))}")
            kind = found[1].lower()
            parts.append(f"### Rules for {kind}s\n\n{rules(kind)}")
    parts.append("## What specs are made of\n")
    for part in (specs.Option, specs.Variant, specs.InputSpec):
        parts.append(f"### {part.__name__}\n\n{_fields(part)}")
    parts.append(f"## Rules for packages\n\n{rules('package')}")
    return "\n".join(parts)


def _signature(function: Any) -> str:
    return str(inspect.signature(function)).replace("'", "").replace(" -> None", "")


def _markdown(text: str | None) -> str:
    return (text or "").replace("``", "`")


def _fields(cls: Any) -> str:
    """Return the fields of a dataclass: type, default, and the description in its docstring or that of its base."""
    notes: dict[str, tuple[str, str]] = {}
    for base in reversed(cls.__mro__):
        notes |= _documented(base.__doc__ or "")
    rows = []
    for field in dataclasses.fields(cls):
        default = "needed" if field.default is field.default_factory is dataclasses.MISSING else ""
        if field.default is not dataclasses.MISSING and field.default not in (None, ""):
            default = f"`{_yaml(field.default)}`"
        own, shared = notes.get(field.name, ("", ""))
        kind = str(field.type).replace("torch.nn.", "")
        rows.append((f"`{field.name}`", own or shared, f"`{kind}`", default))
    return f"{_markdown(inspect.getdoc(cls)).split('Attributes')[0].strip()}\n\n" + _table(
        ("field", "meaning", "type", "default"), rows
    )


GENERATORS: dict[str, Callable[[], str]] = {
    "cli": cli_reference,
    "hooks": hooks_reference,
    "settings": settings_reference,
    "plugins": plugin_reference,
}


def expand(text: str) -> str:
    """Return a page with its marks replaced."""
    return MARK.sub(lambda found: GENERATORS[found.group(1)](), text)


def _options(kind: str, options: Any) -> str:
    rows = []
    for name, option in options.items():
        bounds = [f"{value:g}" for value in (option.minimum, option.maximum) if value is not None]
        limits = ", ".join(map(str, option.choices)) if option.choices else option.path or " to ".join(bounds)
        default = "" if option.default is None else f"`{_yaml(option.default)}`"
        rows.append((f"`--set {kind}.{name}=`", option.type.__name__, limits, default, option.description))
    return _table(("option", "type", "limits", "default", "meaning"), rows) if rows else ""


def _documented(docstring: str) -> dict[str, tuple[str, str]]:
    """Return the descriptions in a numpydoc ``Attributes`` section: (of the name, shared by its line)."""
    _, _, section = docstring.partition("Attributes\n")
    found: dict[str, tuple[str, str]] = {}
    names: list[str] = []
    for line in inspect.cleandoc("." + section).splitlines()[1:]:
        text = line.strip().replace("``", "`")
        head = re.fullmatch(r"([a-z_0-9, ]+) : .+", line)
        if head:
            names = [name.strip() for name in head.group(1).split(",")]
        elif text:
            for name in names:
                said = f"{''.join(found.get(name, ()))} {text}".strip()
                found[name] = (said, "") if len(names) == 1 else ("", said)
    return found


def _type(field: Any) -> str:
    limits = []
    for item in field.metadata:
        for attribute, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
            value = getattr(item, attribute, None)
            if value is not None:
                limits.append(f"{sign} {value}")
    return " ".join(filter(None, [_spell(field.annotation), f"({', '.join(limits)})" if limits else ""]))


def _spell(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(annotation))
    parts = [part for part in get_args(annotation) if part is not type(None)]
    if type(None) in get_args(annotation) and len(parts) == 1:
        return f"{_spell(parts[0])} or nothing"
    if get_origin(annotation) is list:
        return f"list of {_spell(parts[0])}"
    if get_origin(annotation) is dict:
        return "mapping"
    words = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    return words.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def setup(app: Any) -> dict[str, bool]:
    """Let Sphinx call `expand` on every page it reads."""

    def replace(app: Any, name: str, content: list[str]) -> None:
        content[0] = expand(content[0])

    app.connect("source-read", replace)
    # A page made from the program is out of date whenever the program may be.
    pages = sorted((Path(app.srcdir) / "reference").glob("*.md"))
    generated = [f"reference/{page.stem}" for page in pages if MARK.search(page.read_text("utf-8"))]
    app.connect("env-get-outdated", lambda app, env, added, changed, removed: generated)
    return {"parallel_read_safe": True}
