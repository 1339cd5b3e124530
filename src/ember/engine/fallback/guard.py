"""A guard around code of models that is not Ember's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_exit() -> Iterator[None]:
    """Run code of a model in the block: what would end the process, such as SystemExit, becomes a RuntimeError, which
    ends the boot with its message, or the request that it belongs to."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        raise RuntimeError(f"the code would have ended the process: {type(error).__name__}({error})") from error
