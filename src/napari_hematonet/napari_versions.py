"""Where the releases of napari keep what they moved; the older place still answers, with a warning the user sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import napari

__all__ = ["camera_of", "scale_bar_of"]


def camera_of(viewer: napari.Viewer) -> Any:
    """Return the viewer's camera: of its scene since napari 0.9."""
    return viewer.scene.camera if hasattr(viewer, "scene") else viewer.camera


def scale_bar_of(viewer: napari.Viewer) -> Any:
    """Return the viewer's scale bar: one of the canvas's overlays since napari 0.9."""
    canvas = getattr(viewer, "canvas", None)
    return viewer.scale_bar if canvas is None else canvas.overlays.scale_bar
