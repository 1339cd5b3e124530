"""What importing the SDK costs and leaves behind, and which of its versions the job loop is for."""

from __future__ import annotations

import logging
import os
from concurrent.futures import Future
from typing import Any

import pytest

from ember.front.api.routes import ROUTER
from ember.front.worker.handler import Handling, ThisLoop
from tests.support.processes import Process

IMPORT = """
import json, os, sys
from ember.front.worker.sdk import import_sdk
if {already}:
    import cpuinfo
import_sdk()
import runpod
stubbed = "cpuinfo" not in sys.modules
import cpuinfo
print(json.dumps([stubbed, hasattr(cpuinfo, "__file__"), "torch" in sys.modules, os.environ["RUNPOD_LOG_LEVEL"],
    os.environ["RUNPOD_SKIP_GPU_CHECK"], os.environ["RUNPOD_SKIP_AUTO_SYSTEM_CHECKS"]]))
"""


def test_import_leaves_no_stub() -> None:
    with Process("-c", IMPORT.format(already=False)) as process:
        assert process.output() == '[true, true, false, "INFO", "true", "true"]\n'


def test_import_keeps_what_is_already_there() -> None:
    env = {"RUNPOD_LOG_LEVEL": "WARN", "RUNPOD_SKIP_GPU_CHECK": "false"}
    with Process("-c", IMPORT.format(already=True), env=env) as process:
        assert process.output() == '[false, true, false, "WARN", "false", "true"]\n'


def test_another_version_keeps_its_own_loop(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from ember.front.worker.sdk import import_sdk

    monkeypatch.setattr(os, "environ", os.environ.copy())
    import_sdk()
    import runpod
    from runpod.serverless.modules import rp_scale

    from ember.front.worker import scaler

    async def answer(request: Any) -> Any:
        raise AssertionError

    handling = Handling(ThisLoop(), answer, ROUTER, model="m")
    own = rp_scale.JobScaler
    monkeypatch.setattr(rp_scale, "JobScaler", own)
    monkeypatch.setattr(runpod, "__version__", "1.99.0")
    with caplog.at_level(logging.WARNING):
        scaler.install(handling, Future, 1.0)
    assert rp_scale.JobScaler is own
    assert "1.99.0" in caplog.text
    monkeypatch.setattr(runpod, "__version__", "1.12.3")
    scaler.install(handling, Future, 1.0)
    assert isinstance(rp_scale.JobScaler({"handler": None}), scaler.Scaler)
