"""What a user types about explanations: options of methods, names, ids of cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hematokit.assignments import typed_text
from hematokit.errors import ExplanationError, PluginError

__all__ = ["explainer_options", "names", "read_ids"]


def explainer_options(assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
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


def names(text: str) -> list[str]:
    """Split names at commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def read_ids(given: Sequence[str]) -> list[str]:
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
            ids += names(entry)
    if not ids:
        raise ExplanationError("no cell was named; give ids with --cells ID,ID")
    return ids
