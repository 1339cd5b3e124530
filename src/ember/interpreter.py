"""The command line of a Python process that this package starts."""

from __future__ import annotations

import sys


def module_command(module: str, *arguments: str) -> list[str]:
    """`python -P -m MODULE ARGUMENTS`. Without `-P` the working directory would come first on the child's path, and a
    file there that is named like a module of the standard library, such as `queue.py`, would be imported in its
    place."""
    return [sys.executable, "-P", "-m", module, *arguments]
