"""The dock "Legend and differential": the classes with their colours and counts; which of them are shown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pandas as pd
from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QFont, QGuiApplication
from qtpy.QtWidgets import (
    QAbstractItemView,
    QFileDialog,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QPushButton,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
)

from hematokit.errors import FieldError, printable
from hematokit.files import one_line_write_errors, write_atomically, write_json
from napari_hematonet.background import Background, Failed
from napari_hematonet.cell_points import hidden_classes, show_classes
from napari_hematonet.class_widgets import swatch
from napari_hematonet.docks import join_docks
from napari_hematonet.following import Follower, FollowingDock
from napari_hematonet.state import FieldState, guarded, nothing_shown, notify, unwrapped

if TYPE_CHECKING:
    import napari
    from napari.layers import Points

    from hematokit.differential.summary import Ratio, Share, Summary
    from hematokit.review.session import Review
    from hematokit.taxonomy import Taxonomy

__all__ = ["COLUMNS", "Counted", "LegendWidget"]

COLUMNS: Final = ("Class", "Cells", "%", "95 % interval", "Low-confidence", "Reviewed")


def row_texts(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of a row of the legend: one of `Review.differential`, as a dict."""
    return (
        printable(str(entry["name"])),
        f"{entry['count']:,}",
        _number(entry["percent"]),
        "" if _missing(entry["low"]) else f"{entry['low']:.1f} – {entry['high']:.1f}",
        f"{entry['low_confidence']:,}" if entry["low_confidence"] else "",
        f"{entry['reviewed']:,}" if entry["reviewed"] else "",
    )


def _missing(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.1f}"


@dataclass(frozen=True)
class Counted:
    """Differential of the cells at one moment.

    Attributes
    ----------
    summary : Summary
        Totals, blasts and M:E.
    table : DataFrame
        As `Review.differential`.
    reviewed : int
        Cells that a person has looked at.
    """

    summary: Summary
    table: pd.DataFrame
    reviewed: int

    @classmethod
    def of(cls, cells: pd.DataFrame, taxonomy: Taxonomy, min_probability: float) -> Counted:
        """Count cells.

        A review never changes the table that it has shown once as its ``cells``, so that this may be done in another
        thread.
        """
        from hematokit.annotations.cells import called_classes
        from hematokit.review.table import differential_by_class, summarize

        summary = summarize(cells, taxonomy, min_probability)
        shown = pd.Series(called_classes(cells), index=cells.index)
        table = differential_by_class(cells, shown, taxonomy, summary)
        return cls(summary, table, int(cells["reviewed"].to_numpy(bool).sum()))


def headline(counted: Counted) -> str:
    """Return the figures above the table: cells, blasts, M:E."""
    entry = counted.summary
    parts = [f"{entry.cells:,} cells: {entry.counted:,} counted"]
    parts += [f"{entry.low_confidence:,} low-confidence"] if entry.low_confidence else []
    parts += [f"{entry.apart:,} counted separately"] if entry.apart else []
    parts += [f"{counted.reviewed:,} reviewed"] if counted.reviewed else []
    return "\n".join([", ".join(parts), f"Blasts {_share(entry.blasts)}", f"M:E {_ratio(entry.ratio)}"])


def _share(share: Share | None) -> str:
    if share is None or share.share is None:
        return "not defined"
    low, high = share.interval or (math.nan, math.nan)
    return f"{100 * share.share:.1f} % ({100 * low:.1f} – {100 * high:.1f})"


def _ratio(ratio: Ratio) -> str:
    if ratio.value is None:
        return f"not defined: {ratio.reason}"
    if ratio.interval is None:
        return f"{ratio.value:.2g}"
    low, high = ratio.interval
    return f"{ratio.value:.2g} ({low:.2g} – {'∞' if high is None else f'{high:.2g}'})"


def as_text(counted: Counted) -> str:
    """Return the differential for a spreadsheet: tab-separated, with a headline."""
    lines = [headline(counted), "", "\t".join(("Code", *COLUMNS))]
    rows = counted.table.to_dict("records")
    lines += ["\t".join((str(entry["code"]), *row_texts({str(key): entry[key] for key in entry}))) for entry in rows]
    return "\n".join([*lines, "", "For research use only"])


