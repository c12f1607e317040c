"""Makes real plugin packages and installs them with pip into a folder of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hematokit.plugins import load_plugins

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{package}"
version = "{version}"

[project.entry-points.hematokit]
{entry} = "{target}"

[tool.hatch.build.targets.wheel]
packages = ["{module}"]
"""


def write_package(
    folder: Path, package: str, code: str, version: str = "1.2.3", entry: str = "main", target: str = ""
) -> Path:
    """Write a package with one module and an entry point, which names the module or `target`; return its folder."""
    module = package.replace("-", "_")
    root = folder / package
    (root / module).mkdir(parents=True)
    (root / module / "__init__.py").write_text(code)
    (root / "pyproject.toml").write_text(
        PROJECT.format(package=package, version=version, module=module, entry=entry, target=target or module)
    )
    return root


def pip_install(target: Path, *packages: Path) -> None:
    """Install packages into a folder with pip, as a user would into an environment."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--target", str(target), *map(str, packages)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def environment_with(site: Path) -> dict[str, str]:
    """Return the environment for a process that sees the packages in `site`, with one thread: two cores are shared."""
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def run_hematokit(
    *arguments: str, site: Path | None = None, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, with the packages in `site` installed."""
    inherited = os.environ if site is None else environment_with(site)
    environment = {key: value for key, value in inherited.items() if not key.startswith("HEMATOKIT_")}
    environment |= {"COLUMNS": "200", "OMP_NUM_THREADS": "1", **(env or {})}
    return subprocess.run(
        [sys.executable, "-m", "hematokit", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cwd,
        check=False,
    )


@contextmanager
def plugins_in_this_process(site: Path, *packages: str) -> Iterator[None]:
    """Let this process see packages that pip installed into a folder, and only those."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        patch.setenv("HEMATOKIT_PLUGINS", ",".join(packages))
        load_plugins.cache_clear()
        try:
            yield
        finally:
            load_plugins.cache_clear()
            for name in [name for name in sys.modules if name.split(".")[0].replace("_", "-") in packages]:
                del sys.modules[name]
