"""One job without a queue: from `--test_input` or ./test_input.json to one JSON document on stdout.

The document is what the platform would show for the job: `{"id", "status", "output"}`, and `error` when it FAILED. The
handler runs the job as it runs those of a queue.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ember.untrusted_json import UntrustedJsonError, loads

if TYPE_CHECKING:
    from ember.front.start import Worker
    from ember.front.worker.handler import Handler
    from ember.settings import Settings

log = logging.getLogger(__name__)

TEST_INPUT_FILE = Path("test_input.json")


class LocalJobError(ValueError):
    """There is no job to run. The message is one line that says why."""


def read_job(text: str | None, file: Path = TEST_INPUT_FILE) -> dict[str, Any]:
    """The job in `text`, or in `file` if that is None. The outer `{"input": ...}` may be missing.

    Raises LocalJobError.
    """
    source = "--test_input"
    if text is None:
        source = f"./{file}"
        try:
            text = file.read_text("utf-8-sig")
        except UnicodeDecodeError:
            raise LocalJobError(f"{source} is not UTF-8 text; save it as UTF-8") from None
        except OSError as error:
            reason = error.strerror or error
            raise LocalJobError(
                f"no queue is configured and there is no job to run: {source}: {reason}; "
                "give a job with --test_input '{...}', or start the HTTP server with `ember serve`"
            ) from None
    try:
        content = loads(text)
    except UntrustedJsonError as error:
        raise LocalJobError(f"{source} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise LocalJobError(f"{source} must hold a JSON object, the job or its input")
    job = content if "input" in content else {"input": content}
    return {"id": "local_test", **job}


def run(settings: Settings, worker: Worker, job: dict[str, Any]) -> int:
    """Boot, run the job, print its document. Returns the exit code: 0, or 1 when the job or the boot failed."""
    from ember.front.loop import EngineLoop
    from ember.front.worker.answer import answer_with, handling_for
    from ember.front.worker.handler import make_handler
    from ember.front.worker.health import boot_failure
    from ember.front.worker.sdk import LEAVE_SECONDS, boot, close, end_engine
    from ember.front.worker.signals import leave_on_signals

    loop = EngineLoop()
    loop.start()
    leave_on_signals(before=lambda: end_engine(loop, worker, LEAVE_SECONDS))
    try:
        loop.submit(boot(worker)).result()
    except Exception as error:
        write_document(failed(job, boot_failure(error)))
        return 1
    else:
        handler = make_handler(handling_for(settings, loop, answer_with(worker)))
        document = asyncio.run(run_job(handler, job))
        write_document(document)
        return 0 if document["status"] == "COMPLETED" else 1
    finally:
        close(loop, worker)


def failed(job: dict[str, Any], reason: str) -> dict[str, Any]:
    """The document of a job that did not start. `reason` is one line."""
    return {"id": job["id"], "status": "FAILED", "error": reason}


def write_document(document: dict[str, Any]) -> None:
    """Write a document to stdout as UTF-8. It is one line unless stdout is a terminal."""
    text = json.dumps(document, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None) + "\n"
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    sys.stdout.buffer.flush()


async def run_job(handler: Handler, job: dict[str, Any]) -> dict[str, Any]:
    """Run a job and return its document. The output of a streamed job is the list of its pieces; else it is the
    body."""
    from ember.front.worker.inputs import wants_stream

    outputs: list[Any] = []
    async for output in handler(job):
        if isinstance(output, dict) and output.get("error"):
            return {"id": job["id"], "status": "FAILED", "output": outputs or None, "error": str(output["error"])}
        outputs.append(output)
    whole = len(outputs) == 1 and not wants_stream(job.get("input"))
    return {"id": job["id"], "status": "COMPLETED", "output": outputs[0] if whole else outputs}
