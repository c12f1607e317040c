"""How much memory a process of a training may take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil
import torch

__all__ = ["available_memory", "local_processes"]

_OWN: Final = Path("/proc/self/cgroup")
_GROUPS: Final = Path("/sys/fs/cgroup")
_FILES: Final = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Limit, use, and the part of the use that can be reclaimed: in control groups of version 2, and of version 1."""

_LOCAL: Final = ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE")


def available_memory() -> int:
    """Return the bytes of memory that are free: of the machine, or of the container or job, whichever is less."""
    return max(0, min([psutil.virtual_memory().available, *_left_in_groups()]))


def local_processes() -> int:
    """Return how many processes train on this machine; where the launcher does not say, all count as being here."""
    stated = [os.environ.get(name, "") for name in _LOCAL]
    count = next((int(value) for value in stated if value.isdigit()), 0)
    if not count and torch.distributed.is_available() and torch.distributed.is_initialized():
        count = torch.distributed.get_world_size()
    return max(1, count)


def _left_in_groups() -> Iterator[int]:
    """What is left in each control group that this process is in and that has a limit: psutil knows none of them."""
    try:
        lines = _OWN.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = _GROUPS / controllers
        group = root / name.strip("/")
        # A container sees its own group as the root, whatever it is called outside.
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(root))):
            for limit, used, reclaimable in _FILES:
                try:
                    free = int((folder / limit).read_text()) - int((folder / used).read_text())
                    stat = dict(entry.split(" ", 1) for entry in (folder / "memory.stat").read_text().splitlines())
                    yield free + int(stat.get(reclaimable, 0))
                except (OSError, ValueError):  # no such group, or no limit ("max")
                    continue
