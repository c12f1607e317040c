"""The files of the checks of explanations: an HTML page, JSON and tables."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from hematokit.explanation.checks.data_randomisation import LEAST_FIT, SMALL_TRAINING
from hematokit.explanation.checks.faithfulness import BASELINES, CENTRED
from hematokit.explanation.checks.localisation import REGIONS
from hematokit.explanation.checks.sanity import HALF, LEAST_CHANGE, REPEATED
from hematokit.reports import check_figures
from hematokit.reports.rendering import data_url, templates, to_png, to_svg

if TYPE_CHECKING:
    from hematokit.explanation.checks.data_randomisation import DataRandomisation, RetrainedModels
    from hematokit.explanation.checks.faithfulness import Faithfulness
    from hematokit.explanation.checks.localisation import Localisation
    from hematokit.explanation.checks.sanity import ParameterRandomisation, Sensitivity
    from hematokit.explanation.checks.similarity import Estimate

__all__ = [
    "Documents",
    "ExampleCells",
    "ModelFaithfulness",
    "ModelSanity",
    "faithfulness_documents",
    "sanity_documents",
]

DOCUMENT_VERSION: Final = 1


@dataclass(frozen=True)
class ExampleCells:
    """Cells whose maps are shown.

    Attributes
    ----------
    pictures : ndarray of float32, shape (k, S, S, 3)
        As the network gets them, from 0 to 1.
    codes : list of str
        Class explained for each of them.
    """

    pictures: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 1, 1, 3), np.float32))
    codes: list[str] = field(default_factory=list)


@dataclass
class ModelSanity:
    """The sanity checks of one model.

    Attributes
    ----------
    name, backbone : str
        Folder of the run, and its backbone.
    cells : int
        How many it was checked on.
    parameters, labels : dict
        Results of the parameter and of the data randomisation, by method.
    impossible : dict of str to str
        Why a method could not be run on this model.
    retrained : RetrainedModels or None
        The models of the data randomisation.
    examples, label_examples : ExampleCells
        Of the parameter and of the data randomisation.
    """

    name: str
    backbone: str
    cells: int
    parameters: dict[str, ParameterRandomisation] = field(default_factory=dict)
    labels: dict[str, DataRandomisation] = field(default_factory=dict)
    impossible: dict[str, str] = field(default_factory=dict)
    retrained: RetrainedModels | None = None
    examples: ExampleCells = field(default_factory=ExampleCells)
    label_examples: ExampleCells = field(default_factory=ExampleCells)


@dataclass(frozen=True)
class ModelFaithfulness:
    """Faithfulness and localisation of one model's maps.

    Attributes
    ----------
    name, backbone : str
        Folder of the run, and its backbone.
    cells : int
        How many it was checked on.
    methods : list of str
    faithfulness : Faithfulness
    localisation : Localisation or None
    not_found : int
        Cells without a nucleus in the middle.
    impossible : dict of str to str
        Why a method could not be run on this model.
    """

    name: str
    backbone: str
    cells: int
    methods: list[str]
    faithfulness: Faithfulness
    localisation: Localisation | None
    not_found: int
    impossible: dict[str, str]


@dataclass(frozen=True)
class Documents:
    """Files to write, and their summary.

    Attributes
    ----------
    files : dict of str to (str, str)
        File name and content, by what it is.
    table : DataFrame
        Headline.
    document : dict
        Content of the JSON file.
    lines : list of str
        Summary for a person.
    """

    files: dict[str, tuple[str, str]]
    table: pd.DataFrame
    document: dict[str, Any]
    lines: list[str]


def sanity_documents(
    checked: Sequence[ModelSanity], *, control: str, settings: Mapping[str, Any], command: str = ""
) -> Documents:
    """Make ``sanity.html``, ``sanity.json`` and ``sanity.csv``.

    Parameters
    ----------
    checked : sequence of ModelSanity
        One per model.
    control : str
        Name of the method that must not pass.
    settings : mapping
        Settings to show, in this order.
    command : str
        The command line, if there was one.
    """
    table = _sanity_table(checked, control)
    document = {
        "check": "sanity",
        "document_version": DOCUMENT_VERSION,
        "settings": dict(settings),
        "command": command,
        "verdicts": _plain(table),
        "models": [_sanity_of(checks) for checks in checked],
    }
    views = [_sanity_view(checks, control) for checks in checked]
    page = templates().get_template("sanity.html.j2")
    html = page.render(
        title="Sanity checks of explanations",
        verdicts=table.to_dict("records"),
        views=views,
        control=control,
        repeated=REPEATED,
        half=HALF,
        least=LEAST_CHANGE,
        settings={name: str(value) for name, value in settings.items()},
        small=_small_training,
        least_fit=LEAST_FIT,
        command=command,
        estimate=_estimate,
    )
    files = {
        "report": ("sanity.html", html),
        "json": ("sanity.json", _json(document)),
        "csv": ("sanity.csv", _sanity_rows(checked).to_csv(index=False)),
    }
    return Documents(files, table, document, _sanity_lines(table, control))


def faithfulness_documents(
    checked: Sequence[ModelFaithfulness], *, settings: Mapping[str, Any], command: str = ""
) -> Documents:
    """Make ``faithfulness.html``, ``.json``, ``.csv``, ``faithfulness_cells.csv`` and ``localisation.csv``.

    Parameters
    ----------
    checked : sequence of ModelFaithfulness
        One per model.
    settings, command
        As in `sanity_documents`.
    """
    table = _headline(checked)
    document = {
        "check": "faithfulness",
        "document_version": DOCUMENT_VERSION,
        "settings": dict(settings),
        "command": command,
        "models": [
            {
                "model": found.name,
                "backbone": found.backbone,
                "cells": found.cells,
                "cells_without_nucleus": found.not_found if found.localisation is not None else None,
                "not_possible": found.impossible,
                "areas": _plain(found.faithfulness.summary),
                "gains": _plain(found.faithfulness.gains),
                "curves": _plain(found.faithfulness.curves[found.faithfulness.curves["label"] == ""]),
                "localisation": None if found.localisation is None else _plain(found.localisation.summary),
            }
            for found in checked
        ],
    }
    views = [_faithfulness_view(found) for found in checked]
    page = templates().get_template("faithfulness.html.j2")
    html = page.render(
        title="Faithfulness of explanations",
        views=views,
        baselines=BASELINES,
        centred=CENTRED,
        settings={name: str(value) for name, value in settings.items()},
        command=command,
    )
    files = {
        "report": ("faithfulness.html", html),
        "json": ("faithfulness.json", _json(document)),
        "csv": ("faithfulness.csv", _joined(checked, lambda found: found.faithfulness.summary)),
        "cells": ("faithfulness_cells.csv", _joined(checked, _cell_rows)),
    }
    if any(found.localisation is not None for found in checked):
        files["localisation"] = (
            "localisation.csv",
            _joined(checked, lambda found: None if found.localisation is None else found.localisation.summary),
        )
    return Documents(files, table, document, _faithfulness_lines(checked))


def _sanity_view(checks: ModelSanity, control: str) -> dict[str, Any]:
    """Return one model's part of the page."""
    shown, labels = checks.examples, checks.label_examples
    label_results = {name: result for name, result in checks.labels.items() if name != control}
    view: dict[str, Any] = {"checks": checks, "label_maps": None}
    view["cascade"] = _picture(
        check_figures.cascade_figure(checks.parameters, control),
        "Similarity to the trained network's maps per block; the numbers are in the table below",
    )
    view["maps"] = [
        _picture(
            check_figures.cascade_maps_figure(picture, checks.parameters, number),
            f"Maps of one cell, class {shown.codes[number]}, from the trained to the random network",
            bitmap=True,
        )
        for number, picture in enumerate(shown.pictures)
    ]
    if label_results and labels.codes:
        view["label_maps"] = _picture(
            check_figures.label_maps_figure(labels.pictures, labels.codes, label_results),
            "Maps of models trained on true labels, on shuffled labels, and with another seed",
            bitmap=True,
        )
    return view


