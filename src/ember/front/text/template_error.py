"""The one error of chat templates."""

from __future__ import annotations


class TemplateError(Exception):
    """A conversation that the template cannot render; the message is fit for the client."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
