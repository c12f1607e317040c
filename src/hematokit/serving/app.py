"""The application of one model: its routes and their answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from hematokit._version import __version__
from hematokit.annotations.cells import below_threshold
from hematokit.detection.windows import make_detector
from hematokit.differential.counts import counting_groups
from hematokit.errors import BusyError, FieldError, HematokitError, ImageError, ServingError
from hematokit.imaging.reading import decode_rgb
from hematokit.models.field_cells import model_pixel_size
from hematokit.reports.text import RESEARCH_USE
from hematokit.serving.batching import Batcher, QueuedModel
from hematokit.serving.fieldwork import FieldQuestion, FieldWorker, as_json
from hematokit.serving.guard import Guard, Metrics
from hematokit.serving.settings import ServeSettings
from hematokit.serving.uploads import Upload, uploaded

if TYPE_CHECKING:
    from hematokit.models import Model

__all__ = ["build_app", "describe_model"]

_DECODERS: Final = 2
"""Threads that decode crops: decoding is outside the interpreter's lock, and the model wants the processor, too."""

_BATCH_ON_CPU: Final = 16
_BATCH_ELSEWHERE: Final = 64
"""On a CPU larger batches are no faster; those who wait for one batch send their next crops while the other is worked
on, which with one batch for everybody they cannot."""

_PAGE: Final = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}

_IMAGES: Final = ("image/png", "image/jpeg", "image/tiff", "image/bmp")
_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}


