"""The built-in sample as files: crops in the layout of the published set, and a table of labels, smears, patients."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from hematokit.errors import HematokitError
from hematokit.files import TEMPORARY_PREFIX, write_atomically
from hematokit.progress import Progress, no_progress
from hematokit.synthetic.canvas import PIXEL_SIZE_UM
from hematokit.synthetic.scenes import crop_counts, synthesize_crops

__all__ = ["SAMPLE_COUNTS", "write_sample"]

SAMPLE_COUNTS: dict[str, int] = {
    "NGS": 66, "EBO": 62, "LYT": 60, "ART": 46, "PMO": 46, "BLA": 46, "NGB": 42, "PLM": 38, "MYB": 36, "EOS": 34,
    "MON": 32, "NIF": 30, "MMZ": 30, "PEB": 28, "BAS": 22, "HAC": 20, "OTH": 20, "LYI": 16, "FGC": 14, "KSC": 14,
    "ABE": 14,
}  # fmt: skip
"""Crops per class of the sample: in the order of the published set's frequencies, with less imbalance."""

_TABLE = "sample.csv"
# Files of a sample, and unfinished ones of an interrupted run.
_OURS = re.compile(
    rf"([A-Z]{{3}}/)?({re.escape(TEMPORARY_PREFIX)})?([A-Z]{{3}}_\d{{5}}\.jpg|sample\.csv)(-[0-9a-f]{{16}})?"
)


def write_sample(
    folder: str | Path,
    *,
    counts: Mapping[str, int] | int | None = None,
    seed: int = 0,
    smears: int = 120,
    progress: Progress = no_progress,
) -> Path:
    """Write crops as ``CODE/CODE_00001.jpg`` (JPEG quality 95, full colour resolution) and ``sample.csv``.

    The table (columns path, label, smear, patient, pixel_size_um) is written last: if it exists, the
    sample is complete.

    Parameters
    ----------
    folder : path
        Created if missing. The files of an earlier sample are replaced.
    counts : mapping of str to int, or int, optional
        Crops per class; `SAMPLE_COUNTS` unless given.
    seed, smears : int
        As in `synthesize_crops`.
    progress : Progress
        Called after every crop.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    HematokitError
        If the folder has other files or cannot be written, or a class cannot be drawn.
    """
    folder = Path(folder)
    wanted = crop_counts(SAMPLE_COUNTS if counts is None else counts)
    names = {f"{code}/{code}_{number:05d}.jpg" for code, count in wanted.items() for number in range(1, count + 1)}
    total = len(names)
    crops = synthesize_crops(wanted, seed=seed, smears=smears)
    rows = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder, names)
        for done, crop in enumerate(crops, 1):
            name = f"{crop.code}/{crop.code}_{crop.index + 1:05d}.jpg"
            (folder / crop.code).mkdir(exist_ok=True)
            buffer = io.BytesIO()
            Image.fromarray(crop.pixels).save(buffer, "JPEG", quality=95, subsampling=0)
            write_atomically(folder / name, buffer.getvalue())
            rows.append((name, crop.code, crop.smear_id, crop.patient_id, PIXEL_SIZE_UM))
            progress(done, total, "drawing cells")
        table = io.StringIO(newline="")
        writer = csv.writer(table, lineterminator="\n")
        writer.writerows([("path", "label", "smear", "patient", "pixel_size_um"), *rows])
        write_atomically(folder / _TABLE, table.getvalue().encode())
    except OSError as error:
        raise HematokitError(f"the sample cannot be written to {folder} ({error}); give another folder") from error
    return folder


def _clear(folder: Path, keep: set[str]) -> None:
    """Remove files of an earlier or interrupted run; raise for a folder with other files."""
    stale = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink():
            continue
        if path.is_symlink() or not _OURS.fullmatch(name):
            raise HematokitError(f"folder {folder} holds {name}, which is no part of a sample; give an empty folder")
        if name not in keep:
            stale.append(path)
    for path in stale:
        path.unlink()
