"""Images out of requests: files of a form, or the body itself."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from tempfile import SpooledTemporaryFile
from typing import Any, BinaryIO, Final, cast

from python_multipart.multipart import parse_options_header
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from hematokit.errors import ServingError, printable

__all__ = ["Upload", "uploaded"]

_IN_MEMORY: Final = 1 << 20
"""Bytes of an upload that stay in memory; the rest of a larger one goes to a file without a name."""

_MOST_WORDS: Final = 16
"""Parts of a form that are no files."""

_TAIL: Final = 1024


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
            async for part in _body(request):
                file.write(part)
            if not file.tell():
                raise _without()
            file.seek(0)
            yield [Upload(_file_name(request.query_params.get("name"), otherwise), cast(BinaryIO, file))]
        return
    end = _FormEnd(request)
    try:
        form = await MultiPartParser(request.headers, end.watched(), max_files=most, max_fields=_MOST_WORDS).parse()
    except MultiPartException as error:
        if str(error.message).startswith("Too many files"):
            raise ServingError(
                f"the request has more than {most:,} image{'s' * (most > 1)}; send fewer at once", "too-large", 413
            ) from error
        raise _damaged(str(error.message).rstrip(".")) from error
    try:
        if not end.came:
            # Whatever stands in front of the cut would be answered as if there had been no more.
            raise _damaged("its end is missing")
        files: list[Any] = [part for _, part in form.multi_items() if not isinstance(part, str)]
        if not files:
            raise _without()
        yield [
            Upload(_file_name(part.filename, otherwise if len(files) == 1 else f"{otherwise} {number}"), part.file)
            for number, part in enumerate(files, start=1)
        ]
    finally:
        await form.close()


async def _body(request: Request) -> AsyncGenerator[bytes, None]:
    try:
        async for part in request.stream():
            yield part
    except ClientDisconnect as error:
        raise ServingError("the client has gone", "gone", 499) from error


class _FormEnd:
    """Sees whether the last boundary of a form came, which the parser does not ask for."""

    def __init__(self, request: Request) -> None:
        self._request = request
        boundary = parse_options_header(request.headers.get("content-type"))[1].get(b"boundary", b"")
        self._end, self._last = b"--" + boundary + b"--", b""

    @property
    def came(self) -> bool:
        """Whether the form is whole, or empty."""
        return not self._last or self._end in self._last

    async def watched(self) -> AsyncGenerator[bytes, None]:
        """The body, as it comes."""
        async for part in _body(self._request):
            if part:
                # Bytes after the end have no meaning, and are usually a line break.
                self._last = (self._last[-_TAIL:] + part)[-_TAIL:]
            yield part


def _damaged(how: str) -> ServingError:
    return ServingError(f"the form is damaged ({how}); send it again", "bad-form", 400)


def _without() -> ServingError:
    return ServingError(
        "the request holds no image; send one as multipart/form-data (curl -F image=@FILE) or as the body",
        "no-image",
        422,
    )


def _file_name(given: str | None, otherwise: str) -> str:
    """A client's name of a file without its folders, fit for one line; nothing is ever written under it."""
    plain = PureWindowsPath(PurePosixPath(given or "").name).name
    return printable(plain)[:200] or otherwise
