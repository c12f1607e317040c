"""Two libraries that must not meet in one process."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["keep_triton_out"]


def keep_triton_out() -> None:
    """Keep triton from being imported where Mesa draws with LLVM.

    Each brings an LLVM of its own, and the second one to be loaded ends the process (measured: triton 3.9 after Mesa's
    llvmpipe or its Radeon driver, both on libLLVM). torch, timm and all that hematokit does work without triton, which
    only ``torch.compile`` on graphics processors uses. Where something else draws, or triton is loaded already, nothing
    changes. To be called before torch is imported.
    """
    if "triton" in sys.modules or not sys.platform.startswith("linux"):
        return
    try:
        loaded = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    if "libLLVM" in loaded:
        sys.modules["triton"] = None  # type: ignore[assignment] # Python's way to say that there is no such module
