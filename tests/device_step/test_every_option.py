"""Every option of a request has an effect on the GPU's runner: in rows that are drawn at once, and in late ones."""

from __future__ import annotations

import functools

import pytest

from ember.engine.core import intake
from ember.engine.core.gpu import late_rows
from ember.engine.core.gpu.device_runner import DeviceRunner
from ember.wire import SamplingParams
from tests.device_step.engines import device_engine
from tests.structured.json_model import make_json_model
from tests.support.options import EFFECTS, WORD, Samples, run_effects

FIELDS = SamplingParams.__struct_fields__
LATE = sorted(late_rows.OPTIONS | {"logprobs", "logprob_token_ids"})  # those that a draw depends on


@pytest.fixture(scope="module")
def effects(tmp_path_factory):
    directory = make_json_model(tmp_path_factory.mktemp("json-model"), num_hidden_layers=1)

    @functools.cache
    def run(is_late: bool) -> dict[str, tuple[Samples, Samples]]:
        return run_effects(device_engine(directory), LATE if is_late else FIELDS, WORD if is_late else None)

    return run


def test_every_option_is_declared():
    assert set(FIELDS) == intake.OPTIONS | DeviceRunner.options


@pytest.mark.parametrize(
    "option, is_late", [*((option, False) for option in FIELDS), *((option, True) for option in LATE)]
)
def test_every_option_has_an_effect(option, is_late, effects):
    without, with_option = effects(is_late)[option]
    assert EFFECTS[option].shows(without, with_option)
