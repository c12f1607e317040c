"""The names that the stubs of packages list are there, and cost nothing before they are used."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

PACKAGES = ("hematokit", "hematokit.models", "hematokit.serving")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_listed_name_can_be_used(package: str) -> None:
    module = import_module(package)
    assert module.__all__
    assert dir(module) == module.__all__
    assert [name for name in module.__all__ if getattr(module, name) is None] == []
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name


def test_the_packages_import_nothing_before_a_name_is_used() -> None:
    code = (
        f"import sys, {', '.join(PACKAGES)}; print(*(name for name in ('torch', 'numpy', 'pandas', 'fastapi', 'typer') "
        "if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
