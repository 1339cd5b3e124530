"""The one error of chat templates."""

from __future__ import annotations


class TemplateError(Exception):
    """The template cannot render a conversation. The message may be shown to the client."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