def _write_differential(review: Review, path: str | Path) -> None:
    """Write the differential of the shown cells as CSV or JSON.

    Parameters
    ----------
    review : Review
    path : path
        Ending in ``.csv`` (the table by class) or ``.json`` (also totals, blasts and M:E with their intervals).

    Raises
    ------
    FieldError
        If the ending is another, or the file cannot be written; an old file then stays.
    """
    from hematokit.annotations.writing import csv_text

    path = Path(path)
    ending = path.suffix.lower()
    if ending not in (".csv", ".json"):
        raise FieldError(
            f"{printable(str(path))}: the differential is written to .csv or .json; use one of these endings"
        )
    table = review.differential()
    with one_line_write_errors(path.parent, FieldError, "choose another folder, or free disk space"):
        if ending == ".csv":
            write_atomically(path, csv_text(table))
        else:
            summary = {**review.summary().to_dict(), "reviewed": int(review.cells["reviewed"].sum())}
            write_json(path, {"kind": "hematokit differential of a review", "research_use_only": True, **summary})


_WAIT: Final = 200
"""Milliseconds after a change before the counts are made again: changes come in flocks while a job runs."""

_AT_ONCE: Final = 5_000
"""Cells that are counted in a few hundredths of a second; more are counted in the background."""

_CODE: Final = int(Qt.ItemDataRole.UserRole)
_ICON: Final = 14
_WIDTH: Final = 420
_SHORT: Final = {"95 % interval": "95 % int.", "Low-confidence": "?", "Reviewed": "✓"}
"""Heads of columns in which only two or three digits stand; the whole name is the tip."""


