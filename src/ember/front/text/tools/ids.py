"""Ids of tool calls, in the form that a model's template expects."""

from __future__ import annotations

import secrets
import string
import uuid

_LETTERS = string.ascii_letters + string.digits
_MISTRAL_LENGTH = 9


def make_id(form: str, index: int, name: str) -> str:
    """The id of the call with this index in an answer."""
    if form == "mistral":
        return "".join(secrets.choice(_LETTERS) for _ in range(_MISTRAL_LENGTH))
    if form == "kimi":
        return f"functions.{name}:{index}"
    return f"chatcmpl-tool-{uuid.uuid4().hex}"
