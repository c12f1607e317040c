"""``hematokit explain``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hematokit.cli.common import JsonOption, echo, keep_freed_memory, print_json, print_result, progress_bar
from hematokit.cli.options import add_command
from hematokit.errors import ExplanationError
from hematokit.settings import flag_name

if TYPE_CHECKING:
    from hematokit.settings import Settings

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    add_command(app, "explain", explain_command, *_models(), plugins=("explainer",))


def _models() -> list[type[Settings]]:
    """Return the settings models of the command; the first reads ``--set``, as it has the options of the retraining."""
    from hematokit.pipelines.settings import (
        ExplainFieldSettings,
        ExplainSettings,
        FaithfulnessSettings,
        SanitySettings,
    )

    return [SanitySettings, ExplainSettings, ExplainFieldSettings, FaithfulnessSettings]


def explain_command(
    model: Annotated[Path, typer.Argument(help="Run folder or bundle.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    given: dict[str, Any],
    more: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[IMAGES]...", help="More images after --images."),
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(help="Image files, or folders of them, of the model's patch size."),
    ] = None,
    store: Annotated[Path | None, typer.Option(help="Patch store. [default: the one trained on]")] = None,
    field: Annotated[Path | None, typer.Option(help="A whole field, whose cells are detected first.")] = None,
    sanity: Annotated[
        bool, typer.Option("--sanity", help="Check instead whether maps depend on the model; writes sanity.html.")
    ] = False,
    faithfulness: Annotated[
        bool,
        typer.Option("--faithfulness", help="Check instead whether marked pixels matter; writes faithfulness.html."),
    ] = False,
    also: Annotated[
        list[Path] | None,
        typer.Option(help="With --sanity or --faithfulness: another model in the same report."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Explain why cells were given their class; writes maps (Zarr), a table, and figures of cells and classes.

    Called again after an interruption, it continues with the cells that are not done.

    Example: hematokit explain runs/coatnet --per-class 4 --output why

    Images: hematokit explain runs/coatnet --images crops/*.png --output why

    A field: hematokit explain runs/coatnet --field field.tif --cells low-confidence --output why

    Checks of the maps: hematokit explain runs/coatnet --sanity --faithfulness --output checks

    Three models in one report: hematokit explain runs/a --also runs/b --also runs/c --sanity --output checks

    Uncertain cells: hematokit explain runs/coatnet --per-class 0 --methods grad-cam --uncertain --output why
    """
    keep_freed_memory()
    if more and not images:
        raise ExplanationError(f"unexpected {str(more[0])!r}; images are given with --images")
    if field is not None and (images or store):
        raise ExplanationError("a field was given and a store or images too; give one of --field, --store, --images")
    if sanity or faithfulness:
        if field is not None or images:
            raise ExplanationError(
                "--sanity and --faithfulness are for cells of a store; leave out --field and --images"
            )
        _check([model, *(also or [])], output, store, sanity, faithfulness, given, as_json)
        return
    if also:
        raise ExplanationError("--also is for --sanity and --faithfulness; explain one model at a time")
    from hematokit.pipelines.settings import ExplainFieldSettings, ExplainSettings

    _refuse_others(given, ExplainSettings if field is None else ExplainFieldSettings)
    with progress_bar("explain", "cells") as progress:
        if field is not None:
            from hematokit.pipelines.explain_field import explain_field

            result = explain_field(field, model, output, progress=progress, **given)
        else:
            from hematokit.pipelines.explain import explain

            paths = [*(images or []), *(more or [])] or None
            result = explain(model, output, store=store, images=paths, progress=progress, **given)
    print_result(result, as_json)


def _check(
    models: list[Path],
    output: Path,
    store: Path | None,
    sanity: bool,
    faithfulness: bool,
    given: dict[str, Any],
    as_json: bool,
) -> None:
    from hematokit.pipelines.check_explanations import CheckResult, check_faithfulness, check_sanity
    from hematokit.pipelines.settings import FaithfulnessSettings, SanitySettings
    from hematokit.reports.text import command

    checks: dict[str, tuple[Callable[..., CheckResult], type[Settings]]] = {}
    checks |= {"sanity": (check_sanity, SanitySettings)} if sanity else {}
    checks |= {"faithfulness": (check_faithfulness, FaithfulnessSettings)} if faithfulness else {}
    _refuse_others(given, *(settings for _, settings in checks.values()))
    chosen: dict[str, Settings] = {
        name: settings.combine({key: value for key, value in given.items() if key in settings.model_fields})
        for name, (_, settings) in checks.items()
    }
    # The command that repeats the report.
    words: list[object] = ["hematokit", "explain", models[0], *(["--store", store] if store is not None else [])]
    words += [word for path in models[1:] for word in ("--also", path)]
    words += [*(f"--{name}" for name in checks), "--output", output]
    seen: set[str] = set()
    for settings in chosen.values():
        words += settings.command_words(exclude=seen)
        seen |= type(settings).model_fields.keys()
    line = command(*words)
    results = {}
    for name, (check, _) in checks.items():
        with progress_bar(name, "cells") as progress:
            run = partial(check, models, output, store=store, settings=chosen[name], progress=progress, command=line)
            results[name] = run()
    if as_json:
        print_json({name: result.to_dict() for name, result in results.items()})
        return
    for text in dict.fromkeys(text for result in results.values() for text in result.lines()):
        echo(text)


def _refuse_others(given: dict[str, Any], *models: type[Settings]) -> None:
    """Refuse settings that none of these has: they would have no effect."""
    all_models = _models()
    for name in given:
        if any(name in model.model_fields for model in models):
            continue
        if name == "training":
            raise ExplanationError("--set training.NAME is for the models that --sanity trains; leave it out")
        if not any(name in model.model_fields for model in all_models):
            raise ExplanationError(
                f"setting {name!r} does not exist; options of explainers are given as --set EXPLAINER.NAME=VALUE"
            )
        raise ExplanationError(f"{flag_name(name)} has no effect here; leave it out")
