"""A tiny random model with a tokenizer of its own, and engines on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine_core.inline import make_engine
from tests.structured.json_model import make_json_model


@pytest.fixture(scope="session")
def directory(tmp_path_factory) -> Path:
    return make_json_model(tmp_path_factory.mktemp("json-model"))


@pytest.fixture(scope="session")
def compiler_engine(directory):
    """One engine for many tests; each leaves it empty."""
    return make_engine(directory)


@pytest.fixture
def engine(compiler_engine):
    yield compiler_engine
    assert not compiler_engine.has_work
    assert compiler_engine.stats().num_free_blocks == compiler_engine.stats().num_blocks
