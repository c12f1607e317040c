"""Saving a layer of cells: CSV, GeoJSON for QuPath, Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hematokit.errors import HematokitError
from hematokit.imaging.reading import printable
from napari_hematonet.state import METADATA_KEY, FieldState, notify

__all__ = ["write_csv", "write_geojson", "write_parquet"]


def write_csv(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Write the cells of a layer as CSV; of points that are no cells, what napari writes."""
    if not _is_cells(meta):
        # The ending belongs to everybody: another plugin's points are saved as if this one were not there.
        from napari_builtins.io import napari_write_points  # type: ignore[import-untyped]

        written = napari_write_points(path, data, meta)
        return [written] if written else []
    return _export(path, meta, ".csv")


def write_geojson(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Write the cells of a layer as GeoJSON, as QuPath imports it."""
    return _export(path, meta, ".geojson")


def write_parquet(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Write the cells of a layer as Parquet, with outlines."""
    return _export(path, meta, ".parquet")


def _is_cells(meta: dict[str, Any]) -> bool:
    return isinstance(meta.get("metadata", {}).get(METADATA_KEY), FieldState)


def _export(path: str, meta: dict[str, Any], ending: str) -> list[str]:
    name = printable(str(meta.get("name", "")))
    if not _is_cells(meta):
        notify(f"layer '{name}' has no cells of HematoNet; choose the layer of cells and save that", "error")
        return []
    if not meta.get("visible", True):
        notify(f"layer '{name}' is hidden; its cells are saved all the same", "warning")
    target = Path(path) if path.lower().endswith(ending) else Path(path + ending)
    try:
        meta["metadata"][METADATA_KEY].review.export(target)
    except HematokitError as error:
        notify(error, "error")
        return []
    return [str(target)]
