"""What the code uses of other libraries' private interfaces: few things, each of which may vanish in any release."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest
from torch import nn

import hematokit

SOURCE = Path(hematokit.__file__).parent

FORGET = "a training makes accelerate forget its device and precision, or the next one in the process would get them"
HOOKS = "the conformance test of explainers looks for hooks that were left behind; torch has no public list of them"

PRIVATE = {
    "accelerate.state:AcceleratorState._reset_state": FORGET,
    "torch.nn:Module._forward_hooks": HOOKS,
    "torch.nn:Module._backward_hooks": HOOKS,
}
"""Where each is, and what uses it."""


@pytest.mark.parametrize("where", PRIVATE)
def test_a_private_interface_is_still_there(where: str) -> None:
    module, _, path = where.partition(":")
    found: object = None
    try:
        found = importlib.import_module(module)
        for name in path.split("."):
            # torch makes the dictionaries of hooks in the instance.
            found = getattr(found() if found is nn.Module else found, name)
    except (ImportError, AttributeError):
        pytest.fail(f"{where} is gone from the installed version: {PRIVATE[where]}")
    if where.endswith("_reset_state"):
        assert "reset_partial_state" in inspect.signature(found).parameters, f"{where} changed: {FORGET}"


def test_no_other_private_interface_is_used() -> None:
    """Private names that nothing in hematokit defines are those of other libraries."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}
    own, used = set(), {}
    for path, tree in trees.items():
        for node in ast.walk(tree):
            where = f"{path.relative_to(SOURCE)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                own.add(node.id if isinstance(node, ast.Name) else node.attr)
            elif isinstance(node, ast.Attribute):
                used.setdefault(node.attr, where)
            elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(("hematokit", "__future__")):
                used |= dict.fromkeys([*(node.module or "").split("."), *(a.name for a in node.names)], where)
    private = {
        name: where
        for name, where in used.items()
        if name.startswith("_") and not name.endswith("__") and name not in own
    }
    known = {part for where in PRIVATE for part in where.replace(":", ".").split(".")}
    others = {name: where for name, where in private.items() if name not in known}
    assert not others, f"private names of other libraries: {others}; use a public way, or add them to PRIVATE here"
