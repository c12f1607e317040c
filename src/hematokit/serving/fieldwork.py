"""Processing of one uploaded field: open it, then detect, classify and count its cells, in a separate thread."""

from __future__ import annotations

import base64
import io
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from hematokit.annotations.cells import name_cells
from hematokit.annotations.writing import write_geojson
from hematokit.detection.windows import examine_field
from hematokit.differential.differential import count_differential
from hematokit.errors import FieldError, ImageError, ServingError
from hematokit.imaging.fieldfiles import Field, field_name, open_field
from hematokit.imaging.fieldfiles.listing import safe_name
from hematokit.models.field_cells import classify_cells, scale_warnings
from hematokit.models.model import Model
from hematokit.plugins import MadeDetector

__all__ = ["FieldQuestion", "FieldWorker", "as_json"]

_PREVIEW_SIDE: Final = 2048
_COPY_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class FieldQuestion:
    """The parameters of a request about a field.

    Attributes
    ----------
    name : str
        File name given by the client.
    pixel_size_um, force_pixel_size
        See `open_field`.
    min_probability : float
        Probability below which a cell counts as low-confidence.
    exclude_border : bool
        Exclude cells that touch the border from the count.
    picture : bool
        Include an image of the field in the answer.
    """

    name: str
    pixel_size_um: float | None = None
    force_pixel_size: bool = False
    min_probability: float = 0.5
    exclude_border: bool = False
    picture: bool = False


@dataclass(frozen=True)
class FieldWorker:
    """Processing of fields with one detector and one model.

    Attributes
    ----------
    detector : MadeDetector
    model : Model
    model_pixel_size_um : float or None
    most_pixels, most_cells : int
        Limits; larger fields, and fields with more cells, are rejected.
    most_seconds : float
        Time limit in seconds.
    batch_size : int
        Number of patches per batch.
    """

    detector: MadeDetector
    model: Model
    model_pixel_size_um: float | None
    most_pixels: int
    most_cells: int
    most_seconds: float
    batch_size: int

    def answer(self, upload: BinaryIO, question: FieldQuestion, stop: threading.Event) -> dict[str, Any]:
        """Process one field.

        Parameters
        ----------
        upload : file object
            Bytes of the image, from the start.
        question : FieldQuestion
        stop : threading.Event
            Set when the client has disconnected; processing then stops at the next step.

        Returns
        -------
        dict
            ``field`` (metadata), ``geojson`` (the text of a feature collection), ``differential``, ``cells`` (number),
            ``warnings`` (pixel sizes that are unknown), ``seconds``, and ``picture`` if requested.

        Raises
        ------
        ImageError, FieldError, ServingError
            If the field cannot be processed; messages contain the client's file name.
        """
        with tempfile.TemporaryDirectory(prefix="hematokit-serve-") as folder:
            # A fixed name: the client's file name must not determine the path or the reader.
            path = Path(folder) / "field"
            with path.open("xb") as file:
                shutil.copyfileobj(upload, file, _COPY_BYTES)
            try:
                return self._work(path, question, _Watch(stop, self.most_seconds))
            except ImageError as error:
                raise ImageError(error.reason, _renamed(str(error), path, question.name)) from error
            except FieldError as error:
                raise FieldError(_renamed(str(error), path, question.name)) from error

    def _work(self, path: Path, question: FieldQuestion, watch: _Watch) -> dict[str, Any]:
        field_id = safe_name(field_name(Path(question.name)))
        with open_field(
            path,
            pixel_size_um=question.pixel_size_um,
            force_pixel_size=question.force_pixel_size,
            max_pixels=self.most_pixels,
        ) as opened:
            watch.lap("open")
            examined = examine_field(opened, self.detector, progress=watch)
            watch.lap("detect")
            if len(examined.cells) > self.most_cells:
                raise FieldError(
                    f"{question.name} has {len(examined.cells):,} cells, more than the {self.most_cells:,} that this "
                    "server takes in one field; send a part of it"
                )
            cells = classify_cells(
                opened,
                name_cells(examined.cells, field_id, question.name),
                self.model,
                model_pixel_size_um=self.model_pixel_size_um,
                batch_size=self.batch_size,
                progress=watch,
            )
            watch.lap("classify")
            taxonomy = self.model.taxonomy
            differential = count_differential(
                cells,
                taxonomy,
                min_probability=question.min_probability,
                exclude_border=question.exclude_border,
                fields=[(field_id, "", "")],
            )
            write_geojson(path.with_name("cells.geojson"), cells, taxonomy, pixel_size_um=opened.pixel_size_um)
            answer: dict[str, Any] = {
                "field": {"field_id": field_id, **_metadata(opened), **examined.quality.to_dict()},
                "cells": len(cells),
                "geojson": path.with_name("cells.geojson").read_text(encoding="utf-8"),
                "differential": differential.to_dict(),
                "warnings": scale_warnings(
                    self.model_pixel_size_um,
                    opened.pixel_size_um is None,
                    field_option="pixel_size_um",
                    model_option="--model-pixel-size when the server is started",
                ),
                "seconds": watch.seconds,
            }
            if question.picture:
                answer["picture"] = _preview(opened)
            watch.lap("files")
            return answer


class _Watch:
    """Stops processing when the client has disconnected or the time limit is exceeded; called at every step."""

    def __init__(self, stop: threading.Event, most_seconds: float) -> None:
        self._stop, self._most = stop, most_seconds
        self._begun = self._last = time.monotonic()
        self.seconds: dict[str, float] = {}

    def __call__(self, done: int, total: int | None, message: str) -> None:
        if self._stop.is_set():
            raise ServingError("the client has gone", "gone", 499)
        if time.monotonic() - self._begun > self._most:
            raise ServingError(
                f"the field took longer than {self._most:g} s; send a smaller part of it", "too-slow", 503
            )

    def lap(self, stage: str) -> None:
        """Record the duration of a stage, and check whether to stop."""
        now = time.monotonic()
        self.seconds[stage] = round(now - self._last, 4)
        self._last = now
        self(0, None, "")


def _metadata(opened: Field) -> dict[str, Any]:
    return {
        "height": opened.height,
        "width": opened.width,
        "pixel_size_um": opened.pixel_size_um,
        "pixel_size_source": opened.pixel_size_source,
        "notes": list(opened.notes),
    }


def _preview(opened: Field) -> dict[str, Any]:
    """Return a JPEG of the pixels that were processed, independent of the format and the EXIF data of the file."""
    from PIL import Image

    pixels, scale = opened.thumbnail(_PREVIEW_SIDE)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {
        "data": f"data:image/jpeg;base64,{data}",
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "scale": scale,
    }


def _renamed(message: str, path: Path, name: str) -> str:
    return message.replace(str(path), name)


def as_json(answer: dict[str, Any], head: dict[str, Any]) -> Iterator[bytes]:
    """Yield an answer as JSON; the GeoJSON, which is text already, is inserted unchanged."""
    plain = {**head, **{key: value for key, value in answer.items() if key not in ("geojson", "cells")}}
    yield json.dumps(plain, separators=(",", ":"), ensure_ascii=False, allow_nan=False)[:-1].encode()
    yield b',"cells":'
    yield answer["geojson"].encode()
    yield b"}"
