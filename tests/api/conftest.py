from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ember.front.text.tokenizer import Tokenizer
from tests.api.fakes import Deployment, make_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def deploy(tokenizer: Tokenizer) -> Callable[..., Deployment]:
    """Builds a deployment with the given settings."""

    def build(**settings: Any) -> Deployment:
        return Deployment(tokenizer, **settings)

    return build


@pytest.fixture
def deployment(deploy: Callable[..., Deployment]) -> Deployment:
    return deploy()
