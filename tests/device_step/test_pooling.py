"""Pooling models on the GPU's operators: the vectors are those of torch's operators."""

from __future__ import annotations

import random

import numpy as np
import pytest

from ember.engine.core.pool_runner import PoolRunner
from ember.engine.models.decoder import Decoder
from ember.wire import Pool
from tests.engine_core.inline import make_engine
from tests.engine_core.test_pooling import answers, values
from tests.engine_models.tiny import make_tiny
from tests.engine_models.tiny_encoders import make_encoder
from tests.support.gpu import DEVICE
from tests.support.operators import use_triton


@pytest.mark.parametrize("family", ["gte", "qwen3"])
def test_vectors_are_those_of_torch(family, tmp_path):
    """Whole texts of an encoder, and a decoder's texts in chunks over its cache."""
    if family == "gte":
        make_encoder(family, tmp_path)
    else:
        make_tiny(family, tmp_path, auto="AutoModel", num_hidden_layers=2)
    rng = random.Random(family)
    texts = [[rng.randrange(9, 90) for _ in range(length)] for length in (21, 3, 30, 3, 1)]
    requests = [Pool(i, text, "embed" if i else "token_embed") for i, text in enumerate(texts)]
    expected = answers(make_engine(tmp_path), requests)
    engine = make_engine(tmp_path, device=DEVICE, max_num_batched_tokens=40)
    assert isinstance(engine.runner, PoolRunner) and isinstance(engine.runner.model, Decoder)
    if DEVICE == "cpu":
        use_triton(engine.runner.model)
    for made, one in zip(answers(engine, requests), expected, strict=True):
        assert made.pooled is not None and one.pooled is not None
        np.testing.assert_allclose(values(made.pooled), values(one.pooled), atol=1e-4)
    assert not engine.has_work
