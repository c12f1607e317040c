"""Settings of an import."""

from __future__ import annotations

from typing import ClassVar

from hematokit.errors import HematokitError, StoreError
from hematokit.settings import PathText, Settings

__all__ = ["ImportSettings"]


class ImportSettings(Settings):
    """Settings of `hematokit.import_crops` and of ``hematokit import``."""

    error: ClassVar[type[HematokitError]] = StoreError

    labels: PathText | None = None
    """CSV of path, label[, smear_id, patient_id, pixel_size_um] for the files, instead of class folders."""

    patch_size: int | None = None
    """Side of the patches of a new store in pixels; 250 by default."""

    resize: bool = False
    """Resize crops of another size (Lanczos) so that their longer side fits; those not square need pad too."""

    pad: bool = False
    """Pad smaller crops by reflection."""

    codec: str | None = None
    """Codec of a new store: raw (faster, the default) or zstd (about a fifth smaller)."""

    near_duplicates: bool = True
    """Search for crops that show the same cell."""

    pixel_size_um: float | None = None
    """Micrometres per pixel of files whose metadata do not state it; a resized crop gets that of its patch."""

    force_pixel_size: bool = False
    """Use the pixel size given (or that of the table) also for files that state another one."""
