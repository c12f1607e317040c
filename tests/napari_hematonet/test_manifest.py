"""The manifest says what is there: every command, menu and widget of it resolves."""

from __future__ import annotations

from typing import Any

import pytest
from npe2 import PluginManifest
from npe2.manifest.utils import import_python_name

from hematokit.plugins import load_plugins


@pytest.fixture(scope="module")
def manifest() -> PluginManifest:
    return PluginManifest.from_distribution("hematokit")


def contributed(manifest: PluginManifest) -> list[tuple[str, str]]:
    """Where the manifest names a command, and which."""
    found = []
    for kind in ("readers", "writers", "widgets", "sample_data"):
        found += [(kind, entry.command) for entry in getattr(manifest.contributions, kind) or []]
    found += [(menu, item.command) for menu, items in manifest.contributions.menus.items() for item in items]
    return found


def test_the_manifest_is_valid_and_found(manifest: PluginManifest) -> None:
    manifest.validate_imports()
    assert (manifest.name, manifest.display_name) == ("hematokit", "HematoNet")


def test_every_command_leads_to_something_that_can_be_called(manifest: PluginManifest) -> None:
    commands = manifest.contributions.commands or []
    assert len({command.id for command in commands}) == len(commands)
    for command in commands:
        assert command.python_name is not None
        assert callable(import_python_name(command.python_name)), command.id


def test_everything_that_is_contributed_is_a_command(manifest: PluginManifest) -> None:
    known = {command.id for command in manifest.contributions.commands or []}
    used = contributed(manifest)
    assert [pair for pair in used if pair[1] not in known] == []
    assert known == {command for _, command in used}


def test_menus_exist_in_napari(manifest: PluginManifest) -> None:
    from napari._app_model.constants._menus import MenuId

    offered = {str(menu) for menu in MenuId.contributables()}
    assert set(manifest.contributions.menus) <= offered
    assert "napari/layers/classify" in manifest.contributions.menus


def test_widgets_take_the_viewer_and_are_qt_or_magicgui(manifest: PluginManifest) -> None:
    from magicgui.widgets import Widget
    from napari._qt._qplugins._qnpe2 import _get_widget_viewer_param
    from qtpy.QtWidgets import QWidget

    names = [widget.display_name for widget in manifest.contributions.widgets or []]
    assert names == ["Classify field", "Legend and differential", "Why", "Review", "Classify folder"]
    places = {command.id: command.python_name for command in manifest.contributions.commands or []}
    for widget in manifest.contributions.widgets or []:
        made = import_python_name(str(places[widget.command]))
        assert issubclass(made, QWidget | Widget)
        assert _get_widget_viewer_param(made, widget.display_name) == "napari_viewer"


def test_defaults_stand_in_the_registry_and_once(manifest: PluginManifest) -> None:
    from napari_hematonet.settings import _DEFAULTS

    written: dict[str, dict[str, Any]] = {
        group: {name: entry.default for name, entry in part.properties.items()}
        for group, part in manifest.contributions.configurations.items()
    }
    assert written == _DEFAULTS
    plugins = load_plugins()
    assert written["general"]["detector"] in plugins.detectors.names()
    assert written["general"]["explainer"] in plugins.explainers.names()


def test_the_menus_show_it(viewer: Any) -> None:
    from napari._app_model import get_app_model

    menus = get_app_model().menus
    for menu in ("napari/layers/classify", "napari/plugins/hematokit"):
        commands = {item.command.id for item in menus.get_menu(menu) if hasattr(item, "command")}
        assert "hematokit.classify" in commands
