"""How the dock "Why" looks: a cell and its map, the bars of its classes, what is asked, and the buttons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from magicgui.widgets import CheckBox, ComboBox, Container
from qtpy.QtCore import Qt
from qtpy.QtGui import QImage, QPixmap
from qtpy.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QPushButton, QScrollArea, QVBoxLayout, QWidget

from napari_hematonet._settings import setting
from napari_hematonet.bars import ProbabilityBars
from napari_hematonet.following import FollowingDock

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["OWN_CLASS", "WhyForm", "as_pixmap"]

OWN_CLASS: Final = "the model's class"
_SIDE: Final = 150


class WhyForm(FollowingDock):
    """The parts of the dock, in their places; what they do is `WhyWidget`'s."""

    def __init__(self) -> None:
        super().__init__()
        from hematokit.plugins import load_plugins

        explainers = load_plugins().explainers
        names = explainers.names()
        wanted = str(setting("explainer"))
        self.title = QLabel()
        self.title.setWordWrap(True)
        self.title.setTextFormat(Qt.TextFormat.PlainText)
        self.crop, self.picture = QLabel(), QLabel()
        pictures = QHBoxLayout()
        for label in (self.crop, self.picture):
            label.setFixedSize(_SIDE, _SIDE)
            label.setAlignment(Qt.AlignmentFlag.AlignCenter)
            label.setStyleSheet("background: rgba(127, 127, 127, 40)")
            pictures.addWidget(label)
        pictures.addStretch()
        self.bars = ProbabilityBars()
        self.method = ComboBox(label="Explainer", choices=names, value=wanted if wanted in names else names[0])
        self.target = ComboBox(label="Why (not)", choices=[(OWN_CLASS, "")])
        self.automatic = CheckBox(text="Explain a cell as soon as it is clicked", value=True)
        form = Container(widgets=[self.method, self.target, self.automatic])
        form.native.layout().setContentsMargins(0, 0, 0, 0)
        for number, name in enumerate(names):
            self.method.native.setItemData(number, explainers.get(name).description, Qt.ItemDataRole.ToolTipRole)
        self.explain_button = QPushButton("Explain selected")
        self.explain_button.setToolTip("Explain every selected cell. Shift-click selects several")
        self.cancel_button = QPushButton("Cancel")
        self.previous_button, self.next_button = QPushButton("◀ Previous"), QPushButton("Next ▶")
        buttons, steps = QHBoxLayout(), QHBoxLayout()
        buttons.addWidget(self.explain_button)
        buttons.addWidget(self.cancel_button)
        steps.addWidget(self.previous_button)
        steps.addWidget(self.next_button)
        self.progress = QProgressBar()
        self.progress.setTextVisible(False)
        self.progress.setFixedHeight(6)
        self.status = QLabel()
        self.status.setWordWrap(True)
        self.status.setTextFormat(Qt.TextFormat.PlainText)
        self.research = QLabel("A map shows what the model used, not what is right. Research use only.")
        self.research.setWordWrap(True)
        self.research.setEnabled(False)
        inner = QWidget()
        column = QVBoxLayout(inner)
        column.addWidget(self.title)
        column.addLayout(pictures)
        column.addWidget(self.bars)
        column.addWidget(form.native)
        column.addLayout(buttons)
        column.addWidget(self.progress)
        column.addWidget(self.status)
        column.addLayout(steps)
        column.addWidget(self.research)
        column.addStretch()
        scroll = QScrollArea()
        scroll.setWidgetResizable(True)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setFrameShape(QScrollArea.Shape.NoFrame)
        scroll.setWidget(inner)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.addWidget(scroll)
        self.setMinimumWidth(2 * _SIDE + 40)


def as_pixmap(pixels: npt.NDArray[np.uint8]) -> QPixmap:
    """Return a picture as it is shown in the dock; `pixels` (H, W, 3)."""
    whole = np.ascontiguousarray(pixels)
    height, width = whole.shape[:2]
    image = QImage(whole.data, width, height, 3 * width, QImage.Format.Format_RGB888).copy()
    return QPixmap.fromImage(image).scaled(
        _SIDE, _SIDE, Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.SmoothTransformation
    )