class LegendWidget(FollowingDock):
    """Dock with the legend and the counts of the cells, by class.

    A tick hides or shows a class or a lineage; a click on a row shows it alone, another click all of them again.

    Parameters
    ----------
    napari_viewer : napari.Viewer
    """

    def __init__(self, napari_viewer: napari.Viewer) -> None:
        super().__init__()
        self._viewer = unwrapped(napari_viewer)
        self._alone: tuple[str, ...] = ()
        self._counted: Counted | None = None
        self._counting: Background | None = None
        self._filling = self._just_ticked = False
        self._make_parts()
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.setInterval(_WAIT)
        self._soon.timeout.connect(self.refresh)
        self.follower = Follower(self._viewer, self)
        self.follower.layer_changed.connect(self._new_layer)
        self.follower.cells_changed.connect(self._later)
        self._new_layer()

    def let_go(self) -> None:
        """Stop following and counting."""
        self._soon.stop()
        self._stop_counting()
        self.follower.close()

    def _make_parts(self) -> None:
        self.title = QLabel()
        self.title.setWordWrap(True)
        self.figures = QLabel()
        self.figures.setWordWrap(True)
        self.figures.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.tree = QTreeWidget()
        self.tree.setObjectName("legend")
        self.tree.setHeaderLabels([_SHORT.get(name, name) for name in COLUMNS])
        for column, name in enumerate(COLUMNS):
            self.tree.headerItem().setToolTip(column, name)
            self.tree.headerItem().setTextAlignment(column, _side(column))
        self.tree.setSelectionMode(QAbstractItemView.SelectionMode.NoSelection)
        self.tree.setRootIsDecorated(True)
        self.tree.setIndentation(12)
        header = self.tree.header()
        header.setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        # A long name is truncated, so that the numbers stay visible.
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        header.setStretchLastSection(False)
        header.setMinimumSectionSize(_ICON)
        self.tree.setToolTip("Tick to show or hide a class; click a row to show only that class, and again to show all")
        self.tree.itemChanged.connect(self._ticked)
        self.tree.itemClicked.connect(self._clicked)
        self.all_button = QPushButton("Show all")
        self.empty_button = QPushButton("Hide empty rows")
        self.empty_button.setCheckable(True)
        self.empty_button.setChecked(True)
        self.copy_button, self.export_button = QPushButton("Copy"), QPushButton("Export…")
        self.copy_button.setToolTip("Copy the table to the clipboard, for a spreadsheet")
        self.export_button.setToolTip("Save the differential as CSV or JSON, or the cells as CSV, GeoJSON or Parquet")
        self.all_button.clicked.connect(self.show_all)
        self.empty_button.toggled.connect(self._refill)
        self.copy_button.clicked.connect(self.copy)
        self.export_button.clicked.connect(self._ask_export)
        upper, lower = QHBoxLayout(), QHBoxLayout()
        upper.addWidget(self.all_button)
        upper.addWidget(self.empty_button)
        lower.addWidget(self.copy_button)
        lower.addWidget(self.export_button)
        box = QVBoxLayout(self)
        box.addWidget(self.title)
        box.addWidget(self.figures)
        box.addWidget(self.tree, 1)
        box.addLayout(upper)
        box.addLayout(lower)
        note = QLabel(
            "<small>Intervals: 95 %, for independent cells. ?: low-confidence, ✓: reviewed by a person. "
            "For research use only</small>"
        )
        note.setWordWrap(True)
        box.addWidget(note)
        self.setMinimumWidth(_WIDTH)
        join_docks(self, "Legend")

    # --- what is shown ------------------------------------------------------------------------------------------------

    @property
    def layer(self) -> Points | None:
        """The layer that is counted."""
        return self.follower.layer

    @property
    def _state(self) -> FieldState | None:
        return self.follower.state

    @guarded
    def _later(self, *_: object) -> None:
        if not self._soon.isActive():
            self._soon.start()

    @guarded
    def _new_layer(self) -> None:
        """Another layer is meant: nothing that was counted of the one before stays."""
        self._stop_counting()
        self._counted, self._alone = None, ()
        self.figures.clear()
        self.tree.clear()
        if self.layer is not None:
            self.layer.events.name.connect(self._later)  # connected once, even if called again
        self.refresh()

    @guarded
    def refresh(self) -> None:
        """Count again."""
        self._soon.stop()
        layer = self.layer
        for button in (self.all_button, self.copy_button, self.export_button):
            button.setEnabled(layer is not None)
        if layer is None or self._state is None:
            self.title.setText(nothing_shown(self._viewer))
            return
        # Cells may have been added or changed since.
        show_classes(layer, hidden_classes(layer))
        self.title.setText(f"<b>{_escaped(layer.name)}</b>")
        review = self._state.review
        wanted = (review.cells, review.taxonomy, review.min_probability)
        if len(review) <= _AT_ONCE:
            self._stop_counting()
            self._show(Counted.of(*wanted))
        elif self._counting is not None:
            # Count again at the end, because the cells have changed meanwhile.
            self._later()
        else:
            job = self._counting = Background()
            self.destroyed.connect(job.stop)
            job.start(lambda: _count(review, *wanted), self._step, self._stop_counting)

    @guarded
    def _step(self, step: object) -> None:
        if isinstance(step, Failed):
            notify(step.reason, "error")
        elif isinstance(step, tuple) and self._state is not None and step[0] is self._state.review:
            self._show(step[1])

    @guarded
    def _stop_counting(self) -> None:
        job, self._counting = self._counting, None
        if job is not None:
            job.stop()

    def _show(self, counted: Counted) -> None:
        self._counted = counted
        self.figures.setText(headline(counted))
        self._fill(counted.table)

    @guarded
    def _refill(self) -> None:
        """Show the same counts with other rows or ticks."""
        if self._counted is not None and self.layer is not None:
            self._fill(self._counted.table)

    def _fill(self, table: pd.DataFrame) -> None:
        """Make the rows, or bring them up to date where they are the same: what is folded stays folded."""
        assert self.layer is not None
        hidden = hidden_classes(self.layer)
        if self.empty_button.isChecked():
            table = table[(table["count"] + table["low_confidence"] + table["reviewed"]) > 0]
        self._filling = True
        try:
            groups = list(dict.fromkeys(table["lineage"]))
            wanted = [(group, tuple(table.loc[table["lineage"] == group, "code"])) for group in groups]
            if wanted != self._rows():
                self._rebuild(table, groups)
            for number, group in enumerate(groups):
                top, part = self.tree.topLevelItem(number), table[table["lineage"] == group]
                for row, entry in enumerate(part.to_dict("records")):
                    item = top.child(row)
                    for column, text in enumerate(row_texts(entry)):
                        item.setText(column, text)
                    item.setCheckState(0, _ticked(entry["code"] not in hidden))
                shown = [code not in hidden for code in part["code"]]
                top.setCheckState(
                    0, Qt.CheckState.PartiallyChecked if any(shown) and not all(shown) else _ticked(all(shown))
                )
                total = part["percent"].sum(min_count=1)
                entry = {"name": group or "other", "count": int(part["count"].sum()), "percent": total}
                entry |= {"low": math.nan, "high": math.nan, "reviewed": int(part["reviewed"].sum())}
                for column, text in enumerate(row_texts(entry | {"low_confidence": int(part["low_confidence"].sum())})):
                    top.setText(column, text)
        finally:
            self._filling = False

    def _rows(self) -> list[tuple[str, tuple[str, ...]]]:
        tops = [self.tree.topLevelItem(number) for number in range(self.tree.topLevelItemCount())]
        return [
            (top.data(0, _CODE), tuple(top.child(row).data(0, _CODE) for row in range(top.childCount())))
            for top in tops
        ]

    def _rebuild(self, table: pd.DataFrame, groups: list[str]) -> None:
        tops = [self.tree.topLevelItem(number) for number in range(self.tree.topLevelItemCount())]
        folded = {top.data(0, _CODE) for top in tops if not top.isExpanded()}
        self.tree.clear()
        bold = QFont(self.tree.font())
        bold.setBold(True)
        for group in groups:
            top = QTreeWidgetItem(self.tree)
            top.setData(0, _CODE, group)
            for column in range(len(COLUMNS)):
                top.setFont(column, bold)
                top.setTextAlignment(column, _side(column))
            for entry in table[table["lineage"] == group].to_dict("records"):
                item = QTreeWidgetItem(top)
                item.setData(0, _CODE, entry["code"])
                item.setIcon(0, swatch(entry["colour"]))
                item.setToolTip(0, f"{printable(entry['name'])} ({entry['code']})")
                for column in range(len(COLUMNS)):
                    item.setTextAlignment(column, _side(column))
            top.setExpanded(group not in folded)

    # --- what is visible ----------------------------------------------------------------------------------------------

    def _codes(self, item: QTreeWidgetItem) -> tuple[str, ...]:
        if item.parent() is not None:
            return (str(item.data(0, _CODE)),)
        return tuple(str(item.child(row).data(0, _CODE)) for row in range(item.childCount()))

    @guarded
    def _ticked(self, item: QTreeWidgetItem, column: int) -> None:
        if self._filling or self.layer is None or column != 0:
            return
        codes, state = set(self._codes(item)), item.checkState(0)
        hidden = hidden_classes(self.layer)
        hidden = hidden - codes if state != Qt.CheckState.Unchecked else hidden | codes
        self._alone = ()
        self._hide(hidden)
        self._just_ticked = True

    @guarded
    def _clicked(self, item: QTreeWidgetItem, column: int) -> None:
        # A click on the tick box is also a click on the row.
        if self._just_ticked:
            self._just_ticked = False
            return
        codes = self._codes(item)
        if self._alone == codes:
            self.show_all()
            return
        if self._state is not None:
            self._hide(set(self._state.review.taxonomy.codes) - set(codes))
            self._alone = codes

    @guarded
    def show_all(self) -> None:
        """Show the cells of every class."""
        self._alone = ()
        self._hide(set())

    def _hide(self, hidden: set[str]) -> None:
        if self.layer is not None:
            show_classes(self.layer, hidden)
            self._refill()

    # --- taking it away -----------------------------------------------------------------------------------------------

    @guarded
    def copy(self) -> None:
        """Put the table on the clipboard, tab-separated."""
        if self._state is not None:
            review = self._state.review
            counted = Counted.of(review.cells, review.taxonomy, review.min_probability)
            QGuiApplication.clipboard().setText(as_text(counted))
            notify("the differential was copied to the clipboard")

    @guarded
    def _ask_export(self) -> None:
        state = self._state
        if state is None:
            return
        types = "Differential (*.csv *.json);;Cells (*.cells.csv *.geojson *.parquet)"
        name, _ = QFileDialog.getSaveFileName(self, "Export", "differential.csv", types)
        if name:
            # Export the cells shown when the dialog was opened; others may have been added since.
            self._write(state.review, Path(name))

    @guarded
    def export(self, path: str | Path) -> None:
        """Write the differential, or the cells, by the ending of the file name.

        Parameters
        ----------
        path : path
            ``.csv`` or ``.json``: the differential. ``.cells.csv``, ``.geojson`` (QuPath), ``.parquet``: the cells.
        """
        if self._state is None:
            raise FieldError(nothing_shown(self._viewer))
        self._write(self._state.review, Path(path))

    def _write(self, review: Review, path: Path) -> None:
        if path.suffix.lower() in (".geojson", ".parquet") or path.name.lower().endswith(".cells.csv"):
            review.export(path)
        else:
            _write_differential(review, path)
        notify(f"saved {path}")


def _count(
    review: Review, cells: pd.DataFrame, taxonomy: Taxonomy, min_probability: float
) -> Iterator[tuple[Review, Counted]]:
    yield review, Counted.of(cells, taxonomy, min_probability)


def _ticked(shown: bool) -> Qt.CheckState:
    return Qt.CheckState.Checked if shown else Qt.CheckState.Unchecked


def _side(column: int) -> Qt.AlignmentFlag:
    side = Qt.AlignmentFlag.AlignLeft if column == 0 else Qt.AlignmentFlag.AlignRight
    return side | Qt.AlignmentFlag.AlignVCenter


def _escaped(text: str) -> str:
    return printable(text).replace("&", "&amp;").replace("<", "&lt;")