def _faithfulness_view(found: ModelFaithfulness) -> dict[str, Any]:
    """Return one model's part of the page."""
    whole = found.faithfulness.cells.groupby("cell").first()
    view: dict[str, Any] = {
        "found": found,
        "whole": float(whole["whole"].mean()),
        "replaced": float(whole["replaced"].mean()),
        "areas": _records(found.faithfulness.summary, label=""),
        "gains": {(row["method"], row["baseline"]): row for row in _records(found.faithfulness.gains)},
        "shares": {},
        "labels": [],
        "regions": {},
    }
    view["curves"] = _picture(
        check_figures.curves_figure(found.faithfulness.curves, found.methods),
        "Deletion and insertion curves; the areas are in the table below",
    )
    if found.localisation is not None:
        summary = found.localisation.summary
        view["shares"] = {(row["method"], row["label"]): row for row in _records(summary)}
        view["labels"] = [label for label in dict.fromkeys(summary["label"]) if label]
        view["regions"] = {
            region: _picture(
                check_figures.shares_figure(summary, region, found.methods),
                f"Share of attribution inside the {region} per class; the numbers are in the table below",
            )
            for region in REGIONS
        }
    return view


def _sanity_table(checked: Sequence[ModelSanity], control: str) -> pd.DataFrame:
    rows = []
    for checks in checked:
        for method in [*checks.parameters, *checks.impossible]:
            row: dict[str, Any] = {"model": checks.name, "backbone": checks.backbone, "method": method}
            row["control"] = method == control
            for check, results in (("parameters", checks.parameters), ("labels", checks.labels)):
                found: Sensitivity | None = results[method].sensitivity if method in results else None
                row[check] = found.outcome if found else ""
                row[f"{check}_reason"] = found.reason if found else checks.impossible.get(method, "")
            row["answers_from"] = checks.parameters[method].answers_from if method in checks.parameters else ""
            rows.append(row)
    return pd.DataFrame(rows)


