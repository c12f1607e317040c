"""Do explanations tell what counts? Deletion, insertion and localisation for one or several models, and the report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hematokit._version import __version__
from hematokit.errors import ExplanationError, PluginError
from hematokit.explanation.faithfulness import deletion_insertion
from hematokit.explanation.localisation import CellMasks, find_cell_masks, localisation
from hematokit.explanation.sanity import attribute_in_batches
from hematokit.progress import Progress, no_progress
from hematokit.registry import load_plugins
from hematokit.reporting.check_documents import faithfulness_documents
from hematokit.reporting.check_results import (
    CheckResult,
    Options,
    cells_said,
    described,
    explainers_by_name,
    prefixed,
    usable_folder,
    written,
)
from hematokit.reporting.check_subjects import ModelFaithfulness, Models, load_subject, model_names, shown_labels

__all__ = ["check_faithfulness"]


def check_faithfulness(
    models: Models,
    store: str | Path | None,
    methods: Sequence[str],
    output: str | Path,
    *,
    options: Options | None = None,
    cell_ids: Sequence[str] | None = None,
    split: str = "test",
    per_class: int | None = 6,
    target: str = "predicted",
    steps: int = 24,
    replacement: Literal["blur", "mean"] = "blur",
    order: Literal["value", "magnitude"] = "value",
    detector: str | None = "nuclei",
    detector_options: Mapping[str, Any] | None = None,
    pixel_size_um: float | None = None,
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 16,
    command: str = "",
    progress: Progress = no_progress,
) -> CheckResult:
    """Measure deletion, insertion and localisation of explanations beside simple baselines, and write a report.

    Writes ``faithfulness.html``, ``faithfulness.json``, ``faithfulness.csv``, ``faithfulness_cells.csv`` and, with a
    detector, ``localisation.csv``. Nothing is written before all is done.

    Parameters
    ----------
    models, store, methods, output, options, cell_ids, split, per_class, target, seed, device, batch_size, command
        As in `check_sanity`.
    steps : int
        Steps of the curves.
    replacement, order : str
        See `hematokit.explanation.faithfulness.deletion_insertion`.
    detector : str or None
        Detector that finds the cell and its nucleus in each patch; ``None``: no localisation.
    detector_options : mapping, optional
        Its options.
    pixel_size_um : float, optional
        Micrometres per pixel of the patches; by default what the store says, else the bundle, if they do.
    progress : Progress
        Told what is done of the part under way; raising from it cancels, and nothing is written.

    Returns
    -------
    CheckResult
        ``table``: ``model``, ``backbone``, ``method`` (baselines too), deletion and insertion areas and shares inside
        cell and nucleus, with intervals.

    Raises
    ------
    ExplanationError
        If no method works, a choice does not exist, or the folder cannot be written.
    PluginError, ModelError, StoreError
        If a method, the detector, a model or a store cannot be used.
    """
    started = time.monotonic()
    folder = usable_folder(output)
    if steps < 2:
        raise ExplanationError(f"curves of {steps} steps cannot be drawn; give 2 or more")
    for name, value, known in (
        ("replacement", replacement, ("blur", "mean")),
        ("order", order, ("value", "magnitude")),
    ):
        if value not in known:
            raise ExplanationError(f"{name} {value!r} is not one of {', '.join(known)}; choose one of them")
    made = explainers_by_name(methods, options, seed)
    finder = None
    if detector is not None:
        spec = load_plugins().detectors.get(detector)
        finder = spec.factory(**spec.resolve_options(detector_options))
    checked, warnings = [], []
    for name, path in model_names(models).items():
        subject = load_subject(name, path, store, cell_ids, split, per_class, target, seed, device)
        warnings += subject.warnings
        maps: dict[str, npt.NDArray[np.float32]] = {}
        impossible = {}
        for method, named in made.items():
            try:
                maps[method] = attribute_in_batches(
                    named.explainer, subject.classifier, subject.images, subject.targets, batch_size=batch_size,
                    progress=prefixed(progress, f"{name}, {method}"),
                )  # fmt: skip
            except PluginError as error:
                impossible[method] = str(error)
        if not maps:
            raise ExplanationError(f"none of the methods could be run: {next(iter(impossible.values()))}")
        labels = shown_labels(subject)
        found = deletion_insertion(
            subject.classifier, subject.images, subject.targets, maps, labels=labels, groups=subject.groups,
            steps=steps, replacement=replacement, order=order, batch_size=max(batch_size, 32), seed=seed,
            progress=prefixed(progress, name),
        )  # fmt: skip
        masks: CellMasks | None = None
        if finder is not None:
            masks = find_cell_masks(
                finder, subject.patches, subject.classifier.input_spec, progress=prefixed(progress, name),
                pixel_size_um=pixel_size_um or subject.pixel_size_um,
            )  # fmt: skip
        located = None if masks is None else localisation(maps, masks, labels, groups=subject.groups, seed=seed)
        missing = 0 if masks is None else int((~masks.found).sum())
        checked.append(
            ModelFaithfulness(
                name, subject.backbone, len(subject.images), list(maps), found, located, missing, impossible
            )
        )
    settings = {
        "Methods": described(methods, options, seed),
        "Cells": cells_said(cell_ids, split, per_class),
        "Class explained": target,
        "Steps": steps,
        "Replaced by": {"blur": "the blurred image", "mean": "the image's mean colour"}[replacement],
        "Pixels ranked by": order,
        "Detector": detector or "none",
        "Seed": seed,
        "hematokit": __version__,
        "Made": datetime.now(UTC).isoformat(timespec="minutes"),
        **({"Warning": "; ".join(warnings)} if warnings else {}),
    }
    documents = faithfulness_documents(checked, settings=settings, command=command)
    return written(folder, documents, started, warnings)
