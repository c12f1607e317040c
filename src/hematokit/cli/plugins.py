"""``hematokit plugins``: what is installed, what it provides, and what failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from hematokit.cli.common import JsonOption, echo, print_json

if TYPE_CHECKING:
    from hematokit.registry import PluginRegistry, Registry


def register(app: typer.Typer) -> None:
    """Attach the verb."""

    @app.command("plugins")
    def plugins(as_json: JsonOption = False) -> None:
        """List every plugin: what it provides, its version, and those that failed to load with the reason.

        Example: hematokit plugins --json
        """
        from hematokit.registry import load_plugins

        registry = load_plugins()
        if as_json:
            print_json(describe(registry))
        else:
            _print(registry)


def describe(registry: PluginRegistry) -> dict[str, Any]:
    """Return the listing as plain data."""
    kinds: dict[str, Registry[Any]] = {
        "backbones": registry.backbones,
        "augmenters": registry.augmenters,
        "explainers": registry.explainers,
        "detectors": registry.detectors,
    }
    provided: dict[str, Any] = {}
    for kind, specs in kinds.items():
        provided[kind] = [
            {
                "name": spec.name,
                "description": spec.description,
                "package": specs.owner(spec.name).package,
                "version": specs.owner(spec.name).version,
                "options": {
                    name: {"type": option.type.__name__, "default": option.default, "description": option.description}
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
    plugins = [
        {
            "name": info.name,
            "package": info.package,
            "version": info.version,
            "status": info.status,
            "reason": info.reason,
            "provides": info.provides,
        }
        for info in registry.plugins
    ]
    return {"plugins": plugins, **provided}


def _print(registry: PluginRegistry) -> None:
    data = describe(registry)
    for kind in ("backbones", "augmenters", "explainers", "detectors"):
        echo(f"{kind}:" if data[kind] else f"{kind}: none")
        width = max((len(item["name"]) for item in data[kind]), default=0)
        for item in data[kind]:
            echo(f"  {item['name']:{width}}  {item['description']}  [{item['package']} {item['version']}]")
            if item.get("variants"):
                echo(f"  {'':{width}}  variants: {', '.join(item['variants'])} (default {item['default_variant']})")
    troubled = [item for item in data["plugins"] if item["status"] != "loaded"]
    strangers = {item["package"] for item in data["plugins"] if item["status"] == "loaded"} - {"hematokit"}
    echo(f"packages: hematokit{''.join(', ' + name for name in sorted(strangers))}")
    for item in troubled:
        echo(f"{item['status']}: {item['package']} {item['version']} ({item['name']}): {item['reason']}")