def _sanity_of(checks: ModelSanity) -> dict[str, Any]:
    retrained = checks.retrained
    return {
        "model": checks.name,
        "backbone": checks.backbone,
        "cells": checks.cells,
        "not_possible": checks.impossible,
        "trained": None
        if retrained is None
        else {
            "cells": retrained.cells,
            "settings": retrained.settings,
            "fit_true_labels": retrained.true.fit,
            "fit_shuffled_labels": retrained.shuffled.fit,
            "fit_other_seed": None if retrained.other_seed is None else retrained.other_seed.fit,
        },
        "methods": {
            method: {
                "signed": result.signed,
                "parameters": {
                    "verdict": result.sensitivity.outcome,
                    "reason": result.sensitivity.reason,
                    "answers_from": result.answers_from,
                    "steps": _plain(result.table),
                    "other_cells": _estimates(result.other_cells),
                    "edges": _estimates(result.edges),
                },
                "labels": None
                if method not in checks.labels
                else {
                    "verdict": checks.labels[method].sensitivity.outcome,
                    "reason": checks.labels[method].sensitivity.reason,
                    "models": _plain(checks.labels[method].table),
                    "seed_minus_shuffled": _estimates(checks.labels[method].seed_minus_shuffled),
                },
            }
            for method, result in checks.parameters.items()
        },
    }


def _sanity_rows(checked: Sequence[ModelSanity]) -> pd.DataFrame:
    parts = []
    for checks in checked:
        for check, results in (("parameters", checks.parameters), ("labels", checks.labels)):
            for method, result in results.items():
                part = result.table.rename(columns={"model": "block"})
                named = {"method": method, "check": check, "verdict": result.sensitivity.outcome}
                parts.append(_of_model(checks, part.assign(**named)))
    table = pd.concat(parts, ignore_index=True)
    first = ["model", "backbone", "method", "check", "verdict", "step", "block"]
    return table[[*first, *(name for name in table.columns if name not in first)]]


def _sanity_lines(table: pd.DataFrame, control: str) -> list[str]:
    lines = []
    for row in table.to_dict("records"):
        who = f"{row['model']}, {row['method']}"
        if row["method"] == control:
            if row["parameters"] != "not sensitive":
                lines.append(
                    f"Warning: {who} came out {row['parameters']}: the check cannot tell here; give more cells"
                )
        elif not row["parameters"]:
            lines.append(f"{who}: not possible ({row['parameters_reason']})")
        else:
            labels = f", {row['labels']} to shuffled labels" if row["labels"] else ""
            begins = f", from {row['answers_from']} on" if row["answers_from"] else ""
            lines.append(f"{who}: {row['parameters']} to random weights{begins}{labels}")
    return lines


