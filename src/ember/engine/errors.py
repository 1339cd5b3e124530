"""The one error of loading a model."""

from __future__ import annotations


class ModelError(Exception):
    """The model cannot be served. One line for who has to act: what was given, what is allowed, what to do."""