def _request_body(form: dict[str, Any]) -> dict[str, Any]:
    content = dict.fromkeys(_IMAGES, _BINARY)
    schema = {"schema": {"type": "object", "properties": {"image": form}}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": schema, **content}}}


_IMAGE_BODY: Final = _request_body({"type": "string", "format": "binary"})
_BATCH_BODY: Final = _request_body({"type": "array", "items": {"type": "string", "format": "binary"}})

T = TypeVar("T")


def build_app(model: Model, settings: ServeSettings | None = None) -> FastAPI:
    """Make the application that serves one model.

    Parameters
    ----------
    model : Model
        From `hematokit.load_model`, of any runtime. Only one thread uses it.
    settings : ServeSettings, optional

    Returns
    -------
    FastAPI
        An ASGI application; `serve` runs it with uvicorn. It computes between its startup and its shutdown.

    Raises
    ------
    PluginError
        If the detector does not exist or its options do not fit.
    """
    settings = settings or ServeSettings()
    service = _Service(model, settings)
    app = FastAPI(
        title="hematokit",
        version=__version__,
        description=RESEARCH_USE,
        lifespan=service.lifespan,
        # FastAPI's documentation pages load scripts from other servers; the schema is at /openapi.json.
        docs_url=None,
        redoc_url=None,
        # The target of a redirect would come from the client's Host header.
        redirect_slashes=False,
    )
    for path in _PAGE:
        app.add_api_route(path, _page, methods=["GET"], include_in_schema=False)
    app.add_api_route("/health", service.health, methods=["GET"], summary="Whether the server works")
    app.add_api_route("/metrics", service.metrics_text, methods=["GET"], summary="Figures for Prometheus")
    app.add_api_route("/v1/model", service.about, methods=["GET"], summary="The model, its classes, and the limits")
    app.add_api_route(
        "/v1/cells",
        service.cells,
        methods=["POST"],
        summary="Classify crops",
        openapi_extra=_BATCH_BODY,
        response_model=None,
    )
    app.add_api_route(
        "/v1/fields",
        service.field,
        methods=["POST"],
        summary="Detect, classify and count the cells of a field",
        openapi_extra=_IMAGE_BODY,
        response_model=None,
    )
    app.add_exception_handler(HematokitError, service.refused)
    app.add_exception_handler(RequestValidationError, service.misunderstood)
    app.add_exception_handler(HTTPException, service.not_there)
    app.add_middleware(
        Guard,
        settings=settings,
        metrics=service.metrics,
        limits={"/v1/cells": settings.crop_bytes, "/v1/fields": settings.field_bytes},
        open_paths=frozenset({*_PAGE, "/health"}),
        known_paths=frozenset({*_PAGE, "/health", "/metrics", "/v1/model", "/v1/cells", "/v1/fields", "/openapi.json"}),
    )
    return app


def describe_model(model: Model, settings: ServeSettings) -> dict[str, Any]:
    """Return the answer of ``/v1/model``: the model, its classes, the limits. No path of this machine is in it.

    Parameters
    ----------
    model : Model
    settings : ServeSettings

    Returns
    -------
    dict
        Plain data.
    """
    config = model.config
    counted = set(counting_groups(model.taxonomy).counted)
    return {
        "name": f"{config.backbone}, {config.created[:10]}",
        "backbone": str(config.backbone),
        "created": config.created,
        "sha256": model.identity,
        "taxonomy": model.taxonomy.name,
        "classes": [
            {
                "code": entry.code,
                "name": entry.name,
                "lineage": entry.lineage,
                "colour": entry.colour,
                "counted": entry.code in counted,
            }
            for entry in model.taxonomy
        ],
        "patch_size": model.patch_size,
        "pixel_size_um": model_pixel_size(model, settings.model_pixel_size_um),
        "runtime": model.runtime,
        "device": str(model.device),
        "detector": settings.detector,
        "limits": {
            "crops": settings.most_crops,
            "crop_bytes": settings.crop_bytes,
            "field_bytes": settings.field_bytes,
            "field_pixels": settings.field_pixels,
            "field_cells": settings.field_cells,
        },
        "hematokit": __version__,
        "research_use_only": RESEARCH_USE,
    }


async def _page(request: Request) -> Response:
    name, kind = _PAGE[request.url.path]
    content = files("hematokit.serving").joinpath("page", name).read_bytes()
    return Response(content, media_type=f"{kind}; charset=utf-8", headers={"cache-control": "no-cache"})


class _Service:
    """One model, its threads, and the handlers of requests."""

    def __init__(self, model: Model, settings: ServeSettings) -> None:
        self._model, self._settings = model, settings
        self._about = describe_model(model, settings)
        self._detector = make_detector(settings.detector, settings.detector_options)
        self._fields_waiting = 0
        self.metrics = Metrics({key: str(self._about[key]) for key in ("name", "backbone", "runtime", "device")})
        self._batcher: Batcher | None = None
        self.metrics.waiting_patches.set_function(lambda: 0 if self._batcher is None else self._batcher.waiting)
        self.metrics.waiting_fields.set_function(lambda: self._fields_waiting)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Start the threads, and stop them with the server."""
        settings = self._settings
        on_cpu = str(self._model.device) == "cpu"
        batch_size = settings.batch_size or (_BATCH_ON_CPU if on_cpu else _BATCH_ELSEWHERE)
        self._batcher = Batcher(
            lambda patches: self._model.predict(patches, batch_size=batch_size),
            largest=batch_size,
            window_s=settings.batch_window_s,
            most_waiting=settings.most_waiting_patches,
            on_batch=self._note_batch,
        )
        self._worker = FieldWorker(
            self._detector,
            QueuedModel(self._model, self._batcher),
            model_pixel_size(self._model, settings.model_pixel_size_um),
            settings.field_pixels,
            settings.field_cells,
            settings.field_seconds,
            batch_size,
        )
        # One field at a time: detection uses a whole CPU core, and hundreds of megabytes for a large one.
        self._field_thread = ThreadPoolExecutor(1, "hematokit-fields")
        self._decoders = ThreadPoolExecutor(_DECODERS, "hematokit-decode")
        try:
            yield
        finally:
            self._field_thread.shutdown(wait=False, cancel_futures=True)
            self._decoders.shutdown(wait=False, cancel_futures=True)
            await asyncio.to_thread(self._batcher.close)

    def _note_batch(self, patches: int, requests: int, seconds: float) -> None:
        self.metrics.patches.inc(patches)
        self.metrics.batch_patches.observe(patches)
        self.metrics.batch_seconds.observe(seconds)

    # --- answers ------------------------------------------------------------------------------------------------------

    async def health(self) -> dict[str, str]:
        """Return the status of the server; needs no key."""
        return {"status": "ok"}

    async def metrics_text(self) -> Response:
        """Figures in Prometheus' text format."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def about(self) -> JSONResponse:
        """Return the classes of the model, the images that it accepts, and the limits of the server."""
        return JSONResponse(self._about)

    async def cells(
        self,
        request: Request,
        min_probability: Annotated[
            float, Query(ge=0, le=1, description="Probability below which a cell is low-confidence.")
        ] = 0.5,
    ) -> Response:
        """Classify crops of single cells: files of a form, or one image as the body.

        The answer has one entry in ``cells`` for each image, in order: ``name``, ``predicted``, ``probability``,
        ``low_confidence`` and the ``probabilities`` of all classes, or ``error`` and ``reason`` where an image
        cannot be used.
        Images are JPEG, PNG, TIFF or BMP in 8-bit RGB of the model's patch size.
        """
        async with uploaded(request, self._settings.most_crops, "image") as uploads:
            loop = asyncio.get_running_loop()
            read = await loop.run_in_executor(self._decoders, self._decode, uploads)
        good = [patch for patch in read if not isinstance(patch, ImageError)]
        if not good:
            raise next(entry for entry in read if isinstance(entry, ImageError))
        rows = await _unless_gone(request, self._classified(good))
        answers = iter(rows)
        cells = [
            {
                "name": upload.name,
                **(_failed(entry) if isinstance(entry, ImageError) else _judged(next(answers), min_probability)),
            }
            for upload, entry in zip(uploads, read, strict=True)
        ]
        return JSONResponse({"model": self._about["name"], "research_use_only": RESEARCH_USE, "cells": cells})

    async def field(
        self,
        request: Request,
        pixel_size_um: Annotated[
            float | None, Query(gt=0, le=100, description="Micrometres per pixel, if the file does not say.")
        ] = None,
        force_pixel_size: Annotated[
            bool, Query(description="Take pixel_size_um even where the file says otherwise.")
        ] = False,
        min_probability: Annotated[
            float, Query(ge=0, le=1, description="Probability below which a cell is low-confidence.")
        ] = 0.5,
        exclude_border: Annotated[bool, Query(description="Do not count cells that the border cuts.")] = False,
        picture: Annotated[bool, Query(description="Answer with a JPEG of the field, too.")] = False,
        answer: Annotated[
            Literal["json", "geojson"], Query(description="Everything, or only the cells as GeoJSON for QuPath.")
        ] = "json",
    ) -> Response:
        """Detect and classify the cells of a field: the body, or the only file of a form.

        Fields are TIFF, OME-TIFF, PNG, JPEG or BMP. The answer has ``field`` (size, pixel size, quality control),
        ``cells`` (a GeoJSON feature collection as QuPath imports it, in pixels of the field) and ``differential``.
        """
        if self._fields_waiting >= self._settings.most_waiting_fields:
            raise BusyError(f"{self._fields_waiting} fields wait to be worked on; try again later")
        # Counted from here, so that uploads cannot pile up on the disk before anybody works on them.
        self._fields_waiting += 1
        try:
            async with uploaded(request, 1, "field") as uploads:
                question = FieldQuestion(
                    uploads[0].name, pixel_size_um, force_pixel_size, min_probability, exclude_border, picture
                )
                found = await _unless_gone(request, self._examined(uploads[0], question))
        finally:
            self._fields_waiting -= 1
        self.metrics.fields.inc()
        self.metrics.field_cells.inc(found["cells"])
        if answer == "geojson":
            return Response(found["geojson"], media_type="application/geo+json")
        head = {"model": self._about["name"], "research_use_only": RESEARCH_USE}
        return StreamingResponse(as_json(found, head), media_type="application/json")

    # --- refusals -----------------------------------------------------------------------------------------------------

    async def refused(self, request: Request, error: Exception) -> Response:
        """Return the answer for an error of hematokit."""
        assert isinstance(error, HematokitError)
        if isinstance(error, ServingError):
            said = error
        elif isinstance(error, ImageError):
            said = ServingError(str(error), error.reason, 413 if error.reason == "too-large" else 422)
        elif isinstance(error, FieldError):
            said = ServingError(str(error), "field", 422)
        else:
            said = ServingError(str(error), "model", 500)
        # The guard formats the error and counts it.
        raise said

    async def misunderstood(self, request: Request, error: Exception) -> Response:
        """Return the answer for an invalid parameter."""
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = str(first["loc"][-1])
        raise ServingError(f"{where}: {first['msg']}; GET /openapi.json describes the parameters", "bad-parameter", 422)

    async def not_there(self, request: Request, error: Exception) -> Response:
        """Return the answer for an unknown path or method."""
        assert isinstance(error, HTTPException)
        words = {404: "there is nothing here", 405: "this path takes another method"}
        raise ServingError(
            f"{words.get(error.status_code, error.detail)}; GET /openapi.json lists the paths",
            "not-found",
            error.status_code,
        )

    # --- work ---------------------------------------------------------------------------------------------------------

    def _decode(self, uploads: Sequence[Upload]) -> list[npt.NDArray[np.uint8] | ImageError]:
        side = self._model.patch_size
        read: list[npt.NDArray[np.uint8] | ImageError] = []
        for upload in uploads:
            try:
                # The size is read from the header, so that decompression bombs are never decoded.
                read.append(decode_rgb(upload.file.read(), name=upload.name, expect=(side, side)))
            except ImageError as error:
                if error.reason == "wrong-size":
                    error = ImageError("wrong-size", f"{error}, which the model takes; crop, pad or resize it")
                read.append(error)
        return read

    async def _classified(self, patches: list[npt.NDArray[np.uint8]]) -> list[dict[str, Any]]:
        assert self._batcher is not None
        step = self._batcher.largest
        waiting = [
            asyncio.wrap_future(self._batcher.submit(patches[start : start + step]))
            for start in range(0, len(patches), step)
        ]
        return [entry for rows in await asyncio.gather(*waiting) for entry in rows.entries]

    async def _examined(self, upload: Upload, question: FieldQuestion) -> dict[str, Any]:
        stop = threading.Event()
        work = self._field_thread.submit(self._worker.answer, upload.file, question, stop)
        try:
            return await asyncio.wrap_future(work)
        except asyncio.CancelledError:
            stop.set()
            raise


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Wait for work, and cancel it when the client disconnects.

    Raises
    ------
    ServingError
        With reason ``"gone"``, for the metrics only.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ServingError("the client has gone", "gone", 499)
    finally:
        for each in (task, gone):
            each.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _judged(entry: dict[str, Any], min_probability: float) -> dict[str, Any]:
    return {**entry, "low_confidence": bool(below_threshold(entry["probability"], min_probability))}


def _failed(error: ImageError) -> dict[str, Any]:
    return {"error": str(error), "reason": error.reason}
