"""Zarr arrays in local folders, opened with tensorstore.

tensorstore refuses ``..`` and ``//`` in a path, takes a backslash for a separator, and reports failures of the
operating system as `ValueError`, as it does damaged data. Both are corrected here, for all its users.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

__all__ = ["open_array", "system_error", "tensorstore_path"]

_SYSTEM = re.compile(r"(?:os_error_code='|\[OS error )(\d+)")
_FILE = re.compile(r'local file "((?:[^"\\]|\\.)*)"')


def tensorstore_path(folder: Path) -> str:
    """Return the path of a folder as tensorstore takes it: absolute, without ``..``.

    Raises
    ------
    OSError
        If tensorstore cannot open a folder of that name; the message names the reason.
    """
    # `link/..` is the parent of the link's target. Without '..', links stay: the target's path may be refused.
    whole = folder.resolve() if ".." in folder.parts else folder.absolute()
    path = whole.as_posix()
    problem = ""
    if "\\" in path:
        problem = "a backslash"
    elif any(part.endswith(".__lock") for part in whole.parts):
        problem = "a name that ends in '.__lock'"
    elif any("\udc80" <= character <= "\udcff" for character in path):
        problem = "bytes that are not UTF-8"
    if problem:
        raise OSError(errno.EINVAL, f"its path has {problem}, which Zarr arrays cannot have: rename that folder", path)
    return "/" + path.lstrip("/") if path.startswith("//") else path


def open_array(folder: Path, *, cache_bytes: int, driver: str = "zarr3", write: bool = False, **options: Any) -> Any:
    """Open an array with tensorstore.

    Parameters
    ----------
    folder : Path
        Folder of the array.
    cache_bytes : int
        Size of the cache of decoded chunks.
    driver : {"zarr3", "zarr"}
    write : bool
        Open it for writing as well.
    **options
        More of the specification, as tensorstore takes it.

    Returns
    -------
    tensorstore.TensorStore

    Raises
    ------
    OSError
        If the name is unusable, or the operating system refuses to open or read the files.
    ValueError
        If there is no array, or its metadata are damaged.
    """
    import tensorstore

    spec = {
        "driver": driver,
        "kvstore": {"driver": "file", "path": tensorstore_path(folder)},
        # Chunks are written once, so what is in the cache stays valid.
        "recheck_cached_data": "open",
        **options,
    }
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": cache_bytes}})
    try:
        return tensorstore.open(spec, context=context, open=True, read=True, write=write).result()
    except ValueError as error:
        raise system_error(error) or error from None


def system_error(error: ValueError) -> OSError | None:
    """Return the failure of the operating system that a `ValueError` of tensorstore reports, if it is one.

    A medium that fails to read (EIO) is damage, not a failure to get at the data.
    """
    found = _SYSTEM.search(str(error))
    if found is None or int(found[1]) == errno.EIO:
        return None
    code, file = int(found[1]), _FILE.search(str(error))
    return OSError(code, os.strerror(code), file[1] if file else None)
