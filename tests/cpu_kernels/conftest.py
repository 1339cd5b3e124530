"""The C library is compiled where it is missing, as `make` does."""

from __future__ import annotations

import shutil

import pytest

from ember_cpu import build, library


def pytest_collection_modifyitems(items):
    if shutil.which("cc") is None:
        for item in items:
            item.add_marker(pytest.mark.skip(reason="no C compiler"))


@pytest.fixture(scope="session", autouse=True)
def compiled():
    assert build.main([]) == 0
    library.load.cache_clear()
