"""Images out of requests: files of a form, or the body itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, Final, cast

from starlette.exceptions import HTTPException
from starlette.requests import Request

from hematokit.errors import ServingError
from hematokit.serving.fieldwork import file_name

__all__ = ["Upload", "uploaded"]

_IN_MEMORY: Final = 1 << 20
"""Bytes of an upload that stay in memory; the rest of a larger one goes to a file without a name."""


@dataclass(frozen=True)
class Upload:
    """One uploaded file.

    Attributes
    ----------
    name : str
        As the client calls it, without folders, fit for one line.
    file : file object
        Its bytes, from their beginning.
    """

    name: str
    file: BinaryIO


@asynccontextmanager
async def uploaded(request: Request, most: int, otherwise: str) -> AsyncIterator[list[Upload]]:
    """Take the files of a request and close them in the end.

    A form (``multipart/form-data``) may have several, under any name; any other body is one image. Its name is then
    what the query parameter ``name`` says.

    Parameters
    ----------
    request : Request
    most : int
        Files in one request.
    otherwise : str
        Name of a file that has none.

    Raises
    ------
    ServingError
        If there is no file, there are too many, or the form is damaged.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded":
        raise ServingError(
            "a form of text holds no image; send multipart/form-data (curl -F image=@FILE) or the image itself with "
            "its type (curl -H 'Content-Type: image/png' --data-binary @FILE)",
            "no-image",
            415,
        )
    if kind != "multipart/form-data":
        with SpooledTemporaryFile(_IN_MEMORY) as file:
            async for part in request.stream():
                file.write(part)
            if not file.tell():
                raise _without()
            file.seek(0)
            yield [Upload(file_name(request.query_params.get("name"), otherwise), cast(BinaryIO, file))]
        return
    try:
        form: Any = await request.form(max_files=most, max_fields=16)
    except HTTPException as error:
        if str(error.detail).startswith("Too many"):
            raise ServingError(
                f"the request has more than {most:,} image{'s' * (most > 1)}; send fewer at once", "too-large", 413
            ) from error
        raise ServingError(f"the form is damaged ({error.detail}); send it again", "bad-form", 400) from error
    try:
        files = [part for _, part in form.multi_items() if not isinstance(part, str)]
        if not files:
            raise _without()
        yield [
            Upload(file_name(part.filename, otherwise if len(files) == 1 else f"{otherwise} {number}"), part.file)
            for number, part in enumerate(files, start=1)
        ]
    finally:
        await form.close()


def _without() -> ServingError:
    return ServingError(
        "the request holds no image; send one as multipart/form-data (curl -F image=@FILE) or as the body",
        "no-image",
        422,
    )
