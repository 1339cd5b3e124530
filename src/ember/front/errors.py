"""The only error that the api raises. The route has its form in a body and in a stream (`api/route.py`)."""

from __future__ import annotations

RETRY_AFTER_SECONDS = 1
# OpenAI's SDKs read the milliseconds; curl, urllib3 and proxies read only the seconds.
_RETRY = {"retry-after": str(RETRY_AFTER_SECONDS), "retry-after-ms": str(RETRY_AFTER_SECONDS * 1000)}


class ApiError(Exception):
    """An error response.

    `status` is the HTTP status. `code` is the same number unless it is given, as vLLM's clients expect. The message
    says what was given, what is allowed, and what to do. It may quote the request: characters that UTF-8 cannot encode
    become question marks. A 503 always has headers that say when to send the request again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        type: str | None = None,
        param: str | None = None,
        code: int | str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.message = encodable(message)
        super().__init__(self.message)
        self.status = status
        self.type = type or _TYPES.get(status, "BadRequestError" if status < 500 else "InternalServerError")
        self.param = None if param is None else encodable(param)
        self.code = status if code is None else code
        self.headers = {**(_RETRY if status == 503 else {}), **(headers or {})}
        self.is_logged = False  # whether the log line of its request was written
        self.limit: str | None = None  # the setting by which the request was refused, for the metrics


_TYPES = {
    400: "BadRequestError",
    404: "NotFoundError",
    422: "UnprocessableEntityError",
    500: "InternalServerError",
    501: "NotImplementedError",
    503: "ServiceUnavailableError",
}


def bad_request(message: str, param: str | None = None) -> ApiError:
    """A 400 for a value that is out of range or makes no sense with the others."""
    return ApiError(400, message, param=param)


def internal_error() -> ApiError:
    """A 500 for an unexpected error. The cause is only in the log."""
    return ApiError(500, "Internal server error; the worker's log has it.")


def shutting_down() -> ApiError:
    """A 503 for requests during shutdown, which another worker can serve."""
    return ApiError(503, "The worker is shutting down; send the request again.")


def aborted() -> ApiError:
    """A 503 for a request that the operator has ended, where the answer cannot say so itself."""
    return ApiError(503, "The request was aborted; send it again.")


def encodable(text: str) -> str:
    """The text with question marks in place of unpaired surrogates, which JSON encoders refuse."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
