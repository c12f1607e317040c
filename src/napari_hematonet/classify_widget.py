"""The form "Classify field": image, model and options, and the cells as they are classified."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from magicgui.widgets import Container, FloatSpinBox
from qtpy.QtCore import QEvent, QTimer
from qtpy.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QPushButton, QVBoxLayout, QWidget

from hematokit.errors import HematokitError, printable
from hematokit.imaging.fieldfiles.listing import safe_name
from hematokit.pipelines.settings import ClassifySettings
from napari_hematonet.background import Background, Failed
from napari_hematonet.cells_coming import ComingCells, cells_message, no_cells_message
from napari_hematonet.choices import FieldChoice, ModelChoice, remember_model
from napari_hematonet.docks import join_docks, open_dock
from napari_hematonet.forms import option_widget
from napari_hematonet.images import field_of, orientation_note
from napari_hematonet.jobs import Cells, ClassifyRequest, Found, Loaded, Moved, classify_steps, make_demo_model
from napari_hematonet.models import detector_names, runtime_choices, warm_up
from napari_hematonet.settings import setting
from napari_hematonet.state import guarded, notify, scale_bar_of, unwrapped
from napari_hematonet.worker import Note

if TYPE_CHECKING:
    import napari

    from hematokit.detection.windows import Examination
    from hematokit.imaging.fieldfiles import Field

__all__ = ["ClassifyWidget"]

_READY: Final = "Press Run to classify the image's cells"
_NO_MODEL: Final = "No model yet: 'Demo model' trains one on drawn cells"
_LOOK: Final = 250
"""Milliseconds between two updates of the progress; every change of the window redraws all of it."""


class ClassifyWidget(QWidget):  # type: ignore[misc] # Qt has no types here
    """Form that detects and classifies the cells of an open image.

    Parameters
    ----------
    napari_viewer : napari.Viewer
    """

    def __init__(self, napari_viewer: napari.Viewer) -> None:
        super().__init__()
        self._viewer = unwrapped(napari_viewer)
        self._job: Background | None = None
        self._cells: ComingCells | None = None
        self._found: Examination | None = None
        self._asked: ClassifyRequest | None = None
        self._passing = True
        self._devices = [("automatic", "auto"), ("CPU", "cpu")]
        self._make_form()
        join_docks(self, "Classify")
        self._timer = QTimer(self)
        self._timer.setInterval(_LOOK)
        self._timer.timeout.connect(self._look)
        self._viewer.layers.events.removed.connect(self._layer_removed)
        warming = self._warming = Background()
        self.destroyed.connect(warming.stop)
        warming.start(lambda: warming.compute(warm_up), self._warmed, self._warm)

    # --- the form -----------------------------------------------------------------------------------------------------

    def _make_form(self) -> None:
        self.model = ModelChoice()
        self._field = FieldChoice(self._viewer, self)
        self.image, self.region = self._field.image, self._field.region
        self.detector = option_widget(
            ClassifySettings, "detector", "Detector", choices=detector_names(), value=setting("detector")
        )
        self.device = option_widget(ClassifySettings, "device", "Device", choices=self._device_choices)
        self.runtime = option_widget(
            ClassifySettings,
            "runtime",
            "Runtime",
            choices=runtime_choices(),
            # A single field is classified sooner without an export of the model.
            value="torch",
            note="ONNX Runtime and OpenVINO are faster on the CPU; the model is exported for them at the first use",
        )
        self.runtime.changed.connect(self._runtime_chosen)
        self.threshold = option_widget(
            ClassifySettings,
            "min_probability",
            "Minimum probability",
            value=float(setting("min_probability")),
            step=0.05,
            note="Low-confidence cells are drawn hollow",
        )
        self.pixel_size = _pixel_size_box(
            "pixel_size_um",
            "Pixel size (µm)",
            "from the image",
        )
        self.model_pixel_size = _pixel_size_box(
            "model_pixel_size_um",
            "Model's pixel size (µm)",
            "from the model",
        )
        form = Container(
            widgets=[
                self.image,
                self.detector,
                self.device,
                self.runtime,
                self.region,
                self.threshold,
                self.pixel_size,
                self.model_pixel_size,
            ],
            labels=True,
        )
        form.native.layout().setContentsMargins(0, 0, 0, 0)
        self._form = form
        self.run_button, self.cancel_button = QPushButton("Run"), QPushButton("Cancel")
        self.run_button.setToolTip("Detect and classify the cells")
        self.cancel_button.setEnabled(False)
        self.legend_button = QPushButton("Legend and differential")
        self.bar = QProgressBar()
        self.bar.setVisible(False)
        self.status = QLabel()
        self.status.setWordWrap(True)
        self.status.setObjectName("status")
        buttons = QHBoxLayout()
        buttons.addWidget(self.run_button)
        buttons.addWidget(self.cancel_button)
        box = QVBoxLayout(self)
        box.addWidget(QLabel("Model"))
        box.addWidget(self.model)
        box.addWidget(form.native)
        box.addLayout(buttons)
        box.addWidget(self.bar)
        box.addWidget(self.status)
        box.addWidget(self.legend_button)
        box.addWidget(QLabel("<small>For research use only</small>"))
        box.addStretch()
        self.run_button.clicked.connect(self.run)
        self.cancel_button.clicked.connect(self.cancel)
        self.legend_button.clicked.connect(self._open_legend)
        self.model.demo_wanted.connect(self.make_demo)
        self._field.drawing.connect(self._drawing)
        self.model.changed.connect(self._model_chosen)
        self._say(self._first_step(), passing=True)

    def _device_choices(self, widget: object = None) -> list[tuple[str, str]]:
        return self._devices

    @guarded
    def _warmed(self, devices: object) -> None:
        if isinstance(devices, list):
            self._devices = [(words, name) for name, words in devices]
            self.device.reset_choices()

    def _warm(self) -> None:
        """Do nothing when the imports are done."""

    @guarded
    def _runtime_chosen(self, value: str) -> None:
        # The other runtimes always compute on the CPU.
        self.device.enabled = value in ("torch", "auto")

    @guarded
    def _drawing(self) -> None:
        self._say("Draw a rectangle around the cells you want, then Run")

    @guarded
    def _open_legend(self) -> None:
        from napari_hematonet.legend_widget import LegendWidget

        open_dock(self._viewer, "Legend and differential", LegendWidget)

    def _first_step(self) -> str:
        return _READY if self.model.path else _NO_MODEL

    @guarded
    def _model_chosen(self, _path: str = "") -> None:
        # The result of the last run stays displayed; advice and failures are replaced.
        if self._passing:
            self._say(self._first_step(), passing=True)

    def _say(self, text: str, *, passing: bool = False) -> None:
        """Show a message; a `passing` one is replaced once another model is chosen."""
        self._passing = passing
        line = printable(text)
        if line != self.status.text():
            self.status.setText(line)

    # --- running ------------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether a job is running."""
        return self._job is not None

    @guarded
    def run(self) -> None:
        """Detect and classify the cells of the chosen image."""
        if self._job is not None:
            return
        try:
            request, field = self._request()
        except HematokitError as error:
            # The whole message: napari's notification shows only its beginning until it is expanded.
            self._say(str(error), passing=True)
            raise
        # The scale bar is drawn first, so that its shaders are compiled before the cells are drawn.
        scale_bar_of(self._viewer).visible = True
        image = self._field.layer
        assert image is not None  # _request refuses that
        self._cells = ComingCells(self._viewer, image, field, request, float(self.threshold.value), self)
        self._asked, self._found = request, None
        self._begin(lambda job: job.compute(classify_steps, request, field=field))

    def _request(self) -> tuple[ClassifyRequest, Field]:
        """Return the request that the form describes, and its field.

        Raises
        ------
        HematokitError
            If no usable model or image is chosen.
        """
        model = self.model.needed()
        image = self._field.layer
        field = field_of(image, viewer=self._viewer, pixel_size_um=float(self.pixel_size.value) or None)
        assert image is not None  # field_of refuses that
        if note := orientation_note(image):
            notify(note, "warning")
        request = ClassifyRequest(
            safe_name(field.name),
            str(field.path),
            model,
            str(self.device.value or "auto") if self.device.enabled else "auto",
            str(self.detector.value),
            self._field.outlines(image),
            str(self.runtime.value),
            float(self.model_pixel_size.value) or None,
        )
        return request, field

    @guarded
    def make_demo(self) -> None:
        """Train the demo model and choose it."""
        if self._job is None:
            self._cells = None
            device = str(self.device.value or "auto")
            notify(
                "training a small model on drawn cells; this takes some minutes, and the viewer can be used meanwhile"
            )
            self._begin(lambda job: job.compute(make_demo_model, device))

    def _begin(self, work: Callable[[Background], Iterator[object]]) -> None:
        job = self._job = Background()
        # Closing the dock stops its job.
        self.destroyed.connect(job.stop)
        self._set_running(True)
        job.start(lambda: work(job), self._step, self._ended)

    def _set_running(self, running: bool) -> None:
        self.run_button.setEnabled(not running)
        self.cancel_button.setEnabled(running)
        self.model.setEnabled(not running)
        self._form.enabled = not running
        if not running:
            self._runtime_chosen(str(self.runtime.value))
        self.bar.setVisible(running)
        self.bar.reset()
        (self._timer.start if running else self._timer.stop)()
        if running:
            self._look()

    @guarded
    def _look(self) -> None:
        """Show the progress of the job."""
        if self._job is None:
            return
        done, total, doing = self._job.progress
        # An empty bar, not a moving one, where the duration is unknown.
        self.bar.setRange(0, total or 1)
        self.bar.setValue(done if total else 0)
        count = f" ({done:,} of {total:,})" if total else ""
        self._say(f"{doing[:1].upper()}{doing[1:]}{count}…" if doing else "Working…")

    @guarded
    def _step(self, step: object) -> None:
        if isinstance(step, Loaded) and self._cells is not None:
            self._cells.set_model(step.model, step.journal, step.earlier)
            remember_model(self.model.path)
        elif isinstance(step, Found):
            self._found = step.examination
            if self._cells is not None and len(self._found.cells):
                self._cells.prepare()
        elif isinstance(step, Cells) and self._cells is not None:
            self._cells.add(step.table)
        elif isinstance(step, Moved) and self._cells is not None:
            self._cells.go_on_with(step.model)
        elif isinstance(step, Note):
            notify(step.text, "warning")
        elif isinstance(step, Failed):
            self._stop()
            self._say(step.reason, passing=True)
            notify(step.reason, "error")
        elif isinstance(step, Path):
            self.model.choose(step)
            notify("the demo model is ready; it recognises only drawn cells: File > Open Sample > HematoNet")

    @guarded
    def _ended(self) -> None:
        job = self._job
        if job is None:
            return
        cells, self._job = self._cells, None
        self._set_running(False)
        if cells is None:
            self._say("Ready: Run")
            return
        cells.finish()
        if cells.layer is not None:
            hidden = "" if cells.layer.visible else " They are hidden: click the eye of their layer to show them."
            self._say(cells_message(cells.layer, cells.count, self._found) + hidden)
        elif self._asked is not None:
            line, advice = no_cells_message(cells.field, bool(self._asked.region))
            self._say(line)
            notify(advice, "warning")

    def event(self, event: QEvent) -> bool:
        """Stop when the dock is closed: napari removes the form from it, and the form may live longer than the dock."""
        if event.type() == QEvent.Type.ParentChange and self.parent() is None and getattr(self, "_job", None):
            self.cancel()
        return bool(super().event(event))

    @guarded
    def cancel(self) -> None:
        """Stop at once and keep the cells that are classified."""
        cells = self._cells
        if self._stop():
            self._say(
                f"Stopped; {cells.count:,} cells are classified"
                if cells is not None
                else "Stopped; click again to resume"
            )

    def _stop(self) -> bool:
        """Stop the job; return whether one was running."""
        job, self._job = self._job, None
        if job is None:
            return False
        job.stop()
        if self._cells is not None:
            self._cells.finish()
        self._set_running(False)
        return True

    @guarded
    def _layer_removed(self, event: Any) -> None:
        """Stop a classification whose image or layer of cells was removed."""
        cells = self._cells
        if self._job is None or cells is None or event.value not in (cells.image, cells.layer):
            return
        self._stop()
        self._cells = None
        what = "image" if event.value is cells.image else "layer of cells"
        self._say(f"Stopped: the {what} was removed")
        notify(f"the classification was stopped because its {what} was removed")


def _pixel_size_box(name: str, label: str, unset: str) -> FloatSpinBox:
    """Return a box for an optional pixel size; 0 is displayed as the text `unset`."""
    box = option_widget(ClassifySettings, name, label, min=0.0, max=10.0, step=0.01)
    box.native.setDecimals(4)
    box.native.setSpecialValueText(unset)
    return box
