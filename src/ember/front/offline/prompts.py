"""The forms in which prompts are given."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

from ember.front.errors import ApiError, bad_request
from ember.front.offline.checks import plain
from ember.front.offline.errors import raise_for


class TextPrompt(TypedDict):
    """A prompt as text. Prompts with different salts share no cached prefix."""

    prompt: str
    cache_salt: NotRequired[str]


class TokensPrompt(TypedDict):
    """A prompt as token ids, with the text that the result shows."""

    prompt_token_ids: Sequence[int]
    prompt: NotRequired[str]
    cache_salt: NotRequired[str]


PromptType = str | Sequence[int] | Mapping[str, Any]
_FORMS = 'a text, token ids, {"prompt": text} or {"prompt_token_ids": ids}'


@dataclass(frozen=True, slots=True)
class GivenPrompt:
    """One prompt: what is tokenised or run, and the text that the result shows where it was given as ids."""

    content: str | list[int]
    text: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)  # of the body of its request


def read_prompts(prompts: Any) -> list[GivenPrompt]:
    """One prompt, or each of a list; a list or an array of numbers is one prompt. Raises TypeError, and PromptError
    before any of them runs."""
    given = _as_list(prompts)
    if isinstance(prompts, str | Mapping) or (given and _is_number(plain(given[0]))):
        given = [prompts]
    if given is None:
        raise TypeError(f"prompts must be {_FORMS}, or a list of them, not {type(prompts).__name__}.")
    found: list[GivenPrompt] = []
    for index, each in enumerate(given):
        try:
            found.append(_read_prompt(each))
        except ApiError as error:
            raise_for(error, index, len(given), [None] * len(given))
    return found


def _read_prompt(given: Any) -> GivenPrompt:
    """Raises ApiError 400."""
    if isinstance(given, str):
        return GivenPrompt(given)
    if isinstance(given, Mapping):
        foreign = [str(name) for name in given if name not in ("prompt", "prompt_token_ids", "cache_salt", "type")]
        asking = [name for name in foreign if given[name]]
        if asking:
            raise bad_request(f"A prompt with {asking[0][:80]!r} is not supported; it must be {_FORMS}.", "prompt")
        text, ids = given.get("prompt"), given.get("prompt_token_ids")
        if text is not None and not isinstance(text, str):
            raise bad_request(f"A prompt's `prompt` must be a text, not {type(text).__name__}.", "prompt")
        salt = given.get("cache_salt")
        if salt is not None and not isinstance(salt, str):
            raise bad_request(f"A prompt's `cache_salt` must be a text, not {type(salt).__name__}.", "cache_salt")
        fields = {} if salt is None else {"cache_salt": salt}
        if ids is not None:
            return GivenPrompt(_token_ids(ids, "A prompt's `prompt_token_ids`", "a list of token ids"), text, fields)
        if text is not None:
            return GivenPrompt(text, fields=fields)
        raise bad_request(f"A prompt must be {_FORMS}; this has none of the two fields.", "prompt")
    return GivenPrompt(_token_ids(given, "A prompt", _FORMS))


def _token_ids(given: Any, name: str, allowed: str) -> list[int]:
    """Raises ApiError 400 for what is no list or array of whole numbers."""
    ids = _as_list(given)
    if ids is None:
        raise bad_request(f"{name} must be {allowed}, not {type(given).__name__}.", "prompt")
    ids = [token_id if type(token_id) is int else plain(token_id) for token_id in ids]
    for place, token_id in enumerate(ids):
        if not _is_number(token_id):
            wrong = f"its entry {place} is {reprlib.repr(token_id)}, of type {type(token_id).__name__}"
            raise bad_request(f"{name} must be {allowed}; {wrong}.", "prompt")
    return ids


def _as_list(given: Any) -> list[Any] | None:
    """A sequence, an array or a tensor as a list; None for anything else."""
    if isinstance(given, str | bytes | bytearray | memoryview):
        return None
    if hasattr(given, "tolist"):
        given = given.tolist()
    return list(given) if isinstance(given, Sequence) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
