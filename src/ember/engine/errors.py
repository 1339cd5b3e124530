"""The one error of loading a model."""

from __future__ import annotations


class ModelError(Exception):
    """The model cannot be served. One line for who has to act: what was given, what is allowed, what to do."""


class GrammarError(Exception):
    """A grammar that cannot be used; a reason for the client, to stand behind the name of the field."""
