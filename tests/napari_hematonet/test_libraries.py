"""torch is loaded beside the window: in a fresh process, as the viewer does it."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import contextlib, gc, sys
from napari_hematonet._libraries import loading_beside_the_window

passes = []
gc.callbacks.append(lambda phase, info: passes.append(info["generation"]))
with loading_beside_the_window():
    assert not gc.isenabled()
    passes.clear()
    import torch
    with contextlib.suppress(ImportError):
        import triton._C.libtriton
    seen = len(passes)
assert gc.isenabled()
assert gc.get_freeze_count() > 100_000, gc.get_freeze_count()
print(seen, float(torch.ones(3) @ torch.ones(3)))
frozen = gc.get_freeze_count()
with loading_beside_the_window():
    print(gc.isenabled())
assert gc.get_freeze_count() == frozen
del sys.modules["torch"]
try:
    with loading_beside_the_window():
        raise ImportError("no such package")
except ImportError:
    print(gc.isenabled())
"""


def test_nothing_is_collected_while_torch_is_loaded_and_torch_works() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    # Said when the program ends, of objects that nobody looked for.
    assert "leaked" not in done.stderr
    assert done.stdout.split() == ["0", "3.0", "True", "True"]