def _headline(checked: Sequence[ModelFaithfulness]) -> pd.DataFrame:
    parts = []
    for found in checked:
        areas = found.faithfulness.summary
        part = areas[areas["label"] == ""].drop(columns="label")
        if found.localisation is not None:
            shares = found.localisation.summary
            shares = shares[shares["label"] == ""].drop(columns=["label", "n"])
            part = part.merge(shares, on="method", how="left")
        parts.append(_of_model(found, part))
    return pd.concat(parts, ignore_index=True)


def _faithfulness_lines(checked: Sequence[ModelFaithfulness]) -> list[str]:
    lines = []
    for found in checked:
        areas = {row["method"]: row for row in _records(found.faithfulness.summary, label="")}
        located = found.localisation
        shares = {} if located is None else {row["method"]: row for row in _records(located.summary, label="")}
        hill = areas[CENTRED]
        for method in found.methods:
            row = areas[method]
            line = f"{found.name}, {method}: deletion {row['deletion']:.3f}, insertion {row['insertion']:.3f}"
            line += f" ({CENTRED}: {hill['deletion']:.3f}, {hill['insertion']:.3f})"
            if method in shares and shares[method]["cell"] is not None:
                share = shares[method]
                line += f"; {100 * share['cell']:.0f} % inside the cell, which covers {100 * share['cell_area']:.0f} %"
            lines.append(line)
        if found.not_found:
            lines.append(f"{found.name}: no nucleus was found in {found.not_found} of {found.cells} cells")
        lines += [f"{found.name}, {method}: not possible ({why})" for method, why in found.impossible.items()]
    return lines


def _cell_rows(found: ModelFaithfulness) -> pd.DataFrame:
    table = found.faithfulness.cells
    if found.localisation is None:
        return table
    return table.merge(found.localisation.cells.drop(columns="label"), on=["cell", "method"], how="left")


def _joined(checked: Sequence[ModelFaithfulness], table: Callable[[ModelFaithfulness], pd.DataFrame | None]) -> str:
    parts = [_of_model(found, part) for found in checked if (part := table(found)) is not None]
    return str(pd.concat(parts, ignore_index=True).to_csv(index=False))


def _of_model(checked: ModelSanity | ModelFaithfulness, table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose first columns name the model."""
    named = table.copy()
    named.insert(0, "model", checked.name)
    named.insert(1, "backbone", checked.backbone)
    return named


def _picture(drawn: Figure, alt: str, *, bitmap: bool = False) -> dict[str, Any]:
    """Return a figure for the page; maps as PNG, because SVG is larger for them."""
    width = round(96 * drawn.get_figwidth())
    url = data_url(to_png(drawn, dpi=100), "image/png") if bitmap else data_url(to_svg(drawn), "image/svg+xml")
    return {"url": url, "alt": alt, "width": width}


def _records(table: pd.DataFrame, **where: str) -> list[dict[str, Any]]:
    for name, value in where.items():
        table = table[table[name] == value]
    return _plain(table)


def _plain(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows as plain data; not-a-number becomes ``None``."""
    return [{str(key): _finite(value) for key, value in row.items()} for row in table.to_dict("records")]


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if hasattr(value, "item") else value


def _estimates(found: Mapping[str, Estimate]) -> dict[str, dict[str, Any]]:
    return {name: _estimate(estimate) for name, estimate in found.items() if estimate.n}


def _estimate(found: Estimate) -> dict[str, Any]:
    return {"mean": _finite(found.mean), "low": _finite(found.low), "high": _finite(found.high), "n": found.n}


def _small_training(retrained: RetrainedModels) -> str:
    """Return the settings in which the small trainings differ from the model's own, as they were used."""
    used = {name: retrained.settings.get(name) for name in SMALL_TRAINING}
    return ", ".join(f"{name} {value}" for name, value in used.items() if value not in (None, {}, 0))


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False, default=str)
