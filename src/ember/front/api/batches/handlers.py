"""/v1/files and /v1/batches, in OpenAI's form."""

from __future__ import annotations

import asyncio
import re
import time

from ember.front.api.batches.local import batch_route
from ember.front.api.batches.manager import batches_of
from ember.front.api.batches.schemas import BatchCreateRequest
from ember.front.api.batches.store import FINAL, Record, page, public
from ember.front.api.body import IGNORED_FIELDS_HEADER, ignored_fields, parse_body, shown
from ember.front.api.exchange import Request, Response, UploadedFile, new_id
from ember.front.api.query import check_query, whole_number
from ember.front.api.router import check_task
from ember.front.api.services import Services
from ember.front.api.unsupported import later
from ember.front.errors import ApiError, bad_request

MAX_FILES_LISTED, MAX_BATCHES_LISTED = 10_000, 100
_LIST_PARAMETERS = ("order", "limit", "after", "api-version")  # Azure's clients send the last one
MAX_METADATA = 16
MAX_JOB_BYTES = 2**23  # of a file's content as the output of a queue job
_WINDOW = re.compile(r"([1-9][0-9]{0,3})([hmd])")
_SECONDS = {"h": 3600, "m": 60, "d": 86400}
_TIMES = ("in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at")


async def create_file(services: Services, raw_request: Request) -> Response:
    """Keep an uploaded file. Raises ApiError."""
    form = raw_request.body if isinstance(raw_request.body, dict) else {}
    file, purpose = form.get("file"), form.get("purpose")
    if not isinstance(file, UploadedFile):
        raise bad_request("`file` is missing: send the file as multipart/form-data over HTTP.", "file")
    if purpose != "batch":
        given = "a file" if isinstance(purpose, UploadedFile) else shown(purpose)
        raise bad_request(f"purpose must be 'batch', got {given}.", "purpose")
    if any(name.startswith("expires_after") for name in form):
        raise later("expires_after")
    store = batches_of(services).store
    return Response(200, public(await asyncio.to_thread(store.keep_upload, file.path, file.filename, purpose)))


async def list_files(services: Services, raw_request: Request) -> Response:
    """Answer with a page of the files. Raises ApiError 400."""
    check_query(raw_request, "purpose", *_LIST_PARAMETERS)
    files = await asyncio.to_thread(batches_of(services).store.all_files)
    purpose = raw_request.query.get("purpose")
    kept = [file for file in files if purpose is None or file["purpose"] == purpose]
    return _page(raw_request, kept, MAX_FILES_LISTED)


async def get_file(services: Services, raw_request: Request) -> Response:
    """Answer with the record of a file. Raises ApiError 404."""
    return Response(200, public(batches_of(services).store.file(raw_request.parameters["file_id"])))


async def delete_file(services: Services, raw_request: Request) -> Response:
    """Delete a file. Raises ApiError 400 for the input of a batch that is not over, and 404."""
    file_id = raw_request.parameters["file_id"]
    await asyncio.to_thread(batches_of(services).store.delete_file, file_id)
    return Response(200, {"id": file_id, "object": "file", "deleted": True})


async def get_content(services: Services, raw_request: Request) -> Response:
    """The bytes of a file, or as the output of a queue job its text. Raises ApiError 400 and 404."""
    store = batches_of(services).store
    file = store.file(raw_request.parameters["file_id"])
    path = store.content(file["id"])
    if not raw_request.is_job:
        return Response(200, path, {"Content-Type": "application/octet-stream"})
    if file["bytes"] > MAX_JOB_BYTES:
        raise bad_request(f"The file has {file['bytes']} bytes; a job's output has at most {MAX_JOB_BYTES}.", "file_id")
    return Response(200, await asyncio.to_thread(path.read_text, "utf-8", "replace"))


