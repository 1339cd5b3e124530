"""The forms in which prompts are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ember.front.errors import ApiError, bad_request
from ember.front.offline.errors import raise_for

PromptType = str | Sequence[int] | Mapping[str, Any]
_FORMS = 'a text, token ids, {"prompt": text} or {"prompt_token_ids": ids}'


@dataclass(frozen=True, slots=True)
class GivenPrompt:
    """One prompt: what is tokenised or run, and the text that the result shows where it was given as ids."""

    content: str | list[int]
    text: str | None = None


def read_prompts(prompts: Any) -> list[GivenPrompt]:
    """One prompt, or each of a list; a list of numbers is one prompt. Raises PromptError before any of them runs."""
    if isinstance(prompts, str | Mapping) or (isinstance(prompts, Sequence) and prompts and _is_number(prompts[0])):
        prompts = [prompts]
    if not isinstance(prompts, Sequence):
        raise TypeError(f"a prompt must be {_FORMS}, or a list of them, not {type(prompts).__name__}")
    found: list[GivenPrompt] = []
    for index, given in enumerate(prompts):
        try:
            found.append(_read_prompt(given))
        except ApiError as error:
            raise_for(error, index, len(prompts), [None] * len(prompts))
    return found


def _read_prompt(given: Any) -> GivenPrompt:
    """Raises ApiError 400."""
    if isinstance(given, str):
        return GivenPrompt(given)
    if isinstance(given, Mapping):
        foreign = [str(name) for name in given if name not in ("prompt", "prompt_token_ids", "type")]
        asking = [name for name in foreign if given[name]]
        if asking:
            raise bad_request(f"A prompt with {asking[0][:80]!r} is not supported; it must be {_FORMS}.", "prompt")
        text = given.get("prompt")
        if given.get("prompt_token_ids") is not None:
            return GivenPrompt(list(given["prompt_token_ids"]), text)
        if isinstance(text, str):
            return GivenPrompt(text)
    elif isinstance(given, Sequence) and all(_is_number(token_id) for token_id in given):
        return GivenPrompt(list(given))
    raise bad_request(f"A prompt must be {_FORMS}, not {type(given).__name__}.", "prompt")


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
