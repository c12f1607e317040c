"""What the checks of explanations share: their result, and the files that hold it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hematokit.errors import ExplanationError
from hematokit.explanation.running import NamedExplainer, make_explainers
from hematokit.files import one_line_write_errors, write_atomically
from hematokit.progress import Progress
from hematokit.reporting.check_documents import Documents

__all__ = [
    "CheckResult",
    "Options",
    "cells_said",
    "described",
    "explainers_by_name",
    "prefixed",
    "usable_folder",
    "written",
]

Options = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True)
class CheckResult:
    """What a check found, and where it was written.

    Attributes
    ----------
    table : DataFrame
        The headline, one row per model and method.
    document : dict
        The content of the JSON file.
    paths : dict of str to Path
        Files written: ``report``, ``json``, and the tables.
    said : tuple of str
        The summary for a person.
    seconds : float
    """

    table: pd.DataFrame
    document: dict[str, Any]
    paths: dict[str, Path]
    said: tuple[str, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the document and the paths."""
        return {**self.document, "paths": {name: str(path) for name, path in self.paths.items()}}

    def lines(self) -> list[str]:
        """The summary for a person, one statement per line."""
        return [*self.said, f"Report: {self.paths['report']}", "For research use only"]


def explainers_by_name(methods: Sequence[str], options: Options | None, seed: int) -> dict[str, NamedExplainer]:
    return make_explainers([methods] if isinstance(methods, str) else methods, options, seed=seed)


def described(methods: Sequence[str], options: Options | None, seed: int) -> str:
    parts = []
    for name, made in explainers_by_name(methods, options, seed).items():
        listed = ", ".join(f"{key}={value}" for key, value in made.options.items())
        parts.append(f"{name} ({listed})" if listed else name)
    return "; ".join(parts)


def cells_said(cell_ids: Sequence[str] | None, split: str, per_class: int | None) -> str:
    if cell_ids is not None:
        return f"{len(cell_ids)} named"
    return f"{split} split" + (f", {per_class} of each class" if per_class is not None else "")


def prefixed(progress: Progress, name: str) -> Progress:
    return lambda done, total, message: progress(done, total, f"{name}: {message}" if message else name)


def usable_folder(output: str | Path) -> Path:
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise ExplanationError(f"{folder} is a file; name a folder with --output")
    return folder


def written(folder: Path, documents: Documents, started: float, warnings: Sequence[str] = ()) -> CheckResult:
    paths = {}
    with one_line_write_errors(folder, ExplanationError, "make room or choose another folder"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, (file, content) in documents.files.items():
            write_atomically(folder / file, content)
            paths[name] = folder / file
    return CheckResult(
        documents.table,
        documents.document,
        paths,
        (*(f"Warning: {warning}" for warning in warnings), *documents.lines),
        round(time.monotonic() - started, 1),
    )
