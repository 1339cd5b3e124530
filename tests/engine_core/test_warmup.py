"""WARMUP: steps before ready leave nothing behind, and the driver's context never gets in the way."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from ember.engine.core import boot
from ember.engine.core.warmup import warm_up
from ember.engine.loading import cuda_context
from ember.engine.loading.cuda_context import create_context
from ember.engine.models.decoder import Decoder
from ember.wire import Generate
from tests.engine_core.inline import greedy, make_engine, run, tokens
from tests.engine_models.tiny import make_tiny


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("qwen3", tmp_path_factory.mktemp("qwen3"))


@pytest.mark.parametrize("mode", ["none", "eager", "full"])
def test_nothing_is_left_of_the_warm_up(mode: str, directory: Path) -> None:
    cold, warm = make_engine(directory), make_engine(directory)
    warm_up(warm, mode)
    assert warm.stats() == cold.stats() and not warm.has_work
    prompt = list(range(20))
    expected = run(cold, [Generate(1, prompt, greedy(6))])
    found = run(warm, [Generate(1, prompt, greedy(6))])
    assert tokens(found[1, 0]) == tokens(expected[1, 0]) and found[1, 0][0].num_cached_tokens == 0


def test_a_full_warm_up_leaves_no_chore(directory: Path) -> None:
    engine = make_engine(directory, dtype="bfloat16")
    warm_up(engine, "eager")
    model = engine.runner.model
    assert isinstance(model, Decoder)
    assert not model.parts.blocks[0].attention.qkv.packed
    warm_up(engine, "full")
    assert not engine.do_chore()


class Driver:
    """The three calls of the driver's library; `fails` is the one that does not succeed."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.calls: list[str] = []

    def __getattr__(self, name: str):
        def call(*arguments) -> int:
            self.calls.append(name)
            return 100 if name == self.fails else 0

        return call


def test_the_context_is_the_first_device_s_primary_one() -> None:
    driver = Driver()
    assert create_context(driver)
    assert driver.calls == ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]


@pytest.mark.parametrize("fails", ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"])
def test_a_driver_that_fails_is_left_to_torch(fails: str) -> None:
    driver = Driver(fails)
    assert not create_context(driver) and driver.calls[-1] == fails
    assert not create_context(ctypes.CDLL(None)), "a library without these functions"


def test_the_context_is_begun_only_where_a_gpu_may_be_used(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []
    monkeypatch.setattr(cuda_context, "create_context", lambda: begun.append(True))
    monkeypatch.setattr(boot, "_has_nvidia_device", lambda: True)
    make_engine(directory, device="cpu")
    assert not begun
    monkeypatch.setattr(boot, "_has_nvidia_device", lambda: False)
    make_engine(directory, device="auto")
    assert not begun
