"""The dock "Why": a cell, its probabilities, and the attribution map of a class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from magicgui.widgets import CheckBox, ComboBox, Container
from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QImage, QPixmap
from qtpy.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QPushButton, QScrollArea, QVBoxLayout, QWidget

from hematokit.annotations.cells import class_scores
from napari_hematonet.class_widgets import Bar, ProbabilityBars
from napari_hematonet.docks import in_front, join_docks
from napari_hematonet.explaining import Crop, MapLayer, Reason, Request, WhyJob
from napari_hematonet.following import Follower, FollowingDock, Keys, go_on, pick_with_mouse, step_keys
from napari_hematonet.settings import setting
from napari_hematonet.state import guarded, nothing_shown, notify, unwrapped

if TYPE_CHECKING:
    from collections.abc import Sequence

    import napari
    import numpy.typing as npt

__all__ = ["WhyWidget"]

_OWN_CLASS: Final = "predicted class"
_SIDE: Final = 150


class _WhyForm(FollowingDock):
    """Layout of the dock; `WhyWidget` defines the behaviour."""

    def __init__(self) -> None:
        super().__init__()
        from hematokit.plugins import load_plugins

        explainers = load_plugins().explainers
        names = explainers.names()
        wanted = str(setting("explainer"))
        self.title = QLabel()
        self.title.setWordWrap(True)
        self.title.setTextFormat(Qt.TextFormat.PlainText)
        self.crop, self.overlay = QLabel(), QLabel()
        images = QHBoxLayout()
        for label in (self.crop, self.overlay):
            label.setFixedSize(_SIDE, _SIDE)
            label.setAlignment(Qt.AlignmentFlag.AlignCenter)
            label.setStyleSheet("background: rgba(127, 127, 127, 40)")
            images.addWidget(label)
        images.addStretch()
        self.bars = ProbabilityBars()
        self.method = ComboBox(label="Explainer", choices=names, value=wanted if wanted in names else names[0])
        self.target = ComboBox(label="Why (not)", choices=[(_OWN_CLASS, "")])
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
        column.addLayout(images)
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


def _as_pixmap(pixels: npt.NDArray[np.uint8]) -> QPixmap:
    """Return an image (H, W, 3) as it is shown in the dock."""
    whole = np.ascontiguousarray(pixels)
    height, width = whole.shape[:2]
    image = QImage(whole.data, width, height, 3 * width, QImage.Format.Format_RGB888).copy()
    return QPixmap.fromImage(image).scaled(
        _SIDE, _SIDE, Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.SmoothTransformation
    )


_PAUSE_MS: Final = 120
"""Delay in milliseconds, so that cells passed by holding down an arrow key are not explained."""
_BARS: Final = 8


class WhyWidget(_WhyForm):
    """Dock that explains the selected cell, or several on request.

    Parameters
    ----------
    napari_viewer : napari.Viewer
    """

    def __init__(self, napari_viewer: napari.Viewer) -> None:
        super().__init__()
        self.viewer = unwrapped(napari_viewer)
        self.job = WhyJob(self)
        self.follower = Follower(self.viewer, self)
        pick_with_mouse(self.viewer)
        self._keys = Keys("Why")
        self.map = MapLayer(self.viewer)
        self._asked: tuple[str, ...] = ()
        # Cell of the name and bars, and cell of the patch and its map.
        self._chosen = self._pictured = ""
        # Request made with the button; its map stays while its cells are inspected.
        self._wanted: Request | None = None
        # The same request before some of its cells were deleted, for an undo.
        self._before: Request | None = None
        self._filling = False
        self._pause = QTimer(self)
        self._pause.setSingleShot(True)
        self._pause.setInterval(_PAUSE_MS)
        self._busy(False)
        join_docks(self, "Why", self._turned)
        self._connect()
        self._new_layer()

    def _connect(self) -> None:
        self.follower.layer_changed.connect(self._new_layer)
        self.follower.selection_changed.connect(self._new_cell)
        self.follower.cells_changed.connect(self._cells_changed)
        self._pause.timeout.connect(self.explain_first)
        self.job.cropped.connect(self._show_crop)
        self.job.answered.connect(self._show_reason)
        self.job.failed.connect(self._say_failed)
        self.job.noted.connect(self._note)
        self.job.progressed.connect(self._advance)
        self.job.doing.connect(self._say)
        self.job.busy_changed.connect(self._busy)
        self.bars.chosen.connect(self._ask_about)
        self.method.changed.connect(self._ask_again)
        self.target.changed.connect(self._ask_again)
        self.explain_button.clicked.connect(self.explain_selected)
        self.cancel_button.clicked.connect(self.cancel)
        self.next_button.clicked.connect(self._go_on)
        self.previous_button.clicked.connect(self._go_back)

    def let_go(self) -> None:
        """Release keys, stop work, stop following."""
        self._pause.stop()
        self.job.cancel()
        self._keys.release()
        # A map is removed with the dock, which states its cell and class.
        self._forget_map()
        self.follower.close()

    # --- requests ----------------------------------------------------------------------------------------------------

    @guarded
    def explain_first(self) -> None:
        """Explain the selected cell; of several, the first."""
        self._explain(self.follower.cell_ids[:1])

    @guarded
    def explain_selected(self) -> None:
        """Explain all selected cells, in one layer."""
        if not self.follower.cell_ids:
            missing = "no cell is selected; click one, with Shift for several"
            notify(missing if self.follower.layer is not None else nothing_shown(self.viewer), "warning")
            return
        self._explain(self.follower.cell_ids, keep=True)

    @guarded
    def cancel(self) -> None:
        """Give up what is computed."""
        self._pause.stop()
        self.job.cancel()
        self._show_no_map()
        self.status.setText("Cancelled.")

    def _explain(self, cell_ids: list[str], *, keep: bool = False) -> None:
        state = self.follower.state
        if state is None or not cell_ids:
            return
        cells = state.review.cells.set_index("cell_id")
        cell_ids = [cell for cell in cell_ids if cell in cells.index]
        if "predicted" not in cells.columns or not all(cells["predicted"].loc[cell_ids]):
            self._say("These cells were not classified by a model; use Classify field before you explain them.")
            return
        asked = str(self.target.value or "")
        targets = [asked or str(cells["predicted"].loc[cell]) for cell in cell_ids]
        self._pause.stop()
        request = Request(state, tuple(cell_ids), tuple(targets), str(self.method.value))
        if keep:
            self._wanted, self._before = request, None
        elif self._wanted is None or not self._wanted.covers(request) or not self.map.shows(self._wanted):
            self._wanted = None
        self._asked = tuple(cell_ids) if self._wanted is None else self._wanted.cell_ids
        self._say(f"Computing {self.method.value} …")
        self.job.ask(request)

    @guarded
    def _ask_about(self, code: str) -> None:
        """A click on a bar: about this class, or about the model's own again."""
        own = "" if not self.bars.bars or code == self.bars.bars[0].code or code == self.target.value else code
        if own in [choice[1] if isinstance(choice, tuple) else choice for choice in self.target.choices]:
            self.target.value = own

    @guarded
    def _ask_again(self) -> None:
        if self._filling:
            return
        self._show_cell()
        ids = self.follower.cell_ids
        if not ids:
            return
        if ids[0] in self._asked:
            # For another explainer or class, explain the cells whose map is shown.
            self._explain(list(self._asked), keep=self._wanted is not None)
        elif self.automatic.value:
            self._explain(ids[:1])

    # --- what is shown ------------------------------------------------------------------------------------------------

    @guarded
    def _new_layer(self) -> None:
        self.job.cancel()
        self._forget_map()
        self._picture_nothing()  # cells of two layers may have the same ids
        self._chosen = ""
        self._keys.bind(self.follower.layer, step_keys(self.viewer))
        state = self.follower.state
        self._filling = True
        try:
            codes = [] if state is None else [name[2:] for name in state.review.cells.columns if name.startswith("p_")]
            names = {} if state is None else {entry.code: entry.name for entry in state.review.taxonomy}
            self.target.choices = [(_OWN_CLASS, ""), *((f"{code}  {names.get(code, '')}", code) for code in codes)]
            self.target.value = ""
        finally:
            self._filling = False
        self._show_cell()

    @guarded
    def _new_cell(self) -> None:
        """Another cell is selected."""
        ids = self.follower.cell_ids
        if ids[:1] != [self._chosen]:
            self._filling = True
            try:
                # The class is chosen for one cell; the next cell is explained for its predicted class.
                self.target.value = ""
            finally:
                self._filling = False
        self._show_cell()
        self._pause.stop()
        if not ids or ids[0] not in self._asked:
            if self._wanted is None:
                # The current request is about a cell that is no longer selected.
                self.job.cancel()
            self.status.clear()
        if not ids:
            if self._wanted is None:
                self._forget_map()
            return
        if not in_front(self):
            # Behind another tab: a map would cover the cell that is being reviewed.
            if ids[0] not in self._asked and self._wanted is None:
                self._forget_map()
        elif self.automatic.value and len(ids) == 1:
            self._pause.start()

    @guarded
    def _cells_changed(self, kind: str = "", cell_ids: Sequence[str] = ()) -> None:
        """A correction leaves a map as it is, which is about the model; a deleted cell takes its own along."""
        self._show_cell()
        if kind == "add" and self._before is not None and set(cell_ids).issubset(self._before.cell_ids):
            self._bring_back()
            return
        gone = set(cell_ids).intersection(self._asked) if kind == "delete" else set()
        if not gone:
            return
        left, kept = [cell for cell in self._asked if cell not in gone], self._wanted
        before = self._before or kept
        self.job.cancel()
        self._forget_map()
        if left and kept is not None and self.follower.state is kept.state:
            asked = dict(zip(kept.cell_ids, kept.targets, strict=True))
            self._wanted = Request(kept.state, tuple(left), tuple(asked[cell] for cell in left), kept.method)
            self._asked = tuple(left)
            self._before = before
            self.job.ask(self._wanted)

    def _bring_back(self) -> None:
        """A deletion was undone: the map takes its cells in again that are there."""
        before, now = self._before, self._wanted
        if before is None or now is None or before.state is not self.follower.state:
            self._before = None
            return
        there = set(before.state.review.cells["cell_id"])
        asked = dict(zip(before.cell_ids, before.targets, strict=True))
        cells = tuple(cell for cell in before.cell_ids if cell in there)
        self._before = before if len(cells) < len(before.cell_ids) else None
        self._wanted = Request(now.state, cells, tuple(asked[cell] for cell in cells), now.method)
        self._asked = cells
        self.job.ask(self._wanted)

    @guarded
    def _turned(self, front: bool) -> None:
        """Explain what was selected while another tab was in front."""
        ids = self.follower.cell_ids
        if front and self.automatic.value and len(ids) == 1 and ids[0] not in self._asked:
            self._pause.start()

    @guarded
    def _show_cell(self) -> None:
        """Show the name and the probabilities of the selected cell."""
        state, ids = self.follower.state, self.follower.cell_ids
        self.explain_button.setText(f"Explain {len(ids)} selected" if len(ids) > 1 else "Explain selected")
        self.explain_button.setEnabled(bool(ids))
        self._chosen = ids[0] if ids else ""
        if self._pictured != self._chosen:
            self._picture_nothing()
        if state is None or not ids:
            self.title.setText("Click a cell." if state is not None else nothing_shown(self.viewer))
            self.bars.show_bars((), "")
            self._picture_nothing()
            self.status.clear()
            return
        review = state.review
        place = review.cells["cell_id"].tolist().index(ids[0])
        row = review.cells.iloc[[place]]
        scores = class_scores(row)
        shown = str(review.shown_label().iloc[place])
        asked = str(self.target.value or "") or (scores[0][0] if scores else "")
        self.title.setText(_cell_text(row, shown, scores, len(ids), bool(review.low_confidence().iloc[place])))
        known = {entry.code: entry for entry in review.taxonomy}
        listed = scores[:_BARS]
        listed += [pair for pair in scores[_BARS:] if pair[0] in (asked, shown)]
        self.bars.show_bars(
            [
                Bar(code, known[code].name, known[code].colour, share)
                if code in known
                else Bar(code, code, "#7f7f7f", share)
                for code, share in listed
            ],
            asked,
        )

    @guarded
    def _show_crop(self, crop: Crop) -> None:
        if crop.cell_id in self.follower.cell_ids[:1]:
            self.crop.setPixmap(_as_pixmap(crop.patch))
            self.overlay.clear()
            self._pictured = crop.cell_id

    def _picture_nothing(self) -> None:
        self.crop.clear()
        self.overlay.clear()
        self._pictured = ""

    @guarded
    def _show_reason(self, reason: Reason) -> None:
        chosen = self.follower.cell_ids[:1]
        if self.follower.state is not reason.request.state or self.follower.layer is None:
            return
        if reason.request is not self._wanted and not set(chosen).intersection(reason.request.cell_ids):
            return
        if chosen == [reason.request.cell_ids[0]]:
            self._pictured = chosen[0]
            self.crop.setPixmap(_as_pixmap(reason.patch))
            self.overlay.setPixmap(_as_pixmap(reason.picture))
        if self._wanted is None or reason.request is self._wanted or not self.map.shows(self._wanted):
            self.map.show(reason, self.follower.layer)
        cells, target = len(reason.request.cell_ids), reason.request.targets[0]
        about = f"{cells} cells, each for its class" if cells > 1 else f"for {target}"
        if cells > 1 and self.target.value:
            about = f"{cells} cells for {target}"
        took = f"{reason.seconds:.1f} s" if reason.seconds else "computed before"
        self._say(f"{reason.request.method}: {about} ({took}).")

    def _show_no_map(self) -> None:
        """Take away what another explainer, or another class, had for an answer."""
        self.overlay.clear()
        self._forget_map()

    def _forget_map(self) -> None:
        self._asked, self._wanted, self._before = (), None, None
        self.map.remove()

    @guarded
    def _say(self, text: str) -> None:
        self.status.setText(text)

    @guarded
    def _say_failed(self, message: str) -> None:
        self._show_no_map()
        self._say(message)
        notify(message, "error")

    @guarded
    def _note(self, message: str) -> None:
        notify(message, "warning")

    @guarded
    def _advance(self, done: int, total: int) -> None:
        self.progress.setRange(0, total if total > 1 else 0)
        self.progress.setValue(done)
        if total > 1:
            self._say(f"Computing {self.method.value}: {done} of {total} cells …")

    @guarded
    def _busy(self, busy: bool) -> None:
        self.cancel_button.setEnabled(busy)
        self.progress.setRange(0, 0 if busy else 1)
        self.progress.setValue(0)
        # The bar is not hidden, because the form would move at each click.
        self.progress.setStyleSheet("" if busy else "QProgressBar { background: transparent; border: none }")

    @guarded
    def _go_on(self) -> None:
        go_on(self.viewer)

    @guarded
    def _go_back(self) -> None:
        go_on(self.viewer, False)


def _cell_text(row: Any, shown: str, scores: list[tuple[str, float]], count: int, low_confidence: bool) -> str:
    """Return a line on the class of a cell.

    Parameters
    ----------
    row : DataFrame
        Its row of the cells table.
    shown : str
        The class that counts.
    scores : list of (str, float)
        Classes and probabilities by the model, the likeliest first.
    count : int
        Cells selected with it.
    low_confidence : bool
    """
    cell_id = str(row["cell_id"].iloc[0])
    text = f"{cell_id}: {shown or 'no class'}"
    if scores and shown == scores[0][0]:
        text += f", {100 * scores[0][1]:.0f} %"
    if bool(row["reviewed"].iloc[0]):
        text += f", reviewed (model: {scores[0][0]})" if scores and shown != scores[0][0] else ", reviewed"
    elif low_confidence:
        text += ", low-confidence"
    return text + (f"   (first of {count})" if count > 1 else "")
