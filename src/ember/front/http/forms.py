"""Files over HTTP: bodies of multipart/form-data, whose files go to the disk as they arrive, and files as answers."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import BodyPartReader, web

from ember.front.api.exchange import UploadedFile
from ember.front.errors import ApiError

Result = TypeVar("Result")

MAX_FILE_BYTES = 200 * 2**20  # OpenAI's limit for the input of a batch
MAX_FIELD_BYTES = 2**16
MAX_PARTS = 64
CHUNK_BYTES = 2**18
PART_SECONDS = 60.0  # for the next bytes to arrive
FORM_SECONDS = 1800.0  # time limit for a whole form
_CLOSING = {"Connection": "close"}  # of an error: the rest of the body is not read


def is_form(http: web.BaseRequest) -> bool:
    return http.content_type == "multipart/form-data"


async def read_form(http: web.BaseRequest, directory: Path) -> dict[str, Any]:
    """The fields of a form: text, and `UploadedFile`s in `directory`, which the caller removes. Raises ApiError 400,
    408 and 413, and leaves no file then."""
    form: dict[str, Any] = {}
    try:
        reader = await http.multipart()
        while (part := await _in_time(reader.next())) is not None:
            if not isinstance(part, BodyPartReader) or part.name is None or len(form) >= MAX_PARTS:
                raise ValueError(f"a form has at most {MAX_PARTS} parts, each with a name")
            if part.name in form:
                message = f"The form has two parts with the name {part.name[:64]!a}."
                raise ApiError(400, message, type="Bad Request", param=part.name[:64], headers=_CLOSING)
            if part.filename is None:
                form[part.name] = (await _read(part, MAX_FIELD_BYTES)).decode("utf-8", "replace")
            else:
                form[part.name] = await _kept(part, part.filename, directory)
    except BaseException as error:
        remove_files(form)
        if isinstance(error, TimeoutError):
            raise ApiError(408, "The form stopped arriving.", type="Request Timeout", headers=_CLOSING) from None
        if isinstance(error, OSError) and not isinstance(error, ConnectionError):
            raise ApiError(500, f"The form's files cannot be written: {error.strerror}.", headers=_CLOSING) from None
        if isinstance(error, Exception) and not isinstance(error, ApiError | ConnectionError):
            # The reader of forms has errors of its own, such as for a header that is none, and some of Python's.
            message = f"The form cannot be read: {ascii(' '.join(str(error).split()))[1:200]}"
            raise ApiError(400, message, type="Bad Request", param="body", headers=_CLOSING) from None
        raise
    return form


async def _in_time(reading: Awaitable[Result]) -> Result:
    """Raises TimeoutError."""
    async with asyncio.timeout(PART_SECONDS):
        return await reading


def remove_files(form: Any) -> None:
    """Remove the files of a form that nobody has moved away."""
    for value in form.values() if isinstance(form, dict) else ():
        if isinstance(value, UploadedFile):
            value.path.unlink(missing_ok=True)


async def send_file(http: web.BaseRequest, path: Path, headers: dict[str, str]) -> web.StreamResponse:
    """Answer with the bytes of a file. Raises ApiError 404 for a file that was deleted just now."""
    try:
        file = path.open("rb")
    except OSError:
        raise ApiError(404, "The file is gone.", type="Not Found") from None
    with file:
        response = web.StreamResponse(headers=headers)
        response.content_length = os.fstat(file.fileno()).st_size
        await response.prepare(http)
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            await response.write(chunk)
        await response.write_eof()
        return response


async def _kept(part: BodyPartReader, filename: str, directory: Path) -> UploadedFile:
    descriptor, name = tempfile.mkstemp(prefix="upload-", dir=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            size = 0
            while chunk := await _chunk(part):
                size += len(chunk)
                if size > MAX_FILE_BYTES:
                    raise _too_large(part.name, MAX_FILE_BYTES)
                file.write(chunk)
    except BaseException:
        os.unlink(name)
        raise
    return UploadedFile(filename, Path(name))


async def _read(part: BodyPartReader, most: int) -> bytes:
    found = b""
    while chunk := await _chunk(part):
        found += chunk
        if len(found) > most:
            raise _too_large(part.name, most)
    return found


async def _chunk(part: BodyPartReader) -> bytes:
    return bytes(await _in_time(part.read_chunk(CHUNK_BYTES)))


def _too_large(name: str | None, most: int) -> ApiError:
    message = f"{name!r:.80} has more than {most} bytes."
    return ApiError(413, message, type="Request Entity Too Large", headers=_CLOSING)
