"""The body of POST /v1/batches, and the models of answers for /openapi.json."""

from __future__ import annotations

from typing import Any, Literal

from ember.front.api.answers import AnswerModel
from ember.front.api.schemas import OpenModel


class BatchCreateRequest(OpenModel):
    """POST /v1/batches."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: Any = None


class FileObject(AnswerModel):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"]
    status_details: str | None


class _Page(AnswerModel):
    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileList(_Page):
    data: list[FileObject]


class FileDeleted(AnswerModel):
    id: str
    object: Literal["file"]
    deleted: bool


class BatchFault(AnswerModel):
    code: str
    line: int | None
    message: str
    param: str | None


class BatchFaults(AnswerModel):
    object: Literal["list"]
    data: list[BatchFault]


class RequestCounts(AnswerModel):
    total: int
    completed: int
    failed: int


class BatchObject(AnswerModel):
    id: str
    object: Literal["batch"]
    endpoint: str
    errors: BatchFaults | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class BatchList(_Page):
    data: list[BatchObject]
