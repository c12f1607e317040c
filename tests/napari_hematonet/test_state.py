"""Talking to the user, and slots out of which nothing gets; settings."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from hematokit.errors import FieldError
from hematokit.taxonomy import MATEK_21
from napari_hematonet.settings import class_keys, key_of, reviewer, setting, store_setting
from napari_hematonet.state import guarded, notify


def test_a_users_error_is_shown_and_ours_is_logged_too(
    qapp: Any, told: list[tuple[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    @guarded
    def slot(kind: str) -> str:
        if kind == "user":
            raise FieldError("the field is empty;\nopen another")
        if kind == "ours":
            raise ZeroDivisionError("by zero")
        return kind

    assert slot("user") is None
    assert told == [("error", "the field is empty; open another")]
    assert not caplog.records
    told.clear()
    with caplog.at_level(logging.ERROR):
        assert slot("ours") is None
    assert "by zero" in told[0][1]
    assert caplog.records[0].exc_info is not None
    assert slot("fine") == "fine"
    assert slot("fine", "and what a signal sends besides") == "fine"


def test_a_button_whose_slot_fails_does_not_end_the_program(qtbot: Any, told: list[tuple[str, str]]) -> None:
    from qtpy.QtWidgets import QPushButton

    clicks = []

    class Form:
        @guarded
        def run(self) -> None:
            clicks.append(1)
            raise RuntimeError("broken")

    form, button = Form(), QPushButton()
    qtbot.addWidget(button)
    button.clicked.connect(form.run)
    button.click()
    assert clicks == [1]
    assert "broken" in told[0][1]


def test_messages_are_one_line_and_not_endless(qapp: Any, told: list[tuple[str, str]]) -> None:
    notify("a\nb\x1b[31m" + "c" * 1000, "warning")
    ((kind, message),) = told
    assert kind == "warning"
    assert message.startswith("a b\\x1b")
    assert len(message) <= 400


def test_settings_are_napari_s_and_stay(qapp: Any) -> None:
    assert setting("detector") == "nuclei"
    assert reviewer() != "Ada"
    try:
        store_setting("reviewer", "  Ada ")
        store_setting("min_probability", 0.7)
        assert (reviewer(), setting("min_probability")) == ("Ada", 0.7)
    finally:
        store_setting("reviewer", "")
        store_setting("min_probability", 0.5)


def test_every_class_has_a_key_of_its_own(qapp: Any) -> None:
    keys = class_keys(MATEK_21)
    assert sorted(keys.values()) == sorted(MATEK_21.codes)
    assert keys["B"] == "BLA"
    try:
        store_setting("classes", "b=BAS, F1 = EOS; X=NOPE, =LYT", "keys")
        keys = class_keys(MATEK_21)
        assert (keys["B"], keys["F1"]) == ("BAS", "EOS")
        assert sorted(keys.values()) == sorted(MATEK_21.codes)
        assert "NOPE" not in keys.values()
        store_setting("next_cell", " ", "keys")
        assert key_of("next_cell") == "Right"
    finally:
        store_setting("classes", "", "keys")
        store_setting("next_cell", "Right", "keys")
