"""Reads the file of a chat template. The module is small, since each process of a request's template imports it."""

from __future__ import annotations

from pathlib import Path

from ember.regular_file import read_regular

MAX_TEMPLATE_BYTES = 1 << 20  # of one chat template; the longest known have 40,000


class TemplateFileError(ValueError):
    """The file of a template cannot be read; the message has its path and the reason."""


def read_template(path: Path) -> str:
    """The text of the file. Raises TemplateFileError."""
    try:
        return read_regular(path, MAX_TEMPLATE_BYTES).decode("utf-8")
    except OSError as error:
        raise TemplateFileError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TemplateFileError(f"{path} cannot be read: it is not UTF-8") from None
