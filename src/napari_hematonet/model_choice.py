"""Choosing a model: one used before, a folder, an ONNX file, or the demonstration's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QFileDialog, QHBoxLayout, QPushButton, QVBoxLayout, QWidget

from hematokit.errors import ModelError
from hematokit.imaging.reading import printable
from napari_hematonet._settings import setting, store_setting
from napari_hematonet.demo_model import DEMO_NAME, demo_folder, find_demo_model
from napari_hematonet.state import guarded

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ModelChoice", "recent_models", "remember_model"]

_MOST: Final = 8


def recent_models() -> list[str]:
    """Return the paths of models: the one set in the preferences, those used last, the demonstration's; that exist."""
    demo = find_demo_model()
    paths = [str(setting("model")), *str(setting("recent_models")).splitlines(), *([] if demo is None else [str(demo)])]
    return [path for path in dict.fromkeys(map(str.strip, paths)) if path and _exists(path)]


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def remember_model(path: str) -> None:
    """Put a model before the others that were used."""
    older = [other for other in str(setting("recent_models")).splitlines() if other.strip() and other != path]
    store_setting("recent_models", "\n".join([path, *older][:_MOST]))


def _named(path: str) -> str:
    """Name a model for people: its folder's name, and what tells it from others of that name."""
    place = Path(path)
    if place == demo_folder() / "run":
        return DEMO_NAME
    if place.name == "bundle":
        place = place.parent
    return printable(f"{place.name}  ({place.parent.name or place.parent})")


class ModelChoice(QWidget):  # type: ignore[misc] # Qt has no types here
    """A list of models with buttons to add one.

    Attributes
    ----------
    changed : signal of str
        The path of the model chosen; empty if there is none.
    demo_wanted : signal
        The user wants the demonstration's model, which is not there yet.
    """

    changed = Signal(str)
    demo_wanted = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.list = QComboBox()
        self.list.setObjectName("model")
        self.list.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.list.setMinimumContentsLength(16)
        self.list.currentIndexChanged.connect(self._told)
        row = QHBoxLayout()
        row.setContentsMargins(0, 0, 0, 0)
        self.demo_button = self._button(
            "Demo model", "A small model for drawn cells: trained here the first time, which takes some minutes", row
        )
        self.folder_button = self._button("Folder…", "The folder of a run or bundle that hematokit train wrote", row)
        self.file_button = self._button("ONNX…", "An ONNX file that hematokit export wrote", row)
        self.demo_button.clicked.connect(self._use_demo)
        self.folder_button.clicked.connect(self._ask_folder)
        self.file_button.clicked.connect(self._ask_file)
        box = QVBoxLayout(self)
        box.setContentsMargins(0, 0, 0, 0)
        box.setSpacing(4)
        box.addWidget(self.list)
        box.addLayout(row)
        self.refresh(recent_models())

    def _button(self, text: str, tip: str, row: QHBoxLayout) -> QPushButton:
        button = QPushButton(text)
        button.setToolTip(tip)
        row.addWidget(button)
        return button

    @property
    def path(self) -> str:
        """Path of the model chosen; empty if there is none."""
        return str(self.list.currentData() or "")

    def refresh(self, paths: Iterable[str]) -> None:
        """Show these models, the first chosen."""
        self.list.blockSignals(True)
        self.list.clear()
        for path in paths:
            self._append(path)
        if not self.list.count():
            self.list.addItem("no model yet: choose one below", "")
        self.list.setCurrentIndex(0)
        self.list.blockSignals(False)
        self._told()

    def _append(self, path: str) -> None:
        self.list.addItem(_named(path), path)
        self.list.setItemData(self.list.count() - 1, printable(path), 3)  # 3: the role of tool tips

    def choose(self, path: str | Path) -> None:
        """Choose a model by its path.

        Raises
        ------
        ModelError
            If there is none.
        """
        from hematokit.models.bundle import find_model

        found = find_model(path)
        # A run is named by itself, not by the folder inside it.
        chosen = str((found if found.is_file() else Path(path)).absolute())
        others = [str(self.list.itemData(row)) for row in range(self.list.count()) if self.list.itemData(row)]
        self.refresh([chosen, *(other for other in others if other != chosen)])
        remember_model(chosen)

    @guarded
    def _told(self) -> None:
        self.list.setToolTip(printable(self.path))
        self.changed.emit(self.path)

    @guarded
    def _use_demo(self) -> None:
        made = find_demo_model()
        if made is None:
            self.demo_wanted.emit()
        else:
            self.choose(made)

    @guarded
    def _ask_folder(self) -> None:
        self._ask(lambda: QFileDialog.getExistingDirectory(self, "Run or bundle", self._beside()))

    @guarded
    def _ask_file(self) -> None:
        self._ask(lambda: QFileDialog.getOpenFileName(self, "ONNX file", self._beside(), "ONNX (*.onnx)")[0])

    def _ask(self, dialog: Callable[[], str]) -> None:
        path = dialog()
        if path:
            self.choose(path)

    def _beside(self) -> str:
        return str(Path(self.path).parent) if self.path else str(Path.home())

    def needed(self) -> str:
        """Return the path of the model chosen.

        Raises
        ------
        ModelError
            If there is none, or it has gone since.
        """
        if self.path and not _exists(self.path):
            raise ModelError(f"the model is no longer there: {self.path} was moved or deleted; choose another")
        if not self.path:
            raise ModelError(
                "no model is chosen yet: click 'Demo model' to have one trained on drawn cells, or choose the folder "
                "of a run or bundle, or an ONNX file"
            )
        return self.path
