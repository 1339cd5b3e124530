"""The routes of files and batches, with BATCH_DIR. Their module is imported at the first request."""

from __future__ import annotations

from pathlib import Path

from ember.front.api.route import Description, Route, loaded_later
from ember.settings import Settings

_ROOM = "ember.front.api.batches.handlers"


def _upload_directory(settings: Settings) -> Path | None:
    """The directory of uploads, or None where the routes are off. Raises ApiError 500 where it cannot be
    used."""
    from ember.front.api.batches.store import Store

    return None if settings.batch_dir is None else Store(settings.batch_dir).files


def _route(path: str, method: str, name: str, summary: str, answer: tuple[str, ...] | str) -> Route:
    about = Description(
        summary=summary,
        answer=answer,
        body=("BatchCreateRequest",) if name == "create_batch" else (),
        errors=(400, 404) if name != "list_batches" else (400,),
    )
    return Route(
        path=path,
        methods=(method,),
        answer=loaded_later(_ROOM, name),
        about=about,
        enabled_by="batch_dir",
        upload_directory=_upload_directory if name == "create_file" else None,
    )


BATCH_ROUTES = (
    _route("/v1/files", "POST", "create_file", "Store a file for a batch", ("FileObject",)),
    _route("/v1/files", "GET", "list_files", "The stored files", ("FileList",)),
    _route("/v1/files/{file_id}", "GET", "get_file", "What is known of a file", ("FileObject",)),
    _route("/v1/files/{file_id}", "DELETE", "delete_file", "Delete a file", ("FileDeleted",)),
    _route("/v1/files/{file_id}/content", "GET", "get_content", "A file's content", "application/octet-stream"),
    _route("/v1/batches", "POST", "create_batch", "Run a file of requests", ("BatchObject",)),
    _route("/v1/batches", "GET", "list_batches", "The batches", ("BatchList",)),
    _route("/v1/batches/{batch_id}", "GET", "get_batch", "A batch", ("BatchObject",)),
    _route("/v1/batches/{batch_id}/cancel", "POST", "cancel_batch", "End a batch", ("BatchObject",)),
)
