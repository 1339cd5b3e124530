"""The documentation names files, modules, attributes and pages that exist, in lines of at most 100 columns."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = ("src", "kernels", "builder", "benchmarks", "tests", "docs", ".runpod")
MAX_COLUMNS = 100

_CODE = re.compile(r"`([^`]+)`")
_FILE = re.compile(r"[\w./-]*\.(?:py|c|h|sh|md)|[\w.-]+(?:/[\w.-]+)*/")  # a source file, or a directory with its slash
_MODULE = re.compile(r"(?:ember|ember_kernels|ember_cpu|builder|benchmarks|tests)(?:\.\w+)+")
_ATTRIBUTE = re.compile(r"[A-Z]\w+\.\w+")
_EXAMPLE = re.compile(r"`[^`]+`:")  # a line that names the file of the example below it
_LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


@cache
def source_paths() -> list[str]:
    """Every source file and directory (with a slash at its end), relative to the repository, with a slash in front."""
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for name in SOURCES:
        found += [path for path in (ROOT / name).rglob("*") if "__pycache__" not in path.parts]
        found.append(ROOT / name)
    return [f"/{path.relative_to(ROOT).as_posix()}{'/' if path.is_dir() else ''}" for path in found]


@cache
def source_text() -> str:
    """All Python source outside of the tests."""
    folders = [name for name in SOURCES if name != "tests"]
    return "\n".join(path.read_text() for name in folders for path in (ROOT / name).rglob("*.py"))


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a page, without blocks of code."""
    in_code = False
    for number, line in enumerate(page.read_text().split("\n"), 1):
        if line.startswith("```"):
            in_code = not in_code
        elif not in_code:
            yield number, line


def names(page: Path) -> Iterator[tuple[int, str]]:
    """What stands between backticks, word by word, without the arguments of a call."""
    for number, line in prose(page):
        for code in [] if _EXAMPLE.fullmatch(line) else _CODE.findall(line):
            for word in code.split():
                yield number, word.split("(")[0].rstrip(",;")


def is_module(dotted: str) -> bool:
    """Whether a dotted name is a module or package, or a name in one."""
    path = dotted.replace(".", "/")
    parent = path.rpartition("/")[0]
    return any(
        known.endswith((f"/{path}.py", f"/{path}/")) or (parent.count("/") and known.endswith(f"/{parent}.py"))
        for known in source_paths()
    )


def unknown_names(page: Path) -> list[str]:
    """The files, modules and attributes that a page names and no source folder has, each with its line."""
    unknown = []
    for number, name in names(page):
        if name.startswith("/") or "NAME" in name:
            continue  # a route, a place in the image, or a placeholder
        if _FILE.fullmatch(name):
            known = any(path.endswith(f"/{name}") for path in source_paths())
        elif _MODULE.fullmatch(name):
            known = is_module(name)
        elif _ATTRIBUTE.fullmatch(name):
            known = all(re.search(rf"\b{word}\b", source_text()) for word in name.split("."))
        else:
            continue
        if not known:
            unknown.append(f"{page.name}:{number}: {name}")
    return unknown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_the_documentation_exist(page: Path) -> None:
    assert not unknown_names(page), "no source folder has these"


def test_names_that_do_not_exist_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`core/no_such.py`, `ember.nowhere`, `NoClass.field`, `no_such/room/`; `core/engine.py`, `ember.wire.Abort`"
    )
    assert [line.split(": ")[1] for line in unknown_names(page)] == [
        "core/no_such.py",
        "ember.nowhere",
        "NoClass.field",
        "no_such/room/",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_in_the_documentation_lead_somewhere(page: Path) -> None:
    targets = [(n, link) for n, line in prose(page) for link in _LINK.findall(line) if "://" not in link]
    missing = [f"{page.name}:{n}: {link}" for n, link in targets if not (page.parent / link).exists()]
    assert not missing, f"broken links: {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_of_the_documentation_are_short(page: Path) -> None:
    long = [
        f"{page.name}:{number}: {len(line)} columns"
        for number, line in prose(page)
        if len(line) > MAX_COLUMNS and not line.startswith("|") and " " in line.strip()  # a lone address cannot break
    ]
    assert not long, f"wrap these at {MAX_COLUMNS} columns: {long}"