async def create_batch(services: Services, raw_request: Request) -> Response:
    """Start a batch, and answer with its record. Raises ApiError 400 and 404."""
    request = await parse_body(BatchCreateRequest, raw_request.body)
    if request.output_expires_after:
        raise later("output_expires_after")
    try:
        check_task(batch_route(request.endpoint, services.settings), services)
    except ApiError as error:
        raise bad_request(f"endpoint must be a route that the model answers: {error.message}", "endpoint") from None
    window = _WINDOW.fullmatch(request.completion_window)
    if window is None:
        message = f"completion_window must be a time such as '24h', got {shown(request.completion_window)}."
        raise bad_request(message, "completion_window")
    if len(request.metadata or {}) > MAX_METADATA:
        raise bad_request(f"metadata must have at most {MAX_METADATA} entries.", "metadata")
    batches = batches_of(services)
    file = batches.store.file(request.input_file_id)
    if file["purpose"] != "batch":
        raise bad_request(
            f"The file's purpose is {file['purpose']!r}; the input of a batch has 'batch'.", "input_file_id"
        )
    now = int(time.time())
    batch: Record = {
        "id": new_id("batch_"),
        "object": "batch",
        "endpoint": request.endpoint,
        "errors": None,
        "input_file_id": request.input_file_id,
        "completion_window": request.completion_window,
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": now,
        "expires_at": now + int(window[1]) * _SECONDS[window[2]],
        **dict.fromkeys(_TIMES),
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": request.metadata,
        "_made": time.time(),
        "_output": new_id("file-"),
        "_errors": new_id("file-"),
    }
    batches.store.put_batch(batch)
    batches.start(batch)
    ignored = ignored_fields(request)
    return Response(200, public(batch), {IGNORED_FIELDS_HEADER: ", ".join(ignored)} if ignored else {})


async def list_batches(services: Services, raw_request: Request) -> Response:
    """Answer with a page of the batches. Raises ApiError 400."""
    check_query(raw_request, *_LIST_PARAMETERS)
    store = batches_of(services).store
    found = [_seen(services, batch) for batch in await asyncio.to_thread(store.all_batches)]
    return _page(raw_request, found, MAX_BATCHES_LISTED, 20)


async def get_batch(services: Services, raw_request: Request) -> Response:
    """Answer with the record of a batch. Raises ApiError 404."""
    batch = batches_of(services).store.batch(raw_request.parameters["batch_id"])
    return Response(200, public(_seen(services, batch)))


async def cancel_batch(services: Services, raw_request: Request) -> Response:
    """End a batch. The results that it has stay. Raises ApiError 400 for one that is over, and 404."""
    batches = batches_of(services)
    batch = batches.store.batch(raw_request.parameters["batch_id"])
    if batch["status"] in FINAL:
        raise ApiError(400, f"The batch is {batch['status']} and cannot be cancelled.", param="batch_id")
    batches.store.ask_to_cancel(batch["id"])
    batches.start(batch, is_new=False)  # which ends it, should no server run it
    return Response(200, public(_seen(services, batch)))


def _seen(services: Services, batch: Record) -> Record:
    """A batch as clients see it: one that is to be cancelled is being cancelled."""
    store = batches_of(services).store
    if batch["status"] in FINAL or not store.is_to_be_cancelled(batch["id"]):
        return batch
    return {**batch, "status": "cancelling", "cancelling_at": batch["cancelling_at"] or int(time.time())}


def _page(raw_request: Request, records: list[Record], most: int, usual: int | None = None) -> Response:
    """The page that the query asks for, of at most `most` records, and of `usual` without a limit. Raises ApiError
    400."""
    query = raw_request.query
    limit = whole_number(query["limit"], 1, most) if "limit" in query else usual or most
    if limit is None:
        raise bad_request(f"limit must be a number from 1 to {most}, got {shown(query['limit'])}.", "limit")
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise bad_request(f"order must be 'asc' or 'desc', got {shown(order)}.", "order")
    return Response(200, page(records, limit, query.get("after"), order))
