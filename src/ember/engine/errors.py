"""The errors of loading a model and of compiling a grammar."""

from __future__ import annotations


class ModelError(Exception):
    """The model cannot be served. The message is one line: what was given, what is allowed, what to do."""


def described(error: Exception) -> str:
    """An error of code that is not Ember's, in one line of limited length."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


class GrammarError(Exception):
    """A grammar cannot be used. The message is a reason for the client, to follow the name of the field."""
