"""The errors of offline use."""

from __future__ import annotations

from typing import Any, NoReturn

from ember.front.errors import ApiError


class PromptError(ValueError):
    """A prompt or its options cannot be used. `index` is the prompt's place; `outputs` has the results of all prompts
    that were finished by then, and None for the others."""

    def __init__(self, message: str, index: int, outputs: list[Any]) -> None:
        super().__init__(message)
        self.index = index
        self.outputs = outputs


def raise_for(error: ApiError, index: int, count: int, outputs: list[Any]) -> NoReturn:
    """Raises PromptError for a fault of a prompt, and RuntimeError for one of the engine."""
    if error.status >= 500:
        raise RuntimeError(error.message) from None
    place = f" (of prompt {index})" if count > 1 else ""
    raise PromptError(error.message + place, index, outputs) from None
