"""How the C library hands out memory to a command that computes gradients."""

from __future__ import annotations

import os
import platform

__all__ = ["keep_freed_memory"]

# Numbers of mallopt(3), as in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MIB = 2**20


def keep_freed_memory() -> bool:
    """Let this process keep the memory that tensors give back, instead of returning it to the system at once.

    A step of training frees and takes the same few large blocks again. glibc asks the system for each block above 32
    MiB, which then fills it with zeros, page by page: for a CoAtNet on a CPU that took a quarter of the time (see
    ``docs/results.md``). The price is a somewhat higher peak, as what was freed stays with the process.

    For programs, which own their process; a library must not decide this for its caller. Settings of the user's own
    (``MALLOC_...`` in the environment) are respected.

    Returns
    -------
    bool
        Whether anything was set: only glibc has this.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    import ctypes

    try:
        library = ctypes.CDLL(None)
        blocks = library.mallopt(_MMAP_THRESHOLD, 128 * _MIB)
        return bool(blocks and library.mallopt(_TRIM_THRESHOLD, 512 * _MIB))
    except (OSError, AttributeError):
        return False
