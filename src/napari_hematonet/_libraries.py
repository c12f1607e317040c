"""Loading torch and what else is large, beside a window that draws and answers."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["keep_triton_out", "loading_beside_the_window"]

_TORCH: Final = ("libtorch_global_deps.so", "libc10.so", "libtorch_cpu.so", "libtorch_cuda.so")
"""Its libraries that know nothing of Python, in the order in which they need each other."""


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


@contextlib.contextmanager
def loading_beside_the_window() -> Iterator[None]:
    """Import large packages in a thread without holding the interpreter for long: the window needs it, too.

    Two things stop the window while torch and timm are imported (measured: eight times, 150 to 400 ms each). torch's
    libraries, which Python loads with the interpreter held, are loaded here without it (Linux). And Python looks
    through all objects for garbage again and again while hundreds of thousands of lasting ones are made; here it waits
    until they are there, and passes them over from then on.
    """
    keep_triton_out()
    if "torch" in sys.modules:
        # What was passed over is never collected, so once is enough.
        yield
        return
    collecting = gc.isenabled()
    gc.disable()
    try:
        _load_torch_libraries()
        yield
        gc.freeze()
        # Or what is never looked at is still there when the libraries below look for what was forgotten, and say so.
        atexit.register(gc.unfreeze)
    finally:
        if collecting:
            gc.enable()


def _load_torch_libraries() -> None:
    if not sys.platform.startswith("linux"):
        return
    # What fails here is loaded by the import of torch, or fails there with its own words.
    with contextlib.suppress(OSError, ImportError, ValueError, AttributeError):
        found = importlib.util.find_spec("torch")
        if found is None or found.origin is None:
            return
        # A function that is called through ctypes gives the interpreter away; loading by `ctypes.CDLL` itself does not.
        load = ctypes.CDLL(None).dlopen
        load.restype = ctypes.c_void_p
        folder = Path(found.origin).parent / "lib"
        for name in _TORCH:
            if (folder / name).is_file():
                shared = os.RTLD_GLOBAL if name == _TORCH[0] else 0  # as torch itself has them
                load(os.fsencode(folder / name), ctypes.c_int(os.RTLD_NOW | shared))
