"""The lists of torch's modules that are deferred: one for each version, made by builder/lean_torch.py."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import msgspec

DIRECTORY = Path(__file__).parent / "lists"
_VERSION = re.compile(r"""^__version__\s*=\s*['"]([^'"]+)['"]""", re.MULTILINE)


class TorchList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The deferred modules of one version of torch."""

    version: str  # of torch; without the build's name it is for the builds for CUDA, which export the same names
    # Deferred modules in the order in which the plain import begins them, and whether each is a package.
    modules: dict[str, bool]
    # Those that are no attribute of their package after the plain import.
    unbound: list[str]
    # Importing module -> deferred module -> the names that it may have before they are real; "*" for a star import.
    names: dict[str, dict[str, list[str]]]
    # Deferred module -> what `from module import *` gives, where a module in `names` says that.
    stars: dict[str, list[str]]
    # Deferred module -> what its own code took in the plain import, where that is worth a line. For people.
    milliseconds: dict[str, float]


def find_torch() -> tuple[str, str] | None:
    """The directory and the version of the torch that would be imported; None if it is not found as a package."""
    for entry in sys.path:
        directory = os.path.join(entry or os.getcwd(), "torch")
        try:
            with open(os.path.join(directory, "version.py"), encoding="utf-8") as file:
                found = _VERSION.search(file.read())
        except OSError:
            continue
        return (directory, found[1]) if found else None
    return None


def load_list(version: str, directory: Path = DIRECTORY) -> TorchList | None:
    """The list for this build of torch, or else the one for the CUDA builds of its version; None if there is none.

    All builds of a version have the same Python files, but the exports of torch.distributed depend on the build.
    """
    base, _, build = version.partition("+")
    for name in (version,) if build == "cpu" else (version, base):
        try:
            content = (directory / f"torch-{name}.json").read_bytes()
        except OSError:
            continue
        return msgspec.json.decode(content, type=TorchList)
    return None
