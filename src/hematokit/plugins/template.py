"""The template of a plugin: a package that installs and passes its own tests."""

from __future__ import annotations

import importlib.util
import keyword
import re
import secrets
import shutil
import sys
from importlib import resources
from pathlib import Path
from string import Template
from typing import Final

from hematokit._version import __version__
from hematokit.errors import PluginError
from hematokit.files import TEMPORARY_PREFIX, one_line_write_errors
from hematokit.plugins.hookspecs import HOOKS, PROJECT
from hematokit.plugins.loading import load_plugins

__all__ = ["KINDS", "new_plugin"]

KINDS: Final = ("backbone", "augmenter", "explainer", "detector")


def new_plugin(name: str, kind: str, folder: str | Path = ".") -> Path:
    """Write the skeleton of a plugin package.

    Parameters
    ----------
    name : str
        The package's, as pip will know it: ``"hematokit-stain-jitter"``. The module is called alike with ``_``, and
        what it registers alike without ``hematokit-``.
    kind : str
        ``"backbone"``, ``"augmenter"``, ``"explainer"`` or ``"detector"``.
    folder : path
        Where the package's folder is made.

    Returns
    -------
    Path
        The package's folder.

    Raises
    ------
    PluginError
        If the name cannot be used or is taken, the folder exists already or cannot be written; nothing is left behind.
    """
    if kind not in KINDS:
        raise PluginError(f"a plugin cannot be a {kind!r}; choose among {', '.join(KINDS)}")
    package, module, thing = _names(name, kind)
    parent = Path(folder)
    target = parent / package
    if target.exists():
        raise PluginError(f"{target} exists already; choose another name, or another place with --folder")
    values = {
        "package": package,
        "module": module,
        "name": thing,
        "title": thing.replace("-", " ").replace("_", " ").replace(".", " "),
        "kind": kind,
        "hooks": HOOKS,
        "hematokit": __version__,
    }
    temporary = parent / f"{TEMPORARY_PREFIX}{package}-{secrets.token_hex(8)}"
    with one_line_write_errors(parent, PluginError, "choose another place with --folder"):
        try:
            (temporary / module).mkdir(parents=True)
            (temporary / "tests").mkdir()
            _write("common/pyproject.toml", temporary / "pyproject.toml", values)
            _write("common/README.md", temporary / "README.md", values)
            _write(f"{kind}/__init__.py", temporary / module / "__init__.py", values)
            _write(f"{kind}/{kind}.py", temporary / module / f"{kind}.py", values)
            _write(f"{kind}/test.py", temporary / "tests" / f"test_{module}.py", values)
            temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return target


def _names(name: str, kind: str) -> tuple[str, str, str]:
    """The package, the module and what it registers."""
    package = re.sub(r"[-_.]+", "-", name.strip()).lower()
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,60}[a-z0-9]", package) or package == PROJECT:
        raise PluginError(
            f"{name!r} cannot be a package's name; letters, digits and '-', beginning with a letter: hematokit-mine"
        )
    module = package.replace("-", "_")
    if keyword.iskeyword(module) or module in sys.stdlib_module_names or importlib.util.find_spec(module) is not None:
        raise PluginError(f"a module called {module} exists already; choose another name: hematokit-{package}")
    thing = package.removeprefix(f"{PROJECT}-")
    registry = load_plugins().kinds[f"{kind}s"]
    if thing in registry:
        owner = registry.owner(thing).package
        raise PluginError(
            f"{kind} {thing!r} of package {owner} exists already; choose another name: hematokit-my-{thing}"
        )
    return package, module, thing


def _write(source: str, target: Path, values: dict[str, str]) -> None:
    # Their names end in .txt, so that tools do not take them for modules of this package.
    text = resources.files("hematokit.plugins").joinpath(f"templates/{source}.txt").read_text("utf-8")
    target.write_text(Template(text).substitute(values), encoding="utf-8")
