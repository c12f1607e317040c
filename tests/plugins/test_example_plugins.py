"""The example plugins, each installed alone as a third-party one is, and tested by its own tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pluginkit import environment_with, pip_install, run_hematokit

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
NAMES = sorted(folder.name for folder in PLUGINS.iterdir() if (folder / "pyproject.toml").is_file())


@pytest.mark.parametrize("name", NAMES)
def test_an_example_plugin_installs_is_listed_and_passes_its_own_tests(name: str, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip_install(site, PLUGINS / name)
    listed = run_hematokit("plugins", site=site)
    assert listed.returncode == 0, listed.stderr
    assert name in listed.stdout
    assert "failed" not in listed.stdout

    environment = environment_with(site) | {"HEMATOKIT_PLUGINS": name}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(PLUGINS / name / "tests")],
        capture_output=True,
        text=True,
        env=environment,
        # Not in the package's own folder, whose files would be imported instead of the installed ones.
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_the_toolkit_imports_none_of_them() -> None:
    sources = (PLUGINS.parent / "src").rglob("*.py")
    modules = [name.replace("-", "_") for name in NAMES]
    assert not [path for path in sources for module in modules if module in path.read_text(encoding="utf-8")]
