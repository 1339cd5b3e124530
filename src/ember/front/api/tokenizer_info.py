"""GET /tokenizer_info: the content of tokenizer_config.json, with the special tokens and the chat template in use."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from ember.front.api.exchange import Request, Response
from ember.front.api.services import Services
from ember.regular_file import MAX_JSON_BYTES
from ember.untrusted_json import UntrustedJsonError, read_object

_INT64_MAX = 2**63 - 1
_OF_FILES = ("_file", "name_or_path", "auto_map")  # ends of the names whose values are places on a disk
_USUAL_CLASS = "PreTrainedTokenizerFast"


async def tokenizer_info(services: Services, raw_request: Request) -> Response:
    """Answer with all that a client needs to tokenise as this worker does."""
    return Response(200, await asyncio.to_thread(_info, services))


def _info(services: Services) -> dict[str, Any]:
    tokenizer = services.tokenizer
    config = _config(services.tokenizer_dir or services.model_dir)
    info = {name: _plain(value) for name, value in config.items() if not name.endswith(_OF_FILES)}
    info["tokenizer_class"] = str(info.get("tokenizer_class") or _USUAL_CLASS)
    if type(info.get("model_max_length")) is not int:  # some files have 10^30 for "not known", which is no JSON integer
        info["model_max_length"] = services.engine.info.max_model_len
    info |= tokenizer.special_tokens
    info["added_tokens_decoder"] = tokenizer.added_tokens()
    template = services.template
    info.pop("chat_template", None)
    if template is not None:
        info["chat_template"] = template.source
    return info


def _config(directory: str) -> dict[str, Any]:
    """The content of the file, or an empty dict when it is missing or cannot be read."""
    path = Path(directory) / "tokenizer_config.json"
    if Path(directory).is_file():  # a GGUF file, which has all that is beside the tokens
        return {}
    try:
        return read_object(path, MAX_JSON_BYTES) or {}
    except UntrustedJsonError:
        return {}


def _plain(value: Any) -> Any:
    """The value with tokens as text instead of objects. Numbers that JSON cannot hold become text."""
    if isinstance(value, dict):
        if isinstance(value.get("content"), str) and "lstrip" in value:
            return value["content"]
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if type(value) is int and not -_INT64_MAX <= value <= _INT64_MAX:
        return str(value)
    return value
