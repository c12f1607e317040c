"""The form "Classify folder": classifies many fields in the background, as the command line does, and opens results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from magicgui.widgets import Container, FileEdit
from qtpy.QtCore import QEvent, Qt, QTimer
from qtpy.QtWidgets import (
    QAbstractItemView,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from hematokit.errors import FieldError, printable
from hematokit.pipelines.settings import ClassifySettings
from hematokit.results.reading import open_results
from napari_hematonet.background import Background, Failed
from napari_hematonet.choices import ModelChoice, remember_model
from napari_hematonet.docks import join_docks
from napari_hematonet.files import add_to_viewer, results_layers
from napari_hematonet.forms import option_widget
from napari_hematonet.jobs import FolderDone, classified_folder
from napari_hematonet.models import detector_names, runtime_choices
from napari_hematonet.settings import setting
from napari_hematonet.state import guarded, notify, unwrapped

if TYPE_CHECKING:
    import napari


__all__ = ["FolderWidget"]

_LOOK: Final = 250
_COLUMNS: Final = ("Field", "Cells", "Remark")
_FOLDER: Final = int(Qt.ItemDataRole.UserRole)


class FolderWidget(QWidget):  # type: ignore[misc] # Qt has no types here
    """Form that classifies the fields of a folder and opens the results.

    Parameters
    ----------
    napari_viewer : napari.Viewer
    """

    def __init__(self, napari_viewer: napari.Viewer) -> None:
        super().__init__()
        self._viewer = unwrapped(napari_viewer)
        self._job: Background | None = None
        self._report: Path | None = None
        # The results folder whose fields are listed, and the one that was listed when the run began.
        self._listed: Path | None = None
        self._listed_before: Path | None = None
        self._make_form()
        join_docks(self, "Folder")
        self._timer = QTimer(self)
        self._timer.setInterval(_LOOK)
        self._timer.timeout.connect(self._look)

    def _make_form(self) -> None:
        self.model = ModelChoice()
        self.folder = FileEdit(name="folder", label="Fields in", mode="d", nullable=True, tooltip="A folder of images")
        self.output = FileEdit(
            name="output",
            label="Results in",
            mode="d",
            nullable=True,
            tooltip="A new or empty folder, or the folder of a run to resume",
        )
        self.detector = option_widget(
            ClassifySettings, "detector", "Detector", choices=detector_names(), value=setting("detector")
        )
        self.runtime = option_widget(
            ClassifySettings,
            "runtime",
            "Runtime",
            choices=runtime_choices(),
            note="automatic: ONNX Runtime on the CPU where it is installed; the model is exported at the first use",
        )
        self.threshold = option_widget(
            ClassifySettings,
            "min_probability",
            "Minimum probability",
            value=float(setting("min_probability")),
            step=0.05,
        )
        self.border = option_widget(ClassifySettings, "exclude_border", "Do not count cells cut by the border")
        form = Container(
            widgets=[self.folder, self.output, self.detector, self.runtime, self.threshold, self.border], labels=True
        )
        form.native.layout().setContentsMargins(0, 0, 0, 0)
        self._form = form
        self.folder.changed.connect(self._suggest)
        self.run_button, self.cancel_button = QPushButton("Run"), QPushButton("Cancel")
        self.cancel_button.setEnabled(False)
        self.bar, self.status = QProgressBar(), QLabel("Choose a folder of fields, then Run")
        self.bar.setVisible(False)
        self.status.setWordWrap(True)
        self.table = QTableWidget(0, len(_COLUMNS))
        self.table.setHorizontalHeaderLabels(list(_COLUMNS))
        self.table.verticalHeader().setVisible(False)
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.horizontalHeader().setStretchLastSection(True)
        self.table.setToolTip("Double-click a field to open it with its cells")
        self.open_button, self.earlier_button = QPushButton("Open field"), QPushButton("Earlier results…")
        self.report_button = QPushButton("Report")
        self.report_button.setToolTip("The report of all fields, in the web browser")
        self.open_button.setEnabled(False)
        self.report_button.setEnabled(False)
        box = QVBoxLayout(self)
        box.addWidget(QLabel("Model"))
        for part in (self.model, form.native):
            box.addWidget(part)
        box.addLayout(_row(self.run_button, self.cancel_button))
        for part in (self.bar, self.status):
            box.addWidget(part)
        box.addWidget(self.table, 1)
        box.addLayout(_row(self.open_button, self.report_button, self.earlier_button))
        box.addWidget(QLabel("<small>For research use only</small>"))
        self.run_button.clicked.connect(self.run)
        self.cancel_button.clicked.connect(self.cancel)
        self.open_button.clicked.connect(self.open_chosen)
        self.table.itemDoubleClicked.connect(self.open_chosen)
        self.earlier_button.clicked.connect(self._ask_earlier)
        self.report_button.clicked.connect(self._open_report)
        self.model.demo_wanted.connect(self._demo_elsewhere)

    @property
    def running(self) -> bool:
        """Whether a job is running."""
        return self._job is not None

    @guarded
    def _suggest(self, folder: object) -> None:
        """Suggest a folder of results beside the fields, until the user chooses one."""
        folder = _given(self.folder)
        if folder is not None and folder.name and _given(self.output) is None:
            self.output.value = folder.with_name(f"{folder.name}-results")

    @guarded
    def _demo_elsewhere(self) -> None:
        notify(
            "the demo model is trained from Plugins > HematoNet > Classify field; choose it here afterwards", "warning"
        )

    @guarded
    def run(self) -> None:
        """Classify the fields of the chosen folder."""
        if self._job is not None:
            return
        model = self.model.needed()
        folder, output = _given(self.folder), _given(self.output)
        if folder is None:
            raise FieldError("no folder of fields is chosen yet; choose one under 'Fields in'")
        if output is None:
            raise FieldError("no folder for the results is chosen yet; choose one under 'Results in'")
        options = {
            "detector": str(self.detector.value),
            "min_probability": float(self.threshold.value),
            "exclude_border": bool(self.border.value),
            "runtime": str(self.runtime.value),
        }
        remember_model(model)
        self._listed_before = self._listed
        job = self._job = Background()
        self.destroyed.connect(job.stop)
        self._set_running(True)
        job.start(lambda: job.compute(classified_folder, folder, model, output, options), self._step, self._ended)

    def _set_running(self, running: bool) -> None:
        self.run_button.setEnabled(not running)
        self.cancel_button.setEnabled(running)
        self.model.setEnabled(not running)
        self._form.enabled = not running
        self.bar.setVisible(running)
        self.bar.reset()
        (self._timer.start if running else self._timer.stop)()

    @guarded
    def _look(self) -> None:
        if self._job is None:
            return
        done, total, doing = self._job.progress
        self.bar.setRange(0, total or 1)
        self.bar.setValue(done if total else 0)
        progress = f"{done:,} of {total:,} fields" if total else "Loading the model"
        text = printable(f"{progress}: {doing}…" if doing else f"{progress}…")
        if text != self.status.text():
            self.status.setText(text)

    @guarded
    def _step(self, step: object) -> None:
        if isinstance(step, Failed):
            self._stop()
            self.status.setText(printable(step.reason))
            notify(step.reason, "error")
            return
        # Before the worker has ended, the progress would be shown once more, over the summary.
        self._timer.stop()
        if not isinstance(step, FolderDone):
            return
        said = [line for line in step.lines if not line.startswith("Cells:")]
        if self._listed == self._listed_before:
            self.show_results(step.output)
        else:
            said.append(f"The list is of {self._listed}, as you chose; 'Earlier results…' lists {step.output}")
        self.status.setText("\n".join(printable(line) for line in said))

    @guarded
    def _ended(self) -> None:
        self._job = None
        self._set_running(False)

    def event(self, event: QEvent) -> bool:
        """Stop when the dock is closed: napari takes the form out of it, and something may hold the form yet."""
        if event.type() == QEvent.Type.ParentChange and self.parent() is None and getattr(self, "_job", None):
            self.cancel()
        return bool(super().event(event))

    @guarded
    def cancel(self) -> None:
        """Stop at once; the fields that are done stay, and another run goes on after them."""
        if self._stop():
            self.status.setText("Stopped. Run again with the same folders to go on after the fields that are done")

    def _stop(self) -> bool:
        job, self._job = self._job, None
        if job is None:
            return False
        job.stop()
        self._set_running(False)
        return True

    # --- results ------------------------------------------------------------------------------------------------------

    @guarded
    def _ask_earlier(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Folder of results", str(_given(self.output) or Path.home()))
        if folder:
            self.show_results(folder)

    @guarded
    def show_results(self, folder: str | Path) -> None:
        """List the fields of a folder of results.

        Parameters
        ----------
        folder : path
            What this form or ``hematokit classify`` wrote.
        """
        results = open_results(folder)
        self._listed = results.path
        report = results.path / "report.html"
        self._report = report if report.is_file() else None
        self.report_button.setEnabled(self._report is not None)
        self.open_button.setEnabled(bool(results.fields))
        self.table.setRowCount(len(results.fields))
        said = _remarks(results.path)
        for row, field in enumerate(results.fields):
            count, remark = said.get(field.field_id, ("", ""))
            for column, text in enumerate((field.field_id, count, remark)):
                item = QTableWidgetItem(printable(text))
                item.setToolTip(printable(text))
                item.setData(_FOLDER, str(field.folder))
                self.table.setItem(row, column, item)
        self.table.resizeColumnsToContents()
        if results.fields:
            self.table.selectRow(0)

    @guarded
    def open_chosen(self) -> None:
        """Open the field of the chosen row, with its cells."""
        item = self.table.item(self.table.currentRow(), 0)
        if item is None:
            raise FieldError("no field is chosen; click one in the list first")
        add_to_viewer(self._viewer, results_layers(Path(item.data(_FOLDER))))

    @guarded
    def _open_report(self) -> None:
        import webbrowser

        if self._report is not None:
            webbrowser.open(self._report.as_uri())


def _remarks(folder: Path) -> dict[str, tuple[str, str]]:
    """Cells and remark of each field, from ``fields.csv``; empty where that is missing, as after a stop."""
    import pandas as pd

    try:
        table = pd.read_csv(folder / "fields.csv", dtype=str, keep_default_na=False)
        rows = zip(table["field_id"], table["cells"], table["flag"], table["reasons"], strict=True)
        return {
            name: (cells, "" if flag == "ok" else f"{flag}: {why}" if why else flag) for name, cells, flag, why in rows
        }
    except (OSError, ValueError, KeyError):
        return {}


def _given(edit: FileEdit) -> Path | None:
    """The path that was entered, if one was."""
    return Path(edit.value) if edit.value is not None and str(edit.line_edit.value).strip() else None


def _row(*buttons: QPushButton) -> QHBoxLayout:
    row = QHBoxLayout()
    for button in buttons:
        row.addWidget(button)
    return row
