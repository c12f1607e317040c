"""Skeletons of plugins, and the rules about packages, with packages that pip installed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hematokit.cli.main import main
from hematokit.conformance import check_plugin
from hematokit.conformance.checking import RULES
from hematokit.errors import PluginError
from hematokit.plugins.template import KINDS, new_plugin
from pluginkit import environment_with, pip_install, plugins_in_this_process, run_hematokit, write_package

HEAVY = """
import torch
import hematokit
@hematokit.hookimpl
def register_augmenters(register):
    register(hematokit.AugmenterSpec("heavy", "Imports torch", lambda: lambda images, generator: images))
"""
SILENT = "def register_augmenters(register):\n    pass\n"
BROKEN = "raise RuntimeError('no licence found')\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources, target = tmp_path_factory.mktemp("packages"), tmp_path_factory.mktemp("site")
    for kind in KINDS:
        new_plugin(f"hematokit-my-{kind}", kind, sources)
    pip_install(
        target,
        *(sources / f"hematokit-my-{kind}" for kind in KINDS),
        write_package(sources, "hemato-heavy", HEAVY),
        write_package(sources, "hemato-silent", SILENT),
        write_package(sources, "hemato-broken-kit", BROKEN),
    )
    for kind in KINDS:
        (sources / f"hematokit-my-{kind}" / "tests").rename(target / f"tests-of-{kind}")
    return target


def test_a_new_plugin_appears(site: Path) -> None:
    listed = json.loads(run_hematokit("plugins", "--json", site=site).stdout)
    for kind in KINDS:
        ours = next(item for item in listed[f"{kind}s"] if item["name"] == f"my-{kind}")
        assert (ours["package"], ours["version"]) == (f"hematokit-my-{kind}", "0.1.0")
        assert next(item for item in listed["plugins"] if item["name"] == f"my-{kind}")["hooks"] == listed["hooks"]


def test_a_new_plugin_passes_its_own_tests(site: Path) -> None:
    """All four kinds in one process: most of the time is importing torch."""
    tests = [str(site / f"tests-of-{kind}") for kind in KINDS]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", *tests],
        capture_output=True,
        text=True,
        cwd=site,
        env=environment_with(site) | _only(*KINDS),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rules = sum(len(RULES[kind]) + len(RULES["package"]) for kind in KINDS)
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|skipped|failed)", done.stdout)}
    skipped = {} if torch.cuda.is_available() else {"skipped": 2}
    assert counts == {"passed": rules + len(KINDS) - sum(skipped.values()), **skipped}


def _only(*kinds: str) -> dict[str, str]:
    return {"HEMATOKIT_PLUGINS": ",".join(f"hematokit-my-{kind}" for kind in kinds)}


@pytest.fixture
def installed(site: Path) -> Iterator[None]:
    with plugins_in_this_process(site, "hematokit-my-augmenter", "hemato-heavy", "hemato-silent", "hemato-broken-kit"):
        yield


@pytest.mark.usefixtures("installed")
def test_check_says_a_verdict_per_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "check", "hematokit-my-augmenter", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["counts"]["failed"] == 0
    rules = {(item["subject"], item["rule"]): item["outcome"] for item in document["verdicts"]}
    assert rules["package hematokit-my-augmenter", "light"] == "passed"
    assert rules["augmenter my-augmenter", "per-image"] == "passed"

    assert main(["plugins", "check", "my-augmenter", "--set", "augmenter.strength=0.3"]) == 0
    assert "  passed   per-image" in capsys.readouterr().out


@pytest.mark.usefixtures("installed")
def test_check_ends_with_1_where_a_rule_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "check", "hemato-heavy"]) == 1
    printed = capsys.readouterr().out
    assert "FAILED   light" in printed
    assert "registering imports torch" in printed
    assert "warned   hooks" in printed
    assert "its dependencies do not name hematokit" in printed


@pytest.mark.usefixtures("installed")
def test_a_package_that_does_not_load_says_why() -> None:
    outcomes = {each.rule: (each.outcome, each.detail) for each in check_plugin("hemato-broken-kit")}
    assert outcomes["loads"] == ("failed", "failed: import: RuntimeError: no licence found")
    assert outcomes["light"] == ("skipped", "not tried: loads failed")
    silent = {each.rule: each for each in check_plugin("hemato-silent")}
    assert silent["provides"].outcome == "failed"
    assert "@hematokit.hookimpl" in silent["provides"].detail


@pytest.mark.usefixtures("installed")
def test_options_are_shown_and_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "show", "hematokit-my-augmenter"]) == 0
    line = "--set augmenter.strength=: largest change, as a share; number, 0 to 0.5, default 0.1"
    assert line in capsys.readouterr().out
    assert main(["train", "--help"]) == 0
    assert "augmenter.strength (my-augmenter): largest change" in capsys.readouterr().out
    assert main(["plugins", "show", "hemato-broken-kit"]) == 0
    assert "no licence found" in capsys.readouterr().out
    assert main(["plugins", "show", "nothing"]) == 2


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("hematokit-x", "painter", "choose among backbone"),
        ("2fast", "augmenter", "cannot be a package's name"),
        ("hematokit", "augmenter", "cannot be a package's name"),
        ("../up", "augmenter", "cannot be a package's name"),
        ("json", "augmenter", "a module called json exists already"),
        ("numpy", "augmenter", "a module called numpy exists already"),
        ("hematokit-flips", "augmenter", "augmenter 'flips' of package hematokit exists already"),
    ],
)
def test_names_that_cannot_be_used(name: str, kind: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=words):
        new_plugin(name, kind, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_or_left_half_written(tmp_path: Path) -> None:
    made = new_plugin("hematokit-once", "augmenter", tmp_path)
    (made / "mine.txt").write_text("mine")
    with pytest.raises(PluginError, match="exists already"):
        new_plugin("Hematokit_Once", "augmenter", tmp_path)
    assert (made / "mine.txt").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(PluginError, match="choose another place with --folder"):
        new_plugin("hematokit-twice", "augmenter", tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "hematokit-once"]
