"""Reports that a worker cannot serve: one line in the log, and a ping to the platform."""

from __future__ import annotations

import logging
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from ember.front.worker.contract import platform_key, webhook, worker_id

log = logging.getLogger(__name__)

_PING_SECONDS = 2.0
_REASON_CHARS = 256


def report_unhealthy(reason: str, check: str = "ember") -> None:
    """Tell the platform, as its SDK does when its own checks fail. This never raises, and takes two seconds at most."""
    url, key = webhook("PING", worker_id()), platform_key()
    if not url.startswith(("http://", "https://")) or not key:
        return
    query = urlencode({"status": "unhealthy", "check": check, "reason": reason[:_REASON_CHARS]})
    try:
        request = Request(f"{url}{'&' if '?' in url else '?'}{query}", headers={"Authorization": key})
        with urlopen(request, timeout=_PING_SECONDS) as response:
            response.read()
    except (URLError, OSError, ValueError):
        log.debug("sending the unhealthy ping failed", exc_info=True)


def boot_failure(error: BaseException) -> str:
    """Log a failed boot in one line, with the traceback of an unexpected error. Returns the line."""
    from ember.front.link.engine import EngineError

    message = " ".join(str(error).split()) or type(error).__name__
    log.error("%s", message, exc_info=None if isinstance(error, EngineError) else error)
    return message
