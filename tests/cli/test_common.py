"""What the commands share: memory that one keeps for its tensors."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# Takes and returns one large block a few times, and counts the pages that the system had to hand out.
COUNT = """
import ctypes, resource
from hematokit.cli.common import keep_freed_memory
print(keep_freed_memory())
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.malloc.argtypes = [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
size = 64 * 2**20
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    block = library.malloc(size)
    ctypes.memset(block, 1, size)
    library.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def counted(**environment: str) -> tuple[str, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", COUNT], capture_output=True, text=True, check=True, env={**clean, **environment}
    )
    said, pages = done.stdout.split()
    return said, int(pages)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_blocks_that_were_freed_are_used_again_unless_the_user_set_otherwise() -> None:
    kept, pages = counted()
    own, more_pages = counted(MALLOC_ARENA_MAX="2")
    assert (kept, own) == ("True", "False")
    # Huge pages may make both small in number; the block that is kept is filled once instead of eight times.
    assert pages < more_pages / 2
