"""The process of one `UntrustedTemplate`: sets its limits, then answers each line of JSON with another."""

from __future__ import annotations

import dataclasses
import json
import math
import resource
import sys
from typing import Any

from ember.front.text.template import ChatTemplate
from ember.front.text.template_error import TemplateError


def main(memory_bytes: int, seconds: float) -> None:
    """Serve requests on stdin. `seconds` limits the CPU time in case the parent, which has the time limit, is gone."""
    cpu_seconds = math.ceil(seconds) + 1
    for limit, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    template = None
    for line in sys.stdin.buffer:
        question = json.loads(line)
        try:
            if template is None:
                template = ChatTemplate(question["source"], question["special_tokens"])
                answer: dict[str, Any] = {
                    "content_format": template.content_format,
                    "variables": sorted(template.variables),
                }
            elif "history_form" in question:
                answer = {"history_form": dataclasses.asdict(template.history_form)}
            else:
                answer = {"text": template.render(**question)}
            written = json.dumps(answer)
        except Exception as error:
            written = json.dumps({"error": _message(error, memory_bytes)})
        sys.stdout.write(written + "\n")
        sys.stdout.flush()


def _message(error: Exception, memory_bytes: int) -> str:
    if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
        return f"the chat template of the request needs more than {memory_bytes // 2**20} MiB"
    if isinstance(error, TemplateError):
        return error.message
    return f"the chat template of the request cannot be read: {type(error).__name__}: {error}"


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
