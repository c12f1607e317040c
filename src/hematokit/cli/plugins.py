"""``hematokit plugins``: list, show, create and check plugins."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from hematokit.cli.common import JsonOption, echo, print_json, progress_bar
from hematokit.cli.options import describe_option, plugin_options

if TYPE_CHECKING:
    from hematokit.conformance import RuleResult
    from hematokit.plugins import PluginRegistry


def register(app: typer.Typer) -> None:
    """Add the command and its subcommands."""
    group = typer.Typer(rich_markup_mode=None)
    group.callback(invoke_without_command=True)(plugins_command)
    group.command("show")(show_command)
    group.command("new")(new_command)
    group.command("check")(check_command)
    app.add_typer(group, name="plugins")


def plugins_command(context: typer.Context, as_json: JsonOption = False) -> None:
    """List all plugins with their version and contents; for those that failed to load, the reason.

    Example: hematokit plugins --json
    """
    if context.invoked_subcommand is not None:
        return
    from hematokit.plugins import load_plugins

    registry = load_plugins()
    if as_json:
        print_json(describe(registry))
    else:
        _print(registry)


def show_command(
    name: Annotated[str, typer.Argument(help="A package, or the name of what one provides.")],
    as_json: JsonOption = False,
) -> None:
    """Show the contents of a plugin, with all options: type, limits, default, meaning.

    Example: hematokit plugins show hematonet
    """
    from hematokit.errors import PluginError
    from hematokit.plugins import load_plugins

    registry = load_plugins()
    data = describe(registry)
    packages = {info.package for info in registry.of_package(name)}
    found = {
        kind: [item for item in data[kind] if item["package"] in packages or item["name"] == name]
        for kind in registry.kinds
    }
    plugins = [item for item in data["plugins"] if item["package"] in packages]
    if not plugins and not any(found.values()):
        raise PluginError(f"no plugin and no package of one is called {name!r}; hematokit plugins lists them")
    if as_json:
        print_json({"plugins": plugins, **found})
        return
    for info in registry.of_package(name):
        if info.status != "loaded":
            echo(info.line)
    for kind, items in found.items():
        for item in items:
            _show(registry.kinds[kind].kind, item, registry)


def new_command(
    name: Annotated[str, typer.Argument(help="The package's name: hematokit-stain-jitter.")],
    kind: Annotated[str, typer.Option(help="backbone, augmenter, explainer or detector.")],
    folder: Annotated[Path, typer.Option(help="Where its folder is made.")] = Path(),
) -> None:
    """Write the skeleton of a plugin: a package that can be installed and passes its own tests.

    Example: hematokit plugins new hematokit-stain-jitter --kind augmenter
    """
    from hematokit.plugins.template import new_plugin

    made = new_plugin(name, kind, folder)
    echo(f"Wrote {made}")
    echo(f"Next: pip install --editable {made}; hematokit plugins check {made.name}")


def check_command(
    name: Annotated[
        str, typer.Argument(help="A package, or the name of a backbone, augmenter, explainer or detector.")
    ],
    assignments: Annotated[
        Optional[list[str]],  # noqa: UP045 - read at run time by the parser
        typer.Option("--set", metavar="KIND.NAME=VALUE", help="An option: detector.weights=cells.pt."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run the conformance tests of an installed plugin; exit code 1 if one fails.

    Example: hematokit plugins check hematokit-stain-jitter
    """
    from hematokit.conformance import check_plugin

    heads = dict.fromkeys(assignment.partition(".")[0] for assignment in assignments or [])
    options = {
        head: plugin_options([each for each in assignments or [] if each.partition(".")[0] == head], head)
        for head in heads
    }
    with progress_bar("testing", "rules") as progress:
        results = check_plugin(name, options, progress=progress)
    counts = {kind: sum(each.outcome == kind for each in results) for kind in _OUTCOMES}
    if as_json:
        print_json({"name": name, "counts": counts, "verdicts": [result.to_dict() for result in results]})
    else:
        _print_results(results)
        echo(", ".join(f"{count} {kind}" for kind, count in counts.items() if count))
    if counts["failed"]:
        raise typer.Exit(1)


def describe(registry: PluginRegistry) -> dict[str, Any]:
    """Return the list of plugins as JSON-serialisable values."""
    from hematokit.plugins.hookspecs import HOOKS

    provided: dict[str, Any] = {}
    for kind, specs in registry.kinds.items():
        provided[kind] = [
            {
                "name": spec.name,
                "description": spec.description,
                "package": specs.owner(spec.name).package,
                "version": specs.owner(spec.name).version,
                "options": {
                    name: asdict(option) | {"type": option.type.__name__, "choices": list(option.choices)}
                    for name, option in spec.options.items()
                },
                **(
                    {
                        "default_variant": spec.default_variant,
                        "variants": {
                            name: {
                                "model": variant.model,
                                "image_size": variant.input.size,
                                "pretrained": variant.pretrained,
                                "description": variant.description,
                            }
                            for name, variant in spec.variants.items()
                        },
                    }
                    if hasattr(spec, "variants")
                    else {}
                ),
            }
            for spec in specs
        ]
    return {"hooks": HOOKS, "plugins": [asdict(info) for info in registry.plugins], **provided}


def _print(registry: PluginRegistry) -> None:
    data = describe(registry)
    for kind in ("backbones", "augmenters", "explainers", "detectors"):
        echo(f"{kind}:" if data[kind] else f"{kind}: none")
        width = max((len(item["name"]) for item in data[kind]), default=0)
        for item in data[kind]:
            echo(f"  {item['name']:{width}}  {item['description']}  [{item['package']} {item['version']}]")
            if item.get("variants"):
                echo(f"  {'':{width}}  variants: {', '.join(item['variants'])} (default {item['default_variant']})")
    others = {info.package for info in registry.plugins if info.status == "loaded"} - {"hematokit"}
    echo(f"packages: {', '.join(['hematokit', *sorted(others)])}")
    for info in registry.plugins:
        if info.status != "loaded":
            echo(info.line)
        elif info.seconds > _SLOW:
            echo(f"slow: {info.package} {info.version} ({info.name}): {info.seconds:.1f} s at every start")


_OUTCOMES = ("passed", "warned", "skipped", "failed")
_SLOW = 2.0
"""Seconds of loading above which a plugin is pointed out."""


def _show(kind: str, item: dict[str, Any], registry: PluginRegistry) -> None:
    echo(f"{kind} {item['name']}  [{item['package']} {item['version']}]")
    echo(f"  {item['description']}")
    for name, variant in item.get("variants", {}).items():
        default = ", the default" if name == item["default_variant"] else ""
        published = ", published weights" if variant["pretrained"] else ""
        said = f": {variant['description']}" if variant["description"] else ""
        echo(f"  variant {name}: {variant['image_size']} px{published}{default}{said}")
    spec = registry.kinds[f"{kind}s"].get(item["name"])
    head = item["name"] if kind == "explainer" else kind
    for name, option in spec.options.items():
        echo(f"  --set {head}.{name}=: {option.description}; {describe_option(option)}")
    if not spec.options:
        echo("  no options")


def _print_results(results: list[RuleResult]) -> None:
    width = max((len(result.rule) for result in results), default=0)
    subject = ""
    for result in results:
        if result.subject != subject:
            subject = result.subject
            echo(subject)
        word = result.outcome.upper() if result.outcome == "failed" else result.outcome
        echo(f"  {word:7}  {result.rule:{width}}  {result.detail}")
