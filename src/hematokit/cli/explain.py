"""``hematokit explain``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from hematokit.cli.common import JsonOption, echo, keep_freed_memory, print_json, print_result, progress_bar
from hematokit.cli.options import (
    DetectorOption,
    DeviceOption,
    ForcePixelSizeOption,
    MinProbabilityOption,
    PixelSizeOption,
    options_help,
)
from hematokit.errors import ExplanationError, PluginError
from hematokit.yaml_text import typed_text

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("explain", epilog=options_help("explainer"))(explain_command)


def explain_command(
    model: Annotated[Path, typer.Argument(help="Run folder, or a bundle.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    more: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[IMAGES]...", help="More images after --images."),
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(help="Image files, or folders of them, of the model's patch size."),
    ] = None,
    store: Annotated[Path | None, typer.Option(help="Patch store. [default: the one trained on]")] = None,
    field: Annotated[Path | None, typer.Option(help="A whole field; its cells are found first.")] = None,
    cells: Annotated[
        list[str] | None,
        typer.Option(
            help="Ids of cells, with commas between, or a text file of one a line; for a field: all, low-confidence."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Cells of train, val, test, or all.")] = "test",
    per_class: Annotated[int, typer.Option(min=0, help="Cells of each class, drawn at random; 0: all.")] = 4,
    methods: Annotated[
        str, typer.Option(help="Explainers, with commas between; hematokit plugins lists them.")
    ] = "grad-cam,smoothgrad",
    target: Annotated[str, typer.Option(help="Class explained: predicted, true, or a code.")] = "predicted",
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="METHOD.NAME=VALUE",
            help="An option of a method: smoothgrad.samples=50; with --sanity also training.NAME.",
        ),
    ] = None,
    doubt: Annotated[
        bool, typer.Option("--doubt", help="Sheets of misclassified and low-confidence cells: both leading classes.")
    ] = False,
    sanity: Annotated[
        bool, typer.Option("--sanity", help="Instead: do maps depend on the model? Writes sanity.html.")
    ] = False,
    faithfulness: Annotated[
        bool, typer.Option("--faithfulness", help="Instead: do maps tell what counts? Writes faithfulness.html.")
    ] = False,
    retrain: Annotated[
        bool, typer.Option("--retrain/--no-retrain", help="With --sanity: also train on permuted labels.")
    ] = True,
    also: Annotated[
        list[Path] | None,
        typer.Option(help="With --sanity or --faithfulness: another model beside it in the report."),
    ] = None,
    train_per_class: Annotated[
        int, typer.Option(min=0, help="With --sanity: cells of each class to retrain on; 0: all.")
    ] = 100,
    min_probability: MinProbabilityOption = 0.5,
    pictures: Annotated[bool, typer.Option("--pictures/--no-pictures", help="A picture of each cell.")] = True,
    detector: DetectorOption = "nuclei",
    pixel_size: PixelSizeOption = None,
    force_pixel_size: ForcePixelSizeOption = False,
    model_pixel_size: Annotated[
        float | None,
        typer.Option(help="With --field: micrometres per pixel of the images the model was trained on."),
    ] = None,
    device: DeviceOption = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Cells at a time.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw of cells and of the noise.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Show why cells were given their class; writes maps (Zarr), a table, pictures and a figure of classes.

    Called again after a stop, it goes on with the cells that are not done.

    Example: hematokit explain runs/coatnet --per-class 4 --output why

    Images: hematokit explain runs/coatnet --images crops/*.png --output why

    A field: hematokit explain runs/coatnet --field field.tif --cells low-confidence --output why

    Can maps be believed: hematokit explain runs/coatnet --sanity --faithfulness --output checks

    Three models in one report: hematokit explain runs/a --also runs/b --also runs/c --sanity --output checks

    Doubt: hematokit explain runs/coatnet --split test --per-class 0 --methods grad-cam --doubt --output doubt
    """
    keep_freed_memory()
    if more and not images:
        raise ExplanationError(f"unexpected {str(more[0])!r}; images are given with --images")
    if field is not None and (images or store):
        raise ExplanationError("a field was given and a store or images too; give one of --field, --store, --images")
    ids = _read_ids(cells) if cells else None
    if sanity or faithfulness:
        if field is not None or images or doubt:
            raise ExplanationError("--sanity and --faithfulness are for cells of a store; leave out the other options")
        from hematokit.training.settings import parse_assignments

        of_training = [given for given in assignments or [] if given.startswith("training.")]
        training = parse_assignments([given.removeprefix("training.") for given in of_training])
        options = _explainer_options([given for given in assignments or [] if given not in of_training])
        if training and not (sanity and retrain):
            raise ExplanationError("--set training.NAME is for the models that --sanity trains; leave it out")
        _check(
            [model, *(also or [])],
            store,
            output,
            _names(methods),
            sanity=sanity,
            faithfulness=faithfulness,
            retrain=retrain,
            training={"training": training, "train_per_class": train_per_class or None},
            as_json=as_json,
            typed=[
                *(word for assignment in assignments or [] for word in ("--set", assignment)),
                *(["--cells", ",".join(ids)] if ids else ["--split", split, "--per-class", per_class]),
                *(["--train-per-class", train_per_class] if sanity and retrain else []),
                *([] if retrain else ["--no-retrain"]),
                *("--target", target, "--seed", seed),
            ],
            options=options,
            cell_ids=ids,
            split=split,
            per_class=per_class or None,
            target=target,
            seed=seed,
            device=device,
            batch_size=batch_size,
        )
        return
    if also:
        raise ExplanationError("--also is for --sanity and --faithfulness; explain one model at a time")
    common: dict[str, Any] = {
        "methods": _names(methods),
        "options": _explainer_options(assignments or []),
        "target": target,
        "doubt": doubt,
        "min_probability": min_probability,
        "pictures": pictures,
        "device": device,
        "batch_size": batch_size,
        "seed": seed,
    }
    with progress_bar("explain", "cells") as progress:
        if field is not None:
            from hematokit.pipelines.explain_field import explain_field

            result = explain_field(
                model,
                field,
                output,
                cells=ids or "all",
                detector=detector,
                pixel_size_um=pixel_size,
                force_pixel_size=force_pixel_size,
                model_pixel_size_um=model_pixel_size,
                progress=progress,
                **common,
            )
        else:
            from hematokit.pipelines.explain import explain

            result = explain(
                model,
                output,
                store=store,
                images=[*(images or []), *(more or [])] or None,
                cells=ids,
                split=split,
                per_class=per_class or None,
                progress=progress,
                **common,
            )
    print_result(result, as_json)


def _check(
    models: list[Path],
    store: Path | None,
    output: Path,
    methods: list[str],
    *,
    sanity: bool,
    faithfulness: bool,
    retrain: bool,
    training: dict[str, Any],
    as_json: bool,
    typed: list[object],
    **common: Any,
) -> None:
    from hematokit.pipelines.check_explanations import check_faithfulness, check_sanity
    from hematokit.reports.text import command

    results = {}
    # For whoever wants to make the report again.
    words: list[object] = ["hematokit", "explain", models[0], *(["--store", store] if store is not None else [])]
    words += [word for path in models[1:] for word in ("--also", path)]
    words += [*(["--sanity"] if sanity else []), *(["--faithfulness"] if faithfulness else [])]
    words += ["--methods", ",".join(methods), "--output", output, *typed]
    common["command"] = command(*words)
    if sanity:
        with progress_bar("sanity", "cells") as progress:
            results["sanity"] = check_sanity(
                models, store, methods, output, labels=retrain, progress=progress, **training, **common
            )
    if faithfulness:
        with progress_bar("faithfulness", "cells") as progress:
            results["faithfulness"] = check_faithfulness(models, store, methods, output, progress=progress, **common)
    if as_json:
        print_json({name: result.to_dict() for name, result in results.items()})
        return
    for line in dict.fromkeys(line for result in results.values() for line in result.lines()):
        echo(line)


def _explainer_options(assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Turn ``["smoothgrad.samples=25"]`` into ``{"smoothgrad": {"samples": "25"}}``.

    Raises
    ------
    PluginError
        If one is not ``METHOD.NAME=VALUE``.
    """
    options: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        # The last dot: names of methods may have dots, those of options have none.
        method, dot, name = key.strip().rpartition(".")
        if not equals or not dot or not method or not name:
            raise PluginError(f"--set {assignment!r} is not METHOD.NAME=VALUE, as in smoothgrad.samples=25")
        options.setdefault(method, {})[name.replace("-", "_")] = typed_text(text)
    return options


def _names(text: str) -> list[str]:
    """Split names at commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _read_ids(given: Sequence[str]) -> list[str]:
    """Ids of cells: each entry is a text file with one a line, or ids with commas between.

    Raises
    ------
    ExplanationError
        If there is none, or the file is not UTF-8 text.
    """
    ids: list[str] = []
    for entry in given:
        path = Path(entry)
        if path.suffix.lower() in {".txt", ".csv"} and path.is_file():
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
            except UnicodeDecodeError as error:
                raise ExplanationError(f"{path} is not UTF-8 text; give a file with one cell id a line") from error
            ids += [line.strip() for line in lines if line.strip()]
        else:
            ids += _names(entry)
    if not ids:
        raise ExplanationError("no cell was named; give ids with --cells ID,ID")
    return ids
